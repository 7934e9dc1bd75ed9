//! Running sums of weights: how a record keeps the weights of a set.

use crate::wire::u32_at;

/// Octets of one running sum.
pub(super) const WEIGHT_SUM_BYTES: usize = 4;

/// The weights of a set as running sums; empty if all weights are equal.
///
/// Records of weight 0 are last, so the sums of all others ascend strictly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights<'a>(&'a [u8]);

impl<'a> Weights<'a> {
    /// All weights are equal.
    pub(super) const EQUAL: Self = Self(&[]);

    /// Weights with these sums, big-endian; all are equal where there are none.
    pub(super) fn new(sums: &'a [u8]) -> Self {
        Self(sums)
    }

    /// Whether all weights are equal.
    pub(super) fn are_equal(self) -> bool {
        self.0.is_empty()
    }

    /// The sum of the weights up to the record at `index`, its own included.
    pub(super) fn sum(self, index: usize) -> u32 {
        u32_at(self.0, WEIGHT_SUM_BYTES * index).unwrap_or(0)
    }

    /// The sum of the weights in front of the record at `index`.
    pub(super) fn sum_before(self, index: usize) -> u32 {
        index.checked_sub(1).map_or(0, |before| self.sum(before))
    }

    /// The weight of the record at `index`.
    pub(super) fn of(self, index: usize) -> u32 {
        self.sum(index) - self.sum_before(index)
    }
}
