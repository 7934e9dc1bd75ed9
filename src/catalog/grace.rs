//! Removal grace: which removals apply at once, and which are held.
//!
//! When a registry stalls or is wiped, all keys vanish at once although the services still run.
//! GoFrame servers register again 1-3 s after a lease expiry and about 8 s after a wipe. A mass
//! removal is therefore held for the removal grace, and a key that is put again ends its hold.
//! All thresholds count instances (endpoints), not keys. Deletes are [`super::expiry`]'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::holds::{HoldCause, PerCause};
use super::key::RegistryKey;
use crate::service::ListKind;

/// Maximum removal grace; longer settings are reduced to it.
pub(super) const MAX_REMOVAL_GRACE: Duration = Duration::from_secs(24 * 3600);

/// Removals of fewer instances are never a mass removal.
const MIN_MASS_INSTANCES: usize = 10;

/// Longest wait for the next list of a round.
///
/// A store may never deliver some per-service list. Shorter than the default removal grace.
pub(super) const MAX_LIST_WAIT: Duration = Duration::from_secs(10);

/// Minimum share of a registry's instances for a mass removal, in percent.
const MASS_PERCENT: usize = 30;

/// Expiries in one burst that count as a mass removal, whatever their share.
///
/// etcd revokes about 1,000 leases a second, so the leases of a large registry take longer than the
/// window to expire.
pub(super) const MASS_EXPIRY_INSTANCES: usize = 2_000;

/// Lists that cover the registry together; their removals are judged on the sum.
///
/// A list of the whole registry is a round by itself. After a reconnect, the per-service lists
/// together form a round: keys that are missing from them are held until each name was listed.
#[derive(Debug)]
pub(super) struct Round {
    /// The least trusted kind of its lists.
    kind: ListKind,
    /// The registry's instances when the round began.
    before: usize,
    /// Number of keys that are missing from the lists.
    keys: usize,
    /// Number of instances of those keys.
    instances: usize,
    /// The keys that are held until the last list.
    pub(super) held: Vec<HeldKey>,
    /// End of the round if it makes no progress.
    pub(super) deadline: Instant,
}

impl Round {
    /// Begins a round in a registry with this many instances.
    pub(super) fn new(kind: ListKind, before: usize, now: Instant) -> Self {
        let deadline = now + MAX_LIST_WAIT;
        Self { kind, before, keys: 0, instances: 0, held: Vec::new(), deadline }
    }

    /// Begins a list of the round; the less trusted of both kinds counts.
    pub(super) fn join(&mut self, kind: ListKind, now: Instant) {
        self.kind = self.kind.max(kind);
        self.renew(now);
    }

    /// Starts the wait for the next list.
    pub(super) fn renew(&mut self, now: Instant) {
        self.deadline = now + MAX_LIST_WAIT;
    }

    /// Returns whether removals of the round may have to be held.
    pub(super) fn is_suspicious(&self) -> bool {
        self.kind > ListKind::Routine
    }

    /// Returns whether the store went back in time, or was replaced.
    pub(super) fn is_of_restored_store(&self) -> bool {
        self.kind == ListKind::Restored
    }

    /// Returns the cause of holding the removals of the round.
    pub(super) fn cause(&self) -> HoldCause {
        match self.kind {
            ListKind::Routine | ListKind::Reconnect => HoldCause::Reconnect,
            ListKind::Doubted => HoldCause::Doubt,
            ListKind::Restored => HoldCause::Restored,
        }
    }

    /// Adds keys that are missing from a list.
    pub(super) fn add(&mut self, keys: usize, instances: usize) {
        self.keys += keys;
        self.instances += instances;
    }

    /// Returns whether the removals are held, given the present keys and instances that remain.
    ///
    /// Removals by a list of a restored store are always held. Removals after a reconnect are held
    /// if they leave nothing or are a mass removal. A routine list is trusted, since its connection
    /// never broke.
    pub(super) fn should_hold(&self, keys_left: usize, instances_left: usize) -> bool {
        let leaves_nothing = keys_left == 0 || (self.instances > 0 && instances_left == 0);
        match self.kind {
            ListKind::Routine => false,
            ListKind::Reconnect => {
                self.keys > 0 && (leaves_nothing || is_large(self.instances, self.before))
            }
            ListKind::Doubted | ListKind::Restored => self.keys > 0,
        }
    }
}

/// Returns whether this many removed instances are a mass removal.
pub(super) fn is_large(gone: usize, before: usize) -> bool {
    gone >= MIN_MASS_INSTANCES && gone * 100 >= before * MASS_PERCENT
}

/// The held keys of one registry.
#[derive(Debug, Default)]
pub(super) struct HeldKeys {
    /// The keys by the end of their hold.
    ///
    /// A key that was put again stays here without effect until then.
    by_end: BTreeMap<Instant, Vec<HeldKey>>,
    /// The current or last hold of each cause.
    periods: PerCause<Option<HoldPeriod>>,
    /// Number of certain holds since startup.
    pub(super) begun: PerCause<u64>,
}

/// The times of the held keys of one cause.
#[derive(Clone, Copy, Debug)]
pub(super) struct HoldPeriod {
    /// Time of the first removal.
    pub(super) since: Instant,
    /// End of the last hold of a key.
    pub(super) until: Instant,
    /// Whether this is known to be a mass removal.
    pub(super) is_certain: bool,
}

/// A key that its registry has removed and that is still served.
#[derive(Debug)]
pub(super) struct HeldKey {
    /// The key's entry in the mirror, valid only while the entry has this very `key`.
    pub(super) slot: u32,
    /// The key as held.
    pub(super) key: Arc<RegistryKey>,
}

impl HeldKeys {
    /// Adds a key removed at `since`, whose hold ends at `until`.
    ///
    /// `is_first` says that no other key is held for this cause: a hold begins.
    pub(super) fn add(
        &mut self,
        key: HeldKey,
        cause: HoldCause,
        (since, until): (Instant, Instant),
        is_first: bool,
    ) {
        self.by_end.entry(until).or_default().push(key);
        match self.periods.get_mut(cause) {
            Some(period) if !is_first => {
                period.since = period.since.min(since);
                period.until = period.until.max(until);
            }
            period => *period = Some(HoldPeriod { since, until, is_certain: false }),
        }
    }

    /// Records that the held keys of a cause are a mass removal.
    pub(super) fn confirm(&mut self, cause: HoldCause) {
        if let Some(period) = self.periods.get_mut(cause).as_mut()
            && !period.is_certain
        {
            period.is_certain = true;
            *self.begun.get_mut(cause) += 1;
        }
    }

    /// Returns the current or last hold of a cause.
    pub(super) fn period(&self, cause: HoldCause) -> Option<HoldPeriod> {
        *self.periods.get(cause)
    }

    /// Removes and returns the keys whose hold has ended.
    pub(super) fn take_ended(&mut self, now: Instant) -> Vec<HeldKey> {
        let mut ended = Vec::new();
        while let Some(first) = self.by_end.first_entry() {
            if *first.key() > now {
                break;
            }
            ended.extend(first.remove());
        }
        ended
    }

    /// Removes and returns all keys.
    pub(super) fn take_all(&mut self) -> Vec<HeldKey> {
        std::mem::take(&mut self.by_end).into_values().flatten().collect()
    }

    /// Returns when the next hold of a key ends.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.by_end.first_key_value().map(|(until, _)| *until)
    }
}
