//! `svcdns install` and `svcdns uninstall` without systemd, on private machines.
//!
//! After `install` the C library resolves names of the zone; after `uninstall` /etc is byte for
//! byte as before.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use support::files::Files;
use support::former;
use support::machine::{
    NOBODY, RESOLV_CONF, UPSTREAM, assert_as_before, done, expect_found, expect_service, lines,
    looked_up, name_server, on_a_machine, refused, registry, said, serve, svcdns, tree,
};
use support::process::Process;
use support::strace::{FILE_CALLS, can_trace, killed_at};
use support::{SOON, dns, eventually, netns};

/// Starts a server on port 53 for a registry with one service.
fn served() -> (Files, Process) {
    let files = registry();
    let server = serve(&["--registry", &files.url(), "--listen", "127.0.0.1:53"]);
    (files, server)
}

#[test]
fn an_ordinary_file_is_edited_and_restored() {
    on_a_machine("an_ordinary_file_is_edited_and_restored", || {
        let before = tree("/etc");
        let (files, mut server) = served();
        let install = ["install", "--keep-nameservers", "--registry", &files.url()];

        let dry = done(&[&install[..], &["--dry-run"]].concat());
        assert!(
            dry.contains("+nameserver 127.0.0.1") && dry.contains("Nothing was changed"),
            "{dry}"
        );
        assert_as_before(&before, "after a dry run");

        let told = done(&install);
        assert!(
            told.contains("left alone") && told.contains("a line in /etc/resolv.conf"),
            "{told}"
        );
        assert_eq!(
            lines(),
            [
                "nameserver 127.0.0.1",
                &format!("nameserver {NOBODY}"),
                "options timeout:1 attempts:1"
            ]
        );
        expect_service("through the C library");
        let kept = fs::read_to_string("/var/lib/svcdns-install/resolv.conf.before").unwrap();
        assert_eq!(kept, format!("# by hand\nnameserver {NOBODY}\noptions timeout:1 attempts:1\n"));
        let changed = tree("/etc");
        assert!(done(&install).contains("Already installed"));
        assert_eq!(tree("/etc"), changed);
        assert!(server.ended().is_none(), "the running server is left alone");

        // With other settings, the earlier installation is undone first.
        let told = done(&[&install[..], &["--search"]].concat());
        assert!(
            told.contains("is undone first") && !told.contains("Note: a name without"),
            "{told}"
        );
        eventually("a name without its zone", SOON, || {
            (looked_up("hello") == [netns::ADDRESS]).then_some(())
        });

        assert!(done(&["uninstall", "--dry-run"]).contains("/etc/resolv.conf"));
        assert!(done(&["uninstall"]).contains("/etc/resolv.conf: restored"));
        assert_as_before(&before, "after uninstall");
        assert!(done(&["uninstall"]).contains("Nothing is installed"));
        assert!(server.ended().is_none());
    });
}

/// The name server of the next DHCP lease.
const NEXT_UPSTREAM: &str = "127.0.0.10";

#[test]
fn svcdns_can_be_the_only_name_server() {
    on_a_machine("svcdns_can_be_the_only_name_server", || {
        let upstream = name_server(UPSTREAM, "www.example.test", "192.0.2.80");
        fs::write(RESOLV_CONF, format!("nameserver {UPSTREAM}\noptions timeout:1 attempts:1\n"))
            .unwrap();
        let before = tree("/etc");
        let files = registry();
        let flags = ["--registry", &files.url(), "--upstream", &upstream.flag()];
        let serving = [&flags[..], &["--listen", "127.0.0.1:53"]].concat();
        let mut server = serve(&serving);
        let told = done(&[&["install"], &flags[..]].concat());
        assert!(
            told.contains("If the server dies: no name resolves until it runs again"),
            "{told}"
        );
        assert_eq!(lines(), ["nameserver 127.0.0.1", "options timeout:1 attempts:1"]);
        expect_service("through the C library");
        expect_found("www.example.test", "192.0.2.80");

        // No name resolves without the server, and all do with the next one.
        server.kill();
        assert_eq!([looked_up("hello.svc"), looked_up("www.example.test")], [[""; 0]; 2]);
        let server = serve(&serving);
        expect_service("through the C library");
        expect_found("www.example.test", "192.0.2.80");
        assert!(!upstream.names().contains("hello.svc"), "names of the zone are not forwarded");

        done(&["uninstall"]);
        assert_as_before(&before, "after uninstall");
        drop(server);
        expect_found("www.example.test", "192.0.2.80");
    });
}

#[test]
fn other_names_are_resolved_by_the_previous_name_servers() {
    on_a_machine("other_names_are_resolved_by_the_previous_name_servers", || {
        let _upstream = name_server(UPSTREAM, "www.example.test", "192.0.2.80");
        fs::write(RESOLV_CONF, format!("nameserver {UPSTREAM}\noptions timeout:1 attempts:1\n"))
            .unwrap();
        let before = tree("/etc");
        let files = registry();
        let (url, install) = (files.url(), ["install", "--registry", &files.url()]);
        let serving = ["--registry", &url, "--listen", "127.0.0.1:53"];
        let mut server = serve(&serving);
        done(&install);
        assert_eq!(lines(), ["nameserver 127.0.0.1", "options timeout:1 attempts:1"]);
        expect_service("through the C library");
        expect_found("www.example.test", "192.0.2.80");

        // A server that starts now finds only its own address in resolv.conf, and has no cache.
        server.kill();
        let mut server = serve(&serving);
        expect_found("www.example.test", "192.0.2.80");
        expect_service("through the C library");

        // A DHCP client replaces the file: programs and svcdns then query the server of its lease.
        let next = name_server(NEXT_UPSTREAM, "next.example.test", "192.0.2.81");
        let lease = format!("nameserver {NEXT_UPSTREAM}\noptions timeout:1 attempts:1\n");
        fs::write("/etc/resolv.conf.lease", &lease).unwrap();
        fs::rename("/etc/resolv.conf.lease", RESOLV_CONF).unwrap();
        let ours = "127.0.0.1:53".parse().unwrap();
        eventually("svcdns to query the next upstream", SOON, || {
            (dns::addresses(ours, "next.example.test") == Ok(vec!["192.0.2.81".parse().unwrap()]))
                .then_some(())
        });
        assert_eq!(looked_up("hello.svc"), [""; 0], "programs bypass svcdns");

        next.forget();
        // After another installation, programs query svcdns again.
        let told = done(&install);
        assert!(
            told.contains("is undone first")
                && told.contains("rewritten since, without the lines of svcdns"),
            "{told}"
        );
        assert_eq!(lines(), ["nameserver 127.0.0.1", "options timeout:1 attempts:1"]);
        expect_service("through the C library");
        expect_found("next.example.test", "192.0.2.81");
        assert!(!next.names().contains("hello.svc"), "names of the zone are not forwarded");
        assert!(server.ended().is_none());

        // `uninstall` restores the file of the DHCP client.
        done(&["uninstall"]);
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), lease);
        let (mut before, mut now) = (before, tree("/etc"));
        before.remove(Path::new(RESOLV_CONF));
        now.remove(Path::new(RESOLV_CONF));
        assert_eq!(now, before);
        assert!(tree("/var/lib").is_empty(), "{:?}", tree("/var/lib"));
    });
}

#[test]
fn uninstall_keeps_later_edits_of_resolv_conf() {
    on_a_machine("uninstall_keeps_later_edits_of_resolv_conf", || {
        let (files, _server) = served();
        done(&["install", "--search", "--keep-nameservers", "--registry", &files.url()]);
        let text = fs::read_to_string(RESOLV_CONF).unwrap();
        fs::write(RESOLV_CONF, format!("# mine\n{text}options rotate\n")).unwrap();
        let told = done(&["uninstall"]);
        assert!(
            told.contains("removed only the lines of svcdns, because it has been edited since"),
            "{told}"
        );
        let left = fs::read_to_string(RESOLV_CONF).unwrap();
        assert_eq!(
            left,
            format!(
                "# mine\n# by hand\nnameserver {NOBODY}\noptions timeout:1 attempts:1\n\
                 options rotate\n"
            )
        );

        done(&["install", "--keep-nameservers", "--registry", &files.url()]);
        fs::write(RESOLV_CONF, "nameserver 192.0.2.9\n").unwrap();
        let told = done(&["uninstall"]);
        assert!(told.contains("rewritten since, without the lines of svcdns"), "{told}");
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), "nameserver 192.0.2.9\n");
    });
}

#[test]
fn unusual_files_are_edited_or_refused() {
    on_a_machine("unusual_files_are_edited_or_refused", || {
        let (files, _server) = served();
        let url = files.url();
        let install = ["install", "--keep-nameservers", "--registry", &url];
        // The content of the file, and the lines that are not comments afterwards.
        let good: [(&str, &[&str]); 6] = [
            ("", &["nameserver 127.0.0.1"]),
            ("nameserver 127.0.0.1\n", &["nameserver 127.0.0.1"]),
            (
                "nameserver 10.9.0.77\nnameserver 127.0.0.1\n",
                &["nameserver 127.0.0.1", "nameserver 10.9.0.77"],
            ),
            ("nameserver fe80::1%veth0\n", &["nameserver 127.0.0.1", "nameserver fe80::1%veth0"]),
            (
                "nameserver no.address\noptions attempts:1\n",
                &["nameserver no.address", "options attempts:1", "nameserver 127.0.0.1"],
            ),
            (
                "search a.example\nnameserver 10.9.0.77",
                &["search a.example", "nameserver 127.0.0.1", "nameserver 10.9.0.77"],
            ),
        ];
        for (text, wanted) in good {
            fs::write(RESOLV_CONF, text).unwrap();
            let before = tree("/etc");
            done(&install);
            assert_eq!(lines(), wanted, "of {text:?}");
            assert_eq!(looked_up("hello.svc"), [netns::ADDRESS], "with {text:?}");
            done(&["uninstall"]);
            assert_as_before(&before, text);
        }
        let twenty =
            (1..=20).fold(String::new(), |text, n| format!("{text}nameserver 192.0.2.{n}\n"));
        fs::write(RESOLV_CONF, &twenty).unwrap();
        fs::set_permissions(RESOLV_CONF, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(RESOLV_CONF, Some(0), Some(4)).unwrap();
        let before = tree("/etc");
        done(&install);
        assert_eq!((lines().len(), lines()[0].as_str()), (21, "nameserver 127.0.0.1"));
        assert_eq!(fs::metadata(RESOLV_CONF).unwrap().permissions().mode() & 0o7777, 0o640);
        done(&["uninstall"]);
        assert_as_before(&before, "twenty name servers, and a mode of its own");

        // A missing file, and dangling links.
        fs::remove_file(RESOLV_CONF).unwrap();
        for link in [None, Some("/run/NetworkManager/resolv.conf"), Some("nowhere/resolv.conf")] {
            if let Some(target) = link {
                symlink(target, RESOLV_CONF).unwrap();
            }
            let before = tree("/etc");
            done(&install);
            assert_eq!(lines(), ["nameserver 127.0.0.1"]);
            done(&["uninstall"]);
            assert_as_before(&before, &format!("{link:?}"));
            let _ = fs::remove_file(RESOLV_CONF);
        }
        // A link to a file that no program manages stays a link.
        fs::write("/etc/real.conf", "nameserver 10.9.0.77\n").unwrap();
        symlink("real.conf", RESOLV_CONF).unwrap();
        let before = tree("/etc");
        done(&install);
        assert_eq!(fs::read_link(RESOLV_CONF).unwrap(), Path::new("real.conf"));
        assert!(fs::read_to_string("/etc/real.conf").unwrap().contains("nameserver 127.0.0.1"));
        done(&["uninstall"]);
        assert_as_before(&before, "a link to an ordinary file");
        fs::remove_file(RESOLV_CONF).unwrap();

        // Files that must not be changed, and the refusals.
        let refuses = |words: &str| {
            let before = tree("/etc");
            let told = refused(&install, 1);
            assert!(told.contains(words), "{words}: {told}");
            assert_as_before(&before, words);
        };
        fs::write(RESOLV_CONF, "nameserver 192.0.2.1\nnameserver 192.0.").unwrap();
        refuses("has an incomplete line 2");
        fs::write(RESOLV_CONF, "#".repeat((1 << 20) + 1)).unwrap();
        refuses("too many for a resolv.conf");
        fs::remove_file(RESOLV_CONF).unwrap();
        symlink("resolv.conf", RESOLV_CONF).unwrap();
        refuses("form a loop");
        fs::remove_file(RESOLV_CONF).unwrap();
        fs::create_dir(RESOLV_CONF).unwrap();
        refuses("/etc/resolv.conf is not a file");
        fs::remove_dir(RESOLV_CONF).unwrap();
        fs::write(RESOLV_CONF, "nameserver 10.9.0.77\n").unwrap();
        fs::write("/etc/nsswitch.conf", "hosts: files\n").unwrap();
        refuses("uses no DNS server");
        fs::write("/etc/nsswitch.conf", "hosts: files dns\n").unwrap();
        netns::run("mount", &["-o", "remount,bind,ro", "/etc"]);
        refuses("read-only");
    });
}

#[test]
fn an_immutable_file_is_changed_only_with_lift_immutable() {
    const TEST: &str = "an_immutable_file_is_changed_only_with_lift_immutable";
    on_a_machine(TEST, || {
        if !Command::new("chattr")
            .args(["+i", RESOLV_CONF])
            .status()
            .is_ok_and(|status| status.success())
        {
            return support::skip(TEST, "the kernel has no immutable files on tmpfs");
        }
        let before = tree("/etc");
        let (files, _server) = served();
        let install = ["install", "--keep-nameservers", "--registry", &files.url()];
        let told = refused(&install, 1);
        assert!(
            told.contains("chattr -i /etc/resolv.conf") && told.contains("--lift-immutable"),
            "{told}"
        );
        assert_as_before(&before, "refused");
        done(&[&install[..], &["--lift-immutable"]].concat());
        assert_eq!(lines()[0], "nameserver 127.0.0.1");
        assert!(fs::write(RESOLV_CONF, "x").is_err(), "immutable again");
        done(&["uninstall"]);
        assert_as_before(&before, "uninstalled");
        assert!(fs::write(RESOLV_CONF, "x").is_err(), "immutable as before");
        netns::run("chattr", &["-i", RESOLV_CONF]);
    });
}

#[test]
fn a_file_mounted_by_a_container_engine_is_written_in_place() {
    on_a_machine("a_file_mounted_by_a_container_engine_is_written_in_place", || {
        fs::write("/run/hosts-file", "nameserver 10.9.0.77\noptions timeout:1 attempts:1\n")
            .unwrap();
        netns::run("mount", &["--bind", "/run/hosts-file", RESOLV_CONF]);
        fs::write("/run/.containerenv", "").unwrap();
        let before = tree("/etc");
        let (files, _server) = served();
        let told = done(&["install", "--keep-nameservers", "--registry", &files.url()]);
        assert!(told.contains("written in place") && told.contains("podman run --dns"), "{told}");
        assert_eq!(lines()[0], "nameserver 127.0.0.1");
        expect_service("through the C library");
        done(&["uninstall"]);
        let text = fs::read_to_string(RESOLV_CONF).unwrap();
        assert_eq!(text, "nameserver 10.9.0.77\noptions timeout:1 attempts:1\n");
        let (mut before, mut now) = (before, tree("/etc"));
        // The modification time of a file written in place is not restored.
        before.remove(Path::new(RESOLV_CONF));
        now.remove(Path::new(RESOLV_CONF));
        assert_eq!(now, before);
    });
}

#[test]
fn the_symlink_of_networkmanager_is_replaced_and_restored() {
    on_a_machine("the_symlink_of_networkmanager_is_replaced_and_restored", || {
        fs::create_dir_all("/run/NetworkManager").unwrap();
        fs::write(
            "/run/NetworkManager/resolv.conf",
            "# Generated by NetworkManager\nnameserver 10.9.0.77\noptions attempts:1\n",
        )
        .unwrap();
        fs::remove_file(RESOLV_CONF).unwrap();
        symlink("/run/NetworkManager/resolv.conf", RESOLV_CONF).unwrap();
        let before = tree("/etc");
        let (files, _server) = served();
        let told = done(&["install", "--keep-nameservers", "--registry", &files.url()]);
        assert!(told.contains("is managed by: NetworkManager"), "{told}");
        assert!(fs::symlink_metadata(RESOLV_CONF).unwrap().is_file());
        assert!(
            fs::read_to_string("/etc/NetworkManager/conf.d/90-svcdns.conf")
                .unwrap()
                .ends_with("[main]\nrc-manager=unmanaged\n")
        );
        expect_service("through the C library");
        let told = done(&["uninstall"]);
        assert!(told.contains("/etc/NetworkManager/conf.d/90-svcdns.conf: removed"), "{told}");
        assert_as_before(&before, "after uninstall");
    });
}

#[test]
fn missing_prerequisites_are_refused() {
    on_a_machine("missing_prerequisites_are_refused", || {
        let before = tree("/etc");
        let told = refused(&["install"], 1);
        assert!(told.contains("name the registry"), "{told}");
        let files = registry();
        let url = files.url();
        // No server, and no systemd to run one.
        let told = refused(&["install", "--keep-nameservers", "--registry", &url], 4);
        assert!(
            told.contains(&format!("svcdns serve --registry {url} --listen 127.0.0.1:53\n")),
            "{told}"
        );
        assert!(
            told.contains("Then run `svcdns install` again.") && !told.contains("systemd restarts"),
            "{told}"
        );
        let told = refused(&["install", "--dry-run", "--registry", &url], 4);
        assert!(
            told.contains("Then run `svcdns install`. Nothing was changed (--dry-run)."),
            "{told}"
        );
        assert!(
            told.contains("your supervisor must restart it") && !told.contains("systemd restarts"),
            "{told}"
        );
        assert_as_before(&before, "without a server");

        // Another process uses port 53.
        let holder = Process::start(Command::new("python3").args([
            "-c",
            "import socket,time\n\
             s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.bind(('0.0.0.0',53))\n\
             print('up',flush=True);time.sleep(999)",
        ]));
        eventually("port 53 to be taken", SOON, || holder.log().contains("up").then_some(()));
        let told = refused(&["install", "--keep-nameservers", "--registry", &url], 1);
        assert!(
            told.contains(&format!("(process {})", holder.pid())) && told.contains("127.0.0.1:53"),
            "{told}"
        );
        drop(holder);

        // A server with other settings, and one that does not listen on port 53.
        let server = serve(&["--registry", &url, "--listen", "127.0.0.1:5300", "--zone", "test"]);
        let told = refused(&["install", "--keep-nameservers", "--registry", &url], 1);
        assert!(told.contains("it serves test., not svc.") && told.contains("port 53"), "{told}");
        drop(server);

        // The only name server of a machine must also resolve other names.
        let _server = serve(&["--registry", &url, "--listen", "127.0.0.1:53", "--upstream", "off"]);
        let told = refused(&["install", "--registry", &url], 1);
        assert!(
            told.contains("only name server") && told.contains("all changes are reverted"),
            "{told}"
        );
        assert_as_before(&before, "refused after the first steps");

        // A user other than root.
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), "/run/svcdns-program").unwrap();
        let output = Command::new("/run/svcdns-program")
            .args(["install", "--registry", &url])
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        assert!(
            said(&output).contains(&format!("run as root: sudo svcdns install --registry {url}")),
            "{}",
            said(&output)
        );
        assert_eq!(output.status.code(), Some(1));
    });
}

#[test]
fn an_installation_whose_test_lookup_fails_is_undone() {
    on_a_machine("an_installation_whose_test_lookup_fails_is_undone", || {
        let (files, server) = served();
        // The hosts file has another address for the name.
        fs::write("/etc/hosts", "127.0.0.1 localhost\n10.9.0.99 ns.svc\n").unwrap();
        let before = tree("/etc");
        let told = refused(&["install", "--keep-nameservers", "--registry", &files.url()], 1);
        assert!(
            told.contains("another name server answers for the zone")
                && told.contains("all changes are reverted"),
            "{told}"
        );
        assert_as_before(&before, "after a lookup that failed");
        drop(server);
    });
}

#[test]
fn an_upgrade_killed_at_any_call_loses_nothing() {
    const TEST: &str = "an_upgrade_killed_at_any_call_loses_nothing";
    on_a_machine(TEST, || {
        if !can_trace() {
            return support::skip(TEST, "strace cannot trace here");
        }
        former::furnish();
        let before = tree("/etc");
        let registry = "file:///run/registry";
        let _server =
            serve(&["--registry", registry, "--listen", "127.0.0.1:53", "--upstream", "off"]);
        let install =
            ["install", "--keep-nameservers", "--upstream", "off", "--registry", registry];
        // A file that the user had edited, and that the older version saved.
        let kept = "/var/lib/svcdns-install/svcdns.conf";
        let mut places = 0;
        for line in [&install[..], &["uninstall"]] {
            for call in FILE_CALLS {
                for n in 1.. {
                    former::install(false);
                    fs::write("/var/lib/svcdns/svcdns.conf", "mine\n").unwrap();
                    let killed = killed_at(call, n, line);
                    if killed && n % 2 == 0 {
                        done(&install);
                        assert!(
                            fs::read_dir("/var/lib/svcdns").is_err(),
                            "the state directory of the service is new"
                        );
                    }
                    done(&["uninstall"]);
                    assert_eq!(
                        fs::read_to_string(kept).unwrap(),
                        "mine\n",
                        "{line:?} killed at {call} {n}"
                    );
                    fs::remove_dir_all("/var/lib/svcdns-install").unwrap();
                    assert_as_before(&before, &format!("{line:?} killed at {call} {n}"));
                    if !killed {
                        break;
                    }
                    places += 1;
                }
            }
        }
        assert!(places > 20, "only {places} places");
    });
}

#[test]
fn an_installation_killed_at_any_call_loses_nothing() {
    const TEST: &str = "an_installation_killed_at_any_call_loses_nothing";
    on_a_machine(TEST, || {
        fs::create_dir_all("/run/NetworkManager").unwrap();
        fs::write(
            "/run/NetworkManager/resolv.conf",
            "# Generated by NetworkManager\nnameserver 10.9.0.77\noptions attempts:1\n",
        )
        .unwrap();
        fs::remove_file(RESOLV_CONF).unwrap();
        symlink("/run/NetworkManager/resolv.conf", RESOLV_CONF).unwrap();
        let before = tree("/etc");
        let (files, _server) = served();
        let url = files.url();
        let install = ["install", "--keep-nameservers", "--registry", &url];
        if !can_trace() {
            return support::skip(TEST, "strace cannot trace here");
        }
        let mut places = 0;
        for call in FILE_CALLS {
            for n in 1.. {
                if !killed_at(call, n, &install) {
                    break;
                }
                places += 1;
                if n % 2 == 0 {
                    // A second installation undoes the rest of the first, and succeeds.
                    done(&install);
                    assert_eq!(lines()[0], "nameserver 127.0.0.1");
                }
                done(&["uninstall"]);
                assert_as_before(&before, &format!("install killed at {call} {n}"));
            }
            done(&["uninstall"]);
        }
        assert!(places > 10, "only {places} places");
        let mut places = 0;
        for call in FILE_CALLS {
            for n in 1.. {
                done(&install);
                if !killed_at(call, n, &["uninstall"]) {
                    break;
                }
                places += 1;
                done(&["uninstall"]);
                assert_as_before(&before, &format!("uninstall killed at {call} {n}"));
            }
        }
        assert!(places > 10, "only {places} places");
        assert_as_before(&before, "at the end");
        assert!(!svcdns(&["uninstall"]).stdout.is_empty());
    });
}
