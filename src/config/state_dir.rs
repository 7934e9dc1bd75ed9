//! Where a server keeps its socket, and where commands look for it.

use std::path::{Path, PathBuf};

use nix::unistd::Uid;

/// Root's state directory.
const ROOTS: &str = "/run/svcdns";

/// A directory in which a server's socket may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The directory.
    pub path: PathBuf,
    /// Whether strangers could have made it: it is believed only while it belongs to us.
    pub doubtful: bool,
}

/// The state directory of a server that runs as us and was told none.
pub fn own_state_dir() -> Candidate {
    of_user(Uid::effective(), std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).as_deref(), &std::env::temp_dir())
}

/// Where a command looks for a running server: the directory named, or else the user's and then root's.
pub fn state_dirs(named: Option<&Path>) -> Vec<Candidate> {
    if let Some(path) = named {
        return vec![Candidate { path: path.to_owned(), doubtful: false }];
    }
    let mut candidates = vec![own_state_dir(), Candidate { path: ROOTS.into(), doubtful: false }];
    candidates.dedup();
    candidates
}

fn of_user(user: Uid, runtime: Option<&Path>, temp: &Path) -> Candidate {
    if user.is_root() {
        return Candidate { path: ROOTS.into(), doubtful: false };
    }
    match runtime.filter(|runtime| runtime.is_absolute()) {
        Some(runtime) => Candidate { path: runtime.join("svcdns"), doubtful: false },
        None => Candidate { path: temp.join(format!("svcdns-{user}")), doubtful: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_others_have_their_own() {
        let (root, user) = (Uid::from_raw(0), Uid::from_raw(1000));
        let sure = |path: &str| Candidate { path: path.into(), doubtful: false };
        assert_eq!(of_user(root, Some(Path::new("/run/user/0")), Path::new("/tmp")), sure("/run/svcdns"));
        assert_eq!(of_user(user, Some(Path::new("/run/user/1000")), Path::new("/tmp")), sure("/run/user/1000/svcdns"));
        let in_temp = Candidate { path: "/tmp/svcdns-1000".into(), doubtful: true };
        assert_eq!(of_user(user, None, Path::new("/tmp")), in_temp);
        assert_eq!(of_user(user, Some(Path::new("relative")), Path::new("/tmp")), in_temp);
    }

    #[test]
    fn a_named_directory_is_the_only_one() {
        assert_eq!(state_dirs(Some(Path::new("/x"))), [Candidate { path: "/x".into(), doubtful: false }]);
        assert_eq!(state_dirs(None).last().map(|candidate| candidate.path.clone()), Some(ROOTS.into()));
    }
}
