//! Aliases (CNAME) that lead to names which are resolved elsewhere.
//!
//! An upstream's response ends at such a border. The client gets one response that joins the
//! aliases up to each border and the response for the last target.

use std::time::Instant;

use super::copy::RecordCopier;
use super::message::options;
use super::special::put_failure;
use crate::wire::{
    ExtendedError, MalformedMessage, OPTION_EXTENDED_ERROR, Parsed, Query, Record, Section,
    Transport, expand_name, flags, put_opt_with, put_u16, question_end, question_name, rcode,
    records, rtype, u16_at,
};

/// Maximum number of borders that one query crosses.
pub(super) const MAX_BORDERS: usize = 8;

/// EDE: the aliases lead back to an earlier name (RFC 1034 section 5.2.2).
const ALIAS_LOOP: ExtendedError<'static> =
    ExtendedError { code: ExtendedError::OTHER, text: "the aliases (CNAME) lead in a circle" };
/// EDE: the aliases cross more than [`MAX_BORDERS`] borders.
const TOO_MANY_BORDERS: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::OTHER,
    text: "the aliases (CNAME) lead from upstream to upstream more than 8 times",
};

/// The result of [`super::Lane::resolve`].
#[derive(Debug)]
pub enum Resolution {
    /// The response to the client.
    Response(Vec<u8>),
    /// An alias whose target is resolved elsewhere, perhaps in a served zone.
    Alias(Box<AliasChain>),
    /// No upstream may be queried; see [`super::LaneOutcome::Outside`].
    Outside,
}

/// A query whose aliases have led to a name that is resolved elsewhere.
#[derive(Debug)]
pub struct AliasChain {
    /// The client's message.
    request: Vec<u8>,
    transport: Transport,
    /// Time of receipt of the client's query.
    began: Instant,
    /// Responses of upstreams so far; each consists of aliases up to a border.
    responses: Vec<Vec<u8>>,
    /// Query for the target of the last alias.
    query: Vec<u8>,
}

impl AliasChain {
    /// Starts a chain with the first response and the target of its last alias.
    pub(super) fn new(
        request: Vec<u8>,
        transport: Transport,
        began: Instant,
        response: Vec<u8>,
        target: &[u8],
    ) -> Self {
        let query = match Query::parse(&request) {
            Parsed::Query(query) => query_for(&query, target),
            Parsed::Bad { .. } | Parsed::Silent => Vec::new(),
        };
        Self { request, transport, began, responses: vec![response], query }
    }

    /// Starts a chain with an alias in a served zone; `response` has its CNAME record only.
    ///
    /// Returns `None` if the client's message or the response is malformed.
    pub fn of_served_alias(
        request: &[u8],
        transport: Transport,
        response: Vec<u8>,
    ) -> Option<Box<Self>> {
        let target = alias_target(&response)?;
        let chain = Self::new(request.to_vec(), transport, Instant::now(), response, &target);
        (!chain.query.is_empty()).then(|| Box::new(chain))
    }

    /// Adds an alias in a served zone: the response to [`Self::query`] with its CNAME record only.
    ///
    /// # Errors
    /// Returns the response to the client if the chain is a loop or too long.
    pub fn extend_with_served_alias(&mut self, response: Vec<u8>) -> Result<(), Vec<u8>> {
        let extended = match alias_target(&response) {
            Some(target) => self.extend(response, &target),
            None => Err(ALIAS_LOOP),
        };
        extended.map_err(|error| self.fail(error))
    }

    /// Returns the query for the target of the last alias.
    pub fn query(&self) -> &[u8] {
        &self.query
    }

    /// Returns the client's message.
    pub(super) fn request(&self) -> &[u8] {
        &self.request
    }

    /// Returns the client's transport.
    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// Returns the time of receipt of the client's query.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// Adds a response to [`Self::query`] and the target of its last alias.
    ///
    /// # Errors
    /// Returns an EDE if the chain is a loop or too long.
    pub(super) fn extend(
        &mut self,
        response: Vec<u8>,
        target: &[u8],
    ) -> Result<(), ExtendedError<'static>> {
        let Parsed::Query(query) = Query::parse(&self.query) else { return Err(ALIAS_LOOP) };
        // Length bytes are below 'A', so only letters may differ in case.
        let is_target = |one: &Vec<u8>| {
            question_name(one).is_some_and(|name| name.eq_ignore_ascii_case(target))
        };
        if self.responses.iter().any(is_target) || is_target(&response) {
            return Err(ALIAS_LOOP);
        }
        if self.responses.len() >= MAX_BORDERS {
            return Err(TOO_MANY_BORDERS);
        }
        self.query = query_for(&query, target);
        self.responses.push(response);
        Ok(())
    }

    /// Returns a SERVFAIL response with an extended error for the client.
    pub(super) fn fail(&self, error: ExtendedError<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        if let Parsed::Query(query) = Query::parse(&self.request) {
            put_failure(&query, error, &mut out);
        }
        out
    }

    /// Joins all responses of the chain into one; `last` answers [`Self::query`].
    ///
    /// The code is that of the last response (RFC 6604). If the target would have to be forwarded
    /// but RD is not set, the response ends with the last alias (RFC 1034 section 4.3.2). AA is
    /// that of the first response (RFC 1035 section 4.1.1). AD is set if it is set in all responses
    /// (RFC 4035 section 3.2.3).
    ///
    /// # Errors
    /// Returns an error if a response is malformed.
    pub(super) fn join(&self, last: &[u8]) -> Result<Vec<u8>, MalformedMessage> {
        let Parsed::Query(query) = Query::parse(&self.request) else {
            return Err(MalformedMessage);
        };
        let flags_of = |message: &[u8]| u16_at(message, 2).unwrap_or_default();
        let (mut copier, mut passed) = (RecordCopier::new(query.question), Vec::new());
        for response in &self.responses {
            for record in records_of(response)? {
                let record = record?;
                if record.section == Section::Answer {
                    copier.copy(response, &record)?;
                }
                put_errors(response, &record, &mut passed);
            }
        }
        let opt = records_of(last)?.map_while(Result::ok).find(Record::is_opt);
        let mut code = opt.as_ref().map_or(0, |opt| u16::from(opt.ttl.to_be_bytes()[0]) << 4)
            | flags_of(last) & 0xF;
        if code == rcode::REFUSED && query.flags & flags::RD == 0 {
            code = rcode::NOERROR;
        }
        if !matches!(code, rcode::NOERROR | rcode::NXDOMAIN) {
            // A failed chain is no answer, not even in part.
            copier = RecordCopier::new(query.question);
        }
        for record in records_of(last)? {
            let record = record?;
            if record.is_opt() {
                passed.extend_from_slice(record.data(last));
            } else if let Err(error) = copier.copy(last, &record) {
                // Additional records may be missing (RFC 2181 section 9).
                if record.section != Section::Additional {
                    return Err(error);
                }
            }
        }
        let first = self.responses.first().map_or(0, |first| flags_of(first));
        let authentic = self.responses.iter().fold(flags_of(last), |all, one| all & flags_of(one));
        let mut message = copier.finish(
            flags::QR
                | first & flags::AA
                | authentic & flags::AD
                | flags_of(last) & flags::TC
                | code & 0xF,
        );
        let additional = u16_at(&message, 10).unwrap_or_default().saturating_add(1);
        message[10..12].copy_from_slice(&additional.to_be_bytes());
        put_opt_with(&mut message, code, false, &passed, None);
        Ok(message)
    }
}

/// Returns the target of the first record in wire form, if that is an alias.
fn alias_target(response: &[u8]) -> Option<Vec<u8>> {
    let record = records_of(response).ok()?.next()?.ok()?;
    let mut target = Vec::new();
    expand_name(response, record.fixed + 10, &mut target).ok()?;
    (record.rtype == rtype::CNAME).then_some(target)
}

/// Iterates over the records of a message.
fn records_of(
    message: &[u8],
) -> Result<impl Iterator<Item = Result<Record, MalformedMessage>> + '_, MalformedMessage> {
    Ok(records(message, question_end(message).ok_or(MalformedMessage)?))
}

/// Appends the extended errors of an OPT record to `out`, as options.
fn put_errors(message: &[u8], record: &Record, out: &mut Vec<u8>) {
    if record.is_opt() {
        for (_, whole) in
            options(record.data(message)).filter(|(code, _)| *code == OPTION_EXTENDED_ERROR)
        {
            out.extend_from_slice(whole);
        }
    }
}

/// Encodes a copy of the client's query with `name` as its QNAME.
fn query_for(query: &Query<'_>, name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + query.options.len() + 32);
    put_u16(&mut out, query.id);
    put_u16(&mut out, query.flags);
    out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(query.edns.is_some())]);
    out.extend_from_slice(name);
    put_u16(&mut out, query.qtype);
    put_u16(&mut out, query.qclass);
    if let Some(edns) = query.edns {
        out.push(0);
        put_u16(&mut out, rtype::OPT);
        put_u16(&mut out, edns.payload);
        out.extend_from_slice(&[0, edns.version, u8::from(edns.dnssec_ok) << 7, 0]);
        put_u16(&mut out, u16::try_from(query.options.len()).unwrap_or_default());
        out.extend_from_slice(query.options);
    }
    out
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;

    use super::*;

    /// A query for `a.test A` with an OPT record.
    const REQUEST: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x01a\x04test\0\0\x01\0\x01\
        \0\0\x29\x04\xD0\0\0\0\0\0\0";

    /// Returns a response in which `a.test` is an alias of `NAME.svc`, with its target.
    fn alias(name: u8) -> (Vec<u8>, Vec<u8>) {
        let target = [&[1, name][..], b"\x03svc\0"].concat();
        let mut response = [b"\x12\x34\x84\x20\0\x01\0\x01\0\0\0\x01", &REQUEST[12..24]].concat();
        response.extend_from_slice(b"\xC0\x0C\0\x05\0\x01\0\0\0\x3C\0\x07");
        response.extend_from_slice(&target);
        let stale = ExtendedError { code: ExtendedError::STALE_ANSWER, text: "old" };
        put_opt_with(&mut response, rcode::NOERROR, false, &[], Some(stale));
        (response, target)
    }

    fn chain() -> AliasChain {
        let (response, target) = alias(b'h');
        let began = Instant::now();
        AliasChain::new(REQUEST.to_vec(), Transport::Udp, began, response, &target)
    }

    #[test]
    fn the_target_is_queried_with_the_flags_of_the_client() {
        let chain = chain();
        let Parsed::Query(query) = Query::parse(chain.query()) else { panic!("no query") };
        assert_eq!(query.question, b"\x01h\x03svc\0\0\x01\0\x01");
        assert_eq!(chain.query()[query.question.len() + 12..], REQUEST[24..]);
        assert_eq!(chain.query()[..12], REQUEST[..12]);
    }

    #[test]
    fn a_failed_chain_has_all_extended_errors_and_no_records() {
        let chain = chain();
        let Parsed::Query(query) = Query::parse(chain.query()) else { panic!("no query") };
        let mut last = Vec::new();
        let error = ExtendedError { code: ExtendedError::NOT_READY, text: "wait" };
        put_failure(&query, error, &mut last);
        let joined = chain.join(&last).unwrap();
        let message = Message::from_vec(&joined).unwrap();
        assert_eq!(u16::from(message.metadata.response_code), rcode::SERVFAIL);
        assert!(message.answers.is_empty() && message.metadata.authoritative);
        let has = |text: &[u8]| joined.windows(text.len()).any(|part| part == text);
        assert!(has(b"\0\x03old") && has(b"\0\x0Ewait"), "{joined:02x?}");
    }

    #[test]
    fn aliases_in_served_zones_begin_and_extend_chains() {
        let (response, _) = alias(b'h');
        let mut chain =
            AliasChain::of_served_alias(REQUEST, Transport::Udp, response.clone()).unwrap();
        let Parsed::Query(query) = Query::parse(chain.query()) else { panic!("no query") };
        assert_eq!(query.question, b"\x01h\x03svc\0\0\x01\0\x01");
        assert_eq!(chain.extend_with_served_alias(alias(b'i').0), Ok(()));
        assert!(chain.extend_with_served_alias(Vec::new()).is_err());
        assert!(AliasChain::of_served_alias(b"", Transport::Udp, response).is_none());
        assert!(AliasChain::of_served_alias(REQUEST, Transport::Udp, REQUEST.to_vec()).is_none());
    }

    #[test]
    fn loops_and_long_chains_are_errors() {
        let mut chain = chain();
        assert_eq!(chain.extend(alias(b'x').0, b"\x01A\x04TEST\0"), Err(ALIAS_LOOP));
        for at in 1..MAX_BORDERS {
            let name = b'a' + u8::try_from(at).unwrap();
            assert_eq!(chain.extend(alias(name).0, &alias(name).1), Ok(()));
        }
        assert_eq!(chain.extend(alias(b'y').0, &alias(b'z').1), Err(TOO_MANY_BORDERS));
    }

    #[test]
    fn malformed_responses_are_errors() {
        for last in [&b""[..], &REQUEST[..20], &[&alias(b'h').0[..], b"x"].concat()] {
            assert_eq!(chain().join(last), Err(MalformedMessage));
        }
    }
}
