//! Answers from the latest publication, for all who ask.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::ahead::{Ahead, Place};
use super::asking::{Asking, Outcome};
use super::counters::Counters;
use super::message::{Response, Writer};
use super::settings::Settings;
use super::table::Snapshot;
use crate::catalog::{Condition, Rejections, Stats};
use crate::wire::{ExtendedError, Parsed, Query, Transport, rcode};

/// Answers questions from the latest publication. Shared by all who answer.
#[derive(Debug)]
pub struct Answerer {
    pub(super) settings: Settings,
    pub(super) snapshot: ArcSwap<Snapshot>,
    pub(super) rejections: ArcSwap<Rejections>,
    pub(super) stats: ArcSwap<Stats>,
    pub(super) counters: Counters,
    /// The serial of generation 0: seconds since 1970 at the start, so that a restart does not go back.
    pub(super) first_serial: u32,
}

const TOO_MANY: ExtendedError = ExtendedError { code: ExtendedError::OTHER, text: "too many questions wait for an upstream" };
const NO_ACCESS: ExtendedError = ExtendedError { code: ExtendedError::PROHIBITED, text: "" };

impl Answerer {
    /// Writes the whole response to a packet, as it was `parsed`, into `out` (without TCP's length), where it is ours to give.
    ///
    /// `draw` is a fresh random number: it decides which instance comes first. Never blocks, does no I/O; does not allocate
    /// where ready-made records have the answer and `out` has room for it.
    pub fn respond(&self, parsed: &Parsed<'_>, transport: Transport, draw: u64, out: &mut Vec<u8>) -> Outcome {
        self.respond_as(parsed, self.writer(transport, draw), out)
    }

    /// The same for the message of this number of those that [`Self::look_ahead`] saw, as of then.
    pub fn respond_ahead(
        &self,
        (ahead, number): (&Ahead, usize),
        parsed: &Parsed<'_>,
        transport: Transport,
        draw: u64,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.respond_from(&ahead.snapshot, parsed, ahead.place(number), self.writer(transport, draw), out)
    }

    /// The same, without a look at ready-made records: everything is decided on the model, by the naming grammar. It is what
    /// [`Self::respond`] must come to, too; for whoever compares the two. Not counted.
    pub fn respond_in_full(&self, parsed: &Parsed<'_>, transport: Transport, draw: u64, out: &mut Vec<u8>) -> Outcome {
        let writer = Writer { counters: &Counters::default(), ..self.writer(transport, draw) };
        self.respond_from(&self.snapshot.load(), parsed, None, writer, out)
    }

    pub(super) fn respond_as(&self, parsed: &Parsed<'_>, writer: Writer<'_>, out: &mut Vec<u8>) -> Outcome {
        let snapshot = self.snapshot.load();
        let place = if let Parsed::Query(query) = parsed { Place::of(&self.settings.zones, &snapshot, query.name()) } else { None };
        self.respond_from(&snapshot, parsed, place, writer, out)
    }

    /// Responds from ready-made records, where a place is given, or in full.
    fn respond_from(
        &self,
        snapshot: &Snapshot,
        parsed: &Parsed<'_>,
        place: Option<Place>,
        writer: Writer<'_>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        out.clear();
        match parsed {
            Parsed::Silent => Outcome::Silent,
            Parsed::Bad { query, rcode } => {
                writer.put(&Response::code(*rcode, None), query, out);
                Outcome::Answered
            }
            Parsed::Query(query) => {
                let asking = Asking { writer, first_serial: self.first_serial, snapshot, query };
                if place.is_some_and(|place| asking.fast(place, out)) { Outcome::Answered } else { asking.respond(out) }
            }
        }
    }

    /// Looks at messages that [`Self::respond_ahead`] is asked next, of which it knows 32: says nothing, but finds out what they
    /// ask for, and has what that needs fetched for all at once.
    pub fn look_ahead<'r>(&self, requests: impl Iterator<Item = &'r [u8]>) -> Ahead {
        Ahead::new(&self.settings.zones, self.snapshot.load(), requests)
    }

    /// Writes the response to a source that may not ask: REFUSED. `false`: stay silent.
    pub fn refuse(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        self.put_code(rcode::REFUSED, NO_ACCESS, request, out)
    }

    /// Writes the response to a question that would have to wait for an answer, where too many wait: SERVFAIL. `false`: stay
    /// silent.
    pub fn fail(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        self.put_code(rcode::SERVFAIL, TOO_MANY, request, out)
    }

    fn put_code(&self, code: u16, error: ExtendedError, request: &[u8], out: &mut Vec<u8>) -> bool {
        out.clear();
        let (Parsed::Bad { query, .. } | Parsed::Query(query)) = Query::parse(request) else { return false };
        self.writer(Transport::Udp, 0).put(&Response::code(code, Some(error)), &query, out);
        true
    }

    /// The latest publication.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The condition of what is known, as of the latest publication.
    pub fn condition(&self) -> Condition {
        self.snapshot.load().condition
    }

    /// What cannot be served, as of the latest publication.
    pub fn rejections(&self) -> Arc<Rejections> {
        self.rejections.load_full()
    }

    /// How much is known, as of the latest publication.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.load_full()
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Numbers of answers.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn writer(&self, transport: Transport, draw: u64) -> Writer<'_> {
        Writer { settings: &self.settings, transport, draw, counters: &self.counters }
    }
}
