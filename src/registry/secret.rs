//! Passwords and tokens, which no log, error or report shows.

use std::path::PathBuf;
use std::{fmt, io};

/// Where a password or a token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// It was given.
    Given(Secret),
    /// It is in this file, which is read at each connect: a rotated one counts without a restart.
    File(PathBuf),
}

impl Credential {
    /// Returns the secret as it is now; from a file, without the end of line there.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn read(&self) -> io::Result<Secret> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let text = tokio::fs::read_to_string(path).await?;
                Ok(Secret::from(text.trim_end_matches(['\r', '\n'])))
            }
        }
    }
}

/// A text that no log, error or report shows: only [`Secret::expose`] gives it out.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// `text` with every occurrence of the secret hidden.
    pub fn hide_in(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&self.0, "***") }
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::super::etcd::Settings;
    use super::*;

    #[test]
    fn a_secret_shows_nowhere() {
        let mut settings = Settings::new(vec!["127.0.0.1:2379".to_owned()]);
        settings.password = Some(Credential::Given(Secret::from("hunter2")));
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert_eq!(Secret::from("hunter2").to_string(), "***");
        assert_eq!(Secret::from("hunter2").hide_in("http://u:hunter2@host"), "http://u:***@host");
        assert_eq!(Secret::from("").hide_in("as it is"), "as it is");
    }
}
