//! `svcdns ls`.

use std::fmt::Write;
use std::process::ExitCode;

use super::arguments::Ls;
use super::client::{Client, escaped};
use super::{NOT_FOUND, Place, names, output};
use crate::admin::{ConflictView, RejectionsView, ServiceView, Status};

pub(super) async fn run(place: &Place, command: Ls) -> anyhow::Result<ExitCode> {
    let client = Client::find(place).await?;
    let status: Status = client.get("/v1/status").await?;
    let path = match (&command.name, command.rejected, command.conflicts) {
        (_, true, _) => "/v1/rejected".to_owned(),
        (_, _, true) => "/v1/conflicts".to_owned(),
        (Some(name), ..) => format!("/v1/services?base={}", escaped(&names::base(name, &names::zones(&status.zones)?)?)),
        (None, ..) => "/v1/services".to_owned(),
    };
    let json = client.text(&path).await?;
    let found = command.name.is_none() || json != "[]";
    let text = if command.json {
        json + "\n"
    } else if command.rejected {
        rejected(&serde_json::from_str(&json)?, &status)
    } else if command.conflicts {
        conflicts(&serde_json::from_str::<Vec<ConflictView>>(&json)?)
    } else {
        services(&serde_json::from_str::<Vec<ServiceView>>(&json)?, &status)
    };
    output::print(&text)?;
    if status.registries.iter().any(|registry| !registry.synced) {
        output::complain("not every registry has been read completely yet: there may be more (svcdns status)");
    } else if status.stale {
        output::complain("a registry cannot be reached: this is what was known last (svcdns status)");
    }
    if let (false, Some(name)) = (found, &command.name) {
        output::complain(&format!("nothing is registered as {name}"));
        return Ok(NOT_FOUND.into());
    }
    Ok(ExitCode::SUCCESS)
}

fn services(services: &[ServiceView], status: &Status) -> String {
    let mut rows = Vec::new();
    for service in services {
        if service.instances.is_empty() {
            let dash = || "-".to_owned();
            rows.push([service.name.clone(), dash(), dash(), dash(), dash(), "no usable endpoint (svcdns ls --rejected)".to_owned()]);
        }
        for instance in &service.instances {
            let endpoint = &instance.endpoint;
            let mut notes: Vec<String> = Vec::new();
            notes.extend(instance.left_out.as_ref().map(|reason| format!("left out: {reason}")));
            if instance.held {
                notes.push("held: its registry says that it is gone".to_owned());
            }
            if status.registries.len() > 1 {
                notes.push(format!("in {}", instance.registry_name));
            }
            notes.extend(instance.metadata.iter().map(|(key, value)| format!("{key}={value}")));
            let scope = format!("{}/{}", endpoint.deployment, endpoint.namespace);
            rows.push([
                service.name.clone(),
                endpoint.endpoint.clone(),
                scope,
                endpoint.version.clone(),
                endpoint.weight.to_string(),
                safe(&notes.join("; ")),
            ]);
        }
    }
    output::columns(["NAME", "ENDPOINT", "DEPLOYMENT/NAMESPACE", "VERSION", "WEIGHT", "NOTES"], rows)
}

fn rejected(view: &RejectionsView, status: &Status) -> String {
    let mut text = String::new();
    for count in &view.counts {
        let _ = writeln!(text, "{:>8}  {}: {}", count.count, count.reason, count.message);
    }
    if view.counts.is_empty() {
        text.push_str("nothing is rejected\n");
    }
    for listed in &view.listed {
        let what = if listed.endpoint_only { "an endpoint of " } else { "" };
        let _ = write!(text, "\n{what}{}\n  {}: {}", safe(&listed.key), safe(&listed.found), listed.message);
        if status.registries.len() > 1 {
            let _ = write!(text, " [in {}]", listed.registry_name);
        }
        text.push('\n');
    }
    if view.unlisted > 0 {
        let _ = writeln!(text, "\n{} more are not listed", view.unlisted);
    }
    text
}

fn conflicts(conflicts: &[ConflictView]) -> String {
    if conflicts.is_empty() {
        return "no two things claim one name\n".to_owned();
    }
    let rows = conflicts.iter().map(|conflict| {
        let scope = format!("{}/{}", conflict.deployment, conflict.namespace);
        [&conflict.name, &conflict.kind, &conflict.winner, &conflict.loser, &scope].map(|text| safe(text))
    });
    output::columns(["NAME", "KIND", "ANSWERS FOR", "NOT FOR", "DEPLOYMENT/NAMESPACE"], rows)
}

/// A text that does nothing to a terminal.
fn safe(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}
