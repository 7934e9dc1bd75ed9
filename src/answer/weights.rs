//! Weights of an RRset, stored as running sums.

use crate::wire::u32_at;

/// Size of one running sum, in bytes.
pub(super) const WEIGHT_SUM_BYTES: usize = 4;

/// The weights of a set as running sums; empty if all weights are equal.
///
/// Records of weight 0 come last, so the sums before them increase strictly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights<'a>(&'a [u8]);

impl<'a> Weights<'a> {
    /// Equal weights of all records.
    pub(super) const EQUAL: Self = Self(&[]);

    /// Wraps big-endian running sums; no sums mean that all weights are equal.
    pub(super) fn new(sums: &'a [u8]) -> Self {
        Self(sums)
    }

    /// Returns whether all weights are equal.
    pub(super) fn are_equal(self) -> bool {
        self.0.is_empty()
    }

    /// Returns the sum of the weights up to and including the record at `index`.
    pub(super) fn sum(self, index: usize) -> u32 {
        u32_at(self.0, WEIGHT_SUM_BYTES * index).unwrap_or(0)
    }

    /// Returns the sum of the weights before the record at `index`.
    pub(super) fn sum_before(self, index: usize) -> u32 {
        index.checked_sub(1).map_or(0, |before| self.sum(before))
    }

    /// Returns the weight of the record at `index`.
    pub(super) fn of(self, index: usize) -> u32 {
        self.sum(index) - self.sum_before(index)
    }
}
