//! What stands at a path, and how it is replaced.

use std::path::Path;

use rustix::fs::{IFlags, Mode, OFlags};

/// Whether the file system lets nobody change the file (`chattr +i`); false where it knows no such thing.
pub(super) fn is_immutable(path: &Path) -> bool {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    file.is_ok_and(|file| rustix::fs::ioctl_getflags(file).is_ok_and(|flags| flags.contains(IFlags::IMMUTABLE)))
}
