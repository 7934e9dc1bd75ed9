//! What holds for any keys, names and octets.

use proptest::prelude::*;

use super::*;

/// A few labels that meet each other often.
fn label() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "hello", "prod", "v1", "a", "b", "latest", "default", "blue", "2", "0", "10-0-0-1",
    ])
}

fn key() -> impl Strategy<Value = (String, String)> {
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

fn asked_name() -> impl Strategy<Value = String> {
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

    /// The ready-made records say what the naming grammar says, after any sequence of changes; and both say what a house
    /// says that was built at once.
    #[test]
    fn ready_made_answers_equal_full_ones(
        steps in prop::collection::vec((key(), any::<bool>()), 1..25),
        names in prop::collection::vec((asked_name(), prop::sample::select(vec![1u16, 28, 33, 16, 255, 6, 15]), any::<u64>()), 30),
    ) {
        let mut house = House::of(&[]);
        let mut held = BTreeMap::new();
        for ((key, value), there) in &steps {
            if *there {
                held.insert(key.clone(), value.clone());
                house.apply([put(key, value)]);
            } else if held.remove(key).is_some() {
                house.apply([Change::Delete { key: key.as_str().into(), revision: 0, removal: Removal::Explicit }]);
            }
        }
        let fresh = House::of(&held.iter().map(|(key, value)| (&**key, &**value)).collect::<Vec<_>>());
        let ready: Vec<_> = names.iter().map(|(name, rtype, draw)| short_bytes(&house, name, *rtype, *draw)).collect();
        let rebuilt: Vec<_> = names.iter().map(|(name, rtype, draw)| short_bytes(&fresh, name, *rtype, *draw)).collect();
        prop_assert_eq!(&ready, &rebuilt);
        for ((name, rtype, draw), ready) in names.iter().zip(&ready) {
            let mut full = Vec::new();
            let bytes = query(name, *rtype, Some(1232));
            house.answerer.respond_in_full(&Query::parse(&bytes), Transport::Udp, *draw, &mut full);
            prop_assert_eq!(ready, &decoded(&full), "{:?}", name);
        }
    }

    /// RFC 8020: a name below which another exists is never NXDOMAIN.
    #[test]
    fn what_has_names_below_it_exists(keys in prop::collection::vec(key(), 1..12), name in asked_name()) {
        let house = House::of(&keys.iter().map(|(key, value)| (&**key, &**value)).collect::<Vec<_>>());
        let mut name = name.as_str();
        let mut exists = false;
        while let Some((_, above)) = name.split_once('.') {
            let here = house.a(name);
            prop_assert!(!(exists && here == "NXDOMAIN"), "{} is above a name that exists", name);
            exists |= here != "NXDOMAIN";
            name = above;
        }
    }

    #[test]
    fn no_packet_panics(bytes in prop::collection::vec(any::<u8>(), 0..120), draw: u64) {
        let house = House::of(&[HELLO]);
        let _ = respond(&house.answerer, &bytes, Transport::Udp, draw);
        let mut tail = query("hello.svc", rtype::A, None)[..12].to_vec();
        tail.extend(bytes);
        let _ = respond(&house.answerer, &tail, Transport::Tcp, draw);
    }
}

/// A response without what differs between houses: the serial.
fn short_bytes(house: &House, name: &str, rtype: u16, draw: u64) -> String {
    decoded(
        &respond(&house.answerer, &query(name, rtype, Some(1232)), Transport::Udp, draw).unwrap(),
    )
}

/// What a message says, but for the serial.
fn decoded(message: &[u8]) -> String {
    let mut message = Message::from_vec(message).unwrap();
    for record in message.answers.iter_mut().chain(&mut message.authorities) {
        if let RData::SOA(soa) = &mut record.data {
            soa.serial = 0;
        }
    }
    format!("{message:?}")
}
