//! Registries in lists and sections, and their secrets.

use std::os::unix::fs::PermissionsExt;

use insta::assert_snapshot;

use super::*;
use crate::registry::{etcd, nacos, polaris};

/// Section of a registry `main`; further keys of the section may follow.
pub(super) const MAIN: &str = "[registry.main]\nurl = 'etcd://a'\n";

/// Returns the names and URLs of the registries, in order.
pub(super) fn urls(config: &Config) -> Vec<String> {
    config
        .registries
        .iter()
        .map(|registry| format!("{} {}", registry.name, registry.source))
        .collect()
}

/// Returns the settings of the etcd registry with this name.
fn settings<'a>(config: &'a Config, name: &str) -> &'a etcd::Settings {
    match config.registries.iter().find(|registry| registry.name.as_str() == name) {
        Some(NamedSource { source: Source::Etcd(settings), .. }) => settings,
        other => panic!("{name}: {other:?}"),
    }
}

/// Returns the password of an etcd registry, or the path of its file.
fn password(config: &Config, name: &str) -> Option<String> {
    settings(config, name).password.as_ref().map(|password| match password {
        Credential::Given(secret) => secret.expose().to_owned(),
        Credential::File(path) => path.display().to_string(),
    })
}

#[test]
fn a_section_overrides_the_settings_of_its_kind() {
    let text = "removal-grace = '20s'\n[etcd]\nusername = 'shared'\nca-file = '/ca'\n\
        [registry.main]\nurl = 'etcd://a,b'\npassword-file = '/main'\nheads = ['x']\n\
        [registry.second]\nurl = 'etcd://c:1'\nusername = 'second'\npassword-file = '/second'\n\
        removal-grace = '0s'\nserver-name = 'c.example'\n\
        [registry.dev]\nurl = 'file:///srv/dev'\n";
    let config = read(text, &[]);
    assert_eq!(
        urls(&config),
        ["main etcd://a:2379,b:2379", "second etcd://c:1", "dev file:///srv/dev"]
    );
    let (main, second) = (settings(&config, "main"), settings(&config, "second"));
    assert_eq!(main.username.as_deref(), Some("shared"));
    assert_eq!(password(&config, "main").as_deref(), Some("/main"));
    assert_eq!(second.username.as_deref(), Some("second"));
    assert_eq!(password(&config, "second").as_deref(), Some("/second"));
    assert_eq!((&*main.heads, second.heads.len()), (&["x".to_owned()][..], 2));
    let tls =
        |settings: &etcd::Settings| settings.tls.clone().map(|tls| (tls.ca_file, tls.server_name));
    assert_eq!(tls(main), Some((Some("/ca".into()), None)), "sections do not affect each other");
    assert_eq!(tls(second), Some((Some("/ca".into()), Some("c.example".to_owned()))));
    let graces = config.registries.iter().map(|registry| registry.removal_grace.as_secs());
    assert_eq!(graces.collect::<Vec<_>>(), [20, 0, 20]);
    assert_eq!(config.registries[0].removal_grace.as_secs(), 20);
}

#[test]
fn a_section_can_turn_off_shared_settings() {
    let shared = "[etcd]\nusername = 'u'\npassword-file = '/p'\nca-file = '/ca'\n";
    let open = format!("{shared}{MAIN}username = ''\npassword-file = ''\ntls = false\n");
    let open = read(&open, &[(PASSWORD_VARIABLE, "hunter2")]);
    let main = settings(&open, "main");
    assert_eq!((&main.username, &main.password, &main.tls), (&None, &None, &None));
    assert!(open.secrets.is_empty());
    // The section's own TLS keys turn TLS on; shared ones do unless the section has `tls`.
    let own = read(&format!("{shared}{MAIN}tls = false\nca-file = '/own'\n"), &[]);
    let tls = settings(&own, "main").tls.as_ref();
    assert_eq!(tls.and_then(|tls| tls.ca_file.clone()), Some("/own".into()));
    assert!(settings(&read(&format!("{shared}{MAIN}"), &[]), "main").tls.is_some());
}

#[test]
fn registry_sections_may_use_any_toml_syntax() {
    for text in [
        "registry.main.url = 'etcd://a'\nregistry.b.url = 'file:///b'\n",
        "registry = { main = { url = 'etcd://a' }, b = { url = 'file:///b' } }\n",
        "[registry]\nmain.url = 'etcd://a'\n[registry.b]\nurl = 'file:///b'\n",
        "[registry.main]\nurl = 'etcd://a'\n[etcd]\ntls = false\n\
         [ registry . 'b' ]\nurl = ' FILE:///b'\n",
    ] {
        assert_eq!(urls(&read(text, &[])), ["main etcd://a:2379", "b file:///b"], "{text}");
    }
    assert_eq!(urls(&read("[registry.0]\nurl = 'etcd://a'", &[])), ["0 etcd://a:2379"]);
}

#[test]
fn a_list_of_registries_replaces_the_sections() {
    let text = format!("[etcd]\nusername = 'u'\n{MAIN}password-file = '/p'\n");
    let file = [("SVCDNS_REGISTRY", "file:///x")];
    assert_eq!(urls(&read(&text, &file)), ["file file:///x"]);
    let flags = Flags::default().with("registry", "file:///y");
    assert_eq!(urls(&load(&text, &file, &flags).unwrap()), ["file file:///y"]);
    // Items of the list use the login of their kind, not that of the section.
    assert_eq!(
        error_with(&text, &[("SVCDNS_REGISTRY", "etcd://b")]),
        "svcdns.toml:2:12: etcd.username: a user needs a password and vice versa: set \
         etcd.username, and etcd.password-file or the environment variable SVCDNS_ETCD_PASSWORD"
    );
    // Replaced sections are still checked.
    assert_eq!(
        error_with(&format!("{MAIN}pasword-file = '/p'\n"), &file),
        "svcdns.toml:3:1: unknown key `registry.main.pasword-file`: did you mean \
         `registry.main.password-file`?"
    );
}

#[test]
fn registries_in_a_list_are_named_after_their_kind() {
    let config = read("", &[("SVCDNS_REGISTRY", "etcd://a,file:///x,etcd://b")]);
    assert_eq!(urls(&config), ["etcd etcd://a:2379", "file file:///x", "etcd2 etcd://b:2379"]);
    let default = std::env::temp_dir().join("gsvc");
    assert_eq!(urls(&read("", &[])), [format!("file file://{}", default.display())]);
}

#[test]
fn the_most_specific_password_is_used() {
    let text = "[etcd]\nusername = 'u'\npassword-file = '/shared'\n\
        [registry.a]\nurl = 'etcd://a'\npassword-file = '/a'\n[registry.b]\nurl = 'etcd://b'\n\
        [registry.c]\nurl = 'etcd://c'\n";
    let passwords = |environment: &[(&str, &str)]| {
        let config = read(text, environment);
        ["a", "b", "c"].map(|name| password(&config, name).unwrap()).join(" ")
    };
    assert_eq!(passwords(&[]), "/a /shared /shared");
    assert_eq!(passwords(&[(PASSWORD_VARIABLE, "all")]), "/a all all");
    let own = [("SVCDNS_REGISTRY_A_PASSWORD", "own-a"), ("SVCDNS_REGISTRY_C_PASSWORD", "own-c")];
    assert_eq!(passwords(&own), "own-a /shared own-c");
    assert_eq!(passwords(&[own[0], (PASSWORD_VARIABLE, "all"), own[1]]), "own-a all own-c");
    assert_eq!(passwords(&[("SVCDNS_REGISTRY_A_PASSWORD", "")]), "/a /shared /shared");
}

#[test]
fn registries_in_a_list_have_password_variables() {
    let listed = read(
        "registry = ['etcd://a', 'etcd://b']\n[etcd]\nusername = 'u'",
        &[(PASSWORD_VARIABLE, "all"), ("SVCDNS_REGISTRY_ETCD2_PASSWORD", "hidden")],
    );
    assert_eq!(password(&listed, "etcd").as_deref(), Some("all"));
    assert_eq!(password(&listed, "etcd2").as_deref(), Some("hidden"));
    assert!(!format!("{listed:?}").contains("hidden\""), "{listed:?}");
    let places =
        listed.secrets.iter().map(|secret| format!("{} {}", secret.registry, secret.place));
    assert_eq!(
        places.collect::<Vec<_>>(),
        [
            "etcd the environment variable SVCDNS_ETCD_PASSWORD",
            "etcd2 the environment variable SVCDNS_REGISTRY_ETCD2_PASSWORD"
        ]
    );
}

#[test]
fn the_number_of_sections_is_limited() {
    let section = |n: usize| format!("[registry.r{n}]\nurl = 'file:///{n}'\n");
    let sections = |count: usize| (0..count).map(section).collect::<Vec<_>>().concat();
    assert_eq!(read(&sections(MAX_REGISTRIES), &[]).registries.len(), MAX_REGISTRIES);
    assert_eq!(
        error_of(&sections(MAX_REGISTRIES + 1)),
        "svcdns.toml:34:7: registry.r16.url: at most 16 registries can be followed (a fixed limit)"
    );
}

#[test]
fn effective_registry_settings_have_origins() {
    let general = "removal-grace = '9s'\n[etcd]\nusername = 'shared'\n";
    let text = format!("{general}{MAIN}password-file = '/p'\nheads = ['x', 'y']\n");
    let shown = |config: &Config| {
        let rows = config.effective().iter().filter(|row| row.path.starts_with("registry."));
        let rows = rows.map(|EffectiveValue { path, value, origin, written, .. }| {
            let origin = origin.to_string();
            let origin = origin.rsplit('/').next().unwrap();
            format!("{path} = {value} ({origin}{})", if *written { ", here" } else { "" })
        });
        rows.collect::<Vec<_>>().join("\n")
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
}

#[test]
fn the_default_registry_does_not_count_as_configured() {
    let default = read("", &[]);
    let row = default.effective().iter().find(|row| row.path == "registry.file.url").unwrap();
    assert_eq!((&row.origin, row.written), (&Origin::Default, false));
    assert!(!default.names_registries());
    assert!(read(MAIN, &[]).names_registries());
    assert!(read("registry = 'etcd://a'", &[]).names_registries());
}

#[test]
fn registries_that_share_a_member_cause_a_warning() {
    let warnings = |text: &str| {
        let warnings = read(text, &[]).warnings;
        let lines = warnings.iter().map(ToString::to_string);
        lines.map(|line| line.split_once("svcdns.toml").unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    let sections = |one: &str, two: &str| {
        format!("[registry.one]\nurl = 'etcd://{one}'\n[registry.two]\nurl = 'etcd://{two}'\n")
    };
    assert_eq!(warnings(&sections("a,b,c", "d,e,a:2380")), [""; 0]);
    let why = |member: &str, one: &str, two: &str| {
        format!(
            "{member} is also a member of the registry {one}: every member belongs to one \
             cluster, and a cluster needs to be followed once only; correct the address, or \
             remove one of {one} and {two}"
        )
    };
    let warning = format!(":4:7: registry.two.url: {}", why("a:2379", "one", "two"));
    for (one, two) in [("a,b,c", "d,A:2379"), ("a,b", "a"), ("a", "a,b")] {
        assert_eq!(warnings(&sections(one, two)), [&*warning], "{one} {two}");
    }
    let listed = "registry = ['etcd://a,b', 'file:///a', 'etcd://b']";
    let warning = format!(":1:40: registry: {}", why("b:2379", "etcd", "etcd2"));
    assert_eq!(warnings(listed), [warning]);
}

#[test]
fn unreadable_and_world_readable_secret_files_cause_warnings() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, mode: u32| {
        let path = folder.path().join(name);
        std::fs::write(&path, "secret").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let (private, group, open) =
        (file("private", 0o600), file("group", 0o640), file("open", 0o644));
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    let (pipe, missing, directory) =
        (pipe.display(), folder.path().join("missing"), folder.path().display());
    let missing = missing.display();
    let warnings = |text: &str, environment: &[(&str, &str)]| {
        let warnings = read(text, environment).warnings;
        let texts = warnings.iter().map(ToString::to_string);
        texts.map(|text| text.replace(&format!("{directory}"), "DIR")).collect::<Vec<_>>()
    };
    let main =
        |file: &dyn std::fmt::Display| format!("{MAIN}username = 'u'\npassword-file = '{file}'\n");
    for good in [&private as &dyn std::fmt::Display, &group] {
        assert_eq!(warnings(&main(good), &[]), [""; 0], "{good}");
    }
    let said = |text: &str| {
        let lines = warnings(text, &[]).into_iter();
        lines.map(|line| line.split_once("svcdns.toml").unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        said(&main(&open)),
        [":4:17: registry.main.password-file: every user of this machine can read DIR/open \
          (mode 0644): run `chmod o-r DIR/open`"]
    );
    assert_eq!(
        said(&main(&missing)),
        [":4:17: registry.main.password-file: cannot read DIR/missing: No such file or directory \
          (os error 2)"]
    );
    assert_eq!(
        said(&main(&directory)),
        [":4:17: registry.main.password-file: cannot read DIR: it is a directory"]
    );
    assert_eq!(
        said(&main(&pipe)),
        [":4:17: registry.main.password-file: cannot read DIR/pipe: it is not a regular file"]
    );
    // Certificates are public. A private key that two registries share causes one warning.
    let pair = format!("cert-file = '{open}'\nkey-file = '{open}'\n");
    let keys = format!(
        "[tls]\n{pair}[etcd]\n{pair}[registry.a]\nurl = 'etcd://a'\n\
        [registry.b]\nurl = 'etcd://b'\n[registry.c]\nurl = 'etcd://c'\nkey-file = '{private}'\n"
    );
    let lines = said(&keys);
    let keys = lines.iter().map(|line| line.split(": ").nth(1).unwrap());
    assert_eq!(keys.collect::<Vec<_>>(), ["tls.key-file", "etcd.key-file"]);
    // Unused files are not checked.
    assert_eq!(warnings(&main(&open), &[("SVCDNS_REGISTRY_MAIN_PASSWORD", "p")]), [""; 0]);
    assert_eq!(warnings(&main(&open), &[("SVCDNS_REGISTRY", "file:///x")]), [""; 0]);
    if !nix::unistd::Uid::effective().is_root() {
        let closed = file("closed", 0o000);
        assert!(said(&main(&closed))[0].contains("Permission denied"));
    }
}

#[test]
fn the_example_in_the_documentation_is_valid() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let example = text.split_once("<!-- example: registries -->\n```toml\n");
    let (_, example) = example.expect("an example of sections");
    let config = read(example.split("```").next().unwrap(), &[]);
    assert_eq!(
        urls(&config),
        [
            "main etcd://10.0.0.1:2379,10.0.0.2:2379",
            "office etcd://192.168.7.10:2379",
            "local file:///srv/gsvc"
        ]
    );
    for (name, user, file) in [
        ("main", "svcdns", "/etc/svcdns/main.password"),
        ("office", "reader", "/etc/svcdns/office.password"),
    ] {
        let settings = settings(&config, name);
        assert_eq!(settings.username.as_deref(), Some(user));
        assert_eq!(password(&config, name).as_deref(), Some(file));
        let tls = settings.tls.as_ref();
        assert_eq!(tls.and_then(|tls| tls.ca_file.clone()), Some("/etc/svcdns/ca.pem".into()));
    }
}

#[test]
fn a_nacos_registry_has_its_own_keys() {
    let text = "[nacos]\ngroup = 'shared'\n[registry.main]\nurl = 'nacos+https://a,b:1'\n\
        username = 'reader'\npassword-file = '/password'\nnamespace = 'shop'\nclusters = ['c1']\n\
        poll-interval = '500ms'\nmax-requests = 50\nca-file = '/ca'\n";
    let config = read(text, &[]);
    assert_eq!(urls(&config), ["main nacos+https://a:8848,b:1"]);
    let Source::Nacos(settings) = &config.registries[0].source else { panic!("{config:?}") };
    let mut expected = nacos::Settings {
        username: Some("reader".to_owned()),
        password: Some(Credential::File("/password".into())),
        login_keys: Some("registry.main.username and registry.main.password-file".to_owned()),
        namespace: Some("shop".to_owned()),
        group: "shared".to_owned(),
        clusters: vec!["c1".to_owned()],
        tls: Some(Tls { ca_file: Some("/ca".into()), ..Tls::default() }),
        ..nacos::Settings::new(vec!["a:8848".to_owned(), "b:1".to_owned()])
    };
    expected.tuning.polling.interval = Duration::from_millis(500);
    expected.tuning.polling.max_requests = 50;
    assert_eq!(**settings, expected);

    // Groups and namespaces of one server are registries of their own.
    let text =
        "[registry.one]\nurl = 'nacos://a'\n[registry.two]\nurl = 'nacos://a'\ngroup = 'g'\n";
    assert_eq!(urls(&read(text, &[])), ["one nacos://a:8848", "two nacos://a:8848"]);
}

#[test]
fn a_polaris_registry_has_its_own_keys() {
    let text = "heads = ['app']\n[polaris]\nnamespace = 'shared'\n[registry.main]\n\
        url = 'polaris+https://a,b:1'\ntoken-file = '/token'\nnamespace = 'shop'\n\
        deployments = ['my-dep']\nnamespaces = ['my-ns', 'other-ns']\nmax-requests = 50\n\
        poll-interval = '500ms'\nca-file = '/ca'\n";
    let config = read(text, &[]);
    assert_eq!(urls(&config), ["main polaris+https://a:8090,b:1"]);
    let Source::Polaris(settings) = &config.registries[0].source else { panic!("{config:?}") };
    let mut expected = polaris::Settings {
        token: Some(Credential::File("/token".into())),
        token_keys: Some("registry.main.token-file".to_owned()),
        namespace: "shop".to_owned(),
        naming: polaris::ServiceNaming {
            heads: vec!["app".to_owned()],
            deployments: vec!["my-dep".to_owned()],
            namespaces: vec!["my-ns".to_owned(), "other-ns".to_owned()],
        },
        tls: Some(Tls { ca_file: Some("/ca".into()), ..Tls::default() }),
        ..polaris::Settings::new(vec!["a:8090".to_owned(), "b:1".to_owned()])
    };
    expected.tuning.polling.interval = Duration::from_millis(500);
    expected.tuning.polling.max_requests = 50;
    assert_eq!(**settings, expected);

    // Namespaces of one server are registries of their own.
    let text = "[registry.one]\nurl = 'polaris://a'\n\
        [registry.two]\nurl = 'polaris://a'\nnamespace = 'n'\n";
    assert_eq!(urls(&read(text, &[])), ["one polaris://a:8090", "two polaris://a:8090"]);
}
