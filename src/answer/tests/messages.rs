//! Responses as messages: truncation, order of records, and unsupported messages.

use super::*;
use crate::catalog::MAX_INSTANCES_PER_SERVICE;
use crate::service::{MAX_REGISTRIES, Release};
use crate::wire::{flags, rcode};

#[test]
fn negative_responses_carry_the_soa_with_the_negative_ttl() {
    let harness = Harness::of(&[HELLO]);
    for (name, rtype) in [("hello.svc", rtype::AAAA), ("unknown.svc", rtype::A), ("svc", rtype::A)]
    {
        let answer = harness.response(name, rtype);
        let [Decoded { ttl, data: RData::SOA(soa), name: owner, .. }] = &answer.authorities[..]
        else {
            panic!("{answer}")
        };
        assert_eq!((*ttl, soa.minimum, owner.to_string().as_str()), (1, 1, "svc."));
        assert!(answer.metadata.authoritative);
    }
    let reverse = harness.response("1.0.0.10.in-addr.arpa", rtype::A);
    assert_eq!(reverse.authorities[0].name.to_string(), "1.0.0.10.in-addr.arpa.");
}

fn many(count: u8) -> Harness {
    let keys: Vec<_> =
        (0..count).map(|n| format!("/service/default/default/many/latest/10.0.0.{n}:80")).collect();
    Harness::of(&keys.iter().map(|key| (&**key, "{}")).collect::<Vec<_>>())
}

#[test]
fn truncated_responses_hold_as_many_records_as_fit() {
    // 512 bytes hold 30 A records, or 29 with OPT; 1,232 bytes hold 74.
    let harness = many(100);
    for (payload, fit) in
        [(None, 30), (Some(0), 29), (Some(512), 29), (Some(1232), 74), (Some(65535), 74)]
    {
        let answer = harness.response_with("many.svc", rtype::A, payload, Transport::Udp, 7);
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (fit, true), "{payload:?}");
        assert_eq!(answer.edns.is_some(), payload.is_some());
    }
    let whole = harness.response_with("many.svc", rtype::A, None, Transport::Tcp, 7);
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (100, false));
    let left_out = [30, 29, 29, 74, 74].map(|fit| 100 - fit).into_iter().sum();
    assert_eq!(
        (harness.answerer.counters().truncated(), harness.answerer.counters().left_out()),
        (5, left_out)
    );
    let few = many(30).response_with("many.svc", rtype::A, None, Transport::Udp, 7);
    assert_eq!((few.answers.len(), few.metadata.truncation), (30, false));
}

#[test]
fn glue_fills_the_remaining_room_and_never_sets_tc() {
    // Header, question and OPT take 37 bytes; a record 37 or 38, its glue 33 or 34.
    let answer = many(33).response_with("many.svc", rtype::SRV, Some(1232), Transport::Udp, 3);
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (31, true));
    let answer = many(30).response_with("many.svc", rtype::SRV, Some(1232), Transport::Udp, 3);
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (30, false));
    assert!(answer.additionals.len() < 30);
    let answer = many(3).response("many.svc", rtype::SRV);
    assert_eq!((answer.answers.len(), answer.additionals.len()), (3, 3));
}

#[test]
fn the_answers_setting_controls_tc_and_the_record_count() {
    let keys: Vec<_> =
        (0..100).map(|n| format!("/service/default/default/many/latest/10.0.0.{n}:80")).collect();
    let keys: Vec<_> = keys.iter().map(|key| (&**key, "{}")).collect();
    let fit = Harness::with(Settings { answers: Answers::Fit, ..settings() }, &keys);
    let answer = fit.response("many.svc", rtype::A);
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (74, false));
    let counters = fit.answerer.counters();
    assert_eq!((counters.truncated(), counters.left_out()), (0, 26));
    // If not even one record fits, TC is set with any setting.
    let large = format!(r#"{{"a":"{0}","b":"{0}","c":"{0}"}}"#, "x".repeat(250));
    let large =
        Harness::with(Settings { answers: Answers::Fit, ..settings() }, &[(HELLO.0, &large)]);
    assert!(
        large.response_with("hello.svc", rtype::TXT, None, Transport::Udp, 0).metadata.truncation
    );
    assert_eq!(
        (large.answerer.counters().truncated(), large.answerer.counters().left_out()),
        (1, 1)
    );
    let one =
        Harness::with(Settings { answers: Answers::Count(NonZeroU16::MIN), ..settings() }, &keys);
    for transport in [Transport::Udp, Transport::Tcp] {
        let answer = one.response_with("many.svc", rtype::A, None, transport, 11);
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (1, false));
    }
    assert_eq!((one.answerer.counters().truncated(), one.answerer.counters().left_out()), (0, 198));
}

#[test]
fn any_queries_get_one_rrset() {
    let harness = Harness::of(&[(
        "/service/default/default/hello.svc/latest/10.0.0.1:80,[fd00::5]:80",
        HTTP,
    )]);
    assert_eq!(harness.short("hello.svc", rtype::ANY), "10.0.0.1");
    assert_eq!(harness.short("_http._tcp.hello.svc", rtype::ANY).split(" | ").count(), 2);
}

#[test]
fn txt_records_hold_the_metadata() {
    let long = "x".repeat(400);
    let harness = Harness::of(&[
        (
            "/service/default/default/t/latest/10.0.0.1:80",
            &format!(r#"{{"a":"b","long":"{long}","n":5}}"#),
        ),
        ("/service/default/default/t/latest/10.0.0.2:80", "{}"),
        ("/service/default/default/t/latest/10.0.0.3:80", "{}"),
    ]);
    let answer = harness.response("t.svc", rtype::TXT);
    let mut records: Vec<Vec<usize>> = answer
        .answers
        .iter()
        .map(|record| match &record.data {
            RData::TXT(txt) => txt.txt_data.iter().map(|string| string.len()).collect(),
            other => panic!("{other}"),
        })
        .collect();
    records.sort();
    assert_eq!(records, [vec![0], vec![3, 255, 3]]);
}

#[test]
fn explanations_list_metadata_missing_from_txt_records() {
    let long = "x".repeat(400);
    let many: Vec<_> = (10..50).map(|number| format!(r#""key{number}":"{long}""#)).collect();
    let harness = Harness::of(&[
        ("/service/default/default/t/latest/10.0.0.1:80", &format!(r#"{{"long":"{long}"}}"#)),
        ("/service/default/default/t/latest/10.0.0.2:80", &format!(r#"{{"long":"{long}"}}"#)),
        ("/service/default/default/t/latest/10.0.0.3:80", "{}"),
        ("/service/default/default/u/latest/10.0.0.4:80", &format!("{{{}}}", many.join(","))),
    ]);
    let omissions = |name: &str, rtype| {
        let name = Name::from_text(name).unwrap();
        harness.answerer.explain(&name, rtype, Some(1232), 0).txt_omissions
    };
    assert_eq!(
        omissions("t.svc", rtype::TXT),
        [r#"TXT: the string of "long" is cut at 255 of 405 bytes"#]
    );
    let cut = |key| format!(r#"TXT: the string of "{key}" is cut at 255 of 406 bytes"#);
    let rest = r#"TXT: 36 entries from "key14" on are left out: records have at most 1024 bytes"#;
    assert_eq!(
        omissions("u.svc", rtype::TXT),
        [rest.to_owned(), cut("key10"), cut("key11"), cut("key12"), cut("key13")]
    );
    for rtype in [rtype::A, rtype::SRV, rtype::ANY] {
        assert_eq!(omissions("u.svc", rtype), [""; 0], "no TXT records in this response");
    }
}

#[test]
fn the_first_record_is_drawn_by_weight() {
    let harness = Harness::of(&[
        ("/service/default/default/w/latest/10.0.0.1:80", r#"{"weight":3}"#),
        ("/service/default/default/w/latest/10.0.0.2:80", r#"{"weight":"1"}"#),
        ("/service/default/default/w/latest/10.0.0.3:80", r#"{"weight":0}"#),
    ]);
    let mut first = BTreeMap::new();
    for draw in 0..400 {
        let answer = harness.response_with(
            "w.svc",
            rtype::A,
            None,
            Transport::Udp,
            draw * (u64::MAX / 400 + 1),
        );
        assert_eq!(answer.answers.len(), 3);
        assert_eq!(answer.answers[2].data.to_string(), "10.0.0.3");
        *first.entry(answer.answers[0].data.to_string()).or_insert(0) += 1;
    }
    assert_eq!(first, BTreeMap::from([("10.0.0.1".to_owned(), 300), ("10.0.0.2".to_owned(), 100)]));
}

#[test]
fn samples_prefer_heavy_records_and_put_weight_zero_last() {
    let key = |n: u8, weight: u32| {
        (
            format!("/service/default/default/w/latest/10.0.0.{n}:80"),
            format!(r#"{{"weight":{weight}}}"#),
        )
    };
    let keys: Vec<_> =
        (0..60).map(|n| key(n, if n < 20 { 100 } else { u32::from(n < 40) })).collect();
    let harness = Harness::of_strings(keys.iter().map(|(key, value)| (key, value)));
    let mut heavy = 0;
    for draw in 0..100 {
        let answer = harness.response_with("w.svc", rtype::A, None, Transport::Udp, draw);
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (30, true));
        for record in &answer.answers {
            let RData::A(address) = &record.data else { panic!("{record}") };
            assert!(address.octets()[3] < 40, "a record of weight 0 came before others");
            heavy += usize::from(address.octets()[3] < 20);
        }
    }
    assert_eq!(heavy, 100 * 20, "all heavy records fit, so nearly every sample has all of them");
}

#[test]
fn records_of_equal_weight_rotate() {
    let harness = many(3);
    let first = |draw| {
        harness.response_with("many.svc", rtype::A, None, Transport::Udp, draw).answers[0]
            .data
            .to_string()
    };
    let firsts = [0, u64::MAX / 2, u64::MAX].map(first);
    assert_eq!(firsts, ["10.0.0.0", "10.0.0.1", "10.0.0.2"]);
}

#[test]
fn unsupported_messages_are_rejected_or_ignored() {
    let harness = Harness::of(&[HELLO]);
    let mut chaos = query("hello.svc", rtype::A, None);
    let last = chaos.len() - 1;
    chaos[last] = 3;
    let answer =
        Message::from_vec(&respond(&harness.answerer, &chaos, Transport::Udp, 0).unwrap()).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    let mut response = query("hello.svc", rtype::A, None);
    response[2] |= 0x80;
    assert_eq!(respond(&harness.answerer, &response, Transport::Udp, 0), None);
    let mut version = query("hello.svc", rtype::A, Some(1232));
    let at = version.len() - 5;
    version[at] = 1;
    let answer =
        Message::from_vec(&respond(&harness.answerer, &version, Transport::Udp, 0).unwrap())
            .unwrap();
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    let mut out = Vec::new();
    assert!(harness.answerer.refuse(&query("hello.svc", rtype::A, Some(1232)), &mut out));
    let answer = Message::from_vec(&out).unwrap();
    assert_eq!(
        (answer.metadata.response_code, extended_error(&answer)),
        (ResponseCode::Refused, Some(18))
    );
}

/// RA and CD are flags of opcode QUERY only (`opcodeflg` of ISC's tests).
#[test]
fn opcodes_other_than_query_get_notimp_without_ra_and_cd() {
    for forwarding in [false, true] {
        let harness = Harness::with(Settings { forwarding, ..settings() }, &[HELLO]);
        for opcode in 0..16 {
            let mut message = query("hello.svc", rtype::SOA, None);
            // The flags are TC, RD, RA, Z, AD and CD.
            message[2..4].copy_from_slice(&(opcode << 11 | 0x03F0_u16).to_be_bytes());
            let response = respond(&harness.answerer, &message, Transport::Udp, 0).unwrap();
            let flags = u16::from_be_bytes([response[2], response[3]]);
            let recursion = if forwarding { flags::RA } else { 0 };
            let expected = match opcode {
                0 => flags::AA | flags::CD | recursion,
                _ => opcode << 11 | rcode::NOTIMP,
            };
            assert_eq!(flags, flags::QR | flags::RD | expected, "opcode {opcode}");
        }
    }
}

#[test]
fn the_question_section_is_echoed_byte_for_byte() {
    let harness = Harness::of(&[HELLO]);
    let mut mixed_case = query("hello.svc", rtype::A, None);
    mixed_case[13] = b'H';
    mixed_case[20] = b'V';
    let answer = respond(&harness.answerer, &mixed_case, Transport::Udp, 0).unwrap();
    assert_eq!(answer[12..mixed_case.len()], mixed_case[12..]);
    assert_eq!(answer[7], 1);
}

#[test]
fn negative_responses_have_room_for_the_soa_of_a_long_zone() {
    let zone = ["z".repeat(63), "y".repeat(63), "x".repeat(63)].join(".");
    let harness = Harness::with(
        Settings { zones: Zones::new(std::slice::from_ref(&zone)).unwrap(), ..settings() },
        &[HELLO],
    );
    for name in [format!("unknown.{zone}"), format!("hello.{zone}"), zone.clone()] {
        let answer = harness.response_with(&name, rtype::AAAA, None, Transport::Udp, 0);
        assert_eq!(answer.authorities[0].name.to_string(), format!("{zone}."), "{name}");
    }
}

#[test]
fn instances_beyond_the_limit_of_a_set_are_left_out_of_responses() {
    let mut catalog = catalog::Settings::new(settings().zones, MAX_REGISTRIES);
    catalog.max_instances_per_service = MAX_INSTANCES_PER_SERVICE;
    let now = Instant::now();
    let (mut publisher, answerer) = Publisher::new(catalog, settings(), now);
    let updates = RegistryId::first(MAX_REGISTRIES).map(|registry| {
        let endpoint = |n: usize| {
            let (high, low) = (n / 256, n % 256);
            match n % 3 {
                0 => format!("10.{}.{high}.{low}:80", registry.index()),
                1 => format!("[fd00::{:x}:{n:x}]:80", registry.index()),
                _ => format!("h{n}.r{}.example:80", registry.index()),
            }
        };
        let endpoints: Vec<_> = (0..MAX_INSTANCES_PER_SERVICE).map(endpoint).collect();
        let key = format!("/service/default/default/hello.svc/latest/{}", endpoints.join(","));
        let list = [
            Change::Connected(true),
            Change::list_begin(ListKind::Routine),
            put(&key, "{}"),
            Change::ListEnd { revision: 0 },
        ];
        Update::Registry(registry, list.into())
    });
    publisher.apply(updates.collect::<Vec<_>>(), now);
    let harness = Harness { publisher, answerer, now };
    let snapshot = harness.answerer.snapshot();
    let all = snapshot.services().map(|service| service.instances().len()).sum::<usize>();
    assert_eq!(all, MAX_REGISTRIES * MAX_INSTANCES_PER_SERVICE);
    for rtype in [rtype::A, rtype::AAAA, rtype::SRV] {
        let response = harness.response_with("hello.svc", rtype, None, Transport::Tcp, 0);
        assert_eq!(response.metadata.response_code, ResponseCode::NoError);
        assert!(response.answers.len() > 1_000, "{} records", response.answers.len());
        for record in &response.answers {
            let RData::SRV(srv) = &record.data else { continue };
            let target = srv.target.to_string();
            assert!(target.ends_with(".hello.svc.") || target.ends_with(".example."), "{target}");
        }
    }
}

#[test]
fn the_text_about_held_removals_changes_with_their_number_only() {
    let registry_names = vec!["main".parse().unwrap()];
    let keys: Vec<_> =
        (0..20).map(|n| format!("/service/default/default/h{n}/latest/10.0.0.{n}:80")).collect();
    let listed: Vec<_> = keys.iter().map(|key| (&**key, "{}")).collect();
    let mut harness = Harness::with(Settings { registry_names, ..settings() }, &listed);
    let error = |harness: &Harness, name: &str| {
        let name = Name::from_text(name).unwrap();
        harness.answerer.explain(&name, rtype::A, Some(1232), 0).extended_error
    };
    assert_eq!(error(&harness, "h3.svc"), None);
    harness.apply([Change::list_begin(ListKind::Restored), Change::ListEnd { revision: 1 }]);
    let text = error(&harness, "h3.svc").unwrap();
    assert!(text.starts_with("3 main: 20 removals on hold until "), "{text}");
    assert!(text.ends_with(" UTC"), "{text}");
    let negative = error(&harness, "nothing.svc").unwrap();
    assert_eq!(negative.strip_prefix("19 "), text.strip_prefix("3 "));
    // A publication that leaves the holds as they are leaves the text as it is.
    let before = harness.answerer.snapshot();
    harness.now += Duration::from_secs(1);
    harness.apply([put("/service/default/default/new/latest/10.0.1.1:80", "{}")]);
    let after = harness.answerer.snapshot();
    assert!(after.generation() > before.generation() && after.holds() == before.holds());
    assert!(std::ptr::eq(after.holds(), before.holds()), "the texts are not composed again");
    assert_eq!(error(&harness, "h3.svc"), Some(text));
    harness.apply([put(&keys[0], "{}")]);
    let text = error(&harness, "h3.svc").unwrap();
    assert!(text.starts_with("3 main: 19 removals on hold until "), "{text}");

    let release = Release { ticket: 1, registries: [RegistryId::FIRST].into_iter().collect() };
    let published = harness.publisher.apply([Update::Release(release)], harness.now);
    assert_eq!((published.released.len(), published.changed.len()), (1, 19));
    assert_eq!(error(&harness, "h0.svc"), None);
    assert_eq!(harness.a("h3.svc"), "NXDOMAIN");
}
