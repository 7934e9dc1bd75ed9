//! The failures of single services, which end no session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Shortest time between two warnings about services that cannot be read.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The services that cannot be read, each with its failure.
#[derive(Debug, Default)]
pub(super) struct ServiceFaults {
    texts: BTreeMap<Arc<str>, String>,
    /// Time of the last warning.
    warned: Option<Instant>,
    /// Number of services in the last warning since all of them could be read.
    warned_count: usize,
}

impl ServiceFaults {
    /// Records the failure of a service; returns whether it is a new one.
    pub(super) fn set(&mut self, name: &Arc<str>, text: String) -> bool {
        if self.texts.get(name) == Some(&text) {
            return false;
        }
        self.texts.insert(Arc::clone(name), text);
        true
    }

    /// Records that a service can be read; returns whether it could not be before.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let is_known = self.texts.remove(name).is_some();
        self.forget_warning();
        is_known
    }

    /// Forgets the services that do not exist any more.
    pub(super) fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.texts.retain(|name, _| exists(name));
        self.forget_warning();
    }

    /// Forgets the last warning once all services can be read.
    fn forget_warning(&mut self) {
        if self.texts.is_empty() {
            self.warned_count = 0;
        }
    }

    /// Returns whether a warning is due, which is then given; one is enough for many services.
    ///
    /// Another one is due only if the number of services has grown.
    pub(super) fn take_warning(&mut self, now: Instant) -> bool {
        let is_recent = |warned: Instant| now.saturating_duration_since(warned) < WARNING_INTERVAL;
        let is_due = self.count() > self.warned_count && !self.warned.is_some_and(is_recent);
        if is_due {
            (self.warned, self.warned_count) = (Some(now), self.count());
        }
        is_due
    }

    /// Returns the number of services that cannot be read.
    pub(super) fn count(&self) -> usize {
        self.texts.len()
    }

    /// Returns the first failure with the number of others; `None` if there is none.
    pub(super) fn text(&self) -> Option<String> {
        let first = self.texts.values().next()?;
        Some(match self.texts.len() {
            1 => first.clone(),
            2 => format!("{first} (and 1 more service)"),
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
        assert_eq!(faults.text().unwrap(), "a is broken (and 1 more service)");
        assert!(faults.set(&"c".into(), "c is broken".to_owned()));
        assert_eq!(faults.text().unwrap(), "a is broken (and 2 more services)");
        assert!(faults.remove("c"));
        faults.retain(|name| name != "a");
        assert_eq!(faults.text().unwrap(), "b is broken");
        assert!(faults.remove("b") && !faults.remove("b"));
    }

    #[test]
    fn one_warning_is_due_for_many_services() {
        let (mut faults, start) = (ServiceFaults::default(), Instant::now());
        assert!(!faults.take_warning(start), "all can be read");
        let mut warn = |number: u64, now| {
            let name: Arc<str> = number.to_string().into();
            faults.set(&name, "broken".to_owned());
            faults.take_warning(now)
        };
        assert!(warn(0, start), "the first failure");
        assert!((1..50).all(|number| !warn(number, start + Duration::from_secs(number))));
        assert!(warn(49, start + WARNING_INTERVAL), "a known one fails again, with 49 others");
        assert!(!warn(49, start + 2 * WARNING_INTERVAL), "their number is the same");
        assert_eq!(faults.count(), 50);
        faults.retain(|_| false);
        faults.set(&"0".into(), "broken".to_owned());
        assert!(faults.take_warning(start + 2 * WARNING_INTERVAL), "all could be read meanwhile");
    }
}
