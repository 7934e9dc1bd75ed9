//! Steps that are repeated, and the time of one repetition.

use std::hint::black_box;
use std::time::{Duration, Instant};

use svcdns::answer::{AnswerOutcome, Lookahead, ResponseSource};
use svcdns::wire::{Parsed, Query, Transport};

use super::common::cores;
use super::content::Store;
use super::figures::Spread;

/// Queries of one lookahead.
const QUERIES_PER_BATCH: usize = 32;

/// One step of answering a query, or of publishing a change.
pub(crate) struct Step {
    pub(crate) name: String,
    /// Length of the response in bytes; 0 for other steps.
    pub(crate) bytes: usize,
    run: Box<dyn FnMut()>,
}

impl Step {
    pub(crate) fn new(name: &str, run: impl FnMut() + 'static) -> Self {
        Self { name: name.to_owned(), bytes: 0, run: Box::new(run) }
    }

    /// Returns a step that parses the next query.
    pub(crate) fn parse(name: &str, queries: Queries) -> Self {
        let mut queries = queries.endless();
        Self::new(name, move || {
            let parsed = Query::parse(black_box(queries()));
            assert!(matches!(black_box(parsed), Parsed::Query(_)));
        })
    }

    /// Returns a step that parses and answers the next query.
    ///
    /// A lookahead covers 32 queries at a time, as on a busy socket. Every response must have this
    /// code and this number of answer records.
    pub(crate) fn response(
        name: &str,
        store: &Store,
        queries: Queries,
        code: u8,
        records: u16,
    ) -> Self {
        let (answerer, mut out, mut draw) = (store.answerer.clone(), Vec::new(), 0_u64);
        let mut respond = move |query: &[u8], looked: (&Lookahead, usize)| {
            // A cheap sequence of distant numbers: the first record, and those left out, must vary.
            draw = draw.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let parsed = Query::parse(black_box(query));
            let outcome =
                answerer.respond(&parsed, looked, Transport::Udp, black_box(draw), &mut out);
            assert_eq!(outcome, AnswerOutcome::Answered(ResponseSource::Registry));
            assert_eq!((out[3] & 0x0F, u16::from_be_bytes([out[6], out[7]])), (code, records));
            black_box(&out).len()
        };
        let (answerer, mut queries) = (store.answerer.clone(), queries.endless());
        let first = queries();
        let mut ahead = answerer.look_ahead(std::iter::once(first));
        let bytes = respond(first, (&ahead, 0));
        let (mut batch, mut number) = ([first; QUERIES_PER_BATCH], QUERIES_PER_BATCH);
        let run = move || {
            if number == QUERIES_PER_BATCH {
                batch.fill_with(&mut queries);
                ahead = answerer.look_ahead(batch.iter().map(|query| black_box(*query)));
                number = 0;
            }
            respond(batch[number], (&ahead, number));
            number += 1;
        };
        Self { bytes, ..Self::new(name, run) }
    }

    /// Repeats the step.
    pub(crate) fn repeat(&mut self, times: usize) {
        for _ in 0..times {
            (self.run)();
        }
    }
}

/// Returns the number of answer records of the response to a query over UDP.
pub(crate) fn answer_count(store: &Store, query: &[u8]) -> u16 {
    let mut out = Vec::new();
    let ahead = store.answerer.look_ahead(std::iter::once(query));
    store.answerer.respond(&Query::parse(query), (&ahead, 0), Transport::Udp, 1, &mut out);
    u16::from_be_bytes([out[6], out[7]])
}

/// Returns an empty step, for the cost of the measurement itself.
fn empty() -> Step {
    Step::new("nothing", || {
        black_box(0);
    })
}

/// Measures the CPU time of each step, in nanoseconds.
///
/// The time of an empty step is subtracted. Every round measures each step once, for `turn`.
pub(crate) fn time(steps: &mut [Step], rounds: usize, turn: Duration) -> Vec<Spread> {
    let mut empty = empty();
    let mut times = vec![Vec::with_capacity(rounds); steps.len()];
    let counts: Vec<_> = steps.iter_mut().map(|step| repetitions_in(turn, step)).collect();
    let count = repetitions_in(turn, &mut empty);
    for _ in 0..rounds {
        let overhead = time_of_one(&mut empty, count);
        for ((step, times), count) in steps.iter_mut().zip(&mut times).zip(&counts) {
            times.push((time_of_one(step, *count) - overhead).max(0.0));
        }
    }
    times.into_iter().map(Spread::new).collect()
}

/// Returns how many repetitions of a step take this time.
fn repetitions_in(turn: Duration, step: &mut Step) -> usize {
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < turn {
        step.repeat(100);
        count += 100;
    }
    count
}

/// Returns the average CPU time of a repetition, in nanoseconds.
fn time_of_one(step: &mut Step, count: usize) -> f64 {
    let before = cores::own_time();
    step.repeat(count);
    cores::own_time().saturating_sub(before).as_secs_f64() * 1e9 / count as f64
}

/// Concatenated queries of the same length, which live as long as the program.
#[derive(Clone, Copy)]
pub(crate) struct Queries {
    bytes: &'static [u8],
    length: usize,
}

impl Queries {
    pub(crate) fn of(queries: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let (mut bytes, mut length) = (Vec::new(), 0);
        for query in queries {
            assert!(length == 0 || length == query.len(), "queries differ in length");
            length = query.len();
            bytes.extend(query);
        }
        Self { bytes: bytes.leak(), length }
    }

    /// Returns the queries in turn, for ever.
    fn endless(self) -> impl FnMut() -> &'static [u8] {
        let mut rest = self.bytes;
        move || {
            if rest.is_empty() {
                rest = self.bytes;
            }
            let (first, others) = rest.split_at(self.length);
            rest = others;
            first
        }
    }
}
