//! Mass expiry: tells leases that ended from deregistrations, for one registry.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::grace::{MASS_EXPIRY_INSTANCES, is_large};
use super::key::RegistryKey;
use crate::service::LeaseReply;

/// Time within which deletes of leased keys form one burst; a longer pause ends it.
pub(super) const BURST_WINDOW: Duration = Duration::from_secs(5);

/// Shortest time between two lease checks.
///
/// A program that stops during a mass expiry may still be served for this long.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Minimum pause after a reply, as a multiple of the time that the reply took.
///
/// A registry may list all its leases for a check: etcd takes nearly a second for 100,000.
const PAUSE_FACTOR: u32 = 3;

/// Longest wait for the reply to a lease check; after it, the check is repeated.
const REPLY_TIMEOUT: Duration = Duration::from_secs(4);

/// A key that was deleted while it had a lease, and may still come back.
#[derive(Debug)]
pub(super) struct Tombstone {
    /// Time of the delete.
    pub(super) at: Instant,
    /// Revision of the delete; 0 if the registry has no revisions.
    pub(super) revision: u64,
    /// The key's entry in the mirror.
    ///
    /// Valid only while the entry has this very `key` and is tombstoned or held.
    pub(super) slot: u32,
    /// The key as stored in the entry.
    pub(super) key: Arc<RegistryKey>,
    /// The registry's instances before the delete.
    pub(super) before: usize,
    /// The end of the key's hold; `None` if its removal was published.
    pub(super) held_until: Option<Instant>,
    /// Whether the lease is known to be gone.
    pub(super) expired: bool,
}

impl Tombstone {
    fn instances(&self) -> usize {
        self.key.endpoints.len()
    }
}

/// Tells the mass expiry of leases from deregistrations, for one registry.
///
/// Deletes of leased keys apply at once and stay as tombstones for 5 s. They are in doubt while the
/// tombstones reach the threshold: 2,000 instances, or 10 instances that make up 30 % of the
/// instances before the first of these deletes.
///
/// - Keys whose removal is not published yet, and keys deleted meanwhile, are held for the removal
///   grace. The registry is asked which of the leases are gone. One check covers all of them;
///   checks run at most four times a second and take at most a quarter of the time. Clients see an
///   expiry only up to the threshold.
/// - A key whose lease still exists was deregistered (GoFrame does not revoke the lease then). Its
///   tombstone is dropped and its hold ends.
/// - If the keys whose leases are gone reach the threshold by themselves, they expired together: a
///   mass expiry. They are restored and held. The doubt remains until 5 s after the last of them,
///   so that keys deleted later are also held until the registry replies.
/// - Otherwise, the other tombstones and their holds end as if there had been no doubt. Tombstones
///   of expired keys count until they are 5 s old.
/// - Without a reply, the keys stay held, at most for the removal grace, and the check is repeated.
///
/// A key that a per-service list reports as expired needs no check: it counts like a key whose
/// lease is gone. In the first 5 s after a reconnect, it is held at once: after an outage of the
/// store, many keys expire, in one per-service list after the other.
#[derive(Debug, Default)]
pub(super) struct ExpiryDetector {
    /// The tombstones of the window.
    recent: VecDeque<Tombstone>,
    /// Older tombstones, held because the registry has not replied; they no longer count.
    unanswered: Vec<Tombstone>,
    /// Number of tombstones at the end of `recent` whose removal is not published yet.
    unpublished: usize,
    /// Instances of all `recent`.
    instances: usize,
    /// Time of the last delete that belongs to a mass expiry.
    mass_expiry: Option<Instant>,
    /// Time of the last lease check.
    checked: Option<Instant>,
    /// Earliest time of the next lease check.
    next_check: Option<Instant>,
}

/// Consequences of a lease check for the tombstones.
#[derive(Debug, Default)]
pub(super) struct CheckOutcome {
    /// Deregistered keys: remove these for good.
    pub(super) deregistered: Vec<Tombstone>,
    /// Keys of a mass expiry: hold these.
    pub(super) expired: Vec<Tombstone>,
    /// Whether no doubt remains: [`ExpiryDetector::release`] returns the keys whose holds end.
    pub(super) is_settled: bool,
}

impl ExpiryDetector {
    /// Moves the window; returns the tombstones that are too old to come back.
    pub(super) fn advance(&mut self, now: Instant) -> Vec<Tombstone> {
        let passed = |since: Instant| now.saturating_duration_since(since) >= BURST_WINDOW;
        let mut old = Vec::new();
        while self.recent.front().is_some_and(|tombstone| passed(tombstone.at)) {
            let Some(tombstone) = self.recent.pop_front() else { break };
            self.instances -= tombstone.instances();
            if tombstone.held_until.is_some() && !tombstone.expired {
                self.unanswered.push(tombstone);
            } else {
                old.push(tombstone);
            }
        }
        self.unpublished = self.unpublished.min(self.recent.len());
        self.unanswered.retain(|tombstone| tombstone.held_until.is_some_and(|until| until > now));
        if self.mass_expiry.is_some_and(passed) {
            self.mass_expiry = None;
        }
        old
    }

    /// Adds a delete that was applied.
    pub(super) fn add(&mut self, tombstone: Tombstone) {
        self.instances += tombstone.instances();
        self.unpublished += 1;
        self.recent.push_back(tombstone);
    }

    /// Returns whether deletes before the window are held because the registry has not replied.
    pub(super) fn has_unanswered(&self) -> bool {
        !self.unanswered.is_empty()
    }

    /// Returns whether the recent deletes may be part of a mass expiry.
    fn is_in_doubt(&self) -> bool {
        self.mass_expiry.is_some() || self.is_mass(self.instances)
    }

    fn is_mass(&self, instances: usize) -> bool {
        let before = self.recent.front().map_or(0, |first| first.before);
        instances >= MASS_EXPIRY_INSTANCES || is_large(instances, before)
    }

    /// Returns whether a lease check is needed.
    fn needs_check(&self) -> bool {
        let is_in_doubt = self.is_in_doubt();
        let is_suspect = |tombstone: &Tombstone| {
            !tombstone.expired && (is_in_doubt || tombstone.held_until.is_some())
        };
        !self.unanswered.is_empty() || self.recent.iter().any(is_suspect)
    }

    /// Returns the time of the next check, if one is needed.
    fn next_check(&self, now: Instant) -> Option<Instant> {
        self.needs_check().then(|| self.next_check.unwrap_or(now))
    }

    /// Returns the leases to check now.
    ///
    /// Leaves out tombstones that are not `pending`: their keys are back, or gone for good.
    pub(super) fn take_lease_check(
        &mut self,
        now: Instant,
        is_pending: impl Fn(&Tombstone) -> bool,
    ) -> Option<Vec<i64>> {
        if self.next_check(now).is_none_or(|next| next > now) {
            return None;
        }
        self.unanswered.retain(&is_pending);
        let suspects = self.unanswered.iter().chain(&self.recent);
        let suspects = suspects.filter(|tombstone| !tombstone.expired && is_pending(tombstone));
        let mut leases: Vec<i64> = suspects.map(|tombstone| tombstone.key.lease).collect();
        leases.sort_unstable();
        leases.dedup();
        let wait = if leases.is_empty() { CHECK_INTERVAL } else { REPLY_TIMEOUT };
        self.checked = Some(now);
        self.next_check = Some(now + wait);
        (!leases.is_empty()).then_some(leases)
    }

    /// Stops waiting for the reply, since the connection to the registry has changed.
    pub(super) fn forget_check(&mut self) {
        self.next_check = self.checked.map(|checked| checked + CHECK_INTERVAL);
    }

    /// Takes out the unpublished tombstones if the recent deletes are in doubt.
    ///
    /// The caller puts them back with [`Self::put_back`]; all others count as published.
    pub(super) fn take_unpublished(&mut self) -> VecDeque<Tombstone> {
        let unpublished = std::mem::take(&mut self.unpublished);
        if self.is_in_doubt() {
            self.recent.split_off(self.recent.len() - unpublished)
        } else {
            VecDeque::new()
        }
    }

    /// Puts back the tombstones from [`Self::take_unpublished`].
    pub(super) fn put_back(&mut self, mut tombstones: VecDeque<Tombstone>) {
        self.recent.append(&mut tombstones);
    }

    /// Takes the registry's reply.
    pub(super) fn conclude(&mut self, mut reply: LeaseReply, now: Instant) -> CheckOutcome {
        self.next_check = self.checked.map(|checked| {
            let pause = now.saturating_duration_since(checked) * PAUSE_FACTOR;
            (checked + CHECK_INTERVAL).max(now + pause)
        });
        reply.gone.sort_unstable();
        reply.alive.sort_unstable();
        let mut outcome = CheckOutcome::default();
        let unanswered = std::mem::take(&mut self.unanswered);
        let recent = std::mem::take(&mut self.recent);
        let published = recent.len() - self.unpublished;
        for (index, mut tombstone) in recent.into_iter().enumerate() {
            let verdict = Verdict::of(&tombstone, &reply);
            if verdict == Verdict::Deregistered {
                self.instances -= tombstone.instances();
                self.unpublished -= usize::from(index >= published);
                outcome.deregistered.push(tombstone);
            } else {
                tombstone.expired |= verdict == Verdict::Expired;
                self.recent.push_back(tombstone);
            }
        }
        // An expired key stays held until its hold ends.
        for tombstone in unanswered {
            match Verdict::of(&tombstone, &reply) {
                Verdict::Deregistered => outcome.deregistered.push(tombstone),
                Verdict::Expired => {}
                Verdict::Unknown => self.unanswered.push(tombstone),
            }
        }
        outcome.expired = self.take_mass_expiry(false);
        outcome.is_settled = !self.is_in_doubt() && self.unanswered.is_empty();
        outcome
    }

    /// Takes out the expired tombstones if they belong to a mass expiry.
    ///
    /// After a reconnect, even a few are a mass expiry if they leave the registry no instance.
    pub(super) fn take_mass_expiry(&mut self, leaves_nothing: bool) -> Vec<Tombstone> {
        let expired = self.recent.iter().filter(|tombstone| tombstone.expired);
        let expired: usize = expired.map(Tombstone::instances).sum();
        let is_mass = leaves_nothing || self.mass_expiry.is_some() || self.is_mass(expired);
        if expired > 0 && is_mass { self.take_expired() } else { Vec::new() }
    }

    /// Takes out the expired tombstones, which belong to a mass expiry.
    fn take_expired(&mut self) -> Vec<Tombstone> {
        let published = self.recent.len() - self.unpublished;
        let mut expired = Vec::new();
        for (index, tombstone) in std::mem::take(&mut self.recent).into_iter().enumerate() {
            if tombstone.expired {
                self.instances -= tombstone.instances();
                self.unpublished -= usize::from(index >= published);
                self.mass_expiry = self.mass_expiry.max(Some(tombstone.at));
                expired.push(tombstone);
            } else {
                self.recent.push_back(tombstone);
            }
        }
        expired
    }

    /// Ends the holds of all recent tombstones; returns their entries and keys.
    pub(super) fn release(&mut self) -> Vec<(u32, Arc<RegistryKey>)> {
        let held = self.recent.iter_mut().filter(|tombstone| tombstone.held_until.is_some());
        held.map(|tombstone| {
            tombstone.held_until = None;
            (tombstone.slot, Arc::clone(&tombstone.key))
        })
        .collect()
    }

    /// Takes out all tombstones, and forgets the mass expiry: later deletes are judged anew.
    pub(super) fn take_all(&mut self) -> Vec<Tombstone> {
        self.unpublished = 0;
        self.instances = 0;
        self.mass_expiry = None;
        std::mem::take(&mut self.recent).into_iter().chain(self.unanswered.drain(..)).collect()
    }

    /// Returns when the window moves on, or the next check is due.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let oldest = self.recent.front().map(|tombstone| tombstone.at + BURST_WINDOW);
        oldest.into_iter().chain(self.next_check(now)).min()
    }
}

/// What a reply says about a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Deregistered,
    Expired,
    Unknown,
}

impl Verdict {
    /// Looks up the tombstone's lease in a reply whose lists are sorted.
    fn of(tombstone: &Tombstone, reply: &LeaseReply) -> Self {
        // A late reply, or one of a member that lags behind, is from before the delete.
        let is_outdated = reply.revision != 0 && reply.revision < tombstone.revision;
        let is_in = |leases: &[i64]| leases.binary_search(&tombstone.key.lease).is_ok();
        if is_outdated || tombstone.expired {
            Self::Unknown
        } else if is_in(&reply.gone) {
            Self::Expired
        } else if is_in(&reply.alive) {
            Self::Deregistered
        } else {
            Self::Unknown
        }
    }
}
