//! Root's folder for the journal, and why it is not the server's state directory.
//!
//! Root does whatever the journal says, so nobody else may be able to write it. In the server's
//! state directory somebody else could: of a unit with `DynamicUser=` and `StateDirectory=svcdns`
//! systemd gives all of /var/lib/svcdns to the service's user, a journal in there included.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::Root;
use super::entry::{self, Entry};
use super::journal_error::{JournalError, WeakSpot, at};
use crate::directory::{FILES, ROOTS_STATE};

/// Where the journal is, and what belongs to it.
pub const FOLDER: &str = "/var/lib/svcdns-install";

/// Where the versions before had their journal: today's state directory of the server.
pub(super) const FORMER_JOURNAL: &str = "/var/lib/svcdns/install.json";

/// Where systemd keeps the state directory of a unit with `DynamicUser=`, behind a link.
const PRIVATE_STATE: &str = "/var/lib/private/svcdns";

/// What the versions before may have left beside their journal for a person to keep.
const FORMERLY_KEPT: [&str; 7] = [
    "resolv.conf.before",
    "svcdns.service",
    "svcdns-resolver.service",
    "svcdns.dns-delegate",
    "00-svcdns.network",
    "90-svcdns.conf",
    "svcdns.conf",
];

/// Held while the machine is changed: one at a time. The end of the process gives it back.
#[derive(Debug)]
pub struct Lock {
    folder: PathBuf,
    #[expect(dead_code, reason = "held")]
    lock: Flock<File>,
}

impl Lock {
    /// Makes the journal's folder and takes the lock.
    ///
    /// # Errors
    /// When somebody else has it, or the folder cannot be made or belongs to others than root.
    pub fn take(root: &Root) -> Result<Self, JournalError> {
        let (name, folder) = (Path::new(FOLDER), root.path(FOLDER));
        if let Some(spot) = weak_spot(root, name)? {
            return Err(JournalError::Unsafe(spot));
        }
        DirBuilder::new().recursive(true).mode(0o755).create(&folder).map_err(at(name))?;
        // Whatever the umask is: the server reads `resolv.conf.before` in there, as another user.
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).map_err(at(name))?;
        let file = File::open(&folder).map_err(at(name))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { folder, lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(JournalError::Locked),
            Err((_, error)) => Err(at(name)(error.into())),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Only if nothing is in it any more.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Finds what others than root could use to write what is at a path, or to lead it elsewhere: of it,
/// and of every folder and link on the way, root must be the owner, and nobody else may write to
/// them. What is not there is fine.
///
/// # Errors
/// When it cannot be looked at.
pub(super) fn weak_spot(root: &Root, path: &Path) -> Result<Option<WeakSpot>, JournalError> {
    for place in root.way(path).map_err(at(path))? {
        let about = match fs::symlink_metadata(root.path(&place)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            about => about.map_err(at(&place))?,
        };
        // Without root's rights it is only looked at, and trying it out needs files of one's own.
        if about.uid() != 0 && about.uid() != nix::unistd::geteuid().as_raw() {
            let why = format!("belongs to user {}", about.uid());
            return Ok(Some(WeakSpot { place, why }));
        }
        if !about.is_symlink() && about.mode() & 0o022 != 0 {
            let why = format!("can be written to by others (mode {:o})", about.mode() & 0o7777);
            return Ok(Some(WeakSpot { place, why }));
        }
    }
    Ok(None)
}

/// Whether nobody but root can have written what is at a path.
fn is_roots_alone(root: &Root, path: &Path) -> bool {
    matches!(weak_spot(root, path), Ok(None))
}

/// Removes what the versions before left in today's state directory: their journal, which must have
/// been undone; what they kept for a person goes to [`FOLDER`].
///
/// # Errors
/// When something cannot be moved or removed.
pub(super) fn leave_former(root: &Root) -> Result<(), JournalError> {
    let former = root.path(ROOTS_STATE);
    let is_folder = fs::symlink_metadata(&former).is_ok_and(|about| about.is_dir());
    // A service's by now, or another user's: nothing in it is root's to move.
    if !is_folder || !is_roots_alone(root, Path::new(FORMER_JOURNAL)) {
        return Ok(());
    }
    let name = Path::new(ROOTS_STATE);
    Entry::Absent.put(&root.path(FORMER_JOURNAL), false).map_err(at(name))?;
    for kept in FORMERLY_KEPT {
        let (from, to) = (former.join(kept), root.path(FOLDER).join(kept));
        entry::remove(&entry::new_path(&from)).map_err(at(name))?;
        if fs::symlink_metadata(&from).is_ok_and(|about| about.is_file()) && !to.exists() {
            fs::rename(&from, &to).map_err(at(&to))?;
            entry::sync(&root.path(FOLDER)).map_err(at(&to))?;
        }
    }
    match fs::remove_dir(&former) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => removed.map_err(at(name)),
    }
}

/// Removes the state directory with the server's own files. Says so if something else is in it,
/// which stays.
///
/// # Errors
/// When something cannot be removed.
pub(super) fn remove_state(root: &Root) -> Result<Option<String>, JournalError> {
    let name = Path::new(ROOTS_STATE);
    let found = root.follow(name).map_err(at(name))?;
    let is_link = found == Path::new(PRIVATE_STATE);
    // Any other link is somebody's own arrangement. Of the folder nothing is believed: only names
    // in it are removed, and root alone decides where it is.
    let above = found.parent().unwrap_or_else(|| Path::new("/"));
    if !(is_link || found == name) || !is_roots_alone(root, above) {
        return Ok(None);
    }
    let directory = root.path(&found);
    for file in FILES {
        entry::remove(&directory.join(file)).map_err(at(name))?;
    }
    match fs::remove_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            return Ok(Some(format!("{ROOTS_STATE}: left, something is in it")));
        }
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(at(name)(error)),
        _ => {}
    }
    if is_link {
        entry::remove(&root.path(name)).map_err(at(name))?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::super::journal_error::JOURNAL;
    use super::super::{Journal, Obstacle, check_state_directory};
    use super::*;

    /// A journal that says nothing.
    const EMPTY: &str = r#"{"form":1,"purpose":"","steps":[],"complete":true}"#;

    /// A machine with these folders, which only their owner can write to.
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

    fn is_believed(root: &Root) -> bool {
        match Journal::load(root) {
            Ok(journal) => journal.is_some(),
            Err(JournalError::Untrusted { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_journal_is_believed_only_where_others_can_write_nothing_on_the_way() {
        for (journal, way) in [(JOURNAL, [FOLDER, "/var", "/var/lib", "/"]), (FORMER_JOURNAL, [ROOTS_STATE, "/var", "/var/lib", "/"])] {
            let (_folder, root) = machine(&[FOLDER, ROOTS_STATE]);
            write(&root, journal, EMPTY);
            assert!(is_believed(&root));
            for place in way.into_iter().chain([journal]) {
                let path = root.path(place);
                let mode = fs::metadata(&path).unwrap().permissions();
                for loose in [0o020, 0o002, 0o1002] {
                    fs::set_permissions(&path, Permissions::from_mode(mode.mode() | loose)).unwrap();
                    let error = Journal::load(&root).unwrap_err().to_string();
                    assert!(error.contains(&format!("because {place} can be written to by others")), "{error}");
                    assert!(error.contains(JOURNAL) && error.starts_with(journal), "{error}");
                }
                fs::set_permissions(&path, mode).unwrap();
                // Only root can give a file to somebody else.
                if nix::unistd::geteuid().is_root() {
                    chown(&path, Some(65534), None).unwrap();
                    assert!(!is_believed(&root), "{place}");
                    chown(&path, Some(0), None).unwrap();
                }
            }
            assert!(is_believed(&root));
        }
    }

    #[test]
    fn a_link_leads_only_where_root_has_all_of_the_way() {
        let (_folder, root) = machine(&["/var/lib/private", PRIVATE_STATE, "/home"]);
        symlink("private/svcdns", root.path(ROOTS_STATE)).unwrap();
        write(&root, "/var/lib/private/svcdns/install.json", EMPTY);
        assert!(is_believed(&root), "somebody gave it back to root");
        fs::set_permissions(root.path(PRIVATE_STATE), Permissions::from_mode(0o777)).unwrap();
        assert!(!is_believed(&root));

        // To a good file, by a folder in which another one could be linked.
        fs::remove_file(root.path(ROOTS_STATE)).unwrap();
        fs::set_permissions(root.path(PRIVATE_STATE), Permissions::from_mode(0o755)).unwrap();
        symlink("../../home/link", root.path(ROOTS_STATE)).unwrap();
        symlink("/var/lib/private/svcdns", root.path("/home/link")).unwrap();
        assert!(is_believed(&root));
        fs::set_permissions(root.path("/home"), Permissions::from_mode(0o777)).unwrap();
        assert!(!is_believed(&root));
    }

    #[test]
    fn roots_own_folder_comes_first_and_then_nobody_can_stand_in_the_way() {
        let (_folder, root) = machine(&[FOLDER, ROOTS_STATE]);
        write(&root, JOURNAL, EMPTY);
        write(&root, FORMER_JOURNAL, "no journal");
        fs::set_permissions(root.path(ROOTS_STATE), Permissions::from_mode(0o777)).unwrap();
        assert!(Journal::load(&root).unwrap().unwrap().is_up_to_date());
        Journal::forget(&root).unwrap();
        assert_eq!(root.text(FORMER_JOURNAL).as_deref(), Some("no journal"), "not root's to remove");
        assert!(!is_believed(&root));
    }

    #[test]
    fn a_journal_of_the_version_before_is_never_up_to_date() {
        let (_folder, root) = machine(&[ROOTS_STATE]);
        write(&root, FORMER_JOURNAL, EMPTY);
        assert!(!Journal::load(&root).unwrap().unwrap().is_up_to_date());
    }

    #[test]
    fn what_the_version_before_kept_for_a_person_is_kept_on() {
        let (_folder, root) = machine(&[FOLDER, ROOTS_STATE]);
        write(&root, FORMER_JOURNAL, EMPTY);
        write(&root, "/var/lib/svcdns/.install.json.svcdns-new~", "half");
        for name in FORMERLY_KEPT {
            write(&root, &format!("{ROOTS_STATE}/{name}"), name);
        }
        // What is kept already is not overwritten.
        write(&root, "/var/lib/svcdns-install/svcdns.conf", "first");
        Journal::forget(&root).unwrap();
        for name in &FORMERLY_KEPT[..6] {
            assert_eq!(root.text(format!("{FOLDER}/{name}")).as_deref(), Some(*name));
        }
        assert_eq!(root.text("/var/lib/svcdns-install/svcdns.conf").as_deref(), Some("first"));
        let left = fs::read_dir(root.path(ROOTS_STATE)).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["svcdns.conf"]);
        let told = check_state_directory(&root).unwrap_err();
        assert!(matches!(&told, Obstacle::File { why, .. } if why.contains("move svcdns.conf")), "{told}");
    }

    #[test]
    fn the_state_directory_goes_with_the_servers_own_files_and_no_others() {
        let private = &["/var/lib/private", PRIVATE_STATE][..];
        for (folders, real) in [(private, PRIVATE_STATE), (&[ROOTS_STATE][..], ROOTS_STATE)] {
            let (_folder, root) = machine(folders);
            if real == PRIVATE_STATE {
                symlink("private/svcdns", root.path(ROOTS_STATE)).unwrap();
            }
            // A link in the service's directory leads root nowhere.
            write(&root, "/var/precious", "mine");
            symlink("../../../precious", root.path(real).join(FILES[0])).unwrap();
            write(&root, &format!("{real}/mine"), "mine");
            let left = remove_state(&root).unwrap();
            assert_eq!(left.as_deref(), Some("/var/lib/svcdns: left, something is in it"));
            assert_eq!(root.text("/var/precious").as_deref(), Some("mine"));
            fs::remove_file(root.path(real).join("mine")).unwrap();
            for _ in 0..2 {
                assert_eq!(remove_state(&root).unwrap(), None);
                assert!(fs::symlink_metadata(root.path(ROOTS_STATE)).is_err() && !root.has(real));
            }
        }
        // Somebody's own arrangement: another disk.
        let (_folder, root) = machine(&["/disk"]);
        symlink("/disk", root.path(ROOTS_STATE)).unwrap();
        assert_eq!(remove_state(&root).unwrap(), None);
        assert!(root.has("/disk") && fs::symlink_metadata(root.path(ROOTS_STATE)).is_ok());
    }

    #[test]
    fn the_folder_is_readable_for_the_server_and_goes_when_it_is_empty() {
        let (_folder, root) = machine(&[]);
        DirBuilder::new().mode(0o700).create(root.path(FOLDER)).unwrap();
        let lock = Lock::take(&root).unwrap();
        assert_eq!(fs::metadata(root.path(FOLDER)).unwrap().mode() & 0o777, 0o755);
        drop(lock);
        assert!(!root.has(FOLDER));
        fs::set_permissions(root.path("/var/lib"), Permissions::from_mode(0o777)).unwrap();
        let told = Lock::take(&root).unwrap_err().to_string();
        assert!(told.contains("because /var/lib can be written to by others (mode 777)"), "{told}");
        assert!(!root.has(FOLDER));
    }
}
