//! Which directories a server keeps its files in, and where commands look for its socket.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use super::Config;
use super::error::Origin;
use super::keys;
use super::layers::Layers;
use super::values::path;
use crate::directory::{Candidate, ROOT_STATE_DIRECTORY, TrustRule};

/// Root's runtime directory.
const ROOTS_RUNTIME: &str = "/run/svcdns";

/// The flag of the state directory. It names the runtime directory as well, so it is always enough.
const STATE_FLAG: &str = "--state-dir";

/// The flag of the runtime directory alone.
const RUNTIME_FLAG: &str = "--runtime-dir";

/// Reads the runtime directory that was named: `state-dir` names it too, unless `runtime-dir` is
/// given in the same place or one that counts more.
pub(super) fn runtime(layers: &Layers) -> Option<PathBuf> {
    let named = |key| path(layers, key).map(|path| (rank(&layers.origin(key)), path));
    let (runtime, state) = (named(keys::RUNTIME_DIR), named(keys::STATE_DIR));
    // Of two equal ones `max_by_key` takes the last.
    state.into_iter().chain(runtime).max_by_key(|(rank, _)| *rank).map(|(_, path)| path)
}

/// Returns which of two origins counts more.
fn rank(origin: &Origin) -> u8 {
    match origin {
        Origin::Default => 0,
        Origin::File { .. } => 1,
        Origin::Variable(_) => 2,
        Origin::Flag(_) => 3,
    }
}

impl Config {
    /// Returns the directory for the socket.
    pub fn runtime_directory(&self) -> Candidate {
        match &self.runtime_dir {
            Some(path) if Some(path) == self.state_dir.as_ref() => named(path, STATE_FLAG),
            Some(path) => named(path, RUNTIME_FLAG),
            None => Surroundings::now().runtime(),
        }
    }

    /// Returns the directory for what is kept; none for a user without a home.
    pub fn state_directory(&self) -> Option<Candidate> {
        match &self.state_dir {
            Some(path) => Some(named(path, STATE_FLAG)),
            None => Surroundings::now().state(),
        }
    }
}

/// Returns where a command looks for a running server: in the directory named, or else in the
/// user's own and then in root's.
pub fn runtime_directories(runtime_dir: Option<&Path>) -> Vec<Candidate> {
    if let Some(path) = runtime_dir {
        return vec![named(path, RUNTIME_FLAG)];
    }
    let mut candidates = vec![Surroundings::now().runtime(), owned(ROOTS_RUNTIME.into())];
    candidates.dedup();
    candidates
}

fn named(path: &Path, flag: &'static str) -> Candidate {
    Candidate { path: path.to_owned(), trust: TrustRule::Named, flag }
}

fn owned(path: PathBuf) -> Candidate {
    Candidate { path, trust: TrustRule::Owned, flag: STATE_FLAG }
}

/// What the defaults depend on.
struct Surroundings<F> {
    user: Uid,
    home: Option<PathBuf>,
    temp: PathBuf,
    variable: F,
}

impl Surroundings<fn(&str) -> Option<OsString>> {
    fn now() -> Self {
        let variable: fn(&str) -> _ = |name| std::env::var_os(name);
        let (home, temp) = (std::env::home_dir(), std::env::temp_dir());
        Self { user: Uid::effective(), home, temp, variable }
    }
}

impl<F: Fn(&str) -> Option<OsString>> Surroundings<F> {
    /// The runtime directory of a server that was told none.
    fn runtime(&self) -> Candidate {
        if let Some(path) = self.systemd_directory("RUNTIME_DIRECTORY") {
            return owned(path);
        }
        if self.user.is_root() {
            return owned(ROOTS_RUNTIME.into());
        }
        match self.absolute("XDG_RUNTIME_DIR") {
            Some(path) => owned(path.join("svcdns")),
            None => Candidate { trust: TrustRule::OwnedAndNoLink, ..owned(self.temp.join(format!("svcdns-{}", self.user))) },
        }
    }

    /// The state directory of a server that was told none.
    fn state(&self) -> Option<Candidate> {
        if let Some(path) = self.systemd_directory("STATE_DIRECTORY") {
            return Some(owned(path));
        }
        if self.user.is_root() {
            return Some(owned(ROOT_STATE_DIRECTORY.into()));
        }
        let home = || self.home.as_ref().filter(|home| home.is_absolute());
        let of_user = self.absolute("XDG_STATE_HOME");
        let of_user = of_user.or_else(|| home().map(|home| home.join(".local/state")))?;
        Some(owned(of_user.join("svcdns")))
    }

    fn absolute(&self, variable: &str) -> Option<PathBuf> {
        (self.variable)(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// The first of the directories that systemd made for the unit (systemd.exec(5)).
    fn systemd_directory(&self, variable: &str) -> Option<PathBuf> {
        let all = (self.variable)(variable)?;
        let first = all.as_bytes().split(|byte| *byte == b':').next()?.to_owned();
        Some(PathBuf::from(OsString::from_vec(first))).filter(|path| path.is_absolute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    fn with<'a>(user: u32, home: Option<&str>, variables: &'a [(&str, &str)]) -> Surroundings<impl Fn(&str) -> Option<OsString> + use<'a>> {
        let variable = move |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let (user, home) = (Uid::from_raw(user), home.map(PathBuf::from));
        Surroundings { user, home, temp: "/tmp".into(), variable }
    }

    #[test]
    fn root_and_other_users_have_directories_of_their_own() {
        let root = with(0, Some("/root"), &[("XDG_RUNTIME_DIR", "/run/user/0")]);
        assert_eq!(root.runtime(), owned("/run/svcdns".into()));
        assert_eq!(root.state(), Some(owned("/var/lib/svcdns".into())));

        let xdg = [("XDG_RUNTIME_DIR", "/run/user/7"), ("XDG_STATE_HOME", "/home/u/kept")];
        let user = with(7, Some("/home/u"), &xdg);
        assert_eq!(user.runtime(), owned("/run/user/7/svcdns".into()));
        assert_eq!(user.state(), Some(owned("/home/u/kept/svcdns".into())));

        for variables in [&[][..], &[("XDG_RUNTIME_DIR", "run"), ("XDG_STATE_HOME", "state")]] {
            let user = with(7, Some("/home/u"), variables);
            let in_temp = user.runtime();
            assert_eq!(in_temp.path, Path::new("/tmp/svcdns-7"));
            assert_eq!(in_temp.trust, TrustRule::OwnedAndNoLink);
            assert_eq!(user.state(), Some(owned("/home/u/.local/state/svcdns".into())));
        }
    }

    #[test]
    fn a_user_without_a_home_has_no_state_directory() {
        for home in [None, Some(""), Some("home")] {
            assert_eq!(with(7, home, &[]).state(), None, "{home:?}");
        }
    }

    #[test]
    fn the_first_directory_that_systemd_made_counts() {
        for user in [0, 7] {
            let several = [
                ("RUNTIME_DIRECTORY", "/run/a:/run/b"),
                ("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"),
                ("XDG_RUNTIME_DIR", "/run/user/7"),
                ("XDG_STATE_HOME", "/home/u/kept"),
            ];
            let unit = with(user, None, &several);
            assert_eq!(unit.runtime(), owned("/run/a".into()));
            assert_eq!(unit.state(), Some(owned("/var/lib/a".into())));
            let odd = [("RUNTIME_DIRECTORY", ""), ("STATE_DIRECTORY", "relative:/x")];
            let without = with(user, Some("/home/u"), &[]);
            let odd = with(user, Some("/home/u"), &odd);
            assert_eq!((odd.runtime(), odd.state()), (without.runtime(), without.state()));
        }
    }

    #[test]
    fn a_state_directory_that_is_named_holds_both_unless_the_other_counts_more() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("svcdns.toml");
        let chosen = |file_text: &str, variables: &[(&str, &str)], flags: Flags| {
            std::fs::write(&file, file_text).unwrap();
            let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            let config = Config::load(Some(&file), variables, &flags).unwrap();
            let (runtime, state) = (config.runtime_directory(), config.state_directory());
            let state = config.state_dir.and(state).map(|state| state.path);
            (runtime.path, runtime.flag, state)
        };
        let path = PathBuf::from;
        let (state, runtime) = ("state-dir = '/s'\n", "runtime-dir = '/r'\n");
        let (one, both) = (Some(path("/s")), format!("{state}{runtime}"));
        let none = Flags::default;
        assert_eq!(chosen(state, &[], none()), (path("/s"), "--state-dir", one.clone()));
        assert_eq!(chosen(runtime, &[], none()), (path("/r"), "--runtime-dir", None));
        assert_eq!(chosen(&both, &[], none()), (path("/r"), "--runtime-dir", one));

        let flag = none().with("state-dir", "/f");
        let of_flag = (path("/f"), "--state-dir", Some(path("/f")));
        assert_eq!(chosen(&both, &[("SVCDNS_RUNTIME_DIR", "/v")], flag), of_flag);
        let flag = none().with("runtime-dir", "/f");
        let variable = [("SVCDNS_STATE_DIR", "/v")];
        assert_eq!(chosen(&both, &variable, flag), (path("/f"), "--runtime-dir", Some(path("/v"))));
    }

    #[test]
    fn commands_look_in_the_named_directory_alone_or_else_in_roots_at_last() {
        assert_eq!(runtime_directories(Some(Path::new("/x"))), [named(Path::new("/x"), RUNTIME_FLAG)]);
        let places = runtime_directories(None);
        assert_eq!(places.last().map(|place| place.path.as_path()), Some(Path::new(ROOTS_RUNTIME)));
    }
}
