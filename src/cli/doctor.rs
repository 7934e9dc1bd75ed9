//! `svcdns doctor`: checks every step of name resolution on this machine.
//!
//! `system` checks the machine. This module sends queries, and adds the checks of the running
//! server.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use nix::net::if_::if_nametoindex;
use serde::Serialize;
use tokio::task::JoinSet;

use super::arguments::DoctorArgs;
use super::client::{AdminClient, NotRunning};
use super::{ServerLocation, bridge_check, output, resolve};
use crate::admin::ServerStatus;
use crate::config::Flags;
use crate::name::Name;
use crate::system::{
    self, DoctorInput, Finding, Level, Machine, ProbeResult, ResolvedRoutes, Root, RunningServer,
    RuntimeState,
};
use crate::wire::rcode_name;

/// Minimum duration of a lookup that causes a warning: some resolver timed out.
const SLOW_LOOKUP: Duration = Duration::from_secs(1);

/// Address of systemd-resolved's stub.
const RESOLVED_STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// Names of the checks; if several are broken, the first is the likely cause.
///
/// A broken check makes later ones fail too.
const LIKELY_CAUSES: [&str; 11] = [
    "installation",
    "server",
    "port 53",
    "nsswitch",
    "systemd-resolved",
    "resolv.conf",
    "name servers",
    "registry",
    "other names",
    "lookup",
    bridge_check::CHECK,
];

/// The output of `--json`.
#[derive(Debug, Serialize)]
struct Diagnosis {
    /// Whether nothing is broken.
    healthy: bool,
    /// The broken check that is the likely cause of the others, if any is broken.
    cause: Option<&'static str>,
    findings: Vec<Finding>,
}

pub(super) async fn run(
    location: &ServerLocation,
    command: DoctorArgs,
) -> anyhow::Result<ExitCode> {
    let findings = examine(location).await?;
    let rank = |finding: &&Finding| {
        let position = LIKELY_CAUSES.iter().position(|check| *check == finding.check);
        position.unwrap_or(LIKELY_CAUSES.len())
    };
    let broken = findings.iter().filter(|finding| finding.level == Level::Broken);
    let cause = broken.min_by_key(rank).cloned();
    let code = if cause.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let text = if command.json {
        let cause = cause.map(|cause| cause.check);
        serde_json::to_string(&Diagnosis { healthy: cause.is_none(), cause, findings })? + "\n"
    } else {
        text(&findings, cause.as_ref())
    };
    output::print(&text)?;
    Ok(code)
}

/// Runs all checks, in the order of the path from a program to the registry.
///
/// The last one is a lookup, which takes the whole path.
async fn examine(location: &ServerLocation) -> anyhow::Result<Vec<Finding>> {
    let status = server_status(location).await;
    // Without a server, use the zone that a server would have. `check` reports invalid settings.
    let zone = if let Ok(status) = &status {
        status.zones.first().cloned()
    } else {
        let config = location.configure(None, Flags::default()).ok();
        config.map(|config| config.zones.first().text().to_owned())
    };
    let zone = zone.as_deref().map_or("svc", |zone| zone.trim_end_matches('.'));

    let (root, seen) = (Root::default(), RuntimeState::now());
    let machine = system::detect(&root, &seen);
    let routes =
        if machine.resolved.is_some() { ResolvedRoutes::now() } else { ResolvedRoutes::default() };
    let replies = query_name_servers(&machine, zone).await?;
    let running = status
        .as_ref()
        .ok()
        .map(|status| RunningServer { process: status.pid, listen: &status.listen });
    let patient = DoctorInput {
        root: &root,
        state: &seen,
        machine: &machine,
        routes: &routes,
        zone,
        server: running,
        probes: &replies,
    };
    let mut findings = system::examine(&patient);
    match &status {
        Ok(status) => {
            findings.extend(server(status, zone).await?);
            findings.push(other_names(status, &machine).await?);
            findings.extend(registries(status));
            findings.extend(bridge_check::examine(status).await);
        }
        Err(reason) => {
            let unit = root.has("/etc/systemd/system/svcdns.service");
            let start = if unit { "sudo systemctl start svcdns" } else { "svcdns serve" };
            findings.push(Finding::broken("server", reason).typing(start));
        }
    }
    findings.push(lookup(zone, status.as_ref().ok()).await);
    Ok(findings)
}

/// Returns the status of the running server, or a sentence with the reason.
async fn server_status(location: &ServerLocation) -> Result<ServerStatus, String> {
    match AdminClient::find(location).await {
        Ok(client) => {
            let status = client.get("/v1/status").await;
            status
                .map_err(|error| format!("The running svcdns does not give its status: {error:#}."))
        }
        Err(error) => Err(match error.downcast_ref::<NotRunning>() {
            Some(NotRunning { searched }) => format!("No svcdns is running ({searched})."),
            None => format!("The running svcdns cannot be found: {error:#}."),
        }),
    }
}

/// Queries each name server of this machine for the version of svcdns.
///
/// The responses show which of them lead to svcdns. systemd-resolved is queried too.
async fn query_name_servers(
    machine: &Machine,
    zone: &str,
) -> anyhow::Result<Vec<(IpAddr, ProbeResult)>> {
    let name = Name::from_text(&format!("dns-version.{zone}"))?;
    let conf = machine.file.conf();
    let index = |interface: &str| if_nametoindex(interface).ok();
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let stub = machine.resolved.is_some().then_some(RESOLVED_STUB);
    for address in conf.effective_servers().into_iter().chain(stub) {
        let scoped = conf
            .name_servers()
            .find(|server| server.address == address)
            .and_then(|server| server.socket_address(index));
        let address = scoped.unwrap_or_else(|| SocketAddr::new(address, 53));
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let mut queries = JoinSet::new();
    for address in addresses {
        queries.spawn(async move { (address.ip(), reply(address, &name).await) });
    }
    Ok(queries.join_all().await)
}

/// Queries `name` for TXT, the version of svcdns, and classifies the response.
async fn reply(address: SocketAddr, name: &Name) -> ProbeResult {
    let Ok(response) = resolve::query(address, name, RecordType::TXT).await else {
        return ProbeResult::NoResponse;
    };
    let code = response.metadata.response_code;
    // A validating server may send records that failed validation along with SERVFAIL.
    let is_ours = code == ResponseCode::NoError
        && response.answers.iter().any(|record| match &record.data {
            RData::TXT(txt) => txt.txt_data.iter().any(|text| text.starts_with(b"svcdns ")),
            _ => false,
        });
    if is_ours {
        ProbeResult::Svcdns
    } else {
        ProbeResult::Code(rcode_name(code.into()).into_owned())
    }
}

/// Checks that the running server answers on each address that it listens on.
async fn server(status: &ServerStatus, zone: &str) -> anyhow::Result<Vec<Finding>> {
    const CHECK: &str = "server";
    let listen: Vec<String> = status.listen.iter().map(ToString::to_string).collect();
    let summary = format!(
        "svcdns {} (process {}) listens on {} and serves {zone}",
        status.version,
        status.pid,
        listen.join(", ")
    );
    let mut findings = Vec::new();
    let name = Name::from_text(&format!("dns-version.{zone}"))?;
    for &address in &status.listen {
        let finding = match reply(address, &name).await {
            ProbeResult::Svcdns => continue,
            ProbeResult::NoResponse => {
                let says =
                    format!("svcdns (process {}) does not respond on {address}.", status.pid);
                Finding::broken(CHECK, says).typing("sudo systemctl restart svcdns")
            }
            ProbeResult::Code(code) if code == "REFUSED" && !address.ip().is_loopback() => {
                let says = format!(
                    "svcdns refuses queries from this machine on {address}: no `allow` rule \
                     covers {}.",
                    address.ip()
                );
                let prefix = if address.is_ipv4() { 32 } else { 128 };
                let line = format!("svcdns serve --allow {}/{prefix} …", address.ip());
                Finding::warning(CHECK, says).typing(line)
            }
            ProbeResult::Code(code) => {
                let says = format!(
                    "Another server answers on {address} ({code}), although svcdns listens there."
                );
                Finding::broken(CHECK, says).typing("sudo svcdns doctor")
            }
        };
        findings.push(finding);
    }
    let own = env!("CARGO_PKG_VERSION");
    let first = if status.version == own {
        Finding::ok(CHECK, format!("{summary}."))
    } else {
        let says = format!("{summary}; this program is version {own}.");
        Finding::warning(CHECK, says).typing("sudo systemctl restart svcdns")
    };
    findings.insert(0, first);
    Ok(findings)
}

/// Checks that names outside the served zones resolve.
async fn other_names(status: &ServerStatus, machine: &Machine) -> anyhow::Result<Finding> {
    const CHECK: &str = "other names";
    let Some(&address) = status.listen.first() else {
        return Ok(Finding::ok(CHECK, "svcdns listens on no address."));
    };
    let servers = machine.file.conf().effective_servers();
    let alone = servers.iter().all(|server| status.listen.contains(&SocketAddr::new(*server, 53)));
    if status.forwarding.is_none() {
        return Ok(if alone {
            let says = "svcdns is this machine's only name server and does not forward \
                        (`upstream` is off): no name of the Internet is found.";
            Finding::broken(CHECK, says).typing("svcdns check")
        } else {
            let says = "svcdns does not forward other names; they are left to the machine's \
                        other name servers.";
            Finding::ok(CHECK, says)
        });
    }
    let response = resolve::query(address, &Name::from_text(".")?, RecordType::NS).await;
    Ok(match response.map(|response| response.metadata.response_code) {
        Ok(ResponseCode::NoError | ResponseCode::NXDomain) => {
            Finding::ok(CHECK, "svcdns forwards other names, and an upstream answers.")
        }
        Ok(code) => {
            let says = format!(
                "svcdns forwards other names, and they fail ({}): its upstreams refuse them or \
                 cannot be reached.",
                rcode_name(code.into())
            );
            broken_if(alone, CHECK, says).typing("svcdns status")
        }
        Err(_) => {
            let says = "svcdns does not respond in time to queries for other names.";
            broken_if(alone, CHECK, says.to_owned()).typing("svcdns status")
        }
    })
}

fn broken_if(broken: bool, check: &'static str, says: String) -> Finding {
    if broken { Finding::broken(check, says) } else { Finding::warning(check, says) }
}

/// Reports on the registries of the running server.
fn registries(status: &ServerStatus) -> Vec<Finding> {
    const CHECK: &str = "registry";
    let mut findings: Vec<Finding> = Vec::new();
    for registry in &status.registries {
        let reason = registry.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        let name = &registry.name;
        findings.push(if registry.is_unread() {
            let says = format!("{name} could not be read yet{reason}.");
            Finding::broken(CHECK, says).typing("svcdns status")
        } else if !registry.connected {
            let says = format!("{name} is unreachable{reason}. Responses use its last known data.");
            Finding::warning(CHECK, says).typing("svcdns status")
        } else if let Some(error) = &registry.error {
            let says = format!("{name} was read, but {error}.");
            Finding::warning(CHECK, says).typing("svcdns status")
        } else if registry.keys == 0 {
            let says = format!("{name} was read, and nothing is registered there.");
            Finding::warning(CHECK, says).typing("svcdns ls --rejected")
        } else {
            let keys = output::counted(registry.keys as u64, "key", "keys");
            let instances = output::counted(registry.instances as u64, "instance", "instances");
            Finding::ok(CHECK, format!("{name} was read: {keys}, {instances}."))
        });
    }
    if status.rejected > 0 {
        let rejected = output::counted(status.rejected, "key or endpoint", "keys and endpoints");
        let says = format!("{rejected} cannot be served.");
        findings.push(Finding::warning(CHECK, says).typing("svcdns ls --rejected"));
    }
    findings
}

/// Looks up the server's own name as programs do: through the C library.
async fn lookup(zone: &str, status: Option<&ServerStatus>) -> Finding {
    const CHECK: &str = "lookup";
    let name = format!("ns.{zone}");
    let (start, wanted) = (Instant::now(), name.clone());
    // The C library blocks its thread.
    let looked_up =
        tokio::task::spawn_blocking(move || system::look_up(&Root::default(), &wanted)).await;
    let took = start.elapsed();
    let seconds = format!("{:.1} s", took.as_secs_f64());
    let found = match looked_up {
        Ok(Ok(found)) => found,
        Ok(Err(reason)) => {
            let says = format!("Programs do not find {name} ({reason}, {seconds}).");
            return Finding::broken(CHECK, says);
        }
        Err(_) => {
            return Finding::warning(CHECK, format!("The lookup of {name} was interrupted."));
        }
    };
    let is_ours = |address: &IpAddr| {
        status.is_none_or(|status| status.listen.iter().any(|listen| listen.ip() == *address))
    };
    let addresses = found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !found.iter().any(is_ours) {
        let says = format!(
            "Programs find {name} at {addresses}, which is not the running svcdns: another name \
             server answered."
        );
        return Finding::broken(CHECK, says);
    }
    if took > SLOW_LOOKUP {
        let says = format!("Programs find {name}, but only after {seconds}.");
        return Finding::warning(CHECK, says);
    }
    Finding::ok(CHECK, format!("Programs find {name} at {addresses}, in {seconds}."))
}

/// Formats the findings, then the likely cause with the commands that fix it.
fn text(findings: &[Finding], cause: Option<&Finding>) -> String {
    let mut text = String::new();
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Broken => "BROKEN",
        };
        let _ = writeln!(text, "{level:7}  {:width$}  {}", finding.check, finding.says);
        for line in &finding.to_type {
            let _ = writeln!(text, "{:width$}             $ {line}", "");
        }
    }
    let warnings = findings.iter().filter(|finding| finding.level == Level::Warning).count() as u64;
    let _ = match cause {
        Some(cause) => writeln!(text, "\nLikely cause: {}: {}", cause.check, cause.says),
        None if warnings > 0 => {
            let warnings = output::counted(warnings, "warning", "warnings");
            writeln!(text, "\nNothing is broken; {warnings}.")
        }
        None => writeln!(text, "\nNothing is broken."),
    };
    if let Some(cause) = cause {
        for line in &cause.to_type {
            let _ = writeln!(text, "  $ {line}");
        }
    }
    text
}
