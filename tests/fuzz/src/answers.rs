//! One question, answered both ways.

use std::collections::BTreeMap;

use hickory_proto::op::{Message, ResponseCode};
use svcdns::answer::{Answerer, Outcome};
use svcdns::wire::{HEADER, Parsed, Query, TCP_MAX, Transport, question_end, records, rtype};

use super::question::Question;

/// What came of the questions asked.
#[derive(Debug)]
pub struct Kinds {
    /// How many answers there were of each kind, and how many of those came without an allocation: what is worked out by the
    /// naming grammar takes some.
    pub counts: BTreeMap<&'static str, [u64; 2]>,
    /// Does it, and says whether that took an allocation.
    pub allocates: fn(&mut dyn FnMut()) -> bool,
}

impl Kinds {
    /// Where allocations are not counted.
    pub fn unmeasured() -> Self {
        let allocates = |work: &mut dyn FnMut()| {
            work();
            true
        };
        Self { counts: BTreeMap::new(), allocates }
    }
}

/// The answer that ready-made records give, which is octet for octet what the naming grammar gives; decoded by another
/// implementation, and no longer than it may be. Empty where there is none to give.
pub fn answer(answerer: &Answerer, question: &Question, kinds: &mut Kinds) -> Vec<u8> {
    let Question { packet, transport, draw } = question;
    let parsed = Query::parse(packet);
    let (mut fast, mut full) = (Vec::with_capacity(TCP_MAX), Vec::new());
    let mut outcome = Outcome::Silent;
    let allocates = (kinds.allocates)(&mut || {
        // As it is where several came together.
        let ahead = answerer.look_ahead([&packet[..]; 2].into_iter());
        outcome = answerer.respond(&parsed, (&ahead, 1), *transport, *draw, &mut fast);
    });
    let in_full = answerer.respond_in_full(&parsed, *transport, *draw, &mut full);
    assert!(
        outcome == in_full && fast == full,
        "{}",
        difference(question, &(outcome, &fast), &(in_full, &full))
    );
    assert_eq!(outcome == Outcome::Answered, !fast.is_empty());
    let kind =
        if outcome == Outcome::Answered { decode(&parsed, *transport, &fast) } else { "no answer" };
    let [all, without_allocation] = kinds.counts.entry(kind).or_default();
    *all += 1;
    *without_allocation += u64::from(!allocates);
    fast
}

/// Holds an answer against what any answer must be, and says what it is.
fn decode(parsed: &Parsed<'_>, transport: Transport, answer: &[u8]) -> &'static str {
    let (Parsed::Query(query) | Parsed::Bad { query, .. }) = parsed else {
        panic!("an answer to what is no query")
    };
    let message =
        Message::from_vec(answer).unwrap_or_else(|error| panic!("{error}: {answer:02x?}"));
    assert!(answer.len() <= query.limit(transport), "{} octets", answer.len());
    assert_eq!(answer[..2], query.id.to_be_bytes());
    assert!(answer[2] & 0x80 != 0);
    assert_eq!(
        answer[HEADER..][..query.question.len()],
        *query.question,
        "the question comes back octet for octet"
    );
    assert_eq!(message.edns.is_some(), query.edns.is_some());
    assert!(transport == Transport::Udp || !message.metadata.truncation);
    let mut octets: Vec<_> = question_end(answer)
        .into_iter()
        .flat_map(|end| records(answer, end))
        .map(|record| record.unwrap())
        .collect();
    octets.sort_by_key(|record| &answer[record.start..record.end]);
    assert!(
        octets
            .windows(2)
            .all(|two| answer[two[0].start..two[0].end] != answer[two[1].start..two[1].end]),
        "twice: {message}"
    );
    match message.metadata.response_code {
        ResponseCode::NoError if message.metadata.truncation => "cut",
        ResponseCode::NoError if message.answers.is_empty() => {
            assert_eq!(message.authorities.len(), 1, "no data without the zone's SOA: {message}");
            "no data"
        }
        ResponseCode::NoError
            if message
                .answers
                .iter()
                .any(|record| u16::from(record.record_type()) == rtype::SRV) =>
        {
            if message.additionals.is_empty() { "services" } else { "services with glue" }
        }
        ResponseCode::NoError => "records",
        ResponseCode::NXDomain => {
            assert_eq!(message.authorities.len(), 1, "NXDOMAIN without the zone's SOA: {message}");
            "no such name"
        }
        ResponseCode::ServFail => "cannot say",
        ResponseCode::Refused => "refused",
        _ => "not taken",
    }
}

fn difference(
    question: &Question,
    fast: &(Outcome, &Vec<u8>),
    full: &(Outcome, &Vec<u8>),
) -> String {
    let say = |(outcome, octets): &(Outcome, &Vec<u8>)| match Message::from_vec(octets) {
        Ok(message) => format!("{outcome:?} {message}\n{octets:02x?}"),
        Err(_) => format!("{outcome:?} {octets:02x?}"),
    };
    let asked = Message::from_vec(&question.packet)
        .map_or_else(|_| String::new(), |message| message.to_string());
    format!(
        "two answers to {asked}\n{question:02x?}\nready-made: {}\nin full: {}",
        say(fast),
        say(full)
    )
}

/// An answer without what no two servers have in common: the serial of the SOA record.
pub fn without_serial(mut answer: Vec<u8>) -> Vec<u8> {
    let Some(question) = question_end(&answer) else { return answer };
    let serials: Vec<_> = records(&answer, question)
        .map_while(Result::ok)
        .filter(|record| record.rtype == rtype::SOA)
        .collect();
    for soa in serials {
        answer[soa.end - 20..soa.end - 16].fill(0);
    }
    answer
}
