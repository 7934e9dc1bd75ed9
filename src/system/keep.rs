//! Restores svcdns's `nameserver` line in a resolv.conf that was rewritten.
//!
//! The result is as if `uninstall` and `install` had run: the file as the other program wrote it is
//! what `uninstall` restores, and its name servers are the new upstreams. The steps are in the
//! journal before the first of them is made, so that any interruption can be undone.

use std::ops::Range;
use std::path::Path;

use super::detect::{ResolvConfContent, ResolvConfFile};
use super::install_step::{FileStep, IfEdited, InstallStep};
use super::journal::Journal;
use super::lost_line::{LineLoss, LostLine};
use super::plan::{self, PlanError};
use super::resolv_conf_edit::{self, KeptLine, ResolvConfEdit};
use super::runtime_state;
use super::{InstallLock, JournalError, Root, RuntimeState};
use crate::resolv_conf::{Fault, RESOLV_CONF, RESOLV_CONF_BACKUP};

/// State of the `nameserver` line of an installation with `--keep`.
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

/// Reason why the `nameserver` line cannot be restored.
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
/// If the journal or the file cannot be read.
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
    let loss = LineLoss::of(&conf, |server| *server == line.server);
    let is_incomplete = conf.faults().last().is_some_and(|(_, fault)| fault == Fault::Incomplete);
    let unfinished = is_incomplete || conf.name_servers().next().is_none();
    let lost = LostLine::new(&file, loss);
    Ok(LineCheck::Removed(RemovedLine { line, lost, unfinished, file }))
}

/// Restores the `nameserver` line; returns whether another program had removed it.
///
/// The file's name servers become the upstreams, if it has any. With `unfinished`, this includes a
/// file whose writer seems not to have finished; otherwise such a file is not changed.
///
/// # Errors
/// If `install` or `uninstall` is running, another program changes the file at the same time, or
/// the system refuses. The journal can be undone in each case.
pub fn restore_line(root: &Root, unfinished: bool) -> Result<bool, RestoreError> {
    let _lock = InstallLock::take(root)?;
    let Some(mut journal) = Journal::load(root)? else { return Ok(false) };
    let LineCheck::Removed(removed) = check_journal(root, &journal)? else { return Ok(false) };
    if removed.unfinished && !unfinished {
        return Ok(false);
    }
    let RemovedLine { line, file, .. } = removed;
    if file.immutable {
        return Err(unusable("is immutable (`chattr +i`), so it is left alone".to_owned()));
    }
    journal.join_rewritten_files();
    let steps = plan::resolv_conf_steps(root, &file, &line.edit(), file.mounted)?;
    let inserted = journal.insert(steps);
    journal.save(root)?;
    let applied = journal.apply(root, inserted.clone());
    if applied.is_err() {
        journal.drop_unmade(root, inserted);
    }
    journal.join_rewritten_files();
    journal.save(root)?;
    applied?;
    Ok(true)
}

fn unusable(problem: String) -> RestoreError {
    PlanError::File { path: RESOLV_CONF.into(), problem }.into()
}

impl Journal {
    /// Inserts steps after those for resolv.conf; returns their place.
    fn insert(&mut self, steps: Vec<InstallStep>) -> Range<usize> {
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
        start..end
    }

    /// Drops the steps in this range that were not made.
    fn drop_unmade(&mut self, root: &Root, steps: Range<usize>) {
        let is_made = |step: &InstallStep| match step {
            InstallStep::File(file) => file.is_made(root),
            InstallStep::Folder(_) | InstallStep::Command(_) => true,
        };
        let start = steps.start;
        let made: Vec<_> = self.steps.drain(steps).filter(is_made).collect();
        self.steps.splice(start..start, made);
    }

    /// Merges the steps for one file into one.
    ///
    /// For the backup of resolv.conf, undo restores the state before the first step. For
    /// resolv.conf itself, undo restores the last state before svcdns's line: another program wrote
    /// it.
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

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::path_state;
    use super::*;

    const OURS: &str = "nameserver 127.0.0.1\n";

    /// Creates a machine with an installation of a kept line.
    fn installed() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for path in ["/etc", "/run", "/var/lib"] {
            fs::create_dir_all(root.path(path)).unwrap();
        }
        fs::write(root.path(RESOLV_CONF), "nameserver 192.0.2.1\n").unwrap();
        let line =
            KeptLine { server: [127, 0, 0, 1].into(), search: Vec::new(), keep_nameservers: false };
        let _lock = InstallLock::take(&root).unwrap();
        let file = ResolvConfFile::read(&root, &RuntimeState::default());
        let steps = plan::resolv_conf_steps(&root, &file, &line.edit(), false).unwrap();
        let mut journal = Journal::new(String::new(), steps);
        (journal.keep, journal.complete) = (Some(line), true);
        journal.save(&root).unwrap();
        journal.apply(&root, 0..journal.steps.len()).unwrap();
        (folder, root)
    }

    fn text(root: &Root, path: &str) -> String {
        fs::read_to_string(root.path(path)).unwrap_or_default()
    }

    /// Undoes the journal, and fails the test unless the file is as the other program wrote it.
    fn assert_undone(root: &Root, written: &str) {
        let journal = Journal::load(root).unwrap().unwrap();
        let report = journal.undo(root);
        assert!(report.failures.is_empty(), "{report:?}");
        assert_eq!(text(root, RESOLV_CONF), written, "{report:?}");
        assert!(!root.has(RESOLV_CONF_BACKUP), "{report:?}");
    }

    #[test]
    fn a_restoration_interrupted_at_any_step_can_be_undone() {
        let written = "search a.test\nnameserver 192.0.2.2\noptions edns0\n";
        for applied in 0..=3 {
            let (_folder, root) = installed();
            fs::write(root.path(RESOLV_CONF), written).unwrap();
            if applied == 3 {
                assert!(restore_line(&root, true).unwrap());
                assert!(text(&root, RESOLV_CONF).contains(OURS));
                assert_eq!(text(&root, RESOLV_CONF_BACKUP), written);
            } else {
                let mut journal = Journal::load(&root).unwrap().unwrap();
                let LineCheck::Removed(removed) = check_line(&root).unwrap() else { panic!() };
                let edit = removed.line.edit();
                let steps = plan::resolv_conf_steps(&root, &removed.file, &edit, false).unwrap();
                let inserted = journal.insert(steps);
                journal.save(&root).unwrap();
                journal.apply(&root, inserted.start..inserted.start + applied).unwrap();
            }
            assert_undone(&root, written);
        }
    }

    #[test]
    fn an_unfinished_file_is_not_changed() {
        let (_folder, root) = installed();
        for unfinished in ["", "# Generated by dhclient\n", "nameserver 192.0.2.2\nnames"] {
            fs::write(root.path(RESOLV_CONF), unfinished).unwrap();
            assert!(!restore_line(&root, false).unwrap(), "{unfinished:?}");
            assert_eq!(text(&root, RESOLV_CONF), unfinished);
        }
        fs::write(root.path(RESOLV_CONF), "nameserver 192.0.2.2\n").unwrap();
        assert!(restore_line(&root, false).unwrap());
        assert!(text(&root, RESOLV_CONF).contains(OURS));
    }

    #[test]
    fn the_report_tells_a_lost_search_list_from_a_lost_name_server() {
        let (_folder, root) = installed();
        let mut journal = Journal::load(&root).unwrap().unwrap();
        journal.keep.as_mut().unwrap().search = vec!["svc".to_owned()];
        let _lock = InstallLock::take(&root).unwrap();
        journal.save(&root).unwrap();
        for (text, lost) in [
            ("nameserver 127.0.0.1\n", "svcdns, but not its zones as search domains"),
            ("nameserver 192.0.2.1\n", "192.0.2.1, not svcdns"),
            (
                "nameserver 192.0.2.1\nnameserver 127.0.0.1\n",
                "192.0.2.1, 127.0.0.1 before or beside svcdns",
            ),
            ("", "no server"),
        ] {
            fs::write(root.path(RESOLV_CONF), text).unwrap();
            let LineCheck::Removed(removed) = check_line(&root).unwrap() else { panic!() };
            assert_eq!(removed.lost.to_string(), format!("/etc/resolv.conf names {lost}"));
        }
    }

    #[test]
    fn the_journal_stays_bounded_and_undo_restores_the_last_rewritten_file() {
        let (_folder, root) = installed();
        for last in 2..20 {
            let written = format!("nameserver 192.0.2.{last}\n");
            fs::write(root.path(RESOLV_CONF), &written).unwrap();
            assert!(restore_line(&root, true).unwrap());
            assert!(!restore_line(&root, true).unwrap());
            assert_eq!(text(&root, RESOLV_CONF_BACKUP), written);
            assert_eq!(Journal::load(&root).unwrap().unwrap().steps.len(), 2);
        }
        // A file that names no server leaves the upstreams as they were.
        fs::write(root.path(RESOLV_CONF), "# none\n").unwrap();
        assert!(restore_line(&root, true).unwrap());
        assert_eq!(text(&root, RESOLV_CONF_BACKUP), "nameserver 192.0.2.19\n");
        // So does one that names only svcdns.
        let mut journal = Journal::load(&root).unwrap().unwrap();
        journal.keep.as_mut().unwrap().search = vec!["svc".to_owned()];
        let lock = InstallLock::take(&root).unwrap();
        journal.save(&root).unwrap();
        drop(lock);
        fs::write(root.path(RESOLV_CONF), OURS).unwrap();
        assert!(restore_line(&root, true).unwrap());
        assert!(text(&root, RESOLV_CONF).contains("search svc\n"));
        assert_eq!(text(&root, RESOLV_CONF_BACKUP), "nameserver 192.0.2.19\n");
        // A link is replaced, and its target left alone.
        fs::write(root.path("/run/vpn.conf"), "nameserver 192.0.2.7\n").unwrap();
        fs::remove_file(root.path(RESOLV_CONF)).unwrap();
        symlink("../run/vpn.conf", root.path(RESOLV_CONF)).unwrap();
        assert!(restore_line(&root, true).unwrap());
        assert!(text(&root, RESOLV_CONF).contains(OURS));
        assert_undone(&root, "nameserver 192.0.2.7\n");
        assert!(fs::read_link(root.path(RESOLV_CONF)).is_ok());
    }

    #[test]
    fn a_failed_restoration_keeps_the_journal_of_completed_steps() {
        let (_folder, root) = installed();
        let written = "nameserver 192.0.2.2\n";
        fs::write(root.path(RESOLV_CONF), written).unwrap();
        let before = Journal::load(&root).unwrap().unwrap();
        // The new file cannot be created.
        let obstacle = path_state::temporary_path(&root.path(RESOLV_CONF));
        fs::create_dir(&obstacle).unwrap();
        for _ in 0..3 {
            let error = restore_line(&root, true).unwrap_err();
            assert!(error.to_string().starts_with("/etc/resolv.conf: "), "{error}");
            assert_eq!(text(&root, RESOLV_CONF), written);
            let now = Journal::load(&root).unwrap().unwrap();
            assert!(now.steps.contains(&before.steps[1]), "the step for the file: {now:?}");
            // The copy, which was made, is removed by `uninstall`.
            assert_eq!(text(&root, RESOLV_CONF_BACKUP), written);
            assert_eq!(now.steps.len(), 2, "{now:?}");
        }
        fs::remove_dir(&obstacle).unwrap();
        assert_undone(&root, written);
    }

    #[test]
    fn a_link_that_another_user_can_change_is_refused() {
        let (_folder, root) = installed();
        let secret = "nameserver 192.0.2.66\n";
        for path in ["/home", "/run/vpn"] {
            fs::create_dir(root.path(path)).unwrap();
        }
        fs::write(root.path("/etc/secret"), secret).unwrap();
        let (conf, copy) = (root.path(RESOLV_CONF), text(&root, RESOLV_CONF_BACKUP));
        let link = |from: &str, to: &str| {
            let _ = fs::remove_file(root.path(from));
            symlink(to, root.path(from)).unwrap();
        };
        let loosen = |path: &str| {
            fs::set_permissions(root.path(path), Permissions::from_mode(0o777)).unwrap();
        };
        loosen("/home");
        loosen("/run/vpn");
        let is_refused = |path: &str| {
            let before = fs::read_link(&conf).unwrap();
            let error = restore_line(&root, true).unwrap_err().to_string();
            assert!(error.contains(&format!("because {path} can be written to")), "{error}");
            assert_eq!(fs::read_link(&conf).unwrap(), before);
            assert_eq!(text(&root, "/etc/secret"), secret);
            assert_eq!(text(&root, RESOLV_CONF_BACKUP), copy);
        };

        // The file that is edited, or the way to it.
        fs::write(root.path("/home/conf"), "nameserver 192.0.2.3\n").unwrap();
        link(RESOLV_CONF, "../home/conf");
        is_refused("/home");
        link("/home/conf", "../etc/secret");
        is_refused("/home");
        // The link would be replaced, but another user has chosen the file that is read.
        link("/run/vpn/conf", "../../etc/secret");
        link(RESOLV_CONF, "../run/vpn/conf");
        is_refused("/run/vpn");
        fs::write(root.path("/run/secret"), secret).unwrap();
        link("/home/conf", "../run/secret");
        link(RESOLV_CONF, "../home/conf");
        is_refused("/home");

        // A manager that is not root links within its directory, as systemd-resolved does.
        fs::write(root.path("/run/vpn/other"), "nameserver 192.0.2.4\n").unwrap();
        link("/run/vpn/conf", "other");
        link(RESOLV_CONF, "../run/vpn/conf");
        assert!(restore_line(&root, true).unwrap());
        assert_eq!(text(&root, "/run/vpn/other"), "nameserver 192.0.2.4\n");
        assert_eq!(text(&root, RESOLV_CONF_BACKUP), "nameserver 192.0.2.4\n");
        // A link into /run is replaced wherever it leads.
        link("/run/conf", "../etc/secret");
        link(RESOLV_CONF, "../run/conf");
        assert!(restore_line(&root, true).unwrap());
        assert!(fs::read_link(&conf).is_err());
        assert_eq!(text(&root, "/etc/secret"), secret);
    }

    #[test]
    fn a_link_to_a_mounted_file_is_replaced() {
        let (_folder, root) = installed();
        let written = "nameserver 192.0.2.5\n";
        fs::write(root.path("/run/mounted"), written).unwrap();
        fs::remove_file(root.path(RESOLV_CONF)).unwrap();
        symlink("../run/mounted", root.path(RESOLV_CONF)).unwrap();
        let LineCheck::Removed(removed) = check_line(&root).unwrap() else { panic!() };
        let edit = removed.line.edit();
        let steps = plan::resolv_conf_steps(&root, &removed.file, &edit, true).unwrap();
        let journal = Journal::new(String::new(), steps);
        journal.apply(&root, 0..journal.steps.len()).unwrap();
        assert_eq!(text(&root, "/run/mounted"), written);
        assert!(text(&root, RESOLV_CONF).contains(OURS));
        journal.undo(&root);
        assert_eq!(fs::read_link(root.path(RESOLV_CONF)).unwrap(), Path::new("../run/mounted"));
    }

    #[test]
    fn keep_changes_nothing_during_an_installation_or_without_one() {
        let (_folder, root) = installed();
        fs::write(root.path(RESOLV_CONF), "nameserver 192.0.2.2\n").unwrap();
        let lock = InstallLock::take(&root).unwrap();
        let error = restore_line(&root, true).unwrap_err();
        assert!(matches!(error, RestoreError::Journal(JournalError::Locked(_))), "{error}");
        drop(lock);
        let mut journal = Journal::load(&root).unwrap().unwrap();
        journal.complete = false;
        journal.save(&root).unwrap();
        assert!(matches!(check_line(&root).unwrap(), LineCheck::Changing));
        assert!(!restore_line(&root, true).unwrap());
        journal.keep = None;
        journal.save(&root).unwrap();
        assert!(matches!(check_line(&root).unwrap(), LineCheck::NotInstalled));
    }
}
