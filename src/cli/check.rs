//! `svcdns check`.

use std::fmt::Write;
use std::process::ExitCode;

use super::arguments::Check;
use super::{Place, output};
use crate::config::Effective;

pub(super) fn run(place: &Place, command: Check) -> anyhow::Result<ExitCode> {
    let config = place.configure(command.file.config.as_deref(), command.flags.0)?;
    let rows = config.effective().iter().map(|Effective { key, value, origin }| [key.path(), value.clone(), origin.to_string()]);
    let mut text = output::columns(["KEY", "VALUE", "FROM"], rows);
    for secret in &config.secrets {
        let _ = write!(text, "\nA {} for {} is set.\n", secret.name, secret.kind());
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
