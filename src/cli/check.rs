//! `svcdns check`.

use std::process::ExitCode;

use super::arguments::Check;
use super::{Place, output};
use crate::config::Effective;

pub(super) fn run(place: &Place, command: Check) -> anyhow::Result<ExitCode> {
    let config = place.configure(command.file.config.as_deref(), command.flags.0)?;
    let rows = config.effective().iter().map(|Effective { key, value, origin }| [key.path(), value.clone(), origin.to_string()]);
    let mut text = output::columns(["KEY", "VALUE", "FROM"], rows);
    if config.etcd.password.is_some() {
        text.push_str("\nA password for etcd is set.\n");
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
