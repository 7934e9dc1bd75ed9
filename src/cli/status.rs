//! `svcdns status`: shows the running server, its registries and its upstreams.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use super::arguments::StatusArgs;
use super::client::AdminClient;
use super::output::counted;
use super::{ServerLocation, output};
use crate::admin::{
    BridgeView, ChecksView, ForwardingView, HealthReport, RegistryView, ServerStatus, UpstreamView,
};
use crate::catalog::HoldView;
use crate::service::UnixTime;

pub(super) async fn run(
    location: &ServerLocation,
    command: StatusArgs,
) -> anyhow::Result<ExitCode> {
    let client = AdminClient::find(location).await?;
    let text = if command.json {
        client.get_text("/v1/status").await? + "\n"
    } else {
        format_status(&client.get("/v1/status").await?)
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn format_status(status: &ServerStatus) -> String {
    let mut text = String::new();
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime));
    let _ = writeln!(text, "svcdns {}, process {}, up {uptime}", status.version, status.pid);
    let _ = writeln!(text, "serves {}", status.zones.join(" "));
    let transports =
        [(&status.listen, "UDP and TCP"), (&status.tls, "TLS"), (&status.quic, "QUIC")];
    for (addresses, transport) in transports {
        if !addresses.is_empty() {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "listens over {transport} on {}", addresses.join(", "));
        }
    }
    let state_dir = status.state_dir.as_deref().unwrap_or("none");
    let runtime_dir = &status.runtime_dir;
    let _ = writeln!(text, "runtime directory {runtime_dir}, state directory {state_dir}");
    let _ = match status.admin {
        Some(address) => writeln!(text, "health and metrics at http://{address}/"),
        None => writeln!(text, "health and metrics on the socket only"),
    };
    let services = counted(status.services as u64, "service", "services");
    let instances = counted(status.instances as u64, "instance", "instances");
    let rejected =
        counted(status.rejected, "rejected key or endpoint", "rejected keys and endpoints");
    let _ = writeln!(text, "{services}, {instances}, {rejected}");
    let _ = writeln!(text, "{}", readiness(status));
    if status.holding > 0 {
        let held = counted(status.holding as u64, "removal", "removals");
        let _ = writeln!(text, "{held} held (removal-grace): the registry has removed these keys");
    }
    if let Some(checks) = &status.checks {
        text.push_str(&format_checks(checks));
    }
    let problem = status.resolv_conf.as_ref().and_then(|file| file.problem.as_ref());
    if let Some(problem) = problem {
        let _ = writeln!(
            text,
            "programs bypass svcdns, because another program has rewritten resolv.conf: {problem}; \
             `sudo svcdns install` restores the nameserver line"
        );
    }
    if let Some(bridge) = &status.bridge {
        let _ = writeln!(text, "{}", format_bridge(bridge));
    }
    for registry in &status.registries {
        let _ = writeln!(text, "\n{}", format_registry(registry));
    }
    if let Some(forwarding) = &status.forwarding {
        let _ = writeln!(text, "\n{}", format_forwarding(forwarding));
    }
    text
}

fn format_checks(checks: &ChecksView) -> String {
    let endpoints = counted((checks.tcp + checks.http) as u64, "endpoint", "endpoints");
    let (tcp, http, failing) = (checks.tcp, checks.http, checks.failing);
    let left_out = counted(checks.left_out as u64, "instance", "instances");
    let time = |millis| humantime::format_duration(Duration::from_millis(millis));
    let mut text = format!(
        "checks {endpoints} ({tcp} over TCP, {http} with HTTP) every {}: {failing} failing, \
         {left_out} left out\n",
        time(checks.interval_ms)
    );
    if checks.stretched {
        let _ = writeln!(
            text,
            "the interval of the checks is longer than configured, because of \
             checks.max-per-second: a failure may take {} to be noticed",
            time(checks.detection_time_ms)
        );
    }
    if let Some(since) = checks.burst_since {
        let _ = writeln!(
            text,
            "most checks have failed since {}, perhaps because of this machine's network: no \
             further instance is left out until most pass again",
            UnixTime(since)
        );
    }
    text
}

/// Describes the health of the server, then what it means for answers.
fn readiness(status: &ServerStatus) -> String {
    let all_read = status.registries.iter().all(|registry| !registry.is_unread());
    let meaning = match (status.synced, status.stale) {
        (false, _) => Some("unknown names are SERVFAIL until every registry has been read"),
        (true, true) => Some("stale: a registry is unreachable, and its last known data is served"),
        (true, false) if all_read => None,
        (true, false) => Some("names of an unread registry are NXDOMAIN"),
    };
    // Problems are shown with their registries. An older server does not send its health.
    let health = match &status.health {
        Some(health) => HealthReport { problems: Vec::new(), ..health.clone() }.to_string(),
        None if status.synced => "ready".to_owned(),
        None => "not ready".to_owned(),
    };
    meaning.map_or_else(|| health.clone(), |meaning| format!("{health}\n{meaning}"))
}

fn format_bridge(bridge: &BridgeView) -> String {
    if let Some(error) = &bridge.error {
        return format!("port bridge off: {error}");
    }
    let BridgeView { pool, mode, .. } = bridge;
    let names = counted(bridge.names as u64, "name", "names");
    let open = counted(bridge.open as u64, "open connection", "open connections");
    let failures = counted(bridge.failures, "failure", "failures");
    format!(
        "port bridge: {names} in {pool} ({mode}), {open} of {} so far, {failures}",
        bridge.connections + bridge.failures
    )
}

fn format_registry(registry: &RegistryView) -> String {
    let connected = if registry.connected { "connected" } else { "disconnected" };
    let synced = match (registry.synced, registry.is_unread()) {
        (true, _) => "synced",
        (false, true) => "not synced",
        (false, false) => "answering from the snapshot",
    };
    let age = registry.last_event_age.map(|age| format!(", last activity {age} s ago"));
    let keys = counted(registry.keys as u64, "key", "keys");
    let instances = counted(registry.instances as u64, "instance", "instances");
    let lists = counted(registry.lists, "list", "lists");
    let disconnects = counted(registry.disconnects, "lost connection", "lost connections");
    let snapshot = registry.snapshot_age.map(|age| format!(", snapshot {age} s old"));
    let error = registry.error.as_ref().map(|error| format!("\n  {error}"));
    format!(
        "{}  {}\n  {connected}, {synced}, revision {}{}\n  {keys}, {instances}, {lists}, \
         {disconnects}{}{}{}",
        registry.name,
        registry.url,
        registry.revision,
        age.unwrap_or_default(),
        snapshot.unwrap_or_default(),
        error.unwrap_or_default(),
        format_holds(registry)
    )
}

/// Describes the holds of a registry, and what ends them.
fn format_holds(registry: &RegistryView) -> String {
    let mut text = String::new();
    for HoldView { message, keys, since, until, .. } in &registry.holds {
        let removals = counted(*keys as u64, "removal", "removals");
        let (since, until) = (UnixTime(*since), UnixTime(*until));
        let _ = write!(text, "\n  {removals} on hold from {since} to {until}: {message}");
    }
    if !registry.holds.is_empty() {
        let _ = write!(text, "\n  `svcdns release {}` removes these keys now", registry.name);
    }
    text
}

fn format_forwarding(view: &ForwardingView) -> String {
    let mut text = String::from("forwarding");
    for upstream in &view.upstreams {
        let _ = write!(text, "\n  {}", format_upstream(upstream));
    }
    if view.upstreams.is_empty() {
        text.push_str("\n  no upstream is known");
    }
    for list in view.lists.iter().filter(|list| list.upstreams.len() > 1) {
        let names = if list.domain == "." { "order" } else { &list.domain };
        let _ = writeln!(text, "  {names}: {}: {}", list.order, list.upstreams.join(", "));
    }
    let cache = &view.cache;
    let entries = counted(cache.entries as u64, "entry", "entries");
    let _ = write!(text, "\n  cache: {entries}, {} of {} bytes", cache.bytes, cache.capacity);
    let counts = [
        counted(cache.hits, "hit", "hits"),
        counted(cache.misses, "miss", "misses"),
        counted(cache.merged, "merged query", "merged queries"),
        counted(cache.stale, "stale response", "stale responses"),
        counted(cache.prefetches, "prefetch", "prefetches"),
        counted(view.failures, "failure", "failures"),
    ];
    let _ = write!(text, "\n  {}", counts.join(", "));
    if view.overloaded > 0 {
        let queries = counted(view.overloaded, "query", "queries");
        let _ = write!(text, "\n  {queries} rejected: too many clients were waiting");
    }
    text
}

fn format_upstream(upstream: &UpstreamView) -> String {
    let state = match (upstream.looping, upstream.dead) {
        (true, _) => "not used: it forwards to svcdns",
        (false, true) => "dead",
        (false, false) => "in use",
    };
    let round_trip =
        upstream.round_trip.map(|micros| format!(", {}.{} ms", micros / 1000, micros % 1000 / 100));
    let queries = counted(upstream.asked, "query", "queries");
    let responses = counted(upstream.answered, "response", "responses");
    let error = upstream.last_error.as_ref().map(|error| format!("\n    last failure: {error}"));
    format!(
        "{}: {state}{}, {queries}, {responses}, {} unanswered, {} failed{}",
        upstream.upstream,
        round_trip.unwrap_or_default(),
        upstream.unanswered,
        upstream.failed,
        error.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::CacheView;

    fn registry(count: u64) -> RegistryView {
        let size = usize::try_from(count).unwrap();
        RegistryView {
            name: "etcd".to_owned(),
            url: "etcd://10.0.0.1:2379".to_owned(),
            connected: true,
            synced: true,
            revision: 4711,
            last_event_age: Some(2),
            error: None,
            lists: count,
            last_list_age: Some(60),
            disconnects: count,
            keys: size,
            instances: size,
            differences: 0,
            holds: Vec::new(),
            snapshot_age: None,
        }
    }

    #[test]
    fn a_count_of_one_has_a_singular_noun() {
        assert_eq!(
            format_registry(&registry(1)),
            "etcd  etcd://10.0.0.1:2379\n  \
             connected, synced, revision 4711, last activity 2 s ago\n  \
             1 key, 1 instance, 1 list, 1 lost connection"
        );
        let down = RegistryView {
            connected: false,
            synced: false,
            last_event_age: None,
            error: Some("connection refused".to_owned()),
            ..registry(2)
        };
        assert_eq!(
            format_registry(&down),
            "etcd  etcd://10.0.0.1:2379\n  disconnected, not synced, revision 4711\n  \
             2 keys, 2 instances, 2 lists, 2 lost connections\n  connection refused"
        );
        let restored = RegistryView { snapshot_age: Some(60), ..down };
        assert_eq!(
            format_registry(&restored),
            "etcd  etcd://10.0.0.1:2379\n  \
             disconnected, answering from the snapshot, revision 4711\n  \
             2 keys, 2 instances, 2 lists, 2 lost connections, snapshot 60 s old\n  \
             connection refused"
        );
        let hold = HoldView {
            cause: "expiry".to_owned(),
            message: "many keys expired at the same time".to_owned(),
            keys: 1,
            since: 50_585,
            until: 50_597,
        };
        assert!(format_registry(&RegistryView { holds: vec![hold], ..registry(1) }).ends_with(
            "1 key, 1 instance, 1 list, 1 lost connection\n  \
             1 removal on hold from 14:03:05 UTC to 14:03:17 UTC: many keys expired at the same \
             time\n  `svcdns release etcd` removes these keys now"
        ));
    }

    #[test]
    fn the_status_shows_counts_for_upstreams_and_the_cache() {
        let upstream = UpstreamView {
            upstream: "192.0.2.1".to_owned(),
            round_trip: Some(1_250),
            dead: false,
            looping: false,
            asked: 1,
            answered: 2,
            unanswered: 0,
            failed: 0,
            last_error: None,
        };
        let view = ForwardingView {
            lists: Vec::new(),
            upstreams: vec![
                UpstreamView { dead: true, last_error: Some("timeout".into()), ..upstream.clone() },
                upstream,
            ],
            cache: CacheView {
                entries: 1,
                bytes: 200,
                capacity: 1024,
                hits: 1,
                misses: 1,
                merged: 1,
                stale: 0,
                prefetches: 0,
            },
            waiting: 0,
            failures: 0,
            overloaded: 1,
            passed: 0,
        };
        assert_eq!(
            format_forwarding(&view),
            "forwarding\n  \
             192.0.2.1: dead, 1.2 ms, 1 query, 2 responses, 0 unanswered, 0 failed\n    \
             last failure: timeout\n  \
             192.0.2.1: in use, 1.2 ms, 1 query, 2 responses, 0 unanswered, 0 failed\n  \
             cache: 1 entry, 200 of 1024 bytes\n  \
             1 hit, 1 miss, 1 merged query, 0 stale responses, 0 prefetches, 0 failures\n  \
             1 query rejected: too many clients were waiting"
        );
    }
}
