//! Paths of the machine's files, below a root that tests can choose.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use crate::regular_file;

/// Limit for a text file, in bytes; some files of host names have a million lines.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Maximum number of symbolic links followed on one path (path_resolution(7)).
const MAX_SYMLINKS: usize = 40;

/// Root of the machine's file system: `/`, or a directory that a test supplies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self(PathBuf::from("/"))
    }
}

impl Root {
    /// Creates a root whose `/` is this directory.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Returns the real path of an absolute path of the machine.
    ///
    /// Follows no symbolic links.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Follows all symbolic links of a path, inside this root, and returns the target.
    ///
    /// The target need not exist: a dangling link leads to its missing target.
    ///
    /// # Errors
    /// If the symbolic links form a loop.
    pub fn follow(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        self.resolve(path.as_ref()).map(|(target, _)| target)
    }

    /// Returns the target of a link, without following further links.
    ///
    /// The directories of the path are followed. Returns `None` if the path is no link.
    pub fn link_target(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let path = path.as_ref();
        let target = path.parent()?.join(fs::read_link(self.path(path)).ok()?);
        Some(self.follow(target.parent()?).ok()?.join(target.file_name()?))
    }

    /// Returns the directories and links on a path, from `/` to its target.
    ///
    /// # Errors
    /// If the symbolic links form a loop.
    pub fn path_steps(&self, path: impl AsRef<Path>) -> io::Result<Vec<PathBuf>> {
        self.resolve(path.as_ref()).map(|(_, steps)| steps)
    }

    /// Returns the target of a path, and every path visited on the way.
    fn resolve(&self, path: &Path) -> io::Result<(PathBuf, Vec<PathBuf>)> {
        let mut current = PathBuf::from("/");
        let mut visited = vec![current.clone()];
        let mut links = 0;
        let mut pending: Vec<OsString> = reversed_components(path);
        while let Some(component) = pending.pop() {
            if component == ".." {
                current.pop();
                continue;
            }
            current.push(&component);
            visited.push(current.clone());
            if let Ok(target) = fs::read_link(self.path(&current)) {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(io::Error::other("its symbolic links form a loop"));
                }
                if target.is_absolute() {
                    current = PathBuf::from("/");
                } else {
                    current.pop();
                }
                pending.extend(reversed_components(&target));
            }
        }
        Ok((current, visited))
    }

    /// Returns whether a path exists after all its links are followed.
    pub fn has(&self, path: impl AsRef<Path>) -> bool {
        self.follow(path).is_ok_and(|path| self.path(path).exists())
    }

    /// Returns the text of a file, its links followed; `None` if it cannot be read.
    ///
    /// Invalid UTF-8 is replaced.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let path = self.path(self.follow(path).ok()?);
        let bytes = regular_file::read_blocking(&path, MAX_TEXT_BYTES).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns the files of a directory whose names end in this suffix, sorted.
    pub fn files(&self, folder: impl AsRef<Path>, suffix: &str) -> Vec<PathBuf> {
        let folder = folder.as_ref();
        let Ok(entries) = self.follow(folder).and_then(|folder| fs::read_dir(self.path(folder)))
        else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        let mut files: Vec<PathBuf> = names
            .filter(|name| name.to_str().is_some_and(|name| name.ends_with(suffix)))
            .map(|name| folder.join(name))
            .collect();
        files.sort();
        files
    }

    /// Returns the path of a program from a fixed search path.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"]
            .iter()
            .map(|folder| Path::new(folder).join(name))
            .find(|path| self.has(path))
    }
}

/// Returns the components of a path, the last one first.
fn reversed_components(path: &Path) -> Vec<OsString> {
    let named = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut components: Vec<_> = named.map(OsStr::to_owned).collect();
    components.reverse();
    components
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_inside_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for path in ["etc", "run/systemd/resolve"] {
            fs::create_dir_all(root.path(path)).unwrap();
        }
        fs::write(root.path("/run/systemd/resolve/stub-resolv.conf"), "nameserver 127.0.0.53\n")
            .unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", root.path("/etc/resolv.conf")).unwrap();
        symlink("/etc/resolv.conf", root.path("/etc/absolute")).unwrap();
        symlink("/run/nowhere/file", root.path("/etc/dangling")).unwrap();
        symlink("a", root.path("/etc/b")).unwrap();
        symlink("b", root.path("/etc/a")).unwrap();
        assert_eq!(
            root.follow("/etc/absolute").unwrap(),
            Path::new("/run/systemd/resolve/stub-resolv.conf")
        );
        assert_eq!(root.text("/etc/absolute").as_deref(), Some("nameserver 127.0.0.53\n"));
        assert_eq!(root.follow("/etc/dangling").unwrap(), Path::new("/run/nowhere/file"));
        assert_eq!(
            root.follow("/etc/../../etc/./dangling").unwrap(),
            Path::new("/run/nowhere/file")
        );
        assert!(root.follow("/etc/a").is_err());
        assert_eq!(root.link_target("/etc/absolute").unwrap(), Path::new("/etc/resolv.conf"));
        symlink("../run", root.path("/etc/folder")).unwrap();
        symlink("folder/nowhere", root.path("/etc/through")).unwrap();
        assert_eq!(root.link_target("/etc/through").unwrap(), Path::new("/run/nowhere"));
        assert_eq!(root.link_target("/etc/folder/systemd"), None);
        let steps = root.path_steps("/etc/resolv.conf").unwrap();
        let steps: Vec<&str> = steps.iter().filter_map(|path| path.to_str()).collect();
        let target = ["/run", "/run/systemd", "/run/systemd/resolve"];
        let stub = "/run/systemd/resolve/stub-resolv.conf";
        assert_eq!(steps, [&["/", "/etc", "/etc/resolv.conf"], &target[..], &[stub]].concat());
        assert!(root.has("/etc/absolute") && !root.has("/etc/dangling") && !root.has("/etc/a"));
    }
}
