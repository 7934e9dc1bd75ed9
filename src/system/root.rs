//! Where the machine's files are.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

/// Symbolic links that are followed on the way to a file, as the kernel does (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// The folder that all paths of the machine are below: `/`, or another one to try things in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self(PathBuf::from("/"))
    }
}

impl Root {
    /// A machine whose `/` is this folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Where an absolute path of the machine really is. Symbolic links on the way are not looked at.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The path of the machine that this one leads to when all symbolic links are followed, inside this root. What does not
    /// exist is taken as it stands, so the end of a dangling link is found, too.
    ///
    /// # Errors
    /// When the links lead in a circle.
    pub fn follow(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        self.walk(path.as_ref()).map(|(found, _)| found)
    }

    /// The folders and links that lead to a path of the machine, from `/` on, and itself at last.
    ///
    /// # Errors
    /// When the links lead in a circle.
    pub fn way(&self, path: impl AsRef<Path>) -> io::Result<Vec<PathBuf>> {
        self.walk(path.as_ref()).map(|(_, way)| way)
    }

    /// Where a path leads, and all that is looked at on the way.
    fn walk(&self, path: &Path) -> io::Result<(PathBuf, Vec<PathBuf>)> {
        let mut found = PathBuf::from("/");
        let mut way = vec![found.clone()];
        let mut links = 0;
        let mut ahead: Vec<std::ffi::OsString> = parts(path);
        while let Some(part) = ahead.pop() {
            if part == ".." {
                found.pop();
                continue;
            }
            found.push(&part);
            way.push(found.clone());
            if let Ok(target) = fs::read_link(self.path(&found)) {
                links += 1;
                if links > MOST_LINKS {
                    return Err(io::Error::other("the symbolic links lead in a circle"));
                }
                if target.is_absolute() {
                    found = PathBuf::from("/");
                } else {
                    found.pop();
                }
                ahead.extend(parts(&target));
            }
        }
        Ok((found, way))
    }

    /// Whether something stands at this path, or a link to something.
    pub fn has(&self, path: impl AsRef<Path>) -> bool {
        self.follow(path).is_ok_and(|path| self.path(path).exists())
    }

    /// The text of a file, its links followed; what is not text in it replaced. None where it cannot be read.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let path = self.follow(path).ok()?;
        fs::read(self.path(path)).ok().map(|octets| String::from_utf8_lossy(&octets).into_owned())
    }

    /// The files in a folder whose names end so, in the order of their names.
    pub fn files(&self, folder: impl AsRef<Path>, end: &str) -> Vec<PathBuf> {
        let folder = folder.as_ref();
        let Ok(entries) = self.follow(folder).and_then(|folder| fs::read_dir(self.path(folder))) else { return Vec::new() };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        let mut found: Vec<PathBuf> =
            names.filter(|name| name.to_str().is_some_and(|name| name.ends_with(end))).map(|name| folder.join(name)).collect();
        found.sort();
        found
    }

    /// The program of this name on the usual path.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"]
            .iter()
            .map(|folder| Path::new(folder).join(name))
            .find(|path| self.has(path))
    }
}

/// The parts of a path, the last one first.
fn parts(path: &Path) -> Vec<std::ffi::OsString> {
    let named = path.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut parts: Vec<_> = named.map(OsStr::to_owned).collect();
    parts.reverse();
    parts
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
        fs::write(root.path("/run/systemd/resolve/stub-resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", root.path("/etc/resolv.conf")).unwrap();
        symlink("/etc/resolv.conf", root.path("/etc/absolute")).unwrap();
        symlink("/run/nowhere/file", root.path("/etc/dangling")).unwrap();
        symlink("a", root.path("/etc/b")).unwrap();
        symlink("b", root.path("/etc/a")).unwrap();
        assert_eq!(root.follow("/etc/absolute").unwrap(), Path::new("/run/systemd/resolve/stub-resolv.conf"));
        assert_eq!(root.text("/etc/absolute").as_deref(), Some("nameserver 127.0.0.53\n"));
        assert_eq!(root.follow("/etc/dangling").unwrap(), Path::new("/run/nowhere/file"));
        assert_eq!(root.follow("/etc/../../etc/./dangling").unwrap(), Path::new("/run/nowhere/file"));
        assert!(root.follow("/etc/a").is_err());
        let way = root.way("/etc/resolv.conf").unwrap();
        let way: Vec<&str> = way.iter().filter_map(|place| place.to_str()).collect();
        let target = ["/run", "/run/systemd", "/run/systemd/resolve"];
        let stub = "/run/systemd/resolve/stub-resolv.conf";
        assert_eq!(way, [&["/", "/etc", "/etc/resolv.conf"], &target[..], &[stub]].concat());
        assert!(root.has("/etc/absolute") && !root.has("/etc/dangling") && !root.has("/etc/a"));
    }
}
