mod aliases;
mod bridge;
mod checks;
mod documentation;
mod errors;
mod registries;
mod registry_errors;
mod reload;
mod static_services;

use super::*;
use crate::registry::Tls;
use crate::registry::etcd;
use crate::registry::{Credential, NamedSource, Secret, Source, file};
use crate::service::MAX_REGISTRIES;

/// Variable with the password for all etcd registries.
const PASSWORD_VARIABLE: &str = "SVCDNS_ETCD_PASSWORD";

/// Loads a file, environment variables and flags; returns errors as text.
fn load(text: &str, environment: &[(&str, &str)], flags: &Flags) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("svcdns.toml");
    std::fs::write(&path, text).unwrap();
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let prefix = format!("{}/", directory.path().display());
    Config::load(Some(&path), environment, flags)
        .map_err(|error| error.to_string().replace(&prefix, ""))
}

/// Loads a valid file and environment variables.
fn read(text: &str, environment: &[(&str, &str)]) -> Config {
    load(text, environment, &Flags::default()).unwrap()
}

/// Returns the error for a file and environment variables.
fn error_with(text: &str, environment: &[(&str, &str)]) -> String {
    load(text, environment, &Flags::default()).unwrap_err()
}

/// Returns the names of the zones.
fn zones(config: &Config) -> String {
    config.zones.iter().map(crate::name::Zone::text).collect::<Vec<_>>().join(" ")
}

/// Returns the settings of an etcd registry; `section` is the text of `[etcd]`.
fn etcd(section: &str, environment: &[(&str, &str)]) -> etcd::Settings {
    let config = read(&format!("registry = 'etcd://a'\n[etcd]\n{section}"), environment);
    match &*config.registries {
        [NamedSource { source: Source::Etcd(settings), .. }] => (**settings).clone(),
        other => panic!("{other:?}"),
    }
}

/// Returns the error for a file.
fn error_of(text: &str) -> String {
    error_with(text, &[])
}

/// Returns the error for an environment variable.
fn error_of_variable(name: &str, value: &str) -> String {
    error_with("", &[(name, value)])
}

/// Checks the error for each file; expected errors omit the prefix `svcdns.toml:`.
fn assert_errors(cases: &[(&str, &str)]) {
    assert_errors_after("", cases);
}

/// Checks the error for each file; all of the files start with `beginning`.
fn assert_errors_after(beginning: &str, cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let error = error_of(&format!("{beginning}{text}"));
        assert_eq!(error, format!("svcdns.toml:{expected}"), "{text}");
    }
}

#[test]
fn every_key_has_a_default() {
    let config = read("", &[("PATH", "/bin")]);
    assert_eq!(config.listen, ["127.0.0.1:5300".parse().unwrap()]);
    let [NamedSource { source: Source::File(registry), .. }] = &*config.registries else {
        panic!("{:?}", config.registries)
    };
    assert!(!registry.named, "trusted only while root or the server's user owns it");
    assert_eq!(registry.directory, std::env::temp_dir().join("gsvc"));
    assert_eq!(registry.heads, ["service", "services"]);
    assert_eq!(registry.timings, file::FileTimings::default());
    assert_eq!(zones(&config), "svc.");
    assert_eq!((&*config.deployment, &*config.namespace), ("default", "default"));
    assert_eq!((config.ttl, config.negative_ttl), (5, 1));
    assert_eq!(config.registries[0].removal_grace, Duration::from_secs(12));
    assert_eq!(config.answers, Answers::All);
    assert_eq!(config.admin_listen, "127.0.0.1:5380".parse().ok());
    assert_eq!(config.state_dir, None);
    assert_eq!((config.log_queries, config.server().log_queries), (0, 0));
    assert!(config.version_fallback && config.allow.is_empty() && config.secrets.is_empty());
    assert!(config.effective().iter().all(|effective| effective.origin == Origin::Default));
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let text = "zone = [\"a\", \"b\"]\nnamespace = 'n'\nttl = \"9s\"\n";
    let flags = Flags::default().with("zone", "x");
    let config = load(text, &[("SVCDNS_ZONE", "y"), ("SVCDNS_NAMESPACE", "env")], &flags).unwrap();
    assert_eq!((&*zones(&config), &*config.namespace, config.ttl), ("x.", "env", 9));
    let shown: Vec<String> = config
        .effective
        .iter()
        .filter(|effective| effective.origin != Origin::Default)
        .map(|EffectiveValue { path, value, origin, .. }| {
            format!("{path} = {value} ({})", origin.to_string().rsplit('/').next().unwrap())
        })
        .collect();
    assert_eq!(
        shown,
        [
            "zone = [\"x\"] (--zone)",
            "namespace = \"env\" (SVCDNS_NAMESPACE)",
            "ttl = \"9s\" (svcdns.toml:3:1)"
        ]
    );
}

#[test]
fn commas_and_spaces_separate_lists_in_variables() {
    let environment = [
        ("SVCDNS_LISTEN", "127.0.0.1:1, [::1]:2"),
        ("SVCDNS_REGISTRY", "etcd://a:1,b:2,file:///x"),
        ("SVCDNS_ALLOW", "10.1.2.3/8,fd00::5"),
    ];
    let config = read("", &environment);
    assert_eq!(config.listen, ["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
    let registries = config.registries.iter().map(|registry| registry.source.to_string());
    assert_eq!(registries.collect::<Vec<_>>(), ["etcd://a:1,b:2", "file:///x"]);
    let allow = config.allow.iter().map(ToString::to_string);
    assert_eq!(allow.collect::<Vec<_>>(), ["10.0.0.0/8", "fd00::5/128"]);
}

#[test]
fn upstreams_are_addresses_domains_system_or_off() {
    let read = |text: &str| read(text, &[]);
    assert_eq!(read("").upstream.servers, Servers::System);
    assert!(read("").upstream(&[]).is_some() && read("").answer(&[]).forwarding);
    assert_eq!(read("").upstream.order, None);
    assert_eq!(read("upstream-order = 'strict'").upstream.order, Some(UpstreamOrder::Strict));
    assert_eq!(read("upstream-order = 'fastest'").upstream.order, Some(UpstreamOrder::Fastest));
    let off = read("upstream = 'off'");
    assert!(off.upstream(&[]).is_none() && !off.answer(&[]).forwarding);
    let config = read(
        "upstream = ['192.0.2.1', 'Corp.example=10.0.0.53', '192.0.2.2:5353', \
         'corp.example=10.0.0.54', '192.0.2.1']",
    );
    let shown =
        |targets: &[Target]| targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let Servers::Named(named) = &config.upstream.servers else { panic!("{:?}", config.upstream) };
    assert_eq!(shown(named), "192.0.2.1 192.0.2.2:5353");
    let domains = config.upstream.domains.iter();
    let domains = domains.map(|(name, targets)| format!("{name} {}", shown(targets)));
    assert_eq!(domains.collect::<Vec<_>>(), ["corp.example. 10.0.0.53 10.0.0.54"]);
    // Without an upstream for all names, svcdns uses the system's name servers.
    for text in [
        "upstream = ['corp.example=10.0.0.53']",
        "upstream = ['system', 'corp.example=10.0.0.53']",
        "upstream = []",
    ] {
        assert_eq!(read(text).upstream.servers, Servers::System, "{text}");
    }
}

#[test]
fn upstreams_in_a_variable_may_have_brackets() {
    let variable = [("SVCDNS_UPSTREAM", "192.0.2.1,a.example=[fe80::1%1]:53")];
    assert_eq!(read("", &variable).upstream.domains.len(), 1);
}

#[test]
fn zero_turns_off_the_cache_and_stale_answers() {
    let read = |text: &str| read(text, &[]);
    assert_eq!(read("cache-size = '1MiB'").cache_bytes, 1 << 20);
    assert_eq!(read("").cache_bytes, 32 << 20);
    assert_eq!(read("cache-size = '0'").cache_bytes, 0);
    assert_eq!(read("").serve_stale, Duration::from_secs(86_400));
    assert_eq!(read("serve-stale = '0s'").serve_stale, Duration::ZERO);
}

#[test]
fn exempt_domains_do_not_turn_on_the_rebinding_guard() {
    assert_eq!(read("rebinding-allow = ['lan']", &[]).rebinding, None);
    let on = read("rebinding-guard = true\nrebinding-allow = ['LAN']", &[]);
    assert_eq!(on.rebinding, Some(vec![Name::from_text("lan").unwrap()]));
}

#[test]
fn a_log_level_without_a_module_applies_to_svcdns() {
    for (written, filter) in [
        ("info", "error,svcdns=info"),
        ("DEBUG", "error,svcdns=DEBUG"),
        ("warn", "error,svcdns=warn"),
        ("error", "error"),
        ("h2=debug", "h2=debug"),
    ] {
        assert_eq!(read(&format!("log = '{written}'"), &[]).log, filter);
    }
}

#[test]
fn passwords_are_not_shown() {
    assert_eq!(etcd("", &[(PASSWORD_VARIABLE, "")]).password, None);

    let settings = etcd("username = 'root'\n", &[(PASSWORD_VARIABLE, "hunter2")]);
    assert_eq!(settings.username.as_deref(), Some("root"));
    assert_eq!(settings.password, Some(Credential::Given(Secret::from("hunter2"))));
    let text = "registry = 'etcd://a'\n[etcd]\nusername = 'root'\n";
    let config = read(text, &[(PASSWORD_VARIABLE, "hunter2")]);
    assert!(!format!("{settings:?} {config:?}").contains("hunter2"));
    let place = SecretPlace::Variable(PASSWORD_VARIABLE.to_owned());
    let secrets = config.secrets.iter().map(|secret| (secret.key.name, &secret.place));
    assert_eq!(secrets.collect::<Vec<_>>(), [("password", &place)]);
}

#[test]
fn the_password_variable_overrides_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "from file\n").unwrap();
    let section = format!("username = 'root'\npassword-file = '{}'", file.display());
    assert_eq!(etcd(&section, &[]).password, Some(Credential::File(file.clone())));
    let overridden = etcd(&section, &[(PASSWORD_VARIABLE, "hunter2")]);
    assert_eq!(overridden.password, Some(Credential::Given(Secret::from("hunter2"))));
}

#[test]
fn any_tls_key_turns_tls_on() {
    assert_eq!(etcd("", &[]).tls, None);
    assert_eq!(etcd("tls = true", &[]).tls, Some(Tls::default()));
    let tls = etcd("ca-file = '/ca.pem'", &[]).tls;
    assert_eq!(tls.and_then(|tls| tls.ca_file), Some("/ca.pem".into()));
}

#[test]
fn every_registry_kind_has_a_section_and_is_documented() {
    for kind in registry::KINDS {
        let name = kind.name;
        assert!(kind.keys().all(|key| key.section == name), "{name}");
        for key in [keys::REGISTRY, registry::URL] {
            assert!(key.constraint.contains(&format!("`{name}://")), "{name}");
        }
        for secret in kind.secrets {
            assert!(kind.keys().any(|key| key == secret.file), "{name}: {}", secret.name);
        }
    }
}

#[test]
fn variables_of_keys_and_secrets_are_distinct() {
    for key in KEYS.iter() {
        let variable = key.variable();
        assert!(!variable.starts_with("SVCDNS_REGISTRY_"), "{variable} could be a registry's");
        assert!(registry::secrets().all(|secret| secret.variable != variable), "{variable}");
    }
}

#[test]
fn the_number_of_registries_is_limited() {
    let named = |count: usize| {
        let urls: Vec<String> = (0..count).map(|n| format!("file:///{n}")).collect();
        load("", &[("SVCDNS_REGISTRY", &urls.join(" "))], &Flags::default())
    };
    assert_eq!(named(MAX_REGISTRIES).unwrap().registries.len(), MAX_REGISTRIES);
    assert_eq!(
        named(MAX_REGISTRIES + 1).unwrap_err(),
        "SVCDNS_REGISTRY: registry: at most 16 registries can be followed (a fixed limit)"
    );
}

#[test]
fn addresses_other_than_loopback_require_access_rules() {
    let config = read("listen = ['0.0.0.0:53']\nallow = ['10.0.0.0/8']", &[]);
    assert_eq!(config.allow.len(), 1);
    read("listen = ['127.9.9.9:53', '[::1]:53', '[::ffff:127.0.0.1]:53']", &[]);
}

#[test]
fn flags_set_configuration_values() {
    use clap::{Args, FromArgMatches};
    let command = ServeFlags::augment_args(clap::Command::new("serve"));
    let words = ["serve", "--zone", "a", "--zone=b,c", "--etcd-username", "root", "--ttl", "3s"];
    let matches = command.get_matches_from(words);
    let ServeFlags(flags) = ServeFlags::from_arg_matches(&matches).unwrap();
    assert!(flags.has("zone") && !flags.has("listen"));
    let config = load("registry = 'etcd://a'", &[(PASSWORD_VARIABLE, "x")], &flags).unwrap();
    let Source::Etcd(settings) = &config.registries[0].source else {
        panic!("{:?}", config.registries)
    };
    assert_eq!((&*zones(&config), config.ttl), ("a. b. c.", 3));
    assert_eq!(settings.username.as_deref(), Some("root"));
}

#[test]
fn encrypted_listeners_default_to_port_853() {
    let text = "allow = ['10.0.0.0/8']\n[tls]\nlisten = ['127.0.0.1', '::1', '[::1]:8853']\n\
        quic-listen = ['[::]']\ncert-file = 'c.pem'\nkey-file = 'k.pem'\n";
    let encrypted = read(text, &[]).server().encrypted;
    let texts =
        |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&encrypted.tls), ["127.0.0.1:853", "[::1]:853", "[::1]:8853"]);
    assert_eq!(texts(&encrypted.quic), ["[::]:853"]);
    assert_eq!(encrypted.certificate.unwrap().key, PathBuf::from("k.pem"));
    assert_eq!(read("", &[]).server().encrypted, EncryptedSettings::default());
}
