//! Fast and full path write the same bytes after any sequence of changes.
//!
//! `make properties` runs the same test with millions of queries.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "fuzz/src/lib.rs"]
mod fuzz;

use std::cell::RefCell;

use allocation_counter::measure;
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};

use fuzz::answers::Kinds;
use fuzz::world::{ACT, act_out};

/// Default number of cases, about 40,000 queries; `PROPTEST_CASES` overrides it.
const DEFAULT_CASES: u32 = 320;
/// Maximum number of acts in a case; three quarters of them are queries.
const MAX_ACTS: usize = 350;

#[test]
fn the_fast_and_the_full_path_agree_after_any_changes() {
    let mut config = ProptestConfig {
        max_shrink_iters: 4_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = DEFAULT_CASES;
    }
    let allocates = |work: &mut dyn FnMut()| measure(work).count_total > 0;
    let kinds = RefCell::new(Kinds { allocates, ..Kinds::unmeasured() });
    // Numbers instead of bytes, because fewer values are faster to draw and to shrink.
    let acts = prop::collection::vec(any::<[u64; ACT / 8]>(), 1..MAX_ACTS);
    let to_bytes = |acts: &[[u64; ACT / 8]]| -> Vec<u8> {
        acts.as_flattened().iter().flat_map(|number| number.to_le_bytes()).collect()
    };
    let result = TestRunner::new(config).run(&acts, |acts| {
        act_out(&to_bytes(&acts), &mut kinds.borrow_mut());
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, acts)) => {
            let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/changes");
            std::fs::write(path, to_bytes(&acts)).unwrap();
            panic!("{reason}\n{path} has the input: add it to tests/fuzz/corpus/changes");
        }
        Err(error) => panic!("{error}"),
    }
    let counts = kinds.into_inner().counts;
    let queries: u64 = counts.values().map(|[all, _]| all).sum();
    println!(
        "{queries} queries: kinds of responses, their number, and those without allocation: \
         {counts:?}"
    );
    for kind in [
        "records",
        "alias",
        "services",
        "services with glue",
        "cut",
        "no data",
        "no such name",
        "cannot say",
        "refused",
        "not taken",
    ] {
        let [all, fast] = counts.get(kind).copied().unwrap_or_default();
        assert!(
            all * 1_000 > queries,
            "less than one in 1,000 responses is of the kind {kind:?}: {counts:?}"
        );
        // The fast path seldom or never answers queries of the other kinds.
        let least = if ["records", "alias", "services with glue", "cut", "no data", "no such name"]
            .contains(&kind)
        {
            10
        } else {
            0
        };
        assert!(
            fast * 100 >= all * least,
            "less than {least} % of the responses of the kind {kind:?} were fast: {counts:?}"
        );
    }
}
