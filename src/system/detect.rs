//! Detection of the program that manages name resolution on this machine.
//!
//! Reads files and a [`RuntimeState`], and changes nothing. The result describes programs that
//! resolve names through the C library: `nsswitch.conf` names its sources, `resolv.conf` the DNS
//! servers.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use super::nsswitch::NSSWITCH_CONF;
use super::runtime_state::RESOLVED_PROCESS;
use super::{HostsLine, Root, RuntimeState};
use crate::regular_file;
use crate::resolv_conf::{MAX_RESOLV_CONF_BYTES, RESOLV_CONF, ResolvConf};

/// The settings of WSL (<https://learn.microsoft.com/windows/wsl/wsl-config>).
pub(super) const WSL_CONF: &str = "/etc/wsl.conf";

/// The directory of WSL 2 that all its distributions share.
pub(super) const WSL_FOLDER: &str = "/mnt/wsl";

/// Name resolution of this machine.
#[derive(Debug)]
pub struct Machine {
    /// Manager of name resolution.
    pub manager: ResolverManager,
    /// The state of `/etc/resolv.conf`.
    pub file: ResolvConfFile,
    /// systemd-resolved, if it runs, even if it is not the manager.
    pub resolved: Option<Resolved>,
    /// NetworkManager, if it runs or wrote `/etc/resolv.conf`.
    pub network_manager: Option<NetworkManager>,
    /// The installed program named `resolvconf`, if any.
    pub resolvconf: Option<Resolvconf>,
    /// The DHCP client that runs or wrote `/etc/resolv.conf`, if any.
    pub dhcp_client: Option<&'static str>,
    /// Whether systemd-networkd runs.
    pub networkd: bool,
    /// Whether systemd is the service manager (sd_booted(3)).
    pub systemd: bool,
    /// The kind of container that this machine is, if it is one.
    pub container: Option<Container>,
    /// The sources of host names in `nsswitch.conf`, in order.
    ///
    /// Empty if there is no such file; musl has none.
    pub hosts: Vec<String>,
}

/// Manager of name resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolverManager {
    /// systemd-resolved answers queries.
    Resolved,
    /// NetworkManager writes `/etc/resolv.conf`, or the file that it links to.
    NetworkManager,
    /// A program named `resolvconf` writes `/etc/resolv.conf`.
    Resolvconf(Resolvconf),
    /// The container engine mounted `/etc/resolv.conf`.
    ContainerEngine,
    /// WSL, the Windows Subsystem for Linux, writes `/etc/resolv.conf` at each start.
    Wsl,
    /// Nothing: `/etc/resolv.conf` is an ordinary file.
    Nothing,
}

impl fmt::Display for ResolverManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolved => "systemd-resolved",
            Self::NetworkManager => "NetworkManager",
            Self::Resolvconf(Resolvconf::Debian) => "resolvconf (Debian's)",
            Self::Resolvconf(Resolvconf::Openresolv) => "resolvconf (openresolv)",
            Self::ContainerEngine => "the container engine (it mounted /etc/resolv.conf)",
            Self::Wsl => "WSL (it writes /etc/resolv.conf at each start)",
            Self::Nothing => "nothing (/etc/resolv.conf is an ordinary file)",
        })
    }
}

/// The state of `/etc/resolv.conf`.
#[derive(Debug)]
pub struct ResolvConfFile {
    /// The file itself: `/etc/resolv.conf`, or the target of its symbolic links.
    pub target: PathBuf,
    /// Whether `/etc/resolv.conf` is a symbolic link.
    pub is_link: bool,
    /// The content of the target.
    pub content: ResolvConfContent,
    /// Whether the target is a mount point, which cannot be replaced.
    pub mounted: bool,
    /// Whether the target is immutable (`chattr +i`).
    pub immutable: bool,
}

/// The content of `/etc/resolv.conf`.
#[derive(Debug)]
pub enum ResolvConfContent {
    /// A regular file with this content.
    File(Vec<u8>),
    /// There is no file: the C library then queries 127.0.0.1 (resolv.conf(5)).
    Missing,
    /// The file cannot be read.
    Unreadable(io::Error),
    /// The path is not a regular file.
    NotAFile,
    /// The file is longer than [`MAX_RESOLV_CONF_BYTES`].
    TooLong,
}

impl ResolvConfFile {
    /// Returns the content of the file; empty if there is none.
    pub fn bytes(&self) -> &[u8] {
        match &self.content {
            ResolvConfContent::File(bytes) => bytes,
            _ => &[],
        }
    }

    /// Parses the content.
    pub fn conf(&self) -> ResolvConf<'_> {
        ResolvConf::parse(self.bytes())
    }

    /// Reads the file.
    pub(super) fn read(root: &Root, state: &RuntimeState) -> Self {
        let is_link = fs::read_link(root.path(RESOLV_CONF)).is_ok();
        let (target, content) = match root.follow(RESOLV_CONF) {
            Err(error) => (PathBuf::from(RESOLV_CONF), ResolvConfContent::Unreadable(error)),
            Ok(target) => {
                let content = read(&root.path(&target));
                (target, content)
            }
        };
        let immutable = super::path_state::is_immutable(&root.path(&target));
        Self { mounted: state.mount_at(&target).is_some(), target, is_link, content, immutable }
    }

    /// Returns the comments in the first eight lines, in lower case.
    ///
    /// Programs that generate the file identify themselves there.
    fn heading(&self) -> String {
        let lines = self.bytes().split(|byte| *byte == b'\n').take(8);
        let comments = lines.filter_map(|line| line.strip_prefix(b"#"));
        comments
            .map(|line| String::from_utf8_lossy(line).to_lowercase())
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn read(path: &Path) -> ResolvConfContent {
    match regular_file::read_blocking(path, MAX_RESOLV_CONF_BYTES as u64) {
        Ok(bytes) => ResolvConfContent::File(bytes),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => ResolvConfContent::Missing,
            ErrorKind::InvalidInput => ResolvConfContent::NotAFile,
            ErrorKind::FileTooLarge => ResolvConfContent::TooLong,
            _ => ResolvConfContent::Unreadable(error),
        },
    }
}

/// A running systemd-resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Version of systemd-resolved, such as 252, if known.
    pub version: Option<u32>,
    /// Global DNSSEC mode, if known: `no`, `yes` or `allow-downgrade`.
    pub dnssec: Option<String>,
    /// Access of programs to systemd-resolved.
    pub access: ResolvedAccess,
}

/// Access of programs to systemd-resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolvedAccess {
    /// `/etc/resolv.conf` lists the stub of systemd-resolved, 127.0.0.53: all programs reach it.
    Stub,
    /// Only `nsswitch.conf` refers to it, so only programs that use glibc reach it.
    GlibcOnly,
    /// `/etc/resolv.conf` lists the upstreams of systemd-resolved: programs bypass it.
    Bypassed,
    /// No file refers programs to it.
    Unused,
}

/// The state of NetworkManager, with its DNS settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkManager {
    /// Whether NetworkManager runs.
    pub running: bool,
    /// `main.dns` of its configuration, or `default`.
    pub dns: String,
    /// `main.rc-manager` of its configuration, or `auto`.
    pub rc_manager: String,
}

/// A program named `resolvconf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolvconf {
    /// Debian's own.
    Debian,
    /// openresolv.
    Openresolv,
}

/// A container engine, detected by the files that it creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
    /// A Kubernetes pod.
    Kubernetes,
    /// Another container engine.
    Other,
}

/// Detects how this machine resolves names.
pub fn detect(root: &Root, state: &RuntimeState) -> Machine {
    let file = ResolvConfFile::read(root, state);
    let hosts = host_sources(&root.text(NSSWITCH_CONF).unwrap_or_default());
    let resolved = state.runs(RESOLVED_PROCESS).then(|| Resolved {
        version: state.resolved_version,
        dnssec: state.resolved_dnssec.clone(),
        access: resolved_access(&file, &hosts),
    });
    let heading = file.heading();
    let by_network_manager = file.target.starts_with("/run/NetworkManager")
        || heading.contains("generated by networkmanager");
    let network_manager =
        (by_network_manager || state.runs("NetworkManager")).then(|| network_manager(root, state));
    let resolvconf = resolvconf(root);
    let dhcp_client = ["dhclient", "dhcpcd", "udhcpc"]
        .into_iter()
        .find(|client| state.runs(client) || heading.contains(&format!("generated by {client}")));

    let manager = if resolved.as_ref().is_some_and(|it| it.access != ResolvedAccess::Unused) {
        ResolverManager::Resolved
    } else if file.mounted {
        ResolverManager::ContainerEngine
    } else if wsl_writes_resolv_conf(root, &file, &heading) {
        ResolverManager::Wsl
    } else if by_network_manager {
        ResolverManager::NetworkManager
    } else if file.target.starts_with("/run/resolvconf")
        || file.target.starts_with("/etc/resolvconf/run")
    {
        ResolverManager::Resolvconf(resolvconf.unwrap_or(Resolvconf::Debian))
    } else if let Some(which) = resolvconf.filter(|_| heading.contains("generated by resolvconf")) {
        ResolverManager::Resolvconf(which)
    } else {
        ResolverManager::Nothing
    };
    Machine {
        manager,
        file,
        resolved,
        network_manager,
        resolvconf,
        dhcp_client,
        networkd: state.runs("systemd-networkd"),
        systemd: root.path("/run/systemd/system").is_dir(),
        container: container(root),
        hosts,
    }
}

/// Returns whether WSL writes `/etc/resolv.conf`.
///
/// WSL 2 links the path to one file for all its distributions. wsl.conf can turn this off.
fn wsl_writes_resolv_conf(root: &Root, file: &ResolvConfFile, heading: &str) -> bool {
    let written =
        file.target.starts_with(WSL_FOLDER) || heading.contains("automatically generated by wsl");
    let is_off = |(key, value): &(&str, &str)| {
        key.eq_ignore_ascii_case("generateResolvConf") && value.eq_ignore_ascii_case("false")
    };
    written && !section_keys(&root.text(WSL_CONF).unwrap_or_default(), "network").iter().any(is_off)
}

fn resolved_access(file: &ResolvConfFile, hosts: &[String]) -> ResolvedAccess {
    let first = file.conf().name_servers().next().map(|server| server.address.to_string());
    let position = |name: &str| hosts.iter().position(|source| source == name);
    let glibc_asks_resolved = match (position("resolve"), position("dns")) {
        (Some(resolve), Some(dns)) => resolve < dns,
        (resolve, _) => resolve.is_some(),
    };
    if file.target == Path::new("/run/systemd/resolve/resolv.conf") {
        // glibc reaches systemd-resolved by nsswitch.conf, regardless of this file.
        return if glibc_asks_resolved {
            ResolvedAccess::GlibcOnly
        } else {
            ResolvedAccess::Bypassed
        };
    }
    if first.is_some_and(|address| address == "127.0.0.53" || address == "127.0.0.54") {
        return ResolvedAccess::Stub;
    }
    if glibc_asks_resolved { ResolvedAccess::GlibcOnly } else { ResolvedAccess::Unused }
}

/// Returns the names of the services in the `hosts` line.
fn host_sources(text: &str) -> Vec<String> {
    HostsLine::find(text).map_or_else(Vec::new, |hosts| {
        hosts.services.into_iter().map(|service| service.name).collect()
    })
}

/// Reads NetworkManager's settings as NetworkManager.conf(5) combines its files.
///
/// A file hides those of the same name in earlier directories. Of two values of one key, the later
/// counts.
fn network_manager(root: &Root, state: &RuntimeState) -> NetworkManager {
    let mut settings = NetworkManager {
        running: state.runs("NetworkManager"),
        dns: "default".to_owned(),
        rc_manager: "auto".to_owned(),
    };
    let conf = "/etc/NetworkManager/conf.d";
    let folders = ["/usr/lib/NetworkManager/conf.d", "/run/NetworkManager/conf.d"];
    let is_hidden = |file: &Path, by: &[&str]| {
        file.file_name()
            .is_some_and(|name| by.iter().any(|folder| root.has(Path::new(folder).join(name))))
    };
    let mut files: Vec<PathBuf> = root.files(folders[0], ".conf");
    files.retain(|file| !is_hidden(file, &[folders[1], conf]));
    files.extend(
        root.files(folders[1], ".conf").into_iter().filter(|file| !is_hidden(file, &[conf])),
    );
    files.push("/etc/NetworkManager/NetworkManager.conf".into());
    files.extend(root.files(conf, ".conf"));
    for text in files.iter().filter_map(|file| root.text(file)) {
        for (key, value) in section_keys(&text, "main") {
            match key {
                "dns" => value.clone_into(&mut settings.dns),
                "rc-manager" => value.clone_into(&mut settings.rc_manager),
                _ => {}
            }
        }
    }
    settings
}

/// Returns the keys and values of one section of an INI file.
fn section_keys<'a>(text: &'a str, section: &str) -> Vec<(&'a str, &'a str)> {
    let mut in_section = false;
    let mut keys = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            in_section = name == section;
        } else if let Some((key, value)) =
            line.split_once('=').filter(|_| in_section && !line.starts_with(['#', ';']))
        {
            keys.push((key.trim(), value.trim()));
        }
    }
    keys
}

/// Returns which `resolvconf` is installed.
///
/// systemd's `resolvconf`, a link to `resolvectl`, does not count.
fn resolvconf(root: &Root) -> Option<Resolvconf> {
    let program = root.follow(root.program("resolvconf")?).ok()?;
    if program.ends_with("resolvectl") {
        return None;
    }
    Some(if root.text(&program)?.contains("openresolv") {
        Resolvconf::Openresolv
    } else {
        Resolvconf::Debian
    })
}

fn container(root: &Root) -> Option<Container> {
    if root.has("/var/run/secrets/kubernetes.io") {
        Some(Container::Kubernetes)
    } else if root.has("/.dockerenv") {
        Some(Container::Docker)
    } else if root.has("/run/.containerenv") {
        Some(Container::Podman)
    } else {
        root.has("/run/systemd/container").then_some(Container::Other)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Creates a machine with these files, and detects its name resolution.
    ///
    /// Content that starts with `->` makes a symbolic link.
    fn machine(files: &[(&str, &str)], state: &RuntimeState) -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for (path, content) in files {
            let path = root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("->") {
                Some(target) => symlink(target, path).unwrap(),
                None => fs::write(path, content).unwrap(),
            }
        }
        detect(&root, state)
    }

    fn running(processes: &[&str]) -> RuntimeState {
        RuntimeState {
            processes: processes.iter().map(|&name| name.to_owned()).collect(),
            resolved_version: Some(252),
            ..RuntimeState::default()
        }
    }

    const STUB: (&str, &str) = (
        "/run/systemd/resolve/stub-resolv.conf",
        "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n",
    );
    const UPLINK: (&str, &str) = ("/run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\n");

    #[test]
    fn how_programs_reach_systemd_resolved_is_detected() {
        let to_stub = ("/etc/resolv.conf", "->../run/systemd/resolve/stub-resolv.conf");
        let found = machine(&[STUB, UPLINK, to_stub], &running(&["systemd-resolve"]));
        assert_eq!(found.manager, ResolverManager::Resolved);
        assert_eq!(
            found.resolved,
            Some(Resolved { version: Some(252), dnssec: None, access: ResolvedAccess::Stub })
        );
        assert!(found.file.is_link);
        assert_eq!(found.file.target, Path::new(STUB.0));

        let uplinks = ("/etc/resolv.conf", "->/run/systemd/resolve/resolv.conf");
        let found = machine(&[STUB, UPLINK, uplinks], &running(&["systemd-resolve"]));
        assert_eq!(
            (found.manager, found.resolved.unwrap().access),
            (ResolverManager::Resolved, ResolvedAccess::Bypassed)
        );
        let resolve_first = (
            "/etc/nsswitch.conf",
            "passwd: files\nhosts: files myhostname resolve [!UNAVAIL=return] dns # and so on\n",
        );
        let found =
            machine(&[STUB, UPLINK, uplinks, resolve_first], &running(&["systemd-resolve"]));
        assert_eq!(
            (found.manager, found.resolved.unwrap().access),
            (ResolverManager::Resolved, ResolvedAccess::GlibcOnly)
        );
        assert_eq!(found.hosts, ["files", "myhostname", "resolve", "dns"]);

        // systemd-resolved runs, but no file refers to it.
        let plain = ("/etc/resolv.conf", "nameserver 192.0.2.1\n");
        let found = machine(&[STUB, UPLINK, plain], &running(&["systemd-resolve"]));
        assert_eq!(
            (found.manager, found.resolved.unwrap().access),
            (ResolverManager::Nothing, ResolvedAccess::Unused)
        );
        // The link exists, but systemd-resolved does not run.
        let found = machine(&[to_stub], &running(&[]));
        assert_eq!(found.manager, ResolverManager::Nothing);
        assert!(matches!(found.file.content, ResolvConfContent::Missing));
    }

    #[test]
    fn network_manager_is_detected_by_link_or_heading() {
        let files = [
            (
                "/run/NetworkManager/resolv.conf",
                "# Generated by NetworkManager\nnameserver 192.0.2.1\n",
            ),
            ("/etc/resolv.conf", "->/run/NetworkManager/resolv.conf"),
            ("/usr/lib/NetworkManager/conf.d/10-a.conf", "[main]\ndns=none\n"),
            ("/usr/lib/NetworkManager/conf.d/20-b.conf", "[main]\nrc-manager=file\n"),
            (
                "/etc/NetworkManager/NetworkManager.conf",
                "[device]\ndns=wrong\n[main]\nplugins=keyfile\n#dns=wrong\n dns = dnsmasq\n",
            ),
            ("/etc/NetworkManager/conf.d/20-b.conf", "# hides the other file\n"),
        ];
        let found = machine(&files, &running(&["NetworkManager"]));
        assert_eq!(found.manager, ResolverManager::NetworkManager);
        let settings = NetworkManager {
            running: true,
            dns: "dnsmasq".to_owned(),
            rc_manager: "auto".to_owned(),
        };
        assert_eq!(found.network_manager, Some(settings));

        let found = machine(
            &[("/etc/resolv.conf", "# Generated by NetworkManager\nnameserver 192.0.2.1\n")],
            &running(&[]),
        );
        assert_eq!(found.manager, ResolverManager::NetworkManager);
        assert!(!found.network_manager.unwrap().running);
    }

    #[test]
    fn wsl_is_detected_unless_wsl_conf_stops_it_from_writing_resolv_conf() {
        let heading = "# This file was automatically generated by WSL. To stop automatic \
                       generation of this file, add the following entry to /etc/wsl.conf:\n\
                       # [network]\n# generateResolvConf = false\nnameserver 10.255.255.254\n";
        let link = ("/etc/resolv.conf", "->/mnt/wsl/resolv.conf");
        let linked = [("/mnt/wsl/resolv.conf", heading), link];
        let plain = [("/etc/resolv.conf", heading), ("/etc/wsl.conf", "[boot]\nsystemd=true\n")];
        for files in [&linked[..], &plain] {
            assert_eq!(machine(files, &running(&[])).manager, ResolverManager::Wsl);
        }
        let off = ("/etc/wsl.conf", "[network]\ngenerateResolvConf = false\n");
        assert_eq!(machine(&[plain[0], off], &running(&[])).manager, ResolverManager::Nothing);
    }

    #[test]
    fn debians_resolvconf_and_openresolv_are_detected_but_not_systemds() {
        let link = ("/etc/resolv.conf", "->../run/resolvconf/resolv.conf");
        let generated = (
            "/run/resolvconf/resolv.conf",
            "# Dynamic resolv.conf(5) file\nnameserver 192.0.2.1\n",
        );
        let found = machine(
            &[
                link,
                generated,
                ("/sbin/resolvconf", "#!/bin/bash\n# part of the resolvconf package\n"),
            ],
            &running(&[]),
        );
        assert_eq!(found.manager, ResolverManager::Resolvconf(Resolvconf::Debian));
        let file = ("/etc/resolv.conf", "# Generated by resolvconf\nnameserver 192.0.2.1\n");
        let found = machine(
            &[file, ("/sbin/resolvconf", "#!/bin/sh\nOPENRESOLV_VERSION=3.12 # openresolv\n")],
            &running(&[]),
        );
        assert_eq!(found.manager, ResolverManager::Resolvconf(Resolvconf::Openresolv));
        let shim =
            [file, ("/usr/sbin/resolvconf", "->../bin/resolvectl"), ("/usr/bin/resolvectl", "")];
        assert_eq!(machine(&shim, &running(&[])).resolvconf, None);
    }

    #[test]
    fn containers_and_dhcp_clients_are_detected() {
        let mut state = running(&["dhclient"]);
        let plain = ("/etc/resolv.conf", "nameserver 192.0.2.1\n");
        let found = machine(&[plain], &state);
        assert_eq!(
            (found.manager, found.dhcp_client, found.container),
            (ResolverManager::Nothing, Some("dhclient"), None)
        );
        state.mounts.push(super::super::Mount { at: "/etc/resolv.conf".into(), read_only: false });
        let found = machine(&[plain, ("/.dockerenv", "")], &state);
        assert_eq!(
            (found.manager, found.container),
            (ResolverManager::ContainerEngine, Some(Container::Docker))
        );
        assert!(found.file.mounted);
    }

    #[test]
    fn the_content_of_resolv_conf_is_classified() {
        assert!(matches!(machine(&[], &running(&[])).file.content, ResolvConfContent::Missing));
        assert!(matches!(
            machine(&[("/etc/resolv.conf/x", "")], &running(&[])).file.content,
            ResolvConfContent::NotAFile
        ));
        assert!(matches!(
            machine(&[("/etc/resolv.conf", "->resolv.conf")], &running(&[])).file.content,
            ResolvConfContent::Unreadable(_)
        ));
        let long = "#".repeat(MAX_RESOLV_CONF_BYTES + 1);
        assert!(matches!(
            machine(&[("/etc/resolv.conf", &long)], &running(&[])).file.content,
            ResolvConfContent::TooLong
        ));
        let found = machine(&[("/etc/resolv.conf", "")], &running(&[]));
        assert!(
            matches!(found.file.content, ResolvConfContent::File(_))
                && found.file.bytes().is_empty()
        );
        assert_eq!(found.manager, ResolverManager::Nothing);
    }
}
