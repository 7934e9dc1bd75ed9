//! Entry point for queries.

use std::cell::Cell;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::counters::Counters;
use super::lookahead::{Lookahead, OwnerKey};
use super::message::{Recipient, ResponseContent, ResponseWriter};
use super::respond::{AnswerOutcome, QueryContext};
use super::settings::Settings;
use super::table::Snapshot;
use super::tally::{QueryTallies, ResponseSource};
use crate::catalog::{RegistryStatus, Rejections, Stats};
use crate::name::Name;
use crate::wire::{ExtendedError, Parsed, Query, Transport, rcode};

/// Answers queries from the latest generation; shared by all workers.
#[derive(Debug)]
pub struct Answerer {
    pub(super) snapshot: ArcSwap<Snapshot>,
    pub(super) rejections: ArcSwap<Rejections>,
    pub(super) stats: ArcSwap<Stats>,
    pub(super) counters: Counters,
    pub(super) tallies: QueryTallies,
    /// SOA serial of generation 0: the Unix time at startup.
    ///
    /// A restart therefore does not decrease the serial.
    pub(super) first_serial: u32,
}

/// EDE of a SERVFAIL response: too many queries wait for an upstream.
const OVERLOADED: ExtendedError<'static> =
    ExtendedError { code: ExtendedError::OTHER, text: "too many queries wait for an upstream" };
/// EDE of a REFUSED response: the query would need forwarding but has RD=0.
const NO_RECURSION: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::NOT_AUTHORITATIVE,
    text: "not a zone served here, and recursion was not desired",
};
/// EDE of a REFUSED response: the client's address has no access.
const ACCESS_DENIED: ExtendedError<'static> =
    ExtendedError { code: ExtendedError::PROHIBITED, text: "" };

impl Answerer {
    /// Prepares a batch of messages, or a single one, for [`Self::respond`].
    ///
    /// Prefetches the memory that the first 32 of them need.
    pub fn look_ahead<'r>(&self, requests: impl Iterator<Item = &'r [u8]>) -> Lookahead {
        Lookahead::new(self.snapshot.load(), requests)
    }

    /// Writes the response to a message into `out`, without TCP's length prefix.
    ///
    /// `parsed` is the result of [`Query::parse`] for the message. `ahead` is the result of
    /// [`Self::look_ahead`] for its batch, with the index of the message there; the response is
    /// from the generation that `ahead` holds. `draw` is a random number that selects the first
    /// instance.
    ///
    /// Never blocks and does no I/O. Does not allocate if a precompiled node has the answer and
    /// `out` has enough capacity.
    pub fn respond(
        &self,
        parsed: &Parsed<'_>,
        (ahead, number): (&Lookahead, usize),
        recipient: impl Into<Recipient>,
        draw: u64,
        out: &mut Vec<u8>,
    ) -> AnswerOutcome {
        let writer = self.writer(&ahead.snapshot, recipient, draw);
        self.answer(parsed, (&ahead.snapshot, ahead.key(number)), writer, out)
    }

    /// Writes the response that the full path gives to a message, without counting it.
    ///
    /// For tests: [`Self::respond`] must write the same bytes.
    pub fn respond_in_full(
        &self,
        parsed: &Parsed<'_>,
        recipient: impl Into<Recipient>,
        draw: u64,
        out: &mut Vec<u8>,
    ) -> AnswerOutcome {
        let (snapshot, uncounted) = (self.snapshot.load(), Counters::default());
        let writer =
            ResponseWriter { counters: &uncounted, ..self.writer(&snapshot, recipient, draw) };
        self.answer(parsed, (&snapshot, None), writer, out)
    }

    /// Writes the response to a query outside the zones, without forwarding it.
    ///
    /// Meant for queries for which [`Self::respond`] returns `Forward`, but which must not be sent
    /// to any upstream. Returns where the response comes from.
    pub fn respond_outside(
        &self,
        query: &Query<'_>,
        recipient: impl Into<Recipient>,
        out: &mut Vec<u8>,
    ) -> ResponseSource {
        out.clear();
        let (snapshot, source) = (self.snapshot.load(), Cell::new(ResponseSource::Local));
        let writer = self.writer(&snapshot, recipient, 0);
        let context = QueryContext {
            writer,
            first_serial: self.first_serial,
            snapshot: &snapshot,
            query,
            source: &source,
        };
        match Name::from_wire(query.name()) {
            Ok((name, _)) => context.answer_outside(&name, NO_RECURSION, out),
            Err(_) => context.write(&ResponseContent::code(rcode::FORMERR, None), out),
        }
        source.get()
    }

    /// Writes the first response of a chain that begins with an alias (CNAME).
    ///
    /// Returns `false`, and writes nothing, if the name of the query is not an alias of a name
    /// outside the zones. The response has any size, because the transport limits the whole chain,
    /// and is not counted, because the forwarder counts the query.
    pub fn write_alias(&self, query: &Query<'_>, out: &mut Vec<u8>) -> bool {
        let Ok((name, _)) = Name::from_wire(query.name()) else { return false };
        let snapshot = self.snapshot.load();
        let Some(target) = snapshot.settings().outside_target(&name) else { return false };
        let (uncounted, source) = (Counters::default(), Cell::new(ResponseSource::Local));
        let writer =
            ResponseWriter { counters: &uncounted, ..self.writer(&snapshot, Transport::Tcp, 0) };
        let context = QueryContext {
            writer,
            first_serial: self.first_serial,
            snapshot: &snapshot,
            query,
            source: &source,
        };
        out.clear();
        context.write_alias(target.as_wire(), out);
        true
    }

    /// Responds on the fast path if possible, else on the full path.
    pub(super) fn answer(
        &self,
        parsed: &Parsed<'_>,
        (snapshot, key): (&Snapshot, Option<OwnerKey>),
        writer: ResponseWriter<'_>,
        out: &mut Vec<u8>,
    ) -> AnswerOutcome {
        out.clear();
        match parsed {
            Parsed::Silent => AnswerOutcome::Silent,
            Parsed::Bad { query, rcode } => {
                writer.write(&ResponseContent::code(*rcode, None), query, out);
                AnswerOutcome::Answered(ResponseSource::Local)
            }
            Parsed::Query(query) => {
                let (first_serial, source) = (self.first_serial, Cell::new(ResponseSource::Local));
                let context =
                    QueryContext { writer, first_serial, snapshot, query, source: &source };
                key.and_then(|key| context.respond_fast(key, out))
                    .unwrap_or_else(|| context.respond(out))
            }
        }
    }

    /// Writes REFUSED to a client without access; returns `false` to send nothing.
    pub fn refuse(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        self.write_code(rcode::REFUSED, ACCESS_DENIED, request, out)
    }

    /// Writes SERVFAIL because too many queries wait; returns `false` to send nothing.
    pub fn fail(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        self.write_code(rcode::SERVFAIL, OVERLOADED, request, out)
    }

    /// Writes a response without records: only a code and an EDE.
    fn write_code(
        &self,
        code: u16,
        error: ExtendedError<'_>,
        request: &[u8],
        out: &mut Vec<u8>,
    ) -> bool {
        out.clear();
        let (Parsed::Bad { query, .. } | Parsed::Query(query)) = Query::parse(request) else {
            return false;
        };
        self.writer(&self.snapshot.load(), Transport::Udp, 0).write(
            &ResponseContent::code(code, Some(error)),
            &query,
            out,
        );
        true
    }

    /// Returns the latest generation.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Returns the registry status of the latest generation.
    pub fn registry_status(&self) -> RegistryStatus {
        self.snapshot.load().registry_status
    }

    /// Returns the registrations that cannot be served, as of the latest generation.
    pub fn rejections(&self) -> Arc<Rejections> {
        self.rejections.load_full()
    }

    /// Returns the catalog's statistics, as of the latest generation.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.load_full()
    }

    /// Returns whether the latest generation has any alias.
    pub fn has_aliases(&self) -> bool {
        !self.snapshot.load().settings().aliases.is_empty()
    }

    /// Returns the settings of the latest generation.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(self.snapshot.load().settings())
    }

    /// Returns the counters of incomplete responses.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the counts of questions and responses, which the callers of this type fill.
    pub fn tallies(&self) -> &QueryTallies {
        &self.tallies
    }

    /// Returns a writer of responses from this generation, which counts them.
    pub(super) fn writer<'s>(
        &'s self,
        snapshot: &'s Snapshot,
        recipient: impl Into<Recipient>,
        draw: u64,
    ) -> ResponseWriter<'s> {
        let Recipient { transport, is_local: bridged } = recipient.into();
        let (settings, counters) = (snapshot.settings(), &self.counters);
        ResponseWriter { settings, transport, bridged, draw, counters }
    }
}
