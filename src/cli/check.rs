//! `svcdns check`: prints the effective configuration.

use std::fmt::Write;
use std::process::ExitCode;

use super::arguments::CheckArgs;
use super::{ServerLocation, output};
use crate::config::{ConfiguredSecret, EffectiveValue};

pub(super) fn run(location: &ServerLocation, command: CheckArgs) -> anyhow::Result<ExitCode> {
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
    Ok(ExitCode::SUCCESS)
}
