//! The check of `doctor` that concerns the port bridge: whether connections to its pool reach it.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::output::counted;
use crate::admin::ServerStatus;
use crate::system::{BoundSocket, Finding, Root, find_open_sockets};

/// The name of the check.
pub(super) const CHECK: &str = "port bridge";

/// The places of the program that changes the kernel's rules.
const NFT: [&str; 3] = ["/usr/sbin/nft", "/usr/bin/nft", "/sbin/nft"];

/// The number of the capability to change the kernel's rules (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// Longest wait for the bridge to accept or reset a connection.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Port of the probe, tcpmux; no address that the probe uses has an instance.
const PROBE_PORT: u16 = 1;

/// Checks the bridge of a running server; finds nothing if it is not configured.
pub(super) async fn examine(status: &ServerStatus) -> Vec<Finding> {
    let Some(bridge) = &status.bridge else { return Vec::new() };
    let pool = match (&bridge.error, bridge.pool.parse::<Ipv4Net>()) {
        (None, Ok(pool)) => pool,
        (error, _) => return vec![explain_off(error.as_deref(), status.pid)],
    };
    let is_redirected = bridge.mode == "redirected";
    let names = counted(bridge.names as u64, "name", "names");
    let mut findings = vec![if is_redirected {
        // No name has the last address: the bridge resets a connection to it.
        match probe(SocketAddr::from((pool.broadcast(), PROBE_PORT))).await {
            Reached::Bridge => Finding::ok(
                CHECK,
                format!("The kernel redirects connections to {pool} to the bridge; {names}."),
            ),
            Reached::Nothing(reason) => lost(&format!(
                "svcdns gives addresses in {pool} to clients, but connections to them do not reach \
                 its port bridge ({reason}): its table in the kernel is gone, as after `nft flush \
                 ruleset`."
            )),
            Reached::Other => lost(&format!(
                "svcdns gives addresses in {pool} to clients, but another program of this machine \
                 accepts connections to them: the bridge's table in the kernel is gone, as after \
                 `nft flush ruleset`."
            )),
        }
    } else {
        let says = format!("svcdns has bound ports at the addresses in {pool} of {names}.");
        Finding::ok(CHECK, says)
    }];
    findings.extend(others_in(pool, status.pid).map(|socket| {
        let owner = match &socket.owner {
            Some(owner) => owner.to_string(),
            None => format!("A process of user {}", socket.user),
        };
        let effect = if is_redirected {
            "unless it did when svcdns started, connections to it reach the bridge instead"
        } else {
            "the bridge may give the address to a service"
        };
        let says = format!(
            "{owner} listens on {}, in the bridge's pool {pool}: {effect}. Choose another \
             `bridge.pool`.",
            socket.address
        );
        Finding::warning(CHECK, says)
    }));
    findings
}

/// Explains why no client gets an address of the bridge, although it is configured.
fn explain_off(error: Option<&str>, server: u32) -> Finding {
    let reason = error.unwrap_or("the reason is unknown");
    let says = format!("The bridge is off, so clients need the ports of services: {reason}.");
    let finding = Finding::warning(CHECK, says);
    let root = Root::default();
    if !NFT.iter().any(|program| root.has(program)) {
        let install = "sudo apt-get install nftables";
        finding.typing(install).typing("sudo systemctl restart svcdns")
    } else if has_capability(server, CAP_NET_ADMIN) == Some(false) {
        finding.typing("sudo svcdns install --bridge")
    } else {
        finding
    }
}

/// Creates the finding for a bridge that connections do not reach.
fn lost(says: &str) -> Finding {
    Finding::broken(CHECK, says).typing("sudo systemctl restart svcdns")
}

/// Returns whether a process has a capability now; `None` if that cannot be read.
fn has_capability(process: u32, capability: u32) -> Option<bool> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask & (1 << capability) != 0)
}

/// Returns the sockets of other programs that receive at an address of the pool.
fn others_in(pool: Ipv4Net, server: u32) -> impl Iterator<Item = BoundSocket> {
    // Only root sees which process has a socket. Its user tells as much, unless it is root.
    let user = fs::metadata(Path::new("/proc").join(server.to_string())).map(|it| it.uid()).ok();
    let in_pool = move |ip: IpAddr| matches!(ip, IpAddr::V4(ip) if pool.contains(&ip));
    find_open_sockets(in_pool).into_iter().filter(move |socket| match &socket.owner {
        Some(owner) => owner.process != server,
        None => Some(socket.user) != user,
    })
}

/// What a connection to the pool reached.
#[derive(Debug)]
enum Reached {
    /// The bridge, which reset it.
    Bridge,
    /// Nothing, for this reason.
    Nothing(io::Error),
    /// Another program, which kept it open or ended it.
    Other,
}

/// Connects to an address of the pool that leads to no instance.
async fn probe(address: SocketAddr) -> Reached {
    let connecting = tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(address));
    let mut stream = match connecting.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => return Reached::Bridge,
        Ok(Err(error)) => return Reached::Nothing(error),
        Err(_) => return Reached::Nothing(ErrorKind::TimedOut.into()),
    };
    match tokio::time::timeout(PROBE_TIMEOUT, stream.read(&mut [0])).await {
        Ok(Err(_)) => Reached::Bridge,
        Ok(Ok(_)) | Err(_) => Reached::Other,
    }
}
