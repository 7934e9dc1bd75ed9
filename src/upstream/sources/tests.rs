use std::os::unix::fs::symlink;

use super::*;

/// Files below a root of their own, for a server that listens on these addresses.
struct Machine {
    root: tempfile::TempDir,
    own: &'static [&'static str],
}

impl Machine {
    fn new(own: &'static [&'static str]) -> Self {
        Self { root: tempfile::tempdir().unwrap(), own }
    }

    fn path(&self, path: &str) -> PathBuf {
        let path = self.root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn file(self, path: &str, octets: impl AsRef<[u8]>) -> Self {
        fs::write(self.path(path), octets).unwrap();
        self
    }

    fn look(&self) -> Look {
        let own = self.own.iter().map(|address| address.parse().unwrap()).collect();
        Sources { root: self.root.path().into(), own }.look()
    }

    /// Whom to ask, from where.
    fn asks(&self) -> String {
        self.look().to_string()
    }
}

const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
const STUB: &str = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";

#[test]
fn resolv_conf_comes_first() {
    let machine = Machine::new(&["127.0.0.1:5300"])
        .file(RESOLV_CONF, "nameserver 192.0.2.1\nnameserver 2001:db8::1\n")
        .file(RESOLVED, "nameserver 192.0.2.9\n");
    assert_eq!(machine.asks(), "192.0.2.1 and 2001:db8::1 (from /etc/resolv.conf)");
    assert!(!machine.look().asked_by_system && machine.look().faults.is_empty());
}

#[test]
fn behind_a_stub_stands_whom_it_asks() {
    for (path, resolv_conf) in [
        (RESOLVED, STUB),
        (RESOLVED, "nameserver 127.0.0.1\n"),
        (RESOLVED, "nameserver 127.0.0.54\nnameserver 127.0.0.1\n"),
        ("/run/NetworkManager/no-stub-resolv.conf", STUB),
        ("/run/NetworkManager/resolv.conf", STUB),
        ("/run/resolvconf/interface/eth0.dhclient", "nameserver 127.0.0.1\n"),
        ("/run/resolvconf/interfaces/eth0", "nameserver 127.0.0.1\n"),
        (BEFORE, "nameserver 127.0.0.1\n"),
    ] {
        let machine = Machine::new(&["127.0.0.1:53", "[::1]:53"]).file(RESOLV_CONF, resolv_conf).file(path, "nameserver 192.0.2.1\n");
        let from = if path.contains("resolvconf") { Path::new(path).parent().unwrap() } else { Path::new(path) };
        assert_eq!(machine.asks(), format!("192.0.2.1 (from {})", from.display()), "{path} {resolv_conf}");
        assert_eq!(machine.look().asked_by_system, resolv_conf.contains("127.0.0.1\n"), "{path}");
        assert_eq!(machine.look().faults, [""; 0], "{path}");
    }
}

#[test]
fn a_link_is_followed() {
    let machine = Machine::new(&[]).file("/run/systemd/resolve/stub-resolv.conf", STUB).file(RESOLVED, "nameserver 192.0.2.1\n");
    symlink("../run/systemd/resolve/stub-resolv.conf", machine.path(RESOLV_CONF)).unwrap();
    assert_eq!(machine.asks(), "192.0.2.1 (from /run/systemd/resolve/resolv.conf)");
}

#[test]
fn interfaces_of_a_resolvconf_count_together() {
    let machine = Machine::new(&["127.0.0.1:53"])
        .file(RESOLV_CONF, "nameserver 127.0.0.1\n")
        .file("/run/resolvconf/interface/wlan0.dhclient", "nameserver 192.0.2.2\nnameserver 192.0.2.1\n")
        .file("/run/resolvconf/interface/eth0.dhclient", "nameserver 192.0.2.1\n")
        .file("/run/resolvconf/interface/lo.svcdns", "nameserver 127.0.0.1\n");
    assert_eq!(machine.asks(), "192.0.2.1 and 192.0.2.2 (from /run/resolvconf/interface)");
}

#[test]
fn a_resolver_at_another_loopback_address_is_one() {
    let machine = Machine::new(&["127.0.0.2:53"]).file(RESOLV_CONF, "nameserver 127.0.0.1\n").file(RESOLVED, "nameserver 192.0.2.9\n");
    assert_eq!(machine.asks(), "127.0.0.1 (from /etc/resolv.conf)");
    // What listens on another port is not who is asked on port 53.
    let machine = Machine::new(&["127.0.0.1:5300"]).file(RESOLV_CONF, "nameserver 127.0.0.1\n");
    assert_eq!(machine.asks(), "127.0.0.1 (from /etc/resolv.conf)");
}

#[test]
fn own_addresses_are_left_out() {
    let machine = Machine::new(&["127.0.0.1:53"]).file(RESOLV_CONF, "nameserver 127.0.0.1\nnameserver 192.0.2.1\n");
    assert_eq!(machine.asks(), "192.0.2.1 (from /etc/resolv.conf)");
    assert!(machine.look().asked_by_system);
    // Nobody else is known: nobody, rather than ourselves.
    let machine = Machine::new(&["127.0.0.1:53"]).file(RESOLV_CONF, "nameserver 0.0.0.0\n").file(BEFORE, "nameserver 127.0.0.1\n");
    assert_eq!(machine.look().servers, []);
    assert!(machine.look().asked_by_system);
}

#[test]
fn the_stub_itself_is_the_last_resort() {
    let machine = Machine::new(&["127.0.0.1:53"]).file(RESOLV_CONF, STUB).file(RESOLVED, "# nobody\n");
    assert_eq!(machine.asks(), "127.0.0.53 (from /etc/resolv.conf)");
    // What was there before is for the time when it is we who stand there.
    let machine = machine.file(BEFORE, "nameserver 192.0.2.1\n");
    assert_eq!(machine.asks(), "127.0.0.53 (from /etc/resolv.conf)");
}

#[test]
fn files_that_name_nobody() {
    for (octets, fault) in [
        (&b""[..], "/etc/resolv.conf names no name server"),
        (b"\xFF\xFE\0", "/etc/resolv.conf:1: not text"),
        (b"search example\nnameserver 192.0.2.", "/etc/resolv.conf:2: the line is not complete"),
        (b"nameserver fe80::1\n", "/etc/resolv.conf: fe80::1 is left out: a link-local address needs its interface, such as fe80::1%eth0"),
        (b"nameserver fe80::1%nowhere9\n", "/etc/resolv.conf: fe80::1 is left out: there is no interface nowhere9"),
    ] {
        let look = Machine::new(&[]).file(RESOLV_CONF, octets).look();
        assert!(look.servers.is_empty() && !look.unreadable, "{look:?}");
        assert!(look.faults.contains(&fault.to_owned()), "{look:?}");
    }
    let missing = Machine::new(&[]).look();
    assert!(missing.servers.is_empty() && !missing.unreadable);
    assert_eq!(missing.faults, ["there is no /etc/resolv.conf"]);
}

#[test]
fn what_cannot_be_read_is_said() {
    let machine = Machine::new(&[]);
    fs::create_dir_all(machine.path(RESOLV_CONF)).unwrap();
    let look = machine.look();
    assert!(look.unreadable && look.servers.is_empty());
    assert_eq!(look.faults, ["/etc/resolv.conf cannot be read: it is not a file"]);

    let long = Machine::new(&[]).file(RESOLV_CONF, vec![b'#'; MOST_OCTETS + 1]).look();
    assert!(long.unreadable, "{long:?}");

    // A circle of links.
    let machine = Machine::new(&[]);
    symlink("resolv.conf", machine.path(RESOLV_CONF)).unwrap();
    assert!(machine.look().unreadable);

    // Another file can still help.
    let machine = machine.file(RESOLVED, "nameserver 192.0.2.1\n");
    assert_eq!(machine.asks(), "192.0.2.1 (from /run/systemd/resolve/resolv.conf)");
}

#[test]
fn more_than_three_name_servers_are_used_but_not_any_number() {
    let servers = |count: u8| (1..=count).map(|n| format!("nameserver 192.0.2.{n}\n")).collect::<Vec<_>>().concat();
    let look = Machine::new(&[]).file(RESOLV_CONF, servers(7)).look();
    assert_eq!((look.servers.len(), look.faults.len()), (7, 0));
    let look = Machine::new(&[]).file(RESOLV_CONF, servers(20)).look();
    assert_eq!(look.servers.len(), MOST_SERVERS);
    assert_eq!(look.faults, ["/etc/resolv.conf: only the first 16 name servers are used (a fixed limit)"]);
}

#[test]
fn a_folder_of_more_files_than_are_read_is_a_fault() {
    let machine = |files: usize| {
        let stub = Machine::new(&["127.0.0.1:53"]).file(RESOLV_CONF, "nameserver 127.0.0.1\n");
        (0..files).fold(stub, |machine, n| machine.file(&format!("/run/resolvconf/interface/eth{n:03}"), "nameserver 192.0.2.1\n"))
    };
    assert_eq!(machine(MAX_FILES).look().faults, [""; 0]);
    let look = machine(MAX_FILES + 1).look();
    assert_eq!(look.faults, ["/run/resolvconf/interface: only the first 64 files are read (a fixed limit)"]);
    assert_eq!(look.servers.len(), 1);
}

#[test]
fn an_address_with_its_interface() {
    let look =
        Machine::new(&["[fe80::5%1]:53"]).file(RESOLV_CONF, "nameserver fe80::1%lo\nnameserver fe80::5%lo\nnameserver fe80::2%7\n").look();
    let shown: Vec<_> = look.servers.iter().map(ToString::to_string).collect();
    // The loopback interface is the first of every machine.
    assert_eq!(shown, ["fe80::1%1", "fe80::2%7"]);
    assert!(look.asked_by_system);
}

#[test]
fn a_file_that_names_only_ourselves_is_why_there_is_nobody() {
    let machine = || Machine::new(&["127.0.0.1:53"]);
    let faults = |text: &str| machine().file(RESOLV_CONF, text).look().faults;
    assert_eq!(faults("nameserver 127.0.0.1\n"), ["/etc/resolv.conf names only svcdns itself"]);
    assert_eq!(faults("nameserver 127.0.0.1\nnameserver 192.0.2.1\n"), [""; 0]);
    let look = machine().file(RESOLV_CONF, "nameserver 127.0.0.1\nnameserver fe80::1\n").look();
    assert!(look.servers.is_empty() && look.faults.len() == 1 && look.faults[0].contains("fe80::1 is left out"), "{look:?}");
    // Somebody is known elsewhere: by the copy of `install`, or of that of the version before.
    let former = machine().file(RESOLV_CONF, "nameserver 127.0.0.1\n").file(FORMERLY_BEFORE, "nameserver 192.0.2.2\n").look();
    assert_eq!(former.servers.len(), 1, "{former:?}");
    assert_eq!(machine().file(RESOLV_CONF, "nameserver 127.0.0.1\n").file(BEFORE, "nameserver 192.0.2.1\n").look().faults, [""; 0]);
}
