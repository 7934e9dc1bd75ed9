//! `svcdns install` and `svcdns uninstall` when other programs, or the upstreams, are at fault.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use support::machine::{
    NOBODY, RESOLV_CONF, UPSTREAM, assert_as_before, assert_same_tree, done, expect_found,
    expect_service, lines, looked_up, name_server, on_a_machine, put_among, refused, registry,
    said, serve, svcdns, tree, unpacked,
};
use support::process::Process;
use support::strace::{FILE_CALLS, can_trace, killed_at};
use support::upstream::{Behaviour, Edns, Record, Upstream};
use support::{SOON, eventually, netns, skip};

const JOURNAL: &str = "/var/lib/svcdns-install/install.json";

/// A resolv.conf with a name server that answers.
fn working_conf() -> String {
    format!("# by hand\nsearch example.test\nnameserver {UPSTREAM}\noptions timeout:1\n")
}

/// A VPN client that saves resolv.conf, and later restores what it saved.
struct Vpn {
    saved: String,
}

impl Vpn {
    fn start() -> Self {
        let saved = fs::read_to_string(RESOLV_CONF).unwrap();
        fs::write(RESOLV_CONF, format!("# by the VPN\nnameserver {NOBODY}\n")).unwrap();
        Self { saved }
    }

    fn stop(self) {
        fs::write(RESOLV_CONF, self.saved).unwrap();
    }
}

/// Installs, and leaves our lines in resolv.conf without a journal; returns the server.
fn left_behind(flags: &[&str]) -> Process {
    let server = serve(&[flags, &["--listen", "127.0.0.1:53"]].concat());
    done(&[&["install"], flags].concat());
    let vpn = Vpn::start();
    let told = done(&["uninstall"]);
    assert!(told.contains("should its author restore a copy that has them, run `sudo"), "{told}");
    vpn.stop();
    assert!(!Path::new(JOURNAL).exists() && lines().contains(&"nameserver 127.0.0.1".to_owned()));
    server
}

#[test]
fn uninstall_removes_lines_that_a_vpn_client_restored() {
    const TEST: &str = "uninstall_removes_lines_that_a_vpn_client_restored";
    on_a_machine(TEST, || {
        let _upstream = name_server(UPSTREAM, "www.example.test", "192.0.2.80");
        fs::write(RESOLV_CONF, working_conf()).unwrap();
        let files = registry();
        let flags = ["--registry", &files.url()];
        let server = left_behind(&flags);

        // While the server runs, names resolve through lines that nothing will remove.
        let told = said(&svcdns(&["doctor"]));
        assert!(told.contains("warning  installation"), "{told}");
        drop(server);
        let told = said(&svcdns(&["doctor"]));
        assert!(
            told.contains("BROKEN   installation")
                && told.contains("Likely cause: installation: ")
                && told.contains("left this behind: lines in /etc/resolv.conf.")
                && told.ends_with("  $ sudo svcdns uninstall\n"),
            "{told}"
        );
        let dry = done(&["uninstall", "--dry-run"]);
        assert!(dry.contains("left this behind: lines in /etc/resolv.conf"), "{dry}");
        let told = done(&["uninstall"]);
        assert!(told.contains("/etc/resolv.conf: restored") && told.contains("Done"), "{told}");
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), working_conf());
        expect_found("www.example.test", "192.0.2.80");
        assert!(done(&["uninstall"]).contains("Nothing is installed"));
        assert!(!said(&svcdns(&["doctor"])).contains("installation"));
        assert!(tree("/var/lib").is_empty());

        // `install` does not take the lines for the original either.
        let _server = left_behind(&flags);
        let dry = done(&[&["install", "--dry-run"], &flags[..]].concat());
        assert!(dry.contains("An earlier installation would be undone first"), "{dry}");
        let told = done(&[&["install"], &flags[..]].concat());
        assert!(told.contains("left this behind: lines in /etc/resolv.conf"), "{told}");
        expect_service("after another installation");
        done(&["uninstall"]);
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), working_conf());

        // A removal of the lines that is killed can be repeated.
        if !can_trace() {
            return skip(TEST, "strace cannot trace here");
        }
        let left = {
            done(&[&["install"], &flags[..]].concat());
            let left = fs::read_to_string(RESOLV_CONF).unwrap();
            done(&["uninstall"]);
            left
        };
        for call in FILE_CALLS {
            for n in 1.. {
                fs::write(RESOLV_CONF, &left).unwrap();
                let killed = killed_at(call, n, &["uninstall"]);
                done(&["uninstall"]);
                assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), working_conf(), "{call} {n}");
                assert!(tree("/var/lib").is_empty(), "{call} {n}");
                if !killed {
                    break;
                }
            }
        }
    });
}

#[test]
fn uninstall_removes_everything_even_without_its_journal() {
    on_a_machine("uninstall_removes_everything_even_without_its_journal", || {
        let by_manager = "# Generated by NetworkManager\nnameserver 10.9.0.77\n";
        fs::write(RESOLV_CONF, by_manager).unwrap();
        let files = registry();
        let _server = serve(&["--registry", &files.url(), "--listen", "127.0.0.1:53"]);
        done(&["install", "--keep-nameservers", "--registry", &files.url()]);
        let drop_in = Path::new("/etc/NetworkManager/conf.d/90-svcdns.conf");
        assert!(drop_in.exists());
        // A backup of /etc has units of another installation; a person has edited one of them.
        let units = Path::new("/etc/systemd/system");
        fs::create_dir_all(units).unwrap();
        let heading = fs::read_to_string(drop_in).unwrap().lines().next().unwrap().to_owned();
        fs::write(units.join("svcdns.service"), format!("{heading}\n# mine\n")).unwrap();
        fs::write(units.join("svcdns-resolver.service"), format!("{heading}\n[Unit]\n")).unwrap();
        fs::remove_file(JOURNAL).unwrap();

        let told = done(&["uninstall"]);
        assert!(
            told.contains(
                "left this behind: /etc/NetworkManager/conf.d/90-svcdns.conf, \
                 /etc/systemd/system/svcdns-resolver.service, \
                 /etc/systemd/system/svcdns.service, lines in /etc/resolv.conf."
            ),
            "{told}"
        );
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), by_manager);
        let kept = "/var/lib/svcdns-install/svcdns.service";
        assert!(fs::read_to_string(kept).unwrap().ends_with("# mine\n"));
        let left: Vec<_> = tree("/var/lib").into_keys().collect();
        assert_eq!(left, [Path::new("/var/lib/svcdns-install"), Path::new(kept)]);
        assert!(!drop_in.exists());
        for unit in ["svcdns.service", "svcdns-resolver.service"] {
            assert!(!units.join(unit).exists(), "{unit}");
        }

        // A file without the heading is the user's.
        fs::write(drop_in, "[main]\ndns=none\n").unwrap();
        fs::write(units.join("svcdns.service"), "[Unit]\n").unwrap();
        let before = tree("/etc");
        assert!(done(&["uninstall"]).contains("Nothing is installed"));
        assert_eq!(tree("/etc"), before);
    });
}

#[test]
fn uninstall_removes_lines_in_a_copy_of_the_edited_file() {
    on_a_machine("uninstall_removes_lines_in_a_copy_of_the_edited_file", || {
        fs::remove_file(RESOLV_CONF).unwrap();
        let text = "nameserver 10.9.0.77\n";
        fs::write("/etc/real.conf", text).unwrap();
        symlink("real.conf", RESOLV_CONF).unwrap();
        let files = registry();
        let _server = serve(&["--registry", &files.url(), "--listen", "127.0.0.1:53"]);
        done(&["install", "--keep-nameservers", "--registry", &files.url()]);
        // Another program replaces the link by a copy of the file.
        let copy = fs::read(RESOLV_CONF).unwrap();
        fs::remove_file(RESOLV_CONF).unwrap();
        fs::write(RESOLV_CONF, copy).unwrap();
        done(&["uninstall"]);
        for file in [RESOLV_CONF, "/etc/real.conf"] {
            assert_eq!(fs::read_to_string(file).unwrap(), text, "{file}");
        }
        assert!(tree("/var/lib").is_empty());
    });
}

/// A public name that `install` looks up.
const PUBLIC: &str = "a.root-servers.net";

/// Starts the machine's name server, which knows a public name and the search domain.
fn machines_name_server() -> Upstream {
    let upstream = name_server(UPSTREAM, PUBLIC, "192.0.2.4");
    upstream.put([Record::a("example.test", 300, "192.0.2.80")]);
    fs::write(RESOLV_CONF, working_conf()).unwrap();
    upstream
}

/// Asserts that `install` is refused because it loses the names, and changes nothing.
fn assert_undone(flags: &[&str], response: &str) {
    let before = tree("/etc");
    let _server = serve(&[flags, &["--listen", "127.0.0.1:53"]].concat());
    let told = refused(&[&["install"], flags].concat(), 1);
    for name in [PUBLIC, "example.test"] {
        assert!(told.contains(&format!("{name} (`")), "{name}: {told}");
    }
    assert!(
        told.contains("does not find them through a line in /etc/resolv.conf")
            && told.contains("hosts example.test` f")
            && told.contains(&format!("svcdns at 127.0.0.1:53 responds {response}"))
            && told.contains("all changes are reverted"),
        "{told}"
    );
    assert_as_before(&before, response);
    expect_found("example.test", "192.0.2.80");
}

#[test]
fn an_installation_with_a_dead_upstream_is_undone() {
    on_a_machine("an_installation_with_a_dead_upstream_is_undone", || {
        let _upstream = machines_name_server();
        let files = registry();
        let flags = ["--registry", &files.url(), "--upstream", "127.0.0.11"];
        assert_undone(&flags, "SERVFAIL");
    });
}

#[test]
fn an_installation_with_an_upstream_that_denies_the_names_is_undone() {
    on_a_machine("an_installation_with_an_upstream_that_denies_the_names_is_undone", || {
        let _upstream = machines_name_server();
        // Such as a resolver outside the company's network.
        let _other = name_server("127.0.0.11", "other.test", "192.0.2.1");
        let files = registry();
        let flags = ["--registry", &files.url(), "--upstream", "127.0.0.11"];
        assert_undone(&flags, "NXDOMAIN");
    });
}

#[test]
fn an_installation_whose_queries_the_upstream_drops_is_undone() {
    on_a_machine("an_installation_whose_queries_the_upstream_drops_is_undone", || {
        let upstream = machines_name_server();
        // Each program is its own client there: the C library's are answered, svcdns is not.
        upstream.behave(Behaviour { deaf_to: Some("svcdns"), ..Behaviour::default() });
        expect_found("example.test", "192.0.2.80");
        let files = registry();
        assert_undone(&["--registry", &files.url()], "SERVFAIL");
    });
}

#[test]
fn install_tests_names_that_resolved_before() {
    on_a_machine("install_tests_names_that_resolved_before", || {
        let upstream = machines_name_server();
        // The server finds out that this upstream drops queries with EDNS.
        upstream.behave(Behaviour::edns(Edns::Silent));
        let before = tree("/etc");
        let files = registry();
        let flags = ["--registry", &files.url()];
        let server = serve(&[&flags[..], &["--listen", "127.0.0.1:53"]].concat());
        let install = [&["install"], &flags[..]].concat();
        let told = done(&install);
        assert!(
            told.contains(&format!("Other names still resolve: example.test, {PUBLIC}.")),
            "{told}"
        );
        expect_service("after the installation");
        expect_found("example.test", "192.0.2.80");

        let told = done(&install);
        assert!(
            told.contains("Already installed: nothing was changed. All test lookups succeed."),
            "{told}"
        );

        // Without an upstream, the installation is not taken for one that works.
        drop(upstream);
        drop(server);
        let server = serve(&[&flags[..], &["--listen", "127.0.0.1:53"]].concat());
        let installed = tree("/etc");
        let told = done(&install);
        assert!(
            told.contains("Already installed: nothing was changed. Warning: the names of svcdns")
                && told.contains(&format!("outside its zones does: example.test, {PUBLIC}"))
                && told.contains("sudo svcdns uninstall"),
            "{told}"
        );
        assert_same_tree(&installed, &tree("/etc"), "after a second installation");
        done(&["uninstall"]);
        assert_as_before(&before, "after uninstall");

        // A machine without a network, and names that need no name server.
        fs::write(RESOLV_CONF, format!("search svc\nnameserver {NOBODY}\n")).unwrap();
        fs::write("/etc/hosts", format!("127.0.0.1 localhost\n192.0.2.4 {PUBLIC}\n")).unwrap();
        netns::run("getent", &["hosts", PUBLIC]);
        let told = done(&install);
        assert!(
            told.contains(
                "Other names could not be tested, because none of these resolved before:"
            ) && told.contains("before: www.iana.org, www.ietf.org."),
            "{told}"
        );
        done(&["uninstall"]);
        assert_eq!(looked_up("www.iana.org"), [""; 0]);
        drop(server);
    });
}

#[test]
fn install_and_its_lookups_do_not_depend_on_entries_cached_by_nscd() {
    const TEST: &str = "install_and_its_lookups_do_not_depend_on_entries_cached_by_nscd";
    let Some(nscd) = unpacked(TEST, &["nscd"]) else { return };
    on_a_machine(TEST, || {
        let upstream = machines_name_server();
        let files = registry();
        put_among(&nscd.join("usr/sbin"), "/usr/sbin");
        netns::mount_tmpfs("/var/cache");
        for folder in ["/run/nscd", "/var/cache/nscd"] {
            fs::create_dir_all(folder).unwrap();
        }
        // It does not notice that resolv.conf changes either, as with a manager's routes.
        let settings = "enable-cache hosts yes\npositive-time-to-live hosts 600\n\
                        negative-time-to-live hosts 600\ncheck-files hosts no\n";
        fs::write("/etc/nscd.conf", settings).unwrap();
        let before = tree("/etc");
        let _nscd = Process::start(Command::new("/usr/sbin/nscd").arg("--foreground"));
        eventually("nscd to listen", SOON, || UnixStream::connect("/run/nscd/socket").ok());
        expect_found("example.test", "192.0.2.80");
        for name in ["ns.svc", "hello.svc"] {
            assert_eq!(looked_up(name), [""; 0]);
        }
        drop(upstream);
        assert_eq!(looked_up("example.test"), ["192.0.2.80"], "nscd remembers the name");

        let flags = ["--registry", &files.url()];
        let _server = serve(&[&flags[..], &["--listen", "127.0.0.1:53"]].concat());
        let told = done(&[&["install"], &flags[..]].concat());
        assert!(told.contains("because none of these resolved before: example.test"), "{told}");
        assert_eq!(looked_up("hello.svc"), [netns::ADDRESS], "nscd has forgotten its absence");
        done(&["uninstall"]);
        assert_eq!(looked_up("hello.svc"), [""; 0], "nscd has forgotten the service");
        assert_as_before(&before, "after uninstall");
    });
}
