//! Answers one query by the fast and by the full path, and checks the response.

use std::collections::BTreeMap;

use hickory_proto::op::{Message, ResponseCode};
use svcdns::answer::{AnswerOutcome, Answerer, Recipient};
use svcdns::wire::{
    HEADER_BYTES, MAX_TCP_BYTES, Parsed, Query, Transport, question_end, records, rtype,
};

use super::query::TestQuery;

/// Counts responses by kind.
#[derive(Debug)]
pub struct Kinds {
    /// Responses of each kind, and how many of them needed no allocation.
    ///
    /// Only the fast path needs none.
    pub counts: BTreeMap<&'static str, [u64; 2]>,
    /// Runs a function and returns whether it allocated.
    pub allocates: fn(&mut dyn FnMut()) -> bool,
}

impl Kinds {
    /// Returns empty counts that assume allocations instead of measuring them.
    pub fn unmeasured() -> Self {
        let allocates = |work: &mut dyn FnMut()| {
            work();
            true
        };
        Self { counts: BTreeMap::new(), allocates }
    }
}

/// Returns the response of the fast path; empty if the server stays silent.
///
/// A query to be forwarded gets the response without upstreams.
///
/// # Panics
/// If the full path gives other bytes, or if hickory-proto finds the response malformed.
pub fn answer(answerer: &Answerer, query: &TestQuery, kinds: &mut Kinds) -> Vec<u8> {
    let TestQuery { packet, transport, draw } = query;
    let parsed = Query::parse(packet);
    let (mut fast, mut full) = (Vec::with_capacity(MAX_TCP_BYTES), Vec::new());
    let mut outcome = AnswerOutcome::Silent;
    let allocates = (kinds.allocates)(&mut || {
        // A lookahead of two queries, as for a batch of datagrams.
        let ahead = answerer.look_ahead([&packet[..]; 2].into_iter());
        outcome = answerer.respond(&parsed, (&ahead, 1), *transport, *draw, &mut fast);
    });
    let in_full = answerer.respond_in_full(&parsed, *transport, *draw, &mut full);
    assert!(
        outcome == in_full && fast == full,
        "{}",
        difference(query, &(outcome, &fast), &(in_full, &full))
    );
    let is_answered = matches!(outcome, AnswerOutcome::Answered(_));
    assert_eq!(is_answered, !fast.is_empty());
    if let (AnswerOutcome::Forward, Parsed::Query(query)) = (outcome, &parsed) {
        answerer.respond_outside(query, *transport, &mut fast);
    }
    if let (AnswerOutcome::Alias, Parsed::Query(query)) = (outcome, &parsed) {
        let mut alias = Vec::new();
        assert!(answerer.write_alias(query, &mut alias), "{query:?} is no alias");
        decode(&parsed, Transport::Tcp, &alias);
    }
    // A response without upstreams comes from neither path, but must be just as correct.
    let decoded = (!fast.is_empty()).then(|| decode(&parsed, *transport, &fast));
    let kind = decoded.filter(|_| is_answered).unwrap_or("no answer");
    let [all, without_allocation] = kinds.counts.entry(kind).or_default();
    *all += 1;
    *without_allocation += u64::from(!allocates);
    fast
}

/// Returns the response to the same query from a client on this machine.
///
/// # Panics
/// If the two paths give different bytes, or if hickory-proto finds the response malformed.
pub fn local_answer(answerer: &Answerer, query: &TestQuery) -> Vec<u8> {
    let TestQuery { packet, transport, draw } = query;
    let parsed = Query::parse(packet);
    let recipient = Recipient { transport: *transport, is_local: true };
    let (mut fast, mut full) = (Vec::new(), Vec::new());
    let ahead = answerer.look_ahead([&packet[..]].into_iter());
    let outcome = answerer.respond(&parsed, (&ahead, 0), recipient, *draw, &mut fast);
    let in_full = answerer.respond_in_full(&parsed, recipient, *draw, &mut full);
    assert!(
        outcome == in_full && fast == full,
        "to a client on this machine: {}",
        difference(query, &(outcome, &fast), &(in_full, &full))
    );
    if !fast.is_empty() {
        decode(&parsed, *transport, &fast);
    }
    fast
}

/// Checks the rules for every response, and returns the kind of this one.
fn decode(parsed: &Parsed<'_>, transport: Transport, response: &[u8]) -> &'static str {
    let (Parsed::Query(query) | Parsed::Bad { query, .. }) = parsed else {
        panic!("a response to a message that is not a query")
    };
    let message =
        Message::from_vec(response).unwrap_or_else(|error| panic!("{error}: {response:02x?}"));
    assert!(response.len() <= query.limit(transport), "{} bytes", response.len());
    assert_eq!(response[..2], query.id.to_be_bytes());
    assert!(response[2] & 0x80 != 0);
    assert_eq!(
        response[HEADER_BYTES..][..query.question.len()],
        *query.question,
        "the question section must be that of the query"
    );
    assert_eq!(message.edns.is_some(), query.edns.is_some());
    assert!(transport == Transport::Udp || !message.metadata.truncation);
    let mut sorted: Vec<_> = question_end(response)
        .into_iter()
        .flat_map(|end| records(response, end))
        .map(|record| record.unwrap())
        .collect();
    sorted.sort_by_key(|record| &response[record.start..record.end]);
    assert!(
        sorted
            .windows(2)
            .all(|two| response[two[0].start..two[0].end] != response[two[1].start..two[1].end]),
        "a record is repeated: {message}"
    );
    match message.metadata.response_code {
        ResponseCode::NoError if message.metadata.truncation => "cut",
        ResponseCode::NoError if message.answers.is_empty() => {
            assert_eq!(message.authorities.len(), 1, "NODATA without the zone's SOA: {message}");
            "no data"
        }
        ResponseCode::NoError if has_record(&message, rtype::CNAME) => "alias",
        ResponseCode::NoError if has_record(&message, rtype::SRV) => {
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

/// Returns whether the answer section has a record of this type.
fn has_record(message: &Message, rtype: u16) -> bool {
    message.answers.iter().any(|record| u16::from(record.record_type()) == rtype)
}

fn difference(
    query: &TestQuery,
    fast: &(AnswerOutcome, &Vec<u8>),
    full: &(AnswerOutcome, &Vec<u8>),
) -> String {
    let show = |(outcome, response): &(AnswerOutcome, &Vec<u8>)| match Message::from_vec(response) {
        Ok(message) => format!("{outcome:?} {message}\n{response:02x?}"),
        Err(_) => format!("{outcome:?} {response:02x?}"),
    };
    let decoded = Message::from_vec(&query.packet)
        .map_or_else(|_| String::new(), |message| message.to_string());
    format!(
        "the paths differ for {decoded}\n{query:02x?}\nfast: {}\nfull: {}",
        show(fast),
        show(full)
    )
}

/// Zeroes the serial of SOA records, which differs between servers.
pub fn without_serial(mut response: Vec<u8>) -> Vec<u8> {
    let Some(question) = question_end(&response) else { return response };
    let soas: Vec<_> = records(&response, question)
        .map_while(Result::ok)
        .filter(|record| record.rtype == rtype::SOA)
        .collect();
    for soa in soas {
        response[soa.end - 20..soa.end - 16].fill(0);
    }
    response
}
