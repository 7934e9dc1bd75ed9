//! Paths of nodes, and where they are below the root.

/// Where a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    Root,
    /// A folder: the node of a service.
    Folder,
    /// A leaf, in this folder.
    Leaf {
        folder: &'a str,
    },
    /// Deeper, or not below the root.
    Elsewhere,
}

impl<'a> Place<'a> {
    /// Returns where the node with this path is.
    pub(super) fn of(path: &'a str, root: &str) -> Self {
        let Some(below) = path.strip_prefix(root) else { return Self::Elsewhere };
        if below.is_empty() {
            return Self::Root;
        }
        let Some(names) = below.strip_prefix('/') else { return Self::Elsewhere };
        match names.split_once('/') {
            None => Self::Folder,
            Some((_, leaf)) if leaf.contains('/') => Self::Elsewhere,
            Some((folder, _)) => Self::Leaf { folder: &path[..root.len() + 1 + folder.len()] },
        }
    }
}

/// Returns the path of a child.
pub(super) fn child(path: &str, name: &str) -> Box<str> {
    format!("{path}/{name}").into()
}

/// Returns the last name of a path.
pub(super) fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Returns why ZooKeeper refuses a path; `None` if it does not.
///
/// The rules are at least as strict as ZooKeeper's `PathUtils.validatePath`.
pub fn invalid_path(path: &str) -> Option<&'static str> {
    let Some(names) = path.strip_prefix('/') else {
        return Some("it does not begin with a slash");
    };
    let is_refused = |c| {
        matches!(
            c,
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..'\u{f8ff}'
                | '\u{fff1}'..
        )
    };
    names.split('/').find_map(|name| match name {
        "" => Some("a name in it is empty"),
        "." | ".." => Some("a name in it is a dot or two"),
        _ if name.contains(is_refused) => {
            Some("it has a character that ZooKeeper refuses, such as a control character or emoji")
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_its_children_and_their_children_have_a_place() {
        let place = |path| Place::of(path, "/micro/services");
        assert_eq!(place("/micro/services"), Place::Root);
        assert_eq!(place("/micro/services/a"), Place::Folder);
        let folder = "/micro/services/ä";
        assert_eq!(place("/micro/services/ä/b"), Place::Leaf { folder });
        for path in ["/micro", "/micro/services2", "/micro/services2/a", "/micro/services/a/b/c"] {
            assert_eq!(place(path), Place::Elsewhere, "{path}");
        }
        assert_eq!(place(""), Place::Elsewhere);
        assert_eq!((&*child("/a", "b"), name("/a/b"), name("a")), ("/a/b", "b", "a"));
    }

    #[test]
    fn paths_are_refused_as_by_zookeeper() {
        for path in ["/a", "/a/b.c/…", "/micro services", "/日本/…a..b", "/a#b?c"] {
            assert_eq!(invalid_path(path), None, "{path}");
        }
        for path in ["", "a", "/", "/a/", "//a", "/a//b", "/.", "/a/../b", "/a\u{1}", "/a\u{80}"] {
            assert!(invalid_path(path).is_some(), "{path}");
        }
        for path in ["/\u{0}", "/\u{e001}", "/\u{fff1}", "/🦀"] {
            assert!(invalid_path(path).is_some(), "{path}");
        }
    }
}
