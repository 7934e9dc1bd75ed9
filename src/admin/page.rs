//! The metrics page.

use super::views::Status;
use super::{RegistryView, Site, forwarding};
use crate::metrics::{Counter, MetricLabels, Page};
use crate::server::StreamCounters;
use crate::wire::rcode_name;

/// All numbers as they are now.
pub(super) fn metrics(site: &Site) -> Page {
    let status = Status::new(site);
    let mut page = Page::default();
    answers(&mut page, site);
    registries(&mut page, &status);
    if let Some(view) = &status.forwarding {
        forwarding::numbers(&mut page, view);
    }
    page.gauge("svcdns_services", "Services known", status.services);
    page.gauge("svcdns_instances", "Instances known, those left out included", status.instances);
    page.gauge("svcdns_held_keys", "Keys served although their registry says that they are gone", status.holding);
    page.gauge("svcdns_synced", "Whether absence means something yet", usize::from(status.synced));
    page.gauge("svcdns_stale", "Whether a registry that was read once cannot be reached now", usize::from(status.stale));
    let rejections = site.answerer.rejections();
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
    let counts = rejections.counts.iter().map(|(reason, count)| (vec![("reason", reason.code().to_owned())], *count as f64));
    page.gauges("svcdns_rejected", "Keys and endpoints that cannot be served", counts);
    let lost = u64::try_from(site.lost_log_lines.dropped_lines()).unwrap_or(u64::MAX);
    page.counter("svcdns_lost_log_lines", "Lines of the log lost because nobody read it fast enough", lost);
    page.counter("svcdns_generations", "Publications of a changed table", status.generation);
    page.histogram("svcdns_publication", "Time from a change taken from the channel to its publication", &site.publications);
    page.gauges("svcdns_build", "Always 1", [(vec![("version", status.version)], 1.0)]);
    page
}

fn answers(page: &mut Page, site: &Site) {
    let counters = site.answerer.counters();
    let by_code = (0..16).map(|rcode| (vec![("rcode", rcode_name(rcode).into_owned())], counters.responses(rcode)));
    page.counters("svcdns_answers", "Answers made, by response code", by_code.filter(|(_, count)| *count > 0).collect::<Vec<_>>());
    page.counter("svcdns_truncated_answers", "Answers with TC set, because not all records fit", counters.truncated());
    let server = &site.server;
    let streams = [("tcp", &server.tcp), ("tls", &server.tls), ("quic", &server.quic)];
    let by_stream = |number: fn(&StreamCounters) -> u64| streams.map(|(name, counters)| (transport(name), number(counters)));
    let transports = |udp: &Counter, number| [(transport("udp"), udp.get())].into_iter().chain(by_stream(number));
    page.counters("svcdns_queries", "Messages received", transports(&server.udp_queries, |stream| stream.queries.get()));
    page.counters("svcdns_answers_sent", "Answers sent", transports(&server.udp_responses, |stream| stream.responses.get()));
    let refused = transports(&server.udp_refused, |stream| stream.refused.get());
    page.counters("svcdns_refused", "Messages and connections of sources without access", refused);
    page.counter("svcdns_udp_overloads", "Questions over UDP failed because too many waited for an upstream", server.udp_overloads.get());
    page.counters("svcdns_connections", "Connections accepted", by_stream(|stream| stream.connections.get()));
    page.counters("svcdns_rejected_connections", "Connections closed at once for want of room", by_stream(|stream| stream.rejected.get()));
    let failed = by_stream(|stream| stream.failed_handshakes.get()).into_iter().skip(1);
    page.counters("svcdns_failed_handshakes", "Connections whose encryption was not agreed on", failed);
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
    let open = by_stream(|stream| stream.open.get()).map(|(labels, count)| (labels, count as f64));
    page.gauges("svcdns_open_connections", "Connections open", open);
    page.counter("svcdns_panics", "Panics that were caught; please report them", server.panics.get());
}

#[expect(clippy::cast_precision_loss, reason = "counts and seconds below 2^53")]
fn registries(page: &mut Page, status: &Status) {
    let info = status.registries.iter().map(|RegistryView { name, url, .. }| {
        let kind = url.split_once("://").map_or("", |(kind, _)| kind);
        (vec![("registry", name.clone()), ("kind", kind.to_owned()), ("url", url.clone())], 1.0)
    });
    page.gauges("svcdns_registry_info", "Always 1, with the kind and URL of the registry", info);
    let each = |number: fn(&RegistryView) -> Option<f64>| -> Vec<(MetricLabels, f64)> {
        let registries = status.registries.iter();
        registries.filter_map(|registry| Some((vec![("registry", registry.name.clone())], number(registry)?))).collect()
    };
    let connected = each(|registry| Some(f64::from(u8::from(registry.connected))));
    page.gauges("svcdns_registry_connected", "Whether the registry can be reached", connected);
    let synced = each(|registry| Some(f64::from(u8::from(registry.synced))));
    page.gauges("svcdns_registry_synced", "Whether the registry was ever read completely", synced);
    page.gauges("svcdns_registry_keys", "Keys of the registry that are served", each(|registry| Some(registry.keys as f64)));
    page.gauges("svcdns_registry_revision", "The registry's revision read", each(|registry| Some(registry.revision as f64)));
    let ages = each(|registry| registry.last_event_age.map(|age| age as f64));
    page.gauges("svcdns_registry_last_event_age_seconds", "Time since the last change or sign of life", ages);
    let count = |number: fn(&RegistryView) -> u64| -> Vec<(MetricLabels, u64)> {
        status.registries.iter().map(|registry| (vec![("registry", registry.name.clone())], number(registry))).collect()
    };
    page.counters("svcdns_registry_lists", "Complete lists read", count(|registry| registry.lists));
    page.counters("svcdns_registry_disconnects", "Connections lost", count(|registry| registry.disconnects));
    let differences = count(|registry| registry.differences);
    page.counters("svcdns_registry_list_differences", "What routine lists found and no event had told", differences);
}

fn transport(name: &str) -> MetricLabels {
    vec![("transport", name.to_owned())]
}
