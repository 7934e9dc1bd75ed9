//! `svcdns uninstall`.

use std::process::ExitCode;

use anyhow::bail;

use super::arguments::Uninstall;
use super::output;
use super::privilege::need_root;
use crate::directory::ROOT_STATE_DIRECTORY;
use crate::system::{InstallLock, InstallStep, JOURNAL_FOLDER, Journal, Root};

pub(super) fn run(command: &Uninstall) -> anyhow::Result<ExitCode> {
    let root = Root::default();
    if command.dry_run {
        let text = match Journal::load(&root)? {
            None => NOTHING.to_owned(),
            Some(journal) => told(&journal),
        };
        output::print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    need_root("uninstall")?;
    if [JOURNAL_FOLDER, ROOT_STATE_DIRECTORY].iter().all(|folder| !root.has(folder)) {
        output::print(NOTHING)?;
        return Ok(ExitCode::SUCCESS);
    }
    let _lock = InstallLock::take(&root)?;
    let Some(journal) = Journal::load(&root)? else {
        // An installation that was cut off before its journal stood leaves at most half of that.
        Journal::remove(&root)?;
        output::print(NOTHING)?;
        return Ok(ExitCode::SUCCESS);
    };
    remove(&root, &journal)?;
    output::print("Done: svcdns is no longer part of this machine's name resolution.\n")?;
    Ok(ExitCode::SUCCESS)
}

const NOTHING: &str = "Nothing is installed.\n";

fn told(journal: &Journal) -> String {
    let mut text = String::from("This would be put back, the last one first:\n");
    for step in journal.steps.iter().rev() {
        let line = match step {
            InstallStep::Folder(path) => format!("  remove the folder {} if it is empty\n", path.display()),
            InstallStep::File(file) => format!("  {}\n", file.path.display()),
            InstallStep::Command(command) => {
                let lines: Vec<String> = command.undo.iter().map(|line| format!("  {}\n", crate::system::shell_quoted(line))).collect();
                lines.concat()
            }
        };
        text.push_str(&line);
    }
    text
}

/// Puts everything back, removes what the server kept, and forgets the journal.
pub(super) fn remove(root: &Root, journal: &Journal) -> anyhow::Result<()> {
    undo(root, journal)?;
    if let Some(left) = journal.remove_state_directory(root)? {
        output::print(&format!("{left}\n"))?;
    }
    Ok(Journal::remove(root)?)
}

/// Puts everything back.
pub(super) fn undo(root: &Root, journal: &Journal) -> anyhow::Result<()> {
    let undone = journal.undo(root);
    for line in &undone.messages {
        output::print(&format!("{line}\n"))?;
    }
    if !undone.failures.is_empty() {
        bail!(
            "not everything could be put back: {}\nWhat is still to do is kept: remove the cause and run `sudo svcdns uninstall` again",
            undone.failures.join("; ")
        );
    }
    Ok(())
}
