//! Real GoFrame programs; their source is in `tests/goframe`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use super::process::Process;
use super::{netns, on_path, skip};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goframe");

/// The Go program and a temporary directory.
///
/// gRPC servers create a registry in that directory if none is set.
pub(crate) struct GoFrame {
    program: PathBuf,
    pub(crate) temp: TempDir,
}

impl GoFrame {
    /// Builds the program once; skips the test if Go is not installed.
    ///
    /// The build runs outside any namespace: the first one downloads modules.
    pub(crate) fn new(test: &str) -> Option<Self> {
        static BUILT: OnceLock<()> = OnceLock::new();
        if !netns::is_inside(test) {
            if !on_path("go") {
                skip(test, "no go on PATH, to build real GoFrame programs with");
                return None;
            }
            BUILT.get_or_init(|| {
                let output = Command::new("go")
                    .args(["build", "-o", "bin/goframe", "."])
                    .current_dir(FOLDER)
                    .output()
                    .unwrap();
                assert!(
                    output.status.success(),
                    "go build: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            });
        }
        Some(Self {
            program: Path::new(FOLDER).join("bin/goframe"),
            temp: tempfile::tempdir().unwrap(),
        })
    }

    /// Returns a command for a role and a registry.
    ///
    /// The registry is `etcd HOST:PORT`, `file DIRECTORY` or empty.
    pub(crate) fn role(&self, registry: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // GoFrame looks for its configuration in the working directory.
        command
            .args(arguments)
            .env("REGISTRY", registry)
            .env("TMPDIR", self.temp.path())
            .current_dir(self.temp.path());
        command
    }

    /// Starts a server.
    pub(crate) fn start(&self, registry: &str, arguments: &[&str]) -> Process {
        Process::start(&mut self.role(registry, arguments))
    }

    /// Runs a client and returns the last line it prints; GoFrame's log precedes it.
    pub(crate) fn run_client(&self, arguments: &[&str]) -> String {
        let output = self.role("", arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        last_line(&output.stdout)
    }
}

/// Returns the last line of an output; GoFrame's log precedes it.
pub(crate) fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines().rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}
