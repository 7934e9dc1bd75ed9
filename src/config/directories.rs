//! The directories of a server, and the directories in which commands look for its socket.

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

/// Runtime directory of a server that runs as root.
const ROOTS_RUNTIME: &str = "/run/svcdns";

/// Flag that sets the state directory and, by default, the runtime directory.
const STATE_FLAG: &str = "--state-dir";

/// Flag that sets the runtime directory alone.
const RUNTIME_FLAG: &str = "--runtime-dir";

/// Reads the runtime directory, if one is set.
///
/// `state-dir` sets it too, unless `runtime-dir` is set in the same source or in one with a higher
/// precedence.
pub(super) fn runtime(layers: &Layers) -> Option<PathBuf> {
    let configured = |key| path(layers, key).map(|path| (precedence(&layers.origin(key)), path));
    let (runtime, state) = (configured(keys::RUNTIME_DIR), configured(keys::STATE_DIR));
    // `max_by_key` returns the last of equal elements.
    let candidates = state.into_iter().chain(runtime);
    candidates.max_by_key(|(precedence, _)| *precedence).map(|(_, path)| path)
}

/// Returns the precedence of a source; the highest one wins.
fn precedence(origin: &Origin) -> u8 {
    match origin {
        Origin::Default => 0,
        Origin::File { .. } => 1,
        Origin::Variable(_) => 2,
        Origin::Flag(_) => 3,
    }
}

impl Config {
    /// Returns the directory of the socket.
    pub fn runtime_directory(&self) -> Candidate {
        match &self.runtime_dir {
            Some(path) if Some(path) == self.state_dir.as_ref() => named(path, STATE_FLAG),
            Some(path) => named(path, RUNTIME_FLAG),
            None => UserEnvironment::current().runtime(),
        }
    }

    /// Returns the state directory.
    ///
    /// Returns `None` if it is not configured and the user has no home.
    pub fn state_directory(&self) -> Option<Candidate> {
        match &self.state_dir {
            Some(path) => Some(named(path, STATE_FLAG)),
            None => UserEnvironment::current().state(),
        }
    }
}

/// Returns the directories in which a command looks for a running server.
///
/// Returns only the given directory; without one, the user's default directory, then root's.
pub fn runtime_directories(runtime_dir: Option<&Path>) -> Vec<Candidate> {
    if let Some(path) = runtime_dir {
        return vec![named(path, RUNTIME_FLAG)];
    }
    let mut candidates = vec![UserEnvironment::current().runtime(), owned(ROOTS_RUNTIME.into())];
    candidates.dedup();
    candidates
}

fn named(path: &Path, flag: &'static str) -> Candidate {
    Candidate { path: path.to_owned(), trust: TrustRule::Named, flag }
}

fn owned(path: PathBuf) -> Candidate {
    Candidate { path, trust: TrustRule::Owned, flag: STATE_FLAG }
}

/// The user and the environment variables, which determine the defaults.
struct UserEnvironment<F> {
    user: Uid,
    home: Option<PathBuf>,
    temp: PathBuf,
    /// Looks up an environment variable.
    variable: F,
}

impl UserEnvironment<fn(&str) -> Option<OsString>> {
    /// Returns the environment of this process.
    fn current() -> Self {
        let variable: fn(&str) -> _ = |name| std::env::var_os(name);
        let (home, temp) = (std::env::home_dir(), std::env::temp_dir());
        Self { user: Uid::effective(), home, temp, variable }
    }
}

impl<F: Fn(&str) -> Option<OsString>> UserEnvironment<F> {
    /// Returns the default runtime directory.
    fn runtime(&self) -> Candidate {
        if let Some(path) = self.systemd_directory("RUNTIME_DIRECTORY") {
            return owned(path);
        }
        if self.user.is_root() {
            return owned(ROOTS_RUNTIME.into());
        }
        if let Some(path) = self.absolute("XDG_RUNTIME_DIR") {
            return owned(path.join("svcdns"));
        }
        let path = self.temp.join(format!("svcdns-{}", self.user));
        Candidate { trust: TrustRule::OwnedAndNoLink, ..owned(path) }
    }

    /// Returns the default state directory; `None` for a user without a home directory.
    fn state(&self) -> Option<Candidate> {
        if let Some(path) = self.systemd_directory("STATE_DIRECTORY") {
            return Some(owned(path));
        }
        if self.user.is_root() {
            return Some(owned(ROOT_STATE_DIRECTORY.into()));
        }
        let home = || self.home.as_ref().filter(|home| home.is_absolute());
        let parent = self.absolute("XDG_STATE_HOME");
        let parent = parent.or_else(|| home().map(|home| home.join(".local/state")))?;
        Some(owned(parent.join("svcdns")))
    }

    /// Returns the absolute path in an environment variable.
    ///
    /// Ignores a relative path, as the XDG Base Directory Specification requires.
    fn absolute(&self, variable: &str) -> Option<PathBuf> {
        (self.variable)(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// Returns the first directory that systemd created for the unit (systemd.exec(5)).
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

    fn with<'a>(
        user: u32,
        home: Option<&str>,
        variables: &'a [(&str, &str)],
    ) -> UserEnvironment<impl Fn(&str) -> Option<OsString> + use<'a>> {
        let variable = move |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        };
        let (user, home) = (Uid::from_raw(user), home.map(PathBuf::from));
        UserEnvironment { user, home, temp: "/tmp".into(), variable }
    }

    #[test]
    fn root_and_other_users_have_separate_directories() {
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
    fn the_first_of_several_directories_from_systemd_is_used() {
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
    fn state_dir_sets_both_directories_unless_runtime_dir_has_precedence() {
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
    fn commands_search_only_the_given_directory_or_by_default_roots_last() {
        assert_eq!(
            runtime_directories(Some(Path::new("/x"))),
            [named(Path::new("/x"), RUNTIME_FLAG)]
        );
        let directories = runtime_directories(None);
        let last = directories.last().map(|candidate| candidate.path.as_path());
        assert_eq!(last, Some(Path::new(ROOTS_RUNTIME)));
    }
}
