//! Passwords and tokens, which no log, error or report shows.

use std::path::PathBuf;
use std::{fmt, io};

use super::contents;

/// Largest file with a password or a token that is read, in bytes.
const MAX_SECRET_FILE: u64 = 64 * 1024;

/// Where a password or a token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// It was given.
    Given(Secret),
    /// It is in this file, which is read at each login: a new one counts without a restart.
    File(PathBuf),
}

impl Credential {
    /// Returns the secret as it is now; from a file, without the line ends at its end.
    ///
    /// # Errors
    /// When the file cannot be read, is no regular file, has more than 64 KiB, or holds no text.
    pub async fn read(&self) -> Result<Secret, CredentialError> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let unreadable = |source| CredentialError { path: path.clone(), source };
                let bytes = contents::read(path, MAX_SECRET_FILE).await.map_err(unreadable)?;
                secret_in(bytes).map_err(unreadable)
            }
        }
    }
}

/// A file of a credential could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}", path = path.display())]
pub struct CredentialError {
    path: PathBuf,
    source: io::Error,
}

/// Returns the secret that a file of this content holds.
fn secret_in(bytes: Vec<u8>) -> io::Result<Secret> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    // The library's error would carry the content.
    let text = String::from_utf8(bytes).map_err(|_| invalid("it is not UTF-8 text"))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(invalid("it is empty")),
        secret => Ok(Secret::from(secret)),
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
    use std::fs;

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

    #[tokio::test]
    async fn only_line_ends_are_cut_from_a_secret_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
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
        let longest = "x".repeat(64 * 1024);
        fs::write(&path, &longest).unwrap();
        assert_eq!(credential.read().await.unwrap().expose(), longest);
    }

    #[tokio::test]
    async fn a_file_without_a_secret_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let credential = Credential::File(path.clone());
        let why = async || {
            let error = credential.read().await.unwrap_err().to_string();
            error.strip_prefix(&format!("cannot read {}: ", path.display())).unwrap().to_owned()
        };
        assert_eq!(why().await, "No such file or directory (os error 2)");
        let too_long = vec![b'x'; 64 * 1024 + 1];
        for (content, said) in [
            (&b""[..], "it is empty"),
            (b"\r\n\n", "it is empty"),
            (b"hunter\xff2", "it is not UTF-8 text"),
            (&too_long, "it has more than 65536 bytes, the fixed limit"),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(why().await, said);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(why().await, "it is not a regular file");
        fs::remove_dir(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(why().await, "it is not a regular file");
    }
}
