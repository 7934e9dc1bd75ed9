//! What is wrong on the way of a lookup, as far as the machine itself shows it: from the C library to the name servers.
//!
//! Looks only. What was asked over the network, and what the running server says of itself, is handed in.

mod library;
mod path;
mod port;

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{Machine, Root, Routes, Seen};

/// What was found out about one step of the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The step: `nsswitch`, `resolv.conf`.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found, in one sentence or two.
    pub says: String,
    /// What to type, line by line; empty where nothing is to be done.
    #[serde(rename = "type")]
    pub to_type: Vec<String>,
}

/// How a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Names are found, but not by all programs, or slowly, or not for long.
    Warning,
    /// Names are not found.
    Broken,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, says: says.into(), to_type: Vec::new() }
    }

    /// Worth a look.
    pub fn warning(check: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::ok(check, says) }
    }

    /// Names are not found for this.
    pub fn broken(check: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Broken, ..Self::ok(check, says) }
    }

    /// With one more line to type.
    #[must_use]
    pub fn typing(mut self, line: impl Into<String>) -> Self {
        self.to_type.push(line.into());
        self
    }
}

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Patient<'a> {
    /// Where the machine's files are.
    pub root: &'a Root,
    /// What runs.
    pub seen: &'a Seen,
    /// Who owns name resolution.
    pub machine: &'a Machine,
    /// Where systemd-resolved sends questions; empty where it does not run.
    pub routes: &'a Routes,
    /// The first zone that svcdns serves, or would.
    pub zone: &'a str,
    /// The running server, where there is one.
    pub server: Option<Running<'a>>,
    /// What each name server that was asked for our zone said: those that programs ask, in their order, and systemd-resolved's
    /// own address where that runs.
    pub replies: &'a [(IpAddr, Reply)],
}

/// The running server.
#[derive(Clone, Copy, Debug)]
pub struct Running<'a> {
    /// Its process.
    pub process: u32,
    /// Where it answers.
    pub listen: &'a [SocketAddr],
}

/// What a name server said when it was asked for the version of svcdns (`dns-version.<zone>`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A svcdns, or somebody who passed the question on to one.
    Svcdns,
    /// Something else: the response code as `dig` names it.
    Code(String),
    /// Nothing.
    Silence,
}

/// Examines the machine's side, every step of it, in the order of the way.
pub fn examine(patient: &Patient<'_>) -> Vec<Finding> {
    let mut findings = library::examine(patient);
    findings.extend(path::examine(patient));
    findings.extend(port::examine(patient));
    findings
}

impl Patient<'_> {
    /// What this name server said.
    fn reply(&self, address: IpAddr) -> Option<&Reply> {
        self.replies.iter().find(|(asked, _)| *asked == address).map(|(_, reply)| reply)
    }

    /// The name servers that programs ask: those in resolv.conf that count, or the one that stands for none.
    fn name_servers(&self) -> Vec<IpAddr> {
        self.machine.file.conf().effective_servers()
    }
}
