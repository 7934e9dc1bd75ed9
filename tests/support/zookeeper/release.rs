//! Releases of ZooKeeper: Debian's, and others that Maven fetches once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::super::{go, on_path, skip};

/// Folder of Debian's jars.
const DEBIAN_FOLDER: &str = "/usr/share/java";

/// The jars of Debian's packages that a server needs, beside those that `zookeeper.jar` names.
const SERVER_JARS: [&str; 4] = ["zookeeper", "slf4j-simple", "netty-codec", "netty-resolver"];

/// Where the jars of a server come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// The package `libzookeeper-java`.
    Debian,
    /// A version that Maven fetches, such as `3.9.5`.
    Fetched(&'static str),
}

impl Release {
    /// Returns whether the jars are there, and fetches those of other releases; if they are not,
    /// the test is skipped.
    pub(crate) fn is_available(self, test: &str) -> bool {
        let problem = self.problem();
        if let Some(reason) = &problem {
            skip(test, reason);
        }
        problem.is_none()
    }

    fn problem(self) -> Option<String> {
        if !on_path("java") {
            return Some("no java on PATH, to run ZooKeeper with".to_owned());
        }
        match self {
            Self::Debian => {
                let is_missing = |jar: &&str| !debian_jar(jar).is_file();
                let missing = SERVER_JARS.iter().find(|jar| is_missing(jar))?;
                let jar = debian_jar(missing).display().to_string();
                Some(format!("no {jar}: tests/setup.sh test installs it"))
            }
            Self::Fetched(version) => fetch(version).err(),
        }
    }

    /// Returns whether a watch may include everything below a node: since 3.6.
    pub(crate) fn has_recursive_watches(self) -> bool {
        !matches!(self, Self::Fetched(version) if version.starts_with("3.5."))
    }

    /// Returns Java's class path of the server.
    pub(crate) fn class_path(self) -> String {
        match self {
            Self::Debian => SERVER_JARS.map(|jar| debian_jar(jar).display().to_string()).join(":"),
            Self::Fetched(version) => folder(version).join("*").display().to_string(),
        }
    }
}

fn debian_jar(name: &str) -> PathBuf {
    Path::new(DEBIAN_FOLDER).join(name).with_extension("jar")
}

fn folder(version: &str) -> PathBuf {
    go::outputs().join(format!("zookeeper-{version}"))
}

/// Fetches the jars of a version unless they were fetched before.
fn fetch(version: &str) -> Result<(), String> {
    static FETCHING: Mutex<()> = Mutex::new(());
    let _fetching = FETCHING.lock().unwrap();
    let folder = folder(version);
    if folder.is_dir() {
        return Ok(());
    }
    if !on_path("mvn") {
        return Err(format!("no mvn on PATH, to fetch ZooKeeper {version} with"));
    }
    eprintln!("Fetching ZooKeeper {version} …");
    let incomplete = go::outputs().join(format!("zookeeper-{version}.incomplete"));
    let output = Command::new("mvn")
        .args(["--batch-mode", "--quiet", "dependency:copy-dependencies"])
        .args(["-DincludeScope=runtime", &format!("-Dzookeeper.version={version}")])
        .arg(format!("-DoutputDirectory={}", incomplete.display()))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zookeeper"))
        .output()
        .map_err(|error| format!("mvn: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        return Err(format!("mvn failed: {}", text.lines().next().unwrap_or_default()));
    }
    fs::rename(incomplete, folder).map_err(|error| error.to_string())
}
