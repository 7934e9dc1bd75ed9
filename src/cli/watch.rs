//! `svcdns watch`: prints changes to services as they happen.

use std::fmt::Write;
use std::process::ExitCode;

use super::arguments::WatchArgs;
use super::client::AdminClient;
use super::output::StdoutState;
use super::{NOT_REACHED, ServerLocation, names, output};
use crate::admin::{EndpointView, EventView, ServerStatus};

pub(super) async fn run(location: &ServerLocation, command: WatchArgs) -> anyhow::Result<ExitCode> {
    let client = AdminClient::find(location).await?;
    let status: ServerStatus = client.get("/v1/status").await?;
    let wanted = command
        .name
        .as_ref()
        .map(|name| names::base(name, &names::zones(&status.zones)?))
        .transpose()?;
    // The events of an alias are those of its service.
    let service_of = |base: String| {
        let mut aliases = status.aliases.iter();
        let alias = aliases.find(|alias| alias.base == base);
        alias.and_then(|alias| alias.service.clone()).unwrap_or(base)
    };
    let wanted = wanted.map(service_of);
    let mut lines = client.stream("/v1/watch").await?;
    while let Some(line) = lines.next().await? {
        let event: EventView = serde_json::from_str(&line)?;
        let is_other = wanted.is_some() && event.service.is_some() && event.service != wanted;
        if is_other {
            continue;
        }
        let text = if command.json {
            line + "\n"
        } else {
            text(&event, status.zones.first().map_or("", |zone| zone))
        };
        if output::print(&text)? == StdoutState::Closed {
            return Ok(ExitCode::SUCCESS);
        }
    }
    output::complain("the server exited");
    Ok(NOT_REACHED.into())
}

fn text(event: &EventView, zone: &str) -> String {
    let mut text = String::new();
    if let Some(missed) = event.missed {
        let changes = output::counted(missed, "change", "changes");
        let _ = writeln!(text, "... {changes} not shown: too many at once");
    }
    let Some(service) = &event.service else { return text };
    let mut lines = |sign: char, endpoints: &[EndpointView]| {
        for EndpointView { endpoint, deployment, namespace, version, weight } in endpoints {
            let _ = writeln!(
                text,
                "{sign} {service}.{zone}  {endpoint}  {deployment}/{namespace}  {version}  \
                 weight {weight}"
            );
        }
    };
    lines('+', &event.added);
    lines('-', &event.removed);
    if event.gone {
        let _ = writeln!(text, "- {service}.{zone}  no longer registered");
    } else if event.added.is_empty() && event.removed.is_empty() {
        let _ = writeln!(text, "+ {service}.{zone}  no usable endpoint");
    }
    text
}
