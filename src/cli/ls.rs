//! `svcdns ls`: lists services, rejected keys or conflicts.

use std::fmt::Write;
use std::process::ExitCode;

use super::arguments::LsArgs;
use super::client::AdminClient;
use super::{NOT_FOUND, ServerLocation, names, output};
use crate::admin::{
    AliasView, ConflictView, RegistryView, RejectionsView, ServerStatus, ServiceView,
};
use crate::config::registry_note;
use crate::percent;
use crate::service::UnixTime;

pub(super) async fn run(location: &ServerLocation, command: LsArgs) -> anyhow::Result<ExitCode> {
    let client = AdminClient::find(location).await?;
    let status: ServerStatus = client.get("/v1/status").await?;
    let zones = names::zones(&status.zones)?;
    let path = match (&command.name, command.rejected, command.conflicts) {
        (_, true, _) => "/v1/rejected".to_owned(),
        (_, _, true) => "/v1/conflicts".to_owned(),
        (Some(name), ..) => {
            format!("/v1/services?base={}", percent::encode(&names::base(name, &zones)?))
        }
        (None, ..) => "/v1/services".to_owned(),
    };
    let json = client.get_text(&path).await?;
    let base = command.name.as_ref().map(|name| names::base(name, &zones)).transpose()?;
    let aliases = aliases_of(&status, base.as_deref());
    // The service of an alias may not be registered; an outside name is no service.
    let is_outside = base.is_some() && aliases.iter().any(|alias| alias.service.is_none());
    let found = command.name.is_none() || json != "[]" || is_outside;
    let text = if command.json {
        json + "\n"
    } else if command.rejected {
        rejected(&serde_json::from_str(&json)?, &status)
    } else if command.conflicts {
        conflicts(&serde_json::from_str::<Vec<ConflictView>>(&json)?)
    } else {
        let listed: Vec<ServiceView> = serde_json::from_str(&json)?;
        let services = services(&listed, &status);
        let bridged = format_bridged(&listed);
        let services = if bridged.is_empty() { services } else { services + "\n" + &bridged };
        let text = match (aliases.is_empty(), json == "[]") {
            (true, _) => services,
            (false, true) => format_aliases(&aliases),
            (false, false) => services + "\n" + &format_aliases(&aliases),
        };
        text + &notes(&listed, &status)
    };
    output::print(&text)?;
    if status.registries.iter().any(RegistryView::is_unread) {
        output::complain("incomplete: not every registry has been read yet (svcdns status)");
    } else if status.stale {
        output::complain(
            "stale: a registry is unreachable; this is its last known data (svcdns status)",
        );
    }
    if let (false, Some(name)) = (found, &command.name) {
        let mut own = aliases.iter().filter(|alias| Some(&*alias.base) == base.as_deref());
        if let Some(AliasView { base, service: Some(service), .. }) = own.next() {
            output::complain(&format!("{base} is an alias of {service}, which is not registered"));
            return Ok(NOT_FOUND.into());
        }
        let suggestion = client.suggest(&names::complete(name, &zones)?).await;
        output::complain(&names::unknown_service(name, suggestion.as_deref()));
        return Ok(NOT_FOUND.into());
    }
    Ok(ExitCode::SUCCESS)
}

fn services(services: &[ServiceView], status: &ServerStatus) -> String {
    let mut rows = Vec::new();
    for service in services {
        if service.instances.is_empty() {
            let dash = || "-".to_owned();
            let note = "no usable endpoint (svcdns ls --rejected)".to_owned();
            rows.push([service.name.clone(), dash(), dash(), dash(), dash(), note]);
        }
        for instance in &service.instances {
            let endpoint = &instance.endpoint;
            let mut notes: Vec<String> = Vec::new();
            notes.extend(instance.left_out.as_ref().map(|reason| format!("dropped: {reason}")));
            if let Some(check) = instance.check.as_ref().filter(|_| instance.left_out.is_none()) {
                notes.push(format!("served, although its check fails: {}", check.message));
            }
            if instance.held {
                let end = instance.hold.as_ref().map(|hold| UnixTime(hold.until));
                let end = end.map(|end| format!(" until {end}")).unwrap_or_default();
                notes.push(format!("removal held{end}"));
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
                output::escape_controls(&notes.join("; ")),
            ]);
        }
    }
    output::columns(
        ["NAME", "ENDPOINT", "DEPLOYMENT/NAMESPACE", "VERSION", "WEIGHT", "NOTES"],
        rows,
    )
}

/// Returns the notes on the registries that have a key of these services.
fn notes(services: &[ServiceView], status: &ServerStatus) -> String {
    let has_key = |name: &str| {
        let mut keys = services.iter().flat_map(|service| &service.keys);
        keys.any(|key| key.registry_name == name)
    };
    let mut text = String::new();
    for RegistryView { name, url, .. } in &status.registries {
        if let Some(note) = registry_note(url).filter(|_| has_key(name)) {
            let _ = writeln!(text, "\n{name}: {note}");
        }
    }
    text
}

/// Returns the aliases with this base, and those of the service with this base; or all.
fn aliases_of<'s>(status: &'s ServerStatus, base: Option<&str>) -> Vec<&'s AliasView> {
    let is_listed = |alias: &&AliasView| {
        base.is_none_or(|base| alias.base == base || alias.service.as_deref() == Some(base))
    };
    status.aliases.iter().filter(is_listed).collect()
}

/// Lists the names with an address of the port bridge; empty if there are none.
fn format_bridged(services: &[ServiceView]) -> String {
    let mut bridged = services.iter().flat_map(|service| &service.bridged).peekable();
    if bridged.peek().is_none() {
        return String::new();
    }
    let rows = bridged.map(|bridged| [bridged.name.clone(), bridged.address.clone()]);
    output::columns(["BRIDGED", "ADDRESS FOR THIS MACHINE"], rows)
}

fn format_aliases(aliases: &[&AliasView]) -> String {
    let rows = aliases.iter().map(|alias| {
        let mut notes = Vec::new();
        if alias.service.is_none() {
            notes.push("outside the served zones (CNAME)".to_owned());
        }
        match (&alias.service, alias.registered) {
            (Some(_), false) => notes.push("not registered".to_owned()),
            (None, true) => notes.push(
                "a service has this name, too: write the target with its zone for the service"
                    .to_owned(),
            ),
            (Some(_), true) | (None, false) => {}
        }
        if alias.replaces {
            notes.push(format!("replaces the registered service {}", alias.base));
        }
        [alias.name.clone(), alias.target.clone(), notes.join("; ")]
    });
    output::columns(["ALIAS", "TARGET", "NOTES"], rows)
}

fn rejected(view: &RejectionsView, status: &ServerStatus) -> String {
    let mut text = String::new();
    for count in &view.counts {
        let _ = writeln!(text, "{:>8}  {}: {}", count.count, count.reason, count.message);
    }
    if view.counts.is_empty() {
        text.push_str("no rejected keys or endpoints\n");
    }
    for listed in &view.listed {
        let part = if listed.endpoint_only { "an endpoint of " } else { "" };
        let (key, found) =
            (output::escape_controls(&listed.key), output::escape_controls(&listed.found));
        let _ = write!(text, "\n{part}{key}\n  {found}: {}", listed.message);
        if status.registries.len() > 1 {
            let _ = write!(text, " [in {}]", listed.registry_name);
        }
        text.push('\n');
    }
    if view.unlisted > 0 {
        let _ = writeln!(text, "\n{} more not listed", view.unlisted);
    }
    text
}

fn conflicts(conflicts: &[ConflictView]) -> String {
    if conflicts.is_empty() {
        return "no conflicts\n".to_owned();
    }
    let rows = conflicts.iter().map(|conflict| {
        let scope = format!("{}/{}", conflict.deployment, conflict.namespace);
        [&conflict.name, &conflict.kind, &conflict.winner, &conflict.loser, &scope]
            .map(|text| output::escape_controls(text))
    });
    output::columns(["NAME", "KIND", "WINNER", "LOSER", "DEPLOYMENT/NAMESPACE"], rows)
}
