//! `svcdns check`: prints the effective configuration.

use std::fmt::Write;
use std::process::ExitCode;

use super::arguments::CheckArgs;
use super::client::{AdminClient, ReloadCheck};
use super::{ServerLocation, client, output, reload};
use crate::admin::ReloadView;
use crate::config::{ConfiguredSecret, EffectiveValue};

pub(super) async fn run(location: &ServerLocation, command: CheckArgs) -> anyhow::Result<ExitCode> {
    let config = location.configure(command.file.config.as_deref(), command.flags.0)?;
    let rows = config.effective().iter().map(|EffectiveValue { path, value, origin, .. }| {
        [path.clone(), value.clone(), origin.to_string()]
    });
    let aliases = config
        .aliases
        .iter()
        .map(|alias| [alias.path.clone(), alias.quoted_target(), alias.origin.to_string()]);
    let mut text = output::columns(["KEY", "VALUE", "SOURCE"], rows.chain(aliases));
    if !config.secrets.is_empty() {
        text.push('\n');
    }
    for ConfiguredSecret { registry, key, place, .. } in &config.secrets {
        let _ = writeln!(text, "The {} of registry {registry} is set in {place}.", key.name);
    }
    output::print(&text)?;
    for warning in &config.warnings {
        output::complain(&format!("warning: {warning}"));
    }
    describe_reload(location).await
}

/// Prints what a reload of the running server would change; prints nothing if none is running.
///
/// The server has its own file, flags and environment, which need not be those of this command.
/// The exit code is that of `svcdns reload`.
async fn describe_reload(location: &ServerLocation) -> anyhow::Result<ExitCode> {
    let Ok(client) = AdminClient::find(location).await else { return Ok(ExitCode::SUCCESS) };
    match client.check_reload().await {
        Ok(ReloadCheck::Accepted(text)) => {
            let view: ReloadView = client::decode(&text)?;
            output::print(&format!(
                "\nA reload of the running server, with its own file, flags and environment:\n{}",
                reload::format_changes(&view)
            ))?;
        }
        Ok(ReloadCheck::Refused(reason)) => {
            output::complain(&format!("a reload of the running server would fail: {reason}"));
            return Ok(ExitCode::FAILURE);
        }
        Ok(ReloadCheck::NotPermitted) => output::complain(
            "the running server tells only root and its own user what a reload would change",
        ),
        Err(error) => output::complain(&format!(
            "the running server does not say what a reload would change: {error:#}"
        )),
    }
    Ok(ExitCode::SUCCESS)
}
