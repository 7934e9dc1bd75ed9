//! resolv.conf, the name servers in it, and systemd-resolved: whether questions for our zone come to svcdns.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Finding, Level, Patient, Reply};
use crate::resolv_conf::{MAX_NAME_SERVERS, MAX_RESOLV_CONF_BYTES, RESOLV_CONF};
use crate::system::resolved::is_exempt;
use crate::system::{Kind, Owner, Reach, Scope};

const FILE: &str = "resolv.conf";
const SERVERS: &str = "name servers";
const RESOLVED: &str = "systemd-resolved";

/// Where systemd-resolved answers programs that know nothing of it.
const STUBS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// The most dots that a short name may have to be searched for first, without a question too many for `hello.svc`.
const DOTS: u32 = 1;

pub(super) fn examine(patient: &Patient<'_>) -> Vec<Finding> {
    let mut findings = file(patient);
    findings.extend(name_servers(patient));
    findings.extend(resolved(patient));
    findings
}

fn file(patient: &Patient<'_>) -> Vec<Finding> {
    let file = &patient.machine.file;
    let leads = if file.is_link { format!("{RESOLV_CONF} (a link to {})", file.target.display()) } else { RESOLV_CONF.to_owned() };
    let by_hand = "sudo svcdns install";
    match &file.kind {
        Kind::Ordinary(_) => {}
        Kind::Missing => {
            let says = format!("{leads} does not exist: programs ask 127.0.0.1 port 53.");
            return vec![Finding::warning(FILE, says).typing(by_hand)];
        }
        Kind::Unreadable(error) => {
            return vec![Finding::broken(FILE, format!("{leads} cannot be read: {error}.")).typing(format!("ls -lL {RESOLV_CONF}"))];
        }
        Kind::NoFile => return vec![Finding::broken(FILE, format!("{leads} is not a file.")).typing(format!("ls -lL {RESOLV_CONF}"))],
        Kind::TooLong => {
            let says = format!("{leads} has more than {MAX_RESOLV_CONF_BYTES} bytes (a fixed limit): too long for a resolv.conf.");
            return vec![Finding::broken(FILE, says).typing(format!("head {RESOLV_CONF}"))];
        }
    }
    let conf = file.conf();
    let servers: Vec<String> = conf.name_servers().map(|server| server.address.to_string()).collect();
    let mut findings = Vec::new();
    if servers.is_empty() {
        findings.push(Finding::warning(FILE, format!("{leads} names no name server: programs ask 127.0.0.1 port 53.")).typing(by_hand));
    } else {
        let owner = match patient.machine.owner {
            Owner::Nobody => "nobody owns it".to_owned(),
            owner => format!("its owner is {owner}"),
        };
        findings.push(Finding::ok(FILE, format!("{leads} names {}; {owner}.", servers.join(", "))));
    }
    if servers.len() > MAX_NAME_SERVERS {
        let ignored = servers[MAX_NAME_SERVERS..].join(", ");
        findings.push(Finding::warning(FILE, format!("Only the first {MAX_NAME_SERVERS} name servers count: {ignored} is never asked.")));
    }
    for (line, fault) in conf.faults() {
        let says = format!("Line {line} of {RESOLV_CONF} is ignored by everybody: {fault}.");
        findings.push(Finding::warning(FILE, says).typing(format!("sed -n {line}p {RESOLV_CONF}")));
    }
    for option in conf.options() {
        let dots = option.strip_prefix("ndots:").and_then(|dots| dots.parse::<u32>().ok());
        if dots.is_some_and(|dots| dots > DOTS) && !conf.search().is_empty() {
            let says = format!(
                "`options {option}` makes programs ask for hello.{zone}.{first} and the like before hello.{zone}: slow, and that answer wins. \
                 A final dot (`hello.{zone}.`) avoids it.",
                zone = patient.zone,
                first = conf.search()[0]
            );
            findings.push(Finding::warning(FILE, says));
        }
        if option == "rotate" && servers.len() > 1 {
            let says = "`options rotate` spreads questions over all name servers: those that do not know of svcdns get their share.";
            findings.push(Finding::warning(FILE, says));
        }
    }
    findings
}

fn name_servers(patient: &Patient<'_>) -> Vec<Finding> {
    let addresses = patient.name_servers();
    let mut findings = Vec::new();
    let is_ours = |address: IpAddr| patient.reply(address) == Some(&Reply::Svcdns);
    for (at, &address) in addresses.iter().enumerate() {
        let who = who(patient, address);
        let zone = patient.zone;
        let finding = match patient.reply(address) {
            Some(Reply::Svcdns) if listens(patient, address) => Finding::ok(SERVERS, format!("{address} is svcdns itself.")),
            Some(Reply::Svcdns) => Finding::ok(SERVERS, format!("{address}{who} passes questions for {zone} on to svcdns.")),
            _ if at > 0 && is_ours(addresses[0]) => {
                let says = format!(
                    "{address}{who} knows nothing of svcdns, and is asked when the first name server does not answer. Programs with musl \
                     (Alpine) ask all at once and take the first answer, which may be that {zone} does not exist."
                );
                Finding::warning(SERVERS, says)
            }
            Some(Reply::Code(code)) if code == "REFUSED" && listens(patient, address) => Finding::broken(
                SERVERS,
                format!("svcdns at {address} refuses our questions: its access rules (`allow`) leave this machine out."),
            )
            .typing("svcdns check"),
            Some(Reply::Code(code)) => {
                let says = match code.as_str() {
                    "NXDOMAIN" | "NOERROR" => {
                        format!("{address}{who} says that nothing like {zone} exists: such questions never come to svcdns.")
                    }
                    code => format!("{address}{who} answers questions for {zone} with {code}: they do not come to svcdns."),
                };
                Finding { level: astray(patient, at), ..Finding::warning(SERVERS, says) }
                    .typing("sudo svcdns install")
                    .typing("svcdns run -- COMMAND   # for one command, nothing else changed")
            }
            Some(Reply::Silence) | None => {
                let says = format!("Nobody answers at {address} port 53{who}: programs wait 5 seconds for it at each lookup.");
                let finding = Finding { level: astray(patient, at), ..Finding::warning(SERVERS, says) };
                if address.is_loopback() { finding.typing("sudo svcdns install") } else { finding.typing(format!("ping {address}")) }
            }
        };
        findings.push(finding);
    }
    findings
}

/// How bad it is that a name server does not lead to svcdns: the first is the one that counts, unless the C library asks
/// systemd-resolved without it.
fn astray(patient: &Patient<'_>, at: usize) -> Level {
    let past_it = patient.machine.resolved.as_ref().is_some_and(|resolved| resolved.reach == Reach::Library);
    if at > 0 || past_it { Level::Warning } else { Level::Broken }
}

/// Who answers at an address, in brackets, where that can be told.
fn who(patient: &Patient<'_>, address: IpAddr) -> String {
    if STUBS.contains(&address) && patient.machine.resolved.is_some() && !listens(patient, address) {
        return " (systemd-resolved)".to_owned();
    }
    let holder = super::port::holder(address).filter(|_| address.is_loopback());
    holder.map_or_else(String::new, |holder| format!(" ({})", holder.command))
}

fn listens(patient: &Patient<'_>, address: IpAddr) -> bool {
    patient.server.is_some_and(|server| server.listen.contains(&SocketAddr::new(address, 53)))
}

fn resolved(patient: &Patient<'_>) -> Option<Finding> {
    let resolved = patient.machine.resolved.as_ref()?;
    match resolved.reach {
        Reach::Nobody => return Some(Finding::ok(RESOLVED, "systemd-resolved runs, and no program is sent to it.")),
        Reach::Uplink => {
            return Some(Finding::ok(
                RESOLVED,
                format!("systemd-resolved runs, and {RESOLV_CONF} sends programs past it to its own servers."),
            ));
        }
        Reach::Stub | Reach::Library => {}
    }
    let zone = patient.zone;
    let routes = patient.routes.of(zone);
    let named: Vec<&&Scope> = routes.iter().filter(|scope| scope.names(zone)).collect();
    let leads = STUBS.iter().any(|stub| patient.reply(*stub) == Some(&Reply::Svcdns));
    let validates = |scope: &&&Scope| scope.dnssec == "yes";
    if let Some(scope) = named.iter().find(|scope| validates(scope)).filter(|_| !is_exempt(patient.root, zone)) {
        let says = format!(
            "systemd-resolved validates answers ({}: DNSSEC=yes), and {zone} is a private zone that nobody can sign: it answers SERVFAIL for \
             every name there.",
            scope.name
        );
        let finding = if leads { Finding::warning(RESOLVED, says) } else { Finding::broken(RESOLVED, says) };
        return Some(
            finding
                .typing("sudo mkdir -p /etc/dnssec-trust-anchors.d")
                .typing(format!("echo {zone} | sudo tee /etc/dnssec-trust-anchors.d/svcdns.negative"))
                .typing("sudo systemctl restart systemd-resolved"),
        );
    }
    if leads {
        let by = named.iter().map(|scope| format!("{} to {}", scope.name, scope.servers.join(", "))).collect::<Vec<_>>().join("; ");
        let by = if by.is_empty() { String::new() } else { format!(" ({by})") };
        return Some(Finding::ok(RESOLVED, format!("systemd-resolved passes questions for {zone} on to svcdns{by}.")));
    }
    if named.is_empty() {
        let says =
            format!("Nobody told systemd-resolved that {zone} is to be asked of svcdns: it asks its other servers, which know no {zone}.");
        return Some(Finding::broken(RESOLVED, says).typing("sudo svcdns install").typing("resolvectl domain"));
    }
    let servers: Vec<String> = named.iter().flat_map(|scope| scope.servers.iter().cloned()).collect();
    let says = format!("systemd-resolved sends questions for {zone} to {}, and gets no good answer from there.", servers.join(", "));
    Some(Finding::broken(RESOLVED, says).typing("svcdns status").typing(format!("resolvectl query ns.{zone}")))
}
