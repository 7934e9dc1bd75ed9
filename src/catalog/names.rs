//! The registered names of a registry with per-service lists.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// The names that a registry has named or listed, and those that the round awaits.
///
/// Empty for a registry that lists all its keys at once.
#[derive(Debug, Default)]
pub(super) struct RegisteredNames {
    names: HashMap<Box<str>, NameState, RandomState>,
    /// The bases of keys that register another name than the one they are listed under.
    ///
    /// Empty for most kinds of registry.
    other_bases: HashMap<Box<str>, Vec<Box<str>>, RandomState>,
    /// Number of the last list of names; 0 before the first.
    lists: u32,
    /// Whether the round has had a list of names.
    named: bool,
    /// Number of names that the round has not listed.
    awaited: usize,
    /// Whether a list of the registry may have brought names that are not in `names`.
    may_lack: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct NameState {
    /// Number of the last list of names that has the name.
    named_in: u32,
    /// Whether the round has listed the keys of the name.
    listed: bool,
}

/// A known name that is missing from a list of names.
#[derive(Debug)]
pub(super) struct GoneName {
    pub(super) name: Box<str>,
    /// Whether the round still awaited a list of the name.
    pub(super) awaited: bool,
}

impl RegisteredNames {
    /// Begins a round, which awaits a list of each known name. O(names).
    pub(super) fn await_all(&mut self) {
        self.named = false;
        self.awaited = self.names.len();
        for state in self.names.values_mut() {
            state.listed = false;
        }
    }

    /// Records a complete list of the names; returns the names that are gone.
    ///
    /// The round also awaits the new names. O(names before and after).
    pub(super) fn replace(&mut self, names: Box<[Box<str>]>) -> Vec<GoneName> {
        self.named = true;
        self.may_lack = false;
        self.lists = self.lists.wrapping_add(1).max(1);
        for name in names {
            let awaited = &mut self.awaited;
            let state = self.names.entry(name).or_insert_with(|| {
                *awaited += 1;
                NameState::default()
            });
            state.named_in = self.lists;
        }
        let lists = self.lists;
        let gone = self.names.extract_if(|_, state| state.named_in != lists);
        let gone = gone.map(|(name, state)| GoneName { name, awaited: !state.listed });
        let gone: Vec<GoneName> = gone.collect();
        self.awaited -= gone.iter().filter(|gone| gone.awaited).count();
        gone
    }

    /// Records a complete list of the keys of a name; returns whether the round awaited it.
    pub(super) fn record(&mut self, name: &str) -> bool {
        let Some(state) = self.names.get_mut(name) else {
            self.names.insert(name.into(), NameState { named_in: self.lists, listed: true });
            return false;
        };
        let awaited = !std::mem::replace(&mut state.listed, true);
        self.awaited -= usize::from(awaited);
        awaited
    }

    /// Records that a key listed under a name belongs to a base that is not the name's own.
    pub(super) fn add_base(&mut self, name: &str, base: &str) {
        let bases = self.other_bases.entry(name.into()).or_default();
        if !bases.iter().any(|known| **known == *base) {
            bases.push(base.into());
        }
    }

    /// Replaces the bases of a name, apart from its own, after a complete list of its keys.
    pub(super) fn set_bases(&mut self, name: &str, bases: Vec<Box<str>>) {
        if bases.is_empty() {
            self.other_bases.remove(name);
        } else {
            self.other_bases.insert(name.into(), bases);
        }
    }

    /// Returns the bases to which keys listed under a name belong, apart from the name's own.
    pub(super) fn other_bases(&self, name: &str) -> impl Iterator<Item = &str> {
        self.other_bases.get(name).into_iter().flatten().map(|base| &**base)
    }

    /// Records that a list of the registry begins, which may bring other names.
    pub(super) fn expect_others(&mut self) {
        self.may_lack = true;
    }

    /// Records a complete list of the registry: the round awaits no name. O(names).
    pub(super) fn record_all(&mut self) {
        self.named = true;
        self.awaited = 0;
        for state in self.names.values_mut() {
            state.listed = true;
        }
    }

    /// Returns whether there may be keys of names that are not recorded.
    pub(super) fn may_lack(&self) -> bool {
        self.may_lack
    }

    /// Returns all names.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(|name| &**name)
    }

    /// Returns whether the registry has ever listed the names.
    pub(super) fn are_known(&self) -> bool {
        self.lists > 0
    }

    /// Returns whether the round has had a list of names.
    pub(super) fn is_named(&self) -> bool {
        self.named
    }

    /// Returns whether the round has listed this name.
    pub(super) fn is_listed(&self, name: &str) -> bool {
        self.names.get(name).is_some_and(|state| state.listed)
    }

    /// Returns whether the round awaits a list of this name.
    pub(super) fn is_awaited(&self, name: &str) -> bool {
        self.names.get(name).is_some_and(|state| !state.listed)
    }

    /// Returns whether the round has listed each name.
    pub(super) fn are_listed(&self) -> bool {
        self.awaited == 0
    }
}
