//! `svcdns uninstall`: undoes what `install` changed.

use std::process::ExitCode;

use anyhow::bail;

use super::arguments::UninstallArgs;
use super::output;
use super::privilege::{lock_machine, require_root};
use crate::directory::ROOT_STATE_DIRECTORY;
use crate::system::{self, InstallStep, JOURNAL_FOLDER, Journal, Leftovers, Root, RuntimeState};

pub(super) fn run(command: &UninstallArgs) -> anyhow::Result<ExitCode> {
    let root = Root::default();
    if command.dry_run {
        let text = match (Journal::load(&root)?, leftovers(&root)?) {
            (Some(journal), _) => dry_run(&journal),
            (None, Some(leftovers)) => announce(&leftovers) + &dry_run(&leftovers.journal),
            (None, None) => NOTHING_INSTALLED.to_owned(),
        };
        output::print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    require_root("uninstall")?;
    let is_known = [JOURNAL_FOLDER, ROOT_STATE_DIRECTORY].iter().any(|folder| root.has(folder));
    if !is_known && leftovers(&root)?.is_none() {
        output::print(NOTHING_INSTALLED)?;
        return Ok(ExitCode::SUCCESS);
    }
    let _lock = lock_machine(&root)?;
    let Some(journal) = load(&root)? else {
        // An installation that was interrupted while it wrote its journal has changed nothing else.
        Journal::remove(&root)?;
        output::print(NOTHING_INSTALLED)?;
        return Ok(ExitCode::SUCCESS);
    };
    remove(&root, &journal)?;
    output::print("Done: svcdns is no longer part of this machine's name resolution.\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Output if there is nothing to undo.
const NOTHING_INSTALLED: &str = "Nothing is installed.\n";

/// Loads the journal, or creates and saves one of leftovers if there are any.
///
/// The caller must hold the lock.
pub(super) fn load(root: &Root) -> anyhow::Result<Option<Journal>> {
    if let Some(journal) = Journal::load(root)? {
        return Ok(Some(journal));
    }
    let Some(found) = leftovers(root)? else { return Ok(None) };
    output::print(&announce(&found))?;
    found.journal.save(root)?;
    Ok(Some(found.journal))
}

/// Finds what an installation left behind.
pub(super) fn leftovers(root: &Root) -> anyhow::Result<Option<Leftovers>> {
    Ok(Leftovers::find(root, &system::detect(root, &RuntimeState::now()))?)
}

/// Formats the reason why something is removed although no journal records it.
fn announce(leftovers: &Leftovers) -> String {
    format!("No installation is recorded, but svcdns left this behind: {leftovers}.\n")
}

/// Formats the steps that `uninstall` would undo.
fn dry_run(journal: &Journal) -> String {
    let mut text = String::from("This would be restored, in this order:\n");
    for step in journal.steps.iter().rev() {
        let line = match step {
            InstallStep::Folder(path) => {
                format!("  remove the directory {}, if it is empty\n", path.display())
            }
            InstallStep::File(file) => format!("  {}\n", file.path.display()),
            InstallStep::Command(command) => {
                let lines: Vec<String> = command
                    .undo
                    .iter()
                    .map(|line| format!("  {}\n", system::shell_quoted(line)))
                    .collect();
                lines.concat()
            }
        };
        text.push_str(&line);
    }
    text
}

/// Undoes all steps, then removes the server's state and the journal.
pub(super) fn remove(root: &Root, journal: &Journal) -> anyhow::Result<()> {
    undo(root, journal)?;
    if let Some(left) = journal.remove_state_directory(root)? {
        output::print(&format!("{left}\n"))?;
    }
    Ok(Journal::remove(root)?)
}

/// Undoes all steps of the journal, then removes what is left elsewhere.
///
/// # Errors
/// If a step cannot be undone; the other steps are undone, and the journal remains.
pub(super) fn undo(root: &Root, journal: &Journal) -> anyhow::Result<()> {
    undo_steps(root, journal)?;
    // For example, our lines may be in a copy that has replaced the recorded file.
    if let Some(found) = leftovers(root)? {
        undo_steps(root, &found.journal)?;
    }
    Ok(())
}

fn undo_steps(root: &Root, journal: &Journal) -> anyhow::Result<()> {
    let undone = journal.undo(root);
    for line in &undone.messages {
        output::print(&format!("{line}\n"))?;
    }
    if !undone.failures.is_empty() {
        bail!(
            "not everything could be restored: {}\nRemove the cause and run `sudo svcdns \
             uninstall` again: it restores the rest",
            undone.failures.join("; ")
        );
    }
    Ok(())
}
