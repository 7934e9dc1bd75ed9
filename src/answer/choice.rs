//! Weighted random order of records, and weighted samples if not all records fit.

use super::weights::Weights;

/// Largest sample drawn on the stack, in records; no UDP response holds more.
const MAX_SMALL_SAMPLE: usize = 128;

/// Order in which records are written.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "lives on the stack, one at a time")]
pub(super) enum Order {
    /// Rotation of the weighted records from `start`; weight 0 comes last.
    Rotation {
        /// Index of the first record.
        start: usize,
        /// Number of records with a weight above 0; they have the lowest indexes.
        weighted: usize,
    },
    /// Weighted sample of at most [`MAX_SMALL_SAMPLE`] records.
    SmallSample([u16; MAX_SMALL_SAMPLE]),
    /// Weighted sample of any size.
    LargeSample(Vec<usize>),
}

impl Order {
    /// Returns an order of all records; the first one is drawn by weight.
    pub(super) fn of_all(count: usize, weights: Weights<'_>, draw: u64) -> Self {
        let Some(last) = count.checked_sub(1) else {
            return Self::Rotation { start: 0, weighted: 0 };
        };
        if weights.are_equal() {
            return Self::Rotation { start: scale(draw, count), weighted: count };
        }
        let total = weights.sum(last);
        let weighted = partition_point(count, |index| weights.sum(index) < total) + 1;
        let ticket = u32::try_from(scale(draw, total.max(1) as usize)).unwrap_or(0);
        Self::Rotation {
            start: partition_point(weighted, |index| weights.sum(index) <= ticket),
            weighted,
        }
    }

    /// Returns a weighted sample of at most `limit` records, without replacement.
    ///
    /// With equal weights it returns an order of all records, because any prefix of that order is a
    /// fair sample.
    pub(super) fn of_some(limit: usize, count: usize, weights: Weights<'_>, draw: u64) -> Self {
        if weights.are_equal() {
            return Self::of_all(count, weights, draw);
        }
        let mut random = fastrand::Rng::with_seed(draw);
        if limit <= MAX_SMALL_SAMPLE && u16::try_from(count).is_ok() {
            Self::SmallSample(sample_small(limit.min(count), count, weights, &mut random))
        } else {
            Self::LargeSample(sample_large(limit, count, weights, &mut random))
        }
    }

    /// Returns the index of the record at a position of the order.
    pub(super) fn at(&self, position: usize) -> usize {
        match self {
            Self::Rotation { start, weighted } => match position {
                position if position < *weighted - *start => *start + position,
                position if position < *weighted => position - (*weighted - *start),
                position => position,
            },
            Self::SmallSample(order) => order.get(position).copied().map_or(0, usize::from),
            Self::LargeSample(order) => order.get(position).copied().unwrap_or(0),
        }
    }
}

/// Maps a random number to `0..count`; `count` is not 0.
fn scale(draw: u64, count: usize) -> usize {
    usize::try_from((u128::from(draw) * count as u128) >> 64).unwrap_or(0)
}

/// Draws a weighted sample one record at a time, without replacement.
///
/// A ticket is a point in the sum of the remaining weights. Stepping over the weights of drawn
/// records turns it into a point in the running sums, which are never rewritten.
fn sample_small(
    limit: usize,
    count: usize,
    weights: Weights<'_>,
    random: &mut fastrand::Rng,
) -> [u16; MAX_SMALL_SAMPLE] {
    let mut order = [0; MAX_SMALL_SAMPLE];
    // For each drawn record: the running sum before the record, and its weight; ascending.
    let mut drawn = [(0u32, 0u32); MAX_SMALL_SAMPLE];
    let mut weight_left = weights.sum(count - 1);
    let weighted = partition_point(count, |index| weights.sum(index) < weight_left)
        + usize::from(weight_left > 0);
    for position in 0..limit {
        let index = if position < weighted && weight_left > 0 {
            let mut ticket = random.u32(0..weight_left);
            let after = drawn[..position].iter().take_while(|(before, weight)| {
                let is_after = ticket >= *before;
                ticket += if is_after { *weight } else { 0 };
                is_after
            });
            let at = after.count();
            let index = partition_point(weighted, |index| weights.sum(index) <= ticket);
            let weight = weights.of(index);
            drawn.copy_within(at..position, at + 1);
            drawn[at] = (weights.sum_before(index), weight);
            weight_left -= weight;
            index
        } else {
            // Records of weight 0 follow in their stored order.
            position
        };
        order[position] = u16::try_from(index).unwrap_or(0);
    }
    order
}

/// Draws the records with the largest u^(1/w), for uniformly random u and weight w.
///
/// The method is from Efraimidis and Spirakis (2006).
fn sample_large(
    limit: usize,
    count: usize,
    weights: Weights<'_>,
    random: &mut fastrand::Rng,
) -> Vec<usize> {
    let key = |index: usize, random: &mut fastrand::Rng| {
        let weight = weights.of(index);
        if weight == 0 { -1.0 - random.f64() } else { random.f64().powf(1.0 / f64::from(weight)) }
    };
    let mut keyed: Vec<(f64, usize)> =
        (0..count).map(|index| (key(index, random), index)).collect();
    let heavier = |a: &(f64, usize), b: &(f64, usize)| b.0.total_cmp(&a.0);
    if limit < keyed.len() {
        keyed.select_nth_unstable_by(limit, heavier);
        keyed.truncate(limit);
    }
    keyed.sort_unstable_by(heavier);
    keyed.into_iter().map(|(_, index)| index).collect()
}

/// Returns the first index for which `holds` is false.
///
/// `holds` is true for all lower indexes and false for all others.
fn partition_point(count: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if holds(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running_sums(weights: &[u32]) -> Vec<u8> {
        let mut total = 0;
        weights
            .iter()
            .flat_map(|weight| {
                total += weight;
                total.to_be_bytes()
            })
            .collect()
    }

    /// Returns how often each record is drawn for each of the first positions.
    fn position_frequencies(
        weights: &[u32],
        limit: usize,
        rounds: u64,
        order: impl Fn(u64) -> Order,
    ) -> Vec<Vec<f64>> {
        let mut counts = vec![vec![0.0; weights.len()]; limit];
        for round in 0..rounds {
            let order = order(round);
            let mut seen = vec![false; weights.len()];
            for (position, count) in counts.iter_mut().enumerate() {
                let index = order.at(position);
                assert!(
                    !std::mem::replace(&mut seen[index], true),
                    "record {index} is drawn twice"
                );
                count[index] += 1.0;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        counts.iter_mut().flatten().for_each(|count| *count /= rounds as f64);
        counts
    }

    #[test]
    fn both_samplers_draw_by_weight_without_replacement() {
        let weights = [5, 1, 100, 1, 20, 3, 70, 0, 0];
        let bytes = running_sums(&weights);
        let sums = Weights::new(&bytes);
        let few = position_frequencies(&weights, 8, 60_000, |draw| {
            Order::of_some(8, weights.len(), sums, draw)
        });
        let many = position_frequencies(&weights, 8, 60_000, |draw| {
            Order::LargeSample(sample_large(
                8,
                weights.len(),
                sums,
                &mut fastrand::Rng::with_seed(draw),
            ))
        });
        for (position, (few, many)) in few.iter().zip(&many).enumerate().take(7) {
            for (index, (few, many)) in few.iter().zip(many).enumerate() {
                assert!(
                    (few - many).abs() < 0.015,
                    "record {index} at position {position}: {few} and {many}"
                );
            }
        }
        assert!((few[0][2] - 0.5).abs() < 0.015, "{}", few[0][2]);
        assert!(
            few[..7].iter().all(|position| position[7] + position[8] == 0.0),
            "records of weight 0 come last"
        );
    }

    #[test]
    fn a_full_order_has_each_record_once_and_its_first_by_weight() {
        let weights = [10, 30, 60, 0, 0];
        let bytes = running_sums(&weights);
        let sums = Weights::new(&bytes);
        let first = position_frequencies(&weights, 5, 20_000, |draw| {
            Order::of_all(5, sums, draw.wrapping_mul(0x9E37_79B9_7F4A_7C15))
        });
        assert!(
            (first[0][2] - 0.6).abs() < 0.02 && (first[0][0] - 0.1).abs() < 0.02,
            "{:?}",
            first[0]
        );
        assert!(first[3][3] > 0.99 && first[4][4] > 0.99);
        let equal = position_frequencies(&[1; 4], 4, 20_000, |draw| {
            Order::of_all(4, Weights::EQUAL, draw.wrapping_mul(0x9E37_79B9_7F4A_7C15))
        });
        assert!(equal[0].iter().all(|share| (share - 0.25).abs() < 0.02), "{equal:?}");
        let none = running_sums(&[0, 0, 0]);
        position_frequencies(&[0; 3], 3, 10, |draw| {
            Order::of_some(3, 3, Weights::new(&none), draw)
        });
    }
}
