//! Who owns name resolution on this machine.
//!
//! A pure function of the machine's files and of what was [`Seen`]. The answer is about programs that ask through the C
//! library: `nsswitch.conf` says whom it asks, `resolv.conf` where DNS questions go.

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use super::nsswitch::NSSWITCH_CONF;
use super::seen::RESOLVED;
use super::{Hosts, Root, Seen};
use crate::resolv_conf::{MAX_RESOLV_CONF_BYTES, RESOLV_CONF, ResolvConf};

/// What was found out.
#[derive(Debug)]
pub struct Machine {
    /// Who owns name resolution.
    pub owner: Owner,
    /// `/etc/resolv.conf`.
    pub file: File,
    /// systemd-resolved, where it runs: also where it is not the owner.
    pub resolved: Option<Resolved>,
    /// NetworkManager, where it runs or made `/etc/resolv.conf`.
    pub network_manager: Option<NetworkManager>,
    /// Which program called `resolvconf` is installed.
    pub resolvconf: Option<Resolvconf>,
    /// The DHCP client that writes `/etc/resolv.conf`, or would.
    pub dhcp_client: Option<&'static str>,
    /// Whether systemd-networkd runs.
    pub networkd: bool,
    /// Whether systemd is the machine's service manager (sd_booted(3)).
    pub systemd: bool,
    /// The container this is, where it is one.
    pub container: Option<Container>,
    /// The sources of host names in `nsswitch.conf`, in order; empty where there is no such file (musl has none).
    pub hosts: Vec<String>,
}

/// Who owns name resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// systemd-resolved answers.
    Resolved,
    /// NetworkManager writes `/etc/resolv.conf`, or what it points to.
    NetworkManager,
    /// A program called `resolvconf` writes it.
    Resolvconf(Resolvconf),
    /// A container's engine has mounted it.
    Engine,
    /// Whoever likes to: an ordinary file.
    Nobody,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolved => "systemd-resolved",
            Self::NetworkManager => "NetworkManager",
            Self::Resolvconf(Resolvconf::Debian) => "resolvconf (Debian's)",
            Self::Resolvconf(Resolvconf::Openresolv) => "resolvconf (openresolv)",
            Self::Engine => "the container's engine (it mounted /etc/resolv.conf)",
            Self::Nobody => "nobody: /etc/resolv.conf is an ordinary file",
        })
    }
}

/// `/etc/resolv.conf` as it was found.
#[derive(Debug)]
pub struct File {
    /// Where it leads when its links are followed, `/etc/resolv.conf` itself where it is none.
    pub target: PathBuf,
    /// Whether it is a symbolic link.
    pub is_link: bool,
    /// What it is.
    pub kind: Kind,
    /// Whether it is a mount of its own, so that it cannot be replaced.
    pub mounted: bool,
    /// Whether the file system lets nobody change it (`chattr +i`).
    pub immutable: bool,
}

/// What stands at the end of `/etc/resolv.conf`.
#[derive(Debug)]
pub enum Kind {
    /// A file with these octets.
    Ordinary(Vec<u8>),
    /// Nothing: the C library asks 127.0.0.1 then (resolv.conf(5)).
    Missing,
    /// What cannot be read.
    Unreadable(io::Error),
    /// Something that is no file.
    NoFile,
    /// A file of more than [`MAX_RESOLV_CONF_BYTES`].
    TooLong,
}

impl File {
    /// Its octets, where it has any.
    pub fn octets(&self) -> &[u8] {
        match &self.kind {
            Kind::Ordinary(octets) => octets,
            _ => &[],
        }
    }

    /// The file, read line by line.
    pub fn conf(&self) -> ResolvConf<'_> {
        ResolvConf::parse(self.octets())
    }

    fn read(root: &Root, seen: &Seen) -> Self {
        let is_link = fs::read_link(root.path(RESOLV_CONF)).is_ok();
        let (target, kind) = match root.follow(RESOLV_CONF) {
            Err(error) => (PathBuf::from(RESOLV_CONF), Kind::Unreadable(error)),
            Ok(target) => {
                let kind = read(&root.path(&target));
                (target, kind)
            }
        };
        let immutable = super::entry::is_immutable(&root.path(&target));
        Self { mounted: seen.mount_at(&target).is_some(), target, is_link, kind, immutable }
    }

    /// What the first comment of the file begins with, lower case.
    fn heading(&self) -> String {
        let lines = self.octets().split(|octet| *octet == b'\n').take(8);
        let comments = lines.filter_map(|line| line.strip_prefix(b"#"));
        comments.map(|line| String::from_utf8_lossy(line).to_lowercase()).collect::<Vec<_>>().join("\n")
    }
}

fn read(path: &Path) -> Kind {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Kind::Missing,
        Err(error) => Kind::Unreadable(error),
        Ok(about) if !about.is_file() => Kind::NoFile,
        Ok(about) if about.len() > MAX_RESOLV_CONF_BYTES as u64 => Kind::TooLong,
        Ok(_) => fs::read(path).map_or_else(Kind::Unreadable, Kind::Ordinary),
    }
}

/// A running systemd-resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its version: 252; none where it does not say.
    pub version: Option<u32>,
    /// Whether it validates by itself: `no`, `yes`, `allow-downgrade`; none where it does not say.
    pub dnssec: Option<String>,
    /// How programs come to ask it.
    pub reach: Reach,
}

/// How programs come to ask systemd-resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// `/etc/resolv.conf` names its stub, 127.0.0.53: all programs do.
    Stub,
    /// `nsswitch.conf` names it: programs that use glibc do; those that read `/etc/resolv.conf` themselves do not.
    Library,
    /// `/etc/resolv.conf` is its list of the servers that it asks itself: nobody does.
    Uplink,
    /// Nothing leads to it.
    Nobody,
}

/// NetworkManager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkManager {
    /// Whether it runs.
    pub running: bool,
    /// `main.dns` of its configuration; `default` where nothing is said.
    pub dns: String,
    /// `main.rc-manager` of its configuration; `auto` where nothing is said.
    pub rc_manager: String,
}

/// A program called `resolvconf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolvconf {
    /// Debian's own.
    Debian,
    /// openresolv.
    Openresolv,
}

/// A container, told by what its engine left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
    /// A pod of Kubernetes.
    Kubernetes,
    /// Another one.
    Other,
}

/// Finds out who owns name resolution on this machine.
pub fn detect(root: &Root, seen: &Seen) -> Machine {
    let file = File::read(root, seen);
    let hosts = hosts(&root.text(NSSWITCH_CONF).unwrap_or_default());
    let resolved = seen.runs(RESOLVED).then(|| Resolved {
        version: seen.resolved_version,
        dnssec: seen.resolved_dnssec.clone(),
        reach: reach(&file, &hosts),
    });
    let heading = file.heading();
    let by_manager = file.target.starts_with("/run/NetworkManager") || heading.contains("generated by networkmanager");
    let network_manager = (by_manager || seen.runs("NetworkManager")).then(|| network_manager(root, seen));
    let resolvconf = resolvconf(root);
    let dhcp_client = ["dhclient", "dhcpcd", "udhcpc"]
        .into_iter()
        .find(|client| seen.runs(client) || heading.contains(&format!("generated by {client}")));

    let owner = if resolved.as_ref().is_some_and(|resolved| resolved.reach != Reach::Nobody) {
        Owner::Resolved
    } else if file.mounted {
        Owner::Engine
    } else if by_manager {
        Owner::NetworkManager
    } else if file.target.starts_with("/run/resolvconf") || file.target.starts_with("/etc/resolvconf/run") {
        Owner::Resolvconf(resolvconf.unwrap_or(Resolvconf::Debian))
    } else if let Some(which) = resolvconf.filter(|_| heading.contains("generated by resolvconf")) {
        Owner::Resolvconf(which)
    } else {
        Owner::Nobody
    };
    Machine {
        owner,
        file,
        resolved,
        network_manager,
        resolvconf,
        dhcp_client,
        networkd: seen.runs("systemd-networkd"),
        systemd: root.path("/run/systemd/system").is_dir(),
        container: container(root),
        hosts,
    }
}

fn reach(file: &File, hosts: &[String]) -> Reach {
    let first = file.conf().name_servers().next().map(|server| server.address.to_string());
    let place = |name: &str| hosts.iter().position(|source| source == name);
    if file.target == Path::new("/run/systemd/resolve/resolv.conf") {
        // The library comes first where it is named, whatever the file says.
        return if library_first(place("resolve"), place("dns")) { Reach::Library } else { Reach::Uplink };
    }
    if first.is_some_and(|address| address == "127.0.0.53" || address == "127.0.0.54") {
        return Reach::Stub;
    }
    if library_first(place("resolve"), place("dns")) { Reach::Library } else { Reach::Nobody }
}

fn library_first(resolve: Option<usize>, dns: Option<usize>) -> bool {
    resolve.is_some_and(|resolve| dns.is_none_or(|dns| resolve < dns))
}

/// The sources of the line `hosts:`.
fn hosts(text: &str) -> Vec<String> {
    Hosts::of(text).map_or_else(Vec::new, |hosts| hosts.services.into_iter().map(|service| service.name).collect())
}

/// The settings that count: files of the same name hide each other by folder, later names win (NetworkManager.conf(5)).
fn network_manager(root: &Root, seen: &Seen) -> NetworkManager {
    let mut found = NetworkManager { running: seen.runs("NetworkManager"), dns: "default".to_owned(), rc_manager: "auto".to_owned() };
    let conf = "/etc/NetworkManager/conf.d";
    let folders = ["/usr/lib/NetworkManager/conf.d", "/run/NetworkManager/conf.d"];
    let hidden =
        |file: &Path, by: &[&str]| file.file_name().is_some_and(|name| by.iter().any(|folder| root.has(Path::new(folder).join(name))));
    let mut files: Vec<PathBuf> = root.files(folders[0], ".conf");
    files.retain(|file| !hidden(file, &[folders[1], conf]));
    files.extend(root.files(folders[1], ".conf").into_iter().filter(|file| !hidden(file, &[conf])));
    files.push("/etc/NetworkManager/NetworkManager.conf".into());
    files.extend(root.files(conf, ".conf"));
    for text in files.iter().filter_map(|file| root.text(file)) {
        for (key, value) in keys(&text, "main") {
            match key {
                "dns" => value.clone_into(&mut found.dns),
                "rc-manager" => value.clone_into(&mut found.rc_manager),
                _ => {}
            }
        }
    }
    found
}

/// The keys and values of one section of a file of sections.
fn keys<'a>(text: &'a str, section: &str) -> Vec<(&'a str, &'a str)> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name == section;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| inside && !line.starts_with(['#', ';'])) {
            found.push((key.trim(), value.trim()));
        }
    }
    found
}

/// Which `resolvconf` is installed; systemd's, which is `resolvectl` by another name, is none.
fn resolvconf(root: &Root) -> Option<Resolvconf> {
    let program = root.follow(root.program("resolvconf")?).ok()?;
    if program.ends_with("resolvectl") {
        return None;
    }
    Some(if root.text(&program)?.contains("openresolv") { Resolvconf::Openresolv } else { Resolvconf::Debian })
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

    /// A machine with these files; a content that begins with `->` makes a symbolic link.
    fn machine(files: &[(&str, &str)], seen: &Seen) -> Machine {
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
        detect(&root, seen)
    }

    fn running(processes: &[&str]) -> Seen {
        Seen { processes: processes.iter().map(|&name| name.to_owned()).collect(), resolved_version: Some(252), ..Seen::default() }
    }

    const STUB: (&str, &str) = ("/run/systemd/resolve/stub-resolv.conf", "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n");
    const UPLINK: (&str, &str) = ("/run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\n");

    #[test]
    fn resolved_by_its_stub_its_library_or_past_it() {
        let to_stub = ("/etc/resolv.conf", "->../run/systemd/resolve/stub-resolv.conf");
        let found = machine(&[STUB, UPLINK, to_stub], &running(&["systemd-resolve"]));
        assert_eq!(found.owner, Owner::Resolved);
        assert_eq!(found.resolved, Some(Resolved { version: Some(252), dnssec: None, reach: Reach::Stub }));
        assert!(found.file.is_link);
        assert_eq!(found.file.target, Path::new(STUB.0));

        let past = ("/etc/resolv.conf", "->/run/systemd/resolve/resolv.conf");
        let found = machine(&[STUB, UPLINK, past], &running(&["systemd-resolve"]));
        assert_eq!((found.owner, found.resolved.unwrap().reach), (Owner::Resolved, Reach::Uplink));
        let library = ("/etc/nsswitch.conf", "passwd: files\nhosts: files myhostname resolve [!UNAVAIL=return] dns # and so on\n");
        let found = machine(&[STUB, UPLINK, past, library], &running(&["systemd-resolve"]));
        assert_eq!((found.owner, found.resolved.unwrap().reach), (Owner::Resolved, Reach::Library));
        assert_eq!(found.hosts, ["files", "myhostname", "resolve", "dns"]);

        // It runs, and nothing leads to it.
        let plain = ("/etc/resolv.conf", "nameserver 192.0.2.1\n");
        let found = machine(&[STUB, UPLINK, plain], &running(&["systemd-resolve"]));
        assert_eq!((found.owner, found.resolved.unwrap().reach), (Owner::Nobody, Reach::Nobody));
        // The link is there, and it does not run.
        let found = machine(&[to_stub], &running(&[]));
        assert_eq!(found.owner, Owner::Nobody);
        assert!(matches!(found.file.kind, Kind::Missing));
    }

    #[test]
    fn network_manager_by_link_by_heading_and_its_settings() {
        let files = [
            ("/run/NetworkManager/resolv.conf", "# Generated by NetworkManager\nnameserver 192.0.2.1\n"),
            ("/etc/resolv.conf", "->/run/NetworkManager/resolv.conf"),
            ("/usr/lib/NetworkManager/conf.d/10-a.conf", "[main]\ndns=none\n"),
            ("/usr/lib/NetworkManager/conf.d/20-b.conf", "[main]\nrc-manager=file\n"),
            ("/etc/NetworkManager/NetworkManager.conf", "[device]\ndns=wrong\n[main]\nplugins=keyfile\n#dns=wrong\n dns = dnsmasq\n"),
            ("/etc/NetworkManager/conf.d/20-b.conf", "# hides the other\n"),
        ];
        let found = machine(&files, &running(&["NetworkManager"]));
        assert_eq!(found.owner, Owner::NetworkManager);
        let settings = NetworkManager { running: true, dns: "dnsmasq".to_owned(), rc_manager: "auto".to_owned() };
        assert_eq!(found.network_manager, Some(settings));

        let found = machine(&[("/etc/resolv.conf", "# Generated by NetworkManager\nnameserver 192.0.2.1\n")], &running(&[]));
        assert_eq!(found.owner, Owner::NetworkManager);
        assert!(!found.network_manager.unwrap().running);
    }

    #[test]
    fn both_kinds_of_resolvconf_and_systemds_shim() {
        let link = ("/etc/resolv.conf", "->../run/resolvconf/resolv.conf");
        let made = ("/run/resolvconf/resolv.conf", "# Dynamic resolv.conf(5) file\nnameserver 192.0.2.1\n");
        let found = machine(&[link, made, ("/sbin/resolvconf", "#!/bin/bash\n# part of the resolvconf package\n")], &running(&[]));
        assert_eq!(found.owner, Owner::Resolvconf(Resolvconf::Debian));
        let file = ("/etc/resolv.conf", "# Generated by resolvconf\nnameserver 192.0.2.1\n");
        let found = machine(&[file, ("/sbin/resolvconf", "#!/bin/sh\nOPENRESOLV_VERSION=3.12 # openresolv\n")], &running(&[]));
        assert_eq!(found.owner, Owner::Resolvconf(Resolvconf::Openresolv));
        let shim = [file, ("/usr/sbin/resolvconf", "->../bin/resolvectl"), ("/usr/bin/resolvectl", "")];
        assert_eq!(machine(&shim, &running(&[])).resolvconf, None);
    }

    #[test]
    fn containers_and_dhcp_clients() {
        let mut seen = running(&["dhclient"]);
        let plain = ("/etc/resolv.conf", "nameserver 192.0.2.1\n");
        let found = machine(&[plain], &seen);
        assert_eq!((found.owner, found.dhcp_client, found.container), (Owner::Nobody, Some("dhclient"), None));
        seen.mounts.push(super::super::Mount { at: "/etc/resolv.conf".into(), read_only: false });
        let found = machine(&[plain, ("/.dockerenv", "")], &seen);
        assert_eq!((found.owner, found.container), (Owner::Engine, Some(Container::Docker)));
        assert!(found.file.mounted);
    }

    #[test]
    fn a_file_in_any_condition() {
        assert!(matches!(machine(&[], &running(&[])).file.kind, Kind::Missing));
        assert!(matches!(machine(&[("/etc/resolv.conf/x", "")], &running(&[])).file.kind, Kind::NoFile));
        assert!(matches!(machine(&[("/etc/resolv.conf", "->resolv.conf")], &running(&[])).file.kind, Kind::Unreadable(_)));
        let long = "#".repeat(MAX_RESOLV_CONF_BYTES + 1);
        assert!(matches!(machine(&[("/etc/resolv.conf", &long)], &running(&[])).file.kind, Kind::TooLong));
        let found = machine(&[("/etc/resolv.conf", "")], &running(&[]));
        assert!(matches!(found.file.kind, Kind::Ordinary(_)) && found.file.octets().is_empty());
        assert_eq!(found.owner, Owner::Nobody);
    }
}
