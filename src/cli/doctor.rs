//! `svcdns doctor`: the machine's side from `system`, joined with the running server and with questions of our own.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use nix::net::if_::if_nametoindex;
use serde::Serialize;
use tokio::task::JoinSet;

use super::arguments::Doctor;
use super::client::{Client, NotRunning};
use super::{Place, output, resolve};
use crate::admin::Status;
use crate::config::Flags;
use crate::name::Name;
use crate::system::{self, Finding, Level, Machine, DoctorInput, ProbeResult, ResolvedRoutes, Root, RunningServer, RuntimeState};
use crate::wire::rcode_name;

/// A lookup that takes longer waits for somebody.
const SLOW: Duration = Duration::from_secs(1);

/// The stub of systemd-resolved.
const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// Where else a fault is looked for first: what stands in front makes what stands behind fail, too.
const CAUSES: [&str; 9] =
    ["server", "port 53", "nsswitch", "systemd-resolved", "resolv.conf", "name servers", "registry", "other names", "lookup"];

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Diagnosis {
    /// Whether nothing is broken.
    healthy: bool,
    /// The check whose fault is the likely cause of the others.
    cause: Option<&'static str>,
    findings: Vec<Finding>,
}

pub(super) async fn run(place: &Place, command: Doctor) -> anyhow::Result<ExitCode> {
    let findings = examine(place).await?;
    let rank = |finding: &&Finding| CAUSES.iter().position(|check| *check == finding.check).unwrap_or(CAUSES.len());
    let cause = findings.iter().filter(|finding| finding.level == Level::Broken).min_by_key(rank).cloned();
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

/// Every check, in the order of the way from a program to the registry; the lookup that goes all the way is the last.
async fn examine(place: &Place) -> anyhow::Result<Vec<Finding>> {
    let client = Client::find(place).await;
    let status = match &client {
        Ok(client) => client.get::<Status>("/v1/status").await.map_err(|error| format!("The running svcdns cannot be asked: {error:#}.")),
        Err(error) => Err(match error.downcast_ref::<NotRunning>() {
            Some(NotRunning { looked }) => format!("No svcdns runs ({looked})."),
            None => format!("The running svcdns cannot be looked for: {error:#}."),
        }),
    };
    // Without a server, the zone that one would serve; a mistake in the configuration is `svcdns check`'s to tell.
    let zone = match &status {
        Ok(status) => status.zones.first().cloned(),
        Err(_) => place.configure(None, Flags::default()).ok().map(|config| config.zones.first().text().to_owned()),
    };
    let zone = zone.as_deref().map_or("svc", |zone| zone.trim_end_matches('.'));

    let (root, seen) = (Root::default(), RuntimeState::now());
    let machine = system::detect(&root, &seen);
    let routes = if machine.resolved.is_some() { ResolvedRoutes::now() } else { ResolvedRoutes::default() };
    let replies = ask_all(&machine, zone).await?;
    let running = status.as_ref().ok().map(|status| RunningServer { process: status.pid, listen: &status.listen });
    let patient = DoctorInput { root: &root, state: &seen, machine: &machine, routes: &routes, zone, server: running, probes: &replies };
    let mut findings = system::examine(&patient);
    match &status {
        Ok(status) => {
            findings.extend(server(status, zone).await?);
            findings.push(other_names(status, &machine).await?);
            findings.extend(registries(status));
        }
        Err(why) => {
            let unit = root.has("/etc/systemd/system/svcdns.service");
            let start = if unit { "sudo systemctl start svcdns" } else { "svcdns serve" };
            findings.push(Finding::broken("server", why).typing(start));
        }
    }
    findings.push(lookup(zone, status.as_ref().ok()).await);
    Ok(findings)
}

/// Asks the name servers that programs ask, and systemd-resolved, who answers for our zone.
async fn ask_all(machine: &Machine, zone: &str) -> anyhow::Result<Vec<(IpAddr, ProbeResult)>> {
    let question = Name::from_text(&format!("dns-version.{zone}"))?;
    let conf = machine.file.conf();
    let index = |name: &str| if_nametoindex(name).ok();
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let stub = machine.resolved.is_some().then_some(STUB);
    for address in conf.effective_servers().into_iter().chain(stub) {
        let scoped = conf.name_servers().find(|server| server.address == address).and_then(|server| server.socket_address(index));
        let address = scoped.unwrap_or_else(|| SocketAddr::new(address, 53));
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let mut asked = JoinSet::new();
    for address in addresses {
        asked.spawn(async move { (address.ip(), reply(address, &question).await) });
    }
    Ok(asked.join_all().await)
}

async fn reply(address: SocketAddr, question: &Name) -> ProbeResult {
    let Ok(answer) = resolve::ask(address, question, RecordType::TXT).await else { return ProbeResult::NoResponse };
    let code = answer.metadata.response_code;
    // A server that validates may hand out what it does not believe, as SERVFAIL.
    let is_ours = code == ResponseCode::NoError
        && answer.answers.iter().any(|record| match &record.data {
            RData::TXT(txt) => txt.txt_data.iter().any(|text| text.starts_with(b"svcdns ")),
            _ => false,
        });
    if is_ours { ProbeResult::Svcdns } else { ProbeResult::Code(rcode_name(code.into()).into_owned()) }
}

/// The running server: whether it answers where it says.
async fn server(status: &Status, zone: &str) -> anyhow::Result<Vec<Finding>> {
    const CHECK: &str = "server";
    let listen: Vec<String> = status.listen.iter().map(ToString::to_string).collect();
    let is = format!("svcdns {} runs (process {}), answers on {} and serves {zone}", status.version, status.pid, listen.join(", "));
    let mut findings = Vec::new();
    let question = Name::from_text(&format!("dns-version.{zone}"))?;
    for &address in &status.listen {
        let finding = match reply(address, &question).await {
            ProbeResult::Svcdns => continue,
            ProbeResult::NoResponse => Finding::broken(CHECK, format!("svcdns (process {}) does not answer at {address}.", status.pid))
                .typing("sudo systemctl restart svcdns"),
            ProbeResult::Code(code) if code == "REFUSED" && !address.ip().is_loopback() => {
                let says =
                    format!("svcdns refuses this machine's own questions at {address}: its access rules leave {} out.", address.ip());
                Finding::warning(CHECK, says).typing(format!(
                    "svcdns serve --allow {}/{} …",
                    address.ip(),
                    if address.is_ipv4() { 32 } else { 128 }
                ))
            }
            ProbeResult::Code(code) => {
                Finding::broken(CHECK, format!("At {address}, where svcdns says that it answers, somebody else does ({code})."))
                    .typing("sudo svcdns doctor")
            }
        };
        findings.push(finding);
    }
    let own = env!("CARGO_PKG_VERSION");
    if status.version == own {
        findings.insert(0, Finding::ok(CHECK, format!("{is}.")));
    } else {
        findings.insert(0, Finding::warning(CHECK, format!("{is}; this program is {own}.")).typing("sudo systemctl restart svcdns"));
    }
    Ok(findings)
}

/// Names outside the zone: whether they are found although svcdns is asked.
async fn other_names(status: &Status, machine: &Machine) -> anyhow::Result<Finding> {
    const CHECK: &str = "other names";
    let Some(&address) = status.listen.first() else { return Ok(Finding::ok(CHECK, "svcdns listens nowhere.")) };
    let asked = machine.file.conf().effective_servers();
    let alone = asked.iter().all(|server| status.listen.contains(&SocketAddr::new(*server, 53)));
    if status.forwarding.is_none() {
        let says = "svcdns is the only name server that programs ask, and passes no other names on (`upstream` is off): no name of the \
                    Internet is found.";
        let left = "svcdns passes no other names on; they are left to the machine's other name servers.";
        return Ok(if alone { Finding::broken(CHECK, says).typing("svcdns check") } else { Finding::ok(CHECK, left) });
    }
    let answer = resolve::ask(address, &Name::from_text(".")?, RecordType::NS).await;
    Ok(match answer.map(|answer| answer.metadata.response_code) {
        Ok(ResponseCode::NoError | ResponseCode::NXDomain) => Finding::ok(CHECK, "svcdns passes other names on, and they are answered."),
        Ok(code) => {
            let says = format!(
                "svcdns passes other names on, and they fail ({}): its upstreams refuse or are not reached.",
                rcode_name(code.into())
            );
            broken_if(alone, CHECK, says).typing("svcdns status")
        }
        Err(_) => {
            broken_if(alone, CHECK, "svcdns does not answer in time when it is asked for another name.".to_owned()).typing("svcdns status")
        }
    })
}

fn broken_if(broken: bool, check: &'static str, says: String) -> Finding {
    if broken { Finding::broken(check, says) } else { Finding::warning(check, says) }
}

/// What the running server says of its registries.
fn registries(status: &Status) -> Vec<Finding> {
    const CHECK: &str = "registry";
    let mut findings: Vec<Finding> = Vec::new();
    for registry in &status.registries {
        let why = registry.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        let name = &registry.name;
        findings.push(if !registry.synced {
            Finding::broken(CHECK, format!("{name} could not be read yet{why}.")).typing("svcdns status")
        } else if !registry.connected {
            let says = format!("{name} cannot be reached now{why}. Names are answered as they were last known.");
            Finding::warning(CHECK, says).typing("svcdns status")
        } else if registry.keys == 0 {
            Finding::warning(CHECK, format!("{name} is read, and nothing is registered there.")).typing("svcdns ls --rejected")
        } else {
            let (keys, instances) =
                (output::counted(registry.keys as u64, "key", "keys"), output::counted(registry.instances as u64, "instance", "instances"));
            Finding::ok(CHECK, format!("{name} is read: {keys}, {instances}."))
        });
    }
    if status.rejected > 0 {
        let rejected = output::counted(status.rejected, "key or endpoint", "keys and endpoints");
        findings.push(Finding::warning(CHECK, format!("{rejected} cannot be served.")).typing("svcdns ls --rejected"));
    }
    findings
}

/// A name looked up as any program would.
async fn lookup(zone: &str, status: Option<&Status>) -> Finding {
    const CHECK: &str = "lookup";
    let name = format!("ns.{zone}");
    let (began, asked) = (Instant::now(), name.clone());
    // In a thread of its own: it waits for the C library.
    let found = tokio::task::spawn_blocking(move || system::look_up(&Root::default(), &asked)).await;
    let took = began.elapsed();
    let seconds = format!("{:.1} s", took.as_secs_f64());
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(why)) => return Finding::broken(CHECK, format!("Programs do not find {name} ({why}, {seconds}).")),
        Err(_) => return Finding::warning(CHECK, format!("Looking up {name} was broken off.")),
    };
    let right = |address: &IpAddr| status.is_none_or(|status| status.listen.iter().any(|listen| listen.ip() == *address));
    let addresses = found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !found.iter().any(right) {
        return Finding::broken(
            CHECK,
            format!("Programs find {name} at {addresses}, where the running svcdns does not answer: somebody else told them."),
        );
    }
    if took > SLOW {
        return Finding::warning(CHECK, format!("Programs find {name}, and wait {seconds} for it."));
    }
    Finding::ok(CHECK, format!("Programs find {name} at {addresses}, in {seconds}."))
}

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
        Some(cause) => writeln!(text, "\nThe likely cause: {}: {}", cause.check, cause.says),
        None if warnings > 0 => writeln!(text, "\nNothing is broken; {}.", output::counted(warnings, "warning", "warnings")),
        None => writeln!(text, "\nNothing is broken."),
    };
    if let Some(cause) = cause {
        for line in &cause.to_type {
            let _ = writeln!(text, "  $ {line}");
        }
    }
    text
}
