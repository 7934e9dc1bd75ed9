//! Responses as messages: what fits, which records come first, and what is no query.

use super::*;

#[test]
fn negative_answers_carry_the_soa_with_small_times() {
    let house = House::of(&[HELLO]);
    for (name, rtype) in [("hello.svc", rtype::AAAA), ("unknown.svc", rtype::A), ("svc", rtype::A)]
    {
        let answer = house.ask(name, rtype);
        let [Decoded { ttl, data: RData::SOA(soa), name: owner, .. }] = &answer.authorities[..]
        else {
            panic!("{answer}")
        };
        assert_eq!((*ttl, soa.minimum, owner.to_string().as_str()), (1, 1, "svc."));
        assert!(answer.metadata.authoritative);
    }
    let reverse = house.ask("1.0.0.10.in-addr.arpa", rtype::A);
    assert_eq!(reverse.authorities[0].name.to_string(), "1.0.0.10.in-addr.arpa.");
}

fn many(count: u8) -> House {
    let keys: Vec<_> =
        (0..count).map(|n| format!("/service/default/default/many/latest/10.0.0.{n}:80")).collect();
    House::of(&keys.iter().map(|key| (&**key, "{}")).collect::<Vec<_>>())
}

#[test]
fn as_many_as_fit() {
    // 30 A records in 512 octets, 29 beside an OPT, 74 in 1,232.
    let house = many(100);
    for (payload, fit) in
        [(None, 30), (Some(0), 29), (Some(512), 29), (Some(1232), 74), (Some(65535), 74)]
    {
        let answer = house.ask_with("many.svc", rtype::A, payload, Transport::Udp, 7);
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (fit, true), "{payload:?}");
        assert_eq!(answer.edns.is_some(), payload.is_some());
    }
    let whole = house.ask_with("many.svc", rtype::A, None, Transport::Tcp, 7);
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (100, false));
    let left_out = [30, 29, 29, 74, 74].map(|fit| 100 - fit).into_iter().sum();
    assert_eq!(
        (house.answerer.counters().truncated(), house.answerer.counters().left_out()),
        (5, left_out)
    );
    let few = many(30).ask_with("many.svc", rtype::A, None, Transport::Udp, 7);
    assert_eq!((few.answers.len(), few.metadata.truncation), (30, false));
}

#[test]
fn glue_takes_what_room_is_left_and_never_truncates() {
    // Header, question and OPT take 37 octets; a record has 37 or 38, its glue 33 or 34.
    let answer = many(33).ask_with("many.svc", rtype::SRV, Some(1232), Transport::Udp, 3);
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (31, true));
    let answer = many(30).ask_with("many.svc", rtype::SRV, Some(1232), Transport::Udp, 3);
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (30, false));
    assert!(answer.additionals.len() < 30);
    let answer = many(3).ask("many.svc", rtype::SRV);
    assert_eq!((answer.answers.len(), answer.additionals.len()), (3, 3));
}

#[test]
fn the_settings_for_answers_that_do_not_fit() {
    let keys: Vec<_> =
        (0..100).map(|n| format!("/service/default/default/many/latest/10.0.0.{n}:80")).collect();
    let keys: Vec<_> = keys.iter().map(|key| (&**key, "{}")).collect();
    let fit = House::with(Settings { answers: Answers::Fit, ..settings() }, &keys);
    let answer = fit.ask("many.svc", rtype::A);
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (74, false));
    let counters = fit.answerer.counters();
    assert_eq!((counters.truncated(), counters.left_out()), (0, 26));
    // Where not one record fits, TC says so whatever the setting.
    let large = format!(r#"{{"a":"{0}","b":"{0}","c":"{0}"}}"#, "x".repeat(250));
    let large = House::with(Settings { answers: Answers::Fit, ..settings() }, &[(HELLO.0, &large)]);
    assert!(large.ask_with("hello.svc", rtype::TXT, None, Transport::Udp, 0).metadata.truncation);
    assert_eq!(
        (large.answerer.counters().truncated(), large.answerer.counters().left_out()),
        (1, 1)
    );
    let one =
        House::with(Settings { answers: Answers::Count(NonZeroU16::MIN), ..settings() }, &keys);
    for transport in [Transport::Udp, Transport::Tcp] {
        let answer = one.ask_with("many.svc", rtype::A, None, transport, 11);
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (1, false));
    }
    assert_eq!((one.answerer.counters().truncated(), one.answerer.counters().left_out()), (0, 198));
}

#[test]
fn any_is_one_rrset() {
    let house =
        House::of(&[("/service/default/default/hello.svc/latest/10.0.0.1:80,[fd00::5]:80", HTTP)]);
    assert_eq!(house.short("hello.svc", rtype::ANY), "10.0.0.1");
    assert_eq!(house.short("_http._tcp.hello.svc", rtype::ANY).split(" | ").count(), 2);
}

#[test]
fn text_is_the_metadata() {
    let long = "x".repeat(400);
    let house = House::of(&[
        (
            "/service/default/default/t/latest/10.0.0.1:80",
            &format!(r#"{{"a":"b","long":"{long}","n":5}}"#),
        ),
        ("/service/default/default/t/latest/10.0.0.2:80", "{}"),
        ("/service/default/default/t/latest/10.0.0.3:80", "{}"),
    ]);
    let answer = house.ask("t.svc", rtype::TXT);
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
fn the_first_place_goes_by_weight() {
    let house = House::of(&[
        ("/service/default/default/w/latest/10.0.0.1:80", r#"{"weight":3}"#),
        ("/service/default/default/w/latest/10.0.0.2:80", r#"{"weight":"1"}"#),
        ("/service/default/default/w/latest/10.0.0.3:80", r#"{"weight":0}"#),
    ]);
    let mut first = BTreeMap::new();
    for draw in 0..400 {
        let answer =
            house.ask_with("w.svc", rtype::A, None, Transport::Udp, draw * (u64::MAX / 400 + 1));
        assert_eq!(answer.answers.len(), 3);
        assert_eq!(answer.answers[2].data.to_string(), "10.0.0.3");
        *first.entry(answer.answers[0].data.to_string()).or_insert(0) += 1;
    }
    assert_eq!(first, BTreeMap::from([("10.0.0.1".to_owned(), 300), ("10.0.0.2".to_owned(), 100)]));
}

#[test]
fn a_sample_prefers_the_heavy_and_takes_none_without_weight_before_others() {
    let key = |n: u8, weight: u32| {
        (
            format!("/service/default/default/w/latest/10.0.0.{n}:80"),
            format!(r#"{{"weight":{weight}}}"#),
        )
    };
    let keys: Vec<_> =
        (0..60).map(|n| key(n, if n < 20 { 100 } else { u32::from(n < 40) })).collect();
    let house = House::of(&keys.iter().map(|(key, value)| (&**key, &**value)).collect::<Vec<_>>());
    let mut heavy = 0;
    for draw in 0..100 {
        let answer = house.ask_with("w.svc", rtype::A, None, Transport::Udp, draw);
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (30, true));
        for record in &answer.answers {
            let RData::A(address) = &record.data else { panic!("{record}") };
            assert!(address.octets()[3] < 40, "an instance without weight came before others");
            heavy += usize::from(address.octets()[3] < 20);
        }
    }
    assert_eq!(heavy, 100 * 20, "all heavy ones fit, so all are in nearly every sample");
}

#[test]
fn equal_weights_rotate() {
    let house = many(3);
    let first = |draw| {
        house.ask_with("many.svc", rtype::A, None, Transport::Udp, draw).answers[0].data.to_string()
    };
    let firsts = [0, u64::MAX / 2, u64::MAX].map(first);
    assert_eq!(firsts, ["10.0.0.0", "10.0.0.1", "10.0.0.2"]);
}

#[test]
fn what_is_no_query_of_ours() {
    let house = House::of(&[HELLO]);
    let mut chaos = query("hello.svc", rtype::A, None);
    let last = chaos.len() - 1;
    chaos[last] = 3;
    let answer =
        Message::from_vec(&respond(&house.answerer, &chaos, Transport::Udp, 0).unwrap()).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    let mut response = query("hello.svc", rtype::A, None);
    response[2] |= 0x80;
    assert_eq!(respond(&house.answerer, &response, Transport::Udp, 0), None);
    let mut notify = query("hello.svc", rtype::SOA, None);
    notify[2] |= 0x20;
    let answer =
        Message::from_vec(&respond(&house.answerer, &notify, Transport::Udp, 0).unwrap()).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
    let mut version = query("hello.svc", rtype::A, Some(1232));
    let at = version.len() - 5;
    version[at] = 1;
    let answer =
        Message::from_vec(&respond(&house.answerer, &version, Transport::Udp, 0).unwrap()).unwrap();
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    let mut out = Vec::new();
    assert!(house.answerer.refuse(&query("hello.svc", rtype::A, Some(1232)), &mut out));
    let answer = Message::from_vec(&out).unwrap();
    assert_eq!(
        (answer.metadata.response_code, extended_error(&answer)),
        (ResponseCode::Refused, Some(18))
    );
}

#[test]
fn the_question_is_echoed_octet_for_octet() {
    let house = House::of(&[HELLO]);
    let mut asked = query("hello.svc", rtype::A, None);
    asked[13] = b'H';
    asked[20] = b'V';
    let answer = respond(&house.answerer, &asked, Transport::Udp, 0).unwrap();
    assert_eq!(answer[12..asked.len()], asked[12..]);
    assert_eq!(answer[7], 1);
}

#[test]
fn the_soa_fits_whatever_the_zone() {
    let zone = ["z".repeat(63), "y".repeat(63), "x".repeat(63)].join(".");
    let house = House::with(
        Settings { zones: Zones::new(std::slice::from_ref(&zone)).unwrap(), ..settings() },
        &[HELLO],
    );
    for name in [format!("unknown.{zone}"), format!("hello.{zone}"), zone.clone()] {
        let answer = house.ask_with(&name, rtype::AAAA, None, Transport::Udp, 0);
        assert_eq!(answer.authorities[0].name.to_string(), format!("{zone}."), "{name}");
    }
}
