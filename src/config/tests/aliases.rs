//! The section `[alias]`.

use super::*;
use crate::answer::Aliases;

/// Returns the aliases of a file, each with its last target.
fn targets(text: &str) -> Vec<(String, String)> {
    let aliases: Aliases = read(text, &[]).answer(&[]).aliases;
    aliases.iter().map(|(base, target)| (base.to_owned(), target.to_string())).collect()
}

#[test]
fn a_target_is_a_service_or_a_complete_name_outside_the_zones() {
    let zones = "zone = ['svc', 'corp.example']\n[alias]\n";
    for (written, target) in [
        ("hello", "hello"),
        ("Hello", "hello"),
        ("hello.svc", "hello"),
        ("hello.svc.", "hello"),
        ("hello.CORP.example", "hello"),
        ("a.b.svc", "a.b"),
        ("a.b.corp.example", "a.b"),
        ("a.b", "a.b."),
        ("DB.example.com", "db.example.com."),
        ("db.example.com.", "db.example.com."),
        ("_db._tcp.example.com", "_db._tcp.example.com."),
        ("example", "example"),
        ("printer.", "printer."),
        ("corp", "corp"),
    ] {
        let found = targets(&format!("{zones}www = '{written}'"));
        assert_eq!(found, [("www".to_owned(), target.to_owned())], "{written}");
    }
}

#[test]
fn an_alias_is_a_name_in_a_zone() {
    let zones = "zone = ['svc', 'corp.example']\n[alias]\n";
    for (written, base) in [
        ("www", "www"),
        ("'WWW'", "www"),
        ("'www.svc'", "www"),
        ("'www.svc.'", "www"),
        ("'www.corp.example'", "www"),
        ("'v1.hello.svc'", "v1.hello"),
        ("10-0-0-1", "10-0-0-1"),
    ] {
        let found = targets(&format!("{zones}{written} = 'hello'"));
        assert_eq!(found, [(base.to_owned(), "hello".to_owned())], "{written}");
    }
    assert_eq!(targets("[alias]"), []);
}

#[test]
fn aliases_of_aliases_have_the_last_target() {
    let text = "[alias]\na = 'b.svc'\nb = 'c'\nc = 'db.example.'\n";
    let expected = ["a", "b", "c"].map(|base| (base.to_owned(), "db.example.".to_owned()));
    assert_eq!(targets(text), expected);
}

#[test]
fn the_example_in_the_documentation_is_valid() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/registries/aliases.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, example) = text.split_once("<!-- example: aliases -->\n```toml\n").unwrap();
    let found = targets(example.split("```").next().unwrap());
    let expected = [("db", "db.example.com."), ("v1.shop", "shop-old"), ("www", "hello")]
        .map(|(base, target)| (base.to_owned(), target.to_owned()));
    assert_eq!(found, expected);
}

#[test]
fn aliases_are_shown_as_written() {
    let config = read("[alias]\n'www.svc' = 'Hello'\nb = 'db.example.'", &[]);
    let origin = |alias: &ConfiguredAlias| match &alias.origin {
        Origin::File { line, column, .. } => (*line, *column),
        other => panic!("{other}"),
    };
    let shown: Vec<_> =
        config.aliases.iter().map(|alias| (&*alias.path, alias.line(), origin(alias))).collect();
    assert_eq!(
        shown,
        [
            ("alias.\"www.svc\"", "\"www.svc\" = \"Hello\"".to_owned(), (2, 1)),
            ("alias.b", "\"b\" = \"db.example.\"".to_owned(), (3, 1)),
        ]
    );
}

#[test]
fn bad_aliases_are_rejected() {
    let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(58)].join(".");
    let too_long = (
        format!("'{long}.svc' = 'hello'"),
        format!(
            "2:1: alias.\"{long}.svc\": \"{long}.svc\" is not a domain name: the name is longer \
             than 255 bytes"
        ),
    );
    assert_errors_after(
        "[alias]\n",
        &[
            (
                "www = 7",
                "2:7: alias.www: expected the name of a service or host, such as \"hello\", found \
                 a value of type integer",
            ),
            (
                "www.svc = 'hello'",
                "2:1: alias.www: a name with dots must be in quotes, as in \"www.svc\" = \"hello\"",
            ),
            ("ns = 'a'", "2:1: alias.ns: \"ns\" cannot be a service: the name is reserved"),
            (
                "'DNS-Version.svc' = 'a'",
                "2:1: alias.\"DNS-Version.svc\": \"DNS-Version.svc\" cannot be a service: the name \
                 is reserved",
            ),
            (
                "www = 'ns.svc'",
                "2:7: alias.www: \"ns.svc\" cannot be a service: the name is reserved",
            ),
            ("www = 'svc.'", "2:7: alias.www: \"svc.\" cannot be a service: the name is reserved"),
            ("www = ''", "2:7: alias.www: \"\" is not a domain name: a label is empty"),
            ("www = 'a..b'", "2:7: alias.www: \"a..b\" is not a domain name: a label is empty"),
            (
                "'*' = 'hello'",
                "2:1: alias.\"*\": \"*\" is not the name of a service or host, which has only a-z, \
                 0-9, '-', '_' and dots",
            ),
            (
                "www = 'http://hello'",
                "2:7: alias.www: \"http://hello\" is not the name of a service or host, which has \
                 only a-z, 0-9, '-', '_' and dots",
            ),
            (
                "www = '.'",
                "2:7: alias.www: \".\" is not the name of a service or host, which has only a-z, \
                 0-9, '-', '_' and dots",
            ),
            (
                "_www = 'hello'",
                "2:1: alias._www: \"_www\" cannot be a service: the name is not a DNS name: each \
                 label must have 1 to 63 characters of a-z, 0-9, '-' and '_', and not begin with \
                 '_'",
            ),
            (
                "www = '10.0.0.7'",
                "2:7: alias.www: \"10.0.0.7\" is an address: an alias leads to a name; a \
                 [[static]] service has addresses",
            ),
            (
                "'www.example.com' = 'hello'",
                "2:1: alias.\"www.example.com\": www.example.com. is in no served zone, so it \
                 cannot be an alias: write www.example.com.svc, for example",
            ),
            (&too_long.0, &too_long.1),
        ],
    );
    assert_errors(&[
        (
            "alias = 'www'",
            "1:1: alias: expected one section [alias] with lines such as \"www\" = \"hello\"",
        ),
        (
            "[[alias]]\nwww = 'hello'",
            "1:3: alias: expected one section [alias] with lines such as \"www\" = \"hello\"",
        ),
        ("[aliases]\nwww = 'a'", "1:2: unknown section [aliases]: did you mean [alias]?"),
    ]);
}

#[test]
fn loops_and_repeated_aliases_are_rejected() {
    assert_errors_after(
        "[alias]\n",
        &[
            ("www = 'WWW.svc.'", "2:7: alias.www: the aliases lead in a circle: www, www"),
            (
                "a = 'hello'\nb = 'c'\nc = 'b'",
                "3:5: alias.b: the aliases lead in a circle: b, c, b",
            ),
            (
                "www = 'hello'\n'WWW.svc' = 'other'",
                "3:1: alias.\"WWW.svc\": alias.www at svcdns.toml:2:1 is the same name",
            ),
            (
                "a = 'b'\nb = 'c'\nc = 'd'\nd = 'e'\ne = 'f'\nf = 'g'\ng = 'h'\nh = 'i'\ni = 'j'",
                "2:5: alias.a: more than 8 aliases lead from one to the next: a, b, c, d, e, f, g, \
                 h, i, j; name the last target",
            ),
        ],
    );
}
