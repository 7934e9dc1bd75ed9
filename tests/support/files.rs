//! A temporary file registry whose registrations stay alive.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

/// A directory in the format of GoFrame's file registry.
///
/// A thread touches its files every 3 s, as running services do.
pub(crate) struct Files {
    directory: TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Files {
    /// Writes keys and values.
    ///
    /// Keys are as in etcd, without `/service/`: `default/default/hello.svc/latest/10.0.0.1:80`.
    pub(crate) fn new(keys: &[(&str, &str)]) -> Self {
        Self::in_directory(tempfile::tempdir().unwrap(), keys)
    }

    /// Writes keys and values below a directory, where the user of a service can read them.
    pub(crate) fn readable_in(parent: &Path, keys: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir_in(parent).unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        Self::in_directory(directory, keys)
    }

    fn in_directory(directory: TempDir, keys: &[(&str, &str)]) -> Self {
        for (key, value) in keys {
            fs::write(path_of(directory.path(), key), value).unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, path) = (stop.clone(), directory.path().to_owned());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                    if let Ok(file) = File::options().append(true).open(entry.path()) {
                        let _ = file.set_modified(SystemTime::now());
                    }
                }
                thread::park_timeout(Duration::from_secs(3));
            }
        });
        Self { directory, stop, thread: Some(thread) }
    }

    /// Returns the registry's URL, `file:///…`.
    pub(crate) fn url(&self) -> String {
        format!("file://{}", self.directory.path().display())
    }

    /// Writes a key and its value.
    pub(crate) fn put(&self, key: &str, value: &str) {
        fs::write(path_of(self.directory.path(), key), value).unwrap();
    }

    /// Deletes the file of a key.
    pub(crate) fn delete(&self, key: &str) {
        fs::remove_file(path_of(self.directory.path(), key)).unwrap();
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Returns the file of a key: `#` replaces `/`, and `-` the `:` of the endpoints.
pub(crate) fn path_of(directory: &Path, key: &str) -> PathBuf {
    let (identity, endpoints) = key.rsplit_once('/').unwrap();
    directory.join(format!(
        "service#{}#{}",
        identity.replace('/', "#"),
        endpoints.replace(':', "-")
    ))
}
