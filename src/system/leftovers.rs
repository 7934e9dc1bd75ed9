//! What an installation leaves behind that no journal records.
//!
//! A program that saved resolv.conf while svcdns was installed may restore it after `uninstall`,
//! and someone may remove the journal, or restore /etc from a backup. The marks in our own files
//! and lines are then enough to remove them.

use std::io::ErrorKind;
use std::path::Path;
use std::{fmt, fs};

use super::detect::{Machine, Resolvconf};
use super::install_step::{FileStep, IfEdited, InstallStep};
use super::journal::Journal;
use super::journal_error::{JOURNAL, JournalError, at};
use super::journal_folder::FORMER_JOURNAL;
use super::path_state::PathState;
use super::plan::{DROP_INS, leftover_link, leftover_record, unit_steps};
use super::unit::{self, HEADING, HOOK};
use super::{Root, resolv_conf_edit};
use crate::resolv_conf::{RESOLV_CONF, RESOLV_CONF_BACKUP};

/// What an installation left behind.
///
/// Displays as a list for a sentence.
#[derive(Debug)]
pub struct Leftovers {
    names: Vec<String>,
    /// A journal whose undo removes them.
    pub journal: Journal,
}

impl Leftovers {
    /// Finds files, lines, links and records of svcdns, whether a journal records them or not.
    ///
    /// # Errors
    /// If one of the files cannot be read.
    pub fn find(root: &Root, machine: &Machine) -> Result<Option<Self>, JournalError> {
        let (mut names, mut steps) = (Vec::new(), Vec::new());
        for drop_in in DROP_INS {
            if let Some(file) = own_file(root, Path::new(drop_in.path))? {
                names.push(drop_in.path.to_owned());
                steps.extend([drop_in.undo_step(), InstallStep::File(file)]);
            }
        }
        for name in [HOOK, unit::SERVER, unit::KEEP] {
            let path = Path::new(unit::FOLDER).join(name);
            if let Some(file) = own_file(root, &path)? {
                names.push(path.display().to_string());
                let file = vec![InstallStep::File(file)];
                steps.extend(if machine.systemd { unit_steps(name, file) } else { file });
            }
        }
        if let Some(file) = own_file(root, Path::new(unit::BRIDGE_DROP_IN))? {
            names.push(unit::BRIDGE_DROP_IN.to_owned());
            steps.push(InstallStep::File(file));
        }
        if let Some(step) = leftover_link(root) {
            names.push("its network link".to_owned());
            steps.push(step);
        }
        let is_openresolv = machine.resolvconf == Some(Resolvconf::Openresolv);
        let record = leftover_record(root, is_openresolv);
        if !record.is_empty() {
            names.push("its record in resolvconf".to_owned());
            steps.extend(record);
        }
        if let Some(file) = own_lines(root, machine)? {
            names.push(format!("lines in {}", file.path.display()));
            steps.push(InstallStep::File(file));
        }
        if steps.is_empty() {
            return Ok(None);
        }
        // `uninstall` keeps a backup that the user has edited.
        if !Self::are_recorded(root) {
            let path = Path::new(RESOLV_CONF_BACKUP);
            let backup = PathState::read(&root.path(path)).map_err(at(path))?;
            if backup != PathState::Absent {
                steps.insert(0, InstallStep::File(removal(path, backup)));
            }
        }
        Ok(Some(Self { names, journal: Journal::new(String::new(), steps) }))
    }

    /// Returns whether this machine has a journal, or might have one.
    pub fn are_recorded(root: &Root) -> bool {
        [JOURNAL, FORMER_JOURNAL].iter().any(|journal| may_exist(root, Path::new(journal)))
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names.join(", "))
    }
}

/// Returns whether a file exists, or might: only root can see every file.
fn may_exist(root: &Root, path: &Path) -> bool {
    match fs::metadata(root.path(path)) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}

/// Returns the step whose undo removes a file of ours; `None` if the file is not ours.
fn own_file(root: &Root, path: &Path) -> Result<Option<FileStep>, JournalError> {
    let real = root.path(path);
    // Only a regular file can be ours.
    if !fs::symlink_metadata(&real).is_ok_and(|metadata| metadata.is_file()) {
        return Ok(None);
    }
    let now = PathState::read(&real).map_err(at(path))?;
    let is_ours = now.content().is_some_and(|content| content.starts_with(HEADING.as_bytes()));
    Ok(is_ours.then(|| removal(path, now)))
}

/// Returns a step that wrote this file, which was absent before.
fn removal(path: &Path, now: PathState) -> FileStep {
    let is_edited = path == unit::server_path()
        && !now.content().is_some_and(|content| unit::is_current(path, content));
    FileStep {
        path: path.to_owned(),
        before: PathState::Absent,
        // The undo saves an edited file for the user.
        after: if is_edited { PathState::Absent } else { now },
        if_edited: IfEdited::SetAside,
        in_place: false,
    }
}

/// Returns the step whose undo removes our lines from resolv.conf; `None` without such lines.
fn own_lines(root: &Root, machine: &Machine) -> Result<Option<FileStep>, JournalError> {
    let file = &machine.file;
    if !resolv_conf_edit::has_our_lines(file.bytes()) {
        return Ok(None);
    }
    let after = PathState::read(&root.path(&file.target)).map_err(at(RESOLV_CONF))?;
    let before = resolv_conf_edit::original(&after);
    Ok(Some(FileStep {
        path: file.target.clone(),
        before,
        after,
        if_edited: IfEdited::OwnLines,
        in_place: file.mounted,
    }))
}
