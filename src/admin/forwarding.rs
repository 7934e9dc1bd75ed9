//! How other names are resolved: for JSON, and for the metrics page.

use serde::{Deserialize, Serialize};

use crate::metrics::{MetricLabels, Page};
use crate::upstream::{Counters, Forwarder, ListReport, UpstreamReport};

/// How other names are resolved.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ForwardingView {
    /// Who is asked, in the order in which they are known.
    pub upstreams: Vec<UpstreamView>,
    /// The lists of upstreams, that of all other names first; empty from an older server.
    #[serde(default)]
    pub lists: Vec<UpstreamListView>,
    /// The cache.
    pub cache: CacheView,
    /// Clients that wait for an answer now, and refreshes under way.
    pub waiting: u64,
    /// Questions, refreshes among them, that no upstream answered.
    pub failures: u64,
    /// Questions turned away because too many were waiting.
    pub overloaded: u64,
    /// Messages with an opcode other than QUERY that were passed on.
    pub passed: u64,
}

/// A list of upstreams.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UpstreamListView {
    /// The domain whose names they resolve; `.` for all other names.
    pub domain: String,
    /// The upstreams as the configuration writes them.
    pub upstreams: Vec<String>,
    /// The order in which they are asked: `strict` or `fastest`.
    pub order: String,
}

/// An upstream's condition.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UpstreamView {
    /// As it is written in the configuration.
    pub upstream: String,
    /// How long an answer takes, in microseconds; none before the first.
    pub round_trip: Option<u64>,
    /// Whether it is asked only to see if it is back.
    pub dead: bool,
    /// Whether it sends questions back to svcdns and is not asked.
    pub looping: bool,
    /// Questions sent.
    pub asked: u64,
    /// Answers that came.
    pub answered: u64,
    /// Questions sent without an answer so far, those under way included.
    pub unanswered: u64,
    /// Questions that failed otherwise than by silence: the upstream could not be reached, or what came was no answer.
    pub failed: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// The cache's condition.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheView {
    /// Entries, those past their end included.
    pub entries: usize,
    /// Octets that they take.
    pub octets: u64,
    /// Octets that they may take; 0 for no cache.
    pub capacity: u64,
    /// Questions answered from it.
    pub hits: u64,
    /// Questions that had to be asked.
    pub misses: u64,
    /// Questions that waited for an equal one on its way.
    pub merged: u64,
    /// Questions answered with what was past its end, for want of anything better.
    pub stale: u64,
    /// Answers asked for anew ahead of their end.
    pub prefetches: u64,
}

impl ForwardingView {
    /// As it is now.
    pub(super) fn new(forwarder: &Forwarder) -> Self {
        let report = forwarder.report();
        let Counters { hits, misses, merged, stale, prefetches, failures, overloaded, passed } = forwarder.counters();
        Self {
            upstreams: report.upstreams.into_iter().map(UpstreamView::new).collect(),
            lists: report.lists.into_iter().map(UpstreamListView::new).collect(),
            cache: CacheView {
                entries: report.entries,
                octets: report.bytes,
                capacity: report.capacity,
                hits: hits.get(),
                misses: misses.get(),
                merged: merged.get(),
                stale: stale.get(),
                prefetches: prefetches.get(),
            },
            waiting: report.waiting,
            failures: failures.get(),
            overloaded: overloaded.get(),
            passed: passed.get(),
        }
    }
}

impl UpstreamListView {
    /// Makes the view of a list.
    fn new(report: ListReport) -> Self {
        let ListReport { domain, upstreams, order } = report;
        Self { domain: domain.to_string(), upstreams, order: order.to_string() }
    }
}

impl UpstreamView {
    fn new(report: UpstreamReport) -> Self {
        let UpstreamReport { upstream, round_trip, dead, looping, asked, answered, unanswered, failed, last_error } = report;
        let round_trip = round_trip.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        Self { upstream, round_trip, dead, looping, asked, answered, unanswered, failed, last_error }
    }
}

/// Adds the numbers to the metrics page.
#[expect(clippy::cast_precision_loss, reason = "counts and microseconds below 2^53")]
pub(super) fn numbers(page: &mut Page, view: &ForwardingView) {
    let ForwardingView { upstreams, lists: _, cache, waiting, failures, overloaded, passed } = view;
    page.counter("svcdns_cache_hits", "Questions about other names answered from the cache", cache.hits);
    page.counter("svcdns_cache_misses", "Questions about other names that had to be asked", cache.misses);
    page.counter("svcdns_cache_merged", "Questions that waited for an equal one on its way", cache.merged);
    page.counter("svcdns_cache_stale", "Questions answered with what was past its end", cache.stale);
    page.counter("svcdns_cache_prefetches", "Answers asked for anew ahead of their end", cache.prefetches);
    page.gauge("svcdns_cache_entries", "Entries of the cache, those past their end included", cache.entries);
    page.gauges("svcdns_cache_octets", "Octets that the cache's entries take", [(MetricLabels::new(), cache.octets as f64)]);
    page.gauges("svcdns_cache_capacity_octets", "Octets that the cache's entries may take", [(MetricLabels::new(), cache.capacity as f64)]);
    page.gauges("svcdns_forwarding_waiting", "Clients that wait for an answer of an upstream", [(MetricLabels::new(), *waiting as f64)]);
    page.counter("svcdns_forwarding_failures", "Questions that no upstream answered", *failures);
    page.counter("svcdns_forwarding_overloaded", "Questions turned away because too many were waiting", *overloaded);
    page.counter("svcdns_forwarding_passed", "Messages with an opcode other than QUERY that were passed on", *passed);
    let label = |upstream: &UpstreamView| -> MetricLabels { vec![("upstream", upstream.upstream.clone())] };
    let count = |number: fn(&UpstreamView) -> u64| -> Vec<(MetricLabels, u64)> {
        upstreams.iter().map(|upstream| (label(upstream), number(upstream))).collect()
    };
    page.counters("svcdns_upstream_asked", "Questions sent to the upstream", count(|upstream| upstream.asked));
    page.counters("svcdns_upstream_answered", "Answers of the upstream", count(|upstream| upstream.answered));
    page.counters(
        "svcdns_upstream_failed",
        "Questions that failed otherwise than by silence of the upstream",
        count(|upstream| upstream.failed),
    );
    let state = |number: fn(&UpstreamView) -> Option<f64>| -> Vec<(MetricLabels, f64)> {
        upstreams.iter().filter_map(|upstream| Some((label(upstream), number(upstream)?))).collect()
    };
    let unanswered = state(|upstream| Some(upstream.unanswered as f64));
    page.gauges("svcdns_upstream_unanswered", "Questions without an answer of the upstream so far, those under way included", unanswered);
    let usable = state(|upstream| Some(f64::from(u8::from(!upstream.dead && !upstream.looping))));
    page.gauges("svcdns_upstream_usable", "Whether the upstream answers and does not lead back here", usable);
    let round_trips = state(|upstream| upstream.round_trip.map(|micros| micros as f64 / 1e6));
    page.gauges("svcdns_upstream_round_trip_seconds", "How long an answer of the upstream takes", round_trips);
}
