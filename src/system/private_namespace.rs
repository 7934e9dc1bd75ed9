//! A private mount namespace in which the C library queries svcdns, for one command.
//!
//! The disks stay unchanged: all differences are in memory, and end with the last process in the
//! namespace.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};

use super::nsswitch::{self, NSSWITCH_CONF};
use super::{Root, nscd};
use crate::resolv_conf::RESOLV_CONF;

/// The directory of systemd-resolved, with its socket and its resolv.conf files.
const RESOLVED_FOLDER: &str = "/run/systemd/resolve";

/// Directories of which one is covered by a tmpfs while the namespace is set up.
const STAGING_FOLDERS: [&str; 6] = ["/tmp", "/run", "/mnt", "/media", "/var", "/usr"];

/// Error when a private namespace is created.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The system does not let ordinary users create namespaces.
    #[error("this system does not let an ordinary user create a mount namespace ({0})")]
    UserForbidden(io::Error),
    /// The system does not let even root create namespaces; usually in a container.
    #[error(
        "this system does not let even root create a mount namespace ({0}): a container needs \
         CAP_SYS_ADMIN for it"
    )]
    RootForbidden(io::Error),
    /// A system call failed while the namespace was set up.
    #[error("cannot {action} in the private mount namespace: {error}")]
    Setup {
        /// Step that failed.
        action: String,
        /// The error of the system.
        error: io::Error,
    },
    /// The namespace does not show the new resolv.conf.
    #[error(
        "{RESOLV_CONF} has the wrong content in the private mount namespace; please report this"
    )]
    WrongContent,
}

/// Moves this process into a private mount namespace with this /etc/resolv.conf.
///
/// In the namespace, the C library uses the name servers of resolv.conf, never nscd or
/// systemd-resolved. Nothing else differs from the machine. The process must be single-threaded;
/// its children, and programs that it executes, stay in the namespace.
///
/// Without the capability to create a mount namespace, the process also enters a new user namespace
/// that maps only its own user ID: set-user-ID programs gain no privileges there. Unless the
/// process is root, it loses its capabilities in that namespace at the next exec (capabilities(7)).
///
/// The file is mounted over the real one. If another process renames a new file over the real one,
/// the kernel drops the mount and the namespace shows the new file.
///
/// # Errors
/// If the system forbids the namespace or a step fails. The namespace may then be incomplete, and
/// the process should end.
pub fn enter_namespace(resolv_conf: &str) -> Result<(), NamespaceError> {
    let is_user_namespace = create_namespaces()?;
    set_up(resolv_conf).map_err(|error| match error {
        // AppArmor may allow a user namespace, but no mount in it.
        NamespaceError::Setup { error, .. }
            if is_user_namespace && error.kind() == io::ErrorKind::PermissionDenied =>
        {
            NamespaceError::UserForbidden(error)
        }
        error => error,
    })
}

/// Creates the namespaces and returns whether a user namespace was needed.
fn create_namespaces() -> Result<bool, NamespaceError> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    match unshare(CloneFlags::CLONE_NEWNS) {
        Ok(()) => return Ok(false),
        Err(error) if uid.is_root() => return Err(NamespaceError::RootForbidden(error.into())),
        Err(Errno::EPERM) => {}
        Err(error) => return Err(NamespaceError::UserForbidden(error.into())),
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|error| NamespaceError::UserForbidden(error.into()))?;
    // The group ID may be mapped only after setgroups(2) is denied (user_namespaces(7)).
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        fs::write(Path::new("/proc/self").join(file), text)
            .map_err(NamespaceError::UserForbidden)?;
    }
    Ok(true)
}

/// Mounts the files of the private view.
fn set_up(resolv_conf: &str) -> Result<(), NamespaceError> {
    // Mounts made outside still appear inside, but mounts made inside do not appear outside.
    check(
        "make its mounts private",
        mount(none(), "/", none(), MsFlags::MS_SLAVE | MsFlags::MS_REC, none()),
    )?;
    let target = fs::canonicalize(RESOLV_CONF).ok().filter(|path| path.is_file());
    let resolved = fs::canonicalize(RESOLVED_FOLDER).ok().filter(|path| path.is_dir());
    let mut nscd: Vec<PathBuf> = nscd::FOLDERS
        .iter()
        .filter_map(|path| fs::canonicalize(path).ok())
        .filter(|path| path.is_dir())
        .collect();
    nscd.dedup();
    let nsswitch = fs::canonicalize(NSSWITCH_CONF).ok();
    let nsswitch_text = nsswitch
        .as_ref()
        .and_then(|path| Root::default().text(path))
        .and_then(|text| nsswitch::with_dns(&text));

    let is_needed = |stage: &Path| {
        target
            .iter()
            .chain(&resolved)
            .chain(&nscd)
            .chain(&nsswitch)
            .any(|path| path.starts_with(stage))
    };
    let stage = STAGING_FOLDERS
        .iter()
        .map(Path::new)
        .find(|stage| stage.is_dir() && !stage.is_symlink() && !is_needed(stage));
    let stage = stage
        .ok_or_else(|| failed("find a directory to work in", io::ErrorKind::NotFound.into()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    check("mount a tmpfs", mount(Some("svcdns"), stage, Some("tmpfs"), flags, Some("mode=755")))?;

    let (file, empty) = (stage.join("resolv.conf"), stage.join("empty"));
    write(&file, resolv_conf)?;
    create_folder(&empty)?;
    let is_mounted = match (&target, &resolved) {
        // systemd-resolved replaces its files at every change, which drops a mount over a file, but
        // not one over the directory.
        (Some(target), Some(resolved)) if target.parent() == Some(resolved) => {
            let view = stage.join("resolve");
            create_folder(&view)?;
            let target = target.file_name().unwrap_or_default();
            for name in [target, "stub-resolv.conf".as_ref(), "resolv.conf".as_ref()] {
                write(&view.join(name), resolv_conf)?;
            }
            bind(&view, resolved)?;
            true
        }
        (Some(target), _) => bind_if_linked(&file, target)?,
        (None, _) => false,
    };
    let mut files = vec![file];
    if let Some(text) = nsswitch_text {
        let file = stage.join("nsswitch.conf");
        write(&file, &text)?;
        files.push(file);
    }
    let is_mounted = match (files.get(1), &nsswitch) {
        (Some(file), Some(nsswitch)) if is_mounted => bind_if_linked(file, nsswitch)?,
        _ => is_mounted,
    };
    if !is_mounted {
        cover_etc(stage, &files)?;
    }
    let is_in_resolved = target.as_deref().and_then(Path::parent) == resolved.as_deref();
    for hidden in nscd.iter().chain(resolved.iter().filter(|_| !is_in_resolved)) {
        bind(&empty, hidden)?;
    }
    check("unmount the tmpfs", umount2(stage, MntFlags::MNT_DETACH))?;
    if fs::read(RESOLV_CONF).is_ok_and(|text| text == resolv_conf.as_bytes()) {
        Ok(())
    } else {
        Err(NamespaceError::WrongContent)
    }
}

/// Covers /etc with a directory that has its content and these files.
///
/// Needed for files that do not exist in /etc, so that nothing can be mounted over them. The new
/// directory is read-only, so that no program can seem to add a file to /etc; the files from
/// /etc can be changed as usual.
fn cover_etc(stage: &Path, files: &[PathBuf]) -> Result<(), NamespaceError> {
    let (etc, real, view) = (Path::new("/etc"), stage.join("real"), stage.join("etc"));
    create_folder(&real)?;
    create_folder(&view)?;
    bind(etc, &real)?;
    let failed = |error| failed("build a view of /etc", error);
    for entry in fs::read_dir(&real).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if files.iter().any(|file| file.file_name() == Some(&entry.file_name())) {
            continue;
        }
        let (from, to) = (entry.path(), view.join(entry.file_name()));
        let file_type = entry.file_type().map_err(failed)?;
        if file_type.is_symlink() {
            symlink(fs::read_link(&from).map_err(failed)?, &to).map_err(failed)?;
            continue;
        }
        if file_type.is_dir() {
            create_folder(&to)?;
        } else {
            write(&to, "")?;
        }
        bind(&from, &to)?;
    }
    for file in files {
        fs::copy(file, view.join(file.file_name().unwrap_or_default())).map_err(failed)?;
    }
    bind(&view, etc)?;
    let read_only = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    check("make the view of /etc read-only", mount(none(), etc, none(), read_only, none()))
}

/// Mounts a file over another like [`bind`], unless the other has been removed.
///
/// Returns `false` for such a file: one that is itself a mount, and whose source was removed, as
/// happens in containers. The kernel accepts no mount over it.
fn bind_if_linked(file: &Path, over: &Path) -> Result<bool, NamespaceError> {
    match bind(file, over) {
        Ok(()) => Ok(true),
        Err(NamespaceError::Setup { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Mounts a file or directory, with all mounts in it, over another.
fn bind(from: &Path, over: &Path) -> Result<(), NamespaceError> {
    let action = || format!("mount {} over {}", from.display(), over.display());
    mount(Some(from), over, none(), MsFlags::MS_BIND | MsFlags::MS_REC, none())
        .map_err(|errno| failed(&action(), errno.into()))
}

/// Writes a file that every user can read, regardless of the umask.
fn write(path: &Path, text: &str) -> Result<(), NamespaceError> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o644)))
        .map_err(|error| failed(&format!("write {}", path.display()), error))
}

/// Creates a directory that every user can read, regardless of the umask.
fn create_folder(path: &Path) -> Result<(), NamespaceError> {
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)))
        .map_err(|error| failed(&format!("create {}", path.display()), error))
}

/// Adds the action to the error of a system call.
fn check(action: &str, result: nix::Result<()>) -> Result<(), NamespaceError> {
    result.map_err(|errno| failed(action, errno.into()))
}

fn failed(action: &str, error: io::Error) -> NamespaceError {
    NamespaceError::Setup { action: action.to_owned(), error }
}

/// Returns an absent argument of mount(2).
fn none() -> Option<&'static str> {
    None
}
