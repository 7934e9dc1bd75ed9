//! The statistics of the benchmarks, on made-up samples.
#![allow(clippy::float_cmp, reason = "the samples are chosen so that every result is exact")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "figures are rounded for people"
)]
#![allow(clippy::unwrap_used, reason = "helpers of the benchmarks")]

#[path = "bench/figures.rs"]
mod figures;
#[path = "bench/peers/paired.rs"]
mod paired;
#[path = "bench/reading.rs"]
mod reading;

use figures::Spread;
use paired::{ByRound, Ratio, are_enough, paired};
use reading::{Aim, Reading, Verdict};

fn spread(values: impl IntoIterator<Item = u32>) -> Spread {
    Spread::new(values.into_iter().map(f64::from).collect())
}

fn reading(low: f64, value: f64, high: f64) -> Reading {
    Reading { low, value, high }
}

/// Returns samples without measurement error, by round.
fn exact(samples: &[(usize, f64)]) -> ByRound<Reading> {
    samples.iter().map(|(round, value)| (*round, Reading::exact(*value))).collect()
}

#[test]
fn bounds_of_a_median_are_order_statistics_of_the_binomial_distribution() {
    // From tables of the sign test, at 95 %.
    for (count, low, high) in
        [(6, 1, 6), (7, 1, 7), (8, 1, 8), (9, 2, 8), (21, 6, 16), (100, 40, 61)]
    {
        assert_eq!(
            spread(1..=count).bounds(0.5),
            [f64::from(low), f64::from(high)],
            "{count} values"
        );
    }
}

#[test]
fn five_samples_are_too_few_to_bound_a_median() {
    assert_eq!(spread(1..=5).bounds(0.5), [f64::NEG_INFINITY, f64::INFINITY]);
}

#[test]
fn an_upper_bound_of_p99_requires_hundreds_of_samples() {
    // 0.99^368 is below 2.5 %, 0.99^367 is not.
    assert_eq!(spread(1..=367).bounds(0.99)[1], f64::INFINITY);
    assert_eq!(spread(1..=368).bounds(0.99)[1], 368.0);
    let [low, high] = spread(1..=2000).bounds(0.99);
    assert!((1970.0..1975.0).contains(&low) && (1986.0..1992.0).contains(&high), "{low} {high}");
}

#[test]
fn a_quantile_equal_to_the_maximum_is_not_reported() {
    assert!(spread(1..=101).reaches(0.99));
    assert!(!spread(1..=99).reaches(0.99));
    assert!(!spread(1..=999).reaches(0.999));
}

#[test]
fn clock_resolution_widens_the_bounds_of_a_quantile() {
    let readings: Vec<Reading> =
        (1..=21).map(f64::from).map(|value| reading(value - 0.5, value, value + 2.0)).collect();
    assert_eq!(Reading::median(&readings), reading(5.5, 11.0, 18.0));
}

#[test]
fn bounds_of_a_ratio_combine_those_of_both_sides() {
    assert_eq!(reading(1.0, 2.0, 4.0).over(reading(2.0, 4.0, 8.0)), reading(0.125, 0.5, 2.0));
    assert_eq!(reading(-4.0, -2.0, -1.0).over(reading(2.0, 4.0, 8.0)), reading(-2.0, -0.5, -0.125));
}

#[test]
fn a_divisor_that_may_be_zero_leaves_a_ratio_unbounded() {
    let ratio = reading(1.0, 2.0, 3.0).over(reading(-1.0, 4.0, 8.0));
    assert_eq!(ratio, reading(f64::NEG_INFINITY, 0.5, f64::INFINITY));
    assert_eq!(Aim::AtMost(1.0).verdict(ratio), Verdict::NotDecidable);
}

#[test]
fn the_larger_of_two_ratios_has_the_larger_bounds() {
    assert_eq!(reading(0.5, 0.8, 1.3).max(reading(0.6, 0.7, 0.9)), reading(0.6, 0.8, 1.3));
}

#[test]
fn a_target_within_the_bounds_is_not_decidable() {
    for (low, high, at_most, at_least) in [
        (0.6, 0.9, Verdict::Met, Verdict::Missed),
        (0.6, 1.0, Verdict::Met, Verdict::NotDecidable),
        (0.8, 1.2, Verdict::NotDecidable, Verdict::NotDecidable),
        (1.0, 1.2, Verdict::NotDecidable, Verdict::Met),
        (1.1, 1.4, Verdict::Missed, Verdict::Met),
    ] {
        let read = reading(low, f64::midpoint(low, high), high);
        assert_eq!(Aim::AtMost(1.0).verdict(read), at_most, "at most 1, {read}");
        assert_eq!(Aim::AtLeast(1.0).verdict(read), at_least, "at least 1, {read}");
    }
}

#[test]
fn a_ratio_of_imprecise_readings_is_not_decidable() {
    // Once measured for svcdns and a bare watcher: 21.68 ± 12.06 ms and 30.66 ± 15.52 ms.
    let ratio = reading(9.62, 21.68, 33.74).over(reading(15.14, 30.66, 46.18));
    assert_eq!(
        Aim::AtMost(1.1).line("p99", ratio),
        "aim: p99 ≤ 1.10: 0.71 (0.21–2.23): not decidable"
    );
}

#[test]
fn a_reading_without_bounds_is_marked_unbounded() {
    let few = Reading::median(&[Reading::exact(0.5), Reading::exact(0.6), Reading::exact(0.7)]);
    assert_eq!(
        Aim::AtMost(1.0).line("p50", few),
        "aim: p50 ≤ 1.00: 0.60 (unbounded): not decidable"
    );
}

#[test]
fn samples_are_paired_by_their_round() {
    let (ours, theirs) = (
        ByRound::from([(0, "a"), (2, "c"), (3, "d")]),
        ByRound::from([(1, "B"), (2, "C"), (3, "D"), (4, "E")]),
    );
    assert_eq!(paired(&ours, &theirs), [[&"c", &"C"], [&"d", &"D"]]);
}

#[test]
fn a_ratio_never_compares_different_rounds() {
    // The machine is ten times as slow in odd rounds, and the other server skipped round 0.
    let ours = exact(&[(0, 1.0), (1, 10.0), (2, 1.0), (3, 10.0), (4, 1.0), (5, 10.0), (6, 1.0)]);
    let theirs = exact(&[(1, 20.0), (2, 2.0), (3, 20.0), (4, 2.0), (5, 20.0), (6, 2.0)]);
    let ratio = Ratio::of(&ours, &theirs, 7).unwrap();
    assert_eq!((ratio.median, ratio.rounds), (Reading::exact(0.5), 6));
}

#[test]
fn medians_next_to_a_ratio_come_from_the_same_rounds() {
    let ours = exact(&[(0, 900.0), (1, 900.0), (2, 100.0), (3, 110.0), (4, 120.0)]);
    let theirs = exact(&[(2, 200.0), (3, 220.0), (4, 240.0), (5, 1.0)]);
    let ratio = Ratio::of(&ours, &theirs, 6).unwrap();
    assert_eq!((ratio.rounds, ratio.medians), (3, [110.0, 220.0]));
    assert_eq!(ratio.median.value, 0.5);
}

#[test]
fn a_ratio_requires_half_of_the_planned_rounds() {
    let (ours, theirs) =
        (exact(&[(0, 1.0), (1, 1.0), (2, 1.0)]), exact(&[(1, 1.0), (2, 1.0), (3, 1.0)]));
    assert!(Ratio::of(&ours, &theirs, 4).is_some());
    assert!(Ratio::of(&ours, &theirs, 5).is_none());
    assert!(Ratio::of(&ours, &ByRound::new(), 0).is_none());
}

#[test]
fn half_of_the_rounds_suffice_but_not_zero_of_zero() {
    assert!(are_enough(3, 6) && are_enough(11, 21));
    assert!(!are_enough(10, 21) && !are_enough(0, 0));
}
