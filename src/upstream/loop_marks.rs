//! Marks of an upstream: which queries it sends back to svcdns.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::now;
use crate::name::Name;

/// Time for which a domain is first marked; it doubles up to [`MAX_MARK`].
///
/// After this time, a query shows whether the loop is gone.
const FIRST_MARK: Duration = Duration::from_secs(10);
/// Maximum time for which a domain is marked without another check.
const MAX_MARK: Duration = Duration::from_secs(300);
/// Maximum marked domains at a time; the oldest marks are dropped.
const MAX_MARKED_DOMAINS: usize = 64;

/// Marks of the queries that an upstream sends back to svcdns.
#[derive(Debug, Default)]
pub(super) struct LoopMarks {
    /// Whether the upstream sends all queries back.
    all: AtomicBool,
    /// Whether `domains` has entries; readers check it without locking the list.
    has_domains: AtomicBool,
    domains: Mutex<Vec<MarkedDomain>>,
}

/// A domain whose queries the upstream sends back.
#[derive(Debug)]
struct MarkedDomain {
    domain: Name,
    until: Instant,
    /// Time for which the domain is marked.
    duration: Duration,
}

impl LoopMarks {
    /// Sets or clears the mark of all queries, with which the upstream is not used.
    pub(super) fn set_all(&self, all: bool) {
        self.all.store(all, Ordering::Relaxed);
    }

    /// Returns whether the upstream sends all queries back.
    pub(super) fn covers_all(&self) -> bool {
        self.all.load(Ordering::Relaxed)
    }

    /// Returns whether the upstream sends queries for `name` back.
    pub(super) fn covers(&self, name: &Name) -> bool {
        self.covers_all() || self.has_domains.load(Ordering::Relaxed) && self.covers_domain(name)
    }

    /// Returns whether a marked domain contains `name`.
    #[cold]
    fn covers_domain(&self, name: &Name) -> bool {
        let now = now();
        self.lock().iter().any(|mark| now < mark.until && name.ends_with(&mark.domain))
    }

    /// Marks a domain; returns whether it was not marked recently.
    ///
    /// Marks of names below the domain are removed.
    pub(super) fn mark(&self, domain: &Name) -> bool {
        let now = now();
        let mut domains = self.lock();
        let known = domains.iter().find(|mark| mark.domain == *domain);
        // A mark stays recent after its end for as long as it lasted.
        let recent = known.filter(|mark| now < mark.until + mark.duration);
        let duration = recent.map_or(FIRST_MARK, |mark| (mark.duration * 2).min(MAX_MARK));
        let is_new = recent.is_none();
        domains.retain(|mark| !mark.domain.ends_with(domain));
        if domains.len() >= MAX_MARKED_DOMAINS {
            domains.remove(0);
        }
        domains.push(MarkedDomain { domain: *domain, until: now + duration, duration });
        self.has_domains.store(true, Ordering::Relaxed);
        is_new
    }

    /// Locks the list. A poisoned lock is harmless: no code under it can panic.
    fn lock(&self) -> MutexGuard<'_, Vec<MarkedDomain>> {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_text(text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn loop_marks_cover_a_domain_for_a_doubling_time() {
        let marks = LoopMarks::default();
        assert!(!marks.covers(&name("a.corp.example")));
        assert!(marks.mark(&name("corp.example")));
        let covered = |text: &str| marks.covers(&name(text));
        assert!(covered("a.corp.example") && covered("corp.example"));
        assert!(!covered("xcorp.example") && !covered("example") && !marks.covers_all());
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            assert!(covered("a.corp.example"), "{seconds}");
            tokio::time::advance(Duration::from_secs(2)).await;
            assert!(!covered("a.corp.example"), "{seconds}");
            assert!(!marks.mark(&name("corp.example")), "logged once");
        }
        tokio::time::advance(Duration::from_secs(601)).await;
        assert!(marks.mark(&name("corp.example")), "the loop had gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_mark_replaces_marks_below_its_domain() {
        let marks = LoopMarks::default();
        for at in 0..2 * MAX_MARKED_DOMAINS {
            marks.mark(&name(&format!("{at}.corp.example")));
        }
        assert_eq!(marks.lock().len(), MAX_MARKED_DOMAINS);
        assert!(!marks.covers(&name("0.corp.example")) && marks.covers(&name("99.corp.example")));
        marks.mark(&name("example"));
        assert_eq!(marks.lock().len(), 1);
        assert!(marks.covers(&name("0.corp.example")));
        marks.set_all(true);
        assert!(marks.covers(&name("elsewhere")));
    }
}
