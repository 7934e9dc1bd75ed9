//! The failures of single services, which end no session.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The services that cannot be read, each with its failure.
#[derive(Debug, Default)]
pub(super) struct ServiceFaults(BTreeMap<Arc<str>, String>);

impl ServiceFaults {
    /// Records the failure of a service; returns whether it is a new one.
    pub(super) fn set(&mut self, name: &Arc<str>, text: String) -> bool {
        if self.0.get(name) == Some(&text) {
            return false;
        }
        self.0.insert(Arc::clone(name), text);
        true
    }

    /// Records that a service can be read; returns whether it could not be before.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    /// Forgets the services that do not exist any more.
    pub(super) fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| exists(name));
    }

    /// Returns the first failure with the number of others; `None` if there is none.
    pub(super) fn text(&self) -> Option<String> {
        let first = self.0.values().next()?;
        Some(match self.0.len() {
            1 => first.clone(),
            count => format!("{first} (and {} more services)", count - 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_first_failure_and_counts_the_others() {
        let mut faults = ServiceFaults::default();
        assert_eq!(faults.text(), None);
        let [a, b]: [Arc<str>; 2] = ["a".into(), "b".into()];
        assert!(faults.set(&b, "b is broken".to_owned()));
        assert!(!faults.set(&b, "b is broken".to_owned()), "known");
        assert!(faults.set(&a, "a is broken".to_owned()));
        assert_eq!(faults.text().unwrap(), "a is broken (and 1 more services)");
        faults.retain(|name| name != "a");
        assert_eq!(faults.text().unwrap(), "b is broken");
        assert!(faults.remove("b") && !faults.remove("b"));
    }
}
