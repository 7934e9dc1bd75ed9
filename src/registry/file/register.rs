//! A registration kept in the folder, as a GoFrame program keeps its own.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::registry::gsvc;
use crate::service::{Endpoint, Metadata, ServiceId};

/// What is registered, and where.
#[derive(Clone, Debug)]
pub struct Registration {
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

/// What happens to a registration while it is kept.
#[derive(Debug)]
pub enum Kept {
    /// It stands in the folder: for the first time, or again.
    Registered,
    /// It could not be refreshed; it is tried again every second.
    Failed(io::Error),
}

/// Why a registration is not made, or not taken back.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// GoFrame escapes nothing, so what is written would be read as something else.
    #[error(
        "the file registry cannot hold this registration, its file {file:?} would be read differently: no part may be empty, begin or end with a space, or hold '/' or '#', and there must be an endpoint"
    )]
    NotWritable {
        /// The name that the file would have.
        file: String,
    },
    /// The file cannot be written.
    #[error("{path} cannot be written: {error}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file cannot be removed; it counts until its time is up.
    #[error("{path} cannot be removed: {error}; it counts for 20 s more", path = path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Between two looks whether somebody removed the file.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps a registration in the folder until `stop` is cancelled, then removes it. A file that somebody removes is made
/// again within a second. Another program's file for the same name and endpoints is taken over, as between GoFrame programs.
///
/// # Errors
/// When the first writing fails, or the removal at the end. What fails in between goes to `events` and is tried again.
pub async fn register(
    registration: Registration,
    stop: CancellationToken,
    mut events: impl FnMut(Kept) + Send,
) -> Result<(), RegisterError> {
    let name = readable_name(&registration)?;
    let path = registration.directory.join(&name);
    write(&registration.directory, &path, &registration.metadata).map_err(|error| RegisterError::Write { path: path.clone(), error })?;
    events(Kept::Registered);
    let mut refreshed = Instant::now();
    let mut standing = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(LOOK.min(registration.refresh)) => {}
        }
        let there = path.symlink_metadata().is_ok();
        if there && standing && refreshed.elapsed() < registration.refresh {
            continue;
        }
        match write(&registration.directory, &path, &registration.metadata) {
            Ok(()) => {
                refreshed = Instant::now();
                if !there || !standing {
                    events(Kept::Registered);
                }
                standing = true;
            }
            Err(error) => {
                standing = false;
                events(Kept::Failed(error));
            }
        }
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RegisterError::Remove { path, error }),
        _ => Ok(()),
    }
}

/// The file's name, if it reads back as what it was made of.
fn readable_name(registration: &Registration) -> Result<String, RegisterError> {
    let Registration { head, id, endpoints, .. } = registration;
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
fn write(directory: &Path, path: &Path, metadata: &Metadata) -> io::Result<()> {
    // The mode that GoFrame gives it, less the umask.
    DirBuilder::new().recursive(true).mode(0o777).create(directory)?;
    let workshop = directory.join(format!(".svcdns-{:016x}", fastrand::u64(..)));
    DirBuilder::new().mode(0o700).create(&workshop)?;
    let file = workshop.join("registration");
    let content = gsvc::file_content(metadata, &jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string());
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&file)
        .and_then(|mut open| open.write_all(content.as_bytes()))
        .and_then(|()| fs::rename(&file, path));
    if written.is_err() {
        // What cannot be cleared away is hidden, and the error tells more than this one would.
        let _ = fs::remove_file(&file);
    }
    let _ = fs::remove_dir(&workshop);
    written
}
