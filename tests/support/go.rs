//! Servers written in Go, built once from pinned versions.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use super::on_path;
use super::process::Process;

/// Longest time for a build, downloads included.
const BUILD_TIMEOUT: Duration = Duration::from_secs(1200);

/// A server in Go that no package contains.
pub(crate) struct GoServer {
    pub(crate) name: &'static str,
    /// Folder of `go.mod`, which pins the version, below the package's.
    folder: &'static str,
    /// The module whose version is the server's.
    module: &'static str,
}

pub(crate) const CONSUL: GoServer =
    GoServer { name: "consul", folder: "tests/consul", module: "github.com/hashicorp/consul" };

pub(crate) const COREDNS: GoServer = GoServer {
    name: "coredns",
    folder: "tests/bench/peers/go/coredns",
    module: "github.com/coredns/coredns",
};

impl GoServer {
    /// Returns the path of the program, which exists once it is built.
    pub(crate) fn program(&self) -> PathBuf {
        outputs().join(self.name)
    }

    /// Returns the pinned version.
    pub(crate) fn version(&self) -> String {
        let pins = fs::read_to_string(self.source().join("go.mod")).unwrap();
        let version = pins.lines().find_map(|line| {
            let pin = line.trim_start_matches("require").trim();
            pin.strip_prefix(self.module)?.strip_prefix(" v")
        });
        version.unwrap().split(' ').next().unwrap().to_owned()
    }

    /// Returns whether the pinned version was built before.
    pub(crate) fn is_built(&self) -> bool {
        self.program().is_file()
            && fs::read_to_string(self.version_file()).is_ok_and(|built| built == self.version())
    }

    /// Builds the server unless it was built before, and returns its version.
    ///
    /// `interrupted` is called several times a second; it may unwind.
    ///
    /// # Errors
    /// Returns the reason why there is no program.
    pub(crate) fn build(&self, interrupted: impl Fn()) -> Result<String, String> {
        let version = self.version();
        if self.is_built() {
            return Ok(version);
        }
        if !on_path("go") {
            return Err(format!("no go on PATH, to build {} with", self.name));
        }
        eprintln!("Building {} {version} …", self.name);
        let mut command = Command::new("nice");
        command
            .args(["-n", "19", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o"])
            .arg(self.program())
            .arg(".")
            .current_dir(self.source());
        let mut build = Process::start(&mut command);
        let begun = Instant::now();
        while build.ended().is_none() && begun.elapsed() < BUILD_TIMEOUT {
            interrupted();
            thread::sleep(Duration::from_millis(100));
        }
        match build.ended() {
            Some(status) if status.success() => {
                fs::write(self.version_file(), &version).unwrap();
                Ok(version)
            }
            Some(_) => {
                Err(format!("the build failed: {}", build.log().lines().last().unwrap_or_default()))
            }
            None => Err(format!("the build took more than {} s", BUILD_TIMEOUT.as_secs())),
        }
    }

    fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.folder)
    }

    fn version_file(&self) -> PathBuf {
        outputs().join(format!("{}.version", self.name))
    }
}

/// Returns the folder for files that tests and benchmarks build or write without cargo.
pub(crate) fn outputs() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    target.join("peers")
}
