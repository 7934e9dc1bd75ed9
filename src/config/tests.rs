mod registries;

use std::collections::BTreeSet;

use insta::assert_snapshot;

use super::*;
use crate::registry::etcd::{self, Tls};
use crate::registry::{Credential, NamedSource, Secret, Source, file};
use crate::service::MAX_REGISTRIES;

/// Where the password of the etcd user may be.
const PASSWORD_VARIABLE: &str = "SVCDNS_ETCD_PASSWORD";

/// Loads with this file's text, these variables and no flags.
fn load(text: &str, environment: &[(&str, &str)], flags: &Flags) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("svcdns.toml");
    std::fs::write(&path, text).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(Some(&path), environment, flags)
        .map_err(|error| error.to_string().replace(&format!("{}/", directory.path().display()), ""))
}

fn zones(config: &Config) -> String {
    config.zones.iter().map(crate::name::Zone::text).collect::<Vec<_>>().join(" ")
}

/// The settings of the only registry, an etcd at `a`, with this section `[etcd]`.
fn etcd(section: &str, environment: &[(&str, &str)]) -> etcd::Settings {
    let config = load(&format!("registry = 'etcd://a'\n[etcd]\n{section}"), environment, &Flags::default()).unwrap();
    match &*config.registries {
        [NamedSource { source: Source::Etcd(settings), .. }] => (**settings).clone(),
        other => panic!("{other:?}"),
    }
}

fn mistake(text: &str) -> String {
    load(text, &[], &Flags::default()).unwrap_err()
}

fn mistaken_variable(name: &str, value: &str) -> String {
    load("", &[(name, value)], &Flags::default()).unwrap_err()
}

#[test]
fn the_defaults() {
    let config = load("", &[("PATH", "/bin")], &Flags::default()).unwrap();
    assert_eq!(config.listen, ["127.0.0.1:5300".parse().unwrap()]);
    let Source::File(registry) = &config.registries[0].source else { panic!("{:?}", config.registries) };
    assert_eq!((config.registries.len(), registry.named), (1, false), "believed only while the folder is ours or root's");
    assert_eq!(registry.directory, std::env::temp_dir().join("gsvc"));
    assert_eq!((&registry.heads, registry.timings), (&vec!["service".to_owned(), "services".to_owned()], file::Timings::default()));
    assert_eq!(zones(&config), "svc.");
    assert_eq!((&*config.deployment, &*config.namespace), ("default", "default"));
    assert_eq!((config.ttl, config.negative_ttl), (5, 1));
    assert_eq!(config.removal_grace, Duration::from_secs(12));
    assert_eq!(config.answers, Answers::All);
    assert_eq!(config.admin_listen, "127.0.0.1:5380".parse().ok());
    assert_eq!(config.state_dir, None);
    assert_eq!((config.log_queries, config.server().log_queries), (0, 0));
    assert!(config.version_fallback && config.allow.is_empty() && config.secrets.is_empty());
    assert!(config.effective().iter().all(|effective| effective.origin == Origin::Default));
}

#[test]
fn flags_beat_the_environment_beats_the_file() {
    let text = "zone = [\"a\", \"b\"]\nnamespace = 'n'\nttl = \"9s\"\n";
    let flags = Flags::default().with("zone", "x");
    let config = load(text, &[("SVCDNS_ZONE", "y"), ("SVCDNS_NAMESPACE", "env")], &flags).unwrap();
    assert_eq!((&*zones(&config), &*config.namespace, config.ttl), ("x.", "env", 9));
    let shown: Vec<String> = config
        .effective
        .iter()
        .filter(|effective| effective.origin != Origin::Default)
        .map(|Effective { path, value, origin, .. }| format!("{path} = {value} ({})", origin.to_string().rsplit('/').next().unwrap()))
        .collect();
    assert_eq!(shown, ["zone = [\"x\"] (--zone)", "namespace = \"env\" (SVCDNS_NAMESPACE)", "ttl = \"9s\" (svcdns.toml:3:1)"]);
}

#[test]
fn lists_in_variables() {
    let environment = [
        ("SVCDNS_LISTEN", "127.0.0.1:1, [::1]:2"),
        ("SVCDNS_REGISTRY", "etcd://a:1,b:2,file:///x"),
        ("SVCDNS_ALLOW", "10.1.2.3/8,fd00::5"),
    ];
    let config = load("", &environment, &Flags::default()).unwrap();
    assert_eq!(config.listen, ["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
    assert_eq!(config.registries.iter().map(|registry| registry.source.to_string()).collect::<Vec<_>>(), ["etcd://a:1,b:2", "file:///x"]);
    assert_eq!(config.allow.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "fd00::5/128"]);
}

#[test]
fn mistyped_keys() {
    assert_snapshot!(mistake("# first\n  lisen = []"), @"svcdns.toml:2:3: there is no key `lisen`: did you mean `listen`?");
    assert_snapshot!(mistake("[etcd]\nuser-name = 'x'"), @"svcdns.toml:2:1: there is no key `etcd.user-name`: did you mean `etcd.username`?");
    assert_snapshot!(mistake("username = 'x'"), @"svcdns.toml:1:1: there is no key `username`: did you mean `etcd.username`?");
    assert_snapshot!(mistake("[etdc]\nusername = 'x'"), @"svcdns.toml:1:2: there is no section [etdc]: did you mean [etcd]?");
    assert_snapshot!(mistake("colour = 'red'"), @"svcdns.toml:1:1: there is no key `colour`");
    assert_snapshot!(mistaken_variable("SVCDNS_LISEN", "x"), @"the environment has SVCDNS_LISEN, but there is no such setting: did you mean SVCDNS_LISTEN?");
    assert_snapshot!(mistaken_variable("SVCDNS_ETCD_PASSWRD", "secret"), @"the environment has SVCDNS_ETCD_PASSWRD, but there is no such setting: did you mean SVCDNS_ETCD_PASSWORD?");
}

#[test]
fn mistakes_in_values() {
    assert_snapshot!(mistake("zone = ['svc'"), @"svcdns.toml:1:14: unclosed array, expected `]`");
    assert_snapshot!(mistake("a = 1\na = 2"), @"svcdns.toml:2:1: duplicate key");
    assert_snapshot!(mistake("ttl = 5"), @r#"svcdns.toml:1:7: ttl: a duration such as "12s" must stand here, not a value of type integer"#);
    assert_snapshot!(mistake("ttl = '1500ms'"), @"svcdns.toml:1:7: ttl: 1500ms is not a whole number of seconds, and DNS counts in those");
    assert_snapshot!(mistake("ttl = 'soon'"), @r#"svcdns.toml:1:7: ttl: "soon" is not a duration such as 12s, 500ms or 1m 30s"#);
    assert_snapshot!(mistake("ttl = '2d'"), @"svcdns.toml:1:7: ttl: 2d is not from 0s to 1day");
    assert_snapshot!(mistake("answers = 0"), @r#"svcdns.toml:1:11: answers: "0" is neither all, fit nor a number from 1 to 65535"#);
    assert_snapshot!(mistake("answers = 'some'"), @r#"svcdns.toml:1:11: answers: "some" is neither all, fit nor a number from 1 to 65535"#);
    assert_snapshot!(mistake("version-fallback = 'yes'"), @"svcdns.toml:1:20: version-fallback: true or false must stand here, not a value of type string");
    assert_snapshot!(mistake("listen = [\n  '127.0.0.1:5300',\n  'localhost'\n]"), @r#"svcdns.toml:3:3: listen: "localhost" is not an address with a port, such as 127.0.0.1:5300 or [::1]:5300"#);
    assert_snapshot!(mistake("listen = []"), @"svcdns.toml:1:1: listen: no address to listen on: add one, for example --listen 127.0.0.1:5300");
    assert_snapshot!(mistake("listen = [53]"), @"svcdns.toml:1:11: listen: a list of texts must stand here, not a value of type integer");
    assert_snapshot!(mistake("listen = ['0.0.0.0:53']"), @"svcdns.toml:1:11: listen: 0.0.0.0:53 is reachable from other machines, but no access rule says which of them may query: add their networks, for example --allow 192.168.0.0/16, or listen on a loopback address such as 127.0.0.1:53");
    assert_snapshot!(mistake("admin-listen = '0.0.0.0:80'"), @"svcdns.toml:1:16: admin-listen: 0.0.0.0:80 can be reached from other machines, and this interface asks nobody who they are: name a loopback address");
    assert_snapshot!(mistake("zone = []"), @r#"svcdns.toml:1:1: zone: there is no zone to serve: name at least one, such as "svc""#);
    assert_snapshot!(mistake("zone = ['a', 'sv c']"), @r#"svcdns.toml:1:14: zone: the zone "sv c" may hold only a-z, 0-9, '-', '_' and dots"#);
    assert_snapshot!(mistake("max-keys = 0"), @r#"svcdns.toml:1:12: max-keys: "0" is not a whole number from 1 to 268435455"#);
    assert_snapshot!(mistake("max-keys = 268435456"), @r#"svcdns.toml:1:12: max-keys: "268435456" is not a whole number from 1 to 268435455"#);
    assert_snapshot!(mistake("docker0 = 'off'"), @r#"svcdns.toml:1:11: docker0: "off" is neither drop nor keep"#);
    assert_snapshot!(mistake("allow = ['10.0.0.0/33']"), @r#"svcdns.toml:1:10: allow: "10.0.0.0/33" is not a network such as 10.0.0.0/8 or fd00::/8"#);
    assert_snapshot!(mistake("namespace = 'a/b'"), @r#"svcdns.toml:1:13: namespace: "a/b" is not one segment of a registry key: some characters, none of them '/'"#);
    assert_snapshot!(mistake("log = 'svcdns=loud'"), @r#"svcdns.toml:1:7: log: "svcdns=loud" is not a filter such as info, debug or warn,svcdns::registry=debug: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5"#);
    assert_snapshot!(mistake("registry = ['etcd://a', 'consul://b:8500']"), @"svcdns.toml:1:25: registry: registries of kind consul are not supported yet: there are etcd:// and file://");
    assert_snapshot!(mistake("registry = ['etcd://a', 'etcd://a:2379']"), @"svcdns.toml:1:25: registry: etcd://a:2379 is named twice");
    assert_snapshot!(mistake("registry = ['file:///x', 'file:///x']"), @"svcdns.toml:1:26: registry: file:///x is named twice");
    assert_snapshot!(mistake("registry = 'file://x'"), @"svcdns.toml:1:12: registry: a directory is written with its whole path: file:///directory");
    assert_snapshot!(mistake("registry = '127.0.0.1:2379'"), @"svcdns.toml:1:12: registry: a registry is written as etcd://host:port[,host:port] or file:///directory");
    assert_snapshot!(mistake("registry = 'Redis://a'"), @r#"svcdns.toml:1:12: registry: there is no kind of registry "redis": a registry is written as etcd://host:port[,host:port] or file:///directory"#);
    assert_snapshot!(mistake("registry = 'etcd://a:1/service'"), @r#"svcdns.toml:1:12: registry: nothing may follow the endpoints of an etcd URL, but there is "/service" (heads, deployment and namespace have settings of their own)"#);
    assert_snapshot!(mistaken_variable("SVCDNS_TTL", "x"), @r#"SVCDNS_TTL: ttl: "x" is not a duration such as 12s, 500ms or 1m 30s"#);
}

#[test]
fn upstreams() {
    let read = |text: &str| load(text, &[], &Flags::default()).unwrap();
    assert_eq!(read("").upstream.servers, Servers::System);
    assert!(read("").upstream(&[]).is_some() && read("").answer(&[]).forwarding);
    assert_eq!(read("").upstream.order, None);
    assert_eq!(read("upstream-order = 'strict'").upstream.order, Some(UpstreamOrder::Strict));
    assert_eq!(read("upstream-order = 'fastest'").upstream.order, Some(UpstreamOrder::Fastest));
    let off = read("upstream = 'off'");
    assert!(off.upstream(&[]).is_none() && !off.answer(&[]).forwarding);
    let config = read("upstream = ['192.0.2.1', 'Corp.example=10.0.0.53', '192.0.2.2:5353', 'corp.example=10.0.0.54', '192.0.2.1']");
    let shown = |targets: &[Target]| targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let Servers::Named(named) = &config.upstream.servers else { panic!("{:?}", config.upstream) };
    assert_eq!(shown(named), "192.0.2.1 192.0.2.2:5353");
    let domains: Vec<_> = config.upstream.domains.iter().map(|(name, targets)| format!("{name} {}", shown(targets))).collect();
    assert_eq!(domains, ["corp.example. 10.0.0.53 10.0.0.54"]);
    // Only domains, with and without saying so: the rest goes where the system's resolver would go.
    for text in ["upstream = ['corp.example=10.0.0.53']", "upstream = ['system', 'corp.example=10.0.0.53']", "upstream = []"] {
        assert_eq!(read(text).upstream.servers, Servers::System, "{text}");
    }
    let config = load("", &[("SVCDNS_UPSTREAM", "192.0.2.1,a.example=[fe80::1%1]:53")], &Flags::default()).unwrap();
    assert_eq!(config.upstream.domains.len(), 1);
    assert_eq!(read("cache-size = '1MiB'").cache_octets, 1 << 20);
    assert_eq!((read("").cache_octets, read("cache-size = '0'").cache_octets), (32 << 20, 0));
    assert_eq!((read("").serve_stale, read("serve-stale = '0s'").serve_stale), (Duration::from_secs(86_400), Duration::ZERO));
    assert_eq!(read("rebinding-allow = ['lan']").rebinding, None);
    assert_eq!(read("rebinding-guard = true\nrebinding-allow = ['LAN']").rebinding, Some(vec![Name::from_text("lan").unwrap()]));
}

#[test]
fn mistakes_about_upstreams() {
    assert_snapshot!(mistake("upstream-order = 'rotate'"), @r#"svcdns.toml:1:18: upstream-order: "rotate" is neither strict nor fastest"#);
    assert_snapshot!(mistake("upstream = ['off', '192.0.2.1']"), @"svcdns.toml:1:13: upstream: off stands alone: leave it out, or all others");
    assert_snapshot!(mistake("upstream = ['192.0.2.1', 'system']"), @"svcdns.toml:1:26: upstream: either system or upstreams by their addresses; besides system there may be upstreams for domains, such as corp.example=10.0.0.53");
    assert_snapshot!(mistake("upstream = ['.=192.0.2.1']"), @"svcdns.toml:1:13: upstream: the root holds every name: name 192.0.2.1 alone");
    assert_snapshot!(mistake("upstream = ['a..b=192.0.2.1']"), @r#"svcdns.toml:1:13: upstream: "a..b" is not a domain name: a label is empty"#);
    assert_snapshot!(mistake("upstream = ['corp.example=off']"), @"svcdns.toml:1:13: upstream: off cannot be named for a domain: an upstream stands there, such as 10.0.0.53");
    assert_snapshot!(mistake("upstream = ['x.svc=192.0.2.1']"), @"svcdns.toml:1:13: upstream: x.svc. lies in the served zone svc., for which nobody else is asked");
    assert_snapshot!(mistake("upstream = ['x.onion=192.0.2.1']"), @"svcdns.toml:1:13: upstream: nobody is asked for names in x.onion.: svcdns answers them itself");
    assert_snapshot!(mistake("upstream = ['127.0.0.1:5300']"), @"svcdns.toml:1:13: upstream: svcdns would ask itself: it listens on 127.0.0.1:5300; name another upstream, or let it listen elsewhere");
    assert_snapshot!(mistake("listen = ['127.0.0.1:53']\nupstream = ['192.0.2.1', 'a.example=127.0.0.1']"), @"svcdns.toml:2:26: upstream: svcdns would ask itself: it listens on 127.0.0.1:53; name another upstream, or let it listen elsewhere");
    assert_snapshot!(mistake("cache-size = 'much'"), @r#"svcdns.toml:1:14: cache-size: "much" is not a size such as 32MiB or 500kB"#);
    assert_snapshot!(mistake("cache-size = '1TiB'"), @"svcdns.toml:1:14: cache-size: 1TiB is more than 64GiB, the fixed limit");
    assert_snapshot!(mistake("serve-stale = '1year'"), @"svcdns.toml:1:15: serve-stale: 1year is not from 0s to 30days");
    assert_snapshot!(mistake("rebinding-allow = ['a..b']"), @r#"svcdns.toml:1:20: rebinding-allow: "a..b" is not a domain name: a label is empty"#);
}

#[test]
fn a_log_level_alone_is_that_of_svcdns() {
    for (written, filter) in
        [("info", "warn,svcdns=info"), ("DEBUG", "warn,svcdns=DEBUG"), ("warn", "warn"), ("error", "error"), ("h2=debug", "h2=debug")]
    {
        assert_eq!(load(&format!("log = '{written}'"), &[], &Flags::default()).unwrap().log, filter);
    }
}

#[test]
fn passwords_stay_out_of_sight() {
    assert_snapshot!(mistake("[etcd]\npassword = 'hunter2'"), @"svcdns.toml:2:1: etcd.password: a password does not stand here, where many can read it: put it in a file of its own and name that with etcd.password-file, or in the variable SVCDNS_ETCD_PASSWORD");
    assert_snapshot!(mistake("registry = ['etcd://root:hunter2@a:2379']"), @"svcdns.toml:1:13: registry: a URL shows in lists of processes and in logs: put the user in etcd.username and the password in a file named by etcd.password-file or in the variable SVCDNS_ETCD_PASSWORD");
    assert_snapshot!(mistake("[etcd]\nusername = 'root'"), @"svcdns.toml:2:12: etcd.username: a user and a password go together: set etcd.username, and etcd.password-file or the variable SVCDNS_ETCD_PASSWORD");

    assert_snapshot!(mistaken_variable(PASSWORD_VARIABLE, "hunter2"), @"SVCDNS_ETCD_PASSWORD: etcd.username: a user and a password go together: set etcd.username, and etcd.password-file or the variable SVCDNS_ETCD_PASSWORD");
    assert_eq!(etcd("", &[(PASSWORD_VARIABLE, "")]).password, None);

    let settings = etcd("username = 'root'\n", &[(PASSWORD_VARIABLE, "hunter2")]);
    assert_eq!(settings.username.as_deref(), Some("root"));
    assert_eq!(settings.password, Some(Credential::Given(Secret::from("hunter2"))));
    let text = "registry = 'etcd://a'\n[etcd]\nusername = 'root'\n";
    let config = load(text, &[(PASSWORD_VARIABLE, "hunter2")], &Flags::default()).unwrap();
    assert!(!format!("{settings:?} {config:?}").contains("hunter2"));
    let place = SecretPlace::Variable(PASSWORD_VARIABLE.to_owned());
    assert_eq!(config.secrets.iter().map(|secret| (secret.key.name, &secret.place)).collect::<Vec<_>>(), [("password", &place)]);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "from file\n").unwrap();
    let section = format!("username = 'root'\npassword-file = '{}'", file.display());
    assert_eq!(etcd(&section, &[]).password, Some(Credential::File(file.clone())));
    assert_eq!(etcd(&section, &[(PASSWORD_VARIABLE, "hunter2")]).password, Some(Credential::Given(Secret::from("hunter2"))));
}

#[test]
fn tls_is_on_when_anything_of_it_is_set() {
    assert_eq!(etcd("", &[]).tls, None);
    assert_eq!(etcd("tls = true", &[]).tls, Some(Tls::default()));
    assert_eq!(etcd("ca-file = '/ca.pem'", &[]).tls.and_then(|tls| tls.ca_file), Some("/ca.pem".into()));
    assert_snapshot!(mistake("[etcd]\ncert-file = '/c.pem'"), @"svcdns.toml:2:13: etcd.cert-file: a certificate and its key go together: set both etcd.cert-file and etcd.key-file");
}

#[test]
fn every_kind_of_registry_has_its_own_section_and_stands_in_the_documentation() {
    for kind in registry::KINDS {
        assert!(kind.keys.iter().all(|key| key.section == kind.name), "{}", kind.name);
        let scheme = format!("`{}://", kind.name);
        assert!(keys::REGISTRY.unit.contains(&scheme) && registry::URL.unit.contains(&scheme), "{}", kind.name);
        assert!(kind.secrets.iter().all(|secret| kind.keys.contains(&secret.file)), "{}", kind.name);
        assert!(kind.private_keys.iter().all(|key| kind.keys.contains(key)), "{}", kind.name);
    }
    assert!(KEYS.iter().all(|key| !key.variable().starts_with("SVCDNS_REGISTRY_")), "that would be a variable of one registry");
    assert!(registry::secrets().all(|secret| KEYS.contains(&secret.file) && KEYS.iter().all(|key| key.variable() != secret.variable)));
}

#[test]
fn as_many_registries_are_followed_as_have_a_number() {
    let named = |count: usize| {
        let urls: Vec<String> = (0..count).map(|n| format!("file:///{n}")).collect();
        load("", &[("SVCDNS_REGISTRY", &urls.join(" "))], &Flags::default())
    };
    assert_eq!(named(MAX_REGISTRIES).unwrap().registries.len(), MAX_REGISTRIES);
    assert_eq!(named(MAX_REGISTRIES + 1).unwrap_err(), "SVCDNS_REGISTRY: registry: at most 16 registries can be followed (a fixed limit)");
}

#[test]
fn a_listen_address_for_others_needs_a_rule() {
    let config = load("listen = ['0.0.0.0:53']\nallow = ['10.0.0.0/8']", &[], &Flags::default()).unwrap();
    assert_eq!(config.allow.len(), 1);
    load("listen = ['127.9.9.9:53', '[::1]:53', '[::ffff:127.0.0.1]:53']", &[], &Flags::default()).unwrap();
}

#[test]
fn a_named_file_must_be_there() {
    let error = Config::load(Some(Path::new("/nowhere/svcdns.toml")), [], &Flags::default()).unwrap_err();
    assert_snapshot!(error.to_string(), @"cannot read the configuration file /nowhere/svcdns.toml: No such file or directory (os error 2)");
    let named = [(CONFIG_VARIABLE.to_owned(), "/nowhere/else.toml".to_owned())];
    let error = Config::load(None, named, &Flags::default()).unwrap_err();
    assert_snapshot!(error.to_string(), @"cannot read the configuration file /nowhere/else.toml: No such file or directory (os error 2)");
    Config::load(Some(Path::new("/dev/null")), [], &Flags::default()).unwrap();
}

#[test]
fn the_documentation_holds_the_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    for (name, table) in [("keys", markdown()), ("registry keys", registry_markdown())] {
        let text = std::fs::read_to_string(path).unwrap();
        let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
        let at = text.find(&begin).expect("a marker where the table begins") + begin.len();
        let until = text.find(&end).expect("a marker where the table ends");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, format!("{}{table}{}", &text[..at], &text[until..])).unwrap();
        } else {
            assert!(text[at..until] == table, "docs/configuration.md is behind the keys: UPDATE_DOCS=1 cargo test --lib config");
        }
    }
}

#[test]
fn the_template_names_every_key_and_can_be_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/svcdns.toml");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, template()).unwrap();
    }
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text == template(), "deploy/svcdns.toml is behind src/config/keys.rs: UPDATE_DOCS=1 cargo test --lib config");
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')));
    load(&text, &[], &Flags::default()).unwrap();

    let uncommented: Vec<&str> =
        text.lines().map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line)).collect();
    let sections = uncommented.iter().position(|line| line.starts_with("[registry.")).expect("sections of registries");
    let (general, sections) = uncommented.split_at(sections);
    // The list or the sections: a file cannot have both.
    let with_list = load(&general.join("\n"), &[], &Flags::default()).unwrap();
    for effective in with_list.effective().iter().filter(|effective| KEYS.iter().any(|key| key.path() == effective.path)) {
        assert!(matches!(effective.origin, Origin::File { .. }), "{} is not in the template", effective.path);
        assert_eq!(effective.value, effective.key.default, "{}", effective.path);
    }
    let general: Vec<&str> = general.iter().copied().filter(|line| !line.starts_with("registry = ")).collect();
    let with_sections = load(&[&general, sections].concat().join("\n"), &[], &Flags::default()).unwrap();
    assert_eq!(with_sections.registries.len(), registry::KINDS.len());
    for kind in registry::KINDS {
        let registry = with_sections.registries.iter().find(|registry| registry.source.kind() == kind.name).expect(kind.name);
        for key in kind.section_keys() {
            let path = format!("registry.{}.{}", registry.name, key.name);
            let effective = with_sections.effective().iter().find(|effective| effective.path == path).expect(&path);
            assert!(effective.written, "{path} is not in the template");
            let example = format!("{:?}", kind.example);
            assert_eq!(effective.value, if *key == *registry::URL { &example } else { key.default }, "{path}");
        }
    }
}

#[test]
fn every_flag_of_a_command_can_be_read() {
    use clap::{Args, FromArgMatches};
    let command = ServeFlags::augment_args(clap::Command::new("serve"));
    let matches = command.get_matches_from(["serve", "--zone", "a", "--zone=b,c", "--etcd-username", "root", "--ttl", "3s"]);
    let ServeFlags(flags) = ServeFlags::from_arg_matches(&matches).unwrap();
    assert!(flags.has("zone") && !flags.has("listen"));
    let config = load("registry = 'etcd://a'", &[(PASSWORD_VARIABLE, "x")], &flags).unwrap();
    let Source::Etcd(settings) = &config.registries[0].source else { panic!("{:?}", config.registries) };
    assert_eq!((&*zones(&config), config.ttl, settings.username.as_deref()), ("a. b. c.", 3, Some("root")));
}

#[test]
fn help_lists_the_flags_of_a_section_under_one_heading() {
    use clap::Args;
    let command = ServeFlags::augment_args(clap::Command::new("serve"));
    let heading = |key: &Key| command.get_arguments().find(|arg| arg.get_long() == Some(&key.flag())).and_then(clap::Arg::get_help_heading);
    let headings: BTreeSet<_> = KEYS.iter().filter_map(|key| Some((key.section, heading(key)?))).collect();
    let expected = [("", "Settings"), ("etcd", "Settings for etcd"), ("tls", "Settings for TLS and QUIC listeners")];
    assert_eq!(headings, BTreeSet::from(expected));
}

#[test]
fn encrypted_listeners() {
    let pair = "cert-file = 'c.pem'\nkey-file = 'k.pem'\n";
    let text = format!("allow = ['10.0.0.0/8']\n[tls]\nlisten = ['127.0.0.1', '::1', '[::1]:8853']\nquic-listen = ['[::]']\n{pair}");
    let encrypted = load(&text, &[], &Flags::default()).unwrap().server().encrypted;
    let texts = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&encrypted.tls), ["127.0.0.1:853", "[::1]:853", "[::1]:8853"]);
    assert_eq!(texts(&encrypted.quic), ["[::]:853"]);
    assert_eq!(encrypted.certificate.unwrap().key, PathBuf::from("k.pem"));
    let without = load("", &[], &Flags::default()).unwrap().server().encrypted;
    assert_eq!(without, EncryptedSettings::default());

    assert_snapshot!(mistake("[tls]\nlisten = ['dns.example']"), @r#"svcdns.toml:2:11: tls.listen: "dns.example" is not an address, with or without a port, such as 192.0.2.1 or [::1]:8853"#);
    assert_snapshot!(mistake("[tls]\nlisten = ['127.0.0.1']"), @"svcdns.toml:2:11: listen: 127.0.0.1:853 is an encrypted listener, which needs a certificate: set --tls-cert-file and --tls-key-file");
    assert_snapshot!(mistake("[tls]\nlisten = ['127.0.0.1']\ncert-file = 'c.pem'"), @"svcdns.toml:3:13: tls.cert-file: a certificate and its key belong together: name tls.key-file, too");
    assert_snapshot!(mistake(&format!("[tls]\nquic-listen = ['192.0.2.1']\n{pair}")), @"svcdns.toml:2:16: listen: 192.0.2.1:853 is reachable from other machines, but no access rule says which of them may query: add their networks, for example --allow 192.0.2.0/24, or listen on a loopback address such as 127.0.0.1:853");
    assert_snapshot!(mistake(&format!("listen = ['127.0.0.1:53']\n[tls]\nlisten = ['127.0.0.1:53']\n{pair}")), @"svcdns.toml:3:11: listen: 127.0.0.1:53 is set for both plain and encrypted DNS: each needs its own port");
}
