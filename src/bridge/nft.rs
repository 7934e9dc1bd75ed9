//! The `nft` program, which changes the kernel's rules.
//!
//! It takes and returns documents of JSON (libnftables-json(5)), and applies one as a whole or not
//! at all.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Longest time that `nft` may take.
const NFT_TIMEOUT: Duration = Duration::from_secs(10);

/// The directories of administrators' programs, which are not on every PATH.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The program.
#[derive(Clone, Debug)]
pub(super) struct Nft(PathBuf);

/// Reason why the kernel's rules cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is not installed.
    #[error("the program nft is missing: install the package nftables")]
    NoProgram,
    /// The program cannot be run.
    #[error("cannot run {}: {error}", .program.display())]
    Run {
        /// The path of `nft`.
        program: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// The program did not end in time.
    #[error("nft did not end within {} s", NFT_TIMEOUT.as_secs())]
    Timeout,
    /// The process may not change the kernel's rules.
    #[error(
        "the capability CAP_NET_ADMIN is missing: run `svcdns install --bridge`, or start svcdns \
         as root"
    )]
    NotPermitted,
    /// A table, or another object, does not exist.
    #[error("nft failed: {0}")]
    NotFound(String),
    /// The program failed; what it said.
    #[error("nft failed: {0}")]
    Failed(String),
}

impl Nft {
    /// Finds the program.
    ///
    /// # Errors
    /// If it is not installed.
    pub(super) fn find() -> Result<Self, NftError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let system = SYSTEM_DIRECTORIES.into_iter().map(PathBuf::from);
        std::env::split_paths(&path)
            .filter(|directory| directory.is_absolute())
            .chain(system)
            .map(|directory| directory.join("nft"))
            .find(|file| file.is_file())
            .map(Self)
            .ok_or(NftError::NoProgram)
    }

    /// Applies commands.
    ///
    /// # Errors
    /// If the program fails, or is not permitted to change the rules.
    pub(super) async fn apply(&self, commands: &[Value]) -> Result<(), NftError> {
        self.run(&["-f", "-"], &json!({ "nftables": commands }).to_string()).await.map(drop)
    }

    /// Lists objects of the kernel, such as `tables ip`; returns their descriptions.
    ///
    /// # Errors
    /// If the program fails, or is not permitted to read the rules.
    pub(super) async fn list(&self, what: &[&str]) -> Result<Vec<Value>, NftError> {
        let output = self.run(&[&["list"], what].concat(), "").await?;
        let mut document: Value = serde_json::from_slice(&output)
            .map_err(|error| NftError::Failed(format!("its output is not JSON: {error}")))?;
        match document["nftables"].take() {
            Value::Array(objects) => Ok(objects),
            _ => Ok(Vec::new()),
        }
    }

    /// Runs the program with this input; returns its output.
    async fn run(&self, arguments: &[&str], input: &str) -> Result<Vec<u8>, NftError> {
        let failed = |error| NftError::Run { program: self.0.clone(), error };
        let mut child = Command::new(&self.0)
            .arg("-j")
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let finished = async {
            if let Some(mut stdin) = child.stdin.take() {
                // If the program ends early, its status and its message say why.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(NFT_TIMEOUT, finished)
            .await
            .map_err(|_| NftError::Timeout)?
            .map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let message = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> =
            message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Err(if message.contains("Operation not permitted") {
            NftError::NotPermitted
        } else if message.contains("No such file or directory") {
            NftError::NotFound(lines.join("; "))
        } else {
            NftError::Failed(lines.join("; "))
        })
    }
}
