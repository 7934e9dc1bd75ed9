//! Replays the fuzzing corpus of `make fuzz`: `tests/fuzz/corpus/<target>/`.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "fuzz/src/lib.rs"]
mod fuzz;

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// Returns the entries of a directory, sorted.
fn entries(folder: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect()
}

#[test]
fn every_fuzz_target_accepts_its_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    for (name, target) in fuzz::TARGETS {
        let files = entries(&corpus.join(name));
        assert!(files.len() > 10, "there is no corpus of {name}");
        for file in files {
            let input = fs::read(&file).unwrap();
            assert!(catch_unwind(|| target(&input)).is_ok(), "{}", file.display());
        }
    }
    let folders: BTreeSet<_> = entries(&corpus);
    assert_eq!(
        folders,
        fuzz::TARGETS.iter().map(|(name, _)| corpus.join(name)).collect(),
        "directories of the corpus and targets differ"
    );
}
