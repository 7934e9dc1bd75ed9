//! Tests of parsing and formatting, including that each is the inverse of the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::endpoint::usable;
use super::*;
use crate::service::{Endpoint, Host};

const KEY: &str = "/service/default/default/hello.svc/latest/10.9.0.5:18100";

fn parse_text(key: &str, value: &str) -> Result<Registration, Reason> {
    parse(key.as_bytes(), value.as_bytes()).map_err(|rejected| rejected.reason)
}

fn id(registration: &Registration) -> String {
    let ServiceId { deployment, namespace, name, version } = &registration.id;
    format!("{deployment} {namespace} {name} {version}")
}

fn joined(registration: &Registration) -> String {
    registration.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_key_parser_shares_equal_parts_of_consecutive_keys() {
    let keys = [
        "/service/default/default/a/latest/10.0.0.1:80",
        "/service/default/default/a/latest/10.0.0.2:80",
        "/service///a//10.0.0.3:80",
        "/service/default/default/a/v1/10.0.0.1:80",
        "/service/default/prod/a/v1/10.0.0.1:80",
        "/service/other/prod/a/v1/10.0.0.1:80",
        "/service/other/prod/b/v1/10.0.0.1:80",
        "/service/other/prod",
        "/service/other/prod/b/v1/10.0.0.2:80",
    ];
    let mut parser = KeyParser::default();
    for key in keys {
        for value in ["", "{}", r#"{"weight":1}"#, r#"{"weight":1}"#, "no JSON", r#"{"weight":2}"#]
        {
            let (key, value) = (key.as_bytes(), value.as_bytes());
            assert_eq!(parser.parse(key, value), parse(key, value));
        }
    }
    let [first, second] =
        [keys[0], keys[1]].map(|key| parser.parse(key.as_bytes(), b"{}").unwrap());
    assert!(
        Arc::ptr_eq(&first.metadata, &second.metadata)
            && Arc::ptr_eq(&first.id.name, &second.id.name)
    );
}

#[test]
fn keys_written_by_goframe_are_parsed() {
    let http = parse_text(KEY, r#"{"insecure":true,"protocol":"http"}"#).unwrap();
    assert_eq!(id(&http), "default default hello.svc latest");
    assert_eq!(joined(&http), "10.9.0.5:18100");
    assert_eq!(http.rejected, []);
    assert_eq!(http.metadata.text("protocol").as_deref(), Some("http"));
    assert_eq!(http.metadata.text("insecure").as_deref(), Some("true"));

    let two =
        parse_text("/services/prod/shop/Multi/v1.2.0/192.0.2.2:18001,web-1.Example.:9000", "{}")
            .unwrap();
    assert_eq!(id(&two), "prod shop Multi v1.2.0");
    assert_eq!(joined(&two), "192.0.2.2:18001 web-1.example:9000");
}

#[test]
fn keys_are_split_as_in_goframe() {
    for (key, expected) in [
        ("//service/default/default/a/latest/10.0.0.1:80", Ok("default default a latest")),
        (" /service/default/default/a/latest/10.0.0.1:80/ \n", Ok("default default a latest")),
        ("service/default/default/a/latest/10.0.0.1:80", Ok("default default a latest")),
        (
            "/service/default/default/a/latest/10.0.0.1:80/extra/more",
            Ok("default default a latest"),
        ),
        ("/service/default/default/a//10.0.0.1:80", Ok("default default a latest")),
        ("/service///a//10.0.0.1:80", Ok("default default a latest")),
        ("/service/default/default/a/latest/,", Ok("default default a latest")),
        ("/service/default/default//latest/10.0.0.1:80", Err(Reason::NAME_NOT_DNS)),
        ("/service/default/default/a/b/latest/10.0.0.1:80", Err(TOO_MANY_SEGMENTS)),
        ("/service/default/default/a/latest/0.0.0.0:80/x", Err(TOO_MANY_SEGMENTS)),
        ("/service/default/default/a/latest/", Err(TOO_FEW_SEGMENTS)),
        ("/service/default/default/a/10.0.0.1:80", Err(TOO_FEW_SEGMENTS)),
        ("/service", Err(TOO_FEW_SEGMENTS)),
        ("", Err(TOO_FEW_SEGMENTS)),
        ("///", Err(TOO_FEW_SEGMENTS)),
    ] {
        let found = parse_text(key, "{}").map(|registration| id(&registration));
        assert_eq!(found.as_deref(), expected.as_ref().map(|id| &**id), "{key}");
    }
}

#[test]
fn an_invalid_endpoint_does_not_affect_other_endpoints() {
    let list = "[:0,10.0.0.1:80, 10.0.0.2 : 81 ,,:80,10.0.0.3:70000,[fd00::5]:82,10.0.0.1:80";
    let found = parse_text(&format!("/service/default/default/a/latest/{list}"), "").unwrap();
    assert_eq!(joined(&found), "10.0.0.1:80 10.0.0.2:81 [fd00::5]:82");
    let rejected: Vec<_> =
        found.rejected.iter().map(|rejected| (&*rejected.found, rejected.reason)).collect();
    assert_eq!(
        rejected,
        [
            ("[:0", Reason::HOST_MALFORMED),
            (":80", Reason::ENDPOINT_MALFORMED),
            ("10.0.0.3:70000", Reason::PORT_OUT_OF_RANGE)
        ]
    );
}

#[test]
fn endpoints_are_parsed_strictly() {
    let long_label = "a".repeat(64);
    let longest = format!("{}.{}", ["a".repeat(63).as_str(); 3].join("."), "b".repeat(61));
    assert_eq!(longest.len(), 253);
    for (text, expected) in [
        ("10.0.0.1:1", Ok("10.0.0.1:1")),
        ("127.0.0.1:65535", Ok("127.0.0.1:65535")),
        ("169.254.1.1:80", Ok("169.254.1.1:80")),
        ("[::1]:80", Ok("[::1]:80")),
        ("[FD00:0::5]:80", Ok("[fd00::5]:80")),
        ("[::ffff:10.0.0.1]:80", Ok("10.0.0.1:80")),
        ("localhost:18005", Ok("localhost:18005")),
        ("Web-1.Example.:9000", Ok("web-1.example:9000")),
        ("0.pool.example:9000", Ok("0.pool.example:9000")),
        ("fd00:80", Ok("fd00:80")),
        (&format!("{longest}:80"), Ok(&*format!("{longest}:80"))),
        ("latest", Err(Reason::ENDPOINT_MALFORMED)),
        ("10.0.0.1", Err(Reason::ENDPOINT_MALFORMED)),
        (":80", Err(Reason::ENDPOINT_MALFORMED)),
        (":", Err(Reason::ENDPOINT_MALFORMED)),
        ("10.0.0.1:0", Err(Reason::PORT_OUT_OF_RANGE)),
        ("10.0.0.1:70000", Err(Reason::PORT_OUT_OF_RANGE)),
        ("10.0.0.1:65536", Err(Reason::PORT_OUT_OF_RANGE)),
        ("10.0.0.1:99999999999999999999", Err(Reason::PORT_OUT_OF_RANGE)),
        ("10.0.0.1:abc", Err(Reason::PORT_OUT_OF_RANGE)),
        ("10.0.0.1:", Err(Reason::PORT_OUT_OF_RANGE)),
        ("10.0.0.1:+80", Err(Reason::PORT_OUT_OF_RANGE)),
        ("10.0.0.1:-80", Err(Reason::PORT_OUT_OF_RANGE)),
        ("10.0.0.1:0x50", Err(Reason::PORT_OUT_OF_RANGE)),
        ("10.0.0.1:８０", Err(Reason::PORT_OUT_OF_RANGE)),
        ("fd00:0", Err(Reason::PORT_OUT_OF_RANGE)),
        ("[:0", Err(Reason::HOST_MALFORMED)),
        ("[fd00:0", Err(Reason::HOST_MALFORMED)),
        ("[]:80", Err(Reason::HOST_MALFORMED)),
        ("[10.0.0.1]:80", Err(Reason::HOST_MALFORMED)),
        ("::1:80", Err(Reason::HOST_MALFORMED)),
        ("fd00::1:80", Err(Reason::HOST_MALFORMED)),
        ("[fe80::1%eth0]:80", Err(Reason::HOST_MALFORMED)),
        ("fe80::1%eth0:80", Err(Reason::HOST_MALFORMED)),
        ("999.1.1.1:80", Err(Reason::HOST_MALFORMED)),
        ("010.0.0.1:80", Err(Reason::HOST_MALFORMED)),
        ("10.0.0.01:80", Err(Reason::HOST_MALFORMED)),
        ("10.0.0.1.:80", Err(Reason::HOST_MALFORMED)),
        ("10.1:80", Err(Reason::HOST_MALFORMED)),
        ("1:80", Err(Reason::HOST_MALFORMED)),
        ("0x7f.1:80", Err(Reason::HOST_MALFORMED)),
        ("0x7f000001:80", Err(Reason::HOST_MALFORMED)),
        ("0x:80", Err(Reason::HOST_MALFORMED)),
        ("host.5:80", Err(Reason::HOST_MALFORMED)),
        ("http://10.0.0.1:80", Err(Reason::HOST_MALFORMED)),
        (".:80", Err(Reason::HOST_MALFORMED)),
        ("a..b:80", Err(Reason::HOST_MALFORMED)),
        (".a:80", Err(Reason::HOST_MALFORMED)),
        ("-a:80", Err(Reason::HOST_MALFORMED)),
        ("a-:80", Err(Reason::HOST_MALFORMED)),
        ("a_b:80", Err(Reason::HOST_MALFORMED)),
        ("a b:80", Err(Reason::HOST_MALFORMED)),
        ("a\0b:80", Err(Reason::HOST_MALFORMED)),
        ("bücher.example:80", Err(Reason::HOST_MALFORMED)),
        (&format!("{long_label}:80"), Err(Reason::HOST_MALFORMED)),
        (&format!("a{longest}:80"), Err(Reason::HOST_MALFORMED)),
        ("0.0.0.0:80", Err(Reason::ADDRESS_UNUSABLE)),
        ("0.1.2.3:80", Err(Reason::ADDRESS_UNUSABLE)),
        ("224.0.0.1:80", Err(Reason::ADDRESS_UNUSABLE)),
        ("239.255.255.255:80", Err(Reason::ADDRESS_UNUSABLE)),
        ("240.0.0.1:80", Err(Reason::ADDRESS_UNUSABLE)),
        ("255.255.255.255:80", Err(Reason::ADDRESS_UNUSABLE)),
        ("[::]:80", Err(Reason::ADDRESS_UNUSABLE)),
        ("[ff02::1]:80", Err(Reason::ADDRESS_UNUSABLE)),
        ("[::ffff:0.0.0.0]:80", Err(Reason::ADDRESS_UNUSABLE)),
        ("[::ffff:224.0.0.1]:80", Err(Reason::ADDRESS_UNUSABLE)),
    ] {
        let found = parse_endpoint(text).map(|endpoint| endpoint.to_string());
        assert_eq!(found.as_deref(), expected.as_ref().map(|text| &**text), "{text}");
    }
}

#[test]
fn values_are_json_objects_or_empty() {
    for (value, expected) in [
        ("", Ok(0)),
        ("  \n", Ok(0)),
        ("null", Ok(0)),
        ("{}", Ok(0)),
        (r#" {"a":1,"b":{"c":[]}} "#, Ok(2)),
        (r#"{"a":1,"a":2}"#, Ok(1)),
        ("[]", Err(VALUE_NOT_JSON)),
        ("5", Err(VALUE_NOT_JSON)),
        ("\"text\"", Err(VALUE_NOT_JSON)),
        ("true", Err(VALUE_NOT_JSON)),
        ("{", Err(VALUE_NOT_JSON)),
        ("{} x", Err(VALUE_NOT_JSON)),
        ("hello", Err(VALUE_NOT_JSON)),
        ("{\"a\":1e999}", Err(VALUE_NOT_JSON)),
    ] {
        assert_eq!(
            parse_text(KEY, value).map(|registration| registration.metadata.len()),
            expected,
            "{value}"
        );
    }
    let last = parse_text(KEY, r#"{"weight":1,"weight":7}"#).unwrap();
    assert_eq!(last.metadata.weight(), 7);
    assert_eq!(parse(KEY.as_bytes(), b"{\"a\":\"\xff\"}").unwrap_err().reason, VALUE_NOT_JSON);
}

#[test]
fn long_keys_and_values_are_rejected_before_parsing() {
    let filler = |size: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(size - 8));
    assert_eq!(parse_text(KEY, &filler(MAX_VALUE_BYTES)).unwrap().metadata.len(), 1);
    assert_eq!(parse_text(KEY, &filler(MAX_VALUE_BYTES + 1)), Err(VALUE_TOO_LONG));
    assert_eq!(parse_text(KEY, &"x".repeat(1 << 20)), Err(VALUE_TOO_LONG));
    assert_eq!(parse_text(KEY, &"[".repeat(20_000)), Err(VALUE_NOT_JSON));
    assert_eq!(
        parse_text(KEY, &format!("{{\"a\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000))),
        Err(VALUE_NOT_JSON)
    );

    let head = "/service/default/default/";
    let long =
        |size: usize| format!("{head}{}/latest/10.0.0.1:80", "a".repeat(size - head.len() - 19));
    assert_eq!(long(MAX_KEY_BYTES).len(), MAX_KEY_BYTES);
    assert!(parse_text(&long(MAX_KEY_BYTES), "").is_ok());
    assert_eq!(parse_text(&long(MAX_KEY_BYTES + 1), ""), Err(KEY_TOO_LONG));
    assert_eq!(
        parse(b"/service/default/default/\xff/latest/10.0.0.1:80", b"").unwrap_err().reason,
        KEY_NOT_TEXT
    );
}

#[test]
fn the_parser_accepts_names_that_are_invalid_in_dns() {
    for name in ["..svc", "www.google.com", "_x", "a\u{7}b", " a ", "Ü"] {
        assert_eq!(
            *parse_text(&format!("/service/default/default/{name}/latest/10.0.0.1:80"), "")
                .unwrap()
                .id
                .name,
            *name
        );
    }
}

#[test]
fn file_names_that_goframe_cannot_read_back_are_parsed() {
    for (name, expected) in [
        (
            "service#default#default#demo#latest#10.9.0.5-8000,172.17.0.1-8000",
            Ok("default default demo latest 10.9.0.5:8000 172.17.0.1:8000"),
        ),
        (
            "svcs#prod#my-shop#user-svc#v1-rc#web-1.example-9000",
            Ok("prod my-shop user-svc v1-rc web-1.example:9000"),
        ),
        (
            "service#default#default#old#latest#127.0.0.1:8888",
            Ok("default default old latest 127.0.0.1:8888"),
        ),
        (
            "service#default#default#old#latest#web-1.example:9000",
            Ok("default default old latest web-1.example:9000"),
        ),
        (
            "service#default#default#six#latest#[fd00--5]-80",
            Ok("default default six latest [fd00::5]:80"),
        ),
        ("service###a##10.0.0.1-80", Ok("default default a latest 10.0.0.1:80")),
        ("service#default#shop#a#b#v1-rc#10.9.0.5-39645", Err(TOO_MANY_SEGMENTS)),
        ("service#default#shop#a#b#v1-2#10.9.0.5-39645", Err(TOO_MANY_SEGMENTS)),
        ("service#default#default##latest#10.0.0.1-80", Err(Reason::NAME_NOT_DNS)),
        ("README.txt", Err(TOO_FEW_SEGMENTS)),
    ] {
        let found = parse_file_name(name.as_bytes(), b"")
            .map(|found| format!("{} {}", id(&found), joined(&found)));
        assert_eq!(found.as_deref().map_err(|rejected| rejected.reason), expected, "{name}");
    }
    let port =
        parse_file_name(b"service#default#default#a#latest#10.0.0.1-0,10.0.0.2-80", b"{}").unwrap();
    assert_eq!(
        (joined(&port).as_str(), port.rejected[0].reason),
        ("10.0.0.2:80", Reason::PORT_OUT_OF_RANGE)
    );
    assert_eq!(
        parse_file_name(b"service#default#default#\xff#latest#10.0.0.1-0", b"{}")
            .unwrap_err()
            .reason,
        KEY_NOT_TEXT
    );
    assert_eq!(
        parse_file_name(b"service#default#default#a#latest#10.0.0.1-80", b"[]").unwrap_err().reason,
        VALUE_NOT_JSON
    );
}

#[test]
fn update_at_is_not_part_of_the_metadata() {
    let content = br#"{"UpdateAt":"2026-11-22 23:22:29","insecure":true,"protocol":"http"}"#;
    let found = parse_file_name(b"service#default#default#a#latest#10.0.0.1-80", content).unwrap();
    assert_eq!(value(&found.metadata), r#"{"insecure":true,"protocol":"http"}"#);
    assert_eq!(file_content(&found.metadata, "2026-11-22 23:22:29").as_bytes(), content);
}

#[test]
fn values_and_keys_are_formatted_as_in_go() {
    let metadata = |json: &str| Metadata::new(serde_json::from_str(json).unwrap());
    for (json, written) in [
        ("{}", "{}"),
        (r#"{"protocol": "http", "insecure": true}"#, r#"{"insecure":true,"protocol":"http"}"#),
        (r#"{"b":{"d":1,"c":null},"B":[1,2]}"#, r#"{"B":[1,2],"b":{"c":null,"d":1}}"#),
        (r#"{"<k>":"a&b"}"#, r#"{"\u003ck\u003e":"a\u0026b"}"#),
        (r#"{"k":"a\u2028b\u2029\"\\\n"}"#, r#"{"k":"a\u2028b\u2029\"\\\n"}"#),
        (r#"{"k":"ü"}"#, r#"{"k":"ü"}"#),
    ] {
        assert_eq!(value(&metadata(json)), written);
    }
    let registration = parse_text(
        "/service/prod/shop/user-svc/v1-rc/10.0.0.1:80,[fd00::5]:81,web-1.example:82",
        "",
    )
    .unwrap();
    assert_eq!(
        key("service", &registration.id, &registration.endpoints),
        "/service/prod/shop/user-svc/v1-rc/10.0.0.1:80,[fd00::5]:81,web-1.example:82"
    );
    assert_eq!(
        file_name("service", &registration.id, &registration.endpoints),
        "service#prod#shop#user-svc#v1-rc#10.0.0.1-80,[fd00--5]-81,web-1.example-82"
    );
}

fn segment() -> impl Strategy<Value = String> {
    "[A-Za-z0-9._:, -]{0,10}[A-Za-z0-9_-]"
}

fn host() -> impl Strategy<Value = Host> {
    prop_oneof![
        any::<Ipv4Addr>()
            .prop_map(IpAddr::V4)
            .prop_filter_map("unusable", |address| usable(address).ok()),
        any::<Ipv6Addr>()
            .prop_map(|address| address.to_canonical())
            .prop_filter_map("unusable", |address| usable(address).ok()),
        "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?\\.[a-z][a-z0-9]{0,5}"
            .prop_map(|name| Host::Name(name.into())),
    ]
}

fn registration() -> impl Strategy<Value = (ServiceId, Vec<Endpoint>, Metadata)> {
    let id = (segment(), segment(), segment(), segment()).prop_map(
        |(deployment, namespace, name, version)| ServiceId {
            deployment: deployment.into(),
            namespace: namespace.into(),
            name: name.into(),
            version: version.into(),
        },
    );
    let endpoint = (host(), 1..=u16::MAX).prop_map(|(host, port)| Endpoint { host, port });
    let endpoints =
        proptest::collection::hash_set(endpoint, 1..6).prop_map(|set| set.into_iter().collect());
    let metadata = proptest::collection::btree_map(
        any::<String>()
            .prop_filter("removed from the metadata of files", |key| key != UPDATE_AT)
            .prop_map(Box::from),
        prop_oneof![
            any::<String>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from)
        ],
        0..5,
    )
    .prop_map(Metadata::new);
    (id, endpoints, metadata)
}

proptest! {
    #[test]
    fn formatted_registrations_parse_back((id, endpoints, metadata) in registration()) {
        let expected = Registration {
            id,
            endpoints,
            rejected: Vec::new(),
            metadata: Arc::new(metadata),
            overrides: false,
        };
        let Registration { id, endpoints, metadata, .. } = &expected;
        let key = key("service", id, endpoints);
        let from_key = parse(key.as_bytes(), value(metadata).as_bytes());
        prop_assert_eq!(from_key.as_ref(), Ok(&expected));
        let name = file_name("service", id, endpoints);
        let content = file_content(metadata, "2026-11-22 23:22:29");
        let from_file = parse_file_name(name.as_bytes(), content.as_bytes());
        prop_assert_eq!(from_file.as_ref(), Ok(&expected));
    }

    #[test]
    fn arbitrary_input_does_not_panic(key in any::<Vec<u8>>(), value in any::<Vec<u8>>()) {
        let _ = parse(&key, &value);
        let _ = parse_file_name(&key, &value);
    }

    #[test]
    fn input_similar_to_keys_does_not_panic(
        list in "[\\[\\]:,.#/0-9a-fx% -]{0,40}",
        value in "[\\[\\]{}\":,a0]{0,20}",
    ) {
        for head in ["/service/default/default/a/latest/", "service#default#default#a#latest#"] {
            let key = format!("{head}{list}");
            for parse in [parse, parse_file_name] {
                let Ok(found) = parse(key.as_bytes(), value.as_bytes()) else { continue };
                for Endpoint { host, port } in &found.endpoints {
                    prop_assert!(*port > 0);
                    prop_assert!(host.address().is_none_or(|address| usable(address).is_ok()));
                }
            }
        }
    }
}
