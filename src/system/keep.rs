//! Puts the line of svcdns back into a resolv.conf that another program has rewritten.
//!
//! The result is as if `uninstall` and `install` had run: the file as the other program wrote it is
//! what `uninstall` restores, and its name servers are the new upstreams. The steps are in the
//! journal before the first of them is made, so that any interruption can be undone.

use std::path::Path;

use super::detect::{ResolvConfContent, ResolvConfFile};
use super::journal::{FileStep, IfEdited, InstallStep, Journal};
use super::lost_line::LostLine;
use super::plan::{self, PlanError};
use super::resolv_conf_edit::{self, KeptLine, ResolvConfEdit};
use super::runtime_state;
use super::{InstallLock, JournalError, Root, RuntimeState};
use crate::resolv_conf::{Fault, RESOLV_CONF, RESOLV_CONF_BACKUP};

/// What has to be done about the kept line.
#[derive(Debug)]
pub enum LineCheck {
    /// Nothing is installed with `--keep`.
    NotInstalled,
    /// `install` or `uninstall` has not completed.
    Changing,
    /// The line is in effect.
    InEffect,
    /// Another program has removed the line.
    Removed(RemovedLine),
}

/// A line that another program has removed.
#[derive(Debug)]
pub struct RemovedLine {
    /// The line.
    pub line: KeptLine,
    /// The file without it, for messages.
    pub lost: LostLine,
    /// Whether the file looks as if its writer had not finished: empty, missing or incomplete.
    pub unfinished: bool,
    file: ResolvConfFile,
}

/// Reason why the line cannot be put back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The file cannot be changed.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Checks whether the kept line is in effect.
///
/// # Errors
/// When the journal or the file cannot be read.
pub fn check_line(root: &Root) -> Result<LineCheck, RestoreError> {
    match Journal::load(root)? {
        Some(journal) => check_journal(root, &journal),
        None => Ok(LineCheck::NotInstalled),
    }
}

fn check_journal(root: &Root, journal: &Journal) -> Result<LineCheck, RestoreError> {
    let Some(line) = journal.keep.clone() else { return Ok(LineCheck::NotInstalled) };
    if !journal.complete {
        return Ok(LineCheck::Changing);
    }
    let state = RuntimeState { mounts: runtime_state::mounts(), ..RuntimeState::default() };
    let file = ResolvConfFile::read(root, &state);
    match &file.content {
        ResolvConfContent::File(_) | ResolvConfContent::Missing => {}
        ResolvConfContent::Unreadable(error) => {
            return Err(unusable(format!("cannot be read: {error}")));
        }
        ResolvConfContent::NotAFile => return Err(unusable("is not a file".to_owned())),
        ResolvConfContent::TooLong => {
            return Err(unusable("is too long for a resolv.conf".to_owned()));
        }
    }
    let conf = file.conf();
    if resolv_conf_edit::is_in_effect(&conf, &ResolvConfEdit { keep_others: true, ..line.edit() }) {
        return Ok(LineCheck::InEffect);
    }
    let named_later = conf.name_servers().any(|server| server.address == line.server);
    let is_incomplete = conf.faults().last().is_some_and(|(_, fault)| fault == Fault::Incomplete);
    let unfinished = is_incomplete || conf.name_servers().next().is_none();
    let lost = LostLine::new(&file, named_later);
    Ok(LineCheck::Removed(RemovedLine { line, lost, unfinished, file }))
}

/// Puts the kept line back; returns whether another program had removed it.
///
/// The file's name servers become the upstreams, if it has any.
///
/// # Errors
/// When `install` or `uninstall` runs now, another program changes the file now, or the system
/// refuses. The journal can be undone in each case.
pub fn restore_line(root: &Root) -> Result<bool, RestoreError> {
    let _lock = InstallLock::take(root)?;
    let Some(mut journal) = Journal::load(root)? else { return Ok(false) };
    let LineCheck::Removed(removed) = check_journal(root, &journal)? else { return Ok(false) };
    let RemovedLine { line, file, .. } = removed;
    if file.immutable {
        return Err(unusable("is immutable (`chattr +i`), so it is left alone".to_owned()));
    }
    journal.join_rewritten_files();
    let steps = plan::resolv_conf_steps(root, &file, &line.edit(), file.mounted)?;
    let applied = journal.insert_and_apply(root, steps);
    journal.join_rewritten_files();
    journal.save(root)?;
    applied?;
    Ok(true)
}

fn unusable(problem: String) -> RestoreError {
    PlanError::File { path: RESOLV_CONF.into(), problem }.into()
}

impl Journal {
    /// Inserts steps after those for resolv.conf, and applies them.
    fn insert_and_apply(
        &mut self,
        root: &Root,
        steps: Vec<InstallStep>,
    ) -> Result<(), JournalError> {
        let is_of_resolv_conf = |step: &InstallStep| match step {
            InstallStep::File(file) => is_backup(file) || file.if_edited == IfEdited::OwnLines,
            InstallStep::Folder(_) | InstallStep::Command(_) => false,
        };
        let start = self
            .steps
            .iter()
            .rposition(is_of_resolv_conf)
            .map_or(self.steps.len(), |position| position + 1);
        let end = start + steps.len();
        self.steps.splice(start..start, steps);
        self.save(root)?;
        self.apply(root, start..end)
    }

    /// Makes one step of several for the same file.
    ///
    /// Of the backup of resolv.conf, the state before the first step is restored. Of resolv.conf
    /// itself, only the last state before svcdns's line matters: another program wrote it.
    fn join_rewritten_files(&mut self) {
        let mut joined: Vec<InstallStep> = Vec::with_capacity(self.steps.len());
        for mut step in std::mem::take(&mut self.steps) {
            if let InstallStep::File(new) = &mut step {
                let is_same = |earlier: &InstallStep| match earlier {
                    InstallStep::File(earlier) => {
                        earlier.path == new.path
                            && (is_backup(new) || new.if_edited == IfEdited::OwnLines)
                    }
                    InstallStep::Folder(_) | InstallStep::Command(_) => false,
                };
                if let Some(position) = joined.iter().position(is_same)
                    && let InstallStep::File(earlier) = joined.remove(position)
                    && is_backup(new)
                {
                    new.before = earlier.before;
                }
            }
            joined.push(step);
        }
        self.steps = joined;
    }
}

/// Returns whether a step writes the copy of the original resolv.conf.
fn is_backup(file: &FileStep) -> bool {
    file.path == Path::new(RESOLV_CONF_BACKUP)
}
