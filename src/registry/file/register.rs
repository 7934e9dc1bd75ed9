//! A registration kept in the folder, as a GoFrame program keeps its own.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::unistd::Uid;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Settings;
use crate::registry::{RegisterError, RegisterEvent, Registrant, gsvc};

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
pub async fn register(
    settings: &Settings,
    registrant: &Registrant,
    stop: CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let Settings { directory, named, timings, .. } = settings;
    if !named && is_foreign(directory) {
        return Err(RegisterError::Foreign(settings.to_string()));
    }
    let path = directory.join(readable_name(registrant)?);
    let key = || path.display().to_string();
    let write = || write(directory, &path, registrant);
    let mut ours = write().map_err(|error| RegisterError::Refused { key: key(), reason: error.to_string() })?;
    events(RegisterEvent::Registered);
    let mut refreshed = Instant::now();
    let (mut failing, mut shared) = (false, false);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(LOOK.min(timings.refresh)) => {}
        }
        let found = stamp(&path);
        if found.is_some() && !failing && refreshed.elapsed() < timings.refresh {
            continue;
        }
        shared = found.is_some_and(|found| found != ours);
        match write() {
            Ok(stamp) => {
                refreshed = Instant::now();
                if found.is_none() || failing {
                    events(RegisterEvent::Registered);
                }
                (ours, failing) = (stamp, false);
            }
            Err(error) => {
                failing = true;
                events(RegisterEvent::Failed(format!("{} cannot be written: {error}", key())));
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
                let seconds = timings.dead_after.as_secs();
                return Err(RegisterError::NotRemoved { key: key(), reason: error.to_string(), seconds });
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

/// Whether something is at `path` that is not a folder of root's or of our own user: a link to one would lead elsewhere.
fn is_foreign(path: &Path) -> bool {
    let trusted = |owner| owner == Uid::effective().as_raw() || owner == Uid::from_raw(0).as_raw();
    path.symlink_metadata().is_ok_and(|found| !found.is_dir() || !trusted(found.uid()))
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
        // GoFrame escapes nothing.
        Err(RegisterError::NotWritable(format!(
            "the file registry cannot hold this registration, its file {file:?} would be read as something else: \
             no part may be empty or hold '/' or '#', and there must be an endpoint"
        )))
    }
}

/// Puts the whole file in place at once: a reader never sees it empty, which GoFrame's own would take for dead and delete.
///
/// It is made in a hidden folder of its own: GoFrame's readers scan every file of the folder, whatever its name, and fail
/// at one they cannot read, but leave folders alone.
fn write(directory: &Path, path: &Path, registrant: &Registrant) -> io::Result<Stamp> {
    // The mode that GoFrame gives it, less the umask.
    DirBuilder::new().recursive(true).mode(0o777).create(directory)?;
    let workshop = directory.join(format!(".svcdns-{:016x}", fastrand::u64(..)));
    DirBuilder::new().mode(0o700).create(&workshop)?;
    let file = workshop.join("registration");
    let content = gsvc::file_content(&registrant.metadata, &jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string());
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
