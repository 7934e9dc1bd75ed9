//! A server whose configuration file changes while it runs.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::process::Process;
use super::svcdns;
use super::{SOON, dns, eventually};

/// A running `svcdns serve` that has all its settings from a file.
pub(crate) struct Reloading {
    process: Process,
    folder: TempDir,
    /// The first address of its UDP and TCP listeners.
    pub(crate) address: SocketAddr,
}

impl Reloading {
    /// Starts a server that listens on `address`, with this file.
    ///
    /// Its directories are `state` in its folder, as long as the file names no other.
    pub(crate) fn start(address: SocketAddr, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("svcdns.toml");
        fs::write(&file, text).unwrap();
        let mut command = svcdns::command();
        command.arg("serve").arg("--config").arg(&file);
        // As of a service: the file may name directories, too.
        for variable in ["RUNTIME_DIRECTORY", "STATE_DIRECTORY"] {
            command.env(variable, folder.path().join("state"));
        }
        let mut process = Process::start(&mut command);
        eventually("the server to answer", SOON, || {
            assert!(process.ended().is_none(), "svcdns serve ended:\n{}", process.log());
            dns::exchange(address, &dns::query(1, "x.svc", dns::A), super::seconds(1))
        });
        Self { process, folder, address }
    }

    /// Returns the configuration file.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("svcdns.toml")
    }

    /// Returns the folder of the file and the state directory.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Replaces the file at once, as an editor does.
    pub(crate) fn write(&self, text: &str) {
        let new = self.folder.path().join("new.toml");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.file()).unwrap();
    }

    /// Replaces the file and runs `svcdns reload`.
    pub(crate) fn reload(&self, text: &str) -> Output {
        self.write(text);
        self.run(&["reload"])
    }

    /// Replaces the file and reloads it; returns the lines of the output.
    pub(crate) fn reload_lines(&self, text: &str) -> Vec<String> {
        let output = self.reload(text);
        assert!(output.status.success(), "{text}\n{output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
    }

    /// Runs a command against this server.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = svcdns::command();
        command.args(arguments).arg("--state-dir").arg(self.folder.path().join("state"));
        command.output().unwrap()
    }

    /// Returns the value of `/v1/status` at a JSON pointer, as text.
    pub(crate) fn status(&self, pointer: &str) -> String {
        let output = self.run(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}\n{}", self.log()));
        match status.pointer(pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => "none".to_owned(),
        }
    }

    /// Returns the log so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Sends a signal to the server.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Returns the process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Stops the server with SIGTERM; fails the test unless it exits with 0.
    pub(crate) fn stop(mut self) {
        let status = self.process.terminate();
        assert!(status.success(), "{status}\n{}", self.process.log());
    }
}
