//! Statistics of measured values, and a description of the machine.
#![allow(dead_code, reason = "each benchmark uses some of it")]

use std::fs;
use std::time::Duration;

/// Measured values, sorted; times are in milliseconds unless noted otherwise.
pub(crate) struct Spread(Vec<f64>);

impl Spread {
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(crate) fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        Self::new(times.into_iter().map(|time| time.as_secs_f64() * 1e3).collect())
    }

    /// Returns a percentile by nearest rank; `share` is 0 to 1.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        #[allow(clippy::cast_sign_loss, reason = "a share is not negative")]
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(0.5)
    }

    /// Returns whether this percentile is below the maximum.
    ///
    /// With few values a high percentile is the maximum itself.
    pub(crate) fn reaches(&self, share: f64) -> bool {
        (share * self.0.len() as f64).ceil() < self.0.len() as f64
    }

    /// Returns bounds of the true percentile, with [`CONFIDENCE`].
    ///
    /// The number of values below the true percentile follows the binomial distribution,
    /// regardless of the distribution of the values. Two of the values are therefore the bounds. A
    /// bound is infinite if there are too few values.
    pub(crate) fn bounds(&self, share: f64) -> [f64; 2] {
        let (count, tail) = (self.0.len(), (1.0 - CONFIDENCE) / 2.0);
        // Probability of `rank` values below, as a logarithm: the first may be too small for f64.
        let mut probability = count as f64 * (1.0 - share).ln();
        let mut fewer = 0.0;
        let mut bounds = [f64::NEG_INFINITY, f64::INFINITY];
        for rank in 0..=count {
            if rank > 0 && fewer <= tail {
                bounds[0] = self.0[rank - 1];
            }
            if rank > 0 && 1.0 - fewer <= tail {
                bounds[1] = self.0[rank - 1];
                break;
            }
            fewer += probability.exp();
            probability += ((count - rank) as f64 / (rank + 1) as f64 * share / (1.0 - share)).ln();
        }
        bounds
    }
}

/// Probability that a figure's true value lies within its bounds.
pub(crate) const CONFIDENCE: f64 = 0.95;

pub(crate) fn megabytes(kib: u64) -> f64 {
    (kib * 1024) as f64 / 1e6
}

/// Unit of the times in `/proc/PID/stat`, in microseconds.
///
/// Linux fixes `USER_HZ` at 100 on every architecture.
pub(crate) const TICK_US: f64 = 10_000.0;

/// Returns user and system time of a process with all its threads, in microseconds.
pub(crate) fn processor_time(pid: u32) -> [f64; 2] {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Fields 14 and 15. Field 2 is the program's name in parentheses, and may contain spaces.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    [fields[11], fields[12]].map(|field| field.parse::<f64>().unwrap() * TICK_US)
}

/// Describes the program's version and the machine, in one line.
pub(crate) fn machine() -> String {
    let build = if cfg!(debug_assertions) {
        "NOT optimized: its figures mean nothing"
    } else {
        "release build"
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown", |pair| pair.1);
    format!(
        "svcdns {} ({build}), Linux {}, {} cores ({}); load average before {}",
        env!("CARGO_PKG_VERSION"),
        kernel.trim(),
        processors.lines().filter(|line| line.starts_with("processor")).count(),
        processor.trim(),
        load_average()
    )
}

/// Returns the load average of the last minute.
pub(crate) fn load_average() -> String {
    fs::read_to_string("/proc/loadavg")
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}
