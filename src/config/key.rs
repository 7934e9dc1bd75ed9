//! What a key is: one thing that can be set. The tables of the keys themselves are in other modules.

/// One thing that can be set.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// The section of the file it stands in; empty for none.
    pub section: &'static str,
    /// The name within the section.
    pub name: &'static str,
    /// What can be written.
    pub kind: Kind,
    /// What stands for the value in help texts, e.g. `ADDR:PORT`.
    pub value: &'static str,
    /// The unit, or what else there is to know about the form; empty for nothing.
    pub unit: &'static str,
    /// The default, as it would be written in the file.
    pub default: &'static str,
    /// What it means, in one sentence.
    pub meaning: &'static str,
}

/// The form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text in quotation marks.
    Text,
    /// A list of texts.
    List,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Number,
    /// A duration such as `"12s"`.
    Duration,
    /// A number of octets such as `"32MiB"`.
    Size,
    /// A text or a whole number.
    TextOrNumber,
}

impl Kind {
    /// What to write, in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::List => "a list of texts",
            Self::Bool => "true or false",
            Self::Number => "a whole number",
            Self::Duration => "a duration such as \"12s\"",
            Self::Size => "a size such as \"32MiB\"",
            Self::TextOrNumber => "a text or a whole number",
        }
    }
}

impl Key {
    /// The key with its section, as people speak of it: `etcd.username`.
    pub fn path(&self) -> String {
        if self.section.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.section, self.name) }
    }

    /// The variable of the environment: `SVCDNS_ETCD_USERNAME`.
    pub fn variable(&self) -> String {
        format!("SVCDNS_{}", self.path().to_uppercase().replace(['-', '.'], "_"))
    }

    /// The flag, without its dashes: `etcd-username`.
    pub fn flag(&self) -> String {
        self.path().replace('.', "-")
    }
}

/// A secret of a kind of registry. It is read from a file of its own or from a variable of the environment; there is no
/// flag and no key for it, since others could read it there. Each registry also has a variable of its own for it.
#[derive(Debug, PartialEq, Eq)]
pub struct SecretKey {
    /// What it is, in a word: `password`.
    pub name: &'static str,
    /// The variable that can hold it for all registries of the kind.
    pub variable: &'static str,
    /// The key of the file that can hold it.
    pub file: &'static Key,
}

impl SecretKey {
    /// The key that does not exist, as a person would write it: `etcd.password`.
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.file.section, self.name)
    }

    /// The variable for one registry: `SVCDNS_REGISTRY_MAIN_PASSWORD`; `registry` is its name.
    pub(super) fn variable_of(&self, registry: &str) -> String {
        format!("{REGISTRY_PREFIX}{}_{}", registry.to_uppercase(), self.name.to_uppercase())
    }
}

/// What the variables of one registry begin with; its name follows.
pub(super) const REGISTRY_PREFIX: &str = "SVCDNS_REGISTRY_";

/// Makes a constant of each key, and a table of them all.
macro_rules! keys {
    ($table:ident: $($constant:ident = $section:literal $name:literal $kind:ident $value:literal $unit:literal $default:literal $meaning:literal;)*) => {
        $(pub(super) const $constant: &$crate::config::key::Key = &$crate::config::key::Key {
            section: $section,
            name: $name,
            kind: $crate::config::key::Kind::$kind,
            value: $value,
            unit: $unit,
            default: $default,
            meaning: $meaning,
        };)*
        pub(super) const $table: &[&$crate::config::key::Key] = &[$($constant),*];
    };
}

pub(super) use keys;
