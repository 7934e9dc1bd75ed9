//! The generated documentation.

use std::collections::BTreeSet;

use super::*;
use crate::config::static_services::STATIC_KEYS;

/// Instruction for regenerating the documentation.
const UPDATE: &str = "run UPDATE_DOCS=1 cargo test --lib config";

#[test]
fn the_tables_of_the_documentation_are_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let tables = [
        ("keys", markdown()),
        ("registry keys", registry_markdown()),
        ("static keys", static_markdown()),
        ("restart keys", restart_markdown()),
    ];
    for (name, table) in tables {
        let text = std::fs::read_to_string(path).unwrap();
        let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
        let at = text.find(&begin).expect("a marker before the table") + begin.len();
        let until = text.find(&end).expect("a marker after the table");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, format!("{}{table}{}", &text[..at], &text[until..])).unwrap();
        } else {
            assert!(text[at..until] == table, "docs/configuration.md is outdated: {UPDATE}");
        }
    }
}

#[test]
fn the_template_is_current_valid_and_complete() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/svcdns.toml");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, template()).unwrap();
    }
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text == template(), "deploy/svcdns.toml is outdated: {UPDATE}");
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')));
    read(&text, &[]);

    let uncommented = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line));
    let uncommented: Vec<&str> = uncommented.collect();
    let is_section = |line: &&str| line.starts_with("[registry.");
    let sections = uncommented.iter().position(is_section).expect("registry sections");
    let (general, sections) = uncommented.split_at(sections);
    // A file cannot have both a list and sections.
    let with_list = read(&general.join("\n"), &[]);
    let is_general = |value: &&EffectiveValue| KEYS.iter().any(|key| key.path() == value.path);
    for value in with_list.effective().iter().filter(is_general) {
        let path = &value.path;
        assert!(matches!(value.origin, Origin::File { .. }), "{path} is not in the template");
        assert_eq!(value.value, value.key.default, "{path}");
    }
    let list = |line: &&str| line.starts_with("registry = ");
    let general: Vec<&str> = general.iter().copied().filter(|line| !list(line)).collect();
    let with_sections = read(&[&general, sections].concat().join("\n"), &[]);
    let (statics, registries) = with_sections.registries.split_last().expect("static services");
    assert_eq!(registries.len(), registry::KINDS.len());
    let Source::Static(statics) = &statics.source else { panic!("{statics:?}") };
    assert_eq!(statics.registrations.len(), 1);
    for key in STATIC_KEYS.iter().filter(|key| key.name != "name") {
        let path = format!("static.legacy.{}", key.name);
        assert!(with_sections.effective().iter().any(|value| value.path == path), "{path}");
    }
    for kind in registry::KINDS {
        let mut registries = registries.iter();
        let registry = registries.find(|registry| registry.source.kind() == kind.name);
        let name = &registry.expect(kind.name).name;
        for key in kind.section_keys() {
            let path = format!("registry.{name}.{}", key.name);
            let mut values = with_sections.effective().iter();
            let value = values.find(|value| value.path == path).expect(&path);
            assert!(value.written, "{path} is not in the template");
            let example = format!("{:?}", kind.example);
            let expected = if *key == *registry::URL { &example } else { key.default };
            assert_eq!(value.value, expected, "{path}");
        }
    }
}

#[test]
fn help_describes_the_effect_of_an_empty_default() {
    use clap::Args;
    let serve = ServeFlags::augment_args(clap::Command::new("serve"));
    let register = RegistryFlags::augment_args(clap::Command::new("register"));
    for (command, flag, start, end) in [
        (&serve, "allow", "Accept", "[default: none]"),
        (&serve, "etcd-ca-file", "Trust", "[default: the system's trust store]"),
        (&serve, "registry", "Follow", "server's user owns it]"),
        (&register, "registry", "Register in", "server's user owns it]"),
    ] {
        let mut flags = command.get_arguments();
        let flag = flags.find(|arg| arg.get_long() == Some(flag)).expect(flag);
        let help = flag.get_help().expect("a help text").to_string();
        assert!(help.starts_with(start) && help.ends_with(end), "{help}");
    }
}

#[test]
fn flags_are_grouped_by_section_in_the_help() {
    use clap::Args;
    let command = ServeFlags::augment_args(clap::Command::new("serve"));
    let heading = |key: &Key| {
        let mut flags = command.get_arguments();
        flags.find(|arg| arg.get_long() == Some(&key.flag()))?.get_help_heading()
    };
    let headings = KEYS.iter().filter_map(|key| Some((key.section, heading(key)?)));
    let expected = [
        ("", "Settings"),
        ("bridge", "Settings for the port bridge"),
        ("checks", "Settings for checks of endpoints"),
        ("consul", "Settings for Consul"),
        ("etcd", "Settings for etcd"),
        ("nacos", "Settings for Nacos"),
        ("polaris", "Settings for Polaris"),
        ("tls", "Settings for TLS and QUIC listeners"),
        ("zookeeper", "Settings for ZooKeeper"),
    ];
    assert_eq!(headings.collect::<BTreeSet<_>>(), BTreeSet::from(expected));
}
