//! `svcdns explain`.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use hickory_proto::rr::RecordType;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::arguments::Explain;
use super::client::{Client, escaped};
use super::follow::{Followed, Following};
use super::{NOT_FOUND, Place, names, output};
use crate::admin::Status;
use crate::answer::Explanation;

/// How long a registry may take to be read.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) async fn run(place: &Place, command: Explain) -> anyhow::Result<ExitCode> {
    let json = command.json;
    let explanation = if command.flags.0.has("registry") { anew(place, command).await? } else { running(place, command).await? };
    let text = if json { serde_json::to_string(&explanation)? + "\n" } else { text(&explanation) };
    output::print(&text)?;
    Ok(if explanation.answers.is_empty() { NOT_FOUND.into() } else { ExitCode::SUCCESS })
}

/// Asks the running server.
async fn running(place: &Place, command: Explain) -> anyhow::Result<Explanation> {
    let client = Client::find(place).await?;
    let status: Status = client.get("/v1/status").await?;
    let name = names::meant(&command.name, &names::zones(&status.zones)?)?;
    let kind = kind(command.kind.as_deref(), names::is_reverse(&name))?;
    client.get(&format!("/v1/explain?name={}&type={kind}&payload={}", escaped(&name.to_string()), command.payload)).await
}

/// Reads the registries named, and explains what a server of this configuration would answer.
async fn anew(place: &Place, command: Explain) -> anyhow::Result<Explanation> {
    let config = place.configure(command.file.config.as_deref(), command.flags.0)?;
    let name = names::meant(&command.name, &config.zones)?;
    let kind = kind(command.kind.as_deref(), names::is_reverse(&name))?;
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let _stop_at_the_end = stop.clone().drop_guard();
    let (mut following, Followed { answerer, states }) = Following::start(&config, &config.listen, &tracker, &stop);
    let read = async {
        while !states.iter().all(|state| state.report().synced) || !answerer.condition().synced {
            if following.next().await.is_none() {
                break;
            }
        }
    };
    if tokio::time::timeout(PATIENCE, read).await.is_err() {
        let unread = states.iter().filter(|state| !state.report().synced);
        let reasons = unread.map(|state| format!("{state}: {}", state.report().error.as_deref().unwrap_or("no answer")));
        bail!("not every registry could be read within {} s: {}", PATIENCE.as_secs(), reasons.collect::<Vec<_>>().join("; "));
    }
    Ok(answerer.explain(&name, kind.into(), Some(command.payload).filter(|payload| *payload > 0), fastrand::u64(..)))
}

/// The type meant.
pub(super) fn kind(text: Option<&str>, reverse: bool) -> anyhow::Result<RecordType> {
    match text {
        Some(text) => {
            text.to_ascii_uppercase().parse().map_err(|_| anyhow!("{text:?} is not a type of record such as A, AAAA, SRV, TXT or PTR"))
        }
        None if reverse => Ok(RecordType::PTR),
        None => Ok(RecordType::A),
    }
}

fn text(explanation: &Explanation) -> String {
    let Explanation {
        name,
        rtype,
        zone,
        parsed,
        tried,
        considered,
        ready_made,
        rcode,
        extended_error,
        answers,
        others,
        octets,
        limit,
        truncated,
        left_out,
        setting,
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
    part("The name", zone.into_iter().chain(parsed.iter().cloned()).collect());
    part("Readings, the best first", tried.iter().map(|tried| format!("{}: {}", tried.reading, tried.outcome)).collect());
    let keys = considered.iter().flat_map(|instance| {
        let fate = instance.dropped.as_ref().map_or_else(|| "selected".to_owned(), |why| format!("not selected: {why}"));
        let held = if instance.held { ", held (its registry says that it is gone)" } else { "" };
        [
            format!("{} {} weight {}: {fate}{held}", instance.endpoint, instance.group, instance.weight),
            format!("    registry {}, revision {}, key {}", instance.registry, instance.revision, instance.key),
        ]
    });
    part("Instances", keys.collect());
    let mut response = vec![rcode.clone()];
    response.extend(extended_error.iter().map(|error| format!("extended error {error}")));
    response.push(format!(
        "{octets} octets of at most {limit} over UDP, {}",
        if *ready_made { "from a ready-made record" } else { "made for this question" }
    ));
    response.push(format!("answers = {setting}: {left_out} records left out, TC {}", if *truncated { "set" } else { "not set" }));
    part("The answer", response);
    part("Its records, in an order drawn anew for each question", answers.clone());
    part("Records beside it", others.clone());
    text
}
