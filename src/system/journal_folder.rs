//! The directory of the journal, owned by root.
//!
//! Root executes the journal, so no other user may be able to write it. The journal is
//! therefore not in the server's state directory: for a unit with `DynamicUser=` and
//! `StateDirectory=svcdns`, systemd gives /var/lib/svcdns and its content to the service's user.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use rustix::io::FdFlags;

use super::Root;
use super::journal_error::{JournalError, UnsafePath, at};
use super::path_state::{self, PathState};
use super::port_owner::find_openers;
use crate::directory::{ROOT_STATE_DIRECTORY, is_state_file};

/// The directory of the journal and the files that belong to it.
pub const JOURNAL_FOLDER: &str = "/var/lib/svcdns-install";

/// The journal of older versions, in the server's state directory.
pub(super) const FORMER_JOURNAL: &str = "/var/lib/svcdns/install.json";

/// The real state directory of a unit with `DynamicUser=`.
///
/// systemd moves the directory there, and leaves a symbolic link in the usual place.
const PRIVATE_STATE_DIRECTORY: &str = "/var/lib/private/svcdns";

/// Files that older versions saved for the user beside their journal.
const FORMER_SAVED_FILES: [&str; 7] = [
    "resolv.conf.before",
    "svcdns.service",
    "svcdns-resolver.service",
    "svcdns.dns-delegate",
    "00-svcdns.network",
    "90-svcdns.conf",
    "svcdns.conf",
];

/// The lock held while `install` or `uninstall` changes the machine.
///
/// If the process is killed, the lock lasts until the last command that it started has ended.
#[derive(Debug)]
pub struct InstallLock {
    folder: PathBuf,
    #[expect(dead_code, reason = "held")]
    lock: Flock<File>,
}

impl InstallLock {
    /// Creates the journal's directory and takes the lock.
    ///
    /// # Errors
    /// If another process has the lock, or the directory cannot be created, or a user other than
    /// root can write to it.
    pub fn take(root: &Root) -> Result<Self, JournalError> {
        let (name, folder) = (Path::new(JOURNAL_FOLDER), root.path(JOURNAL_FOLDER));
        loop {
            if let Some(path) = find_unsafe_path(root, name)? {
                return Err(JournalError::Unsafe(path));
            }
            DirBuilder::new().recursive(true).mode(0o755).create(&folder).map_err(at(name))?;
            let file = match File::open(&folder) {
                // The former holder has just removed the directory.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                opened => opened.map_err(at(name))?,
            };
            // The umask may have removed this permission, but the server, as another user, reads
            // `resolv.conf.before` in this directory. `svcdns keep` watches the directory: an
            // unneeded change of mode would wake it.
            let mode = file.metadata().map_err(at(name))?.mode() & 0o7777;
            if mode != 0o755 {
                file.set_permissions(Permissions::from_mode(0o755)).map_err(at(name))?;
            }
            // Commands inherit the lock: if this process is killed, a command that still runs keeps
            // others from undoing a step that it has not completed.
            rustix::io::fcntl_setfd(&file, FdFlags::empty())
                .map_err(|error| at(name)(error.into()))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) if is_at(&lock, &folder) => return Ok(Self { folder, lock }),
                Ok(_) => {}
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                    return Err(JournalError::Locked(find_openers(&folder)));
                }
                Err((_, error)) => return Err(at(name)(error.into())),
            }
        }
    }
}

/// Returns whether an open directory is still the one at this path.
fn is_at(open: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    open.metadata()
        .and_then(|open| Ok(identity(open) == identity(fs::symlink_metadata(path)?)))
        .unwrap_or(false)
}

impl Drop for InstallLock {
    fn drop(&mut self) {
        let _ = path_state::remove_empty_folder(&self.folder);
    }
}

/// Finds a path through which a user other than root can change a file.
///
/// Root must own the file and every directory and link on the way to it, and no other user may
/// write to them. A missing file is safe.
///
/// # Errors
/// If a path cannot be examined.
pub(super) fn find_unsafe_path(
    root: &Root,
    file: &Path,
) -> Result<Option<UnsafePath>, JournalError> {
    for path in root.path_steps(file).map_err(at(file))? {
        let metadata = match fs::symlink_metadata(root.path(&path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            metadata => metadata.map_err(at(&path))?,
        };
        // Files of the current user count as safe: a user other than root changes nothing, and
        // tests need files of their own.
        if metadata.uid() != 0 && metadata.uid() != nix::unistd::geteuid().as_raw() {
            let reason = format!("belongs to user {}", metadata.uid());
            return Ok(Some(UnsafePath { path, reason }));
        }
        if !metadata.is_symlink() && metadata.mode() & 0o022 != 0 {
            let reason =
                format!("can be written to by others (mode {:o})", metadata.mode() & 0o7777);
            return Ok(Some(UnsafePath { path, reason }));
        }
    }
    Ok(None)
}

/// Returns whether only root can have written a file.
fn is_roots_alone(root: &Root, file: &Path) -> bool {
    matches!(find_unsafe_path(root, file), Ok(None))
}

/// Removes the files of older versions from the server's state directory.
///
/// Their journal must have been undone. Files that they saved for the user are moved to
/// [`JOURNAL_FOLDER`].
///
/// # Errors
/// If a file cannot be moved or removed.
pub(super) fn clear_former_folder(root: &Root) -> Result<(), JournalError> {
    let former = root.path(ROOT_STATE_DIRECTORY);
    let is_folder = fs::symlink_metadata(&former).is_ok_and(|metadata| metadata.is_dir());
    // Otherwise the directory belongs to a service or another user by now.
    if !is_folder || !is_roots_alone(root, Path::new(FORMER_JOURNAL)) {
        return Ok(());
    }
    let name = Path::new(ROOT_STATE_DIRECTORY);
    PathState::Absent.write(&root.path(FORMER_JOURNAL), false).map_err(at(name))?;
    for saved in FORMER_SAVED_FILES {
        let (from, to) = (former.join(saved), root.path(JOURNAL_FOLDER).join(saved));
        path_state::remove(&path_state::temporary_path(&from)).map_err(at(name))?;
        if fs::symlink_metadata(&from).is_ok_and(|metadata| metadata.is_file()) && !to.exists() {
            fs::rename(&from, &to).map_err(at(&to))?;
            path_state::sync_folder(&root.path(JOURNAL_FOLDER)).map_err(at(&to))?;
        }
    }
    path_state::remove_empty_folder(&former).map(drop).map_err(at(name))
}

/// Removes the server's state directory with the server's own files.
///
/// Returns a message if the directory is kept because other files are in it.
///
/// # Errors
/// If a file cannot be removed.
pub(super) fn remove_state_directory(root: &Root) -> Result<Option<String>, JournalError> {
    let name = Path::new(ROOT_STATE_DIRECTORY);
    let found = root.follow(name).map_err(at(name))?;
    let is_link = found == Path::new(PRIVATE_STATE_DIRECTORY);
    // Any other link is the administrator's. The content of the directory is not trusted: root
    // only removes names in it, and only root may decide where it is.
    let parent = found.parent().unwrap_or_else(|| Path::new("/"));
    if !(is_link || found == name) || !is_roots_alone(root, parent) {
        return Ok(None);
    }
    let directory = root.path(&found);
    let entries = fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok);
    for file in entries.filter(|entry| entry.file_name().to_str().is_some_and(is_state_file)) {
        path_state::remove(&file.path()).map_err(at(name))?;
    }
    if !path_state::remove_empty_folder(&directory).map_err(at(name))? {
        return Ok(Some(format!("{ROOT_STATE_DIRECTORY}: kept, other files are in it")));
    }
    if is_link {
        path_state::remove(&root.path(name)).map_err(at(name))?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::super::journal_error::JOURNAL;
    use super::super::{Journal, PlanError, check_state_directory};
    use super::*;

    /// A journal without steps.
    const EMPTY: &str = r#"{"form":1,"purpose":"","steps":[],"complete":true}"#;

    /// Creates a machine with these directories, which only their owner can write to.
    fn machine(folders: &[&str]) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for path in ["/var", "/var/lib"].iter().chain(folders) {
            DirBuilder::new().mode(0o755).create(root.path(path)).unwrap();
        }
        (folder, root)
    }

    fn write(root: &Root, path: &str, text: &str) {
        fs::write(root.path(path), text).unwrap();
        fs::set_permissions(root.path(path), Permissions::from_mode(0o644)).unwrap();
    }

    fn is_trusted(root: &Root) -> bool {
        match Journal::load(root) {
            Ok(journal) => journal.is_some(),
            Err(JournalError::Untrusted { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_daemon_started_by_a_command_does_not_hold_the_lock_after_installation() {
        let (_folder, root) = machine(&[]);
        let lock = InstallLock::take(&root).unwrap();
        let mut daemon = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        assert!(matches!(InstallLock::take(&root), Err(JournalError::Locked(_))));
        drop(lock);
        let taken = InstallLock::take(&root);
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        assert!(taken.is_ok(), "{taken:?}");
    }

    #[test]
    fn a_journal_is_trusted_only_if_others_cannot_write_to_its_path() {
        for (journal, places) in [
            (JOURNAL, [JOURNAL_FOLDER, "/var", "/var/lib", "/"]),
            (FORMER_JOURNAL, [ROOT_STATE_DIRECTORY, "/var", "/var/lib", "/"]),
        ] {
            let (_folder, root) = machine(&[JOURNAL_FOLDER, ROOT_STATE_DIRECTORY]);
            write(&root, journal, EMPTY);
            assert!(is_trusted(&root));
            for place in places.into_iter().chain([journal]) {
                let path = root.path(place);
                let mode = fs::metadata(&path).unwrap().permissions();
                for loose in [0o020, 0o002, 0o1002] {
                    fs::set_permissions(&path, Permissions::from_mode(mode.mode() | loose))
                        .unwrap();
                    let error = Journal::load(&root).unwrap_err().to_string();
                    assert!(
                        error.contains(&format!("because {place} can be written to by others")),
                        "{error}"
                    );
                    assert!(error.contains(JOURNAL) && error.starts_with(journal), "{error}");
                }
                fs::set_permissions(&path, mode).unwrap();
                // Only root can give a file to another user.
                if nix::unistd::geteuid().is_root() {
                    chown(&path, Some(65534), None).unwrap();
                    assert!(!is_trusted(&root), "{place}");
                    chown(&path, Some(0), None).unwrap();
                }
            }
            assert!(is_trusted(&root));
        }
    }

    #[test]
    fn a_link_is_trusted_only_if_root_owns_its_whole_path() {
        let (_folder, root) = machine(&["/var/lib/private", PRIVATE_STATE_DIRECTORY, "/home"]);
        symlink("private/svcdns", root.path(ROOT_STATE_DIRECTORY)).unwrap();
        write(&root, "/var/lib/private/svcdns/install.json", EMPTY);
        assert!(is_trusted(&root), "the directory belongs to root again");
        fs::set_permissions(root.path(PRIVATE_STATE_DIRECTORY), Permissions::from_mode(0o777))
            .unwrap();
        assert!(!is_trusted(&root));

        // The link leads to a safe file through a directory in which another user can replace
        // links.
        fs::remove_file(root.path(ROOT_STATE_DIRECTORY)).unwrap();
        fs::set_permissions(root.path(PRIVATE_STATE_DIRECTORY), Permissions::from_mode(0o755))
            .unwrap();
        symlink("../../home/link", root.path(ROOT_STATE_DIRECTORY)).unwrap();
        symlink("/var/lib/private/svcdns", root.path("/home/link")).unwrap();
        assert!(is_trusted(&root));
        fs::set_permissions(root.path("/home"), Permissions::from_mode(0o777)).unwrap();
        assert!(!is_trusted(&root));
    }

    #[test]
    fn the_journal_in_the_directory_of_root_takes_precedence() {
        let (_folder, root) = machine(&[JOURNAL_FOLDER, ROOT_STATE_DIRECTORY]);
        write(&root, JOURNAL, EMPTY);
        write(&root, FORMER_JOURNAL, "no journal");
        fs::set_permissions(root.path(ROOT_STATE_DIRECTORY), Permissions::from_mode(0o777))
            .unwrap();
        assert!(Journal::load(&root).unwrap().unwrap().is_up_to_date());
        Journal::remove(&root).unwrap();
        assert_eq!(
            root.text(FORMER_JOURNAL).as_deref(),
            Some("no journal"),
            "root must not remove it"
        );
        assert!(!is_trusted(&root));
    }

    #[test]
    fn a_journal_of_an_older_version_is_outdated() {
        let (_folder, root) = machine(&[ROOT_STATE_DIRECTORY]);
        write(&root, FORMER_JOURNAL, EMPTY);
        assert!(!Journal::load(&root).unwrap().unwrap().is_up_to_date());
    }

    #[test]
    fn files_saved_by_an_older_version_are_moved_to_the_journal_directory() {
        let (_folder, root) = machine(&[JOURNAL_FOLDER, ROOT_STATE_DIRECTORY]);
        write(&root, FORMER_JOURNAL, EMPTY);
        write(&root, "/var/lib/svcdns/.install.json.svcdns-new~", "half");
        for name in FORMER_SAVED_FILES {
            write(&root, &format!("{ROOT_STATE_DIRECTORY}/{name}"), name);
        }
        // A file that is already there is not overwritten.
        write(&root, "/var/lib/svcdns-install/svcdns.conf", "first");
        Journal::remove(&root).unwrap();
        for name in &FORMER_SAVED_FILES[..6] {
            assert_eq!(root.text(format!("{JOURNAL_FOLDER}/{name}")).as_deref(), Some(*name));
        }
        assert_eq!(root.text("/var/lib/svcdns-install/svcdns.conf").as_deref(), Some("first"));
        let left = fs::read_dir(root.path(ROOT_STATE_DIRECTORY)).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["svcdns.conf"]);
        let error = check_state_directory(&root).unwrap_err();
        assert!(matches!(error, PlanError::File { .. }), "{error}");
        assert!(error.to_string().contains("move svcdns.conf elsewhere"), "{error}");
    }

    #[test]
    fn the_state_directory_is_removed_only_if_all_files_are_the_servers() {
        let private = &["/var/lib/private", PRIVATE_STATE_DIRECTORY][..];
        for (folders, real) in [
            (private, PRIVATE_STATE_DIRECTORY),
            (&[ROOT_STATE_DIRECTORY][..], ROOT_STATE_DIRECTORY),
        ] {
            let (_folder, root) = machine(folders);
            if real == PRIVATE_STATE_DIRECTORY {
                symlink("private/svcdns", root.path(ROOT_STATE_DIRECTORY)).unwrap();
            }
            // Root does not follow a link in the directory of the service.
            write(&root, "/var/precious", "mine");
            symlink("../../../precious", root.path(real).join(crate::directory::LOCK_FILE))
                .unwrap();
            write(&root, &format!("{real}/mine"), "mine");
            let left = remove_state_directory(&root).unwrap();
            assert_eq!(left.as_deref(), Some("/var/lib/svcdns: kept, other files are in it"));
            assert_eq!(root.text("/var/precious").as_deref(), Some("mine"));
            fs::remove_file(root.path(real).join("mine")).unwrap();
            for _ in 0..2 {
                assert_eq!(remove_state_directory(&root).unwrap(), None);
                assert!(
                    fs::symlink_metadata(root.path(ROOT_STATE_DIRECTORY)).is_err()
                        && !root.has(real)
                );
            }
        }
        // The administrator moved the directory to another disk.
        let (_folder, root) = machine(&["/disk"]);
        symlink("/disk", root.path(ROOT_STATE_DIRECTORY)).unwrap();
        assert_eq!(remove_state_directory(&root).unwrap(), None);
        assert!(root.has("/disk") && fs::symlink_metadata(root.path(ROOT_STATE_DIRECTORY)).is_ok());
    }

    #[test]
    fn taking_the_lock_does_not_modify_an_existing_directory() {
        let (_folder, root) = machine(&[JOURNAL_FOLDER]);
        write(&root, JOURNAL, EMPTY);
        let changed = || {
            let metadata = fs::metadata(root.path(JOURNAL_FOLDER)).unwrap();
            (metadata.ctime(), metadata.ctime_nsec())
        };
        drop(InstallLock::take(&root).unwrap());
        let before = changed();
        // Longer than a tick of the kernel's clock.
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(InstallLock::take(&root).unwrap());
        assert_eq!(changed(), before);
    }

    #[test]
    fn the_journal_directory_is_readable_by_the_server_and_removed_if_empty() {
        let (_folder, root) = machine(&[]);
        DirBuilder::new().mode(0o700).create(root.path(JOURNAL_FOLDER)).unwrap();
        let lock = InstallLock::take(&root).unwrap();
        assert_eq!(fs::metadata(root.path(JOURNAL_FOLDER)).unwrap().mode() & 0o777, 0o755);
        drop(lock);
        assert!(!root.has(JOURNAL_FOLDER));
        fs::set_permissions(root.path("/var/lib"), Permissions::from_mode(0o777)).unwrap();
        let told = InstallLock::take(&root).unwrap_err().to_string();
        assert!(told.contains("because /var/lib can be written to by others (mode 777)"), "{told}");
        assert!(!root.has(JOURNAL_FOLDER));
    }
}
