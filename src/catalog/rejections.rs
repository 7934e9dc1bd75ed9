//! Rejected keys and endpoints of the registries, counted and listed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::Serialize;

use super::key::RegistryKey;
use super::names::RegisteredNames;
use crate::service::{ListScope, MAX_REGISTRIES, Reason, RegistryId, Rejected, key_prefix};

/// Maximum listed rejections of one registry.
pub const MAX_LISTED_REJECTIONS: usize = 1_000;

/// Maximum length of the excerpt of a rejected key, in characters.
///
/// Every key that can be served is shorter.
const MAX_EXCERPT_CHARS: usize = 4_096;

/// The rejected keys, and the rejected endpoints of served keys.
///
/// Of each registry, the first [`MAX_LISTED_REJECTIONS`] rejections are listed. A key leaves the
/// list when it is deleted, put again with valid content, or missing from a complete list.
///
/// The counts of endpoints are exact. The counts of keys are exact until the list is full. For
/// further keys, only the number for each reason is known: as of the last complete list, plus later
/// rejections. Until the next list, a repeated put counts again and a deleted key still counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rejections {
    /// Number of rejected keys and endpoints by reason, over all registries.
    pub counts: BTreeMap<Reason, u64>,
    /// Number of rejected keys and endpoints of each registry, in the order of the configuration.
    pub by_registry: Vec<u64>,
    /// Number of rejected keys that are counted but not listed.
    pub unlisted: u64,
    /// The listed rejections, sorted by registry and key.
    pub listed: Arc<[RejectedKey]>,
}

/// A listed rejection of a key or of one of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RejectedKey {
    /// The registry that has the key.
    pub registry: RegistryId,
    /// The key, shortened to 4,096 characters, control characters escaped.
    pub key: Arc<str>,
    /// Whether only an endpoint is rejected and the key itself is served.
    pub endpoint_only: bool,
    /// The offending text and the reason.
    pub rejected: Rejected,
}

/// Tracks the rejections of all registries.
#[derive(Debug)]
pub(super) struct Ledger {
    registries: Vec<RegistryRejections>,
    /// The result of the last [`Self::view`].
    view: Arc<Rejections>,
    /// Whether the counts of `view` are out of date.
    counts_stale: bool,
    /// Whether the list of `view` is out of date.
    list_stale: bool,
}

/// The rejections of one registry.
#[derive(Debug, Default)]
struct RegistryRejections {
    /// Listed keys by seeded hash: a rejected key may be too large to store.
    listed: HashMap<u64, ListedKey, RandomState>,
    /// Number of rejections in `listed`.
    listed_rejections: usize,
    /// Rejections by reason: those of listed keys, and those of all endpoints, listed or not.
    counts: BTreeMap<Reason, u64>,
    /// Counts of keys that are not listed, by [`Self::name_hash`].
    unlisted: HashMap<u64, BTreeMap<Reason, u64>, RandomState>,
    /// Counts of unlisted keys that the list in progress has named so far.
    unlisted_in_list: HashMap<u64, BTreeMap<Reason, u64>, RandomState>,
}

/// A rejected key, or a served key with rejected endpoints.
#[derive(Debug)]
struct ListedKey {
    key: Arc<str>,
    endpoint_only: bool,
    /// Number of the registry's list that named the key last.
    generation: u32,
    /// The [`RegistryRejections::name_hash`] of the key.
    name: u64,
    rejected: Box<[Rejected]>,
}

impl Ledger {
    /// Creates an empty ledger for this many registries.
    pub(super) fn new(registries: usize) -> Self {
        let registries = (0..registries).map(|_| RegistryRejections::default()).collect();
        Self { registries, view: Arc::default(), counts_stale: false, list_stale: false }
    }

    /// Adds a rejected key that is not listed. O(1).
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
            let name = rejections.name_hash(key);
            let counts =
                if in_list { &mut rejections.unlisted_in_list } else { &mut rejections.unlisted };
            *counts.entry(name).or_default().entry(rejected.reason).or_default() += 1;
        }
    }

    /// Removes a rejected key that was deleted or put again. O(1).
    pub(super) fn remove_key(&mut self, registry: RegistryId, hash: u64) {
        let rejections = &mut self.registries[registry.index()];
        if rejections.listed.get(&hash).is_some_and(|listed| !listed.endpoint_only)
            && let Some(listed) = rejections.listed.remove(&hash)
        {
            rejections.uncount(&listed);
            (self.counts_stale, self.list_stale) = (true, true);
        }
    }

    /// Adds the rejected endpoints of a key that becomes live. O(rejected endpoints).
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

    /// Removes the rejected endpoints of a key no longer live. O(rejected endpoints).
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

    /// Resets the counts of the list in progress, when a list begins.
    pub(super) fn begin_list(&mut self, registry: RegistryId) {
        self.registries[registry.index()].unlisted_in_list.clear();
    }

    /// Removes the rejected keys that a complete list did not name. O(listed keys).
    pub(super) fn end_list(&mut self, registry: RegistryId, scope: &ListScope, generation: u32) {
        let rejections = &mut self.registries[registry.index()];
        let in_list = std::mem::take(&mut rejections.unlisted_in_list);
        let scope = match scope {
            ListScope::Registry => None,
            ListScope::Service(name) => Some(rejections.name_hash(&key_prefix(name))),
        };
        match scope {
            None => rejections.unlisted.clear(),
            Some(name) => {
                rejections.unlisted.remove(&name);
            }
        }
        rejections.unlisted.extend(in_list);
        self.remove_if(registry, |listed| {
            listed.generation != generation && scope.is_none_or(|name| listed.name == name)
        });
    }

    /// Removes the rejected keys of all other names. O(names and listed keys).
    pub(super) fn retain_names(&mut self, registry: RegistryId, names: &RegisteredNames) {
        let rejections = &mut self.registries[registry.index()];
        if rejections.listed.is_empty() && rejections.unlisted.is_empty() {
            return;
        }
        let known: HashSet<u64> =
            names.iter().map(|name| rejections.name_hash(&key_prefix(name))).collect();
        rejections.unlisted.retain(|name, _| known.contains(name));
        self.remove_if(registry, |listed| !known.contains(&listed.name));
    }

    /// Removes the listed keys that meet the condition. O(listed keys).
    fn remove_if(&mut self, registry: RegistryId, condition: impl Fn(&ListedKey) -> bool) {
        self.counts_stale = true;
        let rejections = &mut self.registries[registry.index()];
        let is_removed = |listed: &ListedKey| !listed.endpoint_only && condition(listed);
        let removed: Vec<u64> = rejections
            .listed
            .iter()
            .filter(|(_, listed)| is_removed(listed))
            .map(|(hash, _)| *hash)
            .collect();
        for hash in removed {
            if let Some(listed) = rejections.listed.remove(&hash) {
                rejections.uncount(&listed);
                self.list_stale = true;
            }
        }
    }

    /// Returns the current rejections, recomputed only after a change.
    pub(super) fn view(&mut self) -> Arc<Rejections> {
        if std::mem::take(&mut self.counts_stale) {
            let mut view = Rejections::default();
            for rejections in &self.registries {
                let unlisted = || rejections.unlisted.values().flatten();
                let mut total = 0;
                for (reason, count) in rejections.counts.iter().chain(unlisted()) {
                    *view.counts.entry(*reason).or_default() += count;
                    total += count;
                }
                view.by_registry.push(total);
                view.unlisted += unlisted().map(|(_, count)| count).sum::<u64>();
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

    /// Returns the listed rejections, sorted by registry and key.
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
    /// Returns the seeded hash of a key's text before the first slash.
    ///
    /// With per-service lists, that text is the registered name ([`key_prefix`]).
    fn name_hash(&self, key: &str) -> u64 {
        self.listed.hasher().hash_one(key.split_once('/').map_or("", |(name, _)| name))
    }

    /// Lists the rejections of a key, replacing earlier ones.
    fn list(
        &mut self,
        hash: u64,
        key: &str,
        endpoint_only: bool,
        generation: u32,
        rejected: Box<[Rejected]>,
    ) {
        self.listed_rejections += rejected.len();
        let name = self.name_hash(key);
        let listed = ListedKey { key: excerpt(key), endpoint_only, generation, name, rejected };
        if let Some(before) = self.listed.insert(hash, listed) {
            self.listed_rejections -= before.rejected.len();
        }
    }

    /// Subtracts from the counts a rejected key that was removed from `listed`.
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

/// Returns the start of a key, with control characters escaped.
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
