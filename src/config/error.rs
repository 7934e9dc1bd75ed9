//! Mistakes in the configuration, in words a person can act on.

use std::fmt;
use std::path::PathBuf;

use crate::server::SettingsError;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: the default.
    Default,
    /// In the configuration file; line and column count from 1.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The column, in characters.
        column: usize,
    },
    /// In this variable of the environment.
    Variable(String),
    /// In this flag, without its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// A mistake in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {error}{}", path.display(), if *implicit { " (it is read because it exists: --config FILE names another, --config /dev/null none)" } else { "" })]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
        /// Whether nobody named it.
        implicit: bool,
    },
    /// The file is no TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: there is no key `{key}`{}", Hint(suggestion.as_deref()))]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// The key, with its section.
        key: String,
        /// A key that may have been meant.
        suggestion: Option<String>,
    },
    /// A section that does not exist.
    #[error("{origin}: there is no section [{section}]{}", Hint(suggestion.as_deref()))]
    UnknownSection {
        /// Where.
        origin: Origin,
        /// The section.
        section: String,
        /// A section that may have been meant.
        suggestion: Option<String>,
    },
    /// A variable that does not exist.
    #[error("the environment has {name}, but there is {missing}{}", Hint(suggestion.as_deref()))]
    UnknownVariable {
        /// The variable.
        name: String,
        /// What does not exist, such as `no such setting`.
        missing: String,
        /// A variable that may have been meant.
        suggestion: Option<String>,
    },
    /// A value that the key cannot have.
    #[error("{origin}: {key}: {why}")]
    Invalid {
        /// Where.
        origin: Origin,
        /// The key, with its section.
        key: String,
        /// What is wrong, and what to write.
        why: String,
    },
    /// Addresses that cannot be listened on as things are.
    #[error("{origin}: listen: {error}")]
    Listen {
        /// Where the address was written.
        origin: Origin,
        /// What is wrong.
        error: SettingsError,
    },
}

/// `: did you mean …?`, or nothing.
struct Hint<'a>(Option<&'a str>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |suggestion| write!(f, ": did you mean {suggestion}?"))
    }
}

/// The candidate most like `word`, if one is near enough to be meant.
pub(super) fn nearest(word: &str, candidates: impl IntoIterator<Item = String>) -> Option<String> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, &candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
