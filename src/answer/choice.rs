//! Which records come first, and which at all: weighted choice.

use super::weights::Weights;

/// Most records of a sample that takes no memory of its own: no datagram holds more.
const MAX_SMALL_SAMPLE: usize = 128;

/// The order in which records are put.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "lives on the stack, one at a time")]
pub(super) enum Order {
    /// From `start` on, around the records that have a weight, then those that have none.
    Rotation {
        /// The first.
        start: usize,
        /// Records with a weight; they stand first.
        weighted: usize,
    },
    /// A weighted sample of few.
    SmallSample([u16; MAX_SMALL_SAMPLE]),
    /// A weighted sample of many.
    LargeSample(Vec<usize>),
}

impl Order {
    /// The order of all `count` records with these weights: the first place is drawn, in proportion
    /// to weight.
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

    /// The order of `most` of them at most: a sample by weight without replacement. Where all have the same weight, the order
    /// of all.
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

    /// The record at a place of the order.
    pub(super) fn at(&self, place: usize) -> usize {
        match self {
            Self::Rotation { start, weighted } => match place {
                place if place < *weighted - *start => *start + place,
                place if place < *weighted => place - (*weighted - *start),
                place => place,
            },
            Self::SmallSample(order) => order.get(place).copied().map_or(0, usize::from),
            Self::LargeSample(order) => order.get(place).copied().unwrap_or(0),
        }
    }
}

/// A number below `count`, which is not 0, from a draw.
fn scale(draw: u64, count: usize) -> usize {
    usize::try_from((u128::from(draw) * count as u128) >> 64).unwrap_or(0)
}

/// Draws one after the other among those that are left: a ticket is looked up where it would be with what was drawn before
/// still in its place.
fn sample_small(
    limit: usize,
    count: usize,
    weights: Weights<'_>,
    random: &mut fastrand::Rng,
) -> [u16; MAX_SMALL_SAMPLE] {
    let mut order = [0; MAX_SMALL_SAMPLE];
    // Of those drawn: the running sum in front of it, and its weight; sorted.
    let mut drawn = [(0u32, 0u32); MAX_SMALL_SAMPLE];
    let mut left = weights.sum(count - 1);
    let weighted =
        partition_point(count, |index| weights.sum(index) < left) + usize::from(left > 0);
    for place in 0..limit {
        let index = if place < weighted && left > 0 {
            let mut ticket = random.u32(0..left);
            let after = drawn[..place].iter().take_while(|(before, weight)| {
                let behind = ticket >= *before;
                ticket += if behind { *weight } else { 0 };
                behind
            });
            let at = after.count();
            let index = partition_point(weighted, |index| weights.sum(index) <= ticket);
            let weight = weights.of(index);
            drawn.copy_within(at..place, at + 1);
            drawn[at] = (weights.sum_before(index), weight);
            left -= weight;
            index
        } else {
            // Those of no weight, in their order.
            place
        };
        order[place] = u16::try_from(index).unwrap_or(0);
    }
    order
}

/// Efraimidis and Spirakis (2006): those with the largest u^(1/w) are a sample without replacement by weight.
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

/// The first index of `0..count` for which `below` does not hold; it holds for a prefix.
fn partition_point(count: usize, below: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if below(middle) { low = middle + 1 } else { high = middle }
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

    /// How often each record stands at each of the first places of a sample.
    fn places(
        weights: &[u32],
        limit: usize,
        rounds: u64,
        order: impl Fn(u64) -> Order,
    ) -> Vec<Vec<f64>> {
        let mut counts = vec![vec![0.0; weights.len()]; limit];
        for round in 0..rounds {
            let order = order(round);
            let mut seen = vec![false; weights.len()];
            for (place, count) in counts.iter_mut().enumerate() {
                let index = order.at(place);
                assert!(!std::mem::replace(&mut seen[index], true), "{index} comes twice");
                count[index] += 1.0;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        counts.iter_mut().flatten().for_each(|count| *count /= rounds as f64);
        counts
    }

    #[test]
    fn both_ways_to_sample_are_by_weight_without_replacement() {
        let weights = [5, 1, 100, 1, 20, 3, 70, 0, 0];
        let bytes = running_sums(&weights);
        let sums = Weights::new(&bytes);
        let few = places(&weights, 8, 60_000, |draw| Order::of_some(8, weights.len(), sums, draw));
        let many = places(&weights, 8, 60_000, |draw| {
            Order::LargeSample(sample_large(
                8,
                weights.len(),
                sums,
                &mut fastrand::Rng::with_seed(draw),
            ))
        });
        for (place, (few, many)) in few.iter().zip(&many).enumerate().take(7) {
            for (index, (few, many)) in few.iter().zip(many).enumerate() {
                assert!(
                    (few - many).abs() < 0.015,
                    "record {index} at place {place}: {few} and {many}"
                );
            }
        }
        assert!((few[0][2] - 0.5).abs() < 0.015, "{}", few[0][2]);
        assert!(few[..7].iter().all(|place| place[7] + place[8] == 0.0), "no weight comes last");
    }

    #[test]
    fn all_are_there_once_and_the_first_by_weight() {
        let weights = [10, 30, 60, 0, 0];
        let bytes = running_sums(&weights);
        let sums = Weights::new(&bytes);
        let first = places(&weights, 5, 20_000, |draw| {
            Order::of_all(5, sums, draw.wrapping_mul(0x9E37_79B9_7F4A_7C15))
        });
        assert!(
            (first[0][2] - 0.6).abs() < 0.02 && (first[0][0] - 0.1).abs() < 0.02,
            "{:?}",
            first[0]
        );
        assert!(first[3][3] > 0.99 && first[4][4] > 0.99);
        let equal = places(&[1; 4], 4, 20_000, |draw| {
            Order::of_all(4, Weights::EQUAL, draw.wrapping_mul(0x9E37_79B9_7F4A_7C15))
        });
        assert!(equal[0].iter().all(|share| (share - 0.25).abs() < 0.02), "{equal:?}");
        let none = running_sums(&[0, 0, 0]);
        places(&[0; 3], 3, 10, |draw| Order::of_some(3, 3, Weights::new(&none), draw));
    }
}
