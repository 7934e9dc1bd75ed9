//! `svcdns reload`: makes the running server read its configuration again.

use std::fmt::Write;
use std::process::ExitCode;

use super::arguments::ReloadArgs;
use super::client::AdminClient;
use super::{ServerLocation, output};
use crate::admin::ReloadView;

pub(super) async fn run(
    location: &ServerLocation,
    command: ReloadArgs,
) -> anyhow::Result<ExitCode> {
    let client = AdminClient::find(location).await?;
    let text = client.post_patiently("/v1/reload").await?;
    if command.json {
        output::print(&(text + "\n"))?;
    } else {
        let view: ReloadView = super::client::decode(&text)?;
        output::print(&format_changes(&view))?;
        complain_of_warnings(&view);
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns a line for each change.
pub(super) fn format_changes(view: &ReloadView) -> String {
    let mut text = String::new();
    for change in &view.changes {
        let _ = writeln!(text, "{change}");
    }
    if text.is_empty() { "nothing changed\n".to_owned() } else { text }
}

fn complain_of_warnings(view: &ReloadView) {
    for warning in &view.warnings {
        output::complain(&format!("warning: {warning}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::ConfigChangeView;

    #[test]
    fn each_change_is_a_line() {
        let change = |path: &str, needs_restart| ConfigChangeView {
            path: path.to_owned(),
            before: Some("\"5s\"".to_owned()),
            after: None,
            source: "default".to_owned(),
            needs_restart,
        };
        let view = ReloadView {
            changes: vec![change("ttl", false), change("bridge.drain", true)],
            warnings: Vec::new(),
        };
        assert_eq!(
            format_changes(&view),
            "ttl: \"5s\" → not set (default)\n\
             bridge.drain: needs a restart, stays \"5s\", then not set (default)\n"
        );
        assert_eq!(format_changes(&ReloadView::default()), "nothing changed\n");
    }
}
