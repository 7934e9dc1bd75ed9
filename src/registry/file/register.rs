//! A registration kept in the folder, as a GoFrame program keeps its own.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::registry::gsvc;
use crate::service::{Endpoint, Metadata, ServiceId};

/// What is registered, and where.
#[derive(Clone, Debug)]
pub struct Registrant {
    /// The folder; made when it is missing.
    pub directory: PathBuf,
    /// The first part of the file's name: `service`.
    pub head: String,
    /// Who.
    pub id: ServiceId,
    /// Where; at least one.
    pub endpoints: Vec<Endpoint>,
    /// What is said about it.
    pub metadata: Metadata,
    /// Between two refreshes; 10 s in GoFrame, whose readers take what is older than 20 s for dead.
    pub refresh: Duration,
}

/// What happens to a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterEvent {
    /// The file stands in the folder; said again whenever it had to be made again.
    Registered,
    /// The file cannot be written; it is tried again every second. The text is for people.
    Failed(String),
    /// The file was removed, on purpose.
    Removed,
    /// The file was left in place at the end: another program keeps the same registration.
    Left,
}

/// Why a registration is not made, or not taken back.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// GoFrame escapes nothing, so what is written would be read as something else.
    #[error(
        "the file registry cannot hold this registration, its file {file:?} would be read as something else: \
         no part may be empty or hold '/' or '#', and there must be an endpoint"
    )]
    NotWritable {
        /// The name that the file would have.
        file: String,
    },
    /// The file cannot be written.
    #[error("cannot register: {path} cannot be written: {error}", path = path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file cannot be removed; it counts until its time is up.
    #[error("cannot remove {path} now ({error}); it counts for 20 s more", path = path.display())]
    NotRemoved {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Between two looks whether somebody removed the file.
const LOOK: Duration = Duration::from_secs(1);

/// Tells what we wrote from what others did: the file's number and its time of writing.
type Stamp = (u64, SystemTime);

/// Keeps a registration in the folder until `stop` is cancelled, then removes it. A file that somebody removes is made
/// again within a second. Another program's file for the same name and endpoints is written over, as between GoFrame
/// programs; it is not removed while the other one writes it, too.
///
/// # Errors
/// When the first writing fails, or the removal at the end. What fails in between goes to `events` and is tried again.
pub async fn register(registrant: Registrant, stop: CancellationToken, events: impl Fn(RegisterEvent)) -> Result<(), RegisterError> {
    let path = registrant.directory.join(readable_name(&registrant)?);
    let mut ours = match write(&registrant, &path) {
        Ok(stamp) => stamp,
        Err(error) => return Err(RegisterError::Refused { path, error }),
    };
    events(RegisterEvent::Registered);
    let mut refreshed = Instant::now();
    let (mut failing, mut shared) = (false, false);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(LOOK.min(registrant.refresh)) => {}
        }
        let found = stamp(&path);
        if found.is_some() && !failing && refreshed.elapsed() < registrant.refresh {
            continue;
        }
        shared = found.is_some_and(|found| found != ours);
        match write(&registrant, &path) {
            Ok(stamp) => {
                refreshed = Instant::now();
                if found.is_none() || failing {
                    events(RegisterEvent::Registered);
                }
                (ours, failing) = (stamp, false);
            }
            Err(error) => {
                failing = true;
                events(RegisterEvent::Failed(format!("{} cannot be written: {error}", path.display())));
            }
        }
    }
    match stamp(&path) {
        None => {}
        Some(found) if shared || found != ours => {
            events(RegisterEvent::Left);
            return Ok(());
        }
        Some(_) => {
            if let Err(error) = fs::remove_file(&path) {
                return Err(RegisterError::NotRemoved { path, error });
            }
        }
    }
    events(RegisterEvent::Removed);
    Ok(())
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = path.symlink_metadata().ok()?;
    Some((metadata.ino(), metadata.modified().ok()?))
}

/// The file's name, if it reads back as what it was made of.
fn readable_name(registrant: &Registrant) -> Result<String, RegisterError> {
    let Registrant { head, id, endpoints, .. } = registrant;
    let file = gsvc::file_name(head, id, endpoints);
    let read = gsvc::parse_file_name(file.as_bytes(), b"");
    let same = read.is_ok_and(|read| read.id == *id && read.endpoints == *endpoints && !endpoints.is_empty());
    if same && file.starts_with(&format!("{head}#")) && !head.is_empty() && !head.contains(['#', '/']) && !file.contains('/') {
        Ok(file)
    } else {
        Err(RegisterError::NotWritable { file })
    }
}

/// Puts the whole file in place at once: a reader never sees it empty, which GoFrame's own would take for dead and delete.
///
/// It is made in a hidden folder of its own: GoFrame's readers scan every file of the folder, whatever its name, and fail
/// at one they cannot read, but leave folders alone.
fn write(registrant: &Registrant, path: &Path) -> io::Result<Stamp> {
    let Registrant { directory, metadata, .. } = registrant;
    // The mode that GoFrame gives it, less the umask.
    DirBuilder::new().recursive(true).mode(0o777).create(directory)?;
    let workshop = directory.join(format!(".svcdns-{:016x}", fastrand::u64(..)));
    DirBuilder::new().mode(0o700).create(&workshop)?;
    let file = workshop.join("registration");
    let content = gsvc::file_content(metadata, &jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string());
    let written = make(&file, &content).and_then(|()| {
        let stamp = stamp(&file).ok_or(io::ErrorKind::NotFound)?;
        fs::rename(&file, path)?;
        Ok(stamp)
    });
    if written.is_err() {
        // What cannot be cleared away is hidden, and the error tells more than this one would.
        let _ = fs::remove_file(&file);
    }
    let _ = fs::remove_dir(&workshop);
    written
}

/// Makes a file, never writes into one: where others may rename in the folder, the workshop can be another one by now, and a
/// link in it would lead to any file of ours.
fn make(file: &Path, content: &str) -> io::Result<()> {
    File::create_new(file)?.write_all(content.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_a_link_leads_to_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let (precious, link) = (folder.path().join("precious"), folder.path().join("registration"));
        fs::write(&precious, "content").unwrap();
        symlink(&precious, &link).unwrap();
        assert_eq!(make(&link, "{}").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "content");
        assert!(make(&folder.path().join("other"), "{}").is_ok());
    }
}
