//! Wall-clock times of the monotonic times that the server counts in.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock and the wall clock at one moment.
///
/// Read both again for each conversion: the wall clock may jump.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    instant: Instant,
    time: SystemTime,
}

impl WallClock {
    /// Reads both clocks.
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    /// Returns the wall-clock time of an instant, to the nearest second.
    pub fn time_of(&self, instant: Instant) -> UnixTime {
        let since_epoch = self.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = match instant.checked_duration_since(self.instant) {
            Some(later) => since_epoch.saturating_add(later),
            None => since_epoch.saturating_sub(self.instant.duration_since(instant)),
        };
        UnixTime(time.saturating_add(Duration::from_millis(500)).as_secs())
    }
}

/// Seconds since 1970-01-01 UTC.
///
/// Displays as the time of day: `14:03:05 UTC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime(pub u64);

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (minutes, second) = (self.0 / 60, self.0 % 60);
        write!(f, "{:02}:{:02}:{second:02} UTC", minutes / 60 % 24, minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_as_the_time_of_day_in_utc() {
        assert_eq!(UnixTime(0).to_string(), "00:00:00 UTC");
        // date -u -d '2026-11-30 14:03:05' +%s
        assert_eq!(UnixTime(1_796_047_385).to_string(), "14:03:05 UTC");
    }

    #[test]
    fn instants_before_and_after_now_have_a_wall_clock_time() {
        let seconds = Duration::from_secs;
        let instant = Instant::now() + seconds(100);
        let clock = WallClock { instant, time: UNIX_EPOCH + Duration::from_millis(1_000_400) };
        assert_eq!(clock.time_of(instant), UnixTime(1_000));
        assert_eq!(clock.time_of(instant + Duration::from_millis(200)), UnixTime(1_001));
        assert_eq!(clock.time_of(instant + seconds(12)), UnixTime(1_012));
        assert_eq!(clock.time_of(instant.checked_sub(seconds(12)).unwrap()), UnixTime(988));
        // The clock of a machine without a battery starts in 1970.
        let clock = WallClock { instant, time: UNIX_EPOCH };
        assert_eq!(clock.time_of(instant.checked_sub(seconds(12)).unwrap()), UnixTime(0));
    }
}
