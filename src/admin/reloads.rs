//! Outcomes of the reloads of the configuration.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::metrics::Page;

/// Counts of the reloads since the start, and the outcome of the last one.
#[derive(Debug)]
pub struct ReloadCounters(Mutex<ReloadCounts>);

#[derive(Clone, Copy, Debug)]
struct ReloadCounts {
    applied: u64,
    refused: u64,
    /// Whether the last reload was applied; the start counts as one.
    is_current: bool,
    /// Time of the last reload, or of the start.
    last: SystemTime,
}

impl ReloadCounters {
    /// Creates the counters of a server that started at this time, before any reload.
    pub(super) fn new(started: SystemTime) -> Self {
        let last = started;
        Self(Mutex::new(ReloadCounts { applied: 0, refused: 0, is_current: true, last }))
    }

    /// Counts a reload: the new configuration was applied, or refused and the old one kept.
    pub fn note(&self, applied: bool) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *(if applied { &mut counts.applied } else { &mut counts.refused }) += 1;
        (counts.is_current, counts.last) = (applied, SystemTime::now());
    }

    /// Adds the metrics.
    pub(super) fn add_metrics(&self, page: &mut Page) {
        let ReloadCounts { applied, refused, is_current, last } =
            *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        page.counters(
            "svcdns_reloads",
            "Reloads of the configuration, by result: applied, or refused and the old one kept",
            [("applied", applied), ("refused", refused)]
                .map(|(result, count)| (vec![("result", result.to_owned())], count)),
        );
        page.gauge(
            "svcdns_last_reload_successful",
            "1 if the last reload was applied, or there was none, else 0",
            usize::from(is_current),
        );
        let at = last.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        page.gauges(
            "svcdns_last_reload_timestamp_seconds",
            "Unix time of the last reload, applied or refused, or of the start before the first",
            [(Vec::new(), at)],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::TextFormat;

    #[test]
    fn the_last_reload_decides_whether_the_configuration_is_current() {
        let counters = ReloadCounters::new(UNIX_EPOCH);
        let page = || {
            let mut page = Page::default();
            counters.add_metrics(&mut page);
            page.render(TextFormat::Prometheus).unwrap()
        };
        assert!(page().contains("svcdns_last_reload_successful 1.0\n"), "{}", page());
        assert!(page().contains("svcdns_last_reload_timestamp_seconds 0.0\n"), "{}", page());
        for (applied, successful, refused) in [(true, 1, 0), (false, 0, 1), (true, 1, 1)] {
            counters.note(applied);
            for line in [
                format!("svcdns_last_reload_successful {successful}.0"),
                format!("svcdns_reloads_total{{result=\"refused\"}} {refused}"),
            ] {
                assert!(page().lines().any(|found| found == line), "{line} in\n{}", page());
            }
            assert!(!page().contains("svcdns_last_reload_timestamp_seconds 0.0\n"));
        }
        assert!(page().contains("svcdns_reloads_total{result=\"applied\"} 2\n"), "{}", page());
    }
}
