//! The endpoints to check, and the instances that failed checks leave out.

use std::collections::{BTreeSet, HashMap, HashSet};

use foldhash::fast::RandomState;

use super::ServiceChange;
use super::key::RegistryKey;
use super::model::{Instance, Service};
use crate::service::{CheckChange, CheckTarget, CheckVerdict, Endpoint, NamePattern, Probe};

/// The metadata key by which GoFrame's servers tell their protocol: `http`, `https` or `grpc`.
const PROTOCOL: &str = "protocol";

/// The rules for which instances are checked, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckRules {
    /// Patterns of the names of services, of which one must match.
    pub names: Vec<NamePattern>,
    /// Protocols in the metadata, of which an instance must have one; empty accepts any.
    pub protocols: Vec<String>,
    /// Whether instances are checked with HTTP, unless they tell another protocol.
    pub http: bool,
    /// Whether a service's name has all versions if none is `latest`.
    pub version_fallback: bool,
}

impl CheckRules {
    /// Returns whether instances of the service with this base name are checked.
    fn choose(&self, base: &str) -> bool {
        self.names.iter().any(|pattern| pattern.matches(base))
    }

    /// Returns how an instance of a chosen service is checked, if it is.
    ///
    /// A host name is not checked: several machines may have it, and change with every lookup.
    fn target(&self, key: &RegistryKey, endpoint: &Endpoint) -> Option<CheckTarget> {
        let address = endpoint.host.address()?;
        let protocol = key.metadata.text(PROTOCOL);
        let has =
            |name: &str| protocol.as_ref().is_some_and(|text| text.eq_ignore_ascii_case(name));
        if !self.protocols.is_empty() && !self.protocols.iter().any(|name| has(name)) {
            return None;
        }
        let http = self.http && (protocol.is_none() || has("http") || has("https"));
        let probe = if http { Probe::Http } else { Probe::Tcp };
        Some(CheckTarget { address, port: endpoint.port, probe })
    }

    /// Returns the targets of a service, sorted and unique.
    ///
    /// Instances that another rule excludes are not checked.
    fn targets(&self, service: &Service) -> Vec<CheckTarget> {
        if !self.choose(service.base()) {
            return Vec::new();
        }
        let mut targets: Vec<CheckTarget> = service
            .selectable()
            .filter_map(|instance| self.target(instance.key, instance.endpoint))
            .collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }
}

/// Maps each target to the services that have an instance of it, and knows which targets fail.
#[derive(Debug)]
pub(super) struct CheckIndex {
    rules: CheckRules,
    bases: HashMap<CheckTarget, TargetBases, RandomState>,
    failing: HashSet<CheckTarget, RandomState>,
    /// Number of instances that are left out.
    pub(super) left_out: usize,
}

/// The base names of the services that share a target, usually one.
#[derive(Debug)]
enum TargetBases {
    One(Box<str>),
    Several(BTreeSet<Box<str>>),
}

impl CheckIndex {
    /// Creates the index without targets.
    pub(super) fn new(rules: CheckRules) -> Self {
        Self { rules, bases: HashMap::default(), failing: HashSet::default(), left_out: 0 }
    }

    /// Replaces the rules for leaving out failing instances; those for targets must be the same.
    pub(super) fn set_rules(&mut self, rules: CheckRules) {
        self.rules = rules;
    }

    /// Leaves out the instances of a service that fail, except where none would be left.
    pub(super) fn leave_out(&self, service: &mut Service) {
        if !self.failing.is_empty() && self.rules.choose(service.base()) {
            service.leave_out_failing(self.rules.version_fallback, |key, endpoint| {
                self.rules
                    .target(key, endpoint)
                    .is_some_and(|target| self.failing.contains(&target))
            });
        }
    }

    /// Indexes the targets of changed services; returns the targets to check or drop.
    pub(super) fn update(&mut self, changed: &[ServiceChange]) -> Vec<CheckChange> {
        let mut changes = Vec::new();
        // Removed last, so that a target that moves to another service keeps its verdict.
        let mut gone = Vec::new();
        for changed in changed {
            let base = changed.base();
            let [before, after] = [&changed.before, &changed.after].map(Option::as_deref);
            self.left_out += after.map_or(0, count_left_out);
            self.left_out -= before.map_or(0, count_left_out);
            let [before, after] = [before, after].map(|service| {
                service.map(|service| self.rules.targets(service)).unwrap_or_default()
            });
            for target in &after {
                if before.binary_search(target).is_err() && self.add(*target, base) {
                    changes.push(CheckChange::Wanted(*target));
                }
            }
            let is_gone = |target: &CheckTarget| after.binary_search(target).is_err();
            gone.extend(before.into_iter().filter(is_gone).map(|target| (target, base)));
        }
        for (target, base) in gone {
            if self.remove(target, base) {
                changes.push(CheckChange::Unwanted(target));
            }
        }
        changes
    }

    /// Stores verdicts; returns the bases of the affected services.
    ///
    /// Targets without an instance are ignored.
    pub(super) fn judge(&mut self, verdicts: Vec<CheckVerdict>) -> BTreeSet<Box<str>> {
        let mut affected = BTreeSet::new();
        for CheckVerdict { target, fails } in verdicts {
            let Some(bases) = self.bases.get(&target) else { continue };
            let changed =
                if fails { self.failing.insert(target) } else { self.failing.remove(&target) };
            match bases {
                TargetBases::One(base) if changed => _ = affected.insert(base.clone()),
                TargetBases::Several(bases) if changed => affected.extend(bases.iter().cloned()),
                TargetBases::One(_) | TargetBases::Several(_) => {}
            }
        }
        affected
    }

    /// Adds a service to a target; returns whether the target is new.
    fn add(&mut self, target: CheckTarget, base: &str) -> bool {
        let Some(bases) = self.bases.get_mut(&target) else {
            self.bases.insert(target, TargetBases::One(base.into()));
            return true;
        };
        match bases {
            TargetBases::One(first) => {
                let first = std::mem::take(first);
                *bases = TargetBases::Several(BTreeSet::from([first, base.into()]));
            }
            TargetBases::Several(several) => _ = several.insert(base.into()),
        }
        false
    }

    /// Removes a service from a target; returns whether the target has no service left.
    fn remove(&mut self, target: CheckTarget, base: &str) -> bool {
        let is_last = match self.bases.get_mut(&target) {
            Some(TargetBases::One(_)) => true,
            Some(TargetBases::Several(several)) => {
                several.remove(base);
                several.is_empty()
            }
            None => false,
        };
        if is_last {
            self.bases.remove(&target);
            self.failing.remove(&target);
        }
        is_last
    }
}

/// Returns the number of instances that failed checks leave out.
fn count_left_out(service: &Service) -> usize {
    service.instances().filter(Instance::is_left_out).count()
}
