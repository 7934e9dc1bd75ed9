//! The ways in: how questions for the served zones come to us, the least invasive one that the owner has.

use std::fmt;

use super::detect::{Machine, Owner, Reach};

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A `*.dns-delegate` of systemd-resolved, 258 and later (systemd.dns-delegate(5)).
    Delegate,
    /// A link of our own that systemd-resolved routes the zones to.
    Link,
    /// A drop-in of the dnsmasq that NetworkManager runs.
    Dnsmasq,
    /// Our lines in `/etc/resolv.conf`, which NetworkManager is told to leave alone.
    NetworkManager,
    /// A record of `resolvconf`.
    Resolvconf,
    /// Our lines in `/etc/resolv.conf`.
    Plain,
    /// The same, written in place: a mount cannot be replaced.
    InPlace,
}

impl Way {
    /// The way for this machine.
    pub fn of(machine: &Machine) -> Self {
        let network_manager = machine.network_manager.as_ref();
        match machine.owner {
            Owner::Resolved => match &machine.resolved {
                // A delegate has no DNSSEC= of its own: where the machine validates, an unsigned zone needs a link that does not.
                Some(resolved) if resolved.version.is_some_and(|version| version >= 258) && !validates(resolved.dnssec.as_deref()) => {
                    Self::Delegate
                }
                _ => Self::Link,
            },
            Owner::Engine => Self::InPlace,
            Owner::Resolvconf(_) => Self::Resolvconf,
            Owner::NetworkManager => match network_manager {
                Some(manager) if manager.dns == "dnsmasq" && manager.running => Self::Dnsmasq,
                Some(manager) if manager.dns == "none" || manager.rc_manager == "unmanaged" => Self::Plain,
                _ => Self::NetworkManager,
            },
            Owner::Nobody => Self::Plain,
        }
    }

    /// Whether the server has to answer on port 53: resolv.conf has no room for a port, and systemd-resolved none before 247.
    pub fn needs_port_53(self, machine: &Machine) -> bool {
        match self {
            Self::Delegate | Self::Dnsmasq => false,
            Self::Link => machine.resolved.as_ref().and_then(|resolved| resolved.version).is_some_and(|version| version < 247),
            Self::NetworkManager | Self::Resolvconf | Self::Plain | Self::InPlace => true,
        }
    }

    /// Whether all names come to us and nobody else is asked, for those outside the zones included. `resolvconf` writes one
    /// line where that is a loopback address, whatever else it knows.
    pub fn takes_all(self, keeps_others: bool) -> bool {
        match self {
            Self::Delegate | Self::Link | Self::Dnsmasq => false,
            Self::Resolvconf => true,
            Self::NetworkManager | Self::Plain | Self::InPlace => !keeps_others,
        }
    }

    /// What becomes of names outside the zones when the server dies, on a machine with systemd or without.
    pub fn without_server(self, keeps_others: bool, systemd: bool) -> &'static str {
        match self {
            Self::Delegate | Self::Link => "names outside the zones go on working: systemd-resolved asks others for them",
            Self::Dnsmasq => "names outside the zones go on working: dnsmasq asks others for them",
            Self::Resolvconf if systemd => "when its unit stops, resolvconf puts the other name servers back at once",
            Self::Resolvconf => "nothing is resolved until it runs again; `resolvconf -d lo.svcdns` puts the other name servers back",
            Self::NetworkManager | Self::Plain | Self::InPlace if keeps_others => {
                "names outside the zones go on working for programs that use glibc: it asks the next line"
            }
            Self::NetworkManager | Self::Plain | Self::InPlace if systemd => {
                "nothing is resolved until it runs again (systemd starts it again after a second); --keep-nameservers adds a way round for glibc"
            }
            Self::NetworkManager | Self::Plain | Self::InPlace => {
                "nothing is resolved until it runs again (what supervises it has to see to that); --keep-nameservers adds a way round for glibc"
            }
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delegate => "a DNS delegate of systemd-resolved",
            Self::Link => "a route of systemd-resolved to a link of our own",
            Self::Dnsmasq => "a drop-in of NetworkManager's dnsmasq",
            Self::NetworkManager => "a line in /etc/resolv.conf, which NetworkManager then leaves alone",
            Self::Resolvconf => "a record of resolvconf",
            Self::Plain => "a line in /etc/resolv.conf",
            Self::InPlace => "a line in /etc/resolv.conf, written in place",
        })
    }
}

/// Whether systemd-resolved may refuse an unsigned zone. Where it does not say, it may.
fn validates(dnssec: Option<&str>) -> bool {
    dnssec.is_none_or(|mode| mode != "no")
}

/// Whether all programs follow, or only those that ask through glibc.
pub(super) fn misses_programs(machine: &Machine) -> bool {
    machine.resolved.as_ref().is_some_and(|resolved| resolved.reach == Reach::Library)
}
