//! The metrics page.

use std::collections::BTreeMap;

use super::views::ServerStatus;
use super::{AdminContext, RegistryView, SocketReport, bridge, checks, forwarding};
use crate::answer::{Answerer, QueryCounts, QuestionCount, ResponseSource};
use crate::catalog::{HoldCause, HoldView, Stats};
use crate::metrics::{Counter, MetricLabels, Page};
use crate::server::{Counters, ResponseTimes, StreamCounters};
use crate::wire::rcode_name;

/// Returns the page of all metrics.
pub(super) fn metrics(context: &AdminContext) -> Page {
    let status = ServerStatus::new(context);
    let mut page = Page::default();
    add_server_metrics(&mut page, context);
    add_registry_metrics(&mut page, &status);
    add_hold_metrics(&mut page, &status, &context.answerer.stats());
    add_size_metrics(&mut page, &status, &context.answerer);
    if let Some(view) = &status.forwarding {
        forwarding::add_metrics(&mut page, view);
    }
    bridge::add_metrics(&mut page, &context.bridge);
    if let Some((monitor, view)) = context.checks.as_deref().zip(status.checks.as_ref()) {
        checks::add_metrics(&mut page, monitor, view);
    }
    page.gauge("svcdns_services", "Published services", status.services);
    page.gauge(
        "svcdns_instances",
        "Registered instances, including dropped ones",
        status.instances,
    );
    page.gauge(
        "svcdns_held_keys",
        "Held keys: removed by the registry, but still served",
        status.holding,
    );
    page.gauge(
        "svcdns_synced",
        "1 once NXDOMAIN can be trusted (the registries were read), else 0",
        usize::from(status.synced),
    );
    add_health_metrics(&mut page, context, &status);
    page.gauge(
        "svcdns_stale",
        "1 while a registry that was read is unreachable, else 0",
        usize::from(status.stale),
    );
    let rejections = context.answerer.rejections();
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
    let counts = rejections
        .counts
        .iter()
        .map(|(reason, count)| (vec![("reason", reason.code().to_owned())], *count as f64));
    page.gauges("svcdns_rejected", "Keys and endpoints that cannot be served, by reason", counts);
    let lost = u64::try_from(context.lost_log_lines.dropped_lines()).unwrap_or(u64::MAX);
    page.counter(
        "svcdns_lost_log_lines",
        "Log lines dropped because the reader of the log was too slow",
        lost,
    );
    page.counter("svcdns_generations", "Published snapshots", status.generation);
    page.histogram(
        "svcdns_publication",
        "Duration of a publication, from the receipt of a change to the new snapshot",
        &context.publications,
    );
    page.gauges(
        "svcdns_build",
        "Always 1, with the version of svcdns",
        [(vec![("version", status.version)], 1.0)],
    );
    page
}

/// Adds the health, the listeners, and the outcomes of reloads.
#[expect(clippy::cast_precision_loss, reason = "counts and seconds below 2^53")]
fn add_health_metrics(page: &mut Page, context: &AdminContext, status: &ServerStatus) {
    let health = status.health.clone().unwrap_or_default();
    page.gauge(
        "svcdns_ready",
        "1 once every registry was read or is held from a snapshot, and all listeners are open, \
         else 0",
        usize::from(health.is_ready()),
    );
    page.gauge(
        "svcdns_hanging_workers",
        "UDP workers that have not moved for 10 s",
        health.hanging.len(),
    );
    let SocketReport { open, missing, .. } = context.sockets.report().unwrap_or_default();
    page.gauges(
        "svcdns_listeners",
        "Listening addresses, by state: open, or missing and tried again",
        [("open", open), ("missing", missing.len())]
            .map(|(state, count)| (vec![("state", state.to_owned())], count as f64)),
    );
    page.gauges(
        "svcdns_start_time_seconds",
        "Unix time of the start",
        [(MetricLabels::new(), status.started as f64)],
    );
    context.reloads.add_metrics(page);
}

fn add_server_metrics(page: &mut Page, context: &AdminContext) {
    let counters = context.answerer.counters();
    add_query_metrics(page, &context.answerer);
    page.counter(
        "svcdns_truncated_answers",
        "Responses with TC set, because not all records fit",
        counters.truncated(),
    );
    let server = &context.server;
    let streams = [("tcp", &server.tcp), ("tls", &server.tls), ("quic", &server.quic)];
    let by_stream = |number: fn(&StreamCounters) -> u64| {
        streams.map(|(name, counters)| (transport(name), number(counters)))
    };
    let transports = |udp: &Counter, number| {
        [(transport("udp"), udp.get())].into_iter().chain(by_stream(number))
    };
    page.counters(
        "svcdns_queries",
        "Queries received from sources with access",
        transports(&server.udp_queries, |stream| stream.queries.get()),
    );
    page.counters(
        "svcdns_answers_sent",
        "Responses sent, including REFUSED",
        transports(&server.udp_responses, |stream| stream.responses.get()),
    );
    let refused = transports(&server.udp_refused, |stream| stream.refused.get());
    page.counters("svcdns_refused", "Queries and connections from sources without access", refused);
    page.counter(
        "svcdns_udp_overloads",
        "Queries over UDP answered with SERVFAIL because too many waited for an upstream",
        server.udp_overloads.get(),
    );
    page.counters(
        "svcdns_connections",
        "Accepted connections",
        by_stream(|stream| stream.connections.get()),
    );
    page.counters(
        "svcdns_rejected_connections",
        "Connections closed at once because a limit was reached and all others were in use",
        by_stream(|stream| stream.rejected.get()),
    );
    let evicted = streams.iter().flat_map(|(name, counters)| {
        [("idle", &counters.evicted_idle), ("stalled", &counters.evicted_stalled)].map(
            |(state, count)| {
                let labels = [transport(name), vec![("state", state.to_owned())]].concat();
                (labels, count.get())
            },
        )
    });
    page.counters(
        "svcdns_evicted_connections",
        "Connections closed to make room for others, by state: idle, or waiting for their client \
         in the middle of an exchange (stalled)",
        evicted,
    );
    add_time_metrics(page, server);
    let failed = by_stream(|stream| stream.failed_handshakes.get()).into_iter().skip(1);
    page.counters(
        "svcdns_failed_handshakes",
        "TLS and QUIC handshakes that failed or timed out",
        failed,
    );
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
    let open = by_stream(|stream| stream.open.get()).map(|(labels, count)| (labels, count as f64));
    page.gauges("svcdns_open_connections", "Open connections", open);
    page.counter(
        "svcdns_panics",
        "Caught panics; each one is a bug: please report it",
        server.panics.get(),
    );
}

/// Adds the times until responses were ready, and the number of those that are not.
#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
fn add_time_metrics(page: &mut Page, server: &Counters) {
    let Counters { udp_times, udp_deferred, tcp, tls, quic, .. } = server;
    let streams = [("tcp", tcp), ("tls", tls), ("quic", quic)];
    let streams = streams.map(|(name, stream)| (name, &stream.times, &stream.deferred));
    let transports = [("udp", udp_times, udp_deferred)].into_iter().chain(streams);
    let times = transports.clone().flat_map(|(name, times, _)| {
        let ResponseTimes { immediate, deferred } = times;
        [("immediate", immediate), ("deferred", deferred)].map(|(path, histogram)| {
            ([transport(name), vec![("path", path.to_owned())]].concat(), histogram)
        })
    });
    page.histograms(
        "svcdns_response_time",
        "Time from the receipt of a query until its response was ready to be sent, by path: \
         immediate (a sample: every 64th batch over UDP, every 64th query of other transports), or \
         deferred",
        times.filter(|(_, histogram)| histogram.count() > 0),
    );
    let deferred = transports.map(|(name, _, deferred)| (transport(name), deferred.get() as f64));
    page.gauges(
        "svcdns_deferred_responses",
        "Responses that are waited for, for example from an upstream",
        deferred,
    );
}

/// Adds the questions by transport, zone and type, and the responses by source and code.
fn add_query_metrics(page: &mut Page, answerer: &Answerer) {
    let (settings, tallies) = (answerer.settings(), answerer.tallies());
    let counts = tallies.counts();
    let questions = counts.iter().flat_map(|(name, counts)| {
        let questions = tallies.questions(counts, &settings.zones).into_iter();
        questions.map(|QuestionCount { zone, rtype, count }| {
            let labels = [("zone", zone.into_string()), ("type", rtype.to_owned())];
            (transport(name).into_iter().chain(labels).collect(), count)
        })
    });
    page.counters(
        "svcdns_questions",
        "Questions by transport, zone and type; outside the served zones, the zone is reverse or \
         other, and for messages that are no valid query none",
        questions,
    );
    let (mut by_source, mut own) = (BTreeMap::new(), BTreeMap::new());
    for (source, rcode, count) in counts.values().flat_map(QueryCounts::responses) {
        if count > 0 {
            *by_source.entry((source, rcode)).or_insert(0) += count;
            if !matches!(source, ResponseSource::Cache | ResponseSource::Upstream) {
                *own.entry(rcode).or_insert(0) += count;
            }
        }
    }
    let code = |rcode| ("rcode", rcode_name(rcode).into_owned());
    page.counters(
        "svcdns_responses",
        "Responses by source and response code; source is registry, stale (last known data), \
         static, cache, upstream (waited for, a failure included), local or refused",
        by_source.into_iter().map(|((source, rcode), count)| {
            (vec![("source", source.name().to_owned()), code(rcode)], count)
        }),
    );
    page.counters(
        "svcdns_answers",
        "Responses made, by response code",
        own.into_iter().map(|(rcode, count)| (vec![code(rcode)], count)),
    );
}

#[expect(clippy::cast_precision_loss, reason = "counts and seconds below 2^53")]
fn add_registry_metrics(page: &mut Page, status: &ServerStatus) {
    let info = status.registries.iter().map(|RegistryView { name, url, .. }| {
        let kind = url.split_once("://").map_or("", |(kind, _)| kind);
        (vec![("registry", name.clone()), ("kind", kind.to_owned()), ("url", url.clone())], 1.0)
    });
    page.gauges("svcdns_registry_info", "Always 1, with the kind and URL of the registry", info);
    let registries = &status.registries;
    let label =
        |registry: &RegistryView| -> MetricLabels { vec![("registry", registry.name.clone())] };
    let values = |number: fn(&RegistryView) -> Option<f64>| -> Vec<(MetricLabels, f64)> {
        registries
            .iter()
            .filter_map(|registry| Some((label(registry), number(registry)?)))
            .collect()
    };
    let connected = values(|registry| Some(f64::from(u8::from(registry.connected))));
    page.gauges(
        "svcdns_registry_connected",
        "1 while the registry can be reached, else 0",
        connected,
    );
    let synced = values(|registry| Some(f64::from(u8::from(registry.synced))));
    page.gauges(
        "svcdns_registry_synced",
        "1 once the registry is synced (read completely), else 0",
        synced,
    );
    page.gauges(
        "svcdns_registry_keys",
        "Keys that are served",
        values(|registry| Some(registry.keys as f64)),
    );
    page.gauges(
        "svcdns_registry_instances",
        "Endpoints of these keys, also those that another registry precedes",
        values(|registry| Some(registry.instances as f64)),
    );
    page.gauges(
        "svcdns_registry_revision",
        "Store revision up to which svcdns has read",
        values(|registry| Some(registry.revision as f64)),
    );
    let ages = values(|registry| registry.last_event_age.map(|age| age as f64));
    page.gauges(
        "svcdns_registry_last_event_age_seconds",
        "Time since the last event or other activity",
        ages,
    );
    let ages = values(|registry| registry.last_list_age.map(|age| age as f64));
    page.gauges("svcdns_registry_last_list_age_seconds", "Time since the last complete list", ages);
    let ages = values(|registry| registry.snapshot_age.map(|age| age as f64));
    page.gauges(
        "svcdns_snapshot_age_seconds",
        "Time since the data in the snapshot was current",
        ages,
    );
    let counts = |number: fn(&RegistryView) -> u64| -> Vec<(MetricLabels, u64)> {
        registries.iter().map(|registry| (label(registry), number(registry))).collect()
    };
    page.counters(
        "svcdns_registry_lists",
        "Complete lists read",
        counts(|registry| registry.lists),
    );
    page.counters(
        "svcdns_registry_disconnects",
        "Connections lost",
        counts(|registry| registry.disconnects),
    );
    let differences = counts(|registry| registry.differences);
    page.counters(
        "svcdns_registry_list_differences",
        "Differences that a routine list found but no event had reported",
        differences,
    );
}

/// Adds the number of services and of rejections of each registry.
#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
fn add_size_metrics(page: &mut Page, status: &ServerStatus, answerer: &Answerer) {
    let (stats, rejections) = (answerer.stats(), answerer.rejections());
    let names = || {
        let label = |registry: &RegistryView| vec![("registry", registry.name.clone())];
        status.registries.iter().map(label)
    };
    let services = stats.registries.iter().map(|stats| stats.services as f64);
    page.gauges(
        "svcdns_registry_services",
        "Services with keys in the registry",
        names().zip(services),
    );
    let counts = rejections.by_registry.iter().map(|count| *count as f64);
    page.gauges(
        "svcdns_registry_rejected_keys",
        "Keys and endpoints of the registry that cannot be served",
        names().zip(counts.chain(std::iter::repeat(0.0))),
    );
}

/// Adds the holds of each registry, by cause.
#[expect(clippy::cast_precision_loss, reason = "counts and seconds below 2^53")]
fn add_hold_metrics(page: &mut Page, status: &ServerStatus, stats: &Stats) {
    let labels = |registry: &RegistryView, cause: &str| -> MetricLabels {
        vec![("registry", registry.name.clone()), ("cause", cause.to_owned())]
    };
    let mut keys = Vec::new();
    let mut counts = Vec::new();
    for (registry, stats) in status.registries.iter().zip(&stats.registries) {
        for cause in HoldCause::ALL {
            let hold = registry.holds.iter().find(|hold| hold.cause == cause.code());
            let labels = labels(registry, cause.code());
            keys.push((labels.clone(), hold.map_or(0.0, |hold| hold.keys as f64)));
            counts.push((labels, *stats.holds.get(cause)));
        }
    }
    let ends = status.registries.iter().flat_map(|registry| {
        let end = |hold: &HoldView| (labels(registry, &hold.cause), hold.until as f64);
        registry.holds.iter().map(end)
    });
    page.gauges(
        "svcdns_registry_held_keys",
        "Held keys (removed by the registry, but still served), by cause",
        keys,
    );
    page.gauges(
        "svcdns_registry_hold_end_timestamp_seconds",
        "Unix time by which the held keys are removed; absent without a hold",
        ends.collect::<Vec<_>>(),
    );
    page.counters("svcdns_registry_holds", "Holds begun, by cause", counts);
}

fn transport(name: &str) -> MetricLabels {
    vec![("transport", name.to_owned())]
}
