//! `svcdns install` on machines whose name resolution is managed by a program.
//!
//! The programs are the real systemd-resolved and both programs named `resolvconf`, unpacked from
//! Debian's packages and run on private machines.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use support::machine::{
    NOBODY, RESOLV_CONF, assert_as_before, done, expect_service, lines, looked_up, on_a_machine,
    put_among, refused, registry, serve, svcdns, tree, unpacked,
};
use support::process::Process;
use support::resolved::{self, Resolved};
use support::strace::{calls_alone, can_trace, killed_alone_at};
use support::{SOON, eventually, netns, skip};

#[test]
fn systemd_resolved_routes_the_zones_to_svcdns() {
    const TEST: &str = "systemd_resolved_routes_the_zones_to_svcdns";
    let Some(folder) = resolved::packages(TEST) else { return };
    on_a_machine(TEST, || {
        // It validates, but the zone is unsigned.
        let settings = format!("DNSSEC=yes\nDNS={NOBODY}");
        let mut resolved = Resolved::start(&folder, &settings);
        fs::remove_file(RESOLV_CONF).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", RESOLV_CONF).unwrap();
        let before = tree("/etc");
        let files = registry();
        // systemd-resolved can use any port.
        let server = serve(&[
            "--registry",
            &files.url(),
            "--listen",
            "127.0.0.1:5300",
            "--zone",
            "svc",
            "--zone",
            "corp.test",
        ]);
        let install =
            ["install", "--registry", &files.url(), "--zone", "svc", "--zone", "corp.test"];

        let dry = done(&[&install[..], &["--dry-run"]].concat());
        assert!(
            dry.contains("resolvectl domain svcdns0 '~svc' '~corp.test'")
                && dry.contains("resolvectl dnssec svcdns0 no"),
            "{dry}"
        );
        assert!(
            !Command::new("ip")
                .args(["link", "show", "svcdns0"])
                .output()
                .unwrap()
                .status
                .success()
        );

        let told = done(&install);
        assert!(
            told.contains("is managed by: systemd-resolved")
                && told.contains("names outside the zones still resolve"),
            "{told}"
        );
        expect_service("by its stub");
        assert_eq!(looked_up("hello.corp.test"), [netns::ADDRESS]);
        let uplinks = fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap();
        assert!(
            uplinks.contains(NOBODY) && !uplinks.contains("127.0.0.1"),
            "svcdns must not receive other names: {uplinks}"
        );
        assert_etc_as_before(&before, "resolv.conf is left alone");
        assert!(done(&install).contains("Already installed"));

        // A restart of systemd-resolved loses the route; the printed commands add it again.
        resolved.restart(&settings);
        let (_, again) = told.split_once("each time the server starts\n").unwrap();
        let again: Vec<&str> = again
            .lines()
            .take_while(|line| line.starts_with('/'))
            .filter(|line| line.contains("resolvectl"))
            .collect();
        assert!(again.len() > 5, "{told}");
        netns::run("sh", &["-ec", &again.join("\n")]);
        expect_service("after a restart of systemd-resolved");

        let told = done(&["uninstall"]);
        assert!(told.contains("no longer part"), "{told}");
        assert!(
            !Command::new("ip")
                .args(["link", "show", "svcdns0"])
                .output()
                .unwrap()
                .status
                .success()
        );
        assert_as_before(&before, "after uninstall");

        // With the zones on the search list.
        done(&[&install[..], &["--search"]].concat());
        eventually("a name without its zone", SOON, || {
            (looked_up("hello") == [netns::ADDRESS]).then_some(())
        });
        done(&["uninstall"]);
        assert_as_before(&before, "after the second uninstall");
        drop(server);
    });
}

/// Fails the test unless /etc is unchanged; a journal may exist.
fn assert_etc_as_before(before: &std::collections::BTreeMap<PathBuf, String>, when: &str) {
    assert_eq!(&tree("/etc"), before, "{when}");
}

#[test]
fn a_link_that_bypasses_systemd_resolved_is_changed_to_its_stub() {
    const TEST: &str = "a_link_that_bypasses_systemd_resolved_is_changed_to_its_stub";
    let Some(folder) = resolved::packages(TEST) else { return };
    on_a_machine(TEST, || {
        let _resolved = Resolved::start(&folder, "");
        fs::remove_file(RESOLV_CONF).unwrap();
        symlink("/run/systemd/resolve/resolv.conf", RESOLV_CONF).unwrap();
        let before = tree("/etc");
        let files = registry();
        let server = serve(&["--registry", &files.url()]);
        done(&["install", "--registry", &files.url()]);
        assert_eq!(
            fs::read_link(RESOLV_CONF).unwrap(),
            Path::new("../run/systemd/resolve/stub-resolv.conf")
        );
        expect_service("by the stub");
        done(&["uninstall"]);
        assert_as_before(&before, "after uninstall");
        drop(server);
    });
}

#[test]
fn install_adds_a_record_to_debians_resolvconf_and_uninstall_removes_it() {
    const TEST: &str = "install_adds_a_record_to_debians_resolvconf_and_uninstall_removes_it";
    let Some(folder) = unpacked(TEST, &["resolvconf"]) else { return };
    on_a_machine(TEST, || {
        put_among(&folder.join("sbin"), "/usr/sbin");
        put_among(&folder.join("lib"), "/usr/lib");
        netns::run(
            "cp",
            &["-a", folder.join("etc/resolvconf").to_str().unwrap(), "/etc/resolvconf"],
        );
        fs::create_dir_all("/run/resolvconf/interface").unwrap();
        fs::write("/run/resolvconf/enable-updates", "").unwrap();
        fs::remove_file(RESOLV_CONF).unwrap();
        symlink("../run/resolvconf/resolv.conf", RESOLV_CONF).unwrap();
        netns::run(
            "sh",
            &[
                "-c",
                &format!(
                    "printf 'nameserver {NOBODY}\\nsearch corp.example\\n' | \
                     resolvconf -a eth0.dhclient"
                ),
            ],
        );
        assert_eq!(lines(), [&format!("nameserver {NOBODY}"), "search corp.example"]);
        expect_record_until_uninstalled("Debian's");
    });
}

#[test]
fn install_adds_a_record_to_openresolv_and_uninstall_removes_it() {
    const TEST: &str = "install_adds_a_record_to_openresolv_and_uninstall_removes_it";
    let Some(folder) = unpacked(TEST, &["openresolv"]) else { return };
    on_a_machine(TEST, || {
        add_openresolv(&folder);
        assert!(fs::read_to_string(RESOLV_CONF).unwrap().starts_with("# Generated by resolvconf"));
        expect_record_until_uninstalled("openresolv");
    });
}

fn expect_record_until_uninstalled(kind: &str) {
    let was = lines();
    let before = tree("/etc");
    let files = registry();
    // These lookups need no server that forwards.
    let _server = serve(&["--registry", &files.url(), "--listen", "127.0.0.1:53"]);
    let install = ["install", "--search", "--keep-nameservers", "--registry", &files.url()];
    let told = done(&install);
    assert!(told.contains("is managed by: resolvconf") && told.contains(kind), "{told}");
    let now = lines();
    assert_eq!(
        now.iter().filter(|line| line.starts_with("nameserver")).collect::<Vec<_>>(),
        ["nameserver 127.0.0.1"],
        "one line"
    );
    assert!(now.iter().any(|line| line.starts_with("search svc")), "{now:?}");
    expect_service("by a record of resolvconf");
    assert_eq!(looked_up("hello"), [netns::ADDRESS]);
    assert!(done(&install).contains("Already installed"));
    // All foreign records are there afterwards.
    done(&["uninstall"]);
    assert_eq!(lines(), was);
    let (mut before, mut now) = (before, tree("/etc"));
    // openresolv writes /etc/resolv.conf itself: the same content, but another time.
    before.remove(Path::new(RESOLV_CONF));
    now.remove(Path::new(RESOLV_CONF));
    assert_eq!(now, before);
    assert!(svcdns(&["uninstall"]).status.success());
    let told = refused(&["install", "--registry", &files.url(), "--listen", "127.0.0.1:5300"], 1);
    assert!(told.contains("does not listen on 127.0.0.1:5300"), "{told}");
}

/// Adds openresolv to the machine, with a record of a DHCP client.
fn add_openresolv(folder: &Path) {
    put_among(&folder.join("sbin"), "/usr/sbin");
    put_among(&folder.join("lib"), "/usr/lib");
    let settings = folder.join("etc/resolvconf.conf");
    netns::run("cp", &["-a", settings.to_str().unwrap(), "/etc/resolvconf.conf"]);
    let record = format!("nameserver {NOBODY}\\nsearch corp.example\\n");
    let add = format!("printf '{record}' | resolvconf -a eth0.dhclient");
    netns::run("sh", &["-c", &add]);
}

/// Runs `body` on a machine with openresolv and a server, and passes the arguments of `install`.
fn with_openresolv(test: &str, body: impl FnOnce(&[&str])) {
    let Some(folder) = unpacked(test, &["openresolv"]) else { return };
    on_a_machine(test, || {
        add_openresolv(&folder);
        let files = registry();
        let _server = serve(&["--registry", &files.url(), "--listen", "127.0.0.1:53"]);
        body(&["install", "--keep-nameservers", "--registry", &files.url()]);
    });
}

/// Makes openresolv slow: it runs a command before it adds the record of svcdns.
fn run_before_adding(command: &str) {
    let (real, slow) = ("/run/real-resolvconf", "/run/slow-resolvconf");
    fs::copy("/usr/sbin/resolvconf", real).unwrap();
    let script = format!(
        "#!/bin/sh\n# openresolv\ncase \"$*\" in '-a lo.svcdns') {command};; esac\n\
         exec {real} \"$@\"\n"
    );
    fs::write(slow, script).unwrap();
    netns::run("chmod", &["755", slow]);
    netns::run("mount", &["--bind", slow, "/usr/sbin/resolvconf"]);
}

/// Asserts that no record of svcdns is left, and none appears later.
fn assert_no_record(was: &[String], when: &str) {
    eventually(&format!("the commands of install to end, {when}"), SOON, || {
        let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let mut lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let names = |line: Vec<u8>| String::from_utf8_lossy(&line).contains("resolvconf");
        (!lines.any(names)).then_some(())
    });
    let records = tree("/run/resolvconf");
    let ours = records.keys().find(|path| path.ends_with("lo.svcdns"));
    assert_eq!((ours, lines().as_slice()), (None, was), "{when}");
    assert!(tree("/var/lib").is_empty(), "{when}");
}

#[test]
fn uninstall_waits_for_a_command_of_a_killed_installation() {
    with_openresolv("uninstall_waits_for_a_command_of_a_killed_installation", |install| {
        let was = lines();
        let until_told = "touch /run/adding; until [ -e /run/go ]; do sleep 0.01; done";
        run_before_adding(until_told);
        let mut killed = Process::start(support::svcdns::command().args(install));
        eventually("resolvconf to run", SOON, || Path::new("/run/adding").exists().then_some(()));
        killed.kill();
        let mut waiting = Process::start(support::svcdns::command().arg("uninstall"));
        eventually("uninstall to wait", SOON, || {
            assert!(waiting.ended().is_none(), "{}", waiting.log());
            waiting.log().contains("Waiting up to 60 s").then_some(())
        });
        assert!(waiting.log().contains("resolvconf (process "), "{}", waiting.log());
        fs::write("/run/go", "").unwrap();
        eventually("uninstall to end", SOON, || waiting.ended());
        assert!(waiting.log().contains("Done: svcdns is no longer part"), "{}", waiting.log());
        assert_no_record(&was, "after a wait");
    });
}

#[test]
fn an_installation_killed_at_any_time_leaves_no_record() {
    const KILLS: u32 = 60;
    with_openresolv("an_installation_killed_at_any_time_leaves_no_record", |install| {
        let was = lines();
        run_before_adding("sleep 0.3");
        let start = Instant::now();
        done(install);
        let whole = start.elapsed();
        done(&["uninstall"]);
        for kill in 0..KILLS {
            let mut command = support::svcdns::command();
            let quiet = command.args(install).stdout(Stdio::null()).stderr(Stdio::null());
            let mut killed = quiet.spawn().unwrap();
            // The kills are spread evenly over the whole run, with a random offset.
            let after = whole * kill / KILLS + whole.mul_f64(fastrand::f64()) / KILLS;
            thread::sleep(after);
            killed.kill().unwrap();
            killed.wait().unwrap();
            done(&["uninstall"]);
            assert_no_record(&was, &format!("killed after {after:?} of {whole:?}"));
        }
    });
}

#[test]
fn an_installation_killed_at_any_call_leaves_no_record() {
    const TEST: &str = "an_installation_killed_at_any_call_leaves_no_record";
    // At most about so many kills at calls of one name.
    const KILLS_PER_NAME: usize = 8;
    with_openresolv(TEST, |install| {
        if !can_trace() {
            return skip(TEST, "strace cannot trace here");
        }
        let was = lines();
        let calls = calls_alone(install);
        done(&["uninstall"]);
        let mut places = 0;
        for (call, count) in calls {
            for n in (1..=count).step_by(count.div_ceil(KILLS_PER_NAME)) {
                places += usize::from(killed_alone_at(&call, n, install));
                done(&["uninstall"]);
                assert_no_record(&was, &format!("killed at {call} {n}"));
            }
        }
        assert!(places > 100, "only {places} places");
    });
}

#[test]
fn a_file_that_openresolv_would_empty_is_not_changed() {
    with_openresolv("a_file_that_openresolv_would_empty_is_not_changed", |install| {
        // The records are lost, such as those of an interface that was renamed; the file is not.
        netns::run("sh", &["-c", "rm /run/resolvconf/*/eth0.dhclient /etc/resolv.conf.bak"]);
        let before = tree("/etc");
        let told = refused(install, 1);
        assert!(told.contains("which no longer has any records"), "{told}");
        assert_as_before(&before, "refused");
        // Name servers of its settings need no record.
        let settings = "/etc/resolvconf.conf";
        let text = fs::read_to_string(settings).unwrap();
        fs::write(settings, format!("{text}\nname_servers={NOBODY}\n")).unwrap();
        done(install);
        done(&["uninstall"]);
        assert_eq!(lines(), [format!("nameserver {NOBODY}")]);
    });
}
