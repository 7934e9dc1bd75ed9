//! The fast answer equals the full answer, octet for octet, after any sequence of changes: short here, for millions of
//! questions in `make properties`.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "fuzz/src/lib.rs"]
mod fuzz;

use std::cell::RefCell;

use allocation_counter::measure;
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};

use fuzz::answers::Kinds;
use fuzz::world::{ACT, act_out};

/// Cases where `PROPTEST_CASES` does not say how many: some 20,000 questions.
const CASES: u32 = 160;
/// Most acts of a case: three quarters of them are questions.
const ACTS: usize = 350;

#[test]
fn ready_made_answers_equal_full_ones() {
    let mut config = ProptestConfig {
        max_shrink_iters: 4_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let allocates = |work: &mut dyn FnMut()| measure(work).count_total > 0;
    let kinds = RefCell::new(Kinds { allocates, ..Kinds::unmeasured() });
    // Numbers, not octets: there are fewer of them to draw and to shrink.
    let acts = prop::collection::vec(any::<[u64; ACT / 8]>(), 1..ACTS);
    let octets = |acts: &[[u64; ACT / 8]]| -> Vec<u8> {
        acts.as_flattened().iter().flat_map(|number| number.to_le_bytes()).collect()
    };
    let result = TestRunner::new(config).run(&acts, |acts| {
        act_out(&octets(&acts), &mut kinds.borrow_mut());
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, acts)) => {
            let found = concat!(env!("CARGO_TARGET_TMPDIR"), "/changes");
            std::fs::write(found, octets(&acts)).unwrap();
            panic!("{reason}\n{found} has the octets, to be kept in tests/fuzz/corpus/changes");
        }
        Err(error) => panic!("{error}"),
    }
    let counts = kinds.into_inner().counts;
    let questions: u64 = counts.values().map(|[all, _]| all).sum();
    println!(
        "{questions} questions: kinds of answers, how many, and how many of them without an allocation: {counts:?}"
    );
    for kind in [
        "records",
        "services",
        "services with glue",
        "cut",
        "no data",
        "no such name",
        "cannot say",
        "refused",
        "not taken",
    ] {
        let [all, ready] = counts.get(kind).copied().unwrap_or_default();
        assert!(
            all * 1_000 > questions,
            "less than one in 1,000 answers is of the kind {kind:?}: {counts:?}"
        );
        // A name of the other kinds is seldom worth a ready-made record, or never.
        let least = if ["records", "services with glue", "cut", "no data", "no such name"]
            .contains(&kind)
        {
            10
        } else {
            0
        };
        assert!(
            ready * 100 >= all * least,
            "less than {least} % of the answers of the kind {kind:?} were ready: {counts:?}"
        );
    }
}
