//! The state of the forwarder, as JSON and as metrics.

use serde::{Deserialize, Serialize};

use crate::metrics::{MetricLabels, Page};
use crate::upstream::{Counters, Forwarder, ListReport, UpstreamReport};

/// The state of the forwarder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ForwardingView {
    /// The upstreams, in the order of their sources.
    pub upstreams: Vec<UpstreamView>,
    /// The lists of upstreams, the general one first; empty if an older server sent it.
    #[serde(default)]
    pub lists: Vec<UpstreamListView>,
    /// The cache.
    pub cache: CacheView,
    /// Clients that currently wait for a response, and refreshes in flight.
    pub waiting: u64,
    /// Queries, including refreshes, that no upstream answered.
    pub failures: u64,
    /// Queries rejected because too many clients were waiting.
    pub overloaded: u64,
    /// Messages with an opcode other than QUERY that were forwarded.
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
    /// Order in which svcdns queries them: `strict` or `fastest`.
    pub order: String,
}

/// The state of an upstream.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UpstreamView {
    /// The upstream as the configuration writes it.
    pub upstream: String,
    /// Smoothed round-trip time in microseconds; `None` before the first response.
    pub round_trip: Option<u64>,
    /// Whether a query has gone unanswered for 1 s.
    ///
    /// A dead upstream gets only probes until it answers again.
    pub dead: bool,
    /// Whether the upstream sends queries back to svcdns and is therefore not used.
    pub looping: bool,
    /// Queries sent, including retransmissions.
    pub asked: u64,
    /// Responses received, including late ones.
    pub answered: u64,
    /// Queries without a response so far, including those in flight.
    pub unanswered: u64,
    /// Attempts that failed other than by a timeout.
    ///
    /// The upstream could not be reached, or its response was invalid.
    pub failed: u64,
    /// Error of the last failed attempt.
    pub last_error: Option<String>,
}

/// The state of the cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheView {
    /// Number of entries, including expired ones.
    pub entries: usize,
    /// Memory that the entries use, in bytes.
    #[serde(rename = "octets")]
    pub bytes: u64,
    /// Limit on the memory of the entries, in bytes; 0 if there is no cache.
    pub capacity: u64,
    /// Queries answered from the cache.
    pub hits: u64,
    /// Queries that had to be forwarded.
    pub misses: u64,
    /// Queries that waited for an identical query in flight.
    pub merged: u64,
    /// Queries answered with a stale entry because no upstream answered in time.
    pub stale: u64,
    /// Entries refreshed before they expired.
    pub prefetches: u64,
}

impl ForwardingView {
    /// Captures the current state of a forwarder; `None` if it is off.
    pub(super) fn new(forwarder: &Forwarder) -> Option<Self> {
        let report = forwarder.report()?;
        let Counters { hits, misses, merged, stale, prefetches, failures, overloaded, passed } =
            forwarder.counters();
        Some(Self {
            upstreams: report.upstreams.into_iter().map(UpstreamView::new).collect(),
            lists: report.lists.into_iter().map(UpstreamListView::new).collect(),
            cache: CacheView {
                entries: report.entries,
                bytes: report.bytes,
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
        })
    }
}

impl UpstreamListView {
    /// Creates the view of a list.
    fn new(report: ListReport) -> Self {
        let ListReport { domain, upstreams, order } = report;
        Self { domain: domain.to_string(), upstreams, order: order.to_string() }
    }
}

impl UpstreamView {
    fn new(report: UpstreamReport) -> Self {
        let UpstreamReport {
            upstream,
            round_trip,
            dead,
            looping,
            asked,
            answered,
            unanswered,
            failed,
            last_error,
        } = report;
        let round_trip = round_trip.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        Self {
            upstream,
            round_trip,
            dead,
            looping,
            asked,
            answered,
            unanswered,
            failed,
            last_error,
        }
    }
}

/// Adds the metrics of the forwarder to the page.
#[expect(clippy::cast_precision_loss, reason = "counts and microseconds below 2^53")]
pub(super) fn add_metrics(page: &mut Page, view: &ForwardingView) {
    let ForwardingView { upstreams, lists: _, cache, waiting, failures, overloaded, passed } = view;
    page.counter(
        "svcdns_cache_hits",
        "Queries for other names answered from the cache",
        cache.hits,
    );
    page.counter(
        "svcdns_cache_misses",
        "Queries for other names that had to be forwarded",
        cache.misses,
    );
    page.counter(
        "svcdns_cache_merged",
        "Queries that waited for an identical query in flight",
        cache.merged,
    );
    page.counter("svcdns_cache_stale", "Queries answered with a stale cache entry", cache.stale);
    page.counter(
        "svcdns_cache_prefetches",
        "Cache entries refreshed before they expired",
        cache.prefetches,
    );
    page.gauge("svcdns_cache_entries", "Cache entries, including expired ones", cache.entries);
    page.gauges(
        "svcdns_cache_octets",
        "Bytes used by the cache entries",
        [(MetricLabels::new(), cache.bytes as f64)],
    );
    page.gauges(
        "svcdns_cache_capacity_octets",
        "Limit on the bytes used by the cache entries",
        [(MetricLabels::new(), cache.capacity as f64)],
    );
    page.gauges(
        "svcdns_forwarding_waiting",
        "Clients waiting for a response of an upstream, and refreshes in flight",
        [(MetricLabels::new(), *waiting as f64)],
    );
    page.counter(
        "svcdns_forwarding_failures",
        "Queries, including refreshes, that no upstream answered",
        *failures,
    );
    page.counter(
        "svcdns_forwarding_overloaded",
        "Queries rejected because too many clients were waiting",
        *overloaded,
    );
    page.counter(
        "svcdns_forwarding_passed",
        "Messages with opcodes other than QUERY that were forwarded",
        *passed,
    );
    let label =
        |upstream: &UpstreamView| -> MetricLabels { vec![("upstream", upstream.upstream.clone())] };
    let counts = |number: fn(&UpstreamView) -> u64| -> Vec<(MetricLabels, u64)> {
        upstreams.iter().map(|upstream| (label(upstream), number(upstream))).collect()
    };
    page.counters(
        "svcdns_upstream_asked",
        "Queries sent to the upstream, including retransmissions",
        counts(|upstream| upstream.asked),
    );
    page.counters(
        "svcdns_upstream_answered",
        "Responses of the upstream, including late ones",
        counts(|upstream| upstream.answered),
    );
    page.counters(
        "svcdns_upstream_failed",
        "Attempts at the upstream that failed other than by a timeout",
        counts(|upstream| upstream.failed),
    );
    let values = |number: fn(&UpstreamView) -> Option<f64>| -> Vec<(MetricLabels, f64)> {
        upstreams.iter().filter_map(|upstream| Some((label(upstream), number(upstream)?))).collect()
    };
    let unanswered = values(|upstream| Some(upstream.unanswered as f64));
    page.gauges(
        "svcdns_upstream_unanswered",
        "Queries without a response of the upstream so far, including those in flight",
        unanswered,
    );
    let usable = values(|upstream| Some(f64::from(u8::from(!upstream.dead && !upstream.looping))));
    page.gauges(
        "svcdns_upstream_usable",
        "1 if the upstream responds and does not forward to svcdns, else 0",
        usable,
    );
    let round_trips = values(|upstream| upstream.round_trip.map(|micros| micros as f64 / 1e6));
    page.gauges(
        "svcdns_upstream_round_trip_seconds",
        "Smoothed round-trip time of the upstream",
        round_trips,
    );
}
