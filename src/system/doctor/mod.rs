//! The checks of `doctor` that concern the machine: from the C library to the name servers.
//!
//! The checks only read. The caller passes the results that need the network: the responses of the
//! name servers, and the state of the running server.

mod installation;
mod library;
mod path;
mod port;

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{Machine, ResolvedRoutes, Root, RuntimeState};

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the check, such as `nsswitch` or `resolv.conf`.
    pub check: &'static str,
    /// Severity of the finding.
    pub level: Level,
    /// Description of the finding in one or two sentences.
    pub says: String,
    /// The command lines that fix the problem; empty if there is nothing to do.
    #[serde(rename = "type")]
    pub to_type: Vec<String>,
}

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// There is no problem.
    Ok,
    /// Names resolve, but slowly, with stale data, or not for every program.
    Warning,
    /// Names do not resolve.
    Broken,
}

impl Finding {
    /// Creates a finding of [`Level::Ok`].
    pub fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, says: says.into(), to_type: Vec::new() }
    }

    /// Creates a finding of [`Level::Warning`].
    pub fn warning(check: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::ok(check, says) }
    }

    /// Creates a finding of [`Level::Broken`].
    pub fn broken(check: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Broken, ..Self::ok(check, says) }
    }

    /// Adds a command line that fixes the problem.
    #[must_use]
    pub fn typing(mut self, line: impl Into<String>) -> Self {
        self.to_type.push(line.into());
        self
    }
}

/// The input of the checks.
#[derive(Clone, Debug)]
pub struct DoctorInput<'a> {
    /// The root of the machine's files.
    pub root: &'a Root,
    /// The processes and mounts.
    pub state: &'a RuntimeState,
    /// The machine's name resolution.
    pub machine: &'a Machine,
    /// The routes of systemd-resolved; empty if it does not run.
    pub routes: &'a ResolvedRoutes,
    /// The first zone that svcdns serves or, without a server, would serve.
    pub zone: &'a str,
    /// The running server, if any.
    pub server: Option<RunningServer<'a>>,
    /// The result of a probe of each name server.
    ///
    /// The name servers of resolv.conf, in order, and the stub of systemd-resolved if that runs.
    pub probes: &'a [(IpAddr, ProbeResult)],
}

/// The running server.
#[derive(Clone, Copy, Debug)]
pub struct RunningServer<'a> {
    /// The process ID of the server.
    pub process: u32,
    /// The addresses on which it listens.
    pub listen: &'a [SocketAddr],
}

/// The response of a name server to a query for `dns-version.<zone>` TXT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// The query reached a svcdns, directly or through a forwarder.
    Svcdns,
    /// The query reached another server; the response code as `dig` prints it.
    Code(String),
    /// There was no response.
    NoResponse,
}

/// Runs all checks, in the order in which a lookup passes the checked parts.
pub fn examine(input: &DoctorInput<'_>) -> Vec<Finding> {
    let mut findings = library::examine(input);
    findings.extend(installation::examine(input));
    findings.extend(path::examine(input));
    findings.extend(port::examine(input));
    findings
}

impl DoctorInput<'_> {
    /// Returns the result of the probe of a name server, if it was probed.
    fn probe(&self, address: IpAddr) -> Option<&ProbeResult> {
        self.probes.iter().find(|(probed, _)| *probed == address).map(|(_, result)| result)
    }

    /// Returns the name servers that the C library queries.
    fn name_servers(&self) -> Vec<IpAddr> {
        self.machine.file.conf().effective_servers()
    }

    /// Returns whether the running server listens on port 53 of this address.
    fn listens_on(&self, address: IpAddr) -> bool {
        self.server.is_some_and(|server| server.listen.contains(&SocketAddr::new(address, 53)))
    }
}
