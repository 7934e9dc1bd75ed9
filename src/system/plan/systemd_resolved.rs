//! Steps that make systemd-resolved route the zones to svcdns.

use std::path::Path;

use super::super::Root;
use super::super::command::words;
use super::super::detect::ResolvedAccess;
use super::super::install_step::{CommandStep, FileStep, IfEdited, InstallStep};
use super::super::integration::is_glibc_only;
use super::super::path_state::PathState;
use super::super::unit::HookUnit;
use super::drop_in::{DELEGATE, NETWORK_MANAGER_LINK, NETWORKD_LINK};
use super::own_files::read_state;
use super::{PlanBuilder, PlanError};
use crate::resolv_conf::RESOLV_CONF;

/// The first version of systemd-resolved that routes a domain to a link.
const FIRST_VERSION_WITH_ROUTES: u32 = 240;

/// The first version of systemd with `Restart=on-failure` for `Type=oneshot`.
///
/// Older versions refuse such a unit.
const FIRST_VERSION_WITH_REPEATS: u32 = 244;

/// The link to which systemd-resolved routes the zones.
const LINK: &str = "svcdns0";

/// The peer of the link, if the link is a veth pair.
const LINK_PEER: &str = "svcdns1";

/// The address of the link.
///
/// systemd-resolved ignores a link that has only addresses of link scope. This address is in
/// 169.254.0.0/16 (RFC 3927), which is not routed, and which GoFrame does not register. Its `scope
/// site` keeps it from being chosen as a source address.
const LINK_ADDRESS: &str = "169.254.53.53/32";

/// The stub of systemd-resolved, as a target for `/etc/resolv.conf`.
const STUB: &str = "../run/systemd/resolve/stub-resolv.conf";

impl PlanBuilder<'_> {
    pub(super) fn add_delegate(&mut self) -> Result<(), PlanError> {
        let text = format!(
            "[Delegate]\nDNS={}\nDomains={}\n",
            self.server(),
            self.routed_domains().join(" ")
        );
        self.add_drop_in(&DELEGATE, &text, true)?;
        self.note_unreached_programs();
        self.link_resolv_conf_to_stub()
    }

    pub(super) fn add_link(&mut self) -> Result<(), PlanError> {
        let version = self.machine.resolved.as_ref().and_then(|resolved| resolved.version);
        if let Some(version) = version.filter(|version| *version < FIRST_VERSION_WITH_ROUTES) {
            return Err(PlanError::Program(format!(
                "systemd-resolved {version} cannot route a domain to a link (version \
                 {FIRST_VERSION_WITH_ROUTES} can): replace {RESOLV_CONF} with an ordinary file \
                 that has the name servers of /run/systemd/resolve/resolv.conf, and run this \
                 command again"
            )));
        }
        let ip = self.find_program("ip", "iproute2")?;
        let resolvectl = self.find_program("resolvectl", "systemd-resolved")?;
        self.exempt_link_from_managers()?;
        let ip = |words: &[&str]| -> Vec<String> {
            [&[ip.as_str()], words].concat().into_iter().map(str::to_owned).collect()
        };
        let resolvectl = |verb: &str, values: &[String]| -> Vec<String> {
            let command = [resolvectl.as_str(), verb, LINK].map(str::to_owned);
            command.into_iter().chain(values.iter().cloned()).collect()
        };
        let no = ["no".to_owned()];
        // Not every kernel has dummy links.
        let create = format!(
            "{ip} link add {LINK} type dummy || {{ {ip} link add {LINK} type veth peer name \
             {LINK_PEER} && {ip} link set {LINK_PEER} up; }}",
            ip = ip(&[])[0]
        );
        let start = vec![
            words(&["/bin/sh", "-c", &create]),
            ip(&["address", "add", LINK_ADDRESS, "dev", LINK, "scope", "site"]),
            ip(&["link", "set", LINK, "up"]),
            // Everything is turned off before a server is set: otherwise the link would receive
            // other names for a moment, or unsigned answers would be rejected.
            resolvectl("default-route", &no),
            resolvectl("dnssec", &no),
            resolvectl("dnsovertls", &no),
            resolvectl("llmnr", &no),
            resolvectl("mdns", &no),
            resolvectl("domain", &self.routed_domains()),
            resolvectl("dns", &[self.server()]),
        ];
        let zones = self.options.zones.join(" ");
        let hook = HookUnit {
            description: format!("Route of systemd-resolved to svcdns for {zones}"),
            bound_to: "systemd-resolved.service",
            start,
            stop: vec![ip(&["link", "del", LINK])],
            repeats: version.is_some_and(|version| version >= FIRST_VERSION_WITH_REPEATS),
        };
        let exists = ip(&["link", "show", LINK]);
        self.add_hook(&hook, exists, "a restart of systemd-resolved")?;
        self.note_unreached_programs();
        self.link_resolv_conf_to_stub()
    }

    /// Makes systemd-networkd and NetworkManager ignore the link, if they run.
    fn exempt_link_from_managers(&mut self) -> Result<(), PlanError> {
        if self.machine.networkd {
            let text = format!("[Match]\nName={LINK} {LINK_PEER}\n\n[Link]\nUnmanaged=yes\n");
            self.add_drop_in(&NETWORKD_LINK, &text, true)?;
        }
        if self.machine.network_manager.as_ref().is_some_and(|manager| manager.running) {
            let text = format!(
                "[keyfile]\n\
                 unmanaged-devices+=interface-name:{LINK};interface-name:{LINK_PEER}\n"
            );
            self.add_drop_in(&NETWORK_MANAGER_LINK, &text, true)?;
        }
        Ok(())
    }

    /// Links `/etc/resolv.conf` to the stub, if it bypasses systemd-resolved.
    fn link_resolv_conf_to_stub(&mut self) -> Result<(), PlanError> {
        let resolved = self.machine.resolved.as_ref();
        if resolved.is_none_or(|resolved| resolved.access != ResolvedAccess::Bypassed) {
            return Ok(());
        }
        if !self.root.has("/run/systemd/resolve/stub-resolv.conf") {
            return Err(PlanError::File {
                path: RESOLV_CONF.into(),
                problem: "bypasses systemd-resolved, whose stub is turned off: set \
                          DNSStubListener=yes in /etc/systemd/resolved.conf, restart \
                          systemd-resolved, and run this command again"
                    .to_owned(),
            });
        }
        self.steps.push(InstallStep::File(FileStep {
            path: RESOLV_CONF.into(),
            before: read_state(self.root, Path::new(RESOLV_CONF))?,
            after: PathState::Link { target: STUB.into(), owner: (0, 0) },
            if_edited: IfEdited::OwnLines,
            in_place: false,
        }));
        Ok(())
    }

    /// Adds a note if only programs that use glibc reach systemd-resolved.
    fn note_unreached_programs(&mut self) {
        if is_glibc_only(self.machine) {
            self.notes.push(format!(
                "{RESOLV_CONF} names other servers than systemd-resolved, so only programs that \
                 use glibc resolve the zones; dig, Go and musl programs do not. To change that: \
                 ln -sf {STUB} {RESOLV_CONF}"
            ));
        }
    }

    /// Returns the server's address for systemd-resolved, without port 53.
    ///
    /// Versions before 247 accept no port.
    fn server(&self) -> String {
        let server = self.options.server;
        if server.port() == 53 { server.ip().to_string() } else { server.to_string() }
    }

    /// Returns the zones as domains of systemd-resolved.
    ///
    /// The prefix `~` marks a routing-only domain; other domains are also on the search list.
    fn routed_domains(&self) -> Vec<String> {
        let prefix = if self.options.search { "" } else { "~" };
        self.options.zones.iter().map(|zone| format!("{prefix}{zone}")).collect()
    }
}

/// Returns the step that removes a link that no journal lists; `None` without one.
pub(in super::super) fn leftover_link(root: &Root) -> Option<InstallStep> {
    let ip = root.program("ip").filter(|_| root.has(format!("/sys/class/net/{LINK}")))?;
    let undo = vec![words(&[&ip.display().to_string(), "link", "del", LINK])];
    Some(InstallStep::Command(CommandStep { undo, ..CommandStep::default() }))
}
