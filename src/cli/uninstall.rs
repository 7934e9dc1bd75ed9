//! `svcdns uninstall`.

use std::process::ExitCode;

use anyhow::bail;

use super::arguments::Uninstall;
use super::output;
use super::privilege::need_root;
use crate::directory::ROOTS_STATE;
use crate::system::{FOLDER, Journal, Lock, Root, Step};

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
    if [FOLDER, ROOTS_STATE].iter().all(|folder| !root.has(folder)) {
        output::print(NOTHING)?;
        return Ok(ExitCode::SUCCESS);
    }
    let _lock = Lock::take(&root)?;
    let Some(journal) = Journal::load(&root)? else {
        // An installation that was cut off before its journal stood leaves at most half of that.
        Journal::forget(&root)?;
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
            Step::Folder(path) => format!("  remove the folder {} if it is empty\n", path.display()),
            Step::File(file) => format!("  {}\n", file.path.display()),
            Step::Command(command) => {
                let lines: Vec<String> = command.undo.iter().map(|line| format!("  {}\n", crate::system::command_line(line))).collect();
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
    if let Some(left) = journal.remove_state(root)? {
        output::print(&format!("{left}\n"))?;
    }
    Ok(Journal::forget(root)?)
}

/// Puts everything back.
pub(super) fn undo(root: &Root, journal: &Journal) -> anyhow::Result<()> {
    let undone = journal.undo(root);
    for line in &undone.told {
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
