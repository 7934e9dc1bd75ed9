//! The section `[checks]`.

use std::time::Duration;

use super::*;
use crate::service::NamePattern;

#[test]
fn checks_are_off_by_default() {
    assert!(read("", &[]).checks.is_none());
    assert!(read("[checks]\npath = '/health'", &[]).checks.is_none());
    assert!(read("", &[]).catalog().checks.is_none());
}

#[test]
fn checks_have_rules_and_settings() {
    let config = read(
        "[checks]\nenabled = true\nnames = ['Hello*', 'db']\nprotocols = ['http']\n\
         path = '/health?full=1'\ninterval = '5s'\ntimeout = '2s'\nrise = 1\nfall = 4\njitter = 0\n\
         max-per-second = 50",
        &[],
    );
    let CheckConfig { rules, settings } = config.checks.clone().unwrap();
    assert_eq!(rules.names, ["hello*", "db"].map(NamePattern::new));
    assert_eq!(rules.protocols, ["http"]);
    assert!(rules.http);
    let expected = crate::checks::Settings {
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(2),
        rise: 1,
        fall: 4,
        jitter: 0,
        max_per_second: 50,
        path: "/health?full=1".to_owned(),
    };
    assert_eq!(settings, expected);
    assert!(config.catalog().checks.is_some());
    let CheckConfig { rules, .. } = read("", &[("SVCDNS_CHECKS", "true")]).checks.unwrap();
    assert_eq!((rules.names, rules.http), (vec![NamePattern::new("*")], false));
}

#[test]
fn invalid_checks_are_rejected() {
    assert_errors(&[
        (
            "[checks]\npath = 'health'",
            "2:8: checks.path: \"health\" is not a path such as /health, percent-encoded",
        ),
        (
            "[checks]\npath = '/a b'",
            "2:8: checks.path: \"/a b\" is not a path such as /health, percent-encoded",
        ),
        (
            "[checks]\nnames = ['a', '']",
            "2:15: checks.names: \"\" is not the name of a service, or a pattern such as hello*",
        ),
        (
            "[checks]\nprotocols = ['h t']",
            "2:14: checks.protocols: \"h t\" is not a protocol such as http or grpc",
        ),
        (
            "[checks]\ninterval = '2s'\ntimeout = '3s'",
            "3:11: checks.timeout: a check may not take longer than checks.interval, which is 2s: \
             shorten the timeout or lengthen the interval",
        ),
        ("[checks]\ninterval = '0s'", "2:12: checks.interval: 0s is outside the range 100ms to 1h"),
        ("[checks]\nrise = 0", "2:8: checks.rise: \"0\" is not an integer from 1 to 100"),
        ("[checks]\njitter = 101", "2:10: checks.jitter: \"101\" is not an integer from 0 to 100"),
        (
            "[checks]\nmax-per-second = 100000",
            "2:18: checks.max-per-second: \"100000\" is not an integer from 1 to 10000",
        ),
        ("[check]\nenabled = true", "1:2: unknown section [check]: did you mean [checks]?"),
        (
            "[checks]\nmax-persecond = 1",
            "2:1: unknown key `checks.max-persecond`: did you mean `checks.max-per-second`?",
        ),
    ]);
}
