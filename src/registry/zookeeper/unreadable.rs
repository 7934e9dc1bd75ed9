//! The nodes that a session cannot read.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};

/// The nodes that cannot be read, each with the reason.
#[derive(Debug, Default)]
pub(super) struct UnreadableNodes {
    reasons: BTreeMap<Box<str>, String>,
    /// The last node that was tried again; empty for none.
    last_retried: Box<str>,
}

impl UnreadableNodes {
    pub(super) fn insert(&mut self, path: &str, reason: String) {
        self.reasons.insert(path.into(), reason);
    }

    /// Removes a node; returns whether it was unreadable.
    pub(super) fn remove(&mut self, path: &str) -> bool {
        self.reasons.remove(path).is_some()
    }

    /// Removes all nodes.
    pub(super) fn clear(&mut self) {
        self.reasons.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Returns the next nodes to try again, so that each one has its turn.
    pub(super) fn next_retried(&mut self, limit: usize) -> Vec<Box<str>> {
        let last = &*self.last_retried;
        let after = self.reasons.range::<str, _>((Excluded(last), Unbounded));
        let from_start = self.reasons.range::<str, _>((Unbounded, Included(last)));
        let next = after.chain(from_start).take(limit).map(|(path, _)| path.clone());
        let next: Vec<Box<str>> = next.collect();
        if let Some(last) = next.last() {
            self.last_retried.clone_from(last);
        }
        next
    }

    /// Returns the reason of the first node.
    pub(super) fn first_reason(&self) -> Option<&str> {
        self.reasons.values().next().map(String::as_str)
    }

    /// Returns the reason of the first node, and the number of the others.
    pub(super) fn summary(&self) -> Option<String> {
        let first = self.first_reason()?;
        Some(match self.reasons.len() {
            1 => first.to_owned(),
            count => format!("{first} (and {} more nodes)", count - 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_its_turn_to_be_tried_again() {
        let mut unreadable = UnreadableNodes::default();
        assert!(unreadable.next_retried(2).is_empty());
        for path in ["/a", "/b", "/c", "/d", "/e"] {
            unreadable.insert(path, format!("cannot read {path}"));
        }
        let mut next = || unreadable.next_retried(2).join(" ");
        assert_eq!([next(), next(), next()], ["/a /b", "/c /d", "/e /a"]);
        // The last one may be gone, and a new list may have found the others again.
        assert!(unreadable.remove("/a") && !unreadable.remove("/a"));
        assert_eq!(unreadable.next_retried(9).join(" "), "/b /c /d /e");
        assert_eq!(unreadable.summary().unwrap(), "cannot read /b (and 3 more nodes)");
    }
}
