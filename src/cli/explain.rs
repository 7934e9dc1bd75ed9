//! `svcdns explain`: shows how a query is answered, step by step.

use std::fmt::Write;
use std::process::ExitCode;

use super::arguments::ExplainArgs;
use super::client::AdminClient;
use super::registries::RegistryReading;
use super::{FAILED_ANSWER, NOT_FOUND, ServerLocation, names, output};
use crate::admin::{RegistryView, ServerStatus};
use crate::answer::{ConsideredInstance, Explanation, TcpOmission};
use crate::config::registry_note;
use crate::registry::name_at;
use crate::service::UnixTime;
use crate::wire::extended_error_text;

pub(super) async fn run(
    location: &ServerLocation,
    command: ExplainArgs,
) -> anyhow::Result<ExitCode> {
    let (json, written) = (command.json, command.name.clone());
    let (explanation, registries) = if command.flags.0.has("registry") {
        explain_from_registries(location, command).await?
    } else {
        explain_from_server(location, command).await?
    };
    let text = if json {
        serde_json::to_string(&explanation)? + "\n"
    } else {
        text(&explanation, notes(&explanation, &registries))
    };
    output::print(&text)?;
    if explanation.rcode == "NXDOMAIN"
        && let Some(hint) = names::hint(&written, &explanation.name)
    {
        output::complain(&hint);
    }
    Ok(match &*explanation.rcode {
        _ if !explanation.answers.is_empty() || explanation.elsewhere.is_some() => {
            ExitCode::SUCCESS
        }
        "NOERROR" | "NXDOMAIN" => NOT_FOUND.into(),
        _ => FAILED_ANSWER.into(),
    })
}

/// A followed registry.
struct FollowedRegistry {
    name: String,
    url: String,
}

/// Requests the explanation from the running server.
async fn explain_from_server(
    location: &ServerLocation,
    command: ExplainArgs,
) -> anyhow::Result<(Explanation, Vec<FollowedRegistry>)> {
    let client = AdminClient::find(location).await?;
    let status: ServerStatus = client.get("/v1/status").await?;
    let name = names::complete(&command.name, &names::zones(&status.zones)?)?;
    let rtype = names::rtype(command.kind.as_deref(), &name)?;
    let explanation = client.explain(&name, rtype, command.payload).await?;
    let registries = status.registries.into_iter();
    let registries =
        registries.map(|RegistryView { name, url, .. }| FollowedRegistry { name, url }).collect();
    Ok((explanation, registries))
}

/// Reads the registries and explains how a server following them would answer.
async fn explain_from_registries(
    location: &ServerLocation,
    command: ExplainArgs,
) -> anyhow::Result<(Explanation, Vec<FollowedRegistry>)> {
    let config = location.configure(command.file.config.as_deref(), command.flags.0)?;
    let name = names::complete(&command.name, &config.zones)?;
    let rtype = names::rtype(command.kind.as_deref(), &name)?;
    let RegistryReading { answerer, states } = super::registries::read(&config).await?;
    for state in &*states {
        if let Some(error) = state.report().error {
            output::complain(&format!("{state} could not be read completely: {error}"));
        }
    }
    let payload = Some(command.payload).filter(|payload| *payload > 0);
    let mut explanation = answerer.explain(&name, rtype, payload, fastrand::u64(..));
    explanation.name_registries(|place| name_at(&states, place));
    let registries = states
        .iter()
        .map(|state| FollowedRegistry { name: state.to_string(), url: state.url.clone() })
        .collect();
    Ok((explanation, registries))
}

/// Returns the notes on the registries that hold the instances, or a key without one.
fn notes(explanation: &Explanation, registries: &[FollowedRegistry]) -> Vec<String> {
    let has_key = |(index, name): (usize, &str)| {
        explanation.key_registries.contains(&index)
            || explanation.instances.iter().any(|instance| instance.registry_name == name)
    };
    let noted = registries.iter().enumerate();
    let noted = noted.filter(|(index, registry)| has_key((*index, &registry.name)));
    noted
        .filter_map(|(_, FollowedRegistry { name, url })| {
            Some(format!("{name}: {}", registry_note(url)?))
        })
        .collect()
}

/// Formats an explanation, with notes on its instances.
fn text(explanation: &Explanation, notes: Vec<String>) -> String {
    let Explanation {
        name,
        rtype,
        zone,
        elsewhere,
        alias,
        bridge,
        parsed,
        interpretations,
        instances,
        key_registries: _,
        precompiled,
        rcode,
        reason,
        suggestion,
        extended_error,
        answers,
        others,
        bytes,
        limit,
        truncated,
        left_out,
        txt_omissions,
        setting,
        over_tcp,
    } = explanation;
    let mut text = format!("{name} {rtype}\n");
    let mut part = |heading: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            let _ = writeln!(text, "\n{heading}");
            for line in lines {
                let _ = writeln!(text, "  {line}");
            }
        }
    };
    let zone = zone.as_ref().map(|zone| format!("in the zone {zone}"));
    part("Name", zone.iter().chain(alias).chain(parsed).cloned().collect());
    part("Port bridge", bridge.iter().cloned().collect());
    let tried = interpretations
        .iter()
        .map(|tried| format!("{}: {}", tried.interpretation, tried.outcome))
        .collect();
    part("Interpretations, best first", tried);
    let keys = instances.iter().flat_map(|instance| {
        let fate = instance
            .dropped
            .as_ref()
            .map_or_else(|| selected(instance), |reason| format!("dropped: {reason}"));
        let held = match &instance.hold {
            Some(hold) => {
                format!(" (removal held until {}: {})", UnixTime(hold.until), hold.message)
            }
            None if instance.held => " (removal held)".to_owned(),
            None => String::new(),
        };
        [
            format!(
                "{} {} weight {}: {fate}{held}",
                instance.endpoint, instance.group, instance.weight
            ),
            format!(
                "    key {}, revision {}, in {}",
                instance.key, instance.revision, instance.registry_name
            ),
        ]
    });
    part("Instances", keys.chain(notes).collect());
    if let Some(elsewhere) = elsewhere {
        part("Response", vec![elsewhere.clone()]);
        return text;
    }
    let mut response = vec![code_and_reason(rcode, reason.as_deref(), suggestion.as_deref())];
    response.extend(extended_error.iter().map(|error| format_extended_error(error)));
    response.push(format!(
        "{bytes} bytes, at most {limit} over UDP, {}",
        if *precompiled { "from a precompiled node" } else { "composed for this query" }
    ));
    response.push(format!(
        "answers = {setting}: {left_out} records left out, TC {}",
        if *truncated { "set" } else { "not set" }
    ));
    response.extend(over_tcp.as_ref().map(|TcpOmission { bytes, records, addresses }| {
        format!(
            "over TCP: {bytes} bytes, {records} records and {addresses} addresses of targets left \
             out"
        )
    }));
    response.extend(txt_omissions.iter().cloned());
    part("Response", response);
    part("Answer section, in an order drawn for each response", answers.clone());
    part("Authority and additional sections", others.clone());
    text
}

/// Describes an instance that was not dropped.
fn selected(instance: &ConsideredInstance) -> String {
    let failing = instance.check.as_ref();
    failing.map_or_else(
        || "selected".to_owned(),
        |failure| format!("selected, although its check fails: {failure}"),
    )
}

/// Formats a response code: `NXDOMAIN: no service nope; did you mean nope2?`.
fn code_and_reason(rcode: &str, reason: Option<&str>, suggestion: Option<&str>) -> String {
    let mut text = rcode.to_owned();
    if let Some(reason) = reason {
        let _ = write!(text, ": {reason}");
    }
    if let Some(suggestion) = suggestion {
        let _ = write!(text, "; did you mean {suggestion}?");
    }
    text
}

/// Formats an EDE, given as code and text, as `resolve` does.
fn format_extended_error(error: &str) -> String {
    let (code, text) = error.split_once(' ').unwrap_or((error, ""));
    code.parse().map_or_else(|_| error.to_owned(), |code| extended_error_text(code, text))
}
