//! A view of the machine for this process alone, in which names are asked of svcdns: a private mount namespace.
//!
//! Nothing is written to the machine's disks: what differs lies in memory, and goes with the last process that sees it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};

use super::nsswitch::{self, NSSWITCH_CONF};
use crate::resolv_conf::RESOLV_CONF;

/// systemd-resolved's folder: its socket, over which nss-resolve asks, and its own resolv.conf files.
const RESOLVED: &str = "/run/systemd/resolve";

/// Folders of nscd, whose socket the C library asks before anything else.
const NSCD: [&str; 2] = ["/run/nscd", "/var/run/nscd"];

/// Folders one of which is covered for a moment, while the view is made.
const STAGES: [&str; 6] = ["/tmp", "/run", "/mnt", "/media", "/var", "/usr"];

/// Why there is no private view.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// An ordinary user may not have namespaces here.
    #[error("this system does not let an ordinary user have a mount namespace of its own ({0})")]
    UserForbidden(io::Error),
    /// Not even root may: a container, mostly.
    #[error("this system does not let even root have a mount namespace ({0}): a container needs CAP_SYS_ADMIN for it")]
    RootForbidden(io::Error),
    /// A step failed.
    #[error("cannot {doing} in the private mount namespace: {error}")]
    Step {
        /// What was to be done.
        doing: String,
        /// What the system said.
        error: io::Error,
    },
    /// It was made, and the command would not see it.
    #[error("{RESOLV_CONF} does not hold what was put there in the private mount namespace; please report this")]
    NotSeen,
}

/// Puts this process, and what it becomes by exec, into a view in which `resolv_conf` stands in /etc/resolv.conf, the C
/// library asks the name servers there, and neither nscd nor systemd-resolved is asked in their place. Everything else is
/// the machine as it is.
///
/// With the right to it (root, mostly) in a mount namespace; any other user gets a user namespace around it, in which it has
/// its own number and no other exists: set-user-ID programs get no rights there. What rights the process has there end with
/// its next exec, as it is no root (capabilities(7)). The process may have one thread only.
///
/// The file is laid over the real one. Should another process replace that (not write to it) meanwhile, the kernel takes
/// ours away, and the command sees the new one.
///
/// # Errors
/// When the system forbids it, or a step fails; the process may then be in a half-made view, and should end.
pub fn enter(resolv_conf: &str) -> Result<(), PrivateError> {
    let user = namespaces()?;
    make(resolv_conf).map_err(|error| match error {
        // Where AppArmor restricts user namespaces, they can be had, and nothing can be done in them.
        PrivateError::Step { error, .. } if user && error.kind() == io::ErrorKind::PermissionDenied => PrivateError::UserForbidden(error),
        error => error,
    })
}

/// Leaves the namespaces of the machine. True where that took a user namespace.
fn namespaces() -> Result<bool, PrivateError> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    match unshare(CloneFlags::CLONE_NEWNS) {
        Ok(()) => return Ok(false),
        Err(error) if uid.is_root() => return Err(PrivateError::RootForbidden(error.into())),
        Err(Errno::EPERM) => {}
        Err(error) => return Err(PrivateError::UserForbidden(error.into())),
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|error| PrivateError::UserForbidden(error.into()))?;
    // user_namespaces(7): the group's number may be mapped only once no group can be given up any more.
    for (file, text) in [("setgroups", "deny".to_owned()), ("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))] {
        fs::write(Path::new("/proc/self").join(file), text).map_err(PrivateError::UserForbidden)?;
    }
    Ok(true)
}

fn make(resolv_conf: &str) -> Result<(), PrivateError> {
    // Nothing made here is to be seen outside; what is mounted outside is to be seen here, as ever.
    step("keep mounts to itself", mount(none(), "/", none(), MsFlags::MS_SLAVE | MsFlags::MS_REC, none()))?;
    let target = fs::canonicalize(RESOLV_CONF).ok().filter(|path| path.is_file());
    let resolved = fs::canonicalize(RESOLVED).ok().filter(|path| path.is_dir());
    let mut nscd: Vec<PathBuf> = NSCD.iter().filter_map(|path| fs::canonicalize(path).ok()).filter(|path| path.is_dir()).collect();
    nscd.dedup();
    let switch = fs::canonicalize(NSSWITCH_CONF).ok();
    let nsswitch_conf =
        switch.as_ref().and_then(|path| fs::read(path).ok()).and_then(|text| nsswitch::by_dns(&String::from_utf8_lossy(&text)));

    let covered = |stage: &Path| target.iter().chain(&resolved).chain(&nscd).chain(&switch).any(|path| path.starts_with(stage));
    let stage = STAGES.iter().map(Path::new).find(|stage| stage.is_dir() && !stage.is_symlink() && !covered(stage));
    let stage = stage.ok_or_else(|| failed("find a folder to work in", io::ErrorKind::NotFound.into()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    step("make a place in memory", mount(Some("svcdns"), stage, Some("tmpfs"), flags, Some("mode=755")))?;

    let (file, empty) = (stage.join("resolv.conf"), stage.join("empty"));
    write(&file, resolv_conf)?;
    directory(&empty)?;
    let laid = match (&target, &resolved) {
        // A folder's cover stays where a file's may not: systemd-resolved replaces its files at every change.
        (Some(target), Some(resolved)) if target.parent() == Some(resolved) => {
            let view = stage.join("resolve");
            directory(&view)?;
            for name in [target.file_name().unwrap_or_default(), "stub-resolv.conf".as_ref(), "resolv.conf".as_ref()] {
                write(&view.join(name), resolv_conf)?;
            }
            cover(&view, resolved)?;
            true
        }
        (Some(target), _) => lay(&file, target)?,
        (None, _) => false,
    };
    let mut files = vec![file];
    if let Some(text) = nsswitch_conf {
        let file = stage.join("nsswitch.conf");
        write(&file, &text)?;
        files.push(file);
    }
    let laid = match (files.get(1), &switch) {
        (Some(file), Some(switch)) if laid => lay(file, switch)?,
        _ => laid,
    };
    if !laid {
        cover_etc(stage, &files)?;
    }
    let in_resolved = target.as_deref().and_then(Path::parent) == resolved.as_deref();
    for hidden in nscd.iter().chain(resolved.iter().filter(|_| !in_resolved)) {
        cover(&empty, hidden)?;
    }
    step("uncover a folder again", umount2(stage, MntFlags::MNT_DETACH))?;
    if fs::read(RESOLV_CONF).is_ok_and(|seen| seen == resolv_conf.as_bytes()) { Ok(()) } else { Err(PrivateError::NotSeen) }
}

/// Lays a folder over /etc with all that is in it, and these files: there may be none that they could be laid over. It
/// cannot be written to, so that nobody believes to have added to /etc; what was there can be changed as ever.
fn cover_etc(stage: &Path, files: &[PathBuf]) -> Result<(), PrivateError> {
    let (etc, real, view) = (Path::new("/etc"), stage.join("real"), stage.join("etc"));
    directory(&real)?;
    directory(&view)?;
    cover(etc, &real)?;
    let put = |error| failed("build a view of /etc", error);
    for entry in fs::read_dir(&real).map_err(put)? {
        let entry = entry.map_err(put)?;
        if files.iter().any(|file| file.file_name() == Some(&entry.file_name())) {
            continue;
        }
        let (from, to) = (entry.path(), view.join(entry.file_name()));
        let kind = entry.file_type().map_err(put)?;
        if kind.is_symlink() {
            symlink(fs::read_link(&from).map_err(put)?, &to).map_err(put)?;
            continue;
        }
        if kind.is_dir() {
            directory(&to)?;
        } else {
            write(&to, "")?;
        }
        cover(&from, &to)?;
    }
    for file in files {
        fs::copy(file, view.join(file.file_name().unwrap_or_default())).map_err(put)?;
    }
    cover(&view, etc)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    step("protect the view of /etc", mount(none(), etc, none(), read_only, none()))
}

/// Lays a file over another. False where that one is only there because it is mounted, and was removed where it comes from
/// (as a container's can be): nothing can be laid over it.
fn lay(file: &Path, over: &Path) -> Result<bool, PrivateError> {
    match cover(file, over) {
        Ok(()) => Ok(true),
        Err(PrivateError::Step { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lays a file or folder over another, with what is mounted in it.
fn cover(from: &Path, over: &Path) -> Result<(), PrivateError> {
    let doing = || format!("lay {} over {}", from.display(), over.display());
    mount(Some(from), over, none(), MsFlags::MS_BIND | MsFlags::MS_REC, none()).map_err(|errno| failed(&doing(), errno.into()))
}

fn write(path: &Path, text: &str) -> Result<(), PrivateError> {
    let doing = format!("write {}", path.display());
    // Whatever the umask is, everybody may read it, as everybody may the real ones.
    fs::write(path, text).and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o644))).map_err(|error| failed(&doing, error))
}

fn directory(path: &Path) -> Result<(), PrivateError> {
    let doing = format!("make {}", path.display());
    fs::create_dir(path).and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755))).map_err(|error| failed(&doing, error))
}

fn step(doing: &str, done: nix::Result<()>) -> Result<(), PrivateError> {
    done.map_err(|errno| failed(doing, errno.into()))
}

fn failed(doing: &str, error: io::Error) -> PrivateError {
    PrivateError::Step { doing: doing.to_owned(), error }
}

/// No argument of mount(2).
fn none() -> Option<&'static str> {
    None
}
