use hickory_proto::op::Message;
use proptest::prelude::*;

use super::*;
use crate::wire::{MAX_UDP_BYTES_WITHOUT_EDNS, Parsed};

/// `www.example. A` in the letter case of a client.
const QUESTION: &[u8] = b"\x03WWW\x07example\0\0\x01\0\x01";

/// Returns a query with flags, OPT (payload, DO, options) and additional records.
fn request(flags: u16, opt: Option<(u16, bool, &[u8])>, records: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![0xAB, 0xCD];
    out.extend(flags.to_be_bytes());
    out.extend([
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        u8::try_from(records.len() + usize::from(opt.is_some())).unwrap(),
    ]);
    out.extend(QUESTION);
    out.extend(records.concat());
    if let Some((payload, dnssec_ok, options)) = opt {
        out.extend(opt_record(payload, 0, dnssec_ok, options));
    }
    out
}

fn opt_record(payload: u16, upper_rcode: u8, dnssec_ok: bool, options: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 41];
    out.extend(payload.to_be_bytes());
    out.extend([upper_rcode, 0, if dnssec_ok { 0x80 } else { 0 }, 0]);
    out.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
    out.extend(options);
    out
}

fn query(request: &[u8]) -> Query<'_> {
    let Parsed::Query(query) = Query::parse(request) else { panic!("no query") };
    query
}

/// Returns a record with this owner in wire form.
fn record(owner: &[u8], rtype: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut out = owner.to_vec();
    out.extend(rtype.to_be_bytes());
    out.extend([0, 1]);
    out.extend(ttl.to_be_bytes());
    out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    out.extend(data);
    out
}

/// Returns a response with these flags, QR and the records of its three sections.
fn response(flags: u16, sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
    let mut out = vec![0, 0];
    out.extend((flags::QR | flags).to_be_bytes());
    out.extend([0, 1]);
    for section in sections {
        out.extend(u16::try_from(section.len()).unwrap().to_be_bytes());
    }
    out.extend(QUESTION.to_ascii_lowercase());
    for record in sections.concat() {
        out.extend(record);
    }
    out
}

fn soa(ttl: u32, minimum: u32) -> Vec<u8> {
    let numbers =
        [1u32, 2, 3, 4, minimum].iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<_>>();
    record(b"\xC0\x10", rtype::SOA, ttl, &[b"\xC0\x10\xC0\x10".to_vec(), numbers].concat())
}

fn a(ttl: u32) -> Vec<u8> {
    record(b"\xC0\x0C", rtype::A, ttl, &[192, 0, 2, 1])
}

fn option(code: u16, data: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
}

fn written(stored: &StoredResponse, request: &[u8], transport: Transport, age: Age) -> Vec<u8> {
    let mut out = Vec::new();
    stored.write(&query(request), transport, age, &mut out);
    out
}

fn options_of(message: &[u8]) -> Vec<u8> {
    strip(message).unwrap().opt.map(|opt| opt.options.to_vec()).unwrap_or_default()
}

fn flags_of(message: &[u8]) -> u16 {
    u16_at(message, 2).unwrap()
}

#[test]
fn upstream_queries_carry_only_end_to_end_options() {
    let options = [
        option(10, b"12345678"),
        option(8, b"\0\x01\x18\0\xC0\0\x02"),
        option(12, b"\0\0\0"),
        option(65001, b"x"),
    ]
    .concat();
    let came = request(flags::RD | flags::CD | 0x40, Some((4000, true, &options)), &[]);
    let out = upstream_query(&came, &query(&came)).unwrap();
    assert_eq!((&out[..2], flags_of(&out)), (&[0, 0][..], flags::RD | flags::CD | flags::AD));
    assert_eq!(&out[HEADER_BYTES..HEADER_BYTES + QUESTION.len()], QUESTION);
    assert_eq!(
        options_of(&out),
        [option(8, b"\0\x01\x18\0\xC0\0\x02"), option(65001, b"x")].concat()
    );
    let Parsed::Query(read) = Query::parse(&out) else { panic!("no query") };
    assert_eq!(read.edns.map(|edns| (edns.payload, edns.dnssec_ok)), Some((1232, true)));
    assert!(!is_shareable(&query(&came)));

    // Without options to forward, the query is built without the client's message.
    for came in [
        request(flags::RD, None, &[]),
        request(0, Some((512, true, &option(10, b"12345678"))), &[]),
    ] {
        assert!(is_shareable(&query(&came)));
        assert_eq!(
            upstream_query(&came, &query(&came)).unwrap(),
            shareable_upstream_query(&query(&came))
        );
    }
    // The client's additional records are forwarded.
    let more = record(b"\0", 250, 0, b"signature");
    let came = request(flags::RD, Some((1232, false, b"")), &[&more]);
    assert!(!is_shareable(&query(&came)));
    let out = upstream_query(&came, &query(&came)).unwrap();
    assert_eq!(out[HEADER_BYTES + QUESTION.len()..][..more.len()], more);
}

#[test]
fn the_records_of_a_response_determine_whether_it_is_cacheable() {
    let cname = |ttl| record(b"\xC0\x0C", rtype::CNAME, ttl, b"\x01b\0");
    for (what, rcode, sections, kind) in [
        ("an address", 0, [&[a(300), a(60)][..], &[], &[]], ResponseKind::Positive(60)),
        (
            "an address with a short-lived neighbour",
            0,
            [&[a(300)], &[], &[a(7)]],
            ResponseKind::Positive(7),
        ),
        (
            "another name with its address",
            0,
            [&[cname(20), a(30)], &[], &[]],
            ResponseKind::Positive(20),
        ),
        (
            "a TTL with the uppermost bit",
            0,
            [&[a(0x8000_0001)], &[], &[]],
            ResponseKind::Positive(0),
        ),
        ("no data", 0, [&[], &[soa(900, 60)], &[]], ResponseKind::Negative(60)),
        (
            "no data, with a short-lived SOA",
            0,
            [&[], &[soa(5, 60)], &[]],
            ResponseKind::Negative(5),
        ),
        (
            "no data for too long",
            0,
            [&[], &[soa(99_999, 99_999)], &[]],
            ResponseKind::Negative(3 * 3600),
        ),
        (
            "another name without data",
            0,
            [&[cname(20)], &[soa(900, 60)], &[]],
            ResponseKind::Negative(20),
        ),
        ("no such name", 3, [&[], &[soa(900, 60)], &[]], ResponseKind::Negative(60)),
        ("no such name, for who knows how long", 3, [&[], &[], &[]], ResponseKind::Uncacheable),
        (
            "a referral",
            0,
            [&[], &[record(b"\xC0\x10", rtype::NS, 60, b"\x01n\0")], &[]],
            ResponseKind::Uncacheable,
        ),
        ("another name and no word of it", 0, [&[cname(20)], &[], &[]], ResponseKind::Uncacheable),
        ("truncated", flags::TC, [&[a(300)], &[], &[]], ResponseKind::Uncacheable),
        ("a failure", 2, [&[], &[], &[]], ResponseKind::Failure),
        ("a refusal", 5, [&[], &[soa(900, 60)], &[]], ResponseKind::Failure),
    ] {
        assert_eq!(
            StoredResponse::new(&response(rcode, sections), true).unwrap().kind(),
            kind,
            "{what}"
        );
    }
    let cut = response(0, [&[a(1)], &[], &[]]);
    assert!(StoredResponse::new(&cut[..cut.len() - 1], true).is_err());
}

#[test]
fn ttls_decrease_and_stale_answers_carry_an_extended_error() {
    let stored =
        StoredResponse::new(&response(flags::AA | flags::AD, [&[a(300), a(60)], &[], &[]]), true)
            .unwrap();
    let plain = request(flags::RD, None, &[]);
    let ttls = |message: &[u8]| -> Vec<u32> {
        records(message, question_end(message).unwrap()).map(|record| record.unwrap().ttl).collect()
    };
    let fresh = written(&stored, &plain, Transport::Udp, Age::Fresh);
    assert_eq!(
        (ttls(&fresh), flags_of(&fresh)),
        (vec![300, 60], flags::QR | flags::AA | flags::RD | flags::RA)
    );
    assert_eq!(
        (&fresh[..2], &fresh[HEADER_BYTES..HEADER_BYTES + QUESTION.len()]),
        (&[0xAB, 0xCD][..], QUESTION)
    );
    let kept = written(
        &stored,
        &request(flags::RD | flags::AD, None, &[]),
        Transport::Udp,
        Age::Cached(40),
    );
    assert_eq!(
        (ttls(&kept), flags_of(&kept)),
        (vec![260, 20], flags::QR | flags::AD | flags::RD | flags::RA)
    );
    let stale = written(
        &stored,
        &request(flags::CD, Some((1232, true, b"")), &[]),
        Transport::Udp,
        Age::Stale,
    );
    assert_eq!(
        (ttls(&stale), flags_of(&stale)),
        (vec![30, 30, 0x8000], flags::QR | flags::AD | flags::RA | flags::CD)
    );
    assert_eq!(options_of(&stale), option(15, &3u16.to_be_bytes()));

    // A client that uses the TTL of the SOA record must not cache longer than svcdns does.
    let missing = StoredResponse::new(&response(3, [&[], &[soa(900, 60)], &[]]), true).unwrap();
    assert_eq!(ttls(&written(&missing, &plain, Transport::Udp, Age::Fresh)), [900]);
    assert_eq!(ttls(&written(&missing, &plain, Transport::Udp, Age::Cached(10))), [50]);
    let stale =
        written(&missing, &request(0, Some((1232, false, b"")), &[]), Transport::Udp, Age::Stale);
    assert_eq!(options_of(&stale), option(15, &19u16.to_be_bytes()));
}

#[test]
fn only_extended_errors_are_passed_to_other_clients() {
    let options =
        [option(15, b"\0\x09why"), option(8, b"\0\x01\x18\x18\xC0\0\x02"), option(10, b"12345678")]
            .concat();
    let message = response(2, [&[], &[], &[opt_record(1232, 1, false, &options)]]);
    let asks = request(0, Some((1232, false, b"")), &[]);
    let plain = StoredResponse::new(&message, true).unwrap();
    assert_eq!(plain.rcode, 0x12);
    let out = written(&plain, &asks, Transport::Udp, Age::Cached(1));
    assert_eq!(options_of(&out), option(15, b"\0\x09why"));
    assert_eq!(StoredResponse::new(&out, true).unwrap().rcode, 0x12);
    let out =
        written(&StoredResponse::new(&message, false).unwrap(), &asks, Transport::Udp, Age::Fresh);
    assert_eq!(options_of(&out), options[..options.len() - 12]);
    // Without OPT a client cannot see the upper bits of the code, so it gets SERVFAIL.
    let bare = written(&plain, &request(0, None, &[]), Transport::Udp, Age::Fresh);
    assert_eq!(
        (flags_of(&bare) & 0xF, bare.len()),
        (rcode::SERVFAIL, HEADER_BYTES + QUESTION.len())
    );
}

#[test]
fn large_responses_are_truncated_at_a_record() {
    let many: Vec<_> = (0..100).map(|_| a(60)).collect();
    let stored = StoredResponse::new(&response(0, [&many, &[], &[]]), true).unwrap();
    for (asks, limit) in [
        (request(0, None, &[]), MAX_UDP_BYTES_WITHOUT_EDNS),
        (request(0, Some((100, false, b"")), &[]), MAX_UDP_BYTES_WITHOUT_EDNS),
        (request(0, Some((1000, true, b"")), &[]), 1000),
        (request(0, Some((65535, true, b"")), &[]), 1232),
    ] {
        let out = written(&stored, &asks, Transport::Udp, Age::Cached(10));
        let Stripped { bytes, opt, question_end } = strip(&out).unwrap();
        let whole: Vec<_> = records(&bytes, question_end).map(Result::unwrap).collect();
        assert!(
            out.len() <= limit
                && out.len() + 16 > limit
                && whole.iter().all(|record| record.ttl == 50),
            "{}",
            out.len()
        );
        assert_eq!(
            (flags_of(&out) & flags::TC, opt.is_some()),
            (flags::TC, query(&asks).edns.is_some())
        );
        assert_eq!(
            written(&stored, &asks, Transport::Tcp, Age::Fresh).len()
                - HEADER_BYTES
                - QUESTION.len(),
            1600 + if opt.is_some() { 11 } else { 0 }
        );
    }
    // Missing additional records set TC only in a referral; missing authority records always do.
    let tc = |sections: [&[Vec<u8>]; 3]| {
        let out = written(
            &StoredResponse::new(&response(0, sections), true).unwrap(),
            &request(0, None, &[]),
            Transport::Udp,
            Age::Fresh,
        );
        flags_of(&out) & flags::TC != 0
    };
    let one = [a(1)];
    assert!(!tc([&one, &[], &many]));
    assert!(tc([&one, &many, &[]]));
    assert!(tc([&[], &one, &many]));
    // Options are dropped before records.
    let text = option(15, &[b"\0\x09", &[b'x'; 400][..]].concat());
    let stored = StoredResponse::new(
        &response(0, [&many[..20], &[], &[opt_record(1232, 0, false, &text)]]),
        true,
    )
    .unwrap();
    let out =
        written(&stored, &request(0, Some((512, false, b"")), &[]), Transport::Udp, Age::Fresh);
    assert_eq!(
        (out.len(), flags_of(&out) & flags::TC),
        (HEADER_BYTES + QUESTION.len() + 320 + 11, 0)
    );
}

#[test]
fn local_failures_are_well_formed() {
    let error = ExtendedError { code: 22, text: "nobody" };
    let asks = request(flags::RD, Some((1232, true, b"")), &[]);
    let mut direct = Vec::new();
    crate::upstream::special::put_failure(&query(&asks), error, &mut direct);
    let kept =
        written(&StoredResponse::failure(QUESTION, error), &asks, Transport::Udp, Age::Cached(0));
    assert_eq!(direct, kept);
    let message = Message::from_vec(&kept).unwrap();
    assert_eq!((u16::from(message.metadata.response_code), message.metadata.id), (2, 0xABCD));
    assert_eq!(options_of(&kept), option(15, b"\0\x16nobody"));
    let withheld = StoredResponse::new(&empty_response(QUESTION, error), true).unwrap();
    assert_eq!(withheld.kind(), ResponseKind::Uncacheable);
    assert_eq!(
        options_of(&written(&withheld, &asks, Transport::Udp, Age::Fresh)),
        option(15, b"\0\x16nobody")
    );
}

/// Builds a message of random records whose names may point to earlier names.
///
/// The OPT record is at a random position in the additional section.
fn build(counts: [usize; 3], opt_at: usize, draws: &[(u8, u8, u32)]) -> Vec<u8> {
    let mut out = response(flags::RA, [&[], &[], &[]]);
    let mut targets: Vec<u16> = vec![12, 16];
    let mut draws = draws.iter().cycle();
    for (section, count) in counts.into_iter().enumerate() {
        for index in 0..=count {
            if section == 2 && index == opt_at.min(count) {
                out.extend(opt_record(1232, 0, false, &option(15, b"\0\x03")));
            }
            if index == count {
                break;
            }
            let (kind, which, ttl) = draws.next().unwrap();
            let target = |targets: &[u16]| {
                (0xC000 | targets[usize::from(*which) % targets.len()]).to_be_bytes()
            };
            let start = u16::try_from(out.len()).unwrap();
            if kind & 8 != 0 {
                out.extend([1, b'a' + which % 26]);
            }
            out.extend(target(&targets));
            let data = u16::try_from(out.len() + 10).unwrap();
            let name = [&[1, b'0' + which % 10][..], &target(&targets)].concat();
            let (rtype, rdata, name_at) = match kind % 8 {
                0 | 1 => (1, vec![1, 2, 3, *which], None),
                2 => (5, name, Some(data)),
                3 => (15, [&[0, 10][..], &name].concat(), Some(data + 2)),
                4 => (6, [&name[..], &target(&targets), &[7; 20]].concat(), Some(data)),
                5 => (33, [&[0, 1, 0, 2, 0, 3][..], &name].concat(), Some(data + 6)),
                6 => (12, name, Some(data)),
                _ => (65280, vec![0xC0, 0xFF, *which], None),
            };
            out.extend(record(b"", rtype, *ttl & 0x7FFF_FFFF, &rdata));
            targets.push(start);
            targets.extend(name_at);
        }
        let at = 6 + 2 * section;
        out[at..at + 2].copy_from_slice(
            &u16::try_from(count + usize::from(section == 2)).unwrap().to_be_bytes(),
        );
    }
    out
}

proptest! {
    #[test]
    fn removing_opt_keeps_all_other_records(
        counts in [0usize..6, 0usize..6, 0usize..6],
        opt_at in 0usize..6,
        draws in proptest::collection::vec(any::<(u8, u8, u32)>(), 1..16),
        edns in any::<bool>(),
    ) {
        let came = build(counts, opt_at, &draws);
        let asks = request(flags::RD, edns.then_some((1232, true, &b""[..])), &[]);
        let stored = StoredResponse::new(&came, true).unwrap();
        let out = written(&stored, &asks, Transport::Tcp, Age::Fresh);
        let (before, after) = (Message::from_vec(&came).unwrap(), Message::from_vec(&out).unwrap());
        prop_assert_eq!(&before.answers, &after.answers);
        prop_assert_eq!(&before.authorities, &after.authorities);
        prop_assert_eq!(&before.additionals, &after.additionals);
        prop_assert_eq!(after.edns.is_some(), edns);
        prop_assert_eq!(after.queries[0].name(), before.queries[0].name());
    }

    #[test]
    fn truncated_responses_are_parsed(
        counts in [0usize..30, 0usize..10, 0usize..10],
        draws in proptest::collection::vec(any::<(u8, u8, u32)>(), 1..16),
        payload in any::<u16>(),
    ) {
        let stored = StoredResponse::new(&build(counts, 0, &draws), true).unwrap();
        let asks = request(flags::RD, Some((payload, true, &b""[..])), &[]);
        let out = written(&stored, &asks, Transport::Udp, Age::Stale);
        prop_assert!(out.len() <= usize::from(payload).clamp(512, 1232));
        prop_assert!(Message::from_vec(&out).is_ok());
    }

    #[test]
    fn arbitrary_messages_do_not_panic(
        tail in proptest::collection::vec(any::<u8>(), 0..80),
        counts in [0u8..4, 0u8..4, 0u8..4],
    ) {
        let mut message = response(0, [&[], &[], &[]]);
        for (at, count) in [7, 9, 11].into_iter().zip(counts) {
            message[at] = count;
        }
        message.extend(tail);
        if let Ok(stored) = StoredResponse::new(&message, false) {
            let asks = request(0, Some((600, true, b"")), &[]);
            written(&stored, &asks, Transport::Udp, Age::Cached(5));
        }
        let _ = truncate_to(40, &mut message);
    }
}
