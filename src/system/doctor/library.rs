//! The C library: whom it asks before, and in place of, the name servers.

use std::os::unix::net::UnixStream;

use super::{Finding, Patient};
use crate::system::Root;
use crate::system::nsswitch::{Asked, Hosts, NSSWITCH_CONF};

const NSSWITCH: &str = "nsswitch";
const HOSTS: &str = "hosts";
const NSCD: &str = "nscd";

/// Where nscd is asked.
const NSCD_SOCKET: &str = "/run/nscd/socket";

pub(super) fn examine(patient: &Patient<'_>) -> Vec<Finding> {
    vec![nsswitch(patient), hosts(patient), nscd(patient.root)]
}

fn nsswitch(patient: &Patient<'_>) -> Finding {
    let hosts = patient.root.text(NSSWITCH_CONF).and_then(|text| Hosts::of(&text));
    let Some(hosts) = hosts else {
        return Finding::ok(NSSWITCH, format!("{NSSWITCH_CONF} has no hosts line: programs ask /etc/hosts, then the name servers."));
    };
    let (line, better) = (hosts.line(), hosts.by_dns().line());
    let resolved_runs = patient.machine.resolved.is_some();
    let broken = |why: String| Finding::broken(NSSWITCH, why).typing(format!("sudo sed -i 's/^hosts:.*/{better}/' {NSSWITCH_CONF}"));
    match hosts.asked() {
        Asked::Dns => Finding::ok(NSSWITCH, format!("Programs ask the name servers of resolv.conf (`{line}`).")),
        Asked::Resolve { .. } if resolved_runs => Finding::ok(NSSWITCH, format!("Programs ask systemd-resolved (`{line}`).")),
        Asked::Resolve { dns: true } => Finding::ok(
            NSSWITCH,
            format!("systemd-resolved would be asked first, and does not run: programs ask the name servers (`{line}`)."),
        ),
        Asked::Resolve { dns: false } => {
            broken(format!("Programs ask systemd-resolved alone, which does not run: `{line}` in {NSSWITCH_CONF} needs `dns`."))
        }
        Asked::Stopped(service) => {
            broken(format!("`{line}` in {NSSWITCH_CONF} ends the search at `{service}`: no name server is ever asked."))
        }
        Asked::Nobody => broken(format!("`{line}` in {NSSWITCH_CONF} names neither `dns` nor `resolve`: no name server is ever asked.")),
    }
}

/// Names of our zone that the machine's own file gives.
fn hosts(patient: &Patient<'_>) -> Finding {
    let text = patient.root.text("/etc/hosts").unwrap_or_default();
    let end = format!(".{}", patient.zone.to_ascii_lowercase());
    let named = text.lines().enumerate().find_map(|(at, line)| {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace().skip(1);
        words.find(|name| name.to_ascii_lowercase().trim_end_matches('.').ends_with(&end)).map(|name| (at + 1, name))
    });
    match named {
        None => Finding::ok(HOSTS, format!("/etc/hosts names nothing in {}.", patient.zone)),
        Some((line, name)) => Finding::warning(
            HOSTS,
            format!("/etc/hosts says in line {line} where {name} is: programs take that, and never ask svcdns for this name."),
        )
        .typing("sudoedit /etc/hosts"),
    }
}

fn nscd(root: &Root) -> Finding {
    if UnixStream::connect(root.path(NSCD_SOCKET)).is_err() {
        return Finding::ok(NSCD, "nscd, which would answer in place of the name servers, does not run.");
    }
    let conf = root.text("/etc/nscd.conf").unwrap_or_default();
    let words = |line: &str| line.split('#').next().unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let setting = conf.lines().map(words).rfind(|words| words.len() >= 3 && words[0] == "enable-cache" && words[1] == "hosts");
    match setting {
        Some(words) if words[2] == "no" => Finding::ok(NSCD, "nscd runs, and leaves host names alone (`enable-cache hosts no`)."),
        _ => Finding::warning(
            NSCD,
            "nscd runs and remembers host names: an instance that has gone, and that a name did not exist, for longer than svcdns says.",
        )
        .typing("sudo nscd --invalidate=hosts")
        .typing("sudo sed -i '/enable-cache.*hosts/s/yes/no/' /etc/nscd.conf && sudo systemctl restart nscd"),
    }
}
