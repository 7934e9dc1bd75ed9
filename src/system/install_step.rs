//! The steps of an installation, which a journal records; each can be undone.
//!
//! A step records the state before and after it, but not whether it was made: undo compares both
//! with the current state.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::command::{self, RunError};
use super::journal_error::{JournalError, at};
use super::journal_folder::JOURNAL_FOLDER;
use super::path_state::{self, PathState};
use super::{Root, resolv_conf_edit};

/// A change to the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstallStep {
    /// A new directory.
    Folder(PathBuf),
    /// Creation, change or replacement of a file or link.
    File(FileStep),
    /// Commands that `install` runs, with commands that undo them.
    Command(CommandStep),
}

/// Creation, change or replacement of a file or link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileStep {
    /// The path.
    pub path: PathBuf,
    /// The state before the step.
    pub before: PathState,
    /// The state after the step.
    pub after: PathState,
    /// Action on undo if the file has been edited since the step.
    #[serde(rename = "edited")]
    pub if_edited: IfEdited,
    /// Whether the file is written in place, because it is a mount point.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
}

/// Action on undo if a file has been edited since the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IfEdited {
    /// Removes only svcdns's lines, from a file that others own.
    OwnLines,
    /// Keeps the file, which the user owns now.
    Keep,
    /// Moves the file to the journal's directory, where it has no effect.
    SetAside,
}

/// Commands that `install` runs, with commands that undo them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct CommandStep {
    /// Effect of the commands, as a headline for the user.
    pub purpose: String,
    /// The commands of the step, in order.
    pub run: Vec<Vec<String>>,
    /// The commands that undo the step, in order.
    ///
    /// The commands must be harmless if the step was not done.
    pub undo: Vec<Vec<String>>,
    /// A command that succeeds if there is something to undo; empty to always undo.
    pub undo_if: Vec<String>,
}

impl InstallStep {
    /// Makes the change.
    pub(super) fn apply(&self, root: &Root) -> Result<(), JournalError> {
        match self {
            Self::Folder(path) => {
                let folder = root.path(path);
                DirBuilder::new().mode(0o755).create(&folder).map_err(at(path))?;
                // The umask may keep other users from reading the files in it.
                fs::set_permissions(&folder, Permissions::from_mode(0o755)).map_err(at(path))?;
                path_state::sync_folder(folder.parent().unwrap_or_else(|| Path::new("/")))
                    .map_err(at(path))
            }
            Self::File(file) => {
                let path = root.path(&file.path);
                let now = PathState::read(&path).map_err(at(&file.path))?;
                if !now.has_same_content(&file.before) {
                    return Err(JournalError::Changed(file.path.clone()));
                }
                file.after.write(&path, file.in_place).map_err(at(&file.path))
            }
            Self::Command(step) => {
                Ok(step.run.iter().try_for_each(|words| command::run(words).map(drop))?)
            }
        }
    }

    /// Undoes the step; returns a message for the user, if any.
    pub(super) fn undo(&self, root: &Root) -> Result<Option<String>, JournalError> {
        match self {
            Self::Folder(path) => {
                let gone = path_state::remove_empty_folder(&root.path(path)).map_err(at(path))?;
                Ok((!gone).then(|| format!("{}: kept, other files are in it", path.display())))
            }
            Self::File(file) => file.undo(root),
            Self::Command(step) => step.undo(),
        }
    }
}

impl CommandStep {
    fn undo(&self) -> Result<Option<String>, JournalError> {
        if !self.undo_if.is_empty() && command::run(&self.undo_if).is_err() {
            return Ok(None);
        }
        for words in &self.undo {
            match command::run(words) {
                Ok(_) => {}
                // The program was uninstalled, and its settings with it.
                Err(error) if matches!(error.cause, RunError::NotStarted(_)) => {
                    return Ok(Some(error.to_string()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

impl FileStep {
    /// Returns whether the file has the content of this step.
    ///
    /// After an interrupted write in place, it may have only a part of that content. A file that
    /// cannot be read counts as written.
    pub(super) fn is_made(&self, root: &Root) -> bool {
        let Ok(now) = PathState::read(&root.path(&self.path)) else { return true };
        let is_partly_made = || {
            self.in_place
                && !now.has_same_content(&self.before)
                && now
                    .content()
                    .is_some_and(|now| is_interrupted_write(now, &self.after, &self.before))
        };
        now.has_same_content(&self.after) || is_partly_made()
    }

    fn undo(&self, root: &Root) -> Result<Option<String>, JournalError> {
        let name = self.path.display();
        let path = root.path(&self.path);
        if !self.in_place {
            path_state::remove(&path_state::temporary_path(&path)).map_err(at(&self.path))?;
        }
        let now = PathState::read(&path).map_err(at(&self.path))?;
        let restore = |state: &PathState| state.write(&path, self.in_place).map_err(at(&self.path));
        // An earlier installation may have left its lines in the file.
        let before = match self.if_edited {
            IfEdited::OwnLines => &resolv_conf_edit::original(&self.before),
            IfEdited::Keep | IfEdited::SetAside => &self.before,
        };
        if now == *before {
            return Ok(None);
        }
        if [&self.after, &self.before, before].iter().any(|state| now.has_same_content(state)) {
            restore(before)?;
            let done = if *before == PathState::Absent { "removed" } else { "restored" };
            return Ok(Some(format!("{name}: {done}")));
        }
        let Some(content) = now.content() else {
            return Ok(Some(format!("{name}: kept, because it has been replaced since")));
        };
        match self.if_edited {
            IfEdited::OwnLines
                if self.in_place
                    && (is_interrupted_write(content, &self.after, &self.before)
                        || is_interrupted_write(content, before, &self.after)) =>
            {
                restore(before)?;
                Ok(Some(format!("{name}: restored")))
            }
            IfEdited::OwnLines if resolv_conf_edit::has_our_lines(content) => {
                let rest = resolv_conf_edit::remove_lines(content);
                if rest.trim_ascii().is_empty() && *before == PathState::Absent {
                    restore(&PathState::Absent)?;
                } else if before.content() == Some(&rest) {
                    restore(before)?;
                } else {
                    restore(&now.with_content(rest))?;
                }
                let link = match before {
                    PathState::Link { target, .. } => {
                        format!(" (before the installation, it was a link to {})", target.display())
                    }
                    _ => String::new(),
                };
                Ok(Some(format!(
                    "{name}: removed only the lines of svcdns, because it has been edited \
                     since{link}"
                )))
            }
            IfEdited::OwnLines => Ok(Some(format!(
                "{name}: kept, because it has been rewritten since, without the lines of svcdns; \
                 should its author restore a copy that has them, run `sudo svcdns uninstall` again"
            ))),
            IfEdited::Keep => Ok(Some(format!("{name}: kept, because it has been edited since"))),
            IfEdited::SetAside => {
                let aside =
                    Path::new(JOURNAL_FOLDER).join(self.path.file_name().unwrap_or_default());
                now.write(&root.path(&aside), false).map_err(at(&aside))?;
                restore(before)?;
                Ok(Some(format!(
                    "{name}: moved to {}, because it has been edited since",
                    aside.display()
                )))
            }
        }
    }
}

/// Returns whether a write of `new` over `old`, in place, was interrupted.
///
/// `content` then has the start of `new` and the rest of `old`.
fn is_interrupted_write(content: &[u8], new: &PathState, old: &PathState) -> bool {
    let (Some(new), Some(old)) = (new.content(), old.content()) else { return false };
    let written = new.iter().zip(content).take_while(|(one, other)| one == other).count();
    if content.len() > old.len() {
        content.len() == written
    } else {
        content.len() == old.len() && content[written..] == old[written..]
    }
}
