//! Errors of the configuration, with their location, a description and a remedy.

use std::fmt;
use std::path::PathBuf;

use crate::server::SettingsError;

/// Source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The value is the default.
    Default,
    /// The value is in the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// The value is in this environment variable.
    Variable(String),
    /// The value is in this flag, given without its dashes.
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

/// Error in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Reading the file failed.
    #[error(
        "cannot read the configuration file {}: {error}{}",
        path.display(),
        if *implicit { IMPLICIT_FILE_HINT } else { "" }
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        error: std::io::Error,
        /// Whether the file is the default one, which no flag or variable named.
        implicit: bool,
    },
    /// Syntax error in the file (TOML).
    #[error("{origin}: {message}")]
    Syntax {
        /// Location of the error.
        origin: Origin,
        /// Description of the error.
        message: String,
    },
    /// Unknown key.
    #[error("{origin}: unknown key `{key}`{}", DidYouMean(suggestion.as_deref()))]
    UnknownKey {
        /// Location of the key.
        origin: Origin,
        /// The key with its section.
        key: String,
        /// A similar key.
        suggestion: Option<String>,
    },
    /// Unknown section.
    #[error("{origin}: unknown section [{section}]{}", DidYouMean(suggestion.as_deref()))]
    UnknownSection {
        /// Location of the section.
        origin: Origin,
        /// The section.
        section: String,
        /// A similar section.
        suggestion: Option<String>,
    },
    /// Unknown environment variable.
    #[error(
        "unknown environment variable {name}{}{}",
        InParentheses(reason.as_deref()),
        DidYouMean(suggestion.as_deref())
    )]
    UnknownVariable {
        /// Name of the environment variable.
        name: String,
        /// Reason for the error, if the name looks like that of a registry's variable.
        reason: Option<String>,
        /// A similar variable.
        suggestion: Option<String>,
    },
    /// Invalid value.
    #[error("{origin}: {key}: {why}")]
    Invalid {
        /// Location of the value.
        origin: Origin,
        /// The key with its section.
        key: String,
        /// Description of the error and of a valid value.
        why: String,
    },
    /// Invalid combination of listener settings.
    #[error("{origin}: listen: {error}")]
    Listen {
        /// Location of the address.
        origin: Origin,
        /// Description of the error.
        error: SettingsError,
    },
}

/// Explains why the default file was read.
const IMPLICIT_FILE_HINT: &str = " (svcdns reads this file if it exists: use --config FILE for \
     another file, or --config /dev/null for none)";

/// Displays ` (…)`, or nothing.
struct InParentheses<'a>(Option<&'a str>);

impl fmt::Display for InParentheses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |text| write!(f, " ({text})"))
    }
}

/// Displays `: did you mean …?`, or nothing.
struct DidYouMean<'a>(Option<&'a str>);

impl fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |suggestion| write!(f, ": did you mean {suggestion}?"))
    }
}

/// Returns the candidate that is most similar to `word`, if any is similar enough.
pub(super) fn nearest(word: &str, candidates: impl IntoIterator<Item = String>) -> Option<String> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, &candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
