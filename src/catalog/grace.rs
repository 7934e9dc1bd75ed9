//! Which removals are believed, and when: shares of a list, storms of lease expiry, holds.
//!
//! A registry's stall or wipe removes every key at once although all services live. GoFrame servers are back under new
//! leases 1-3 s after an expiry and about 8 s after a wipe; so a mass removal is held for the removal grace, and a key that
//! is put again ends its hold. Everything counts instances (endpoints), not keys.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::key::Key;
use super::mirror::Standing;
use crate::service::ListKind;

/// Longest removal grace; a longer one is cut to it.
pub(super) const LONGEST_GRACE: Duration = Duration::from_secs(24 * 3600);

/// Deletes by lease within this time belong together; a pause of this length ends a storm.
pub(super) const WINDOW: Duration = Duration::from_secs(5);

/// Fewer instances are never a mass removal.
const LEAST: usize = 10;

/// The share of a registry's instances that is one, in percent.
const SHARE: usize = 30;

/// So many deletes by lease are one at any share: etcd revokes about 1,000 leases a second, so that a large registry's
/// expiry takes longer than the window.
const MANY: usize = 2_000;

/// How long at most a key that a doubt is about goes on being served: the registry answers within milliseconds, or not.
pub(super) const DOUBT: Duration = Duration::from_secs(2);

/// Most leases of one doubt.
const ASK: usize = 32;

/// What a list would do to a registry's keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    /// Keys that it does not name.
    pub(super) keys: usize,
    /// Their instances.
    pub(super) instances: usize,
    /// Instances when the list began.
    pub(super) before: usize,
    /// Keys left after it.
    pub(super) keys_left: usize,
    /// Instances left after it.
    pub(super) instances_left: usize,
}

impl Sweep {
    /// Whether the removals of such a list are held: all of a restored store; of a reconnect those that leave nothing or
    /// take a large share; none of a routine list, whose connection never broke.
    pub(super) fn is_doubtful(&self, kind: ListKind) -> bool {
        let leaves_nothing = self.keys_left == 0 || (self.instances > 0 && self.instances_left == 0);
        match kind {
            ListKind::Routine => false,
            ListKind::Reconnect => self.keys > 0 && (leaves_nothing || is_large(self.instances, self.before)),
            ListKind::Restored => self.keys > 0,
        }
    }
}

fn is_large(gone: usize, before: usize) -> bool {
    gone >= LEAST && gone * 100 >= before * SHARE
}

/// A key that was deleted and hung on a lease.
#[derive(Debug)]
pub(super) struct Tomb {
    /// When it went.
    pub(super) at: Instant,
    /// Its entry in the mirror; still this key's only while that has this very `key`, buried or held.
    pub(super) slot: u32,
    /// The key, as the entry has it.
    pub(super) key: Arc<Key>,
    /// The lease it went with.
    pub(super) lease: i64,
    /// The registry's instances before.
    pub(super) before: usize,
}

/// Deletes by lease of one registry: a deregistration, or a storm of expiry? A storm begins with the first such delete and
/// ends when 5 s pass without one.
///
/// - Quiet: deletes apply at once and stay as tombstones for 5 s. When those of 5 s are at least 10 and at least 30 % of the
///   instances before them, or at least 2,000, the registry is asked about up to 32 of their leases.
/// - Asked: what was not seen to be missing yet, and what is deleted till the answer comes, goes on being served, each key
///   for 2 s at most. So an expiry never shows further than up to the threshold, if the registry answers in time.
/// - It answers that one of them is gone: it was expiry. The tombstones come back and are held, and later deletes of the
///   storm are held directly.
/// - It answers that none is gone: they were deleted on purpose (GoFrame deregisters without revoking its lease). The
///   tombstones are dropped and counting begins anew: the same storm asks again only when deletes after the answer reach
///   the threshold by themselves.
/// - It does not answer within 5 s: the question may be asked again, once more deletes come while the threshold is
///   reached. A late answer that names a lease asked about still counts while the storm lasts.
#[derive(Debug, Default)]
pub(super) struct Storm {
    tombs: VecDeque<Tomb>,
    /// How many of the last `tombs` nobody has seen to be missing.
    unseen: usize,
    /// Instances of all `tombs`.
    fallen: usize,
    /// When the last delete came.
    last: Option<Instant>,
    verdict: Verdict,
    /// The leases asked about last.
    asked: Vec<i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Verdict {
    #[default]
    None,
    /// To be asked.
    Due,
    /// Asked then.
    Asked(Instant),
    /// It is expiry.
    Expiry,
}

/// What an answer about leases means for the tombstones.
#[derive(Debug)]
pub(super) enum Answer {
    /// Nothing was asked, or not about these.
    Unasked,
    /// They come back.
    Expiry(Vec<Tomb>),
    /// They are gone for good.
    Deliberate(Vec<Tomb>),
}

impl Storm {
    /// Moves the window: returns the tombstones that are too old to come back.
    pub(super) fn advance(&mut self, now: Instant) -> Vec<Tomb> {
        let passed = |since: Instant| now.saturating_duration_since(since) >= WINDOW;
        let mut old = Vec::new();
        while self.tombs.front().is_some_and(|tomb| passed(tomb.at)) {
            let Some(tomb) = self.tombs.pop_front() else { break };
            self.fallen -= tomb.key.endpoints.len();
            old.push(tomb);
        }
        if matches!(self.verdict, Verdict::Asked(at) if passed(at)) {
            self.verdict = Verdict::None;
        }
        if self.last.is_some_and(passed) {
            *self = Self::default();
        }
        old
    }

    /// Whether deletes by lease are held directly now.
    pub(super) fn is_expiry(&self) -> bool {
        self.verdict == Verdict::Expiry
    }

    /// Counts a delete that is held directly.
    pub(super) fn goes_on(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// Counts a delete that applied.
    pub(super) fn bury(&mut self, tomb: Tomb) {
        self.last = Some(tomb.at);
        self.fallen += tomb.key.endpoints.len();
        self.unseen += 1;
        self.tombs.push_back(tomb);
        let before = self.tombs.front().map_or(0, |first| first.before);
        if self.verdict == Verdict::None && (self.fallen >= MANY || is_large(self.fallen, before)) {
            self.verdict = Verdict::Due;
        }
    }

    /// The leases to ask about now, spread over the tombstones.
    pub(super) fn doubt(&mut self, now: Instant) -> Option<Vec<i64>> {
        if self.verdict != Verdict::Due {
            return None;
        }
        self.verdict = Verdict::Asked(now);
        let step = self.tombs.len().div_ceil(ASK).max(1);
        let mut leases: Vec<i64> = self.tombs.iter().step_by(step).map(|tomb| tomb.lease).collect();
        leases.sort_unstable();
        leases.dedup();
        self.asked.clone_from(&leases);
        (!leases.is_empty()).then_some(leases)
    }

    /// Takes out the tombstones that nobody has seen to be missing, if the registry is asked about leases now. To be put
    /// back; those left are seen from now on.
    pub(super) fn take_unseen(&mut self) -> VecDeque<Tomb> {
        let unseen = std::mem::take(&mut self.unseen).min(self.tombs.len());
        match self.verdict {
            Verdict::Asked(_) => self.tombs.split_off(self.tombs.len() - unseen),
            _ => VecDeque::new(),
        }
    }

    /// Puts back what [`Self::take_unseen`] took out.
    pub(super) fn put_back(&mut self, mut tombs: VecDeque<Tomb>) {
        self.tombs.append(&mut tombs);
    }

    /// Takes the registry's answer: these leases are gone.
    pub(super) fn answer(&mut self, gone: &[i64]) -> Answer {
        if gone.iter().any(|lease| self.asked.contains(lease)) {
            self.verdict = Verdict::Expiry;
            Answer::Expiry(self.take_tombs())
        } else if gone.is_empty() && matches!(self.verdict, Verdict::Asked(_)) {
            self.verdict = Verdict::None;
            Answer::Deliberate(self.take_tombs())
        } else {
            Answer::Unasked
        }
    }

    /// When the oldest tombstone is too old.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.tombs.front().map(|tomb| tomb.at + WINDOW)
    }

    fn take_tombs(&mut self) -> Vec<Tomb> {
        self.asked.clear();
        self.unseen = 0;
        self.fallen = 0;
        std::mem::take(&mut self.tombs).into()
    }
}

/// The holds of one registry by the time they end. A hold whose key was put again stays here, without effect, till then.
#[derive(Debug, Default)]
pub(super) struct Holds(BTreeMap<Instant, Vec<Hold>>);

/// A key that is gone and still served.
#[derive(Debug)]
pub(super) struct Hold {
    /// Its entry in the mirror; still this key's only while that has this very `key`.
    pub(super) slot: u32,
    /// The key.
    pub(super) key: Arc<Key>,
    /// How it stands at the end: removed, or buried where its tombstone may still bring it back.
    pub(super) then: Standing,
}

impl Holds {
    /// Notes a hold.
    pub(super) fn add(&mut self, until: Instant, hold: Hold) {
        self.0.entry(until).or_default().push(hold);
    }

    /// Takes the holds that have ended.
    pub(super) fn ended(&mut self, now: Instant) -> Vec<Hold> {
        let mut ended = Vec::new();
        while let Some(first) = self.0.first_entry() {
            if *first.key() > now {
                break;
            }
            ended.extend(first.remove());
        }
        ended
    }

    /// When the next hold ends.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.0.first_key_value().map(|(until, _)| *until)
    }
}
