//! Keys as command-line flags.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::key::Key;
use super::keys;
use super::registry::kind_of;
use super::table::KEYS;

/// Flags of a command line: each key with its values, in order.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub(super) given: Vec<(&'static Key, Vec<String>)>,
}

impl Flags {
    /// Returns whether the key at this path, such as `registry`, was given.
    pub fn has(&self, path: &str) -> bool {
        self.given.iter().any(|(key, _)| key.path() == path)
    }

    /// Adds a value for the key at this path, as its flag would; ignores unknown keys.
    #[must_use]
    pub fn with(mut self, path: &str, value: impl Into<String>) -> Self {
        if let Some(key) = KEYS.iter().find(|key| key.path() == path) {
            match self.given.iter_mut().find(|(given, _)| given == key) {
                Some((_, values)) => values.push(value.into()),
                None => self.given.push((key, vec![value.into()])),
            }
        }
        self
    }

    /// Returns the flags as words of a command line.
    pub fn written(&self) -> Vec<String> {
        let words = |(key, values): &(&'static Key, Vec<String>)| {
            let flag = format!("--{}", key.flag());
            let words = |value: &String| {
                if key.is_switch() {
                    vec![format!("{flag}={value}")]
                } else {
                    vec![flag.clone(), value.clone()]
                }
            };
            values.iter().flat_map(words).collect::<Vec<_>>()
        };
        self.given.iter().flat_map(words).collect()
    }

    fn collect(matches: &ArgMatches, is_included: impl Fn(&Key) -> bool) -> Self {
        let given = KEYS
            .iter()
            .filter(|key| is_included(key))
            .filter_map(|key| {
                let values = matches.get_many::<String>(&key.flag())?.cloned().collect();
                Some((*key, values))
            })
            .collect();
        Self { given }
    }
}

/// Flags for all keys except the directories, whose flags every command has.
#[derive(Clone, Debug, Default)]
pub struct ServeFlags(pub Flags);

/// Flags for the keys that a command needs to write to a registry.
#[derive(Clone, Debug, Default)]
pub struct RegistryFlags(pub Flags);

/// Flags for the keys that a command needs to read a registry.
#[derive(Clone, Debug, Default)]
pub struct DiffFlags(pub Flags);

/// Returns whether a key is in [`ServeFlags`].
fn is_serve_flag(key: &Key) -> bool {
    !key.is_directory()
}

/// Returns whether a key is in [`RegistryFlags`].
fn is_registry_flag(key: &Key) -> bool {
    let general = [keys::REGISTRY, keys::DEPLOYMENT, keys::NAMESPACE, keys::LOG];
    kind_of(key).is_some() || general.contains(&key)
}

/// Returns whether a key is in [`DiffFlags`].
fn is_diff_flag(key: &Key) -> bool {
    kind_of(key).is_some() || key == keys::HEADS
}

/// Returns the help text of a key for a command that writes to registries.
fn registry_meaning(key: &Key) -> &'static str {
    if key == keys::REGISTRY { "Register in these registries." } else { key.meaning }
}

fn augment(
    command: Command,
    is_included: impl Fn(&Key) -> bool,
    meaning: impl Fn(&Key) -> &'static str,
) -> Command {
    command.args(KEYS.iter().filter(|key| is_included(key)).map(|key| arg(key, meaning(key))))
}

/// Returns the flag of a key with this help text.
fn arg(key: &Key, meaning: &str) -> Arg {
    let heading = match key.section {
        "" => "Settings".to_owned(),
        "tls" => "Settings for TLS and QUIC listeners".to_owned(),
        "bridge" => "Settings for the port bridge".to_owned(),
        "checks" => "Settings for checks of endpoints".to_owned(),
        "consul" => "Settings for Consul".to_owned(),
        "zookeeper" => "Settings for ZooKeeper".to_owned(),
        "nacos" => "Settings for Nacos".to_owned(),
        "polaris" => "Settings for Polaris".to_owned(),
        section => format!("Settings for {section}"),
    };
    let default = key.default_in_words().map_or_else(
        || {
            let list = key.default.strip_prefix('[').and_then(|list| list.strip_suffix(']'));
            list.unwrap_or(key.default).replace('"', "")
        },
        ToOwned::to_owned,
    );
    let arg = Arg::new(key.flag())
        .long(key.flag())
        .value_name(key.placeholder)
        .help(format!("{meaning} [{}] [default: {default}]", key.variable()))
        .help_heading(heading);
    if key.is_switch() {
        let arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
        arg.action(ArgAction::Set).overrides_with(key.flag())
    } else if key.form.is_list() {
        arg.action(ArgAction::Append)
    } else {
        // The last value counts, so that a script can append flags to a given command line.
        arg.action(ArgAction::Set).overrides_with(key.flag())
    }
}

macro_rules! flags {
    ($type:ident, $is_included:expr, $meaning:expr) => {
        impl FromArgMatches for $type {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(Flags::collect(matches, $is_included)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Args for $type {
            fn augment_args(command: Command) -> Command {
                augment(command, $is_included, $meaning)
            }

            fn augment_args_for_update(command: Command) -> Command {
                augment(command, $is_included, $meaning)
            }
        }
    };
}

flags!(ServeFlags, is_serve_flag, |key: &Key| key.meaning);
flags!(DiffFlags, is_diff_flag, |key: &Key| key.meaning);
flags!(RegistryFlags, is_registry_flag, registry_meaning);
