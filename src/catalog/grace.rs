//! Removal grace: which removals apply at once, and which are held.
//!
//! When a registry stalls or is wiped, all keys vanish at once although the services still run.
//! GoFrame servers register again 1-3 s after a lease expiry and about 8 s after a wipe. A mass
//! removal is therefore held for the removal grace, and a key that is put again ends its hold.
//! All thresholds count instances (endpoints), not keys.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::key::RegistryKey;
use super::mirror::EntryState;
use crate::service::ListKind;

/// Longest removal grace; a longer one is cut to this.
pub(super) const MAX_REMOVAL_GRACE: Duration = Duration::from_secs(24 * 3600);

/// Time within which deletes of leased keys form one burst; a longer pause ends it.
pub(super) const BURST_WINDOW: Duration = Duration::from_secs(5);

/// Removals of fewer instances are never a mass removal.
const MIN_MASS_INSTANCES: usize = 10;

/// Minimum share of a registry's instances for a mass removal, in percent.
const MASS_PERCENT: usize = 30;

/// Deletes in one burst that count as a mass removal, regardless of their share.
///
/// etcd revokes about 1,000 leases a second, so the leases of a large registry take longer than the
/// window to expire.
const MASS_EXPIRY_INSTANCES: usize = 2_000;

/// Maximum hold of a key whose lease is being checked.
///
/// A reachable registry replies within milliseconds.
pub(super) const LEASE_CHECK_HOLD: Duration = Duration::from_secs(2);

/// Maximum leases in one lease check.
const MAX_CHECKED_LEASES: usize = 32;

/// The removals that a complete list implies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    /// Keys that the list does not name.
    pub(super) keys: usize,
    /// Instances of the keys that the list does not name.
    pub(super) instances: usize,
    /// The registry's instances when the list began.
    pub(super) before: usize,
    /// Keys of the registry that the list names.
    pub(super) keys_left: usize,
    /// Instances of the keys that the list names.
    pub(super) instances_left: usize,
}

impl Sweep {
    /// Returns whether the removals are held.
    ///
    /// Removals by a list of a restored store always are. Those after a reconnect are held if
    /// they leave nothing or are a mass removal. A routine list is trusted, since its
    /// connection never broke.
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

/// A key that was deleted while it had a lease, and that may still be restored.
#[derive(Debug)]
pub(super) struct Tombstone {
    /// Time of the delete.
    pub(super) at: Instant,
    /// The key's entry in the mirror.
    ///
    /// Valid only while the entry has this very `key` and is tombstoned or held.
    pub(super) slot: u32,
    /// The key as stored in the entry.
    pub(super) key: Arc<RegistryKey>,
    /// The lease that the key had.
    pub(super) lease: i64,
    /// The registry's instances before the delete.
    pub(super) before: usize,
}

/// Distinguishes expired leases from deregistrations, for one registry.
///
/// A burst begins with the first leased delete and ends after 5 s without one. Within a burst:
///
/// - Idle: deletes apply at once and stay as tombstones for 5 s. The registry is asked about up to
///   32 of the leases when the tombstones reach 2,000 instances, or 10 instances that are 30 % of
///   those before.
/// - Check pending: keys whose removal is not published yet, and keys deleted until the reply, are
///   held for up to 2 s each. If the registry replies in time, clients see an expiry only up to
///   the threshold.
/// - The reply names a checked lease: the leases expired. The tombstones' keys are restored and
///   held, and later deletes in the burst are held directly.
/// - The reply names none: the keys were deregistered (GoFrame does not revoke the lease then). The
///   tombstones are dropped and counting restarts, so the burst causes another check only if later
///   deletes reach the threshold by themselves.
/// - No reply for 5 s: another check may follow once more deletes come while the threshold is
///   reached. A late reply that names a checked lease still counts during the burst.
#[derive(Debug, Default)]
pub(super) struct ExpiryDetector {
    tombstones: VecDeque<Tombstone>,
    /// Length of the tail of `tombstones` whose removal no settling has published.
    unpublished: usize,
    /// Instances of all `tombstones`.
    instances: usize,
    /// Time of the last leased delete.
    last_delete: Option<Instant>,
    check: CheckState,
    /// The leases of the last check.
    checked_leases: Vec<i64>,
}

/// Progress of the lease check in the current burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CheckState {
    /// No check is necessary.
    #[default]
    Idle,
    /// A check must be sent.
    Due,
    /// A check was sent at this time.
    Pending(Instant),
    /// The leases have expired.
    Expired,
}

/// Consequence of a lease-check reply for the tombstones.
#[derive(Debug)]
pub(super) enum Conclusion {
    /// The reply belongs to no check of this burst.
    NotAsked,
    /// The leases expired: restore and hold these.
    Expired(Vec<Tombstone>),
    /// The keys were deregistered: remove these for good.
    Deregistered(Vec<Tombstone>),
}

impl ExpiryDetector {
    /// Moves the window; returns the tombstones that are too old to come back.
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

    /// Returns whether deletes of leased keys are held at once, without a lease check.
    pub(super) fn is_expiry(&self) -> bool {
        self.check == CheckState::Expired
    }

    /// Extends the burst by a delete that is held directly.
    pub(super) fn extend(&mut self, now: Instant) {
        self.last_delete = Some(now);
    }

    /// Adds a delete that was applied.
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

    /// Returns the leases to check now, sampled evenly over the tombstones.
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

    /// Takes out the unpublished tombstones if a lease check is pending.
    ///
    /// The caller puts them back with [`Self::put_back`]; all others count as published.
    pub(super) fn take_unpublished(&mut self) -> VecDeque<Tombstone> {
        let unpublished = std::mem::take(&mut self.unpublished).min(self.tombstones.len());
        match self.check {
            CheckState::Pending(_) => {
                self.tombstones.split_off(self.tombstones.len() - unpublished)
            }
            _ => VecDeque::new(),
        }
    }

    /// Puts back the tombstones from [`Self::take_unpublished`].
    pub(super) fn put_back(&mut self, mut tombstones: VecDeque<Tombstone>) {
        self.tombstones.append(&mut tombstones);
    }

    /// Takes the registry's reply: these leases no longer exist.
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

    /// Returns when the oldest tombstone leaves the window.
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

/// The holds of one registry by end time.
///
/// A hold whose key was put again stays here without effect until its end.
#[derive(Debug, Default)]
pub(super) struct Holds(BTreeMap<Instant, Vec<Hold>>);

/// A key that its registry has removed and that is still served.
#[derive(Debug)]
pub(super) struct Hold {
    /// The key's entry in the mirror, valid only while the entry has this very `key`.
    pub(super) slot: u32,
    /// The key as held.
    pub(super) key: Arc<RegistryKey>,
    /// State after the hold: tombstoned if a lease check may still restore the key.
    pub(super) after: EntryState,
}

impl Holds {
    /// Adds a hold that ends at this time.
    pub(super) fn add(&mut self, until: Instant, hold: Hold) {
        self.0.entry(until).or_default().push(hold);
    }

    /// Removes and returns the holds that have ended.
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

    /// Returns when the next hold ends.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.0.first_key_value().map(|(until, _)| *until)
    }
}
