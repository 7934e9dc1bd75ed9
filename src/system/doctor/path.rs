//! Checks of resolv.conf, its name servers and systemd-resolved: do queries reach svcdns?

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{DoctorInput, Finding, Level, ProbeResult};
use crate::resolv_conf::{MAX_NAME_SERVERS, MAX_RESOLV_CONF_BYTES, RESOLV_CONF};
use crate::system::detect::WSL_CONF;
use crate::system::resolved_routes::is_exempt;
use crate::system::{LineState, ResolvConfContent, ResolvedAccess, ResolvedScope, ResolverManager};

/// The checks of this file.
const RESOLV_CONF_CHECK: &str = "resolv.conf";
const NAME_SERVERS: &str = "name servers";
const RESOLVED: &str = "systemd-resolved";

/// The addresses of the stub of systemd-resolved.
const STUBS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// Maximum `ndots` at which `hello.svc` is tried before the search list.
const MAX_NDOTS: u32 = 1;

/// Command that several findings suggest.
const INSTALL: &str = "sudo svcdns install";
const RUN: &str = "svcdns run -- COMMAND   # for one command, nothing else changed";

pub(super) fn examine(input: &DoctorInput<'_>) -> Vec<Finding> {
    let mut findings = check_resolv_conf(input);
    findings.extend(check_installed_line(input));
    findings.extend(check_wsl(input));
    findings.extend(check_name_servers(input));
    findings.extend(check_resolved(input));
    findings
}

fn check_resolv_conf(input: &DoctorInput<'_>) -> Vec<Finding> {
    let file = &input.machine.file;
    let name = if file.is_link {
        format!("{RESOLV_CONF} (a link to {})", file.target.display())
    } else {
        RESOLV_CONF.to_owned()
    };
    let unusable = |problem: String, command: &str| {
        let says = format!("{name} {problem}.");
        vec![Finding::broken(RESOLV_CONF_CHECK, says).typing(format!("{command} {RESOLV_CONF}"))]
    };
    match &file.content {
        ResolvConfContent::File(_) => {}
        ResolvConfContent::Missing => {
            let says = format!("{name} does not exist: programs query 127.0.0.1 port 53.");
            return vec![Finding::warning(RESOLV_CONF_CHECK, says).typing(INSTALL)];
        }
        ResolvConfContent::Unreadable(error) => {
            return unusable(format!("cannot be read: {error}"), "ls -lL");
        }
        ResolvConfContent::NotAFile => return unusable("is not a file".to_owned(), "ls -lL"),
        ResolvConfContent::TooLong => {
            let problem = format!(
                "has more than {MAX_RESOLV_CONF_BYTES} bytes (a fixed limit), too many for a \
                 resolv.conf"
            );
            return unusable(problem, "head");
        }
    }
    let conf = file.conf();
    let servers: Vec<String> =
        conf.name_servers().map(|server| server.address.to_string()).collect();
    let mut findings = Vec::new();
    if servers.is_empty() {
        let says = format!("{name} has no name server: programs query 127.0.0.1 port 53.");
        findings.push(Finding::warning(RESOLV_CONF_CHECK, says).typing(INSTALL));
    } else {
        let manager = match input.machine.manager {
            ResolverManager::Nothing => "no program manages the file".to_owned(),
            manager => format!("name resolution is managed by {manager}"),
        };
        let says = format!("{name} names {}; {manager}.", servers.join(", "));
        findings.push(Finding::ok(RESOLV_CONF_CHECK, says));
    }
    if servers.len() > MAX_NAME_SERVERS {
        let ignored = servers[MAX_NAME_SERVERS..].join(", ");
        let says = format!(
            "Programs use only the first {MAX_NAME_SERVERS} name servers, and never query \
             {ignored}."
        );
        findings.push(Finding::warning(RESOLV_CONF_CHECK, says));
    }
    for (line, fault) in conf.faults() {
        let says = format!("Line {line} of {RESOLV_CONF} is ignored by all programs: {fault}.");
        findings.push(
            Finding::warning(RESOLV_CONF_CHECK, says)
                .typing(format!("sed -n {line}p {RESOLV_CONF}")),
        );
    }
    for option in conf.options() {
        let ndots = option.strip_prefix("ndots:").and_then(|dots| dots.parse::<u32>().ok());
        if ndots.is_some_and(|ndots| ndots > MAX_NDOTS) && !conf.search().is_empty() {
            let says = format!(
                "Because of `options {option}`, programs first query the search list \
                 (hello.{zone}.{first}), then hello.{zone}: lookups are slow, and the search list \
                 takes precedence. A trailing dot (`hello.{zone}.`) avoids both.",
                zone = input.zone,
                first = conf.search()[0]
            );
            findings.push(Finding::warning(RESOLV_CONF_CHECK, says));
        }
        if option == "rotate" && servers.len() > 1 {
            let says = "`options rotate` spreads queries over all name servers: some do not \
                        reach svcdns.";
            findings.push(Finding::warning(RESOLV_CONF_CHECK, says));
        }
    }
    findings
}

/// Checks whether another program has removed svcdns's line from resolv.conf.
fn check_installed_line(input: &DoctorInput<'_>) -> Option<Finding> {
    let any = [SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53)];
    let own = input.server.map_or(&any[..], |server| server.listen);
    let LineState::Lost(lost) = LineState::read(input.root, own, false) else { return None };
    let says = format!(
        "Another program has rewritten the file since `svcdns install`: {lost}. Turn the rewriting \
         off in the other program, or restore the nameserver line: with --keep, svcdns does so \
         after each rewrite."
    );
    let level = level_of_detour(input, 0);
    let is_reached =
        lost.servers.first().is_some_and(|first| input.probe(*first) == Some(&ProbeResult::Svcdns));
    let level = if is_reached { Level::Warning } else { level };
    let finding = Finding { level, ..Finding::warning(RESOLV_CONF_CHECK, says) };
    Some(finding.typing(INSTALL).typing(format!("{INSTALL} --keep")))
}

/// Checks whether WSL writes resolv.conf again when it starts.
fn check_wsl(input: &DoctorInput<'_>) -> Option<Finding> {
    if input.machine.manager != ResolverManager::Wsl {
        return None;
    }
    let says = format!(
        "WSL writes {RESOLV_CONF} when it starts, so a change does not last: set \
         `generateResolvConf = false` in the section [network] of {WSL_CONF}."
    );
    Some(Finding::warning(RESOLV_CONF_CHECK, says).typing(format!("sudoedit {WSL_CONF}")))
}

fn check_name_servers(input: &DoctorInput<'_>) -> Vec<Finding> {
    let addresses = input.name_servers();
    addresses
        .iter()
        .enumerate()
        .map(|(at, &address)| check_name_server(input, &addresses, at, address))
        .collect()
}

/// Checks the name server at this position of resolv.conf.
fn check_name_server(
    input: &DoctorInput<'_>,
    all: &[IpAddr],
    at: usize,
    address: IpAddr,
) -> Finding {
    let (zone, program) = (input.zone, program_at(input, address));
    let first_is_svcdns = input.probe(all[0]) == Some(&ProbeResult::Svcdns);
    match input.probe(address) {
        Some(ProbeResult::Svcdns) if input.listens_on(address) => {
            Finding::ok(NAME_SERVERS, format!("{address} is svcdns itself."))
        }
        Some(ProbeResult::Svcdns) => Finding::ok(
            NAME_SERVERS,
            format!("{address}{program} forwards queries for {zone} to svcdns."),
        ),
        _ if at > 0 && first_is_svcdns => {
            let says = format!(
                "{address}{program} does not forward to svcdns, and is queried if the first name \
                 server does not respond. Programs with musl (Alpine) query all name servers at \
                 once and use the first response, which may say that {zone} does not exist."
            );
            Finding::warning(NAME_SERVERS, says)
        }
        Some(ProbeResult::Code(code)) if code == "REFUSED" && input.listens_on(address) => {
            let says = format!(
                "svcdns at {address} refuses queries from this machine: its access rules \
                 (`allow`) exclude it."
            );
            Finding::broken(NAME_SERVERS, says).typing("svcdns check")
        }
        Some(ProbeResult::Code(code)) => {
            let says = match code.as_str() {
                "NXDOMAIN" | "NOERROR" => format!(
                    "{address}{program} does not know {zone} ({code}): queries for it do not \
                     reach svcdns."
                ),
                code => format!(
                    "{address}{program} responds to queries for {zone} with {code}: they do not \
                     reach svcdns."
                ),
            };
            Finding { level: level_of_detour(input, at), ..Finding::warning(NAME_SERVERS, says) }
                .typing(INSTALL)
                .typing(RUN)
        }
        Some(ProbeResult::NoResponse) | None => {
            let says = format!(
                "Nothing responds at {address} port 53{program}: programs wait 5 seconds for it \
                 at each lookup."
            );
            let level = level_of_detour(input, at);
            let finding = Finding { level, ..Finding::warning(NAME_SERVERS, says) };
            if address.is_loopback() {
                finding.typing(INSTALL)
            } else {
                finding.typing(format!("ping {address}"))
            }
        }
    }
}

/// Returns the severity of a name server that does not lead to svcdns.
///
/// Only the first name server, at position 0, matters, and not even that one if the C library
/// bypasses it through systemd-resolved.
fn level_of_detour(input: &DoctorInput<'_>, at: usize) -> Level {
    let is_bypassed = input
        .machine
        .resolved
        .as_ref()
        .is_some_and(|resolved| resolved.access == ResolvedAccess::GlibcOnly);
    if at > 0 || is_bypassed { Level::Warning } else { Level::Broken }
}

/// Returns the program at an address, in parentheses; empty if unknown.
fn program_at(input: &DoctorInput<'_>, address: IpAddr) -> String {
    if STUBS.contains(&address) && input.machine.resolved.is_some() && !input.listens_on(address) {
        return " (systemd-resolved)".to_owned();
    }
    let owner = super::port::find_owner(address).filter(|_| address.is_loopback());
    owner.map_or_else(String::new, |owner| format!(" ({})", owner.command))
}

fn check_resolved(input: &DoctorInput<'_>) -> Option<Finding> {
    let resolved = input.machine.resolved.as_ref()?;
    match resolved.access {
        ResolvedAccess::Unused => {
            let says = "systemd-resolved is running, but no program uses it.";
            return Some(Finding::ok(RESOLVED, says));
        }
        ResolvedAccess::Bypassed => {
            let says = format!(
                "systemd-resolved is running, but programs bypass it: {RESOLV_CONF} names the \
                 servers that it queries."
            );
            return Some(Finding::ok(RESOLVED, says));
        }
        ResolvedAccess::Stub | ResolvedAccess::GlibcOnly => {}
    }
    let zone = input.zone;
    let routes = input.routes.for_zone(zone);
    let routed: Vec<&&ResolvedScope> = routes.iter().filter(|scope| scope.names(zone)).collect();
    let reaches_svcdns = STUBS.iter().any(|stub| input.probe(*stub) == Some(&ProbeResult::Svcdns));
    let validating =
        routed.iter().find(|scope| scope.dnssec == "yes").filter(|_| !is_exempt(input.root, zone));
    if let Some(scope) = validating {
        let says = format!(
            "systemd-resolved validates answers ({}: DNSSEC=yes), but {zone} is a private zone \
             that cannot be signed: every name in it gets SERVFAIL.",
            scope.name
        );
        let finding = if reaches_svcdns {
            Finding::warning(RESOLVED, says)
        } else {
            Finding::broken(RESOLVED, says)
        };
        return Some(
            finding
                .typing("sudo mkdir -p /etc/dnssec-trust-anchors.d")
                .typing(format!(
                    "echo {zone} | sudo tee /etc/dnssec-trust-anchors.d/svcdns.negative"
                ))
                .typing("sudo systemctl restart systemd-resolved"),
        );
    }
    if reaches_svcdns {
        let by = routed
            .iter()
            .map(|scope| format!("{} to {}", scope.name, scope.servers.join(", ")))
            .collect::<Vec<_>>()
            .join("; ");
        let by = if by.is_empty() { String::new() } else { format!(" ({by})") };
        let says = format!("systemd-resolved forwards queries for {zone} to svcdns{by}.");
        return Some(Finding::ok(RESOLVED, says));
    }
    if routed.is_empty() {
        let says = format!(
            "systemd-resolved has no route for {zone} to svcdns: it queries its other servers, \
             which do not know {zone}."
        );
        return Some(Finding::broken(RESOLVED, says).typing(INSTALL).typing("resolvectl domain"));
    }
    let servers: Vec<String> =
        routed.iter().flat_map(|scope| scope.servers.iter().cloned()).collect();
    let says = format!(
        "systemd-resolved forwards queries for {zone} to {}, but they do not reach svcdns.",
        servers.join(", ")
    );
    Some(
        Finding::broken(RESOLVED, says)
            .typing("svcdns status")
            .typing(format!("resolvectl query ns.{zone}")),
    )
}
