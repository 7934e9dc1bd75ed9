//! `svcdns watch`.

use std::fmt::Write;
use std::process::ExitCode;

use super::arguments::Watch;
use super::client::Client;
use super::output::Reader;
use super::{NOT_REACHED, Place, names, output};
use crate::admin::{EndpointView, EventView, Status};

pub(super) async fn run(place: &Place, command: Watch) -> anyhow::Result<ExitCode> {
    let client = Client::find(place).await?;
    let status: Status = client.get("/v1/status").await?;
    let wanted = command.name.as_ref().map(|name| names::base(name, &names::zones(&status.zones)?)).transpose()?;
    let mut lines = client.stream("/v1/watch").await?;
    while let Some(line) = lines.next().await? {
        let event: EventView = serde_json::from_str(&line)?;
        let of_another = wanted.is_some() && event.service.is_some() && event.service != wanted;
        if of_another {
            continue;
        }
        let text = if command.json { line + "\n" } else { text(&event, status.zones.first().map_or("", |zone| zone)) };
        if output::print(&text)? == Reader::Gone {
            return Ok(ExitCode::SUCCESS);
        }
    }
    output::complain("the server has gone");
    Ok(NOT_REACHED.into())
}

fn text(event: &EventView, zone: &str) -> String {
    let mut text = String::new();
    if let Some(missed) = event.missed {
        let _ = writeln!(text, "… {missed} changes came too fast to be shown");
    }
    let Some(service) = &event.service else { return text };
    let mut lines = |sign: char, endpoints: &[EndpointView]| {
        for EndpointView { endpoint, deployment, namespace, version, weight } in endpoints {
            let _ = writeln!(text, "{sign} {service}.{zone}  {endpoint}  {deployment}/{namespace}  {version}  weight {weight}");
        }
    };
    lines('+', &event.added);
    lines('-', &event.removed);
    if event.gone {
        let _ = writeln!(text, "- {service}.{zone}  nothing is registered any more");
    } else if event.added.is_empty() && event.removed.is_empty() {
        let _ = writeln!(text, "+ {service}.{zone}  without a usable endpoint");
    }
    text
}
