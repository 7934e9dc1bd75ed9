//! `svcdns install` and `uninstall` on machines of the test's own: the C library finds names of the zone, and afterwards /etc
//! is byte for byte what it was.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use support::files::Files;
use support::former;
use support::machine::{NOBODY, assert_as_before, done, looked_up, on_a_machine, refused, said, serve, svcdns, tree};
use support::process::Process;
use support::upstream::{Record, Upstream};
use support::{SOON, dns, eventually, netns};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A registry with one service, and a server for it on port 53.
fn served() -> (Files, Process) {
    let files = registry();
    let server = serve(&["--registry", &files.url(), "--listen", "127.0.0.1:53"]);
    (files, server)
}

fn registry() -> Files {
    Files::new(&[("default/default/hello.svc/latest/10.9.0.5:80", "{}")])
}

/// The lines of resolv.conf that count.
fn lines() -> Vec<String> {
    fs::read_to_string(RESOLV_CONF).unwrap().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

fn found_service() {
    eventually("hello.svc through the C library", SOON, || (looked_up("hello.svc") == [netns::ADDRESS]).then_some(()));
}

#[test]
fn an_ordinary_file_and_back() {
    on_a_machine("an_ordinary_file_and_back", || {
        let before = tree("/etc");
        let (files, mut server) = served();
        let install = ["install", "--keep-nameservers", "--registry", &files.url()];

        let dry = done(&[&install[..], &["--dry-run"]].concat());
        assert!(dry.contains("+nameserver 127.0.0.1") && dry.contains("Nothing was changed"), "{dry}");
        assert_as_before(&before, "after a dry run");

        let told = done(&install);
        assert!(told.contains("left alone") && told.contains("a line in /etc/resolv.conf"), "{told}");
        assert_eq!(lines(), ["nameserver 127.0.0.1", &format!("nameserver {NOBODY}"), "options timeout:1 attempts:1"]);
        found_service();
        let kept = fs::read_to_string("/var/lib/svcdns-install/resolv.conf.before").unwrap();
        assert_eq!(kept, format!("# by hand\nnameserver {NOBODY}\noptions timeout:1 attempts:1\n"));
        let changed = tree("/etc");
        assert!(done(&install).contains("Already installed"));
        assert_eq!(tree("/etc"), changed);
        assert!(server.ended().is_none(), "the running server is left alone");

        // Other wishes: the earlier installation makes room.
        let told = done(&[&install[..], &["--search"]].concat());
        assert!(told.contains("is undone first") && !told.contains("Note: a name without"), "{told}");
        eventually("a name without its zone", SOON, || (looked_up("hello") == [netns::ADDRESS]).then_some(()));

        assert!(done(&["uninstall", "--dry-run"]).contains("/etc/resolv.conf"));
        assert!(done(&["uninstall"]).contains("/etc/resolv.conf: as it was before"));
        assert_as_before(&before, "after uninstall");
        assert!(done(&["uninstall"]).contains("Nothing is installed"));
        assert!(server.ended().is_none());
    });
}

/// Where the machine's own name server is, in the tests in which there is one; and where the next lease's is.
const UPSTREAM: &str = "127.0.0.9";
const NEXT_UPSTREAM: &str = "127.0.0.10";

/// A name server on port 53 that knows one name.
fn name_server(address: &str, name: &str, found: &str) -> Upstream {
    let upstream = Upstream::start_at(format!("{address}:53").parse().unwrap());
    upstream.put([Record::soa("example.test", 300, 30), Record::a(name, 300, found)]);
    upstream
}

fn found(name: &str, address: &str) {
    eventually(&format!("{name} through the C library"), SOON, || (looked_up(name) == [address]).then_some(()));
}

#[test]
fn the_only_name_server() {
    on_a_machine("the_only_name_server", || {
        let upstream = name_server(UPSTREAM, "www.example.test", "192.0.2.80");
        fs::write(RESOLV_CONF, format!("nameserver {UPSTREAM}\noptions timeout:1 attempts:1\n")).unwrap();
        let before = tree("/etc");
        let files = registry();
        let flags = ["--registry", &files.url(), "--upstream", &upstream.flag()];
        let serving = [&flags[..], &["--listen", "127.0.0.1:53"]].concat();
        let mut server = serve(&serving);
        let told = done(&[&["install"], &flags[..]].concat());
        assert!(told.contains("If the server dies: nothing is resolved until it runs again"), "{told}");
        assert_eq!(lines(), ["nameserver 127.0.0.1", "options timeout:1 attempts:1"]);
        found_service();
        found("www.example.test", "192.0.2.80");

        // As it said: nothing goes on without it, and everything with the next one.
        server.kill();
        assert_eq!([looked_up("hello.svc"), looked_up("www.example.test")], [[""; 0]; 2]);
        let server = serve(&serving);
        found_service();
        found("www.example.test", "192.0.2.80");
        assert!(!upstream.names().contains("hello.svc"), "names of the zone are nobody else's to know");

        done(&["uninstall"]);
        assert_as_before(&before, "after uninstall");
        drop(server);
        found("www.example.test", "192.0.2.80");
    });
}

#[test]
fn others_names_come_from_whom_the_machine_asked_before() {
    on_a_machine("others_names_come_from_whom_the_machine_asked_before", || {
        let _upstream = name_server(UPSTREAM, "www.example.test", "192.0.2.80");
        fs::write(RESOLV_CONF, format!("nameserver {UPSTREAM}\noptions timeout:1 attempts:1\n")).unwrap();
        let before = tree("/etc");
        let files = registry();
        let (url, install) = (files.url(), ["install", "--registry", &files.url()]);
        let serving = ["--registry", &url, "--listen", "127.0.0.1:53"];
        let mut server = serve(&serving);
        done(&install);
        assert_eq!(lines(), ["nameserver 127.0.0.1", "options timeout:1 attempts:1"]);
        found_service();
        found("www.example.test", "192.0.2.80");

        // One that starts now finds its own address in resolv.conf, and nothing in a cache.
        server.kill();
        let mut server = serve(&serving);
        found("www.example.test", "192.0.2.80");
        found_service();

        // A DHCP client puts a file of its own there: programs ask its server from now on, and so does ours.
        let next = name_server(NEXT_UPSTREAM, "next.example.test", "192.0.2.81");
        let lease = format!("nameserver {NEXT_UPSTREAM}\noptions timeout:1 attempts:1\n");
        fs::write("/etc/resolv.conf.lease", &lease).unwrap();
        fs::rename("/etc/resolv.conf.lease", RESOLV_CONF).unwrap();
        let ours = "127.0.0.1:53".parse().unwrap();
        eventually("the next upstream to be asked", SOON, || {
            (dns::addresses(ours, "next.example.test") == Ok(vec!["192.0.2.81".parse().unwrap()])).then_some(())
        });
        assert_eq!(looked_up("hello.svc"), [""; 0], "nobody asks svcdns any more");

        next.forget();
        // Installed again, it leads here again.
        let told = done(&install);
        assert!(told.contains("is undone first") && told.contains("written it anew since"), "{told}");
        assert_eq!(lines(), ["nameserver 127.0.0.1", "options timeout:1 attempts:1"]);
        found_service();
        found("next.example.test", "192.0.2.81");
        assert!(!next.names().contains("hello.svc"), "names of the zone are nobody else's to know");
        assert!(server.ended().is_none());

        // What the client wrote is what comes back.
        done(&["uninstall"]);
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), lease);
        let (mut was, mut is) = (before, tree("/etc"));
        was.remove(Path::new(RESOLV_CONF));
        is.remove(Path::new(RESOLV_CONF));
        assert_eq!(is, was);
        assert!(tree("/var/lib").is_empty(), "{:?}", tree("/var/lib"));
    });
}

#[test]
fn what_somebody_wrote_since_stays() {
    on_a_machine("what_somebody_wrote_since_stays", || {
        let (files, _server) = served();
        done(&["install", "--search", "--keep-nameservers", "--registry", &files.url()]);
        let text = fs::read_to_string(RESOLV_CONF).unwrap();
        fs::write(RESOLV_CONF, format!("# mine\n{text}options rotate\n")).unwrap();
        let told = done(&["uninstall"]);
        assert!(told.contains("somebody has changed it since; only the lines of svcdns were taken out"), "{told}");
        let left = fs::read_to_string(RESOLV_CONF).unwrap();
        assert_eq!(left, format!("# mine\n# by hand\nnameserver {NOBODY}\noptions timeout:1 attempts:1\noptions rotate\n"));

        done(&["install", "--keep-nameservers", "--registry", &files.url()]);
        fs::write(RESOLV_CONF, "nameserver 192.0.2.9\n").unwrap();
        let told = done(&["uninstall"]);
        assert!(told.contains("written it anew since"), "{told}");
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), "nameserver 192.0.2.9\n");
    });
}

#[test]
fn files_in_any_condition() {
    on_a_machine("files_in_any_condition", || {
        let (files, _server) = served();
        let url = files.url();
        let install = ["install", "--keep-nameservers", "--registry", &url];
        // What it says, and which lines count afterwards.
        let good: [(&str, &[&str]); 6] = [
            ("", &["nameserver 127.0.0.1"]),
            ("nameserver 127.0.0.1\n", &["nameserver 127.0.0.1"]),
            ("nameserver 10.9.0.77\nnameserver 127.0.0.1\n", &["nameserver 127.0.0.1", "nameserver 10.9.0.77"]),
            ("nameserver fe80::1%veth0\n", &["nameserver 127.0.0.1", "nameserver fe80::1%veth0"]),
            ("nameserver no.address\noptions attempts:1\n", &["nameserver no.address", "options attempts:1", "nameserver 127.0.0.1"]),
            ("search a.example\nnameserver 10.9.0.77", &["search a.example", "nameserver 127.0.0.1", "nameserver 10.9.0.77"]),
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
        let twenty = (1..=20).fold(String::new(), |text, n| format!("{text}nameserver 192.0.2.{n}\n"));
        fs::write(RESOLV_CONF, &twenty).unwrap();
        fs::set_permissions(RESOLV_CONF, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(RESOLV_CONF, Some(0), Some(4)).unwrap();
        let before = tree("/etc");
        done(&install);
        assert_eq!((lines().len(), lines()[0].as_str()), (21, "nameserver 127.0.0.1"));
        assert_eq!(fs::metadata(RESOLV_CONF).unwrap().permissions().mode() & 0o7777, 0o640);
        done(&["uninstall"]);
        assert_as_before(&before, "twenty name servers, and a mode of its own");

        // Not there at all, and a link to nowhere.
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
        // A link to a file that nobody manages stays one.
        fs::write("/etc/real.conf", "nameserver 10.9.0.77\n").unwrap();
        symlink("real.conf", RESOLV_CONF).unwrap();
        let before = tree("/etc");
        done(&install);
        assert_eq!(fs::read_link(RESOLV_CONF).unwrap(), Path::new("real.conf"));
        assert!(fs::read_to_string("/etc/real.conf").unwrap().contains("nameserver 127.0.0.1"));
        done(&["uninstall"]);
        assert_as_before(&before, "a link of somebody's own");
        fs::remove_file(RESOLV_CONF).unwrap();

        // What it must not touch, and what it says.
        let refuses = |words: &str| {
            let before = tree("/etc");
            let told = refused(&install, 1);
            assert!(told.contains(words), "{words}: {told}");
            assert_as_before(&before, words);
        };
        fs::write(RESOLV_CONF, "nameserver 192.0.2.1\nnameserver 192.0.").unwrap();
        refuses("line 2 breaks off");
        fs::write(RESOLV_CONF, "#".repeat((1 << 20) + 1)).unwrap();
        refuses("so it is no resolv.conf");
        fs::remove_file(RESOLV_CONF).unwrap();
        symlink("resolv.conf", RESOLV_CONF).unwrap();
        refuses("circle");
        fs::remove_file(RESOLV_CONF).unwrap();
        fs::create_dir(RESOLV_CONF).unwrap();
        refuses("it is not a file");
        fs::remove_dir(RESOLV_CONF).unwrap();
        fs::write(RESOLV_CONF, "nameserver 10.9.0.77\n").unwrap();
        fs::write("/etc/nsswitch.conf", "hosts: files\n").unwrap();
        refuses("asks no DNS server");
        fs::write("/etc/nsswitch.conf", "hosts: files dns\n").unwrap();
        netns::run("mount", &["-o", "remount,bind,ro", "/etc"]);
        refuses("read-only");
    });
}

#[test]
fn an_immutable_file_is_somebodys_will() {
    const TEST: &str = "an_immutable_file_is_somebodys_will";
    on_a_machine(TEST, || {
        if !Command::new("chattr").args(["+i", RESOLV_CONF]).status().is_ok_and(|status| status.success()) {
            return support::skip(TEST, "the kernel knows no immutable files on tmpfs");
        }
        let before = tree("/etc");
        let (files, _server) = served();
        let install = ["install", "--keep-nameservers", "--registry", &files.url()];
        let told = refused(&install, 1);
        assert!(told.contains("chattr -i /etc/resolv.conf") && told.contains("--lift-immutable"), "{told}");
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
fn a_mount_of_a_containers_engine_is_written_in_place() {
    on_a_machine("a_mount_of_a_containers_engine_is_written_in_place", || {
        fs::write("/run/hosts-file", "nameserver 10.9.0.77\noptions timeout:1 attempts:1\n").unwrap();
        netns::run("mount", &["--bind", "/run/hosts-file", RESOLV_CONF]);
        fs::write("/run/.containerenv", "").unwrap();
        let before = tree("/etc");
        let (files, _server) = served();
        let told = done(&["install", "--keep-nameservers", "--registry", &files.url()]);
        assert!(told.contains("written in place") && told.contains("podman run --dns"), "{told}");
        assert_eq!(lines()[0], "nameserver 127.0.0.1");
        found_service();
        done(&["uninstall"]);
        let text = fs::read_to_string(RESOLV_CONF).unwrap();
        assert_eq!(text, "nameserver 10.9.0.77\noptions timeout:1 attempts:1\n");
        let (mut before, mut now) = (before, tree("/etc"));
        // When it was changed cannot be put back in place without pretending.
        before.remove(Path::new(RESOLV_CONF));
        now.remove(Path::new(RESOLV_CONF));
        assert_eq!(now, before);
    });
}

#[test]
fn networkmanagers_link() {
    on_a_machine("networkmanagers_link", || {
        fs::create_dir_all("/run/NetworkManager").unwrap();
        fs::write("/run/NetworkManager/resolv.conf", "# Generated by NetworkManager\nnameserver 10.9.0.77\noptions attempts:1\n").unwrap();
        fs::remove_file(RESOLV_CONF).unwrap();
        symlink("/run/NetworkManager/resolv.conf", RESOLV_CONF).unwrap();
        let before = tree("/etc");
        let (files, _server) = served();
        let told = done(&["install", "--keep-nameservers", "--registry", &files.url()]);
        assert!(told.contains("is managed by: NetworkManager"), "{told}");
        assert!(fs::symlink_metadata(RESOLV_CONF).unwrap().is_file());
        assert!(fs::read_to_string("/etc/NetworkManager/conf.d/90-svcdns.conf").unwrap().ends_with("[main]\nrc-manager=unmanaged\n"));
        found_service();
        let told = done(&["uninstall"]);
        assert!(told.contains("/etc/NetworkManager/conf.d/90-svcdns.conf: removed"), "{told}");
        assert_as_before(&before, "after uninstall");
    });
}

#[test]
fn what_has_to_be_there_first() {
    on_a_machine("what_has_to_be_there_first", || {
        let before = tree("/etc");
        let told = refused(&["install"], 1);
        assert!(told.contains("name the registry"), "{told}");
        let files = registry();
        let url = files.url();
        // No server, and no systemd to run one.
        let told = refused(&["install", "--keep-nameservers", "--registry", &url], 4);
        assert!(told.contains(&format!("svcdns serve --registry {url} --listen 127.0.0.1:53\n")), "{told}");
        assert!(told.contains("Then run `svcdns install` again.") && !told.contains("systemd starts"), "{told}");
        let told = refused(&["install", "--dry-run", "--registry", &url], 4);
        assert!(told.contains("Then run `svcdns install`. Nothing was changed (--dry-run)."), "{told}");
        assert!(told.contains("what supervises it has to see to that") && !told.contains("systemd starts"), "{told}");
        assert_as_before(&before, "without a server");

        // Somebody else holds port 53.
        let holder = Process::start(Command::new("python3").args([
            "-c",
            "import socket,time\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.bind(('0.0.0.0',53));print('up',flush=True);time.sleep(999)",
        ]));
        eventually("port 53 to be taken", SOON, || holder.log().contains("up").then_some(()));
        let told = refused(&["install", "--keep-nameservers", "--registry", &url], 1);
        assert!(told.contains(&format!("(process {})", holder.pid())) && told.contains("127.0.0.1:53"), "{told}");
        drop(holder);

        // A server with other settings, and one that does not listen on port 53.
        let server = serve(&["--registry", &url, "--listen", "127.0.0.1:5300", "--zone", "test"]);
        let told = refused(&["install", "--keep-nameservers", "--registry", &url], 1);
        assert!(told.contains("it serves test., not svc.") && told.contains("port 53"), "{told}");
        drop(server);

        // The only name server of a machine must answer for other names, too.
        let _server = serve(&["--registry", &url, "--listen", "127.0.0.1:53", "--upstream", "off"]);
        let told = refused(&["install", "--registry", &url], 1);
        assert!(told.contains("only name server") && told.contains("everything is restored"), "{told}");
        assert_as_before(&before, "refused after the first steps");

        // Not as root.
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), "/run/svcdns-program").unwrap();
        let output = Command::new("/run/svcdns-program").args(["install", "--registry", &url]).uid(65534).gid(65534).output().unwrap();
        assert!(said(&output).contains(&format!("run as root: sudo svcdns install --registry {url}")), "{}", said(&output));
        assert_eq!(output.status.code(), Some(1));
    });
}

#[test]
fn what_does_not_prove_itself_is_taken_back() {
    on_a_machine("what_does_not_prove_itself_is_taken_back", || {
        let (files, server) = served();
        // The hosts file answers for the name first, and wrongly.
        fs::write("/etc/hosts", "127.0.0.1 localhost\n10.9.0.99 ns.svc\n").unwrap();
        let before = tree("/etc");
        let told = refused(&["install", "--keep-nameservers", "--registry", &files.url()], 1);
        assert!(told.contains("another name server answers for the zone") && told.contains("everything is restored"), "{told}");
        assert_as_before(&before, "after a lookup that failed");
        drop(server);
    });
}

/// Kinds of calls that change something.
const CALLS: [&str; 9] = ["rename", "unlink", "fsync", "mkdir", "rmdir", "symlink", "ftruncate", "fchown", "fchmod"];

fn can_trace() -> bool {
    Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success())
}

/// Runs the program, which strace kills at the n-th call of this kind; false if it makes no such call.
fn killed_at(call: &str, n: usize, arguments: &[&str]) -> bool {
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/run/trace", "-e", &format!("trace={call}"), "-e"])
        .arg(format!("inject={call}:signal=SIGKILL:when={n}"))
        .arg(env!("CARGO_BIN_EXE_svcdns"))
        .args(arguments)
        .output()
        .unwrap();
    let killed = !output.status.success();
    let trace = fs::read_to_string("/run/trace").unwrap_or_default();
    assert!(killed == trace.contains("killed by SIGKILL"), "{}\n{trace}", said(&output));
    killed
}

#[test]
fn killed_anywhere_while_it_takes_over_the_version_before_nothing_is_lost() {
    const TEST: &str = "killed_anywhere_while_it_takes_over_the_version_before_nothing_is_lost";
    on_a_machine(TEST, || {
        if !can_trace() {
            return support::skip(TEST, "strace cannot trace here");
        }
        former::furnish();
        let before = tree("/etc");
        let registry = "file:///run/registry";
        let _server = serve(&["--registry", registry, "--listen", "127.0.0.1:53", "--upstream", "off"]);
        let install = ["install", "--keep-nameservers", "--upstream", "off", "--registry", registry];
        // Files that somebody changed since, and that the version before kept for them.
        let kept = "/var/lib/svcdns-install/svcdns.conf";
        let mut places = 0;
        for line in [&install[..], &["uninstall"]] {
            for call in CALLS {
                for n in 1.. {
                    former::install(false);
                    fs::write("/var/lib/svcdns/svcdns.conf", "mine\n").unwrap();
                    let killed = killed_at(call, n, line);
                    if killed && n % 2 == 0 {
                        done(&install);
                        assert!(fs::read_dir("/var/lib/svcdns").is_err(), "nothing is left for a service");
                    }
                    done(&["uninstall"]);
                    assert_eq!(fs::read_to_string(kept).unwrap(), "mine\n", "{line:?} killed at {call} {n}");
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
fn killed_anywhere_nothing_is_lost() {
    const TEST: &str = "killed_anywhere_nothing_is_lost";
    on_a_machine(TEST, || {
        fs::create_dir_all("/run/NetworkManager").unwrap();
        fs::write("/run/NetworkManager/resolv.conf", "# Generated by NetworkManager\nnameserver 10.9.0.77\noptions attempts:1\n").unwrap();
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
        for call in CALLS {
            for n in 1.. {
                if !killed_at(call, n, &install) {
                    break;
                }
                places += 1;
                if n % 2 == 0 {
                    // A second installation finds what is left of the first, and ends well.
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
        for call in CALLS {
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
