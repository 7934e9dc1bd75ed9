//! Properties that hold for all keys, names and messages.

use proptest::prelude::*;

use super::*;

/// Returns one of a few labels, so that names often collide.
fn label() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "hello", "prod", "v1", "a", "b", "latest", "default", "blue", "2", "0", "10-0-0-1",
    ])
}

pub(super) fn key() -> impl Strategy<Value = (String, String)> {
    let name =
        (prop::collection::vec(label(), 1..3), prop::sample::select(vec!["", ".svc", ".internal"]));
    let version = prop::sample::select(vec!["latest", "v1", "v1.2.0", "hello", "10-0-0-2"]);
    let endpoint = (
        prop::sample::select(vec![
            "10.0.0.1",
            "10.0.0.2",
            "172.17.0.1",
            "[fd00::5]",
            "web.example",
            "localhost",
        ]),
        80u16..83,
    );
    let scope =
        prop::sample::select(vec!["default/default", "default/prod", "blue/prod", "blue/default"]);
    let value =
        prop::sample::select(vec!["{}", HTTP, r#"{"weight":2,"env":"a.b"}"#, r#"{"weight":0}"#]);
    (scope, name, version, prop::collection::vec(endpoint, 0..4), value).prop_map(
        |(scope, (labels, suffix), version, endpoints, value)| {
            let endpoints: Vec<_> =
                endpoints.iter().map(|(host, port)| format!("{host}:{port}")).collect();
            let endpoints =
                if endpoints.is_empty() { "10.0.0.9:9".to_owned() } else { endpoints.join(",") };
            (
                format!("/service/{scope}/{}{suffix}/{version}/{endpoints}", labels.join(".")),
                value.to_owned(),
            )
        },
    )
}

pub(super) fn query_name() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "hello",
        "prod",
        "v1",
        "a",
        "b",
        "latest",
        "default",
        "blue",
        "2",
        "0",
        "10-0-0-1",
        "10-0-0-2",
        "fd00--5",
        "_tcp",
        "_http",
        "_env",
        "_version",
        "_namespace",
        "_port",
        "80",
        "_hello",
        "ns",
        "_80",
    ]);
    (prop::collection::vec(word, 0..5), prop::sample::select(vec!["svc", "internal"])).prop_map(
        |(labels, zone)| {
            let mut labels = labels;
            labels.push(zone);
            labels.join(".")
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Both paths agree after any changes, as does a table built at once.
    #[test]
    fn the_fast_and_the_full_path_agree_after_any_changes(
        steps in prop::collection::vec((key(), any::<bool>()), 1..25),
        names in prop::collection::vec(
            (
                query_name(),
                prop::sample::select(vec![1u16, 28, 33, 16, 255, 6, 15]),
                any::<u64>(),
            ),
            30,
        ),
    ) {
        let mut harness = Harness::of(&[]);
        let mut registered = BTreeMap::new();
        for ((key, value), is_put) in &steps {
            if *is_put {
                registered.insert(key.clone(), value.clone());
                harness.apply([put(key, value)]);
            } else if registered.remove(key).is_some() {
                harness.apply([Change::Delete {
                    key: key.as_str().into(),
                    revision: 0,
                    removal: Removal::Explicit,
                }]);
            }
        }
        let fresh = Harness::of_strings(&registered);
        let responses = |harness: &Harness| -> Vec<String> {
            let response = |(name, rtype, draw): &(String, u16, u64)| {
                decoded_response(harness, name, *rtype, *draw)
            };
            names.iter().map(response).collect()
        };
        let fast = responses(&harness);
        prop_assert_eq!(&fast, &responses(&fresh));
        for ((name, rtype, draw), fast) in names.iter().zip(&fast) {
            let mut full = Vec::new();
            let bytes = query(name, *rtype, Some(1232));
            let query = Query::parse(&bytes);
            harness.answerer.respond_in_full(&query, Transport::Udp, *draw, &mut full);
            prop_assert_eq!(fast, &decoded(&full), "{:?}", name);
        }
    }

    /// A name with an existing name below it is never NXDOMAIN (RFC 8020).
    #[test]
    fn ancestors_of_existing_names_exist(
        keys in prop::collection::vec(key(), 1..12),
        name in query_name(),
    ) {
        let harness = Harness::of_strings(keys.iter().map(|(key, value)| (key, value)));
        let mut name = name.as_str();
        let mut exists = false;
        while let Some((_, above)) = name.split_once('.') {
            let here = harness.a(name);
            prop_assert!(!(exists && here == "NXDOMAIN"), "{} is above an existing name", name);
            exists |= here != "NXDOMAIN";
            name = above;
        }
    }

    #[test]
    fn arbitrary_messages_do_not_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..120), draw: u64,
    ) {
        let harness = Harness::of(&[HELLO]);
        let _ = respond(&harness.answerer, &bytes, Transport::Udp, draw);
        let mut tail = query("hello.svc", rtype::A, None)[..12].to_vec();
        tail.extend(bytes);
        let _ = respond(&harness.answerer, &tail, Transport::Tcp, draw);
    }
}

/// Decodes a response and clears the serial, which differs between harnesses.
pub(super) fn decoded_response(harness: &Harness, name: &str, rtype: u16, draw: u64) -> String {
    decoded(
        &respond(&harness.answerer, &query(name, rtype, Some(1232)), Transport::Udp, draw).unwrap(),
    )
}

/// Decodes a message and clears the serial of its SOA records.
pub(super) fn decoded(message: &[u8]) -> String {
    let mut message = Message::from_vec(message).unwrap();
    for record in message.answers.iter_mut().chain(&mut message.authorities) {
        if let RData::SOA(soa) = &mut record.data {
            soa.serial = 0;
        }
    }
    format!("{message:?}")
}
