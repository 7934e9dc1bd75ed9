//! The registered names of a registry that lists each of them by itself.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// The names that a registry has named or listed, and whether it has listed them.
#[derive(Debug, Default)]
pub(super) struct RegisteredNames {
    names: HashMap<Box<str>, NameState, RandomState>,
    /// Number of the last list of names; 0 before the first.
    lists: u32,
    /// Names that the registry has not listed yet.
    awaited: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct NameState {
    /// Number of the last list of names that has the name.
    named_in: u32,
    /// Whether the registry has listed the keys of the name.
    listed: bool,
}

impl RegisteredNames {
    /// Records a complete list of the names; returns the names that are gone.
    ///
    /// O(names before and after).
    pub(super) fn replace(&mut self, names: Box<[Box<str>]>) -> Vec<Box<str>> {
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
        gone.map(|(name, state)| {
            self.awaited -= usize::from(!state.listed);
            name
        })
        .collect()
    }

    /// Records a complete list of the keys of a name.
    pub(super) fn record(&mut self, name: &str) {
        let state = match self.names.get_mut(name) {
            Some(state) => state,
            None => {
                self.awaited += 1;
                self.names.entry(name.into()).or_default()
            }
        };
        self.awaited -= usize::from(!std::mem::replace(&mut state.listed, true));
    }

    /// Returns whether the names are known and each has been listed.
    pub(super) fn is_complete(&self) -> bool {
        self.lists > 0 && self.awaited == 0
    }
}
