//! Which removals are believed, and when: shares of a list, storms of lease expiry, holds.
//!
//! A registry's stall or wipe removes every key at once although all services live. GoFrame servers are back under new
//! leases 1-3 s after an expiry and about 8 s after a wipe; so a mass removal is held for the removal grace, and a key that
//! is put again ends its hold. Everything counts instances (endpoints), not keys.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::key::RegistryKey;
use super::mirror::EntryState;
use crate::service::ListKind;

/// Longest removal grace; a longer one is cut to it.
pub(super) const MAX_REMOVAL_GRACE: Duration = Duration::from_secs(24 * 3600);

/// Deletes by lease within this time belong together; a pause of this length ends a detector.
pub(super) const BURST_WINDOW: Duration = Duration::from_secs(5);

/// Fewer instances are never a mass removal.
const MIN_MASS_INSTANCES: usize = 10;

/// The share of a registry's instances that is one, in percent.
const MASS_PERCENT: usize = 30;

/// So many deletes by lease are one at any share: etcd revokes about 1,000 leases a second, so that a large registry's
/// expiry takes longer than the window.
const MASS_EXPIRY_INSTANCES: usize = 2_000;

/// How long at most a key that a doubt is about goes on being served: the registry answers within milliseconds, or not.
pub(super) const LEASE_CHECK_HOLD: Duration = Duration::from_secs(2);

/// Most leases of one doubt.
const MAX_CHECKED_LEASES: usize = 32;

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
    pub(super) fn should_hold(&self, kind: ListKind) -> bool {
        let leaves_nothing =
            self.keys_left == 0 || (self.instances > 0 && self.instances_left == 0);
        match kind {
            ListKind::Routine => false,
            ListKind::Reconnect => {
                self.keys > 0 && (leaves_nothing || is_large(self.instances, self.before))
            }
            ListKind::Restored => self.keys > 0,
        }
    }
}

fn is_large(gone: usize, before: usize) -> bool {
    gone >= MIN_MASS_INSTANCES && gone * 100 >= before * MASS_PERCENT
}

/// A key that was deleted and hung on a lease.
#[derive(Debug)]
pub(super) struct Tombstone {
    /// When it went.
    pub(super) at: Instant,
    /// Its entry in the mirror; still this key's only while that has this very `key`, buried or held.
    pub(super) slot: u32,
    /// The key, as the entry has it.
    pub(super) key: Arc<RegistryKey>,
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
pub(super) struct ExpiryDetector {
    tombstones: VecDeque<Tombstone>,
    /// How many of the last `tombstones` nobody has seen to be missing.
    unpublished: usize,
    /// Instances of all `tombstones`.
    instances: usize,
    /// When the last delete came.
    last_delete: Option<Instant>,
    check: CheckState,
    /// The leases asked about last.
    checked_leases: Vec<i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CheckState {
    #[default]
    Idle,
    /// To be asked.
    Due,
    /// Asked then.
    Pending(Instant),
    /// It is expiry.
    Expired,
}

/// What an answer about leases means for the tombstones.
#[derive(Debug)]
pub(super) enum Conclusion {
    /// Nothing was asked, or not about these.
    NotAsked,
    /// They come back.
    Expired(Vec<Tombstone>),
    /// They are gone for good.
    Deregistered(Vec<Tombstone>),
}

impl ExpiryDetector {
    /// Moves the window: returns the tombstones that are too old to come back.
    pub(super) fn advance(&mut self, now: Instant) -> Vec<Tombstone> {
        let passed = |since: Instant| now.saturating_duration_since(since) >= BURST_WINDOW;
        let mut old = Vec::new();
        while self.tombstones.front().is_some_and(|tombstone| passed(tombstone.at)) {
            let Some(tombstone) = self.tombstones.pop_front() else { break };
            self.instances -= tombstone.key.endpoints.len();
            old.push(tombstone);
        }
        if matches!(self.check, CheckState::Pending(at) if passed(at)) {
            self.check = CheckState::Idle;
        }
        if self.last_delete.is_some_and(passed) {
            *self = Self::default();
        }
        old
    }

    /// Whether deletes by lease are held directly now.
    pub(super) fn is_expiry(&self) -> bool {
        self.check == CheckState::Expired
    }

    /// Counts a delete that is held directly.
    pub(super) fn extend(&mut self, now: Instant) {
        self.last_delete = Some(now);
    }

    /// Counts a delete that applied.
    pub(super) fn add(&mut self, tombstone: Tombstone) {
        self.last_delete = Some(tombstone.at);
        self.instances += tombstone.key.endpoints.len();
        self.unpublished += 1;
        self.tombstones.push_back(tombstone);
        let before = self.tombstones.front().map_or(0, |first| first.before);
        if self.check == CheckState::Idle
            && (self.instances >= MASS_EXPIRY_INSTANCES || is_large(self.instances, before))
        {
            self.check = CheckState::Due;
        }
    }

    /// The leases to ask about now, spread over the tombstones.
    pub(super) fn take_lease_check(&mut self, now: Instant) -> Option<Vec<i64>> {
        if self.check != CheckState::Due {
            return None;
        }
        self.check = CheckState::Pending(now);
        let step = self.tombstones.len().div_ceil(MAX_CHECKED_LEASES).max(1);
        let mut leases: Vec<i64> =
            self.tombstones.iter().step_by(step).map(|tombstone| tombstone.lease).collect();
        leases.sort_unstable();
        leases.dedup();
        self.checked_leases.clone_from(&leases);
        (!leases.is_empty()).then_some(leases)
    }

    /// Takes out the tombstones that nobody has seen to be missing, if the registry is asked about leases now. To be put
    /// back; those left are seen from now on.
    pub(super) fn take_unpublished(&mut self) -> VecDeque<Tombstone> {
        let unpublished = std::mem::take(&mut self.unpublished).min(self.tombstones.len());
        match self.check {
            CheckState::Pending(_) => {
                self.tombstones.split_off(self.tombstones.len() - unpublished)
            }
            _ => VecDeque::new(),
        }
    }

    /// Puts back what [`Self::take_unpublished`] took out.
    pub(super) fn put_back(&mut self, mut tombstones: VecDeque<Tombstone>) {
        self.tombstones.append(&mut tombstones);
    }

    /// Takes the registry's answer: these leases are gone.
    pub(super) fn conclude(&mut self, gone: &[i64]) -> Conclusion {
        if gone.iter().any(|lease| self.checked_leases.contains(lease)) {
            self.check = CheckState::Expired;
            Conclusion::Expired(self.take_tombstones())
        } else if gone.is_empty() && matches!(self.check, CheckState::Pending(_)) {
            self.check = CheckState::Idle;
            Conclusion::Deregistered(self.take_tombstones())
        } else {
            Conclusion::NotAsked
        }
    }

    /// When the oldest tombstone is too old.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.tombstones.front().map(|tombstone| tombstone.at + BURST_WINDOW)
    }

    fn take_tombstones(&mut self) -> Vec<Tombstone> {
        self.checked_leases.clear();
        self.unpublished = 0;
        self.instances = 0;
        std::mem::take(&mut self.tombstones).into()
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
    pub(super) key: Arc<RegistryKey>,
    /// How it stands at the end: removed, or buried where its tombstone may still bring it back.
    pub(super) after: EntryState,
}

impl Holds {
    /// Notes a hold.
    pub(super) fn add(&mut self, until: Instant, hold: Hold) {
        self.0.entry(until).or_default().push(hold);
    }

    /// Takes the holds that have ended.
    pub(super) fn take_ended(&mut self, now: Instant) -> Vec<Hold> {
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
