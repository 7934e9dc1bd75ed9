//! The integration of svcdns into the machine's name resolution.
//!
//! Each manager of name resolution has one, chosen to be the least invasive.

use std::fmt;

use super::detect::{Machine, ResolvedAccess, ResolverManager};

/// The first version of systemd-resolved with delegates (systemd.dns-delegate(5)).
const FIRST_VERSION_WITH_DELEGATES: u32 = 258;

/// The first version of systemd-resolved that accepts the port of a server.
const FIRST_VERSION_WITH_PORTS: u32 = 247;

/// Route by which queries for the served zones reach svcdns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integration {
    /// A `*.dns-delegate` file of systemd-resolved (systemd.dns-delegate(5)).
    Delegate,
    /// A network link of svcdns, to which systemd-resolved routes the zones.
    Link,
    /// A drop-in of the dnsmasq that NetworkManager runs.
    Dnsmasq,
    /// svcdns's lines in `/etc/resolv.conf`, which NetworkManager stops managing.
    NetworkManager,
    /// A record of `resolvconf`.
    Resolvconf,
    /// svcdns's lines in `/etc/resolv.conf`.
    ResolvConf,
    /// svcdns's lines in `/etc/resolv.conf`, a mount point, which is written in place.
    ResolvConfInPlace,
}

impl Integration {
    /// Returns the integration for this machine.
    pub fn for_machine(machine: &Machine) -> Self {
        let network_manager = machine.network_manager.as_ref();
        match machine.manager {
            ResolverManager::Resolved => match &machine.resolved {
                // A delegate has no DNSSEC= setting. If the machine validates, the unsigned zones
                // need a link with validation off.
                Some(resolved)
                    if resolved
                        .version
                        .is_some_and(|version| version >= FIRST_VERSION_WITH_DELEGATES)
                        && !may_validate(resolved.dnssec.as_deref()) =>
                {
                    Self::Delegate
                }
                _ => Self::Link,
            },
            ResolverManager::ContainerEngine => Self::ResolvConfInPlace,
            ResolverManager::Resolvconf(_) => Self::Resolvconf,
            ResolverManager::NetworkManager => match network_manager {
                Some(manager) if manager.dns == "dnsmasq" && manager.running => Self::Dnsmasq,
                Some(manager) if manager.dns == "none" || manager.rc_manager == "unmanaged" => {
                    Self::ResolvConf
                }
                _ => Self::NetworkManager,
            },
            ResolverManager::Wsl | ResolverManager::Nothing => Self::ResolvConf,
        }
    }

    /// Returns whether svcdns must listen on port 53.
    ///
    /// resolv.conf cannot specify a port, nor can systemd-resolved before version 247.
    pub fn needs_port_53(self, machine: &Machine) -> bool {
        match self {
            Self::Delegate | Self::Dnsmasq => false,
            Self::Link => machine
                .resolved
                .as_ref()
                .and_then(|resolved| resolved.version)
                .is_some_and(|version| version < FIRST_VERSION_WITH_PORTS),
            Self::NetworkManager
            | Self::Resolvconf
            | Self::ResolvConf
            | Self::ResolvConfInPlace => true,
        }
    }

    /// Returns whether svcdns becomes the machine's only name server.
    ///
    /// With `resolvconf`, it always does: a record with a loopback address hides all others.
    pub fn takes_all(self, keep_others: bool) -> bool {
        match self {
            Self::Delegate | Self::Link | Self::Dnsmasq => false,
            Self::Resolvconf => true,
            Self::NetworkManager | Self::ResolvConf | Self::ResolvConfInPlace => !keep_others,
        }
    }

    /// Returns whether our lines are in `/etc/resolv.conf` itself.
    pub fn edits_resolv_conf(self) -> bool {
        match self {
            Self::Delegate | Self::Link | Self::Dnsmasq | Self::Resolvconf => false,
            Self::NetworkManager | Self::ResolvConf | Self::ResolvConfInPlace => true,
        }
    }

    /// Describes what happens to names outside the zones while svcdns does not run.
    pub fn without_server(self, keep_others: bool, systemd: bool) -> &'static str {
        match self {
            Self::Delegate | Self::Link => {
                "names outside the zones still resolve, through systemd-resolved"
            }
            Self::Dnsmasq => "names outside the zones still resolve, through dnsmasq",
            Self::Resolvconf if systemd => {
                "no name resolves until it runs again; when its unit stops, resolvconf \
                 restores the other name servers"
            }
            Self::Resolvconf => {
                "no name resolves until it runs again; `resolvconf -d lo.svcdns` restores the \
                 other name servers"
            }
            Self::NetworkManager | Self::ResolvConf | Self::ResolvConfInPlace if keep_others => {
                "names outside the zones still resolve for programs that use glibc, through the \
                 next name server"
            }
            Self::NetworkManager | Self::ResolvConf | Self::ResolvConfInPlace if systemd => {
                "no name resolves until it runs again (systemd restarts it after a second); with \
                 --keep-nameservers, glibc uses the next name server meanwhile"
            }
            Self::NetworkManager | Self::ResolvConf | Self::ResolvConfInPlace => {
                "no name resolves until it runs again (your supervisor must restart it); with \
                 --keep-nameservers, glibc uses the next name server meanwhile"
            }
        }
    }
}

impl fmt::Display for Integration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delegate => "a DNS delegate of systemd-resolved",
            Self::Link => "a network link to which systemd-resolved routes the zones",
            Self::Dnsmasq => "a drop-in of NetworkManager's dnsmasq",
            Self::NetworkManager => {
                "a line in /etc/resolv.conf, which NetworkManager stops managing"
            }
            Self::Resolvconf => "a record of resolvconf",
            Self::ResolvConf => "a line in /etc/resolv.conf",
            Self::ResolvConfInPlace => "a line in /etc/resolv.conf, written in place",
        })
    }
}

/// Returns whether systemd-resolved may reject an unsigned zone.
///
/// Returns `true` if its DNSSEC mode is unknown.
fn may_validate(dnssec: Option<&str>) -> bool {
    dnssec.is_none_or(|mode| mode != "no")
}

/// Returns whether only programs that use glibc reach svcdns.
pub(super) fn is_glibc_only(machine: &Machine) -> bool {
    machine.resolved.as_ref().is_some_and(|resolved| resolved.access == ResolvedAccess::GlibcOnly)
}
