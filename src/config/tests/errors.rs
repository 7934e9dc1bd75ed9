//! Error messages about keys that do not belong to a registry.

use super::*;

#[test]
fn unknown_keys_get_a_suggestion() {
    assert_errors(&[
        ("# first\n  lisen = []", "2:3: unknown key `lisen`: did you mean `listen`?"),
        (
            "[etcd]\nuser-name = 'x'",
            "2:1: unknown key `etcd.user-name`: did you mean `etcd.username`?",
        ),
        ("username = 'x'", "1:1: unknown key `username`: did you mean `etcd.username`?"),
        ("[etdc]\nusername = 'x'", "1:2: unknown section [etdc]: did you mean [etcd]?"),
        ("colour = 'red'", "1:1: unknown key `colour`"),
    ]);
}

#[test]
fn unknown_variables_get_a_suggestion() {
    assert_eq!(
        error_of_variable("SVCDNS_LISEN", "x"),
        "unknown environment variable SVCDNS_LISEN: did you mean SVCDNS_LISTEN?"
    );
    assert_eq!(
        error_of_variable("SVCDNS_ETCD_PASSWRD", "secret"),
        "unknown environment variable SVCDNS_ETCD_PASSWRD: did you mean SVCDNS_ETCD_PASSWORD?"
    );
}

#[test]
fn invalid_toml_and_wrong_types_are_rejected() {
    assert_errors(&[
        ("zone = ['svc'", "1:14: unclosed array, expected `]`"),
        ("a = 1\na = 2", "2:1: duplicate key"),
        ("ttl = 5", "1:7: ttl: expected a duration such as \"12s\", found a value of type integer"),
        (
            "version-fallback = 'yes'",
            "1:20: version-fallback: expected true or false, found a value of type string",
        ),
        (
            "listen = [53]",
            "1:11: listen: expected a list of strings, found a value of type integer",
        ),
    ]);
}

#[test]
fn invalid_values_are_rejected() {
    assert_errors(&[
        ("ttl = '1500ms'", "1:7: ttl: 1500ms is not a whole number of seconds, the unit of a TTL"),
        ("ttl = 'soon'", "1:7: ttl: \"soon\" is not a duration such as 12s, 500ms or 1m 30s"),
        ("ttl = '2d'", "1:7: ttl: 2d is outside the range 0s to 1day"),
        ("answers = 0", "1:11: answers: \"0\" is not all, fit or a number from 1 to 65535"),
        ("answers = 'some'", "1:11: answers: \"some\" is not all, fit or a number from 1 to 65535"),
        (
            "listen = [\n  '127.0.0.1:5300',\n  'localhost'\n]",
            "3:3: listen: \"localhost\" is not an address with a port, such as 127.0.0.1:5300 \
             or [::1]:5300",
        ),
        (
            "listen = []",
            "1:1: listen: no address to listen on: add one, for example --listen 127.0.0.1:5300",
        ),
        (
            "listen = ['0.0.0.0:53']",
            "1:11: listen: 0.0.0.0:53 is reachable from other machines, but no access rule \
             says which of them may query: add their networks, for example --allow \
             192.168.0.0/16, or listen on a loopback address such as 127.0.0.1:53",
        ),
        (
            "admin-listen = '0.0.0.0:80'",
            "1:16: admin-listen: 0.0.0.0:80 is reachable from other machines, but this \
             interface has no authentication: use a loopback address",
        ),
        ("zone = []", "1:1: zone: there is no zone to serve: name at least one, such as \"svc\""),
        (
            "zone = ['a', 'sv c']",
            "1:14: zone: the zone \"sv c\" may hold only a-z, 0-9, '-', '_' and dots",
        ),
        ("max-keys = 0", "1:12: max-keys: \"0\" is not an integer from 1 to 268435455"),
        (
            "max-keys = 268435456",
            "1:12: max-keys: \"268435456\" is not an integer from 1 to 268435455",
        ),
        ("docker0 = 'off'", "1:11: docker0: \"off\" is neither drop nor keep"),
        (
            "allow = ['10.0.0.0/33']",
            "1:10: allow: \"10.0.0.0/33\" is not a network such as 10.0.0.0/8 or fd00::/8",
        ),
        (
            "namespace = 'a/b'",
            "1:13: namespace: \"a/b\" is not a segment of a registry key: use one or more \
             characters, without '/' and control characters",
        ),
        (
            "log = 'svcdns=loud'",
            "1:7: log: \"svcdns=loud\" is not a log filter such as info or \
             warn,svcdns::registry=debug: error parsing level filter: expected one of \"off\", \
             \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5",
        ),
    ]);
    assert_eq!(
        error_of_variable("SVCDNS_TTL", "x"),
        "SVCDNS_TTL: ttl: \"x\" is not a duration such as 12s, 500ms or 1m 30s"
    );
}

#[test]
fn invalid_upstreams_are_rejected() {
    assert_errors(&[
        (
            "upstream-order = 'rotate'",
            "1:18: upstream-order: \"rotate\" is neither strict nor fastest",
        ),
        (
            "upstream = ['off', '192.0.2.1']",
            "1:13: upstream: off excludes all other entries: remove off or all others",
        ),
        (
            "upstream = ['192.0.2.1', 'system']",
            "1:26: upstream: system cannot be combined with addresses for all names: remove \
             one or the other, or limit the addresses to domains, as in corp.example=10.0.0.53",
        ),
        (
            "upstream = ['.=192.0.2.1']",
            "1:13: upstream: the root domain contains every name: write 192.0.2.1 without a \
             domain",
        ),
        (
            "upstream = ['a..b=192.0.2.1']",
            "1:13: upstream: \"a..b\" is not a domain name: a label is empty",
        ),
        (
            "upstream = ['corp.example=off']",
            "1:13: upstream: a domain needs the address of an upstream, such as 10.0.0.53, not \
             off",
        ),
        (
            "upstream = ['x.svc=192.0.2.1']",
            "1:13: upstream: x.svc. is in the served zone svc., whose names are never forwarded",
        ),
        (
            "upstream = ['x.onion=192.0.2.1']",
            "1:13: upstream: names in x.onion. are never forwarded: svcdns answers them itself",
        ),
        (
            "upstream = ['127.0.0.1:5300']",
            "1:13: upstream: svcdns would query itself, because it listens on 127.0.0.1:5300: \
             use another upstream or another listen address",
        ),
        (
            "listen = ['127.0.0.1:53']\nupstream = ['192.0.2.1', 'a.example=127.0.0.1']",
            "2:26: upstream: svcdns would query itself, because it listens on 127.0.0.1:53: \
             use another upstream or another listen address",
        ),
        ("cache-size = 'much'", "1:14: cache-size: \"much\" is not a size such as 32MiB or 500kB"),
        ("cache-size = '1TiB'", "1:14: cache-size: 1TiB is more than 64GiB, the fixed limit"),
        ("serve-stale = '1year'", "1:15: serve-stale: 1year is outside the range 0s to 30days"),
        (
            "rebinding-allow = ['a..b']",
            "1:20: rebinding-allow: \"a..b\" is not a domain name: a label is empty",
        ),
    ]);
}

#[test]
fn invalid_encrypted_listeners_are_rejected() {
    assert_errors(&[
        (
            "[tls]\nlisten = ['dns.example']",
            "2:11: tls.listen: \"dns.example\" is not an address with an optional port, such \
             as 192.0.2.1 or [::1]:8853",
        ),
        (
            "[tls]\nlisten = ['127.0.0.1']",
            "2:11: listen: 127.0.0.1:853 is an encrypted listener, which needs a certificate: \
             set --tls-cert-file and --tls-key-file",
        ),
        (
            "[tls]\nlisten = ['127.0.0.1']\ncert-file = 'c.pem'",
            "3:13: tls.cert-file: a certificate needs its private key and vice versa: set \
             tls.key-file",
        ),
        (
            "[tls]\nquic-listen = ['192.0.2.1']\ncert-file = 'c.pem'\nkey-file = 'k.pem'",
            "2:16: listen: 192.0.2.1:853 is reachable from other machines, but no access rule \
             says which of them may query: add their networks, for example --allow \
             192.0.2.0/24, or listen on a loopback address such as 127.0.0.1:853",
        ),
        (
            "listen = ['127.0.0.1:53']\n[tls]\nlisten = ['127.0.0.1:53']\ncert-file = 'c.pem'\n\
             key-file = 'k.pem'",
            "3:11: listen: 127.0.0.1:53 is set for both plain and encrypted DNS: each needs \
             its own port",
        ),
    ]);
}

#[test]
fn a_configured_file_must_exist() {
    let error = Config::load(Some(Path::new("/nowhere/a.toml")), [], &Flags::default());
    assert_eq!(
        error.unwrap_err().to_string(),
        "cannot read the configuration file /nowhere/a.toml: No such file or directory (os error 2)"
    );
    let variable = [(CONFIG_VARIABLE.to_owned(), "/nowhere/b.toml".to_owned())];
    let error = Config::load(None, variable, &Flags::default());
    assert_eq!(
        error.unwrap_err().to_string(),
        "cannot read the configuration file /nowhere/b.toml: No such file or directory (os error 2)"
    );
    Config::load(Some(Path::new("/dev/null")), [], &Flags::default()).unwrap();
}
