//! Descriptions of steps for the user.

use std::fmt::Write;

use super::super::command::shell_quoted;
use super::super::install_step::{FileStep, InstallStep};
use super::super::path_state::PathState;

/// The unchanged lines shown around each difference.
const CONTEXT_LINES: usize = 3;

/// Describes a step: its effect, then its commands or the changes to its file.
///
/// Returns an empty string for a step that only matters when it is undone.
pub fn describe(step: &InstallStep) -> String {
    match step {
        InstallStep::Folder(path) => format!("create the directory {}", path.display()),
        InstallStep::File(file) => {
            let verb = match (&file.before, file.in_place) {
                (PathState::Absent, _) => "write",
                (_, true) => "change, in place,",
                (_, false) => "change",
            };
            format!("{verb} {}\n{}", file.path.display(), difference(file))
        }
        InstallStep::Command(command) if command.run.is_empty() => String::new(),
        InstallStep::Command(command) => {
            let lines: Vec<String> =
                command.run.iter().map(|words| format!("    {}\n", shell_quoted(words))).collect();
            format!("{}\n{}", command.purpose, lines.concat())
        }
    }
}

/// Returns the changed lines with context, control characters escaped.
fn difference(file: &FileStep) -> String {
    let text = |state: &PathState| match state {
        PathState::Absent => String::new(),
        PathState::File(file) => String::from_utf8_lossy(&file.content).into_owned(),
        PathState::Link { target, .. } => format!("-> {}\n", target.display()),
    };
    let (before, after) = (text(&file.before), text(&file.after));
    let difference = similar::TextDiff::from_lines(&before, &after);
    let mut lines = String::new();
    for group in difference.grouped_ops(CONTEXT_LINES) {
        for change in group.iter().flat_map(|operation| difference.iter_changes(operation)) {
            let escape = |letter: char| {
                if letter.is_control() && letter != '\t' {
                    letter.escape_default().collect()
                } else {
                    letter.to_string()
                }
            };
            let line: String = change.value().trim_end_matches('\n').chars().map(escape).collect();
            let _ = writeln!(lines, "    {}{line}", change.tag());
        }
    }
    lines
}
