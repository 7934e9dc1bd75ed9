//! Static services and the merging of registries.

use super::*;
use crate::catalog::Merge;
use crate::service::Registration;

/// Returns the registrations of the static services.
fn statics(config: &Config) -> &[Registration] {
    match config.registries.last() {
        Some(NamedSource { source: Source::Static(settings), .. }) => &settings.registrations,
        other => panic!("{other:?}"),
    }
}

#[test]
fn static_services_are_the_last_registry() {
    let text = "registry = ['etcd://a', 'file:///b']\nnamespace = 'prod'\n[[static]]\n\
                name = 'Legacy.svc'\n\
                endpoints = ['10.0.0.7:8080', '[fd00::7]:80', 'a.example:80']\n\
                metadata = { weight = 5, ratio = 0.5, on = true, zone = 'b' }\n[[static]]\n\
                name = 'x'\nendpoints = '10.0.0.1:1'\nversion = 'v1'\nnamespace = 'dev'\n\
                deployment = 'blue'\noverride = true\n";
    let config = read(text, &[]);
    let names: Vec<_> = config.registries.iter().map(|registry| registry.name.as_str()).collect();
    assert_eq!(names, ["etcd", "file", "static"]);
    let [legacy, other] = statics(&config) else { panic!("{config:?}") };
    let of = |Registration { id, .. }: &Registration| {
        [&id.deployment, &id.namespace, &id.name, &id.version].map(ToString::to_string)
    };
    assert_eq!(of(legacy), ["default", "prod", "Legacy.svc", "latest"]);
    assert_eq!(of(other), ["blue", "dev", "x", "v1"]);
    let endpoints: Vec<_> = legacy.endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(endpoints, ["10.0.0.7:8080", "[fd00::7]:80", "a.example:80"]);
    let metadata = serde_json::to_string(&*legacy.metadata).unwrap();
    assert_eq!(metadata, r#"{"on":true,"ratio":0.5,"weight":5,"zone":"b"}"#);
    assert_eq!((legacy.overrides, other.overrides), (false, true));
    assert!(config.registries[2].source.to_string().starts_with("static:///"));

    // Without another registry, GoFrame's default is followed, too.
    let config = read("[[static]]\nname = 'x'\nendpoints = ['10.0.0.1:1']", &[]);
    let kinds: Vec<_> = config.registries.iter().map(|registry| registry.source.kind()).collect();
    assert_eq!(kinds, ["file", "static"]);
}

#[test]
fn the_values_of_static_services_are_shown_with_their_place() {
    let text = "[[static]]\nname = 'legacy'\nendpoints = ['10.0.0.7:80']\noverride = true\n\
                metadata = { weight = 5 }\nversion = 'v1'";
    let config = read(text, &[]);
    let shown: Vec<_> = config
        .effective()
        .iter()
        .filter(|value| value.path.starts_with("static."))
        .map(|value| {
            let Origin::File { line, .. } = &value.origin else { panic!("{value:?}") };
            (value.path.as_str(), value.value.as_str(), *line)
        })
        .collect();
    let expected = [
        ("static.legacy.endpoints", r#"["10.0.0.7:80"]"#, 3),
        ("static.legacy.version", r#""v1""#, 6),
        ("static.legacy.metadata", "{ weight = 5 }", 5),
        ("static.legacy.override", "true", 4),
    ];
    assert_eq!(shown, expected);
}

#[test]
fn invalid_static_services_are_rejected() {
    assert_errors(&[
        (
            "[static]\nname = 'a'",
            "1:2: static: each static service is a table in a list: write [[static]]",
        ),
        ("static = 'a'", "1:1: static: each static service is a table in a list: write [[static]]"),
        (
            "[[static]]\nendpoints = ['10.0.0.1:1']",
            "1:1: static.name: a static service needs this key: add name = \"legacy\", for example",
        ),
        (
            "[[static]]\nname = 'a'\n[[static]]\nname = 'b'\nendpoints = []",
            "1:1: static.endpoints: a static service needs this key: add endpoints = \
             [\"10.0.0.7:8080\"], for example",
        ),
        ("[[static]]\nnam = 'a'", "2:1: unknown key `static.nam`: did you mean `static.name`?"),
        (
            "registry = ['static://a']",
            "1:13: registry: static services have no URL: write each as a table [[static]]",
        ),
    ]);
    assert_errors_after(
        "[[static]]\n",
        &[
            ("name = 5", "2:8: static.name: expected a string, found a value of type integer"),
            (
                "name = 'a b'\nendpoints = ['10.0.0.1:1']",
                "2:8: static.name: \"a b\" cannot be served: the name is not a DNS name: each \
                 label must have 1 to 63 characters of a-z, 0-9, '-' and '_', and not \
                 begin with '_'",
            ),
            (
                "name = 'ns'\nendpoints = ['10.0.0.1:1']",
                "2:8: static.name: \"ns\" cannot be served: the name is reserved",
            ),
            (
                "name = 'a'\nendpoints = ['10.0.0.1:1']\nversion = 'v/1'",
                "4:11: static.version: \"v/1\" is not a segment of a registry key: use one or more \
                 characters, without '/' and control characters",
            ),
            (
                "name = 'a'\nendpoints = ['10.0.0.1:1', '10.0.0.2']",
                "3:28: static.endpoints: \"10.0.0.2\": the endpoint is not host:port",
            ),
            (
                "name = 'a'\nendpoints = ['10.0.0.1:1,10.0.0.2:1']",
                "3:14: static.endpoints: \"10.0.0.1:1,10.0.0.2:1\" is not one endpoint, such as \
                 10.0.0.7:8080",
            ),
            (
                "name = 'a'\nendpoints = ['b.svc:1']",
                "3:14: static.endpoints: \"b.svc:1\": the host is a name in a zone served here",
            ),
            (
                "name = 'a'\nendpoints = ['10.0.0.1:1']\nmetadata = { tags = ['a'] }",
                "4:21: static.metadata.tags: expected a string, a finite number, true or false, \
                 found a value of type array",
            ),
            (
                "name = 'a'\nendpoints = ['10.0.0.1:1']\nmetadata = 'weight=5'",
                "4:12: static.metadata: expected a table such as { weight = 5 }, found a value of \
                 type string",
            ),
            (
                "name = 'a'\nendpoints = ['10.0.0.1:1']\noverride = 'yes'",
                "4:12: static.override: expected true or false, found a value of type string",
            ),
        ],
    );
}

#[test]
fn static_services_agree_with_each_other_and_with_the_registries() {
    let one = "[[static]]\nname = 'a.svc'\nendpoints = ['10.0.0.1:1']\n";
    assert_errors_after(
        one,
        &[
            (
                "[[static]]\nname = 'A'\nendpoints = ['10.0.0.2:1', '10.0.0.1:1']",
                "6:28: static.endpoints: 10.0.0.1:1 is listed for A already, at svcdns.toml:3:14",
            ),
            (
                "[[static]]\nname = 'a'\nendpoints = ['10.0.0.2:1']\noverride = true",
                "7:12: static.override: override counts for all instances of a, and the table at \
                 svcdns.toml:1:1 has another value",
            ),
            (
                "[registry.static]\nurl = 'etcd://a'",
                "5:7: registry.static.url: the registry of the static services has this name: \
                 choose another",
            ),
        ],
    );
    // Another version, namespace or deployment is another service.
    for key in ["version", "namespace", "deployment"] {
        let text = format!("{one}[[static]]\nname = 'a'\nendpoints = ['10.0.0.1:1']\n{key} = 'x'");
        assert_eq!(statics(&read(&text, &[])).len(), 2);
    }
    let urls = |count: usize| {
        let urls: Vec<_> = (0..count).map(|at| format!("'etcd://h{at}'")).collect();
        format!("registry = [{}]\n{one}", urls.join(", "))
    };
    assert_eq!(read(&urls(MAX_REGISTRIES - 1), &[]).registries.len(), MAX_REGISTRIES);
    let error = error_of(&urls(MAX_REGISTRIES));
    let expected = "svcdns.toml:2:1: static: the static services count as a registry, and at most \
                    16 can be followed (a fixed limit): remove a registry";
    assert_eq!(error, expected);
}

#[test]
fn merge_orders_the_registries_in_layers() {
    let text = "registry = ['etcd://a', 'etcd://b']\n[[static]]\nname = 'x'\n\
                endpoints = ['10.0.0.1:1']";
    let config = read(text, &[]);
    assert_eq!((config.merge, config.catalog().layers), (Merge::Union, vec![1, 1, 2]));
    let config = read(text, &[("SVCDNS_MERGE", "first")]);
    assert_eq!((config.merge, config.catalog().layers), (Merge::First, vec![1, 2, u8::MAX]));
    assert_errors(&[("merge = 'last'", "1:9: merge: \"last\" is neither union nor first")]);
}

#[test]
fn the_example_of_static_services_is_valid() {
    let text = include_str!("../../../docs/configuration.md");
    let example = text.split_once("<!-- example: static -->\n```toml\n");
    let example = example.and_then(|(_, rest)| rest.split_once("```")).expect("an example").0;
    assert_eq!(statics(&read(example, &[]))[0].endpoints.len(), 2);
}
