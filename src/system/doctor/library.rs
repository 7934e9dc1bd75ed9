//! Checks of the C library: its sources before, or instead of, the name servers.

use super::{DoctorInput, Finding};
use crate::system::nsswitch::{HostsLine, HostsLookup, NSSWITCH_CONF};
use crate::system::{Root, nscd};

/// The checks of this file.
const NSSWITCH: &str = "nsswitch";
const HOSTS: &str = "hosts";
const NSCD: &str = "nscd";

pub(super) fn examine(input: &DoctorInput<'_>) -> Vec<Finding> {
    vec![check_nsswitch(input), check_hosts(input), check_nscd(input.root)]
}

fn check_nsswitch(input: &DoctorInput<'_>) -> Finding {
    let hosts = input.root.text(NSSWITCH_CONF).and_then(|text| HostsLine::find(&text));
    let Some(hosts) = hosts else {
        return Finding::ok(
            NSSWITCH,
            format!(
                "{NSSWITCH_CONF} has no hosts line: programs use /etc/hosts, then the name \
                 servers of resolv.conf."
            ),
        );
    };
    let (line, repaired) = (hosts.to_line(), hosts.with_dns().to_line());
    let resolved_runs = input.machine.resolved.is_some();
    let broken = |problem: &str| {
        let says = format!(
            "`{line}` in {NSSWITCH_CONF} {problem}: programs without their own resolver query no \
             name server."
        );
        let repair = format!("sudo sed -i 's/^hosts:.*/{repaired}/' {NSSWITCH_CONF}");
        Finding::broken(NSSWITCH, says).typing(repair)
    };
    match hosts.lookup() {
        HostsLookup::Dns => Finding::ok(
            NSSWITCH,
            format!("Programs use the name servers of resolv.conf (`{line}`)."),
        ),
        HostsLookup::Resolve { .. } if resolved_runs => {
            Finding::ok(NSSWITCH, format!("Programs use systemd-resolved (`{line}`)."))
        }
        HostsLookup::Resolve { dns: true } => Finding::ok(
            NSSWITCH,
            format!(
                "systemd-resolved is not running, so programs use the name servers of \
                 resolv.conf (`{line}`)."
            ),
        ),
        HostsLookup::Resolve { dns: false } => {
            broken("leads to systemd-resolved alone, which is not running")
        }
        HostsLookup::EndsAt(service) => broken(&format!("ends every lookup at `{service}`")),
        HostsLookup::NoDns => broken("names neither `dns` nor `resolve`"),
    }
}

/// Checks whether `/etc/hosts` has names of the zone.
fn check_hosts(input: &DoctorInput<'_>) -> Finding {
    let text = input.root.text("/etc/hosts").unwrap_or_default();
    let suffix = format!(".{}", input.zone.to_ascii_lowercase());
    let found = text.lines().enumerate().find_map(|(at, line)| {
        let mut names = line.split('#').next().unwrap_or_default().split_ascii_whitespace().skip(1);
        names
            .find(|name| name.to_ascii_lowercase().trim_end_matches('.').ends_with(&suffix))
            .map(|name| (at + 1, name))
    });
    match found {
        None => Finding::ok(HOSTS, format!("/etc/hosts has no name in {}.", input.zone)),
        Some((line, name)) => Finding::warning(
            HOSTS,
            format!(
                "Line {line} of /etc/hosts has {name}: programs use that address, and do not \
                 query svcdns for this name."
            ),
        )
        .typing("sudoedit /etc/hosts"),
    }
}

fn check_nscd(root: &Root) -> Finding {
    if !nscd::is_in_use(root) {
        return Finding::ok(NSCD, "nscd, which would cache host names, is not running.");
    }
    let conf = root.text("/etc/nscd.conf").unwrap_or_default();
    let words = |line: &str| {
        line.split('#')
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let setting = conf
        .lines()
        .map(words)
        .rfind(|words| words.len() >= 3 && words[0] == "enable-cache" && words[1] == "hosts");
    match setting {
        Some(words) if words[2] == "no" => Finding::ok(
            NSCD,
            "nscd is running, but does not cache host names (`enable-cache hosts no`).",
        ),
        _ => Finding::warning(
            NSCD,
            "nscd is running and caches host names for longer than the TTL of svcdns: programs \
             may still use a stopped instance, or not find a new one.",
        )
        .typing("sudo nscd --invalidate=hosts")
        .typing(
            "sudo sed -i '/enable-cache.*hosts/s/yes/no/' /etc/nscd.conf && \
             sudo systemctl restart nscd",
        ),
    }
}
