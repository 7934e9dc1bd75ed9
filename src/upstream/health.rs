//! Health of an upstream: response times, failures, and whether it is alive.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// An upstream is dead once a query has gone unanswered for this long.
///
/// No query waits for a dead upstream until it responds again.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Silence after which the next upstream in strict order is queried, too.
///
/// After this time, a probe also finds out whether the silent upstream is alive.
pub(super) const SILENCE_LIMIT: Duration = Duration::from_millis(400);

/// Minimum delay before a query is hedged.
///
/// With a shorter delay, jitter would double the traffic without a noticeable gain.
const MIN_HEDGE_DELAY: Duration = Duration::from_millis(20);

/// Maximum delay before a query is hedged.
///
/// The delay is short enough for the second upstream to answer before [`RESPONSE_TIMEOUT`].
const MAX_HEDGE_DELAY: Duration = Duration::from_millis(400);

/// Delay before a query is hedged as long as there are few samples.
const DEFAULT_HEDGE_DELAY: Duration = Duration::from_millis(200);

/// Time after which an unused upstream is due for a probe.
///
/// Probes keep its rank up to date. A dead upstream that is not queried counts as dead only for
/// this time, because networks change unnoticed.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// First interval between probes of a dead upstream while other upstreams answer.
///
/// It doubles up to [`MAX_DEAD_PROBE_INTERVAL`].
const DEAD_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum interval between probes of a dead upstream while other upstreams answer.
const MAX_DEAD_PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Time for which an upstream without EDNS support is queried without EDNS.
const EDNS_RETRY_AFTER: Duration = Duration::from_secs(900);

/// Minimum time between two log messages that an upstream is dead.
///
/// An upstream that is always slightly too slow dies and recovers with every query.
const DEATH_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Number of round-trip time bands.
///
/// Each power of two microseconds has two bands, up to 2^20 (1 s).
const RTT_BANDS: usize = 40;

/// First band that matters for ranks: round trips below 2^10 µs (1 ms) are equal.
const BEST_RTT_BAND: usize = 20;

/// Samples after which all counts are halved, so that old samples fade.
const HALVE_AFTER_SAMPLES: u16 = 256;

/// Number of samples needed for a percentile.
const MIN_SAMPLES: u16 = 16;

/// Order of preference; the lowest rank is queried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Alive, in this band of round-trip times; the band is 0 if unknown.
    Alive(usize),
    /// Answers, but refused or failed the latest queries.
    Refusing,
    /// Has not answered for [`RESPONSE_TIMEOUT`].
    Dead,
}

/// Measurements of one upstream.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The upstream as the configuration writes it.
    upstream: String,
    state: Mutex<HealthState>,
    /// Notified when the upstream comes back to life or becomes unreachable.
    changed: Arc<Notify>,
}

/// The state behind the lock of [`Health`].
#[derive(Debug)]
struct HealthState {
    /// Smoothed round-trip time in microseconds (RFC 6298 section 2); 0 if unknown.
    smoothed: u32,
    bands: [u16; RTT_BANDS],
    samples: u16,
    hedge_delay: Duration,
    /// Send time of the first query since the last response.
    unanswered_since: Option<Instant>,
    /// Time at which a query was last sent.
    queried_at: Option<Instant>,
    /// Time at which a response last arrived.
    responded_at: Option<Instant>,
    /// Time at which an attempt last found the upstream unreachable.
    unreachable_at: Option<Instant>,
    /// Time at which a probe was last sent.
    probed_at: Option<Instant>,
    /// Time of the last EDNS check.
    edns_checked_at: Option<Instant>,
    /// Whether the latest error means that the upstream is unreachable.
    unreachable: bool,
    /// Time of the upstream's death, once the death has been logged.
    logged_dead_since: Option<Instant>,
    /// Time of the last log message about a death.
    death_logged_at: Option<Instant>,
    /// Time of the next probe.
    next_probe: Option<Instant>,
    dead_probe_interval: Duration,
    refusals: u8,
    no_edns_until: Option<Instant>,
    queries: u64,
    responses: u64,
    failures: u64,
    last_error: Option<String>,
}

impl Default for HealthState {
    fn default() -> Self {
        Self {
            smoothed: 0,
            bands: [0; RTT_BANDS],
            samples: 0,
            hedge_delay: DEFAULT_HEDGE_DELAY,
            unanswered_since: None,
            queried_at: None,
            responded_at: None,
            unreachable_at: None,
            probed_at: None,
            edns_checked_at: None,
            unreachable: false,
            logged_dead_since: None,
            death_logged_at: None,
            next_probe: None,
            dead_probe_interval: DEAD_PROBE_INTERVAL,
            refusals: 0,
            no_edns_until: None,
            queries: 0,
            responses: 0,
            failures: 0,
            last_error: None,
        }
    }
}

/// Health of an upstream for status output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamReport {
    /// The upstream as the configuration writes it.
    pub upstream: String,
    /// Smoothed round-trip time; `None` before the first response.
    pub round_trip: Option<Duration>,
    /// Whether a query has gone unanswered for 1 s, so that queries no longer wait.
    pub dead: bool,
    /// Whether the upstream sends queries back to svcdns and is therefore not used.
    pub looping: bool,
    /// Queries sent, including retransmissions.
    pub asked: u64,
    /// Responses received, including late ones.
    pub answered: u64,
    /// Queries without a response so far, including those in flight.
    pub unanswered: u64,
    /// Attempts that failed other than by a timeout.
    ///
    /// The upstream could not be reached, or its response was invalid.
    pub failed: u64,
    /// Error of the last failed attempt.
    pub last_error: Option<String>,
}

impl Health {
    /// Creates the health of a new upstream; `upstream` is its configured text.
    ///
    /// `changed` is notified when the upstream comes back to life or becomes unreachable.
    pub(super) fn new(upstream: String, changed: Arc<Notify>) -> Self {
        Self { upstream, state: Mutex::default(), changed }
    }

    /// Locks the state, which remains usable after a panic of another thread.
    fn lock(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a query was sent.
    pub(super) fn record_query(&self, now: Instant) {
        let mut state = self.lock();
        state.queries += 1;
        state.queried_at = Some(now);
        state.unanswered_since.get_or_insert(now);
    }

    /// Records a response that took `after`, regardless of its content.
    pub(super) fn record_response(&self, after: Duration, now: Instant) {
        let mut state = self.lock();
        state.responses += 1;
        let was_dead = state.is_dead(now);
        state.responded_at = Some(now);
        state.unanswered_since = None;
        state.unreachable = false;
        let logged_dead_since = state.logged_dead_since.take();
        state.dead_probe_interval = DEAD_PROBE_INTERVAL;
        state.next_probe = Some(now + PROBE_INTERVAL);
        state.record_rtt(after);
        drop(state);
        if was_dead {
            self.changed.notify_waiters();
        }
        if let Some(since) = logged_dead_since {
            tracing::info!(
                "the upstream {} answers again, after {}",
                self.upstream,
                rounded(now.saturating_duration_since(since))
            );
        }
    }

    /// Records an attempt that failed other than by a timeout.
    pub(super) fn record_failure(&self, reason: &str, unreachable: bool, now: Instant) {
        let mut state = self.lock();
        state.failures += 1;
        if state.last_error.as_deref() != Some(reason) {
            state.last_error = Some(reason.to_owned());
        }
        if unreachable {
            state.unreachable = true;
            state.unreachable_at = Some(now);
            // No response is pending for which the next probe would have to wait.
            state.probed_at = None;
            if !state.is_dead(now) {
                // An unreachable upstream is dead at once.
                state.unanswered_since =
                    now.checked_sub(RESPONSE_TIMEOUT).or(state.unanswered_since);
            }
            let death = state.death_notice(now);
            drop(state);
            self.changed.notify_waiters();
            self.log_death(death);
        }
    }

    /// Logs the death of the upstream.
    fn log_death(&self, death: Option<String>) {
        if let Some(death) = death {
            let upstream = &self.upstream;
            tracing::warn!(
                "the upstream {upstream} {death}; other upstreams, if any, are queried instead \
                 until it answers again"
            );
        }
    }

    /// Records whether the upstream refused or failed to understand a query.
    pub(super) fn record_refusal(&self, refused: bool) {
        let mut state = self.lock();
        state.refusals = if refused { state.refusals.saturating_add(1) } else { 0 };
    }

    /// Returns the upstream's rank among others, and logs its death.
    pub(super) fn rank(&self, now: Instant) -> Rank {
        let mut state = self.lock();
        if state.is_dead(now) {
            let death = state.death_notice(now);
            drop(state);
            self.log_death(death);
            Rank::Dead
        } else if state.refusals >= 3 {
            Rank::Refusing
        } else if state.smoothed == 0 {
            Rank::Alive(0)
        } else {
            Rank::Alive(rtt_band(state.smoothed).max(BEST_RTT_BAND))
        }
    }

    /// Returns whether the upstream has not answered for [`RESPONSE_TIMEOUT`].
    pub(super) fn is_dead(&self, now: Instant) -> bool {
        self.lock().is_dead(now)
    }

    /// Returns whether the upstream is dead and a recent query confirms it.
    pub(super) fn is_known_dead(&self, now: Instant) -> bool {
        let queried_at = self.lock().queried_at;
        queried_at.is_some_and(|at| now.saturating_duration_since(at) < PROBE_INTERVAL)
            && self.rank(now) == Rank::Dead
    }

    /// Returns whether a response has arrived after this time.
    pub(super) fn has_responded_since(&self, since: Instant) -> bool {
        self.lock().responded_at.is_some_and(|at| at > since)
    }

    /// Returns whether an attempt after this time found the upstream unreachable.
    pub(super) fn is_unreachable_since(&self, since: Instant) -> bool {
        let state = self.lock();
        state.unreachable && state.unreachable_at.is_some_and(|at| at >= since)
    }

    /// Returns whether the upstream is due for a probe, and schedules the next one.
    pub(super) fn take_probe(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let due = state.next_probe.is_none_or(|at| at <= now);
        if due {
            let after = if state.is_dead(now) { state.dead_probe_interval } else { PROBE_INTERVAL };
            state.dead_probe_interval =
                (state.dead_probe_interval * 2).min(MAX_DEAD_PROBE_INTERVAL);
            state.next_probe = Some(now + after);
        }
        due
    }

    /// Returns whether a probe may be sent, at least `gap` after the last; records it.
    pub(super) fn may_probe(&self, now: Instant, gap: Duration) -> bool {
        elapsed(&mut self.lock().probed_at, now, gap)
    }

    /// Returns whether EDNS may be checked, at least `gap` after the last; records it.
    pub(super) fn may_check_edns(&self, now: Instant, gap: Duration) -> bool {
        elapsed(&mut self.lock().edns_checked_at, now, gap)
    }

    /// Returns the delay before hedging: the 95th percentile, within bounds.
    pub(super) fn hedge_delay(&self) -> Duration {
        self.lock().hedge_delay
    }

    /// Records that the upstream does not support EDNS, and logs it.
    pub(super) fn disable_edns(&self, now: Instant) {
        let before = self.lock().no_edns_until.replace(now + EDNS_RETRY_AFTER);
        if before.is_none_or(|until| until <= now) {
            tracing::info!(
                "the upstream {} fails queries with EDNS: it is queried without EDNS for {}",
                self.upstream,
                rounded(EDNS_RETRY_AFTER)
            );
        }
    }

    /// Returns whether the upstream is currently queried without EDNS.
    pub(super) fn is_edns_disabled(&self, now: Instant) -> bool {
        self.lock().no_edns_until.is_some_and(|until| now < until)
    }

    /// Returns the measurements for status output.
    pub(super) fn report(&self, looping: bool, now: Instant) -> UpstreamReport {
        let state = self.lock();
        UpstreamReport {
            upstream: self.upstream.clone(),
            round_trip: (state.smoothed > 0).then(|| Duration::from_micros(state.smoothed.into())),
            dead: state.is_dead(now),
            looping,
            asked: state.queries,
            answered: state.responses,
            unanswered: state.queries.saturating_sub(state.responses),
            failed: state.failures,
            last_error: state.last_error.clone(),
        }
    }
}

impl HealthState {
    /// Returns whether a query has gone unanswered for [`RESPONSE_TIMEOUT`].
    fn is_dead(&self, now: Instant) -> bool {
        self.unanswered_since
            .is_some_and(|since| now.saturating_duration_since(since) >= RESPONSE_TIMEOUT)
    }

    /// Returns the log text for the upstream's death, once per death.
    fn death_notice(&mut self, now: Instant) -> Option<String> {
        let quiet = self
            .death_logged_at
            .is_some_and(|at| now.saturating_duration_since(at) < DEATH_LOG_INTERVAL);
        let since = self
            .unanswered_since
            .filter(|_| self.is_dead(now) && self.logged_dead_since.is_none() && !quiet)?;
        (self.logged_dead_since, self.death_logged_at) = (Some(since), Some(now));
        Some(match &self.last_error {
            Some(reason) if self.unreachable => format!("cannot be reached: {reason}"),
            _ => format!("has not answered for {}", rounded(now.saturating_duration_since(since))),
        })
    }

    /// Adds a sample of the round-trip time.
    ///
    /// Samples are capped at [`RESPONSE_TIMEOUT`], because no client waits longer. The length of a
    /// hang says nothing about the next response.
    fn record_rtt(&mut self, after: Duration) {
        let micros =
            u32::try_from(after.min(RESPONSE_TIMEOUT).as_micros()).unwrap_or(u32::MAX).max(1);
        self.smoothed = if self.smoothed == 0 {
            micros
        } else {
            (self.smoothed - self.smoothed / 8 + micros / 8).max(1)
        };
        self.bands[rtt_band(micros)] += 1;
        self.samples += 1;
        if self.samples >= HALVE_AFTER_SAMPLES {
            self.bands.iter_mut().for_each(|count| *count /= 2);
            self.samples = self.bands.iter().sum();
        }
        if self.samples >= MIN_SAMPLES && self.samples.is_multiple_of(MIN_SAMPLES) {
            self.hedge_delay = self.p95_upper_bound().clamp(MIN_HEDGE_DELAY, MAX_HEDGE_DELAY);
        }
    }

    /// Returns the upper end of the band with the 95th percentile.
    fn p95_upper_bound(&self) -> Duration {
        let mut above = 0;
        for (band, count) in self.bands.iter().enumerate().rev() {
            above += count;
            if above * 20 > self.samples {
                return rtt_band_end(band);
            }
        }
        MIN_HEDGE_DELAY
    }
}

/// Returns whether `gap` has passed since `last`; if it has, sets `last` to `now`.
fn elapsed(last: &mut Option<Instant>, now: Instant, gap: Duration) -> bool {
    let due = last.is_none_or(|at| now.saturating_duration_since(at) >= gap);
    if due {
        *last = Some(now);
    }
    due
}

/// Rounds a duration for people: to milliseconds, or to seconds from 10 s on.
fn rounded(time: Duration) -> humantime::FormattedDuration {
    let unit = if time >= Duration::from_secs(10) { 1000 } else { 1 };
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis / unit * unit))
}

/// Returns the band of a round-trip time; there are two per power of two.
fn rtt_band(micros: u32) -> usize {
    let power = micros.max(2).ilog2();
    let half = micros >> (power - 1) & 1;
    usize::try_from(power * 2 + half).unwrap_or_default().min(RTT_BANDS - 1)
}

/// Returns the shortest duration above a band.
fn rtt_band_end(band: usize) -> Duration {
    let unit = 1_u64 << (band / 2);
    Duration::from_micros(if band.is_multiple_of(2) { unit + unit / 2 } else { unit * 2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_hedge_delay_is_the_95th_percentile() {
        let (health, now) = (Health::default(), Instant::now());
        assert_eq!(health.hedge_delay(), DEFAULT_HEDGE_DELAY);
        for number in 0..200 {
            // One of forty responses is slow, which is above the 95th percentile.
            health.record_response(if number % 40 == 0 { millis(900) } else { millis(40) }, now);
        }
        let after = health.hedge_delay();
        assert!((millis(40)..=millis(70)).contains(&after), "{after:?}");
        for number in 0..600 {
            health.record_response(if number % 10 == 0 { millis(200) } else { millis(40) }, now);
        }
        let after = health.hedge_delay();
        assert!((millis(200)..=millis(300)).contains(&after), "{after:?}");
        // The delay stays within its bounds.
        (0..2000).for_each(|_| health.record_response(millis(2000), now));
        assert_eq!(health.hedge_delay(), MAX_HEDGE_DELAY);
        (0..4000).for_each(|_| health.record_response(Duration::from_micros(100), now));
        assert_eq!(health.hedge_delay(), MIN_HEDGE_DELAY);
    }

    #[test]
    fn fast_upstreams_rank_first_and_dead_ones_last() {
        let now = Instant::now();
        let measured = |after| {
            let health = Health::default();
            (0..50).for_each(|_| health.record_response(after, now));
            health
        };
        let ranks: Vec<_> = [1, 30, 100].map(|after| measured(millis(after)).rank(now)).into();
        assert!(ranks.is_sorted() && ranks[0] != ranks[2], "{ranks:?}");
        // Differences below 1 ms do not change the order.
        assert_eq!(
            measured(Duration::from_micros(80)).rank(now),
            measured(Duration::from_micros(700)).rank(now)
        );
        assert!(Health::default().rank(now) <= ranks[0]);
        let refusing = measured(millis(1));
        (0..3).for_each(|_| refusing.record_refusal(true));
        assert!(refusing.rank(now) > ranks[2]);
        refusing.record_refusal(false);
        assert_eq!(refusing.rank(now), ranks[0]);
        let dead = measured(millis(1));
        dead.record_query(now);
        assert_eq!(dead.rank(now + millis(999)), ranks[0]);
        assert_eq!(dead.rank(now + RESPONSE_TIMEOUT), Rank::Dead);
        dead.record_response(millis(3000), now + millis(3000));
        assert_ne!(dead.rank(now + millis(3001)), Rank::Dead);
        dead.record_failure("refused", true, now + millis(4000));
        assert_eq!(dead.rank(now + millis(4000)), Rank::Dead);
    }

    #[test]
    fn dead_upstreams_are_probed_less_and_less_often() {
        let (health, began) = (Health::default(), Instant::now());
        health.record_query(began);
        let dead = began + RESPONSE_TIMEOUT;
        let probes: Vec<_> = (0..120)
            .filter(|second| health.take_probe(dead + Duration::from_secs(*second)))
            .collect();
        assert_eq!(probes[..8], [0, 1, 3, 7, 12, 17, 22, 27]);
        health.record_response(millis(5), dead);
        assert!(
            !health.take_probe(dead + millis(29_999)) && health.take_probe(dead + PROBE_INTERVAL)
        );
    }

    #[test]
    fn late_responses_are_counted_and_their_round_trip_time_is_capped() {
        let (health, now) = (Health::new("192.0.2.1".to_owned(), Arc::default()), Instant::now());
        (0..5).for_each(|_| health.record_query(now));
        health.record_response(millis(7_000), now + millis(7_000));
        health.record_response(millis(60_000), now + millis(60_000));
        let report = health.report(false, now + millis(60_000));
        assert_eq!(report.upstream, "192.0.2.1");
        assert_eq!((report.asked, report.answered, report.unanswered, report.failed), (5, 2, 3, 0));
        assert_eq!(report.round_trip, Some(RESPONSE_TIMEOUT));
    }

    #[test]
    fn a_dead_upstream_is_logged_once_and_a_flapping_one_rarely() {
        let (health, began) = (Health::default(), Instant::now());
        let death = |after| health.lock().death_notice(began + after);
        health.record_query(began);
        assert_eq!(death(millis(999)), None);
        assert_eq!(death(millis(1500)).as_deref(), Some("has not answered for 1s 500ms"));
        assert_eq!(death(millis(1600)), None);
        // A flapping upstream is not logged each time, but is logged once it stays dead.
        health.record_response(millis(2000), began + millis(2000));
        health.record_query(began + millis(2000));
        assert_eq!(death(millis(61_000)), None);
        assert_eq!(death(millis(61_500)).as_deref(), Some("has not answered for 59s"));
        assert_eq!(death(millis(200_000)), None);
        health.record_response(millis(1), began + millis(200_000));
        health.record_failure("connection refused", false, began + millis(201_000));
        assert_eq!(death(millis(201_000)), None, "it answered, if with nothing of use");
        health.lock().unreachable = true;
        health.record_query(began + millis(201_000));
        assert_eq!(
            death(millis(203_000)).as_deref(),
            Some("cannot be reached: connection refused")
        );
        health.record_response(millis(1), began + millis(204_000));
        health.record_failure("connection refused", true, began + millis(300_000));
        assert!(health.lock().logged_dead_since.is_some(), "logged at once");
        assert_eq!(health.rank(began + millis(400_000)), Rank::Dead);
        assert_eq!(health.lock().death_logged_at, Some(began + millis(300_000)), "logged once");
    }

    #[test]
    fn round_trip_time_bands_have_no_gaps() {
        for micros in [0, 1, 2, 3, 4, 5, 6, 7, 1023, 1024, 20_000, 1_000_000, 1 << 20, u32::MAX] {
            let end = rtt_band_end(rtt_band(micros));
            assert!(Duration::from_micros(micros.into()) < end || micros >= 1 << 20, "{micros}");
            assert!(
                rtt_band(micros) == 0
                    || micros < 4
                    || rtt_band_end(rtt_band(micros) - 1) <= Duration::from_micros(micros.into()),
                "{micros}"
            );
        }
    }
}
