//! What is known of an upstream by its answers: how fast it is, and whether it lives.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An upstream that unanswered_since answers for this long, and gave none since, is dead: nobody waits for it until it answers again.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The second question goes out at the earliest after this. Below it, jitter of the network and of a busy machine would
/// double the traffic, and nobody notices what could be won.
const MIN_HEDGE_DELAY: Duration = Duration::from_millis(20);

/// The second question goes out at the latest after this: twice before the time-out, so that it can bring an answer by then.
const MAX_HEDGE_DELAY: Duration = Duration::from_millis(400);

/// As long as little was samples, the second question goes out after this.
const DEFAULT_HEDGE_DELAY: Duration = Duration::from_millis(200);

/// An upstream that nobody asked for this long gets the next question too, so that ranks can change.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// How often a dead upstream gets a question too: at once, then after this, twice this and so on up to [`PROBE_INTERVAL`].
const DEAD_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// For how long an upstream that does not know EDNS is asked without.
const EDNS_RETRY_AFTER: Duration = Duration::from_secs(900);

/// After a death was told, the next one is told at the earliest after this: an upstream that is always a little too late dies
/// and returns with every question.
const DEATH_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Bands of round-trip times: two for each power of two of microseconds, up to 2^20 (1 s), which the
/// time-out lies below.
const RTT_BANDS: usize = 40;

/// Round trips below 2^10 us (1 ms) are equally good.
const BEST_RTT_BAND: usize = 20;

/// Measurements after which old ones count half.
const HALVE_AFTER_SAMPLES: u16 = 256;

/// Measurements without which there is no percentile.
const MIN_SAMPLES: u16 = 16;

/// How upstreams compare: the lesser is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Lives, in this band of round-trip times; 0 for one that was never samples.
    Alive(usize),
    /// Answers, and refuses what it is asked.
    Refusing,
    /// Owes answers.
    Dead,
}

/// What was samples of one upstream.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// As it is written in the configuration.
    upstream: String,
    state: Mutex<HealthState>,
}

#[derive(Debug)]
struct HealthState {
    /// Smoothed round trip (RFC 6298 section 2), microseconds; 0 before the first.
    smoothed: u32,
    bands: [u16; RTT_BANDS],
    samples: u16,
    hedge_delay: Duration,
    /// Since when answers are owed.
    unanswered_since: Option<Instant>,
    /// Whether it is dead because it cannot be reached, as the last error says.
    unreachable: bool,
    /// Since when it is dead, once that was told.
    logged_dead_since: Option<Instant>,
    /// When a death was told last.
    death_logged_at: Option<Instant>,
    /// When the next question goes to it in any case.
    next_probe: Option<Instant>,
    dead_probe_interval: Duration,
    refusals: u8,
    no_edns_until: Option<Instant>,
    asked: u64,
    answered: u64,
    failed: u64,
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
            unreachable: false,
            logged_dead_since: None,
            death_logged_at: None,
            next_probe: None,
            dead_probe_interval: DEAD_PROBE_INTERVAL,
            refusals: 0,
            no_edns_until: None,
            asked: 0,
            answered: 0,
            failed: 0,
            last_error: None,
        }
    }
}

/// What people may want to know of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamReport {
    /// As it is written in the configuration.
    pub upstream: String,
    /// Smoothed round trip; none before the first answer.
    pub round_trip: Option<Duration>,
    /// Whether it unanswered_since answers and nobody waits for it.
    pub dead: bool,
    /// Whether it leads back to us and is set aside.
    pub looping: bool,
    /// Questions sent to it, repeated ones included.
    pub asked: u64,
    /// Answers that came, late ones included.
    pub answered: u64,
    /// Questions sent without an answer so far, those under way included.
    pub unanswered: u64,
    /// Tries that failed otherwise than by silence: it could not be reached, or what came was no answer.
    pub failed: u64,
    /// Why the last of them failed.
    pub last_error: Option<String>,
}

impl Health {
    /// Nothing is known yet of this upstream, which is named as it is written in the configuration.
    pub(super) fn new(upstream: String) -> Self {
        Self { upstream, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A question goes out.
    pub(super) fn record_query(&self, now: Instant) {
        let mut state = self.lock();
        state.asked += 1;
        state.unanswered_since.get_or_insert(now);
    }

    /// An answer came in, this long after its question. It need not be a useful one.
    pub(super) fn record_response(&self, after: Duration, now: Instant) {
        let mut state = self.lock();
        state.answered += 1;
        state.unanswered_since = None;
        state.unreachable = false;
        let logged_dead_since = state.logged_dead_since.take();
        state.dead_probe_interval = DEAD_PROBE_INTERVAL;
        state.next_probe = Some(now + PROBE_INTERVAL);
        state.record_rtt(after);
        drop(state);
        if let Some(since) = logged_dead_since {
            tracing::info!(
                "the upstream {} answers again, after {}",
                self.upstream,
                rounded(now.saturating_duration_since(since))
            );
        }
    }

    /// A try failed otherwise than by silence.
    pub(super) fn record_failure(&self, why: &str, unreachable: bool, now: Instant) {
        let mut state = self.lock();
        state.failed += 1;
        if state.last_error.as_deref() != Some(why) {
            state.last_error = Some(why.to_owned());
        }
        if unreachable {
            state.unreachable = true;
            if !state.is_dead(now) {
                // Dead at once.
                state.unanswered_since =
                    now.checked_sub(RESPONSE_TIMEOUT).or(state.unanswered_since);
            }
            let death = state.death_notice(now);
            drop(state);
            self.log_death(death);
        }
    }

    /// Tells that it died.
    fn log_death(&self, death: Option<String>) {
        if let Some(death) = death {
            let upstream = &self.upstream;
            tracing::warn!(
                "the upstream {upstream} {death}; others, where there are any, are asked first until it answers again"
            );
        }
    }

    /// It refused, or did not understand, or did neither.
    pub(super) fn record_refusal(&self, refused: bool) {
        let mut state = self.lock();
        state.refusals = if refused { state.refusals.saturating_add(1) } else { 0 };
    }

    /// How it compares to others.
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

    /// Whether it should get the next question whether or not it is its turn. Says so once.
    pub(super) fn take_probe(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let due = state.next_probe.is_none_or(|at| at <= now);
        if due {
            let after = if state.is_dead(now) { state.dead_probe_interval } else { PROBE_INTERVAL };
            state.dead_probe_interval = (state.dead_probe_interval * 2).min(PROBE_INTERVAL);
            state.next_probe = Some(now + after);
        }
        due
    }

    /// After what time an answer is slow: nineteen of twenty came sooner.
    pub(super) fn hedge_delay(&self) -> Duration {
        self.lock().hedge_delay
    }

    /// It does not know EDNS.
    pub(super) fn disable_edns(&self, now: Instant) {
        self.lock().no_edns_until = Some(now + EDNS_RETRY_AFTER);
    }

    /// Whether it is asked without EDNS.
    pub(super) fn is_edns_disabled(&self, now: Instant) -> bool {
        self.lock().no_edns_until.is_some_and(|until| now < until)
    }

    /// All of it, for people.
    pub(super) fn report(&self, looping: bool, now: Instant) -> UpstreamReport {
        let state = self.lock();
        UpstreamReport {
            upstream: self.upstream.clone(),
            round_trip: (state.smoothed > 0).then(|| Duration::from_micros(state.smoothed.into())),
            dead: state.is_dead(now),
            looping,
            asked: state.asked,
            answered: state.answered,
            unanswered: state.asked.saturating_sub(state.answered),
            failed: state.failed,
            last_error: state.last_error.clone(),
        }
    }
}

impl HealthState {
    fn is_dead(&self, now: Instant) -> bool {
        self.unanswered_since
            .is_some_and(|since| now.saturating_duration_since(since) >= RESPONSE_TIMEOUT)
    }

    /// What is to be told of its death: once, when it is noticed.
    fn death_notice(&mut self, now: Instant) -> Option<String> {
        let quiet = self
            .death_logged_at
            .is_some_and(|at| now.saturating_duration_since(at) < DEATH_LOG_INTERVAL);
        let since = self
            .unanswered_since
            .filter(|_| self.is_dead(now) && self.logged_dead_since.is_none() && !quiet)?;
        (self.logged_dead_since, self.death_logged_at) = (Some(since), Some(now));
        Some(match &self.last_error {
            Some(why) if self.unreachable => format!("cannot be reached: {why}"),
            _ => format!("has not answered for {}", rounded(now.saturating_duration_since(since))),
        })
    }

    /// Nobody waits longer than the time-out: how much later an answer came after a hang says nothing of the next one.
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

    /// The upper end of the band that the 95th percentile lies in.
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

/// A time for people: no finer than milliseconds, and from ten seconds on than seconds.
fn rounded(time: Duration) -> humantime::FormattedDuration {
    let unit = if time >= Duration::from_secs(10) { 1000 } else { 1 };
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis / unit * unit))
}

/// Two bands for each power of two.
fn rtt_band(micros: u32) -> usize {
    let power = micros.max(2).ilog2();
    let half = micros >> (power - 1) & 1;
    usize::try_from(power * 2 + half).unwrap_or_default().min(RTT_BANDS - 1)
}

/// The least duration above a band.
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
    fn the_second_question_waits_for_the_slow_twentieth() {
        let (health, now) = (Health::default(), Instant::now());
        assert_eq!(health.hedge_delay(), DEFAULT_HEDGE_DELAY);
        for number in 0..200 {
            // One of forty is slow: that is not the usual.
            health.record_response(if number % 40 == 0 { millis(900) } else { millis(40) }, now);
        }
        let after = health.hedge_delay();
        assert!((millis(40)..=millis(70)).contains(&after), "{after:?}");
        for number in 0..600 {
            health.record_response(if number % 10 == 0 { millis(200) } else { millis(40) }, now);
        }
        let after = health.hedge_delay();
        assert!((millis(200)..=millis(300)).contains(&after), "{after:?}");
        // Within its bounds.
        (0..2000).for_each(|_| health.record_response(millis(2000), now));
        assert_eq!(health.hedge_delay(), MAX_HEDGE_DELAY);
        (0..4000).for_each(|_| health.record_response(Duration::from_micros(100), now));
        assert_eq!(health.hedge_delay(), MIN_HEDGE_DELAY);
    }

    #[test]
    fn the_fast_come_first_and_the_dead_last() {
        let now = Instant::now();
        let measured = |after| {
            let health = Health::default();
            (0..50).for_each(|_| health.record_response(after, now));
            health
        };
        let ranks: Vec<_> = [1, 30, 100].map(|after| measured(millis(after)).rank(now)).into();
        assert!(ranks.is_sorted() && ranks[0] != ranks[2], "{ranks:?}");
        // Not worth a change of order.
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
    fn the_dead_are_probed_less_and_less_often() {
        let (health, began) = (Health::default(), Instant::now());
        health.record_query(began);
        let dead = began + RESPONSE_TIMEOUT;
        let probes: Vec<_> = (0..120)
            .filter(|second| health.take_probe(dead + Duration::from_secs(*second)))
            .collect();
        assert_eq!(probes, [0, 1, 3, 7, 15, 31, 61, 91]);
        health.record_response(millis(5), dead);
        assert!(
            !health.take_probe(dead + millis(29_999)) && health.take_probe(dead + PROBE_INTERVAL)
        );
    }

    #[test]
    fn silence_counts_and_a_late_answer_is_no_measure() {
        let (health, now) = (Health::new("192.0.2.1".to_owned()), Instant::now());
        (0..5).for_each(|_| health.record_query(now));
        health.record_response(millis(7_000), now + millis(7_000));
        health.record_response(millis(60_000), now + millis(60_000));
        let report = health.report(false, now + millis(60_000));
        assert_eq!(report.upstream, "192.0.2.1");
        assert_eq!((report.asked, report.answered, report.unanswered, report.failed), (5, 2, 3, 0));
        assert_eq!(report.round_trip, Some(RESPONSE_TIMEOUT));
    }

    #[test]
    fn a_death_is_told_once_and_seldom() {
        let (health, began) = (Health::default(), Instant::now());
        let death = |after| health.lock().death_notice(began + after);
        health.record_query(began);
        assert_eq!(death(millis(999)), None);
        assert_eq!(death(millis(1500)).as_deref(), Some("has not answered for 1s 500ms"));
        assert_eq!(death(millis(1600)), None);
        // It comes back and dies again and again: not told each time, but told when it stays dead.
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
        assert!(health.lock().logged_dead_since.is_some(), "told at once");
        assert_eq!(health.rank(began + millis(400_000)), Rank::Dead);
        assert_eq!(health.lock().death_logged_at, Some(began + millis(300_000)), "told once");
    }

    #[test]
    fn bands_lie_side_by_side() {
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
