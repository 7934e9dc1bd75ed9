//! Ratios between two servers, from the rounds in which both were measured.

use std::collections::BTreeMap;

use super::figures::Spread;
use super::reading::Reading;

/// Samples by round; a server may miss rounds.
pub(crate) type ByRound<S> = BTreeMap<usize, S>;

/// Pairs the samples of two servers by round.
///
/// Rounds with a sample of only one of them are left out.
pub(crate) fn paired<'a, S>(ours: &'a ByRound<S>, theirs: &'a ByRound<S>) -> Vec<[&'a S; 2]> {
    ours.iter().filter_map(|(round, sample)| Some([sample, theirs.get(round)?])).collect()
}

/// Returns whether these are enough of the planned rounds: at least half.
pub(crate) fn are_enough(rounds: usize, planned: usize) -> bool {
    rounds > 0 && 2 * rounds >= planned
}

/// The ratio of two servers.
pub(crate) struct Ratio {
    /// Median of the ratios of the rounds.
    pub(crate) median: Reading,
    /// Number of rounds in which both were measured.
    pub(crate) rounds: usize,
    /// Median of each server in these rounds.
    pub(crate) medians: [f64; 2],
}

impl Ratio {
    /// Compares two servers; `None` if they share too few of the planned rounds.
    pub(crate) fn of(
        ours: &ByRound<Reading>,
        theirs: &ByRound<Reading>,
        planned: usize,
    ) -> Option<Self> {
        let pairs = paired(ours, theirs);
        if !are_enough(pairs.len(), planned) {
            return None;
        }
        let ratios: Vec<Reading> = pairs.iter().map(|[ours, theirs]| ours.over(**theirs)).collect();
        let median =
            |side: usize| Spread::new(pairs.iter().map(|pair| pair[side].value).collect()).median();
        Some(Self {
            median: Reading::median(&ratios),
            rounds: pairs.len(),
            medians: [median(0), median(1)],
        })
    }
}
