//! What cannot be served, and why: counts, and a bounded list.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::Serialize;

use super::key::RegistryKey;
use crate::service::{MAX_REGISTRIES, Reason, RegistryId, Rejected};

/// Most rejections listed for one registry.
pub const MAX_LISTED_REJECTIONS: usize = 1_000;

/// Longest part of a rejected key that is listed, in characters: the longest key that could be served.
const MAX_EXCERPT_CHARS: usize = 4_096;

/// What the registries hold and cannot be served: keys, and single endpoints of keys that are served.
///
/// The list has up to [`MAX_LISTED_REJECTIONS`] rejections of each registry, the earliest found; a key leaves it when it is deleted, put
/// again with a good content, or not named by a complete list. The counts of endpoints are exact. So are those of keys
/// while the list is not full; of the keys beyond it only their number by reason is kept, as the last list told it, plus
/// what was rejected since (a key put again counts again, one deleted still counts, until the next list).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rejections {
    /// How many keys and endpoints are rejected for each reason, over all registries.
    pub counts: BTreeMap<Reason, u64>,
    /// How many rejected keys are counted and not listed.
    pub unlisted: u64,
    /// The listed ones, sorted by registry and key.
    pub listed: Arc<[RejectedKey]>,
}

/// One rejection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RejectedKey {
    /// The registry.
    pub registry: RegistryId,
    /// The key, shortened to 4,096 characters, control characters escaped.
    pub key: Arc<str>,
    /// Whether only an endpoint is rejected, and the key is served.
    pub endpoint_only: bool,
    /// What was found, and why it cannot be served.
    pub rejected: Rejected,
}

/// The rejections of all registries, kept up to date.
#[derive(Debug)]
pub(super) struct Ledger {
    registries: Vec<RegistryRejections>,
    view: Arc<Rejections>,
    /// Whether the view's counts are old.
    counts_stale: bool,
    /// Whether the view's list is old.
    list_stale: bool,
}

/// The rejections of one registry.
#[derive(Debug, Default)]
struct RegistryRejections {
    /// By the seeded hash of the key: a key of any size may be rejected, and must not be kept.
    listed: HashMap<u64, ListedKey, RandomState>,
    /// Rejections in `listed`, together.
    listed_rejections: usize,
    /// ListedKey keys, and all endpoints.
    counts: BTreeMap<Reason, u64>,
    /// Keys beyond the list.
    unlisted: BTreeMap<Reason, u64>,
    /// Keys beyond the list that the running list has named so far.
    unlisted_in_list: BTreeMap<Reason, u64>,
}

#[derive(Debug)]
struct ListedKey {
    key: Arc<str>,
    endpoint_only: bool,
    /// The list that named the key last.
    generation: u32,
    rejected: Box<[Rejected]>,
}

impl Ledger {
    /// An empty ledger for this many registries.
    pub(super) fn new(registries: usize) -> Self {
        let registries = (0..registries).map(|_| RegistryRejections::default()).collect();
        Self { registries, view: Arc::default(), counts_stale: false, list_stale: false }
    }

    /// Notes a key that cannot be served at all and is not noted now. O(1).
    pub(super) fn add_key(
        &mut self,
        registry: RegistryId,
        hash: u64,
        key: &str,
        rejected: Rejected,
        generation: u32,
        in_list: bool,
    ) {
        self.counts_stale = true;
        let rejections = &mut self.registries[registry.index()];
        if rejections.listed_rejections < MAX_LISTED_REJECTIONS {
            *rejections.counts.entry(rejected.reason).or_default() += 1;
            rejections.list(hash, key, false, generation, Box::new([rejected]));
            self.list_stale = true;
        } else {
            let counts =
                if in_list { &mut rejections.unlisted_in_list } else { &mut rejections.unlisted };
            *counts.entry(rejected.reason).or_default() += 1;
        }
    }

    /// Forgets a key that was rejected as a whole: it is gone, or good now. O(1).
    pub(super) fn remove_key(&mut self, registry: RegistryId, hash: u64) {
        let rejections = &mut self.registries[registry.index()];
        if rejections.listed.get(&hash).is_some_and(|listed| !listed.endpoint_only)
            && let Some(listed) = rejections.listed.remove(&hash)
        {
            rejections.uncount(&listed);
            (self.counts_stale, self.list_stale) = (true, true);
        }
    }

    /// Notes the rejected endpoints of a key that is served from now on. O(rejected endpoints).
    pub(super) fn add_endpoints(
        &mut self,
        hash_and_text: impl FnOnce() -> (u64, String),
        key: &RegistryKey,
    ) {
        let rejected = key.rejected();
        if rejected.is_empty() {
            return;
        }
        self.counts_stale = true;
        let rejections = &mut self.registries[key.registry().index()];
        for rejected in rejected {
            *rejections.counts.entry(rejected.reason).or_default() += 1;
        }
        let room =
            rejected.len().min(MAX_LISTED_REJECTIONS.saturating_sub(rejections.listed_rejections));
        if room > 0 {
            let (hash, text) = hash_and_text();
            rejections.list(hash, &text, true, 0, rejected[..room].into());
            self.list_stale = true;
        }
    }

    /// Forgets the rejected endpoints of a key that is served no longer. O(rejected endpoints).
    pub(super) fn remove_endpoints(&mut self, hash: impl FnOnce() -> u64, key: &RegistryKey) {
        if key.rejected().is_empty() {
            return;
        }
        self.counts_stale = true;
        let rejections = &mut self.registries[key.registry().index()];
        for rejected in key.rejected() {
            decrease(&mut rejections.counts, rejected.reason);
        }
        if let Some(listed) = rejections.listed.remove(&hash()) {
            rejections.listed_rejections -= listed.rejected.len();
            self.list_stale = true;
        }
    }

    /// A list begins.
    pub(super) fn begin_list(&mut self, registry: RegistryId) {
        self.registries[registry.index()].unlisted_in_list.clear();
    }

    /// A list is complete: keys that it did not name are rejected no longer. O(listed).
    pub(super) fn end_list(&mut self, registry: RegistryId, generation: u32) {
        self.counts_stale = true;
        let rejections = &mut self.registries[registry.index()];
        rejections.unlisted = std::mem::take(&mut rejections.unlisted_in_list);
        let swept = |listed: &ListedKey| !listed.endpoint_only && listed.generation != generation;
        let swept: Vec<u64> = rejections
            .listed
            .iter()
            .filter(|(_, listed)| swept(listed))
            .map(|(hash, _)| *hash)
            .collect();
        for hash in swept {
            if let Some(listed) = rejections.listed.remove(&hash) {
                rejections.uncount(&listed);
                self.list_stale = true;
            }
        }
    }

    /// All rejections now. Made anew only after a change.
    pub(super) fn view(&mut self) -> Arc<Rejections> {
        if std::mem::take(&mut self.counts_stale) {
            let mut view = Rejections::default();
            for rejections in &self.registries {
                for (reason, count) in rejections.counts.iter().chain(&rejections.unlisted) {
                    *view.counts.entry(*reason).or_default() += count;
                }
                view.unlisted += rejections.unlisted.values().sum::<u64>();
            }
            view.listed = if std::mem::take(&mut self.list_stale) {
                self.list()
            } else {
                Arc::clone(&self.view.listed)
            };
            self.view = Arc::new(view);
        }
        Arc::clone(&self.view)
    }

    fn list(&self) -> Arc<[RejectedKey]> {
        let mut list = Vec::new();
        for (registry, rejections) in RegistryId::first(MAX_REGISTRIES).zip(&self.registries) {
            let mut listed: Vec<&ListedKey> = rejections.listed.values().collect();
            listed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            list.extend(listed.into_iter().flat_map(|listed| {
                let ListedKey { key, endpoint_only, .. } = listed;
                listed.rejected.iter().map(move |rejected| RejectedKey {
                    registry,
                    key: Arc::clone(key),
                    endpoint_only: *endpoint_only,
                    rejected: rejected.clone(),
                })
            }));
        }
        list.into()
    }
}

impl RegistryRejections {
    fn list(
        &mut self,
        hash: u64,
        key: &str,
        endpoint_only: bool,
        generation: u32,
        rejected: Box<[Rejected]>,
    ) {
        self.listed_rejections += rejected.len();
        let listed = ListedKey { key: excerpt(key), endpoint_only, generation, rejected };
        if let Some(before) = self.listed.insert(hash, listed) {
            self.listed_rejections -= before.rejected.len();
        }
    }

    /// Takes a whole key, which has left `listed`, out of the counts.
    fn uncount(&mut self, listed: &ListedKey) {
        self.listed_rejections -= listed.rejected.len();
        for rejected in &listed.rejected {
            decrease(&mut self.counts, rejected.reason);
        }
    }
}

fn decrease(counts: &mut BTreeMap<Reason, u64>, reason: Reason) {
    if let Some(count) = counts.get_mut(&reason) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&reason);
        }
    }
}

/// A key of any size, fit to print.
fn excerpt(key: &str) -> Arc<str> {
    let mut excerpt = String::with_capacity(key.len().min(MAX_EXCERPT_CHARS));
    for (count, c) in key.chars().enumerate() {
        if count == MAX_EXCERPT_CHARS {
            excerpt.push('…');
            break;
        }
        if c.is_control() { excerpt.extend(c.escape_default()) } else { excerpt.push(c) }
    }
    excerpt.into()
}
