//! `svcdns check`.

use std::fmt::Write;
use std::process::ExitCode;

use super::arguments::Check;
use super::{Place, output};
use crate::config::{ConfiguredSecret, EffectiveValue};

pub(super) fn run(place: &Place, command: Check) -> anyhow::Result<ExitCode> {
    let config = place.configure(command.file.config.as_deref(), command.flags.0)?;
    let rows = config.effective().iter().map(|EffectiveValue { path, value, origin, .. }| [path.clone(), value.clone(), origin.to_string()]);
    let mut text = output::columns(["KEY", "VALUE", "FROM"], rows);
    if !config.secrets.is_empty() {
        text.push('\n');
    }
    for ConfiguredSecret { registry, key, place, .. } in &config.secrets {
        let _ = writeln!(text, "The {} of the registry {registry} is set, in {place}.", key.name);
    }
    output::print(&text)?;
    for warning in &config.warnings {
        output::complain(&format!("warning: {warning}"));
    }
    Ok(ExitCode::SUCCESS)
}
