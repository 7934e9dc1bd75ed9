//! Answers from the latest publication, for all who ask.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::ahead::{Ahead, Place};
use super::asking::{Asking, Outcome};
use super::counters::Counters;
use super::message::{Response, Writer};
use super::settings::Settings;
use super::table::Snapshot;
use crate::catalog::{RegistryStatus, Rejections, Stats};
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
    /// Looks at messages that came together, or at one alone, before they are answered.
    ///
    /// Finds out what the first 32 ask for, and fetches the memory that their answers need for all
    /// of them at once.
    pub fn look_ahead<'r>(&self, requests: impl Iterator<Item = &'r [u8]>) -> Ahead {
        Ahead::new(&self.settings.zones, self.snapshot.load(), requests)
    }

    /// Writes the response to a message into `out`, without TCP's length, if it is ours to give.
    ///
    /// `parsed` is the message as [`Query::parse`] reads it; `ahead` is what [`Self::look_ahead`]
    /// found, with the number of this message among those it saw: the response is of that
    /// publication. `draw` is a fresh random number, which decides which instance comes first.
    /// Never blocks and does no I/O; allocates nothing where ready-made records have the answer and
    /// `out` has room for it.
    pub fn respond(
        &self,
        parsed: &Parsed<'_>,
        (ahead, number): (&Ahead, usize),
        transport: Transport,
        draw: u64,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.answer(parsed, (&ahead.snapshot, ahead.place(number)), self.writer(transport, draw), out)
    }

    /// Writes the response that the naming grammar alone gives, without ready-made records.
    ///
    /// [`Self::respond`] must give the same: this is for tests that compare the two. Not counted.
    pub fn respond_in_full(&self, parsed: &Parsed<'_>, transport: Transport, draw: u64, out: &mut Vec<u8>) -> Outcome {
        let writer = Writer { counters: &Counters::default(), ..self.writer(transport, draw) };
        self.answer(parsed, (&self.snapshot.load(), None), writer, out)
    }

    /// Responds from ready-made records if the name's place is given and they have the answer, else
    /// from the model.
    pub(super) fn answer(
        &self,
        parsed: &Parsed<'_>,
        (snapshot, place): (&Snapshot, Option<Place>),
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
    pub fn condition(&self) -> RegistryStatus {
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
