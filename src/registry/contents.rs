//! Bounded reads of files that the configuration names: credentials and certificates.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads a regular file of at most `max_bytes`, on a blocking thread.
///
/// # Errors
/// Returns an error if the file cannot be read, is not a regular file, or exceeds `max_bytes`.
pub(super) async fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || read_blocking(&path, max_bytes))
        .await
        .map_err(io::Error::other)?
}

fn read_blocking(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    // Opening a named pipe would block until it has a writer, and its content can be read once.
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        let why = format!("it has more than {max_bytes} bytes (a fixed limit)");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}
