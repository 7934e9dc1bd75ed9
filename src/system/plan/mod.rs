//! The plan of an installation: the steps that integrate svcdns on this machine.
//!
//! Planning reads the machine and changes nothing.

mod describe;
mod drop_in;
mod own_files;
mod resolv_conf;
mod resolvconf;
mod systemd_resolved;

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use describe::describe;
pub(super) use drop_in::DROP_INS;
use drop_in::{DNSMASQ, DropIn, NETWORK_MANAGER};
pub(super) use own_files::unit_steps;
pub use own_files::{check_state_directory, plan_file, plan_server, plan_unit};
pub(super) use resolv_conf::resolv_conf_steps;
pub(super) use resolvconf::leftover_record;
pub(super) use systemd_resolved::leftover_link;

use super::Root;
use super::command::words;
use super::detect::Machine;
use super::install_step::{CommandStep, InstallStep};
use super::integration::Integration;
use super::nsswitch::NSSWITCH_CONF;
use super::unit::{HEADING, HOOK, HookUnit};

/// Options of an installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallOptions {
    /// The served zones, without trailing dots.
    pub zones: Vec<String>,
    /// The address at which svcdns answers.
    pub server: SocketAddr,
    /// Whether to add the zones to the search list.
    pub search: bool,
    /// Whether to keep the existing name servers in `/etc/resolv.conf`, listed after svcdns.
    pub keep_others: bool,
    /// Whether an immutable file (`chattr +i`) may be changed.
    pub lift_immutable: bool,
}

/// The steps of an installation.
#[derive(Debug)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<InstallStep>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Reason why there is no plan, with a remedy for the user.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A file of the machine prevents the installation; the text contains the remedy.
    #[error("{path} {problem}")]
    File {
        /// The path of the file.
        path: PathBuf,
        /// Problem and remedy, as the rest of a sentence about the file.
        problem: String,
    },
    /// A program is missing or too old; the text contains the remedy.
    #[error("{0}")]
    Program(String),
}

/// Plans the integration of the server into this machine's name resolution.
///
/// # Errors
/// If the user has to change or decide something first.
pub fn plan(
    root: &Root,
    machine: &Machine,
    integration: Integration,
    options: &InstallOptions,
) -> Result<Plan, PlanError> {
    let mut plan = PlanBuilder { root, machine, options, steps: Vec::new(), notes: Vec::new() };
    plan.check_hosts_line()?;
    match integration {
        Integration::Delegate => plan.add_delegate()?,
        Integration::Link => plan.add_link()?,
        Integration::Dnsmasq => plan.add_dnsmasq_drop_in()?,
        Integration::NetworkManager => plan.add_network_manager_drop_in()?,
        Integration::Resolvconf => plan.add_resolvconf_record()?,
        Integration::ResolvConf => plan.edit_resolv_conf(false)?,
        Integration::ResolvConfInPlace => plan.edit_resolv_conf(true)?,
    }
    Ok(Plan { steps: plan.steps, notes: plan.notes })
}

/// Builder of a plan.
struct PlanBuilder<'a> {
    root: &'a Root,
    machine: &'a Machine,
    options: &'a InstallOptions,
    steps: Vec<InstallStep>,
    notes: Vec<String>,
}

impl PlanBuilder<'_> {
    /// Checks that the C library uses DNS at all.
    fn check_hosts_line(&self) -> Result<(), PlanError> {
        let hosts = &self.machine.hosts;
        if hosts.is_empty() || hosts.iter().any(|source| source == "dns" || source == "resolve") {
            return Ok(());
        }
        Err(PlanError::File {
            path: NSSWITCH_CONF.into(),
            problem: format!(
                "has the line `hosts: {}`, which uses no DNS server: add `dns` to its end, and \
                 run this command again",
                hosts.join(" ")
            ),
        })
    }

    fn add_dnsmasq_drop_in(&mut self) -> Result<(), PlanError> {
        let server = self.options.server;
        let mut text = String::new();
        for zone in &self.options.zones {
            let _ = writeln!(text, "server=/{zone}/{}#{}", server.ip(), server.port());
        }
        self.add_drop_in(&DNSMASQ, &text, true)?;
        if self.options.search {
            self.notes.push(
                "dnsmasq has no search list: add the zone to that of the connection, with \
                 `nmcli connection modify NAME +ipv4.dns-search svc`"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn add_network_manager_drop_in(&mut self) -> Result<(), PlanError> {
        let running = self.machine.network_manager.as_ref().is_some_and(|manager| manager.running);
        self.add_drop_in(&NETWORK_MANAGER, "[main]\nrc-manager=unmanaged\n", running)?;
        self.edit_resolv_conf(false)
    }

    /// Adds a drop-in file, and the command that makes its program read it.
    ///
    /// `is_running` tells whether that program runs.
    fn add_drop_in(
        &mut self,
        drop_in: &DropIn,
        text: &str,
        is_running: bool,
    ) -> Result<(), PlanError> {
        // Steps are undone in reverse order, so the first one is undone after the file was removed.
        self.steps.push(drop_in.undo_step());
        let path = Path::new(drop_in.path);
        self.steps.extend(plan_file(self.root, path, &format!("{HEADING}{text}"))?);
        if is_running {
            self.steps.push(InstallStep::Command(CommandStep {
                purpose: drop_in.purpose.to_owned(),
                run: vec![words(drop_in.reload)],
                ..CommandStep::default()
            }));
        }
        Ok(())
    }

    /// Adds the commands of a hook, in a unit if the machine has systemd.
    ///
    /// Without systemd the commands run once, and a note names the event that undoes them.
    /// `exists` is a command that succeeds if there is something to undo; empty for always.
    fn add_hook(
        &mut self,
        hook: &HookUnit,
        exists: Vec<String>,
        event: &str,
    ) -> Result<(), PlanError> {
        if self.machine.systemd {
            self.steps.extend(plan_unit(self.root, HOOK, &hook.to_unit())?);
            return Ok(());
        }
        self.steps.push(InstallStep::Command(CommandStep {
            purpose: hook.description.clone(),
            run: hook.start.clone(),
            undo: hook.stop.clone(),
            undo_if: exists,
        }));
        self.notes.push(format!(
            "{event} undoes this, and there is no systemd to do it again: have these commands run \
             each time the server starts\n{}",
            hook.to_shell()
        ));
        Ok(())
    }

    fn find_program(&self, name: &str, package: &str) -> Result<String, PlanError> {
        let program = self.root.program(name).map(|path| path.display().to_string());
        program.ok_or_else(|| {
            PlanError::Program(format!(
                "the program `{name}` is missing: install {package}, and run this command again"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::detect::{
        NetworkManager, ResolvConfContent, ResolvConfFile, Resolvconf, Resolved, ResolvedAccess,
        ResolverManager,
    };
    use super::super::unit;
    use super::*;
    use crate::resolv_conf::RESOLV_CONF;

    /// Creates a machine with this manager and the programs that a plan needs.
    fn machine(manager: ResolverManager) -> (tempfile::TempDir, Root, Machine) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for path in ["/etc", "/var/lib/svcdns", "/usr/sbin"] {
            fs::create_dir_all(root.path(path)).unwrap();
        }
        for program in ["ip", "resolvectl", "resolvconf"] {
            fs::write(root.path(Path::new("/usr/sbin").join(program)), "").unwrap();
        }
        let resolved = Resolved {
            version: Some(258),
            dnssec: Some("no".to_owned()),
            access: ResolvedAccess::Stub,
        };
        let machine = Machine {
            manager,
            file: ResolvConfFile {
                target: RESOLV_CONF.into(),
                is_link: false,
                content: ResolvConfContent::Missing,
                mounted: false,
                immutable: false,
            },
            resolved: (manager == ResolverManager::Resolved).then_some(resolved),
            network_manager: None,
            resolvconf: None,
            dhcp_client: None,
            networkd: false,
            systemd: true,
            container: None,
            hosts: vec!["files".to_owned(), "dns".to_owned()],
        };
        (folder, root, machine)
    }

    fn options() -> InstallOptions {
        let zones = vec!["svc".to_owned(), "corp.test".to_owned()];
        InstallOptions {
            zones,
            server: "127.0.0.1:5300".parse().unwrap(),
            search: false,
            keep_others: false,
            lift_immutable: false,
        }
    }

    fn steps(root: &Root, machine: &Machine, options: &InstallOptions) -> String {
        let plan = plan(root, machine, Integration::for_machine(machine), options).unwrap();
        plan.steps.iter().map(describe).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_dns_delegate_is_planned_unless_systemd_resolved_might_validate_dnssec() {
        let (_folder, root, mut machine) = machine(ResolverManager::Resolved);
        let text = steps(&root, &machine, &options());
        for expected in [
            "write /etc/systemd/dns-delegate.d/svcdns.dns-delegate",
            "+[Delegate]",
            "+DNS=127.0.0.1:5300",
            "+Domains=~svc ~corp.test",
            "systemctl reload-or-restart systemd-resolved.service",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(
            steps(&root, &machine, &InstallOptions { search: true, ..options() })
                .contains("+Domains=svc corp.test")
        );
        // If it validates, or might, the zones need a link with validation off.
        for dnssec in [Some("yes"), Some("allow-downgrade"), None] {
            machine.resolved.as_mut().unwrap().dnssec = dnssec.map(str::to_owned);
            assert_eq!(Integration::for_machine(&machine), Integration::Link);
        }
    }

    #[test]
    fn a_network_link_is_planned_in_a_unit_bound_to_systemd_resolved() {
        let (_folder, root, mut machine) = machine(ResolverManager::Resolved);
        machine.resolved.as_mut().unwrap().version = Some(252);
        machine.networkd = true;
        machine.network_manager = Some(NetworkManager {
            running: true,
            dns: "systemd-resolved".to_owned(),
            rc_manager: "auto".to_owned(),
        });
        let text = steps(&root, &machine, &options());
        for expected in [
            "write /etc/systemd/network/00-svcdns.network",
            "+Unmanaged=yes",
            "+unmanaged-devices+=interface-name:svcdns0;interface-name:svcdns1",
            "write /etc/systemd/system/svcdns-resolver.service",
            "+PartOf=systemd-resolved.service",
            "+ExecStart=/usr/sbin/resolvectl dnssec svcdns0 no",
            "+ExecStart=/usr/sbin/resolvectl domain svcdns0 ~svc ~corp.test",
            "+ExecStart=/usr/sbin/resolvectl dns svcdns0 127.0.0.1:5300",
            "systemctl enable svcdns-resolver.service",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(text.contains("+Restart=on-failure"), "{text}");
        assert!(!Integration::Link.needs_port_53(&machine));
        machine.resolved.as_mut().unwrap().version = Some(243);
        assert!(!steps(&root, &machine, &options()).contains("+Restart=on-failure"));
        machine.resolved.as_mut().unwrap().version = Some(245);
        assert!(Integration::Link.needs_port_53(&machine));
        let on_53 = InstallOptions { server: "127.0.0.1:53".parse().unwrap(), ..options() };
        assert!(steps(&root, &machine, &on_53).contains("resolvectl dns svcdns0 127.0.0.1\n"));
        machine.resolved.as_mut().unwrap().version = Some(237);
        assert!(
            plan(&root, &machine, Integration::for_machine(&machine), &options())
                .unwrap_err()
                .to_string()
                .contains("systemd-resolved 237")
        );
    }

    #[test]
    fn a_drop_in_is_planned_for_the_dnsmasq_of_networkmanager() {
        let (_folder, root, mut machine) = machine(ResolverManager::NetworkManager);
        machine.network_manager = Some(NetworkManager {
            running: true,
            dns: "dnsmasq".to_owned(),
            rc_manager: "auto".to_owned(),
        });
        let text = steps(&root, &machine, &options());
        for expected in [
            "+server=/svc/127.0.0.1#5300",
            "+server=/corp.test/127.0.0.1#5300",
            "nmcli general reload dns-full",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(
            !Integration::for_machine(&machine).takes_all(false)
                && !Integration::for_machine(&machine).needs_port_53(&machine)
        );
    }

    #[test]
    fn a_resolvconf_record_is_planned_in_a_unit_bound_to_the_server() {
        let (_folder, root, machine) = machine(ResolverManager::Resolvconf(Resolvconf::Debian));
        let options = InstallOptions { server: "127.0.0.1:53".parse().unwrap(), ..options() };
        let text = steps(&root, &machine, &options);
        assert!(
            text.contains("+PartOf=svcdns.service") && text.contains("resolvconf -d lo.svcdns"),
            "{text}"
        );
        let openresolv =
            Machine { manager: ResolverManager::Resolvconf(Resolvconf::Openresolv), ..machine };
        let text = steps(&root, &openresolv, &options);
        assert!(text.contains("resolvconf -f -d lo.svcdns"), "{text}");
        assert!(
            text.contains(r"printf 'nameserver 127.0.0.1\\n' | /usr/sbin/resolvconf -a lo.svcdns"),
            "{text}"
        );
    }

    #[test]
    fn a_unit_is_enabled_and_its_undo_disables_it() {
        let (_folder, root, _) = machine(ResolverManager::Nothing);
        let steps = plan_unit(&root, unit::SERVER, "[Unit]\n").unwrap();
        let Some(InstallStep::Command(last)) = steps.last() else { panic!("{steps:?}") };
        assert_eq!(last.undo, [words(&["systemctl", "disable", "--now", "svcdns.service"])]);
        let Some(InstallStep::Command(first)) = steps.first() else { panic!("{steps:?}") };
        let reload = words(&["systemctl", "daemon-reload"]);
        let forget = words(&["systemctl", "reset-failed", "svcdns.service*"]);
        assert_eq!((first.run.len(), &first.undo), (0, &vec![reload, forget]));
        assert!(steps.contains(&InstallStep::Folder("/etc/systemd/system".into())));
    }

    #[test]
    fn the_port_bridge_gets_a_drop_in_file_and_its_table_is_removed_after_the_server() {
        let (_folder, root, _) = machine(ResolverManager::Nothing);
        let plain = plan_server(&root, "[Unit]\n", None).unwrap();
        assert_eq!(plain, plan_unit(&root, unit::SERVER, "[Unit]\n").unwrap());
        let steps = plan_server(&root, "[Unit]\n", Some("the_table")).unwrap();
        let text = steps.iter().map(describe).collect::<Vec<_>>().join("\n");
        for expected in [
            "write /etc/systemd/system/svcdns.service.d/svcdns-bridge.conf",
            "+AmbientCapabilities=CAP_NET_ADMIN",
            "+# Written by `svcdns install`",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        // Each directory is created once, and the server is started with the file in place.
        let folders: Vec<_> =
            steps.iter().filter(|step| matches!(step, InstallStep::Folder(_))).collect();
        assert_eq!(folders.len(), 3, "{folders:?}");
        // Steps are undone in reverse order.
        let Some(InstallStep::Command(first)) = steps.first() else { panic!("{steps:?}") };
        assert_eq!(first.undo, [words(&["nft", "delete", "table", "ip", "the_table"])]);
        let Some(InstallStep::Command(last)) = steps.last() else { panic!("{steps:?}") };
        assert!(last.undo[0].contains(&"disable".to_owned()), "{last:?}");
    }

    #[test]
    fn a_dhcp_client_is_noted_and_a_missing_program_is_an_error() {
        let (_folder, root, mut machine) = machine(ResolverManager::Nothing);
        machine.dhcp_client = Some("dhclient");
        let plan_of =
            |machine: &Machine| plan(&root, machine, Integration::for_machine(machine), &options());
        assert!(
            plan_of(&machine)
                .unwrap()
                .notes
                .join("\n")
                .contains("dhclient rewrites /etc/resolv.conf")
        );
        fs::remove_file(root.path("/usr/sbin/resolvconf")).unwrap();
        machine.manager = ResolverManager::Resolvconf(Resolvconf::Openresolv);
        assert!(plan_of(&machine).unwrap_err().to_string().contains("`resolvconf` is missing"));
    }
}
