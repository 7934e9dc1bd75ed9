//! Something that is done again and again, and the time that one go takes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use svcdns::answer::{Ahead, Outcome};
use svcdns::wire::{Parsed, Query, Transport};

use super::common::cores;
use super::content::Store;
use super::figures::Spread;

/// Questions that come together.
const BATCH: usize = 32;

/// One step of the way of a question, or of a change.
pub(crate) struct Step {
    pub(crate) name: String,
    /// Octets of what it writes, where that is always the same.
    pub(crate) octets: usize,
    run: Box<dyn FnMut()>,
}

impl Step {
    pub(crate) fn new(name: &str, run: impl FnMut() + 'static) -> Self {
        Self { name: name.to_owned(), octets: 0, run: Box::new(run) }
    }

    /// Parses one question after the other, all of the same length.
    pub(crate) fn parse(name: &str, questions: Questions) -> Self {
        let mut questions = questions.endless();
        Self::new(name, move || {
            let parsed = Query::parse(black_box(questions()));
            assert!(matches!(black_box(parsed), Parsed::Query(_)));
        })
    }

    /// Parses and answers one question after the other, looked at 32 at a time as they come from a busy socket; the answers must
    /// have these flags in their second octet (the response code among them), and so many records in the answer section.
    pub(crate) fn answer(
        name: &str,
        store: &Store,
        questions: Questions,
        code: u8,
        records: u16,
    ) -> Self {
        let (answerer, mut out, mut draw) = (store.answerer.clone(), Vec::new(), 0_u64);
        let mut answer = move |question: &[u8], looked: (&Ahead, usize)| {
            // Cheap, and far from one another: which record comes first, or is left out, is to differ.
            draw = draw.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let parsed = Query::parse(black_box(question));
            assert_eq!(
                answerer.respond(&parsed, looked, Transport::Udp, black_box(draw), &mut out),
                Outcome::Answered
            );
            assert_eq!((out[3] & 0x0F, u16::from_be_bytes([out[6], out[7]])), (code, records));
            black_box(&out).len()
        };
        let (answerer, mut questions) = (store.answerer.clone(), questions.endless());
        let first = questions();
        let mut ahead = answerer.look_ahead(std::iter::once(first));
        let octets = answer(first, (&ahead, 0));
        let (mut batch, mut number) = ([first; BATCH], BATCH);
        let run = move || {
            if number == BATCH {
                batch.fill_with(&mut questions);
                ahead = answerer.look_ahead(batch.iter().map(|question| black_box(*question)));
                number = 0;
            }
            answer(batch[number], (&ahead, number));
            number += 1;
        };
        Self { octets, ..Self::new(name, run) }
    }

    /// Does it so often.
    pub(crate) fn repeat(&mut self, times: usize) {
        for _ in 0..times {
            (self.run)();
        }
    }
}

/// How many records the answer to a question over UDP holds.
pub(crate) fn records(store: &Store, question: &[u8]) -> u16 {
    let mut out = Vec::new();
    let ahead = store.answerer.look_ahead(std::iter::once(question));
    store.answerer.respond(&Query::parse(question), (&ahead, 0), Transport::Udp, 1, &mut out);
    u16::from_be_bytes([out[6], out[7]])
}

/// Nothing at all: what counting and timing themselves cost.
fn nothing() -> Step {
    Step::new("nothing", || {
        black_box(0);
    })
}

/// Nanoseconds of processor time of each step, less those of doing nothing: in every round each has its turn.
pub(crate) fn time(steps: &mut [Step], rounds: usize, turn: Duration) -> Vec<Spread> {
    let mut empty = nothing();
    let mut times = vec![Vec::with_capacity(rounds); steps.len()];
    let counts: Vec<_> = steps.iter_mut().map(|step| fill(step, turn)).collect();
    let count = fill(&mut empty, turn);
    for _ in 0..rounds {
        let idle = each(&mut empty, count);
        for ((step, times), count) in steps.iter_mut().zip(&mut times).zip(&counts) {
            times.push((each(step, *count) - idle).max(0.0));
        }
    }
    times.into_iter().map(Spread::new).collect()
}

/// How often a step can be done in this time.
fn fill(step: &mut Step, turn: Duration) -> usize {
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < turn {
        step.repeat(100);
        count += 100;
    }
    count
}

fn each(step: &mut Step, count: usize) -> f64 {
    let before = cores::own_time();
    step.repeat(count);
    cores::own_time().saturating_sub(before).as_secs_f64() * 1e9 / count as f64
}

/// Questions of one length, one behind the other, for as long as the program lasts.
#[derive(Clone, Copy)]
pub(crate) struct Questions {
    octets: &'static [u8],
    length: usize,
}

impl Questions {
    pub(crate) fn of(questions: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let (mut octets, mut length) = (Vec::new(), 0);
        for question in questions {
            assert!(length == 0 || length == question.len(), "questions differ in length");
            length = question.len();
            octets.extend(question);
        }
        Self { octets: octets.leak(), length }
    }

    /// One after the other, from the start again after the last.
    fn endless(self) -> impl FnMut() -> &'static [u8] {
        let mut rest = self.octets;
        move || {
            if rest.is_empty() {
                rest = self.octets;
            }
            let (first, others) = rest.split_at(self.length);
            rest = others;
            first
        }
    }
}
