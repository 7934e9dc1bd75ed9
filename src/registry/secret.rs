//! Passwords and tokens, which no log message, error or report may contain.

use std::path::PathBuf;
use std::{fmt, io};

use crate::regular_file;

/// Maximum size of a password or token file, in bytes.
const MAX_SECRET_FILE_BYTES: u64 = 64 * 1024;

/// The source of a password or token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// The secret itself.
    Given(Secret),
    /// A file with the secret; it is read at each login, which allows rotation.
    File(PathBuf),
}

impl Credential {
    /// Returns the current secret; if read from a file, without trailing line breaks.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is not a regular file, is larger than 64 KiB,
    /// is not UTF-8, or holds only line breaks.
    pub async fn read(&self) -> Result<Secret, CredentialError> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let unreadable = |source| CredentialError { path: path.clone(), source };
                let bytes =
                    regular_file::read(path, MAX_SECRET_FILE_BYTES).await.map_err(unreadable)?;
                parse_secret(bytes).map_err(unreadable)
            }
        }
    }
}

/// Error: the file of a credential cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}", path = path.display())]
pub struct CredentialError {
    path: PathBuf,
    source: io::Error,
}

/// Parses the content of a credential file.
fn parse_secret(bytes: Vec<u8>) -> io::Result<Secret> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    // The library's error is discarded because it contains the bytes.
    let text = String::from_utf8(bytes).map_err(|_| invalid("it is not UTF-8 text"))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(invalid("it is empty")),
        secret => Ok(Secret::from(secret)),
    }
}

/// A text that `Debug` and `Display` hide; only [`Secret::expose`] returns it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns the secret text.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns `text` with every occurrence of the secret replaced by `***`.
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
    use std::fs;

    use super::super::etcd::Settings;
    use super::*;

    #[test]
    fn secrets_are_hidden_in_formatted_text() {
        let mut settings = Settings::new(vec!["127.0.0.1:2379".to_owned()]);
        settings.password = Some(Credential::Given(Secret::from("hunter2")));
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert_eq!(Secret::from("hunter2").to_string(), "***");
        assert_eq!(Secret::from("hunter2").hide_in("http://u:hunter2@host"), "http://u:***@host");
        assert_eq!(Secret::from("").hide_in("unchanged"), "unchanged");
    }

    #[tokio::test]
    async fn only_trailing_line_breaks_are_trimmed_from_secret_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let credential = Credential::File(path.clone());
        for (content, secret) in [
            ("hunter2", "hunter2"),
            ("hunter2\n", "hunter2"),
            ("hunter2\r\n\r\n", "hunter2"),
            (" hunter 2 \t\n", " hunter 2 \t"),
            ("two\nlines\n", "two\nlines"),
            ("pässword", "pässword"),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(credential.read().await.unwrap().expose(), secret, "{content:?}");
        }
        let largest = "x".repeat(64 * 1024);
        fs::write(&path, &largest).unwrap();
        assert_eq!(credential.read().await.unwrap().expose(), largest);
    }

    #[tokio::test]
    async fn unusable_secret_files_are_named_in_the_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let credential = Credential::File(path.clone());
        let why = async || {
            let error = credential.read().await.unwrap_err().to_string();
            error.strip_prefix(&format!("cannot read {}: ", path.display())).unwrap().to_owned()
        };
        assert_eq!(why().await, "No such file or directory (os error 2)");
        let too_large = vec![b'x'; 64 * 1024 + 1];
        for (content, message) in [
            (&b""[..], "it is empty"),
            (b"\r\n\n", "it is empty"),
            (b"hunter\xff2", "it is not UTF-8 text"),
            (&too_large, "it has more than 65536 bytes (a fixed limit)"),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(why().await, message);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(why().await, "it is a directory");
        fs::remove_dir(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(why().await, "it is not a regular file");
    }
}
