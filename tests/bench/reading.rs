//! Measured figures with their bounds, and verdicts on aims.
#![allow(dead_code, reason = "each benchmark uses some of it")]

use std::fmt;

use super::figures::{CONFIDENCE, Spread};

/// A measured figure and the bounds of its true value.
///
/// The bounds come from the resolution of each sample and from the number of samples. A bound is
/// infinite if there are too few samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reading {
    pub(crate) low: f64,
    pub(crate) value: f64,
    pub(crate) high: f64,
}

impl Reading {
    /// Returns a reading without measurement error.
    pub(crate) fn exact(value: f64) -> Self {
        Self { low: value, value, high: value }
    }

    /// Returns a quantile of readings.
    ///
    /// Its bounds follow from those of the readings and from their number.
    pub(crate) fn quantile(readings: &[Self], share: f64) -> Self {
        let spread = |of: fn(&Self) -> f64| Spread::new(readings.iter().map(of).collect());
        let [lowest, _] = spread(|reading| reading.low).bounds(share);
        let [_, highest] = spread(|reading| reading.high).bounds(share);
        Self {
            low: lowest,
            value: spread(|reading| reading.value).percentile(share),
            high: highest,
        }
    }

    /// Returns the median of readings, with bounds like any quantile.
    pub(crate) fn median(readings: &[Self]) -> Self {
        Self::quantile(readings, 0.5)
    }

    /// Returns the larger value, with the larger of each bound.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            low: self.low.max(other.low),
            value: self.value.max(other.value),
            high: self.high.max(other.high),
        }
    }

    /// Returns the values without their bounds.
    pub(crate) fn values(readings: &[Self]) -> Spread {
        Spread::new(readings.iter().map(|reading| reading.value).collect())
    }

    /// Divides one reading by another; unbounded if the divisor may be zero.
    pub(crate) fn over(self, divisor: Self) -> Self {
        let value = self.value / divisor.value;
        if divisor.low <= 0.0 {
            return Self { low: f64::NEG_INFINITY, value, high: f64::INFINITY };
        }
        let lowest = self.low / if self.low < 0.0 { divisor.low } else { divisor.high };
        let highest = self.high / if self.high < 0.0 { divisor.high } else { divisor.low };
        Self { low: lowest, value, high: highest }
    }
}

/// Formats as `1.05 (1.01–1.20)`; the precision sets the digits.
impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { low, value, high } = self;
        let digits = f.precision().unwrap_or(2);
        if low.is_finite() && high.is_finite() {
            write!(f, "{value:.digits$} ({low:.digits$}–{high:.digits$})")
        } else {
            write!(f, "{value:.digits$} (unbounded)")
        }
    }
}

/// Explains the bounds in parentheses after the figure of an aim.
pub(crate) fn note() -> String {
    format!(
        "Bounds of a figure: {:.0} % confidence by the number of samples, widened by the \
         resolution of each sample; an aim within the bounds is not decidable",
        100.0 * CONFIDENCE
    )
}

/// The limit that a figure should keep.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    AtMost(f64),
    AtLeast(f64),
}

/// Verdict of a reading on an aim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// The limit lies within the bounds of the reading.
    NotDecidable,
}

impl Aim {
    /// Judges a reading: both bounds must be on one side of the limit.
    pub(crate) fn verdict(self, reading: Reading) -> Verdict {
        let (met, missed) = match self {
            Self::AtMost(limit) => (reading.high <= limit, reading.low > limit),
            Self::AtLeast(limit) => (reading.low >= limit, reading.high < limit),
        };
        if met {
            Verdict::Met
        } else if missed {
            Verdict::Missed
        } else {
            Verdict::NotDecidable
        }
    }

    /// Returns a line with the aim and its verdict, in the form of all benchmarks.
    pub(crate) fn line(self, what: &str, reading: Reading) -> String {
        format!("aim: {what} {self}: {reading:.2}: {}", self.verdict(reading))
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit:.2}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit:.2}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::NotDecidable => "not decidable",
        })
    }
}
