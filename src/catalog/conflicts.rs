//! Naming conflicts: names of several registries, shadowed spellings, and ambiguous names.

use std::fmt::Write;
use std::sync::Arc;

use serde::Serialize;

use super::key::RegistryKey;
use super::model::Service;
use crate::name::{Interpretation, ServiceScope, Zones, instance_label, interpretations};
use crate::service::{RegistryId, RegistrySet};

/// A name that two registrations claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Conflict {
    /// The name relative to the zone: `hello`, `hello.prod`.
    pub name: String,
    /// Kind of the conflict.
    pub kind: ConflictKind,
    /// The deployment of the loser.
    pub deployment: Box<str>,
    /// The namespace of the loser.
    pub namespace: Box<str>,
    /// The claim that is served.
    ///
    /// A registry (`registry main`), a spelling (`hello.svc`) or an interpretation (`service
    /// hello.prod`).
    pub winner: String,
    /// The claim that is not served under this name.
    ///
    /// A registry (`registry static`), a spelling (`hello`) or an interpretation (`service hello in
    /// namespace prod`).
    pub loser: String,
}

/// The kinds of naming conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictKind {
    /// Two registries hold the same base, and one registry precedes the other.
    ///
    /// Both hold it in the same deployment and namespace. The instances of the loser are not served
    /// at all.
    Preceded,
    /// Two spellings of one base in a deployment and namespace.
    ///
    /// The instances of the loser are not served at all.
    Shadowed,
    /// Two interpretations of one name; the loser is served under its other names only.
    Hidden,
    /// An alias has the base of a registered service, so the service is not served at all.
    Alias,
}

/// Returns the naming conflicts among services, sorted.
///
/// Conflicts are preceded registries, shadowed spellings, and published names (of deployments,
/// namespaces, versions and instances) that a registered service takes by an interpretation of
/// higher precedence.
///
/// `find` looks up a service or alias by its base name, and `registry_name` names a registry.
/// `deployment` and `namespace` are the configured defaults. Meant for interactive use: O(keys and
/// instances), with a few lookups for each.
pub fn conflicts<'a>(
    services: impl IntoIterator<Item = &'a Arc<Service>>,
    find: impl Fn(&str) -> Option<Arc<Service>>,
    registry_name: impl Fn(RegistryId) -> String,
    zones: &Zones,
    deployment: &str,
    namespace: &str,
) -> Vec<Conflict> {
    let mut search = ConflictSearch { find, zones, deployment, namespace, found: Vec::new() };
    for service in services {
        search.service(service);
        // The registries are those of the alias's target.
        if service.alias_target().is_none() {
            preceded(service, &registry_name, &mut search.found);
        }
    }
    search.found.sort_unstable();
    search.found.dedup();
    search.found
}

/// Returns the conflicts of a registered service that an alias replaces.
///
/// There is one conflict for each spelling in each deployment and namespace; `target` describes the
/// alias's target.
pub fn conflicts_with_alias(replaced: &Service, target: &str, zones: &Zones) -> Vec<Conflict> {
    let base = replaced.base();
    let spellings = replaced.keys().chunk_by(|a, b| a.scope() == b.scope() && a.rank() == b.rank());
    let conflict = |keys: &[Arc<RegistryKey>]| Conflict {
        name: base.to_owned(),
        kind: ConflictKind::Alias,
        deployment: keys[0].group().deployment.clone(),
        namespace: keys[0].group().namespace.clone(),
        winner: format!("alias of {target}"),
        loser: spelling(base, keys[0].rank(), zones),
    };
    spellings.map(conflict).collect()
}

/// The inputs of [`conflicts`] and the conflicts found so far.
struct ConflictSearch<'s, F> {
    find: F,
    zones: &'s Zones,
    deployment: &'s str,
    namespace: &'s str,
    found: Vec<Conflict>,
}

/// The intended interpretation of a published name, as numbers of labels.
///
/// The labels of the instance and the version precede the base; a namespace, then a deployment
/// follow it.
#[derive(Clone, Copy)]
struct Claim {
    instance: bool,
    version: usize,
    base: usize,
}

impl<F: Fn(&str) -> Option<Arc<Service>>> ConflictSearch<'_, F> {
    /// Adds the conflicts of one service.
    fn service(&mut self, service: &Service) {
        let labels = service.base().split('.').count();
        for scope in service.keys().chunk_by(|a, b| a.scope() == b.scope()) {
            // The spellings are those of the alias's target.
            if service.alias_target().is_none() {
                self.shadowed(service.base(), scope);
            }
            let winner = scope[0].precedence();
            let visible = &scope[..scope.partition_point(|key| key.precedence() == winner)];
            let key = &scope[0];
            let forms = self.forms(service.base(), key);
            for form in &forms {
                self.claim(form, key, Claim { instance: false, version: 0, base: labels });
            }
            // Versions and instances are published in front of the shortest form.
            let Some(form) = forms.first() else { continue };
            for version in visible
                .chunk_by(|a, b| a.group() == b.group())
                .map(|keys| &*keys[0].group().version)
            {
                if version.split('.').all(is_label) {
                    let claim = Claim {
                        instance: false,
                        version: version.split('.').count(),
                        base: labels,
                    };
                    self.claim(&format!("{version}.{form}"), key, claim);
                }
            }
            let endpoints = visible.iter().flat_map(|key| &key.endpoints);
            let mut addresses: Vec<_> =
                endpoints.filter_map(|endpoint| endpoint.host.address()).collect();
            addresses.sort_unstable();
            addresses.dedup();
            for address in addresses {
                let claim = Claim { instance: true, version: 0, base: labels };
                self.claim(&format!("{}.{form}", instance_label(address)), key, claim);
            }
        }
    }

    /// Returns the names of a base in a deployment and namespace, the shortest first.
    ///
    /// Forms whose deployment or namespace cannot be a label are left out.
    fn forms(&self, base: &str, key: &RegistryKey) -> Vec<String> {
        let (deployment, namespace) = key.scope();
        let mut forms = Vec::new();
        if deployment == self.deployment && namespace == self.namespace {
            forms.push(base.to_owned());
        }
        if deployment == self.deployment && is_label(namespace) {
            forms.push(format!("{base}.{namespace}"));
        }
        if is_label(deployment) && is_label(namespace) {
            forms.push(format!("{base}.{namespace}.{deployment}"));
        }
        forms
    }

    /// Reports every spelling with instances in one deployment and namespace except the winner.
    ///
    /// Preceded registries have their own kind of conflict.
    fn shadowed(&mut self, base: &str, scope: &[Arc<RegistryKey>]) {
        let scope = &scope[..scope.partition_point(|key| key.layer() == scope[0].layer())];
        let mut spellings = scope.chunk_by(|a, b| a.rank() == b.rank());
        let Some([winner, ..]) = spellings.next() else { return };
        // A spelling without a usable endpoint loses none.
        let losers = spellings.filter_map(|keys| keys.iter().find(|key| !key.endpoints.is_empty()));
        for loser in losers {
            self.found.push(Conflict {
                name: base.to_owned(),
                kind: ConflictKind::Shadowed,
                deployment: loser.group().deployment.clone(),
                namespace: loser.group().namespace.clone(),
                winner: spelling(base, winner.rank(), self.zones),
                loser: spelling(base, loser.rank(), self.zones),
            });
        }
    }

    /// Reports a conflict if an interpretation tried before the claimed one is registered.
    fn claim(&mut self, name: &str, key: &RegistryKey, claim: Claim) {
        let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
        let front = usize::from(claim.instance) + claim.version;
        let claimed = Interpretation {
            base: &labels[front..front + claim.base],
            scope: match labels[front + claim.base..] {
                [namespace] => ServiceScope::Namespace(namespace),
                [namespace, deployment] => ServiceScope::Full { namespace, deployment },
                _ => ServiceScope::Configured,
            },
            instance: claim.instance.then(|| labels[0]),
            version: (claim.version > 0).then(|| &labels[usize::from(claim.instance)..front]),
        };
        let mut better = interpretations(&labels, labels.len())
            .take_while(|interpretation| *interpretation != claimed);
        if let Some(winner) = better.find(|interpretation| self.is_registered(interpretation)) {
            self.found.push(Conflict {
                name: name.to_owned(),
                kind: ConflictKind::Hidden,
                deployment: key.group().deployment.clone(),
                namespace: key.group().namespace.clone(),
                winner: self.describe(&winner),
                loser: self.describe(&claimed),
            });
        }
    }

    /// Describes an interpretation in words.
    fn describe(&self, interpretation: &Interpretation<'_>) -> String {
        let service = (self.find)(&joined(interpretation.base));
        let is_alias = service.is_some_and(|service| service.alias_target().is_some());
        describe(interpretation, if is_alias { "alias" } else { "service" })
    }

    /// Returns whether the service or part named by the interpretation is registered.
    fn is_registered(&self, interpretation: &Interpretation<'_>) -> bool {
        let Some(service) = (self.find)(&joined(interpretation.base)) else { return false };
        if *interpretation
            == (Interpretation {
                base: interpretation.base,
                scope: ServiceScope::Configured,
                instance: None,
                version: None,
            })
        {
            return true;
        }
        let (deployment, namespace) = match interpretation.scope {
            ServiceScope::Configured => (self.deployment.into(), self.namespace.into()),
            ServiceScope::Namespace(namespace) => {
                (self.deployment.into(), String::from_utf8_lossy(namespace))
            }
            ServiceScope::Full { namespace, deployment } => {
                (String::from_utf8_lossy(deployment), String::from_utf8_lossy(namespace))
            }
        };
        let (deployment, namespace): (&str, &str) = (&deployment, &namespace);
        let keys = service.keys();
        let first = keys.partition_point(|key| key.scope() < (deployment, namespace));
        let Some(winner) = keys.get(first).filter(|key| key.scope() == (deployment, namespace))
        else {
            return false;
        };
        let mut keys = &keys[first..];
        keys = &keys[..keys.partition_point(|key| {
            key.scope() == (deployment, namespace) && key.precedence() == winner.precedence()
        })];
        if let Some(version) = interpretation.version {
            let version = joined(version);
            let first = keys.partition_point(|key| *key.group().version < *version);
            keys = &keys[first..];
            keys = &keys[..keys.partition_point(|key| *key.group().version == *version)];
        }
        let Some(instance) = interpretation.instance else { return !keys.is_empty() };
        let address = crate::name::instance_address(instance);
        address.is_some()
            && keys
                .iter()
                .any(|key| key.endpoints.iter().any(|endpoint| endpoint.host.address() == address))
    }
}

/// Adds a conflict for each preceded registry of a service.
fn preceded(
    service: &Service,
    registry_name: impl Fn(RegistryId) -> String,
    found: &mut Vec<Conflict>,
) {
    for scope in service.keys().chunk_by(|a, b| a.scope() == b.scope()) {
        let winners = scope.partition_point(|key| key.layer() == scope[0].layer());
        let (winners, losers) = scope.split_at(winners);
        // A registry without a usable endpoint loses none.
        let registries = |keys: &[Arc<RegistryKey>]| -> RegistrySet {
            let holders = keys.iter().filter(|key| key.holds_name());
            holders.map(|key| key.registry()).collect()
        };
        let names = |registries: RegistrySet| -> Vec<String> {
            registries.iter().map(&registry_name).collect()
        };
        for loser in names(registries(losers)) {
            let group = winners[0].group();
            found.push(Conflict {
                name: service.base().to_owned(),
                kind: ConflictKind::Preceded,
                deployment: group.deployment.clone(),
                namespace: group.namespace.clone(),
                winner: format!("registry {}", names(registries(winners)).join(", ")),
                loser: format!("registry {loser}"),
            });
        }
    }
}

/// Returns a registered name as spelled: its base and the zone suffix of its rank.
pub fn spelling(base: &str, rank: u8, zones: &Zones) -> String {
    match zones.iter().nth(usize::from(rank)) {
        Some(zone) => format!("{base}.{}", zone.relative_text()),
        None => base.to_owned(),
    }
}

/// Describes an interpretation in words; `noun` is `service` or `alias`.
fn describe(interpretation: &Interpretation<'_>, noun: &str) -> String {
    let mut words = String::new();
    if let Some(instance) = interpretation.instance {
        let _ = write!(words, "instance {} of ", String::from_utf8_lossy(instance));
    }
    if let Some(version) = interpretation.version {
        let _ = write!(words, "version {} of ", joined(version));
    }
    let _ = write!(words, "{noun} {}", joined(interpretation.base));
    match interpretation.scope {
        ServiceScope::Configured => {}
        ServiceScope::Namespace(namespace) => {
            let _ = write!(words, " in namespace {}", String::from_utf8_lossy(namespace));
        }
        ServiceScope::Full { namespace, deployment } => {
            let (namespace, deployment) =
                (String::from_utf8_lossy(namespace), String::from_utf8_lossy(deployment));
            let _ = write!(words, " in namespace {namespace} of deployment {deployment}");
        }
    }
    words
}

fn joined(labels: &[&[u8]]) -> String {
    String::from_utf8_lossy(&labels.join(&b'.')).into_owned()
}

/// Returns whether a text is a valid label that does not look like a selector.
fn is_label(text: &str) -> bool {
    !text.is_empty() && text.len() <= 63 && !text.contains('.') && !text.starts_with('_')
}
