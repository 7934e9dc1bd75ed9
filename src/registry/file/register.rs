//! Registration of a service in a directory, as a GoFrame program would do it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::unistd::Uid;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::directory::is_trusted_owner;
use crate::registry::{RegisterError, RegisterEvent, Registrant, gsvc};

/// Time between checks whether the file was removed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for the file system at the end.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Inode and modification time, to tell our own last write from a foreign one.
type FileStamp = (u64, SystemTime);

/// Registers a service until `stop` is cancelled, then removes its file.
///
/// A removed file is written again within a second. As among GoFrame programs, the file of another
/// program with the same name and endpoints is overwritten. At the end, the file is left in place
/// if the other program also writes it.
///
/// `events` receives failures in between; they are retried.
///
/// # Errors
/// Returns an error if the first write or the final removal fails, or if a call to the file system
/// still hangs 10 s after `stop` is cancelled.
pub async fn register(
    settings: &Settings,
    registrant: &Registrant,
    stop: CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let Settings { directory, timings, .. } = settings;
    let file = RegistrationFile {
        path: directory.join(readable_name(registrant)?),
        directory: directory.clone(),
        registrant: registrant.clone(),
    };
    let key = file.path.display().to_string();
    let registration = keep_written(settings, Arc::new(file), &stop, events);
    let hung = async {
        stop.cancelled().await;
        sleep(REMOVAL_TIMEOUT).await;
    };
    tokio::select! {
        ended = registration => ended,
        () = hung => {
            let reason = "the file system does not respond".to_owned();
            let seconds = timings.expire_after.as_secs();
            Err(RegisterError::NotRemoved { key, reason, seconds })
        }
    }
}

/// Writes the file until `stop` is cancelled, then removes it.
async fn keep_written(
    settings: &Settings,
    file: Arc<RegistrationFile>,
    stop: &CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let Settings { named, timings, .. } = settings;
    let key = || file.path.display().to_string();
    if !named && blocking(&file, |file| Ok(is_foreign(&file.directory))).await.unwrap_or(true) {
        return Err(RegisterError::Foreign(settings.to_string()));
    }
    let mut own_stamp = blocking(&file, RegistrationFile::write)
        .await
        .map_err(|error| RegisterError::Refused { key: key(), reason: error.to_string() })?;
    events(RegisterEvent::Registered);
    let mut refreshed = Instant::now();
    let (mut failing, mut shared) = (false, false);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(CHECK_INTERVAL.min(timings.refresh_interval)) => {}
        }
        let found = blocking(&file, |file| Ok(stamp(&file.path))).await.unwrap_or_default();
        if found.is_some() && !failing && refreshed.elapsed() < timings.refresh_interval {
            continue;
        }
        shared = found.is_some_and(|found| found != own_stamp);
        match blocking(&file, RegistrationFile::write).await {
            Ok(stamp) => {
                refreshed = Instant::now();
                if found.is_none() {
                    events(RegisterEvent::Registered);
                } else if failing {
                    events(RegisterEvent::Recovered);
                }
                (own_stamp, failing) = (stamp, false);
            }
            Err(error) => {
                failing = true;
                events(RegisterEvent::Failed(format!("cannot write {}: {error}", key())));
            }
        }
    }
    let removed = blocking(&file, move |file| match stamp(&file.path) {
        Some(found) if shared || found != own_stamp => Ok(RegisterEvent::Left),
        Some(_) => fs::remove_file(&file.path).map(|()| RegisterEvent::Removed),
        None => Ok(RegisterEvent::Removed),
    });
    events(removed.await.map_err(|error| {
        let (reason, seconds) = (error.to_string(), timings.expire_after.as_secs());
        RegisterError::NotRemoved { key: key(), reason, seconds }
    })?);
    Ok(())
}

/// Runs calls to the file system in a blocking thread: they may hang on a network file system.
async fn blocking<T: Send + 'static>(
    file: &Arc<RegistrationFile>,
    work: impl FnOnce(&RegistrationFile) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let file = Arc::clone(file);
    // Fails only while the runtime shuts down.
    tokio::task::spawn_blocking(move || work(&file)).await.map_err(io::Error::other)?
}

/// The file of a registration.
#[derive(Debug)]
struct RegistrationFile {
    directory: PathBuf,
    path: PathBuf,
    registrant: Registrant,
}

impl RegistrationFile {
    /// Writes the file atomically.
    ///
    /// A GoFrame reader would take an empty file for expired and delete it. The new file is written
    /// in a hidden subdirectory: GoFrame's readers scan every file in the directory, hidden ones
    /// included, and fail at one that they cannot parse, but ignore subdirectories.
    fn write(&self) -> io::Result<FileStamp> {
        let Self { directory, path, registrant } = self;
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
}

fn stamp(path: &Path) -> Option<FileStamp> {
    let metadata = path.symlink_metadata().ok()?;
    Some((metadata.ino(), metadata.modified().ok()?))
}

/// Returns whether `path` exists, but is not a directory of root or of this user.
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

/// Creates a file; fails if it exists.
///
/// Other users who can rename entries of the directory may have replaced the temporary directory. A
/// link in it could then redirect the write to any of our files.
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
