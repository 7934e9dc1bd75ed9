//! The type of configuration keys; other modules have the tables of keys.

/// A configuration key, with its form, default and description.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// Section of the file that contains the key; empty for a key outside all sections.
    pub section: &'static str,
    /// Name within the section.
    pub name: &'static str,
    /// Form of the value.
    pub form: ValueForm,
    /// Placeholder for the value in help texts, such as `ADDR:PORT`.
    pub placeholder: &'static str,
    /// Unit, range or syntax of the value; empty if `form` is enough.
    pub constraint: &'static str,
    /// Default, as written in the file.
    pub default: &'static str,
    /// Effect of an empty value, such as `the system's trust store`; empty for none.
    pub if_empty: &'static str,
    /// Meaning in one or two sentences, for the help and the documentation.
    pub meaning: &'static str,
}

/// The form of a value in the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueForm {
    /// A string.
    Text,
    /// A list of strings.
    List,
    /// A list of integers.
    NumberList,
    /// `true` or `false`.
    Bool,
    /// An integer.
    Number,
    /// A duration such as `"12s"`.
    Duration,
    /// A number of bytes such as `"32MiB"`.
    Size,
    /// A string or an integer.
    TextOrNumber,
    /// A table of values.
    Table,
}

impl ValueForm {
    /// Returns whether the value is a list.
    pub(super) fn is_list(self) -> bool {
        matches!(self, Self::List | Self::NumberList)
    }

    /// Returns the short name used in the documentation.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::List => "list of strings",
            Self::NumberList => "list of integers",
            Self::Bool => "true or false",
            Self::Number => "integer",
            Self::Duration => "duration",
            Self::Size => "size",
            Self::TextOrNumber => "string or integer",
            Self::Table => "table",
        }
    }

    /// Returns a description for error messages, with an example of an unusual form.
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::List => "a list of strings",
            Self::NumberList => "a list of integers",
            Self::Bool => "true or false",
            Self::Number => "an integer",
            Self::Duration => "a duration such as \"12s\"",
            Self::Size => "a size such as \"32MiB\"",
            Self::TextOrNumber => "a string or an integer",
            Self::Table => "a table such as { weight = 5 }",
        }
    }
}

impl Key {
    /// Returns the key with its section: `etcd.username`.
    pub fn path(&self) -> String {
        if self.section.is_empty() {
            self.name.to_owned()
        } else {
            format!("{}.{}", self.section, self.name)
        }
    }

    /// Returns the name of the environment variable: `SVCDNS_ETCD_USERNAME`.
    pub fn variable(&self) -> String {
        format!("SVCDNS_{}", self.flag().to_uppercase().replace('-', "_"))
    }

    /// Returns whether the key turns its section on.
    ///
    /// The flag of such a key is the name of the section, and needs no value.
    pub(super) fn is_switch(&self) -> bool {
        self.name == "enabled"
    }

    /// Returns the default in words if `default` is an empty string or list.
    ///
    /// The words are the effect of an empty value, or `none`.
    pub(super) fn default_in_words(&self) -> Option<&'static str> {
        match (self.default, self.if_empty) {
            ("\"\"" | "[]", "") => Some("none"),
            ("\"\"" | "[]", effect) => Some(effect),
            _ => None,
        }
    }

    /// Returns the flag without its dashes: `etcd-username`; `bridge` for `bridge.enabled`.
    pub fn flag(&self) -> String {
        if self.is_switch() { self.section.to_owned() } else { self.path().replace('.', "-") }
    }
}

/// A secret that a kind of registry needs, such as a password.
///
/// The secret comes from a file or from an environment variable, for all registries of the kind or
/// for a single one. No flag and no key holds it, because other users could read it there.
#[derive(Debug, PartialEq, Eq)]
pub struct SecretKey {
    /// Short name: `password`.
    pub name: &'static str,
    /// Environment variable that can hold the secret of all registries of the kind.
    pub variable: &'static str,
    /// Key that names the file with the secret.
    pub file: &'static Key,
}

impl SecretKey {
    /// Returns the key path that a user may expect to hold the secret: `etcd.password`.
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.file.section, self.name)
    }

    /// Returns the name of the environment variable with one registry's secret.
    ///
    /// For example, `SVCDNS_REGISTRY_MAIN_PASSWORD` for the registry `main` and `password`.
    pub(super) fn variable_of(&self, registry: &str) -> String {
        format!("{REGISTRY_PREFIX}{}_{}", registry.to_uppercase(), self.name.to_uppercase())
    }
}

/// Returns the path of a key in the section of a registry.
pub(super) fn section_path(registry: &str, key: &str) -> String {
    format!("registry.{registry}.{key}")
}

/// Name of the tables of static services, and of the registry of all of them.
pub(super) const STATIC: &str = "static";

/// Prefix of environment variables for one registry; the registry's name follows.
pub(super) const REGISTRY_PREFIX: &str = "SVCDNS_REGISTRY_";

/// Declares a constant for each key, and a table of all of them.
macro_rules! keys {
    (
        $table:ident:
        $(
            $constant:ident = $section:literal $name:literal $form:ident $placeholder:literal
                $constraint:literal $default:literal $(=> $if_empty:literal)?
                $meaning:expr;
        )*
    ) => {
        $(pub(super) const $constant: &$crate::config::key::Key = &$crate::config::key::Key {
            section: $section,
            name: $name,
            form: $crate::config::key::ValueForm::$form,
            placeholder: $placeholder,
            constraint: $constraint,
            default: $default,
            if_empty: concat!("" $(, $if_empty)?),
            meaning: $meaning,
        };)*
        pub(super) const $table: &[&$crate::config::key::Key] = &[$($constant),*];
    };
}

pub(super) use keys;
