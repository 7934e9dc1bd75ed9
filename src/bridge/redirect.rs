//! The rule of the kernel that redirects connections to the pool to one listener (nftables).
//!
//! The rule is in a table of its own, named after the pool. The `nft` program takes one document
//! of JSON (libnftables-json(5)) and applies it as a whole or not at all. A table that a killed
//! server left behind is replaced at the next start.

use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Longest time that `nft` may take.
const NFT_TIMEOUT: Duration = Duration::from_secs(10);

/// Beginning of the names of all tables of bridges; the pool follows.
const TABLE_PREFIX: &str = "svcdns_bridge_";

/// The directories of administrators' programs, which are not on every PATH.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The table of a bridge, in the kernel until [`Self::remove`].
#[derive(Debug)]
pub(super) struct Redirect {
    nft: PathBuf,
    table: String,
}

/// Reason why connections cannot be redirected.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
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
    /// The program failed; what it said.
    #[error("nft failed: {0}")]
    Failed(String),
}

impl Redirect {
    /// Redirects connections from this machine to the pool to `listener`.
    ///
    /// # Errors
    /// If `nft` is missing, fails, or is not permitted to change the rules.
    pub(super) async fn install(
        pool: Ipv4Net,
        listener: SocketAddrV4,
    ) -> Result<Self, RedirectError> {
        let nft = find_nft().ok_or(RedirectError::NoProgram)?;
        let redirect = Self { nft, table: table_name(pool) };
        run(&redirect.nft, &install_commands(&redirect.table, pool, listener)).await?;
        Ok(redirect)
    }

    /// Removes the table.
    ///
    /// # Errors
    /// If `nft` fails.
    pub(super) async fn remove(self) -> Result<(), RedirectError> {
        run(&self.nft, &json!({ "nftables": removal(&self.table) })).await
    }
}

/// Returns the name of the table of a pool.
pub fn table_name(pool: Ipv4Net) -> String {
    let pool = pool.trunc().to_string().replace(['.', '/'], "_");
    format!("{TABLE_PREFIX}{pool}")
}

/// Returns the commands that remove a table, which may be missing.
fn removal(table: &str) -> [Value; 2] {
    let table = json!({ "table": { "family": "ip", "name": table } });
    // Adding it first keeps the removal from failing.
    [json!({ "add": table }), json!({ "delete": table })]
}

/// Returns the commands that replace the table.
fn install_commands(table: &str, pool: Ipv4Net, listener: SocketAddrV4) -> Value {
    let pool = pool.trunc();
    let network = json!({ "prefix": { "addr": pool.addr(), "len": pool.prefix_len() } });
    let expressions = json!([
        { "match": { "op": "==", "left": header_field("ip", "daddr"), "right": network } },
        { "match": { "op": "!=", "left": header_field("tcp", "dport"), "right": 0 } },
        { "dnat": { "addr": listener.ip(), "port": listener.port() } },
    ]);
    let chain = json!({ "chain": {
        "family": "ip", "table": table, "name": "output",
        "type": "nat", "hook": "output", "prio": -100, "policy": "accept",
    } });
    let rule = json!({ "rule": {
        "family": "ip", "table": table, "chain": "output", "expr": expressions,
    } });
    let [add, delete] = removal(table);
    json!({ "nftables": [add.clone(), delete, add, { "add": chain }, { "add": rule }] })
}

/// Returns the expression for a field of a packet's headers.
fn header_field(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

/// Returns the path of `nft`, if it is installed.
fn find_nft() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = SYSTEM_DIRECTORIES.into_iter().map(PathBuf::from);
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain(system)
        .map(|directory| directory.join("nft"))
        .find(|file| file.is_file())
}

/// Applies commands.
async fn run(nft: &Path, commands: &Value) -> Result<(), RedirectError> {
    let failed = |error| RedirectError::Run { program: nft.to_owned(), error };
    let mut child = Command::new(nft)
        .args(["-j", "-f", "-"])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // If the program ends early, its status and its message say why.
        let _ = input.write_all(commands.to_string().as_bytes()).await;
    }
    let output = tokio::time::timeout(NFT_TIMEOUT, child.wait_with_output())
        .await
        .map_err(|_| RedirectError::Timeout)?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(if message.contains("Operation not permitted") {
        RedirectError::NotPermitted
    } else {
        let lines: Vec<_> =
            message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        RedirectError::Failed(lines.join("; "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_named_after_the_pool() {
        assert_eq!(table_name("127.83.0.0/16".parse().unwrap()), "svcdns_bridge_127_83_0_0_16");
        assert_eq!(table_name("127.83.1.2/16".parse().unwrap()), "svcdns_bridge_127_83_0_0_16");
    }

    #[test]
    fn one_document_replaces_the_table() {
        let listener = "127.83.0.0:40000".parse().unwrap();
        let commands = install_commands("t", "127.83.0.0/16".parse().unwrap(), listener);
        let verbs: Vec<_> = commands["nftables"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|command| command.as_object().unwrap())
            .map(|(verb, object)| {
                format!("{verb} {}", object.as_object().unwrap().keys().next().unwrap())
            })
            .collect();
        assert_eq!(verbs, ["add table", "delete table", "add table", "add chain", "add rule"]);
        let target = &commands["nftables"][4]["add"]["rule"]["expr"][2]["dnat"];
        assert_eq!(*target, json!({ "addr": "127.83.0.0", "port": 40000 }));
    }
}
