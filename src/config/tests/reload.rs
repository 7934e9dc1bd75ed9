//! The changes between two configurations.

use super::*;
use crate::config::{ConfigChange, Effect, SecretDigests};

/// Returns the changes between two files, one line each, without their folders.
fn changes(before: &str, after: &str) -> Vec<String> {
    let line = |ConfigChange { path, before, after, source, effect }: ConfigChange| {
        let [before, after] = [before, after].map(|text| text.unwrap_or_else(|| "-".to_owned()));
        let source = source.rsplit('/').next().unwrap().to_owned();
        let restart = if effect == Effect::NeedsRestart { ", restart" } else { "" };
        format!("{path}: {before} > {after} ({source}{restart})")
    };
    read(before, &[]).changes_to(&read(after, &[])).into_iter().map(line).collect()
}

#[test]
fn equal_configurations_have_no_changes() {
    let text = "ttl = '7s'\n[registry.main]\nurl = 'etcd://a'\n[alias]\nwww = 'hello'\n\
                [[static]]\nname = 'old'\nendpoints = ['10.0.0.7:80']\n";
    assert_eq!(changes(text, text), [""; 0]);
    let moved = format!("\n# a comment\n{text}");
    assert_eq!(changes(text, &moved), [""; 0]);
    assert_eq!(changes("ttl = '5s'", ""), [""; 0], "the default, written down");
}

#[test]
fn changes_tell_both_values_and_the_place() {
    assert_eq!(
        changes("", "ttl = '10s'\nallow = ['10.0.0.0/8']"),
        [
            r#"allow: [] > ["10.0.0.0/8"] (svcdns.toml:2:1)"#,
            r#"ttl: "5s" > "10s" (svcdns.toml:1:1)"#
        ]
    );
    assert_eq!(changes("ttl = '10s'", ""), [r#"ttl: "10s" > "5s" (default)"#]);
}

#[test]
fn sections_aliases_and_static_services_come_and_go() {
    let with = "[registry.main]\nurl = 'etcd://a'\nremoval-grace = '1s'\n\
                [alias]\nwww = 'hello'\n[[static]]\nname = 'old'\nendpoints = ['10.0.0.7:80']\n";
    let lines = [
        r#"registry.main.url: - > "etcd://a" (svcdns.toml:2:1)"#,
        r#"registry.main.removal-grace: - > "1s" (svcdns.toml:3:1)"#,
        r#"static.old.endpoints: - > ["10.0.0.7:80"] (svcdns.toml:8:1)"#,
        r#"alias.www: - > "hello" (svcdns.toml:5:1)"#,
    ];
    assert_eq!(changes("", with), lines);
    let removed = lines.map(|line| {
        let (path, rest) = line.split_once(": - > ").unwrap();
        let (value, place) = rest.rsplit_once(' ').unwrap();
        format!("{path}: {value} > - {place}")
    });
    assert_eq!(changes(with, ""), removed);
}

#[test]
fn versions_of_one_static_service_are_one_change() {
    let version = |version: &str, port: &str| {
        format!(
            "[[static]]\nname = 'old'\nversion = '{version}'\nendpoints = ['10.0.0.7:{port}']\n"
        )
    };
    let (one, two) = (version("v1", "80"), version("v2", "80"));
    assert_eq!(
        changes(&format!("{one}{two}"), &format!("{one}{}", version("v2", "81"))),
        ["static.old.endpoints: [\"10.0.0.7:80\"], [\"10.0.0.7:80\"] > [\"10.0.0.7:80\"], \
             [\"10.0.0.7:81\"] (svcdns.toml:4:1)"]
    );
}

#[test]
fn the_order_of_registries_is_a_change() {
    let section = |name: &str| format!("[registry.{name}]\nurl = 'etcd://{name}'\n");
    let (a, b) = (section("a"), section("b"));
    assert_eq!(
        changes(&format!("{a}{b}"), &format!("{b}{a}")),
        ["order of the registries: a, b > b, a (default)"]
    );
}

#[test]
fn keys_that_need_a_restart_keep_their_values() {
    let before = read("ttl = '5s'\nstate-dir = '/old'\n[bridge]\nconnections = 7\n", &[]);
    let after = read(
        "ttl = '9s'\nstate-dir = '/new'\n[bridge]\nenabled = true\n[checks]\nenabled = true\n",
        &[],
    );
    let needs_restart = |change: &ConfigChange| change.effect == Effect::NeedsRestart;
    let changed: Vec<String> = before
        .changes_to(&after)
        .into_iter()
        .filter(needs_restart)
        .map(|change| change.path)
        .collect();
    let expected = ["state-dir", "bridge.enabled", "bridge.connections", "checks.enabled"];
    assert_eq!(changed, expected);
    let merged = after.clone().keeping_restart_keys(&before);
    assert_eq!(merged.ttl, 9);
    assert!(merged.bridge.is_none() && merged.checks.is_none());
    assert_eq!(merged.state_dir, before.state_dir);
    assert_eq!(merged.runtime_dir, before.runtime_dir);
    // The next reload reports them again, and only them.
    let again: Vec<_> = merged.changes_to(&after).into_iter().map(|change| change.path).collect();
    assert_eq!(again, expected);
}

#[test]
fn changed_secrets_are_noticed_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "hunter2").unwrap();
    let text = format!(
        "[registry.main]\nurl = 'etcd://a'\nusername = 'u'\npassword-file = '{}'\n",
        file.display()
    );
    let config = read(&text, &[]);
    let digests = SecretDigests::default().of(&config);
    assert_eq!(digests.changes_to(&digests.of(&config)), []);
    std::fs::write(&file, "hunter3").unwrap();
    let changed = digests.changes_to(&digests.of(&config));
    let [change] = &*changed else { panic!("{changed:?}") };
    assert_eq!(change.path, "registry.main.password-file");
    assert_eq!(change.source, file.display().to_string());
    assert!(!format!("{change:?}").contains("hunter"), "{change:?}");
    // A new file is a change of its key.
    let other = folder.path().join("other");
    std::fs::write(&other, "hunter4").unwrap();
    let moved = read(&text.replace(file.to_str().unwrap(), other.to_str().unwrap()), &[]);
    assert_eq!(digests.changes_to(&digests.of(&moved)), []);
    assert_eq!(config.changes_to(&moved).len(), 1);
    // Passwords in variables are not part of the values.
    let secret =
        read("registry = 'etcd://a'\n[etcd]\nusername = 'u'\n", &[(PASSWORD_VARIABLE, "x1")]);
    assert!(!format!("{:?}", config.changes_to(&secret)).contains("x1"));
}
