//! `svcdns status`.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use super::arguments::Status;
use super::client::Client;
use super::{Place, output};
use crate::admin;

pub(super) async fn run(place: &Place, command: Status) -> anyhow::Result<ExitCode> {
    let client = Client::find(place).await?;
    let text = if command.json { client.text("/v1/status").await? + "\n" } else { text(&client.get("/v1/status").await?) };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(status: &admin::Status) -> String {
    let mut text = String::new();
    let listen: Vec<String> = status.listen.iter().map(ToString::to_string).collect();
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime));
    let _ = writeln!(text, "svcdns {}, process {}, up {uptime}", status.version, status.pid);
    let _ = writeln!(text, "answers on {} for {}", listen.join(", "), status.zones.join(" "));
    for (addresses, how) in [(&status.tls, "TLS"), (&status.quic, "QUIC")] {
        if !addresses.is_empty() {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "answers over {how} on {}", addresses.join(", "));
        }
    }
    let admin = status.admin.map_or_else(|| "off".to_owned(), |address| format!("http://{address}/"));
    let state_dir = status.state_dir.as_deref().unwrap_or("none");
    let _ = writeln!(text, "runtime directory {}, state directory {state_dir}", status.runtime_dir);
    let _ = writeln!(text, "metrics and health {admin}");
    let services = output::counted(status.services as u64, "service", "services");
    let instances = output::counted(status.instances as u64, "instance", "instances");
    let rejected = output::counted(status.rejected, "rejected key or endpoint", "rejected keys and endpoints");
    let _ = writeln!(text, "{services}, {instances}, {rejected}");
    let condition = match (status.synced, status.stale) {
        (false, _) => "not ready: names that are not known yet are answered with SERVFAIL",
        (true, true) => "a registry cannot be reached: answers hold what was known last",
        (true, false) if status.registries.iter().any(|registry| !registry.synced) => {
            "ready, without a registry that has not been read yet: what only it knows does not exist so far"
        }
        (true, false) => "ready",
    };
    let _ = writeln!(text, "{condition}");
    if status.holding > 0 {
        let _ = writeln!(text, "{} keys are served although their registry says that they are gone (removal-grace)", status.holding);
    }
    for registry in &status.registries {
        let _ = writeln!(text, "\n{}  {}", registry.name, registry.url);
        let connected = if registry.connected { "connected" } else { "not connected" };
        let synced = if registry.synced { "read completely" } else { "not read yet" };
        let age = registry.last_event_age.map_or_else(String::new, |age| format!(", last sign of life {age} s ago"));
        let _ = writeln!(text, "  {connected}, {synced}, revision {}{age}", registry.revision);
        let _ = writeln!(
            text,
            "  {} keys, {} instances, {} lists, {} lost connections",
            registry.keys, registry.instances, registry.lists, registry.disconnects
        );
        if let Some(error) = &registry.error {
            let _ = writeln!(text, "  {error}");
        }
    }
    if let Some(view) = &status.forwarding {
        forwarding(&mut text, view);
    }
    text
}

fn forwarding(text: &mut String, view: &admin::ForwardingView) {
    let _ = writeln!(text, "\nother names");
    for upstream in &view.upstreams {
        let condition = match (upstream.looping, upstream.dead) {
            (true, _) => "sends questions back here: not asked",
            (false, true) => "does not answer",
            (false, false) => "in use",
        };
        let time = upstream.round_trip.map_or_else(String::new, |micros| format!(", {}.{} ms", micros / 1000, micros % 1000 / 100));
        let counts = format!(
            "{} asked, {} answered, {} unanswered, {} failed",
            upstream.asked, upstream.answered, upstream.unanswered, upstream.failed
        );
        let _ = writeln!(text, "  {}: {condition}{time}, {counts}", upstream.upstream);
        if let Some(error) = &upstream.last_error {
            let _ = writeln!(text, "    last failure: {error}");
        }
    }
    if view.upstreams.is_empty() {
        let _ = writeln!(text, "  no upstream is known");
    }
    for list in view.lists.iter().filter(|list| list.upstreams.len() > 1) {
        let names = if list.domain == "." { "order" } else { &list.domain };
        let _ = writeln!(text, "  {names}: {}: {}", list.order, list.upstreams.join(", "));
    }
    let cache = &view.cache;
    let _ = writeln!(text, "  cache: {} entries, {} of {} octets", cache.entries, cache.octets, cache.capacity);
    let _ = writeln!(
        text,
        "  {} hits, {} misses, {} merged, {} stale, {} prefetches, {} failures",
        cache.hits, cache.misses, cache.merged, cache.stale, cache.prefetches, view.failures
    );
    if view.overloaded > 0 {
        let _ = writeln!(text, "  {} questions turned away because too many were waiting", view.overloaded);
    }
}
