//! Errors of the configuration: where, what, and what to do.

use std::fmt;
use std::path::PathBuf;

use crate::server::SettingsError;

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// In the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// In this environment variable.
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

/// Why the configuration is invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration file {}: {error}{}",
        path.display(),
        if *implicit { IMPLICIT_FILE_HINT } else { "" }
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
        /// Whether it is the default file.
        implicit: bool,
    },
    /// The file is not valid TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// Where the error is.
        origin: Origin,
        /// What is wrong.
        message: String,
    },
    /// A key does not exist.
    #[error("{origin}: unknown key `{key}`{}", DidYouMean(suggestion.as_deref()))]
    UnknownKey {
        /// Where the key is.
        origin: Origin,
        /// The key with its section.
        key: String,
        /// A similar key.
        suggestion: Option<String>,
    },
    /// A section does not exist.
    #[error("{origin}: unknown section [{section}]{}", DidYouMean(suggestion.as_deref()))]
    UnknownSection {
        /// Where the section is.
        origin: Origin,
        /// The section.
        section: String,
        /// A similar section.
        suggestion: Option<String>,
    },
    /// An environment variable does not exist.
    #[error(
        "unknown environment variable {name}{}{}",
        InParentheses(reason.as_deref()),
        DidYouMean(suggestion.as_deref())
    )]
    UnknownVariable {
        /// The variable.
        name: String,
        /// Why it does not exist, if it looks like a variable of a registry.
        reason: Option<String>,
        /// A similar variable.
        suggestion: Option<String>,
    },
    /// A key does not accept the value.
    #[error("{origin}: {key}: {why}")]
    Invalid {
        /// Where the value is.
        origin: Origin,
        /// The key with its section.
        key: String,
        /// What is wrong, and what to write instead.
        why: String,
    },
    /// The server cannot listen with these settings.
    #[error("{origin}: listen: {error}")]
    Listen {
        /// Where the address is.
        origin: Origin,
        /// What is wrong.
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
