use std::os::unix::fs::symlink;

use super::*;
use crate::resolv_conf::{FORMER_RESOLV_CONF_BACKUP, RESOLV_CONF_BACKUP};

/// Files below a temporary root, for a server that listens on these addresses.
struct SourcesRoot {
    root: tempfile::TempDir,
    own: &'static [&'static str],
}

impl SourcesRoot {
    fn new(own: &'static [&'static str]) -> Self {
        Self { root: tempfile::tempdir().unwrap(), own }
    }

    fn path(&self, path: &str) -> PathBuf {
        let path = self.root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn file(self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        fs::write(self.path(path), bytes).unwrap();
        self
    }

    fn snapshot(&self) -> SourcesSnapshot {
        let own = self.own.iter().map(|address| address.parse().unwrap()).collect();
        Sources { root: self.root.path().into(), own }.snapshot()
    }

    /// Returns the name servers and the file or directory that names them.
    fn servers(&self) -> String {
        self.snapshot().to_string()
    }
}

const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
const STUB: &str = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";

#[test]
fn name_servers_in_etc_resolv_conf_take_precedence() {
    let machine = SourcesRoot::new(&["127.0.0.1:5300"])
        .file(RESOLV_CONF, "nameserver 192.0.2.1\nnameserver 2001:db8::1\n")
        .file(RESOLVED, "nameserver 192.0.2.9\n");
    assert_eq!(machine.servers(), "192.0.2.1 and 2001:db8::1 (from /etc/resolv.conf)");
    assert!(!machine.snapshot().is_system_resolver && machine.snapshot().faults.is_empty());
}

#[test]
fn stub_resolvers_are_replaced_by_their_upstreams() {
    for (path, resolv_conf) in [
        (RESOLVED, STUB),
        (RESOLVED, "nameserver 127.0.0.1\n"),
        (RESOLVED, "nameserver 127.0.0.54\nnameserver 127.0.0.1\n"),
        ("/run/NetworkManager/no-stub-resolv.conf", STUB),
        ("/run/NetworkManager/resolv.conf", STUB),
        ("/run/resolvconf/interface/eth0.dhclient", "nameserver 127.0.0.1\n"),
        ("/run/resolvconf/interfaces/eth0", "nameserver 127.0.0.1\n"),
        (RESOLV_CONF_BACKUP, "nameserver 127.0.0.1\n"),
    ] {
        let machine = SourcesRoot::new(&["127.0.0.1:53", "[::1]:53"])
            .file(RESOLV_CONF, resolv_conf)
            .file(path, "nameserver 192.0.2.1\n");
        let from = if path.contains("resolvconf") {
            Path::new(path).parent().unwrap()
        } else {
            Path::new(path)
        };
        assert_eq!(
            machine.servers(),
            format!("192.0.2.1 (from {})", from.display()),
            "{path} {resolv_conf}"
        );
        assert_eq!(
            machine.snapshot().is_system_resolver,
            resolv_conf.contains("127.0.0.1\n"),
            "{path}"
        );
        assert_eq!(machine.snapshot().faults, [""; 0], "{path}");
    }
}

#[test]
fn symlinks_are_followed() {
    let machine = SourcesRoot::new(&[])
        .file("/run/systemd/resolve/stub-resolv.conf", STUB)
        .file(RESOLVED, "nameserver 192.0.2.1\n");
    symlink("../run/systemd/resolve/stub-resolv.conf", machine.path(RESOLV_CONF)).unwrap();
    assert_eq!(machine.servers(), "192.0.2.1 (from /run/systemd/resolve/resolv.conf)");
}

#[test]
fn resolvconf_files_of_all_interfaces_are_merged() {
    let machine = SourcesRoot::new(&["127.0.0.1:53"])
        .file(RESOLV_CONF, "nameserver 127.0.0.1\n")
        .file(
            "/run/resolvconf/interface/wlan0.dhclient",
            "nameserver 192.0.2.2\nnameserver 192.0.2.1\n",
        )
        .file("/run/resolvconf/interface/eth0.dhclient", "nameserver 192.0.2.1\n")
        .file("/run/resolvconf/interface/lo.svcdns", "nameserver 127.0.0.1\n");
    assert_eq!(machine.servers(), "192.0.2.1 and 192.0.2.2 (from /run/resolvconf/interface)");
}

#[test]
fn other_loopback_resolvers_are_upstreams() {
    let machine = SourcesRoot::new(&["127.0.0.2:53"])
        .file(RESOLV_CONF, "nameserver 127.0.0.1\n")
        .file(RESOLVED, "nameserver 192.0.2.9\n");
    assert_eq!(machine.servers(), "127.0.0.1 (from /etc/resolv.conf)");
    // A server on another port is not the one on port 53.
    let machine = SourcesRoot::new(&["127.0.0.1:5300"]).file(RESOLV_CONF, "nameserver 127.0.0.1\n");
    assert_eq!(machine.servers(), "127.0.0.1 (from /etc/resolv.conf)");
}

#[test]
fn the_servers_own_addresses_are_excluded() {
    let machine = SourcesRoot::new(&["127.0.0.1:53"])
        .file(RESOLV_CONF, "nameserver 127.0.0.1\nnameserver 192.0.2.1\n");
    assert_eq!(machine.servers(), "192.0.2.1 (from /etc/resolv.conf)");
    assert!(machine.snapshot().is_system_resolver);
    // There is no other name server: svcdns uses none rather than itself.
    let machine = SourcesRoot::new(&["127.0.0.1:53"])
        .file(RESOLV_CONF, "nameserver 0.0.0.0\n")
        .file(RESOLV_CONF_BACKUP, "nameserver 127.0.0.1\n");
    assert_eq!(machine.snapshot().servers, []);
    assert!(machine.snapshot().is_system_resolver);
}

#[test]
fn the_stub_resolver_itself_is_the_last_resort() {
    let machine =
        SourcesRoot::new(&["127.0.0.1:53"]).file(RESOLV_CONF, STUB).file(RESOLVED, "# nobody\n");
    assert_eq!(machine.servers(), "127.0.0.53 (from /etc/resolv.conf)");
    // The saved file is used only while /etc/resolv.conf names svcdns.
    let machine = machine.file(RESOLV_CONF_BACKUP, "nameserver 192.0.2.1\n");
    assert_eq!(machine.servers(), "127.0.0.53 (from /etc/resolv.conf)");
}

#[test]
fn files_without_a_name_server_are_reported() {
    for (bytes, fault) in [
        (&b""[..], "/etc/resolv.conf names no name server"),
        (b"\xFF\xFE\0", "/etc/resolv.conf:1: not text"),
        (b"search example\nnameserver 192.0.2.", "/etc/resolv.conf:2: the line is not complete"),
        (
            b"nameserver fe80::1\n",
            "/etc/resolv.conf: fe80::1 is ignored: a link-local address needs its interface, \
             such as fe80::1%eth0",
        ),
        (
            b"nameserver fe80::1%nowhere9\n",
            "/etc/resolv.conf: fe80::1 is ignored: there is no interface nowhere9",
        ),
    ] {
        let snapshot = SourcesRoot::new(&[]).file(RESOLV_CONF, bytes).snapshot();
        assert!(snapshot.servers.is_empty() && !snapshot.unreadable, "{snapshot:?}");
        assert!(snapshot.faults.contains(&fault.to_owned()), "{snapshot:?}");
    }
    let missing = SourcesRoot::new(&[]).snapshot();
    assert!(missing.servers.is_empty() && !missing.unreadable);
    assert_eq!(missing.faults, ["there is no /etc/resolv.conf"]);
}

#[test]
fn unreadable_files_are_reported() {
    let machine = SourcesRoot::new(&[]);
    fs::create_dir_all(machine.path(RESOLV_CONF)).unwrap();
    let snapshot = machine.snapshot();
    assert!(snapshot.unreadable && snapshot.servers.is_empty());
    assert_eq!(snapshot.faults, ["/etc/resolv.conf cannot be read: it is a directory"]);

    let long =
        SourcesRoot::new(&[]).file(RESOLV_CONF, vec![b'#'; MAX_RESOLV_CONF_BYTES + 1]).snapshot();
    assert!(long.unreadable, "{long:?}");

    // The path is a loop of symbolic links.
    let machine = SourcesRoot::new(&[]);
    symlink("resolv.conf", machine.path(RESOLV_CONF)).unwrap();
    assert!(machine.snapshot().unreadable);

    // Another file can still name servers.
    let machine = machine.file(RESOLVED, "nameserver 192.0.2.1\n");
    assert_eq!(machine.servers(), "192.0.2.1 (from /run/systemd/resolve/resolv.conf)");
}

#[test]
fn up_to_sixteen_name_servers_are_used() {
    let servers = |count: u8| {
        (1..=count).map(|n| format!("nameserver 192.0.2.{n}\n")).collect::<Vec<_>>().concat()
    };
    let snapshot = SourcesRoot::new(&[]).file(RESOLV_CONF, servers(7)).snapshot();
    assert_eq!((snapshot.servers.len(), snapshot.faults.len()), (7, 0));
    let snapshot = SourcesRoot::new(&[]).file(RESOLV_CONF, servers(20)).snapshot();
    assert_eq!(snapshot.servers.len(), MAX_NAME_SERVERS);
    assert_eq!(
        snapshot.faults,
        ["/etc/resolv.conf: only the first 16 name servers are used (a fixed limit)"]
    );
}

#[test]
fn too_many_files_in_a_directory_are_reported() {
    let machine = |files: usize| {
        let stub = SourcesRoot::new(&["127.0.0.1:53"]).file(RESOLV_CONF, "nameserver 127.0.0.1\n");
        (0..files).fold(stub, |machine, n| {
            machine.file(&format!("/run/resolvconf/interface/eth{n:03}"), "nameserver 192.0.2.1\n")
        })
    };
    assert_eq!(machine(MAX_FILES_PER_FOLDER).snapshot().faults, [""; 0]);
    let snapshot = machine(MAX_FILES_PER_FOLDER + 1).snapshot();
    assert_eq!(
        snapshot.faults,
        ["/run/resolvconf/interface: only the first 64 files are read (a fixed limit)"]
    );
    assert_eq!(snapshot.servers.len(), 1);
}

#[test]
fn scoped_addresses_keep_their_interface() {
    let snapshot = SourcesRoot::new(&["[fe80::5%1]:53"])
        .file(RESOLV_CONF, "nameserver fe80::1%lo\nnameserver fe80::5%lo\nnameserver fe80::2%7\n")
        .snapshot();
    let shown: Vec<_> = snapshot.servers.iter().map(ToString::to_string).collect();
    // The loopback interface has index 1 on every machine.
    assert_eq!(shown, ["fe80::1%1", "fe80::2%7"]);
    assert!(snapshot.is_system_resolver);
}

#[test]
fn a_file_that_lists_only_svcdns_is_reported() {
    let machine = || SourcesRoot::new(&["127.0.0.1:53"]);
    let faults = |text: &str| machine().file(RESOLV_CONF, text).snapshot().faults;
    assert_eq!(faults("nameserver 127.0.0.1\n"), ["/etc/resolv.conf names only svcdns itself"]);
    assert_eq!(faults("nameserver 127.0.0.1\nnameserver 192.0.2.1\n"), [""; 0]);
    let snapshot =
        machine().file(RESOLV_CONF, "nameserver 127.0.0.1\nnameserver fe80::1\n").snapshot();
    assert!(
        snapshot.servers.is_empty()
            && snapshot.faults.len() == 1
            && snapshot.faults[0].contains("fe80::1 is ignored"),
        "{snapshot:?}"
    );
    // Another file names a server: the copy kept by `install`, or by an older one.
    let former = machine()
        .file(RESOLV_CONF, "nameserver 127.0.0.1\n")
        .file(FORMER_RESOLV_CONF_BACKUP, "nameserver 192.0.2.2\n")
        .snapshot();
    assert_eq!(former.servers.len(), 1, "{former:?}");
    assert_eq!(
        machine()
            .file(RESOLV_CONF, "nameserver 127.0.0.1\n")
            .file(RESOLV_CONF_BACKUP, "nameserver 192.0.2.1\n")
            .snapshot()
            .faults,
        [""; 0]
    );
}

#[test]
fn options_rotate_applies_to_the_servers_of_its_file() {
    let machine = || SourcesRoot::new(&["127.0.0.1:53"]);
    let rotating = "options timeout:1 rotate\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n";
    assert!(machine().file(RESOLV_CONF, rotating).snapshot().rotate);
    assert!(!machine().file(RESOLV_CONF, "nameserver 192.0.2.1\n").snapshot().rotate);
    let ours = "nameserver 127.0.0.1\n";
    assert!(machine().file(RESOLV_CONF, ours).file(RESOLV_CONF_BACKUP, rotating).snapshot().rotate);
    let stub = "nameserver 127.0.0.53\noptions rotate\n";
    let servers = "nameserver 192.0.2.1\nnameserver 192.0.2.2\n";
    assert!(!machine().file(RESOLV_CONF, stub).file(RESOLVED, servers).snapshot().rotate);
}
