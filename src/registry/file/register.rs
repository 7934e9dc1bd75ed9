//! Registration of a service in a directory, as a GoFrame program would do it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::unistd::Uid;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::directory::is_trusted_owner;
use crate::registry::{RegisterError, RegisterEvent, Registrant, gsvc};

/// Time between checks whether the file was removed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Inode and modification time, which tell the last own write from a foreign one.
type FileStamp = (u64, SystemTime);

/// Registers a service until `stop` is cancelled, then removes its file.
///
/// A removed file is written again within a second. As among GoFrame programs, the file of another
/// program with the same name and endpoints is overwritten. At the end it is left in place if the
/// other program writes it too.
///
/// `events` receives failures in between; they are retried.
///
/// # Errors
/// Returns an error if the first write or the final removal fails.
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
    let mut own_stamp = write()
        .map_err(|error| RegisterError::Refused { key: key(), reason: error.to_string() })?;
    events(RegisterEvent::Registered);
    let mut refreshed = Instant::now();
    let (mut failing, mut shared) = (false, false);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(CHECK_INTERVAL.min(timings.refresh_interval)) => {}
        }
        let found = stamp(&path);
        if found.is_some() && !failing && refreshed.elapsed() < timings.refresh_interval {
            continue;
        }
        shared = found.is_some_and(|found| found != own_stamp);
        match write() {
            Ok(stamp) => {
                refreshed = Instant::now();
                if found.is_none() || failing {
                    events(RegisterEvent::Registered);
                }
                (own_stamp, failing) = (stamp, false);
            }
            Err(error) => {
                failing = true;
                events(RegisterEvent::Failed(format!("cannot write {}: {error}", key())));
            }
        }
    }
    match stamp(&path) {
        None => {}
        Some(found) if shared || found != own_stamp => {
            events(RegisterEvent::Left);
            return Ok(());
        }
        Some(_) => {
            if let Err(error) = fs::remove_file(&path) {
                let seconds = timings.expire_after.as_secs();
                let reason = error.to_string();
                return Err(RegisterError::NotRemoved { key: key(), reason, seconds });
            }
        }
    }
    events(RegisterEvent::Removed);
    Ok(())
}

fn stamp(path: &Path) -> Option<FileStamp> {
    let metadata = path.symlink_metadata().ok()?;
    Some((metadata.ino(), metadata.modified().ok()?))
}

/// Returns whether `path` exists, but is no directory of root or of this user.
///
/// A link to such a directory counts as foreign too, because its owner can redirect it.
fn is_foreign(path: &Path) -> bool {
    let is_trusted = |owner| is_trusted_owner(Uid::from_raw(owner));
    path.symlink_metadata().is_ok_and(|found| !found.is_dir() || !is_trusted(found.uid()))
}

/// Returns the name of the file, if it parses back to the same registration.
fn readable_name(registrant: &Registrant) -> Result<String, RegisterError> {
    let Registrant { head, id, endpoints, .. } = registrant;
    let name = gsvc::file_name(head, id, endpoints);
    let parsed = gsvc::parse_file_name(name.as_bytes(), b"");
    let same = parsed.is_ok_and(|parsed| {
        parsed.id == *id && parsed.endpoints == *endpoints && !endpoints.is_empty()
    });
    let valid_head = !head.is_empty() && !head.contains(['#', '/']);
    if same && name.starts_with(&format!("{head}#")) && valid_head && !name.contains('/') {
        Ok(name)
    } else {
        // GoFrame escapes no character.
        Err(RegisterError::NotWritable(format!(
            "the file registry cannot hold this registration, because its file {name:?} would be \
             read as another: no part may be empty or contain '/' or '#', and at least one \
             endpoint is required"
        )))
    }
}

/// Writes the file atomically.
///
/// A GoFrame reader would take an empty file for expired and delete it. The new file is written in
/// a hidden subdirectory: GoFrame's readers scan every file in the directory, hidden ones
/// included, and fail at one that they cannot parse, but ignore subdirectories.
fn write(directory: &Path, path: &Path, registrant: &Registrant) -> io::Result<FileStamp> {
    // The mode that GoFrame uses; the umask applies.
    DirBuilder::new().recursive(true).mode(0o777).create(directory)?;
    let temporary = directory.join(format!(".svcdns-{:016x}", fastrand::u64(..)));
    DirBuilder::new().mode(0o700).create(&temporary)?;
    let file = temporary.join("registration");
    let update_at = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
    let content = gsvc::file_content(&registrant.metadata, &update_at);
    let written = create(&file, &content).and_then(|()| {
        let stamp = stamp(&file).ok_or(io::ErrorKind::NotFound)?;
        fs::rename(&file, path)?;
        Ok(stamp)
    });
    if written.is_err() {
        // The first error matters more, and a file that remains is hidden.
        let _ = fs::remove_file(&file);
    }
    let _ = fs::remove_dir(&temporary);
    written
}

/// Creates a file; fails if it exists.
///
/// If others can rename in the directory, the temporary one may be theirs by now, and a link in it
/// could redirect the write to any of our files.
fn create(file: &Path, content: &str) -> io::Result<()> {
    File::create_new(file)?.write_all(content.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn writes_do_not_follow_symbolic_links() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let link = directory.path().join("registration");
        fs::write(&target, "content").unwrap();
        symlink(&target, &link).unwrap();
        assert_eq!(create(&link, "{}").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&target).unwrap(), "content");
        assert!(create(&directory.path().join("other"), "{}").is_ok());
    }
}
