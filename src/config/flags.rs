//! The keys as flags of the commands.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::key::{Key, Kind};
use super::keys;
use super::registry::kind_of;
use super::table::KEYS;

/// What was given by flags: keys with the values given, in order.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub(super) given: Vec<(&'static Key, Vec<String>)>,
}

impl Flags {
    /// Whether any flag of this key (by its path, e.g. `registry`) was given.
    pub fn has(&self, path: &str) -> bool {
        self.given.iter().any(|(key, _)| key.path() == path)
    }

    /// Gives a key (by its path) a value, as the flag would. A key that does not exist is ignored.
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

    /// The flags as they are written on a command line.
    pub fn written(&self) -> Vec<String> {
        let words = |(key, values): &(&'static Key, Vec<String>)| {
            let flag = format!("--{}", key.flag());
            values.iter().flat_map(move |value| [flag.clone(), value.clone()]).collect::<Vec<_>>()
        };
        self.given.iter().flat_map(words).collect()
    }

    fn collect(matches: &ArgMatches, wanted: impl Fn(&Key) -> bool) -> Self {
        let given = KEYS
            .iter()
            .filter(|key| wanted(key))
            .filter_map(|key| {
                let values: Vec<String> = matches.get_many::<String>(&key.flag())?.cloned().collect();
                Some((*key, values))
            })
            .collect();
        Self { given }
    }
}

/// Every key as a flag, except the directories: they are flags of every command.
#[derive(Clone, Debug, Default)]
pub struct ServeFlags(pub Flags);

/// The keys needed to write to a registry, as flags.
#[derive(Clone, Debug, Default)]
pub struct RegistryFlags(pub Flags);

/// Returns whether a key is in [`ServeFlags`].
fn is_a_flag_of_serve(key: &Key) -> bool {
    ![keys::RUNTIME_DIR, keys::STATE_DIR].contains(&key)
}

/// The keys of [`RegistryFlags`].
fn reaches_a_registry(key: &Key) -> bool {
    kind_of(key).is_some() || [keys::REGISTRY, keys::DEPLOYMENT, keys::NAMESPACE, keys::LOG].contains(&key)
}

fn augment(command: Command, wanted: impl Fn(&Key) -> bool) -> Command {
    command.args(KEYS.iter().filter(|key| wanted(key)).map(|key| {
        let heading = match key.section {
            "" => "Settings".to_owned(),
            "tls" => "Settings for TLS and QUIC listeners".to_owned(),
            section => format!("Settings for {section}"),
        };
        let help = key.meaning.replace('`', "");
        // Given twice, the last one counts: so a script can put its own behind someone else's.
        let arg = if key.kind == Kind::List { Arg::new(key.flag()) } else { Arg::new(key.flag()).overrides_with(key.flag()) };
        arg.long(key.flag())
            .value_name(key.value)
            .help(format!("{} [{}] [default: {}]", help, key.variable(), key.default.replace('"', "")))
            .help_heading(heading)
            .action(if key.kind == Kind::List { ArgAction::Append } else { ArgAction::Set })
    }))
}

macro_rules! flags {
    ($type:ident, $wanted:expr) => {
        impl FromArgMatches for $type {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(Flags::collect(matches, $wanted)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Args for $type {
            fn augment_args(command: Command) -> Command {
                augment(command, $wanted)
            }

            fn augment_args_for_update(command: Command) -> Command {
                augment(command, $wanted)
            }
        }
    };
}

flags!(ServeFlags, is_a_flag_of_serve);
flags!(RegistryFlags, reaches_a_registry);
