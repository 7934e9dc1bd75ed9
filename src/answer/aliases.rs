//! Aliases: further bases of services, and names that lead outside the zones.
//!
//! An alias of a service is one more service in the snapshot, with the keys of its target: all
//! forms of the naming grammar and the fast path treat it like any other. An alias of an outside
//! name is a CNAME record; only its own name exists, none below it.
//!
//! An alias takes precedence over a registered service of the same base, whose names and addresses
//! are then not published.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::catalog::{Service, ServiceChange};
use crate::name::Name;

/// Maximum length of a chain of aliases.
const MAX_CHAINED_ALIASES: usize = 8;

/// The target of an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AliasTarget {
    /// The base of a service or of another alias.
    Base(Box<str>),
    /// A name outside the served zones.
    Outside(Box<Name>),
}

impl fmt::Display for AliasTarget {
    /// Writes the base of a service, or the outside name with its final dot.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(base) => f.write_str(base),
            Self::Outside(name) => name.fmt(f),
        }
    }
}

/// The aliases by their base, each with its last target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aliases {
    /// The last target of each alias, which is not an alias itself.
    targets: BTreeMap<Box<str>, AliasTarget>,
    /// The aliases of each service, by the base of the service.
    by_service: HashMap<Box<str>, Vec<Box<str>>>,
    /// Targets outside the zones, by the alias as wire labels in front of the zone.
    outside: HashMap<Box<[u8]>, Name>,
}

/// Error in a set of aliases.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AliasError {
    /// An alias leads back to itself, perhaps through others.
    #[error("the aliases lead in a circle: {}", .0.join(", "))]
    Loop(Vec<Box<str>>),
    /// A chain of aliases exceeds the limit on its length.
    #[error(
        "more than {MAX_CHAINED_ALIASES} aliases lead from one to the next: {}; name the last \
         target",
        .0.join(", ")
    )]
    TooLong(Vec<Box<str>>),
}

impl AliasError {
    /// Returns the bases of the aliases, in the order in which they lead to each other.
    pub fn bases(&self) -> &[Box<str>] {
        let (Self::Loop(bases) | Self::TooLong(bases)) = self;
        bases
    }
}

impl Aliases {
    /// Creates the aliases from their bases and targets, which may be other aliases.
    ///
    /// Bases are valid and in lower case ([`crate::name::base_of`]).
    ///
    /// # Errors
    /// Returns an error if aliases lead in a circle or over too many others.
    pub fn new(written: &BTreeMap<Box<str>, AliasTarget>) -> Result<Self, AliasError> {
        let mut aliases = Self::default();
        for base in written.keys() {
            let target = last_target(base, written)?;
            match &target {
                AliasTarget::Base(service) => {
                    aliases.by_service.entry(service.clone()).or_default().push(base.clone());
                }
                AliasTarget::Outside(name) => {
                    // A valid base is a name; the root label is not part of an owner.
                    if let Ok(base) = Name::from_text(base)
                        && let Some((_root, owner)) = base.as_wire().split_last()
                    {
                        aliases.outside.insert(owner.into(), **name);
                    }
                }
            }
            aliases.targets.insert(base.clone(), target);
        }
        Ok(aliases)
    }

    /// Returns whether there is no alias.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Returns the base and the last target of each alias, in order of the bases.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &AliasTarget)> {
        self.targets.iter().map(|(base, target)| (&**base, target))
    }

    /// Returns the last target of the alias with this base.
    pub fn target(&self, base: &str) -> Option<&AliasTarget> {
        self.targets.get(base)
    }

    /// Returns the bases of the aliases of a service, in order.
    pub fn of_service(&self, base: &str) -> impl Iterator<Item = &str> {
        self.by_service.get(base).into_iter().flatten().map(|alias| &**alias)
    }

    /// Returns the target outside the zones of an alias.
    ///
    /// The alias is given as wire labels in front of the zone, in lower case.
    pub(super) fn outside(&self, owner: &[u8]) -> Option<&Name> {
        if self.outside.is_empty() { None } else { self.outside.get(owner) }
    }

    /// Returns the bases of the aliases of outside names.
    pub(super) fn outside_bases(&self) -> impl Iterator<Item = &str> {
        self.iter()
            .filter(|(_, target)| matches!(target, AliasTarget::Outside(_)))
            .map(|(base, _)| base)
    }

    /// Returns the aliases of services as new services whose targets are not registered.
    pub(super) fn unregistered_services(&self) -> Vec<ServiceChange> {
        let alias = |(base, target): (&str, &AliasTarget)| match target {
            AliasTarget::Base(service) => {
                let service = Service::alias(base, Arc::new(Service::empty(service)));
                Some(ServiceChange { before: None, after: Some(Arc::new(service)) })
            }
            AliasTarget::Outside(_) => None,
        };
        self.iter().filter_map(alias).collect()
    }

    /// Returns the names above the aliases, each with the number of aliases below it.
    pub(super) fn ancestors(&self) -> Vec<(Box<str>, i32)> {
        let mut counts: BTreeMap<&str, i32> = BTreeMap::new();
        for base in self.targets.keys() {
            let mut rest: &str = base;
            while let Some((_, above)) = rest.split_once('.') {
                *counts.entry(above).or_default() += 1;
                rest = above;
            }
        }
        counts.into_iter().map(|(name, count)| (name.into(), count)).collect()
    }
}

/// Follows an alias to a target that is not an alias.
fn last_target(
    base: &str,
    written: &BTreeMap<Box<str>, AliasTarget>,
) -> Result<AliasTarget, AliasError> {
    let mut path: Vec<Box<str>> = vec![base.into()];
    let mut last = base;
    loop {
        match written.get(last) {
            Some(AliasTarget::Base(next)) => {
                let is_loop = path.contains(next);
                path.push(next.clone());
                if is_loop {
                    return Err(AliasError::Loop(path));
                }
                if path.len() > MAX_CHAINED_ALIASES + 1 {
                    return Err(AliasError::TooLong(path));
                }
                last = next;
            }
            Some(AliasTarget::Outside(name)) => return Ok(AliasTarget::Outside(name.clone())),
            None => return Ok(AliasTarget::Base(last.into())),
        }
    }
}
