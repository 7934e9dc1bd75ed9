//! Tests of conflicts between names of services.

use super::*;

fn conflicts_of(keys: &[&str]) -> Vec<(String, ConflictKind, String, String)> {
    let mut test = TestCatalog::new();
    for text in keys {
        test.put(text, 0, 0);
    }
    test.settle();
    let catalog = &test.catalog;
    let find = |base: &str| catalog.service(base).cloned();
    conflicts(catalog.services(), find, |id| format!("r{id}"), &zones(), "d", "n")
        .into_iter()
        .map(|conflict| (conflict.name, conflict.kind, conflict.winner, conflict.loser))
        .collect()
}

#[test]
fn shadowed_spellings_are_conflicts() {
    let keys = [
        "/s/d/n/hello/v1/10.0.0.1:80",
        "/s/d/n/hello/v2/10.0.0.1:80",
        "/s/d/n/Hello.SVC/v1/10.0.0.1:80",
        "/s/d/n/hello.internal/v1/10.0.0.1:80",
        "/s/d/m/hello/v1/10.0.0.1:80",
    ];
    let shadowed = |winner: &str, loser: &str| {
        ("hello".to_owned(), ConflictKind::Shadowed, winner.to_owned(), loser.to_owned())
    };
    assert_eq!(
        conflicts_of(&keys),
        [shadowed("hello.svc", "hello"), shadowed("hello.svc", "hello.internal")]
    );
    // A spelling without a usable endpoint neither wins nor loses.
    let keys = [
        "/s/d/n/hello.svc/v1/",
        "/s/d/n/hello.internal/v1/10.0.0.1:80",
        "/s/d/n/hello/v1/10.0.0.2:80",
    ];
    assert_eq!(conflicts_of(&keys), [shadowed("hello.internal", "hello")]);
    assert_eq!(conflicts_of(&keys[..2]), []);
}

#[test]
fn preceded_registries_are_conflicts() {
    let layers = Merge::First.layers([false, false, true]);
    let mut test = TestCatalog::with(|settings| settings.layers = layers, 3);
    for (registry, text) in [
        (1, "/s/d/n/hello/v1/10.0.0.1:80"),
        (2, "/s/d/n/hello.svc/v1/10.0.0.1:80"),
        (0, "/s/d/m/hello/v1/10.0.0.2:80"),
        (1, "/s/d/m/hello.svc/v1/10.0.0.3:80"),
        (2, "/s/d/m/hello/v1/10.0.0.2:80"),
        (1, "/s/d/n/alone/v1/10.0.0.1:80"),
    ] {
        test.apply(registry, Change::Put(put(text, 0, 0)));
    }
    test.settle();
    let catalog = &test.catalog;
    let find = |base: &str| catalog.service(base).cloned();
    let found = conflicts(catalog.services(), find, |id| format!("r{id}"), &zones(), "d", "n");
    let found: Vec<_> = found
        .iter()
        .map(|found| (&*found.name, found.kind, &*found.namespace, &*found.winner, &*found.loser))
        .collect();
    let preceded =
        |namespace, winner, loser| ("hello", ConflictKind::Preceded, namespace, winner, loser);
    let expected = [
        preceded("m", "registry r0", "registry r1"),
        preceded("m", "registry r0", "registry r2"),
        preceded("n", "registry r1", "registry r2"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn services_and_names_that_an_alias_takes_are_conflicts() {
    let mut test = TestCatalog::new();
    for text in [
        "/s/d/n/hello/v1/10.0.0.1:80",
        "/s/d/n/hello.svc/v1/10.0.0.1:80",
        "/s/d/prod/hello.svc/v1/10.0.0.1:80",
        "/s/d/n/other/v1/10.0.0.2:80",
        "/s/d/n/www.prod/v1/10.0.0.3:80",
    ] {
        test.put(text, 0, 0);
    }
    test.settle();
    let service = |base: &str| test.catalog.service(base).cloned();
    let hello = service("hello").unwrap();
    let of = |base: &str| Arc::new(Service::alias(base, Arc::clone(&hello)));
    let aliases = [of("www"), of("hello.prod"), of("v1.other")];
    let find = |base: &str| {
        let alias = aliases.iter().find(|alias| alias.has_base(base)).cloned();
        alias.or_else(|| service(base))
    };
    let services = test.catalog.services().chain(&aliases);
    let found: Vec<_> = conflicts(services, find, |id| format!("r{id}"), &zones(), "d", "n")
        .into_iter()
        .filter(|conflict| conflict.kind == ConflictKind::Hidden)
        .map(|conflict| (conflict.name, conflict.winner, conflict.loser))
        .collect();
    let hidden = |name: &str, winner: &str, loser: &str| {
        (name.to_owned(), winner.to_owned(), loser.to_owned())
    };
    assert_eq!(
        found,
        [
            hidden(
                "10-0-0-1.hello.prod",
                "instance 10-0-0-1 of alias hello.prod",
                "instance 10-0-0-1 of service hello in namespace prod"
            ),
            hidden("hello.prod", "alias hello.prod", "service hello in namespace prod"),
            hidden(
                "v1.hello.prod",
                "version v1 of alias hello.prod",
                "version v1 of service hello in namespace prod"
            ),
            hidden("v1.other", "alias v1.other", "version v1 of service other"),
            hidden(
                "v1.www.prod",
                "version v1 of service www.prod",
                "version v1 of alias www in namespace prod"
            ),
            hidden("www.prod", "service www.prod", "alias www in namespace prod"),
        ]
    );
    let replaced: Vec<_> = conflicts_with_alias(&hello, "other", &zones())
        .into_iter()
        .map(|conflict| (conflict.kind, conflict.namespace, conflict.winner, conflict.loser))
        .collect();
    let lost = |namespace: &str, loser: &str| {
        (ConflictKind::Alias, namespace.into(), "alias of other".to_owned(), loser.to_owned())
    };
    assert_eq!(replaced, [lost("n", "hello.svc"), lost("n", "hello"), lost("prod", "hello.svc")]);
}

#[test]
fn names_with_two_interpretations_are_conflicts() {
    let hidden = |name: &str, winner: &str, loser: &str| {
        (name.to_owned(), ConflictKind::Hidden, winner.to_owned(), loser.to_owned())
    };
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/v1/10.0.0.1:80", "/s/d/prod/hello/v1/10.0.0.1:80"]),
        []
    );
    assert_eq!(
        conflicts_of(&["/s/d/prod/hello/v1/10.0.0.1:80", "/s/d/n/hello.prod/v2/10.0.0.2:80"]),
        [hidden("hello.prod", "service hello.prod", "service hello in namespace prod")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/v1.2/10.0.0.1:80", "/s/d/n/v1.2.hello/v2/10.0.0.2:80"]),
        [hidden("v1.2.hello", "service v1.2.hello", "version v1.2 of service hello")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/prod/v1/x/10.0.0.1:80", "/s/d/n/prod/v1/10.0.0.2:80"]),
        [hidden("v1.prod", "service v1 in namespace prod", "version v1 of service prod")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/10-0-0-1/10.0.0.1:80"]),
        [hidden(
            "10-0-0-1.hello",
            "instance 10-0-0-1 of service hello",
            "version 10-0-0-1 of service hello"
        )]
    );
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/v1/10.0.0.1:80", "/s/d/n/10-0-0-1.hello/v2/10.0.0.2:80"]),
        [hidden("10-0-0-1.hello", "service 10-0-0-1.hello", "instance 10-0-0-1 of service hello")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/a.b/10.0.0.1:80", "/s/d/n/b.hello/a/10.0.0.2:80"]),
        [hidden("a.b.hello", "version a of service b.hello", "version a.b of service hello")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/has.dot/hello/v 1/10.0.0.1:80", "/s/e//hello/_v/10.0.0.1:80"]),
        [],
        "no query can have such names"
    );
}
