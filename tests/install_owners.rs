//! `svcdns install` on machines whose name resolution is managed by a program.
//!
//! The programs are the real systemd-resolved and both programs named `resolvconf`, unpacked from
//! Debian's packages and run on private machines.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::files::Files;
use support::machine::{
    NOBODY, assert_as_before, done, looked_up, on_a_machine, put_among, refused, serve, svcdns,
    tree, unpacked,
};
use support::resolved::{self, Resolved};
use support::{SOON, eventually, netns};

const RESOLV_CONF: &str = "/etc/resolv.conf";

fn registry() -> Files {
    Files::new(&[("default/default/hello.svc/latest/10.9.0.5:80", "{}")])
}

fn expect_service(when: &str) {
    let what = format!("hello.svc through the C library {when}");
    eventually(&what, SOON, || (looked_up("hello.svc") == [netns::ADDRESS]).then_some(()));
}

/// Returns the lines of resolv.conf that are neither empty nor comments.
fn lines() -> Vec<String> {
    fs::read_to_string(RESOLV_CONF)
        .unwrap()
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

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
                && told.contains("names outside the zones go on working"),
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

/// Fails the test unless /etc is as before; a journal may exist.
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
fn a_record_is_added_to_debians_resolvconf_and_removed() {
    const TEST: &str = "a_record_is_added_to_debians_resolvconf_and_removed";
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
fn a_record_is_added_to_openresolv_and_removed() {
    const TEST: &str = "a_record_is_added_to_openresolv_and_removed";
    let Some(folder) = unpacked(TEST, &["openresolv"]) else { return };
    on_a_machine(TEST, || {
        put_among(&folder.join("sbin"), "/usr/sbin");
        put_among(&folder.join("lib"), "/usr/lib");
        netns::run(
            "cp",
            &["-a", folder.join("etc/resolvconf.conf").to_str().unwrap(), "/etc/resolvconf.conf"],
        );
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
    // The records of others are all there afterwards.
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
