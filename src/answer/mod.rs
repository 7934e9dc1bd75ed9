//! Answers: ready-made records for the names that are asked for most, and the naming grammar for all others.
//!
//! [`Publisher`] owns what is known and publishes it; [`Answerer`] reads the latest publication without a lock. Neither does
//! I/O or keeps a clock. A question goes through one function, [`Answerer::respond`], however it came.

mod ahead;
mod asking;
mod choice;
mod compile;
mod explain;
mod fast;
mod full;
mod message;
mod publish;
mod record;
mod rrset;
mod shard;
mod sharded;
mod table;
#[cfg(test)]
mod tests;

pub use ahead::Ahead;
pub use explain::{Considered, Explanation, Tried};
pub use publish::{Publication, Published, Publisher};
pub use table::Snapshot;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::catalog::{Condition, Rejections, Stats};
use crate::metrics::Counter;
use crate::name::Zones;
use crate::wire::{ExtendedError, Parsed, Query, Transport, rcode};
use ahead::Place;
use asking::Asking;
use message::Response;

/// How names are answered.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The zones served; SRV targets, glue and PTR names lie in the first.
    pub zones: Zones,
    /// The deployment of names that spell none out, lower-cased.
    pub deployment: Box<str>,
    /// The namespace of names that spell none out, lower-cased.
    pub namespace: Box<str>,
    /// Whether a service without a key of version `latest` is answered with every version.
    pub version_fallback: bool,
    /// What to do when not all records fit.
    pub answers: Answers,
    /// TTL of positive answers, seconds.
    pub ttl: u32,
    /// TTL of negative answers and of the SOA record, seconds (RFC 2308 section 5).
    pub negative_ttl: u32,
    /// The addresses of `ns.<zone>`: those listened on.
    pub listen: Vec<IpAddr>,
    /// Whether names outside the zones are resolved elsewhere; else they are refused.
    pub forwarding: bool,
}

impl Settings {
    /// What svcdns comes with, for these zones: nothing is listened on, and names outside the zones are refused.
    #[must_use]
    pub fn new(zones: Zones) -> Self {
        Self {
            zones,
            deployment: "default".into(),
            namespace: "default".into(),
            version_fallback: true,
            answers: Answers::All,
            ttl: 5,
            negative_ttl: 1,
            listen: Vec::new(),
            forwarding: false,
        }
    }
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The response is written.
    Answered,
    /// There is nothing to say.
    Silent,
    /// The message is well-formed, its name lies outside the zones, and forwarding is on: somebody else is to be asked.
    Elsewhere,
}

/// What to do when not all records of an answer fit a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// As many as fit, and TC: the client may come back over TCP for all.
    #[default]
    All,
    /// As many as fit, without TC.
    Fit,
    /// At most so many records, over any transport.
    Count(NonZeroU16),
}

/// Answers questions from the latest publication. Shared by all who answer.
#[derive(Debug)]
pub struct Answerer {
    settings: Settings,
    snapshot: ArcSwap<Snapshot>,
    rejections: ArcSwap<Rejections>,
    stats: ArcSwap<Stats>,
    counters: Counters,
    /// The serial of generation 0: seconds since 1970 at the start, so that a restart does not go back.
    serial: u32,
}

/// Numbers of answers since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// By response code 0-15; BADVERS counts under 0, as its header says.
    rcodes: [Counter; 16],
    cut: Counter,
    left_out: Counter,
}

impl Counters {
    /// Answers with this response code, 0-15.
    pub fn answers(&self, rcode: usize) -> u64 {
        self.rcodes.get(rcode).map_or(0, Counter::get)
    }

    /// Answers that left records out, for want of room or by the `answers` setting.
    pub fn cut(&self) -> u64 {
        self.cut.get()
    }

    /// Records that those answers left out.
    pub fn left_out(&self) -> u64 {
        self.left_out.get()
    }
}

/// How a question is answered.
#[derive(Clone, Copy, Debug)]
struct Manner<'a> {
    transport: Transport,
    draw: u64,
    counters: &'a Counters,
}

const TOO_MANY: ExtendedError = ExtendedError { code: ExtendedError::OTHER, text: "too many questions wait for an upstream" };
const NO_ACCESS: ExtendedError = ExtendedError { code: ExtendedError::PROHIBITED, text: "" };

impl Answerer {
    /// Writes the whole response to a packet, as it was `parsed`, into `out` (without TCP's length), where it is ours to give.
    ///
    /// `draw` is a fresh random number: it decides which instance comes first. Never blocks, does no I/O; does not allocate
    /// where ready-made records have the answer and `out` has room for it.
    pub fn respond(&self, parsed: &Parsed<'_>, transport: Transport, draw: u64, out: &mut Vec<u8>) -> Outcome {
        self.respond_as(parsed, Manner { transport, draw, counters: &self.counters }, out)
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
        let manner = Manner { transport, draw, counters: &self.counters };
        self.respond_from(&ahead.snapshot, parsed, ahead.place(number), manner, out)
    }

    /// The same, without a look at ready-made records: everything is decided on the model, by the naming grammar. It is what
    /// [`Self::respond`] must come to, too; for whoever compares the two. Not counted.
    pub fn respond_in_full(&self, parsed: &Parsed<'_>, transport: Transport, draw: u64, out: &mut Vec<u8>) -> Outcome {
        let manner = Manner { transport, draw, counters: &Counters::default() };
        self.respond_from(&self.snapshot.load(), parsed, None, manner, out)
    }

    fn respond_as(&self, parsed: &Parsed<'_>, manner: Manner<'_>, out: &mut Vec<u8>) -> Outcome {
        let snapshot = self.snapshot.load();
        let place = if let Parsed::Query(query) = parsed { self.place(&snapshot, query.name()) } else { None };
        self.respond_from(&snapshot, parsed, place, manner, out)
    }

    /// Responds from ready-made records, where a place is given, or in full.
    fn respond_from(
        &self,
        snapshot: &Snapshot,
        parsed: &Parsed<'_>,
        place: Option<Place>,
        manner: Manner<'_>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        out.clear();
        match parsed {
            Parsed::Silent => Outcome::Silent,
            Parsed::Bad { query, rcode } => {
                self.put(&Response::code(*rcode, None), query, manner, out);
                Outcome::Answered
            }
            Parsed::Query(query) => Asking { answerer: self, manner, snapshot, query }.respond(place, out),
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
        let manner = Manner { transport: Transport::Udp, draw: 0, counters: &self.counters };
        self.put(&Response::code(code, Some(error)), &query, manner, out);
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

    fn put(&self, response: &Response<'_>, query: &Query<'_>, manner: Manner<'_>, out: &mut Vec<u8>) {
        let Manner { transport, draw, counters, .. } = manner;
        let left_out = message::write(response, query, transport, &self.settings, draw, out);
        counters.rcodes[usize::from(response.rcode & 0xF)].increment();
        if left_out > 0 {
            counters.cut.increment();
            counters.left_out.add(left_out as u64);
        }
    }

    fn serial(&self, snapshot: &Snapshot) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "serial numbers wrap (RFC 1982)")]
        self.serial.wrapping_add(snapshot.generation() as u32)
    }
}
