//! Registries with names: their sections, secrets and warnings.

use std::os::unix::fs::PermissionsExt;

use insta::assert_snapshot;

use super::*;
use crate::registry::etcd;

const MAIN: &str = "[registry.main]\nurl = 'etcd://a'\n";

fn read(text: &str, environment: &[(&str, &str)]) -> Config {
    load(text, environment, &Flags::default()).unwrap()
}

fn mistake_with(text: &str, environment: &[(&str, &str)]) -> String {
    load(text, environment, &Flags::default()).unwrap_err()
}

/// Names and URLs of the registries, in order.
fn named(config: &Config) -> Vec<String> {
    config.registries.iter().map(|registry| format!("{} {}", registry.name, registry.source)).collect()
}

/// The settings of the etcd of this name.
fn settings<'a>(config: &'a Config, name: &str) -> &'a etcd::Settings {
    match config.registries.iter().find(|registry| registry.name.as_str() == name).map(|registry| &registry.source) {
        Some(Source::Etcd(settings)) => settings,
        other => panic!("{name}: {other:?}"),
    }
}

fn password(config: &Config, name: &str) -> Option<String> {
    settings(config, name).password.as_ref().map(|password| match password {
        Credential::Given(secret) => secret.expose().to_owned(),
        Credential::File(path) => path.display().to_string(),
    })
}

#[test]
fn each_section_has_its_own_settings_and_the_rest_from_its_kind() {
    let text = "removal-grace = '20s'\n[etcd]\nusername = 'shared'\nca-file = '/ca'\n\
        [registry.main]\nurl = 'etcd://a,b'\npassword-file = '/main'\nheads = ['x']\n\
        [registry.second]\nurl = 'etcd://c:1'\nusername = 'second'\npassword-file = '/second'\nremoval-grace = '0s'\nserver-name = 'c.example'\n\
        [registry.dev]\nurl = 'file:///srv/dev'\n";
    let config = read(text, &[]);
    assert_eq!(named(&config), ["main etcd://a:2379,b:2379", "second etcd://c:1", "dev file:///srv/dev"]);
    let (main, second) = (settings(&config, "main"), settings(&config, "second"));
    assert_eq!((main.username.as_deref(), password(&config, "main").as_deref()), (Some("shared"), Some("/main")));
    assert_eq!((second.username.as_deref(), password(&config, "second").as_deref()), (Some("second"), Some("/second")));
    assert_eq!((&main.heads, second.heads.len()), (&vec!["x".to_owned()], 2));
    let tls = |settings: &etcd::Settings| settings.tls.clone().map(|tls| (tls.ca_file, tls.server_name));
    assert_eq!(tls(main), Some((Some("/ca".into()), None)), "nothing of one section gets into another");
    assert_eq!(tls(second), Some((Some("/ca".into()), Some("c.example".to_owned()))));
    let graces: Vec<_> = config.registries.iter().map(|registry| registry.removal_grace.as_secs()).collect();
    assert_eq!((graces, config.removal_grace.as_secs()), (vec![20, 0, 20], 20));
}

#[test]
fn a_section_turns_off_what_others_share() {
    let shared = "[etcd]\nusername = 'u'\npassword-file = '/p'\nca-file = '/ca'\n";
    let open = read(&format!("{shared}{MAIN}username = ''\npassword-file = ''\ntls = false\n"), &[(PASSWORD_VARIABLE, "hunter2")]);
    let main = settings(&open, "main");
    assert_eq!((&main.username, &main.password, &main.tls), (&None, &None, &None));
    assert!(open.secrets.is_empty());
    // Its own keys turn it on as they do in [etcd], and so do shared ones where it says nothing.
    let own = read(&format!("{shared}{MAIN}tls = false\nca-file = '/own'\n"), &[]);
    assert_eq!(settings(&own, "main").tls.as_ref().and_then(|tls| tls.ca_file.clone()), Some("/own".into()));
    assert!(settings(&read(&format!("{shared}{MAIN}"), &[]), "main").tls.is_some());
}

#[test]
fn sections_can_be_written_in_any_way_of_toml() {
    for text in [
        "registry.main.url = 'etcd://a'\nregistry.b.url = 'file:///b'\n",
        "registry = { main = { url = 'etcd://a' }, b = { url = 'file:///b' } }\n",
        "[registry]\nmain.url = 'etcd://a'\n[registry.b]\nurl = 'file:///b'\n",
        "[registry.main]\nurl = 'etcd://a'\n[etcd]\ntls = false\n[ registry . 'b' ]\nurl = ' FILE:///b'\n",
    ] {
        assert_eq!(named(&read(text, &[])), ["main etcd://a:2379", "b file:///b"], "{text}");
    }
    assert_eq!(named(&read("[registry.0]\nurl = 'etcd://a'", &[])), ["0 etcd://a:2379"]);
}

#[test]
fn a_list_replaces_the_sections() {
    let text = format!("[etcd]\nusername = 'u'\n{MAIN}password-file = '/p'\n");
    let file = [("SVCDNS_REGISTRY", "file:///x")];
    assert_eq!(named(&read(&text, &file)), ["file file:///x"]);
    assert_eq!(named(&load(&text, &file, &Flags::default().with("registry", "file:///y")).unwrap()), ["file file:///y"]);
    // Its members log in as their kind does: the section is not theirs.
    assert_snapshot!(mistake_with(&text, &[("SVCDNS_REGISTRY", "etcd://b")]), @"svcdns.toml:2:12: etcd.username: a user and a password go together: set etcd.username, and etcd.password-file or the variable SVCDNS_ETCD_PASSWORD");
    // What is replaced is still checked.
    let unknown = format!("{MAIN}pasword-file = '/p'\n");
    assert_snapshot!(mistake_with(&unknown, &file), @"svcdns.toml:3:1: there is no key `registry.main.pasword-file`: did you mean `registry.main.password-file`?");
    let names = read("", &[("SVCDNS_REGISTRY", "etcd://a,file:///x,etcd://b")]);
    assert_eq!(named(&names), ["etcd etcd://a:2379", "file file:///x", "etcd2 etcd://b:2379"]);
    assert_eq!(named(&read("", &[])), [format!("file file://{}", std::env::temp_dir().join("gsvc").display())]);
}

#[test]
fn the_more_specific_password_counts() {
    let text = "[etcd]\nusername = 'u'\npassword-file = '/shared'\n\
        [registry.a]\nurl = 'etcd://a'\npassword-file = '/a'\n[registry.b]\nurl = 'etcd://b'\n[registry.c]\nurl = 'etcd://c'\n";
    let passwords = |environment: &[(&str, &str)]| {
        let config = read(text, environment);
        ["a", "b", "c"].map(|name| password(&config, name).unwrap()).join(" ")
    };
    assert_eq!(passwords(&[]), "/a /shared /shared");
    assert_eq!(passwords(&[(PASSWORD_VARIABLE, "all")]), "/a all all");
    let own = [("SVCDNS_REGISTRY_A_PASSWORD", "own-a"), ("SVCDNS_REGISTRY_C_PASSWORD", "own-c")];
    assert_eq!(passwords(&own), "own-a /shared own-c");
    assert_eq!(passwords(&[own[0], (PASSWORD_VARIABLE, "all"), own[1]]), "own-a all own-c");
    assert_eq!(passwords(&[("SVCDNS_REGISTRY_A_PASSWORD", "")]), "/a /shared /shared", "an empty one is not set");

    // Members of a list have variables, too.
    let listed = read(
        "registry = ['etcd://a', 'etcd://b']\n[etcd]\nusername = 'u'",
        &[(PASSWORD_VARIABLE, "all"), ("SVCDNS_REGISTRY_ETCD2_PASSWORD", "second")],
    );
    assert_eq!((password(&listed, "etcd").as_deref(), password(&listed, "etcd2").as_deref()), (Some("all"), Some("second")));
    assert!(!format!("{listed:?}").contains("second\""), "{listed:?}");
    let places: Vec<_> = listed.secrets.iter().map(|secret| format!("{} {}", secret.registry, secret.place)).collect();
    assert_eq!(places, ["etcd the variable SVCDNS_ETCD_PASSWORD", "etcd2 the variable SVCDNS_REGISTRY_ETCD2_PASSWORD"]);
}

#[test]
fn mistaken_variables_of_registries() {
    let text = format!("{MAIN}username = 'u'\npassword-file = '/p'\n[registry.dev]\nurl = 'file:///x'\n");
    let said = |name: &str| mistake_with(&text, &[(name, "hunter2")]);
    assert_snapshot!(said("SVCDNS_REGISTRY_MIAN_PASSWORD"), @r#"the environment has SVCDNS_REGISTRY_MIAN_PASSWORD, but there is no registry "mian": did you mean SVCDNS_REGISTRY_MAIN_PASSWORD?"#);
    assert_snapshot!(said("SVCDNS_REGISTRY_MAIN_TOKEN"), @"the environment has SVCDNS_REGISTRY_MAIN_TOKEN, but there is no token of the registry main, which is of kind etcd: did you mean SVCDNS_REGISTRY_MAIN_PASSWORD?");
    assert_snapshot!(said("SVCDNS_REGISTRY_MAIN_PASSWRD"), @"the environment has SVCDNS_REGISTRY_MAIN_PASSWRD, but there is no passwrd of the registry main, which is of kind etcd: did you mean SVCDNS_REGISTRY_MAIN_PASSWORD?");
    assert_snapshot!(said("SVCDNS_REGISTRY_main_PASSWORD"), @"the environment has SVCDNS_REGISTRY_main_PASSWORD, but there is no such setting: did you mean SVCDNS_REGISTRY_MAIN_PASSWORD?");
    assert_snapshot!(said("SVCDNS_REGISTRY_MAIN_USERNAME"), @"the environment has SVCDNS_REGISTRY_MAIN_USERNAME, but there is no variable for registry.main.username, which can only be set in the configuration file");
    assert_snapshot!(said("SVCDNS_REGISTRY_MAIN_PASSWORD_FILE"), @"the environment has SVCDNS_REGISTRY_MAIN_PASSWORD_FILE, but there is no variable for registry.main.password-file, which can only be set in the configuration file");
    assert_snapshot!(said("SVCDNS_REGISTRY_MAIN"), @"the environment has SVCDNS_REGISTRY_MAIN, but there is no such setting");
    assert_snapshot!(said("SVCDNS_REGISTRY_DEV_PASSWORD"), @"the environment has SVCDNS_REGISTRY_DEV_PASSWORD, but there is no password of the registry dev, which is of kind file");
    assert_snapshot!(said("SVCDNS_REGISTRY_ETCD_PASSWORD"), @r#"the environment has SVCDNS_REGISTRY_ETCD_PASSWORD, but there is no registry "etcd": did you mean SVCDNS_REGISTRY_MAIN_PASSWORD?"#);
    assert_snapshot!(said("SVCDNS_REGISTRIES"), @"the environment has SVCDNS_REGISTRIES, but there is no such setting: did you mean SVCDNS_REGISTRY?");
    // Those of registries that a list replaces are no mistake, whatever the list came from.
    let replaced = [("SVCDNS_REGISTRY", "file:///y"), ("SVCDNS_REGISTRY_MAIN_PASSWORD", "p")];
    assert_eq!(named(&read(&text, &replaced)), ["file file:///y"]);
    let replaced = [("SVCDNS_REGISTRY", "etcd://a"), ("SVCDNS_REGISTRY_ETCD_PASSWORD", "p")];
    load("", &replaced, &Flags::default().with("registry", "file:///z")).unwrap();
}

#[test]
fn mistakes_in_sections() {
    assert_snapshot!(mistake("registry = ['etcd://a']\n[registry.main]\nurl = 'etcd://b'"), @"svcdns.toml:2:2: registry: a section cannot stand beside the list in line 1: name the registries in the list, or each in a section [registry.NAME]");
    assert_snapshot!(mistake("registry = 'etcd://a'\n[registry]\nmain.url = 'etcd://b'"), @"svcdns.toml:2:2: registry: a section cannot stand beside the list in line 1: name the registries in the list, or each in a section [registry.NAME]");
    assert_snapshot!(mistake("registry = []\nregistry.main.url = 'etcd://b'"), @"svcdns.toml:2:1: registry: a section cannot stand beside the list in line 1: name the registries in the list, or each in a section [registry.NAME]");
    assert_snapshot!(mistake("registry.main.url = 'etcd://b'\nregistry = []"), @"svcdns.toml:2:1: registry: the list cannot stand beside a section in line 1: name the registries in the list, or each in a section [registry.NAME]");
    assert_snapshot!(mistake("registry = ['etcd://a']\nregistry = ['etcd://b']"), @"svcdns.toml:2:1: duplicate key");
    assert_snapshot!(mistake(&format!("{MAIN}[etcd]\n[registry.main]\nurl = 'etcd://b'")), @"svcdns.toml:4:11: registry.main: there is another section [registry.main] above: each registry has one, with a name of its own");
    assert_snapshot!(mistake(&format!("{MAIN}url = 'etcd://b'")), @"svcdns.toml:3:1: duplicate key");
    assert_snapshot!(mistake(&format!("{MAIN}[registry.second]\nurl = 'etcd://A:2379/'")), @"svcdns.toml:4:7: registry.second.url: registry.main.url is the same: remove one of the two sections");
    assert_snapshot!(mistake("[registry.one]\nurl = 'etcd://a,b:1,a'\n[registry.two]\nurl = 'etcd://b:1,a:2379'"), @"svcdns.toml:4:7: registry.two.url: registry.one.url is the same: remove one of the two sections");
    assert_snapshot!(mistake("[registry.one]\nurl = 'file:///srv/x'\n[registry.two]\nurl = 'file:///srv//x/'"), @"svcdns.toml:4:7: registry.two.url: registry.one.url is the same: remove one of the two sections");
    assert_snapshot!(mistake("registry = ['etcd://a,b', 'etcd://b,a']"), @"svcdns.toml:1:27: registry: etcd://b:2379,a:2379 is named twice");
    assert_snapshot!(mistake("[registry.main]\nusername = 'u'"), @r#"svcdns.toml:1:11: registry.main.url: a registry needs a URL: add url = "etcd://10.0.0.1:2379,10.0.0.2:2379", for example"#);
    assert_snapshot!(mistake("[registry.main]"), @r#"svcdns.toml:1:11: registry.main.url: a registry needs a URL: add url = "etcd://10.0.0.1:2379,10.0.0.2:2379", for example"#);
    assert_snapshot!(mistake("[registry.main]\nurll = 'etcd://a'"), @"svcdns.toml:2:1: there is no key `registry.main.urll`: did you mean `registry.main.url`?");
    assert_snapshot!(mistake("[registry.main]\nurl = ''"), @"svcdns.toml:2:7: registry.main.url: a registry is written as etcd://host:port[,host:port] or file:///directory");
    assert_snapshot!(mistake("[registry]\nmain.url = 'etcd://b'\n[registry]"), @"svcdns.toml:3:2: duplicate key");
    assert_snapshot!(mistake("[registry.main]\nurl = ['etcd://a']"), @"svcdns.toml:2:7: registry.main.url: a text must stand here, not a value of type array");
    assert_snapshot!(mistake("[registry.main]\nurl = 'redis://a'"), @r#"svcdns.toml:2:7: registry.main.url: there is no kind of registry "redis": a registry is written as etcd://host:port[,host:port] or file:///directory"#);
    assert_snapshot!(mistake("[registry.main]\nurl = 'consul://a'"), @"svcdns.toml:2:7: registry.main.url: registries of kind consul are not supported yet: there are etcd:// and file://");
    assert_snapshot!(mistake("[registry.main]\nurl = 'etcd://a,file:///x'"), @r#"svcdns.toml:2:7: registry.main.url: nothing may follow the endpoints of an etcd URL, but there is "///x" (heads, deployment and namespace have settings of their own)"#);
    assert_snapshot!(mistake("[registry.main]\nurl = 'etcd://root:hunter2@a'"), @"svcdns.toml:2:7: registry.main.url: a URL shows in lists of processes and in logs: put the user in registry.main.username and the password in a file named by registry.main.password-file or in the variable SVCDNS_REGISTRY_MAIN_PASSWORD");
    assert_snapshot!(mistake("[registry.dev]\nurl = 'file:///x'\nusername = 'u'"), @"svcdns.toml:3:1: registry.dev.username: this is for etcd registries, and the URL of this one is of kind file");
    assert_snapshot!(mistake("[registry.dev]\nurl = 'file:///x'\npassword = 'hunter2'"), @"svcdns.toml:3:1: registry.dev.password: this is for etcd registries, and the URL of this one is of kind file");
    assert_snapshot!(mistake(&format!("{MAIN}password = 'hunter2'")), @"svcdns.toml:3:1: registry.main.password: a password does not stand here, where many can read it: put it in a file of its own and name that with registry.main.password-file, or in the variable SVCDNS_REGISTRY_MAIN_PASSWORD");
    assert_snapshot!(mistake(&format!("{MAIN}pasword-file = '/p'")), @"svcdns.toml:3:1: there is no key `registry.main.pasword-file`: did you mean `registry.main.password-file`?");
    assert_snapshot!(mistake(&format!("{MAIN}ttl = '1s'")), @"svcdns.toml:3:1: there is no key `registry.main.ttl`: did you mean `ttl`?");
    assert_snapshot!(mistake(&format!("{MAIN}registry = ['etcd://b']")), @"svcdns.toml:3:1: there is no key `registry.main.registry`: did you mean `registry`?");
    assert_snapshot!(mistake(&format!("{MAIN}username = 'u'")), @"svcdns.toml:3:12: registry.main.username: a user and a password go together: set registry.main.username, and registry.main.password-file or the variable SVCDNS_REGISTRY_MAIN_PASSWORD");
    assert_snapshot!(mistake_with(MAIN, &[("SVCDNS_REGISTRY_MAIN_PASSWORD", "hunter2")]), @"SVCDNS_REGISTRY_MAIN_PASSWORD: registry.main.username: a user and a password go together: set registry.main.username, and registry.main.password-file or the variable SVCDNS_REGISTRY_MAIN_PASSWORD");
    assert_snapshot!(mistake(&format!("{MAIN}password-file = '/p'")), @"svcdns.toml:3:17: registry.main.password-file: a user and a password go together: set registry.main.username, and registry.main.password-file or the variable SVCDNS_REGISTRY_MAIN_PASSWORD");
    assert_snapshot!(mistake(&format!("{MAIN}key-file = '/k'")), @"svcdns.toml:3:12: registry.main.key-file: a certificate and its key go together: set both registry.main.cert-file and registry.main.key-file");
    assert_snapshot!(mistake(&format!("{MAIN}heads = []")), @"svcdns.toml:3:1: registry.main.heads: at least one must be named");
    assert_snapshot!(mistake(&format!("{MAIN}removal-grace = '2h'")), @"svcdns.toml:3:17: registry.main.removal-grace: 2h is not from 0s to 1h");
    assert_snapshot!(mistake(&format!("{MAIN}tls = 'yes'")), @"svcdns.toml:3:7: registry.main.tls: true or false must stand here, not a value of type string");
    assert_snapshot!(mistake(&format!("{MAIN}[registry.main.login]\nusername = 'u'")), @"svcdns.toml:3:16: there is no section [registry.main.login]");
}

#[test]
fn mistakes_in_the_headers_of_sections() {
    assert_snapshot!(mistake("[registy.main]\nurl = 'etcd://a'"), @"svcdns.toml:1:2: there is no section [registy.main]: did you mean [registry.main]?");
    assert_snapshot!(mistake("[registries.main]\nurl = 'etcd://a'"), @"svcdns.toml:1:2: there is no section [registries.main]: did you mean [registry.main]?");
    assert_snapshot!(mistake("[main]\nurl = 'etcd://a'"), @"svcdns.toml:1:2: there is no section [main]: did you mean [registry.main]?");
    assert_snapshot!(mistake("[etcd.main]\nurl = 'etcd://a'"), @"svcdns.toml:1:7: there is no section [etcd.main]: did you mean [registry.main]?");
    assert_snapshot!(mistake("[registry]\nurl = 'etcd://a'"), @"svcdns.toml:2:1: registry.url: each registry has a section with a name of its own, such as [registry.main]");
    assert_snapshot!(mistake("[registry]"), @"svcdns.toml:1:2: registry: each registry has a section with a name of its own, such as [registry.main]");
    assert_snapshot!(mistake("[[registry]]\nurl = 'etcd://a'"), @"svcdns.toml:1:1: registry: a registry with keys of its own is a section with a name, such as [registry.main]");
    assert_snapshot!(mistake("[[registry.main]]\nurl = 'etcd://a'"), @"svcdns.toml:1:12: registry.main: a name stands for one registry: write [registry.main], and other names for others");
    assert_snapshot!(mistake("[registry.Main]\nurl = 'etcd://a'"), @r#"svcdns.toml:1:11: registry.Main: "Main" cannot name a registry: use 1 to 16 characters of a-z and 0-9"#);
    assert_snapshot!(mistake("[registry.a-b]\nurl = 'etcd://a'"), @r#"svcdns.toml:1:11: registry.a-b: "a-b" cannot name a registry: use 1 to 16 characters of a-z and 0-9"#);
    assert_snapshot!(mistake("[registry.'é']\nurl = 'etcd://a'"), @r#"svcdns.toml:1:11: registry.é: "é" cannot name a registry: use 1 to 16 characters of a-z and 0-9"#);
    assert_snapshot!(mistake("[registry.'']\nurl = 'etcd://a'"), @r#"svcdns.toml:1:11: registry.: "" cannot name a registry: use 1 to 16 characters of a-z and 0-9"#);
    assert_snapshot!(mistake("[registry.a0123456789abcdef]\nurl = 'etcd://a'"), @r#"svcdns.toml:1:11: registry.a0123456789abcdef: "a0123456789abcdef" cannot name a registry: use 1 to 16 characters of a-z and 0-9"#);
}

#[test]
fn as_many_sections_are_followed_as_have_a_number() {
    let section = |n: usize| format!("[registry.r{n}]\nurl = 'file:///{n}'\n");
    let sections = |count: usize| (0..count).map(section).collect::<Vec<_>>().concat();
    assert_eq!(read(&sections(MAX_REGISTRIES), &[]).registries.len(), MAX_REGISTRIES);
    assert_snapshot!(mistake(&sections(MAX_REGISTRIES + 1)), @"svcdns.toml:34:7: registry.r16.url: at most 16 registries can be followed (a fixed limit)");
}

#[test]
fn what_a_registry_uses_shows_with_its_place() {
    let text = format!("removal-grace = '9s'\n[etcd]\nusername = 'shared'\n{MAIN}password-file = '/p'\nheads = ['x', 'y']\n");
    let shown = |config: &Config| {
        let rows = config.effective().iter().filter(|effective| effective.path.starts_with("registry."));
        let place = |origin: &Origin| origin.to_string().rsplit('/').next().unwrap().to_owned();
        rows.map(|row| format!("{} = {} ({}{})", row.path, row.value, place(&row.origin), if row.written { ", here" } else { "" }))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_snapshot!(shown(&read(&text, &[("SVCDNS_ETCD_TLS", "true")])), @r#"
    registry.main.url = "etcd://a" (svcdns.toml:5:1, here)
    registry.main.username = "shared" (svcdns.toml:3:1)
    registry.main.password-file = "/p" (svcdns.toml:6:1, here)
    registry.main.tls = true (SVCDNS_ETCD_TLS)
    registry.main.ca-file = "" (default)
    registry.main.cert-file = "" (default)
    registry.main.key-file = "" (default)
    registry.main.server-name = "" (default)
    registry.main.heads = ["x", "y"] (svcdns.toml:7:1, here)
    registry.main.removal-grace = "9s" (svcdns.toml:1:1)
    "#);
    assert_snapshot!(shown(&read("registry = ['etcd://a', 'file:///x']", &[])), @r#"
    registry.etcd.url = "etcd://a" (svcdns.toml:1:13)
    registry.etcd.username = "" (default)
    registry.etcd.password-file = "" (default)
    registry.etcd.tls = false (default)
    registry.etcd.ca-file = "" (default)
    registry.etcd.cert-file = "" (default)
    registry.etcd.key-file = "" (default)
    registry.etcd.server-name = "" (default)
    registry.etcd.heads = ["service", "services"] (default)
    registry.etcd.removal-grace = "12s" (default)
    registry.file.url = "file:///x" (svcdns.toml:1:25)
    registry.file.heads = ["service", "services"] (default)
    registry.file.removal-grace = "12s" (default)
    "#);
    let implicit = read("", &[]);
    let row = implicit.effective().iter().find(|row| row.path == "registry.file.url").unwrap();
    assert_eq!((&row.origin, row.written, implicit.names_registries()), (&Origin::Default, false, false));
    assert!(read(MAIN, &[]).names_registries() && read("registry = 'etcd://a'", &[]).names_registries());
}

#[test]
fn files_of_secrets_that_cannot_be_read_or_that_anybody_can_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, mode: u32| {
        let path = folder.path().join(name);
        std::fs::write(&path, "secret").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let (private, group, open) = (file("private", 0o600), file("group", 0o640), file("open", 0o644));
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    let (pipe, missing, directory) = (pipe.display(), folder.path().join("missing"), folder.path().display());
    let missing = missing.display();
    let warnings = |text: &str, environment: &[(&str, &str)]| {
        let warnings = read(text, environment).warnings;
        warnings.iter().map(|warning| warning.to_string().replace(&format!("{directory}"), "DIR")).collect::<Vec<_>>()
    };
    let main = |file: &dyn std::fmt::Display| format!("{MAIN}username = 'u'\npassword-file = '{file}'\n");
    for good in [&private as &dyn std::fmt::Display, &group, &pipe] {
        assert_eq!(warnings(&main(good), &[]), [""; 0], "{good}");
    }
    let said = |text: &str| warnings(text, &[]).iter().map(|line| line.split_once("svcdns.toml").unwrap().1.to_owned()).collect::<Vec<_>>();
    assert_eq!(
        said(&main(&open)),
        [":4:17: registry.main.password-file: anyone on this machine can read DIR/open (mode 0644): run `chmod o-r DIR/open`"]
    );
    assert_eq!(
        said(&main(&missing)),
        [":4:17: registry.main.password-file: cannot read DIR/missing: No such file or directory (os error 2)"]
    );
    assert_eq!(said(&main(&directory)), [":4:17: registry.main.password-file: cannot read DIR: it is a directory"]);
    // Private keys; one that two registries share is told of once. Certificates are public, and what is not used does not count.
    let keys = format!(
        "[tls]\ncert-file = '{open}'\nkey-file = '{open}'\n[etcd]\ncert-file = '{open}'\nkey-file = '{open}'\n\
        [registry.a]\nurl = 'etcd://a'\n[registry.b]\nurl = 'etcd://b'\n[registry.c]\nurl = 'etcd://c'\nkey-file = '{private}'\n"
    );
    let places: Vec<_> = said(&keys).iter().map(|line| line.split(": ").nth(1).unwrap().to_owned()).collect();
    assert_eq!(places, ["tls.key-file", "etcd.key-file"]);
    assert_eq!(warnings(&main(&open), &[("SVCDNS_REGISTRY_MAIN_PASSWORD", "p")]), [""; 0]);
    assert_eq!(warnings(&main(&open), &[("SVCDNS_REGISTRY", "file:///x")]), [""; 0]);
    if !nix::unistd::Uid::effective().is_root() {
        let closed = file("closed", 0o000);
        assert!(said(&main(&closed))[0].contains("Permission denied"));
    }
}

#[test]
fn the_example_of_the_documentation_can_be_used() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
    let (_, example) = text.split_once("<!-- example: registries -->\n```toml\n").expect("an example of sections");
    let config = read(example.split("```").next().unwrap(), &[]);
    assert_eq!(named(&config), ["main etcd://10.0.0.1:2379,10.0.0.2:2379", "office etcd://192.168.7.10:2379", "local file:///srv/gsvc"]);
    for (name, user, file) in [("main", "svcdns", "/etc/svcdns/main.password"), ("office", "reader", "/etc/svcdns/office.password")] {
        let settings = settings(&config, name);
        assert_eq!((settings.username.as_deref(), password(&config, name).as_deref()), (Some(user), Some(file)));
        assert_eq!(settings.tls.as_ref().and_then(|tls| tls.ca_file.clone()), Some("/etc/svcdns/ca.pem".into()));
    }
}
