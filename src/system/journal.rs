//! The journal: the changes of `install`, on disk before the first of them is made.
//!
//! Undoing a step compares the states before and after it with the current one. An installation can
//! therefore be undone wherever it, or an earlier undo, was interrupted.

use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::install_step::{FileStep, InstallStep};
use super::journal_error::{JOURNAL, JournalError, at};
use super::journal_folder::{self, FORMER_JOURNAL};
use super::path_state::{FileState, PathState};
use super::resolv_conf_edit::KeptLine;
use super::{Root, nscd, unit};

/// The version of the journal's format; a journal with another one is not read.
const JOURNAL_FORMAT: u32 = 1;

/// The steps of an installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Journal {
    #[serde(rename = "form")]
    format: u32,
    /// The settings of the installation; `install` with the same ones does nothing.
    pub purpose: String,
    /// The steps, in order.
    pub steps: Vec<InstallStep>,
    /// Whether all steps were done and the final lookup succeeded.
    pub complete: bool,
    /// The `nameserver` line to restore when another program removes it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<KeptLine>,
    /// Whether an older version wrote the journal, at another path.
    #[serde(skip)]
    former: bool,
}

/// The result of undoing a journal.
#[derive(Debug, Default)]
pub struct UndoReport {
    /// A line for each undone step and each kept file.
    pub messages: Vec<String>,
    /// The steps that could not be undone, with the reason; undoing can be repeated.
    pub failures: Vec<String>,
}

impl Journal {
    /// Creates a journal of steps that have not been done.
    pub fn new(purpose: String, steps: Vec<InstallStep>) -> Self {
        Self { format: JOURNAL_FORMAT, purpose, steps, complete: false, keep: None, former: false }
    }

    /// Loads this machine's journal, if any.
    ///
    /// # Errors
    /// If the journal cannot be read, or cannot be trusted.
    pub fn load(root: &Root) -> Result<Option<Self>, JournalError> {
        if let Some(journal) = Self::read(root, Path::new(JOURNAL))? {
            return Ok(Some(journal));
        }
        let former = Self::read(root, Path::new(FORMER_JOURNAL))?;
        Ok(former.map(|journal| Self { former: true, ..journal }))
    }

    fn read(root: &Root, path: &Path) -> Result<Option<Self>, JournalError> {
        let file = root.path(root.follow(path).map_err(at(path))?);
        match fs::symlink_metadata(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            metadata => metadata.map_err(at(path))?,
        };
        if let Some(cause) = journal_folder::find_unsafe_path(root, path)? {
            return Err(JournalError::Untrusted { path: path.to_owned(), cause });
        }
        let text = fs::read_to_string(file).map_err(at(path))?;
        let unreadable = |why: String| JournalError::Unreadable(path.to_owned(), why);
        let journal: Self =
            serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        if journal.format != JOURNAL_FORMAT {
            return Err(unreadable(format!("format {}", journal.format)));
        }
        Ok(Some(journal))
    }

    /// Writes the journal to the disk.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub fn save(&self, root: &Root) -> Result<(), JournalError> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| JournalError::Unreadable(JOURNAL.into(), error.to_string()))?;
        let file = FileState {
            // Only root may read it: it has the content of other files.
            mode: 0o600,
            owner: (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
            ..FileState::new(text + "\n")
        };
        PathState::File(file).write(&root.path(JOURNAL), false).map_err(at(JOURNAL))
    }

    /// Removes the journal, including that of an older version.
    ///
    /// # Errors
    /// If the journal cannot be removed.
    pub fn remove(root: &Root) -> Result<(), JournalError> {
        PathState::Absent.write(&root.path(JOURNAL), false).map_err(at(JOURNAL))?;
        journal_folder::clear_former_folder(root)
    }

    /// Removes the server's state directory if this installation added the server.
    ///
    /// Returns a message if the directory is kept because other files are in it.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn remove_state_directory(&self, root: &Root) -> Result<Option<String>, JournalError> {
        let is_new = |unit: &FileStep| unit.before == PathState::Absent;
        // Older versions had their journal in that directory.
        let has_state = !self.former && self.server_unit().is_some_and(is_new);
        if has_state { journal_folder::remove_state_directory(root) } else { Ok(None) }
    }

    /// Returns whether this version would make the same installation.
    pub fn is_up_to_date(&self) -> bool {
        let is_current = |step: &InstallStep| match step {
            InstallStep::File(file) => {
                file.after.content().is_none_or(|unit| unit::is_current(&file.path, unit))
            }
            InstallStep::Folder(_) | InstallStep::Command(_) => true,
        };
        !self.former && self.steps.iter().all(is_current)
    }

    /// Returns the step that writes the server's unit, if any.
    fn server_unit(&self) -> Option<&FileStep> {
        self.steps.iter().find_map(|step| match step {
            InstallStep::File(file) if file.path == unit::server_path() => Some(file),
            _ => None,
        })
    }

    /// Applies these steps, in order.
    ///
    /// # Errors
    /// If a step fails; the steps after it are not done.
    pub fn apply(&self, root: &Root, steps: Range<usize>) -> Result<(), JournalError> {
        let mut steps = self.steps.get(steps).unwrap_or_default().iter();
        let applied = steps.try_for_each(|step| step.apply(root));
        // Otherwise, programs would get the previous addresses. The steps are complete even if this
        // fails.
        let _ = nscd::forget_hosts(root);
        applied
    }

    /// Returns whether all files have the content that this journal gave them.
    pub fn is_intact(&self, root: &Root) -> bool {
        self.steps.iter().all(|step| match step {
            InstallStep::File(file) => PathState::read(&root.path(&file.path))
                .is_ok_and(|now| now.has_same_content(&file.after)),
            InstallStep::Folder(_) | InstallStep::Command(_) => true,
        })
    }

    /// Undoes all steps in reverse order; continues after failures.
    pub fn undo(&self, root: &Root) -> UndoReport {
        let mut report = UndoReport::default();
        for step in self.steps.iter().rev() {
            match step.undo(root) {
                Ok(message) => report.messages.extend(message),
                Err(error) => report.failures.push(error.to_string()),
            }
        }
        // Otherwise, programs would get the previous addresses.
        let _ = nscd::forget_hosts(root);
        report
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::super::install_step::{CommandStep, IfEdited};
    use super::super::{InstallLock, path_state, resolv_conf_edit};
    use super::*;

    fn machine() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for path in ["/etc", "/run/manager", "/var/lib"] {
            fs::create_dir_all(root.path(path)).unwrap();
        }
        fs::write(root.path("/etc/resolv.conf"), "# mine\nnameserver 192.0.2.1\n").unwrap();
        symlink("../run/manager/file", root.path("/etc/link")).unwrap();
        (folder, root)
    }

    /// Returns the state of everything below a directory.
    fn tree(root: &Root) -> BTreeMap<PathBuf, String> {
        fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if fs::symlink_metadata(&path).unwrap().is_dir() {
                    found.insert(path.clone(), "a directory".to_owned());
                    walk(&path, found);
                } else {
                    found.insert(path.clone(), format!("{:?}", PathState::read(&path).unwrap()));
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(&root.path("/"), &mut found);
        found
    }

    fn file(root: &Root, path: &str, after: PathState, if_edited: IfEdited) -> InstallStep {
        let before = PathState::read(&root.path(path)).unwrap();
        let own = |state: PathState| match state {
            PathState::File(mut file) => {
                file.owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
                PathState::File(file)
            }
            other => other,
        };
        InstallStep::File(FileStep {
            path: path.into(),
            before,
            after: own(after),
            if_edited,
            in_place: false,
        })
    }

    fn journal(root: &Root) -> Journal {
        let edit = resolv_conf_edit::ResolvConfEdit {
            server: "127.0.0.1".parse().unwrap(),
            search: &[],
            keep_others: false,
        };
        let conf =
            resolv_conf_edit::add_lines(&fs::read(root.path("/etc/resolv.conf")).unwrap(), &edit);
        let flag = root.path("/run/flag").display().to_string();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let steps = vec![
            file(
                root,
                "/var/lib/svcdns-install/resolv.conf.before",
                PathState::new_file("x"),
                IfEdited::Keep,
            ),
            InstallStep::Folder("/etc/svcdns".into()),
            file(
                root,
                "/etc/svcdns/svcdns.toml",
                PathState::new_file("listen = []\n"),
                IfEdited::Keep,
            ),
            InstallStep::Command(CommandStep {
                purpose: "raise the flag".to_owned(),
                run: vec![words(&["touch", &flag])],
                undo: vec![words(&["rm", &flag])],
                undo_if: words(&["test", "-e", &flag]),
            }),
            file(root, "/etc/unit", PathState::new_file("[Unit]\n"), IfEdited::SetAside),
            file(root, "/etc/link", PathState::new_file("no link\n"), IfEdited::OwnLines),
            file(root, "/etc/resolv.conf", PathState::new_file(conf), IfEdited::OwnLines),
        ];
        Journal::new("test".to_owned(), steps)
    }

    #[test]
    fn an_interrupted_installation_is_undone_completely() {
        for stopped in 0..=7 {
            for half_written in [false, true] {
                for undone_before in [0, 3, 5, 7] {
                    let (_folder, root) = machine();
                    let before = tree(&root);
                    let lock = InstallLock::take(&root).unwrap();
                    journal(&root).save(&root).unwrap();
                    journal(&root).apply(&root, 0..stopped).unwrap();
                    let journal = Journal::load(&root).unwrap().unwrap();
                    if let (true, Some(InstallStep::File(next))) =
                        (half_written, journal.steps.get(stopped))
                    {
                        let folder = root.path(next.path.parent().unwrap());
                        if folder.exists() {
                            fs::write(path_state::temporary_path(&root.path(&next.path)), "half")
                                .unwrap();
                        }
                    }
                    // The undo is also interrupted and started again.
                    for step in journal.steps.iter().rev().take(undone_before) {
                        step.undo(&root).unwrap();
                    }
                    let report = journal.undo(&root);
                    assert!(report.failures.is_empty(), "{report:?}");
                    Journal::remove(&root).unwrap();
                    drop(lock);
                    assert_eq!(
                        tree(&root),
                        before,
                        "stopped after {stopped}, half: {half_written}, undone: {undone_before}"
                    );
                }
            }
        }
    }

    #[test]
    fn journals_of_installed_machines_remain_readable() {
        let text = include_str!("../../tests/former/install.json");
        let journal: Journal = serde_json::from_str(text).unwrap();
        let expected: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_value(&journal).unwrap(), expected);
    }

    #[test]
    fn edits_by_others_are_kept() {
        let (_folder, root) = machine();
        let _lock = InstallLock::take(&root).unwrap();
        let journal = journal(&root);
        journal.apply(&root, 0..7).unwrap();
        assert!(journal.is_intact(&root));
        for (path, more) in [
            ("/etc/resolv.conf", "options rotate\n"),
            ("/etc/svcdns/svcdns.toml", "ttl = \"1s\"\n"),
            ("/etc/unit", "# mine\n"),
        ] {
            let text = fs::read_to_string(root.path(path)).unwrap();
            fs::write(root.path(path), text + more).unwrap();
        }
        fs::remove_file(root.path("/etc/link")).unwrap();
        symlink("elsewhere", root.path("/etc/link")).unwrap();
        assert!(!journal.is_intact(&root));
        let report = journal.undo(&root);
        assert!(report.failures.is_empty(), "{report:?}");
        assert_eq!(
            root.text("/etc/resolv.conf").unwrap(),
            "# mine\nnameserver 192.0.2.1\noptions rotate\n"
        );
        assert_eq!(root.text("/etc/svcdns/svcdns.toml").unwrap(), "listen = []\nttl = \"1s\"\n");
        assert_eq!(root.text("/var/lib/svcdns-install/unit").unwrap(), "[Unit]\n# mine\n");
        assert!(!root.has("/etc/unit"));
        assert_eq!(fs::read_link(root.path("/etc/link")).unwrap(), Path::new("elsewhere"));
        let messages = report.messages.join("\n");
        for expected in [
            "removed only the lines of svcdns",
            "/etc/svcdns/svcdns.toml: kept, because it has been edited",
            "moved to /var/lib/svcdns-install/unit",
            "/etc/link: kept, because it has been replaced",
        ] {
            assert!(messages.contains(expected), "{expected}: {messages}");
        }
    }

    #[test]
    fn undo_does_not_restore_lines_of_an_earlier_installation() {
        let (_folder, root) = machine();
        let conf = root.path("/etc/resolv.conf");
        let original = fs::read(&conf).unwrap();
        let edit = resolv_conf_edit::ResolvConfEdit {
            server: "127.0.0.1".parse().unwrap(),
            search: &[],
            keep_others: false,
        };
        let left = resolv_conf_edit::add_lines(&original, &edit);
        for (in_place, done) in [(false, false), (false, true), (true, false), (true, true)] {
            fs::write(&conf, &left).unwrap();
            // As an older version did, which took the lines for the user's.
            let other = resolv_conf_edit::ResolvConfEdit { keep_others: true, ..edit.clone() };
            let after = resolv_conf_edit::add_lines(&original, &other);
            let step =
                file(&root, "/etc/resolv.conf", PathState::new_file(after), IfEdited::OwnLines);
            let InstallStep::File(mut step) = step else { panic!() };
            step.in_place = in_place;
            let journal = Journal::new(String::new(), vec![InstallStep::File(step)]);
            if done {
                journal.apply(&root, 0..1).unwrap();
            }
            let report = journal.undo(&root);
            assert!(report.failures.is_empty(), "{report:?}");
            assert_eq!(fs::read(&conf).unwrap(), original, "{in_place} {done}: {report:?}");
        }
    }

    #[test]
    fn a_concurrent_change_is_not_overwritten() {
        let (_folder, root) = machine();
        let journal = journal(&root);
        fs::write(root.path("/etc/resolv.conf"), "nameserver 192.0.2.99\n").unwrap();
        let error = journal.apply(&root, 6..7).unwrap_err();
        assert!(matches!(error, JournalError::Changed(_)), "{error}");
        assert_eq!(root.text("/etc/resolv.conf").unwrap(), "nameserver 192.0.2.99\n");
    }

    #[test]
    fn the_lock_is_exclusive_and_unknown_journal_formats_are_rejected() {
        let (_folder, root) = machine();
        let lock = InstallLock::take(&root).unwrap();
        assert!(matches!(InstallLock::take(&root), Err(JournalError::Locked(_))));
        drop(lock);
        let _lock = InstallLock::take(&root).unwrap();
        assert!(Journal::load(&root).unwrap().is_none());
        for text in ["", "{}", r#"{"form":2,"purpose":"","steps":[],"complete":true}"#] {
            fs::write(root.path(JOURNAL), text).unwrap();
            assert!(matches!(Journal::load(&root), Err(JournalError::Unreadable(..))), "{text}");
        }
    }

    #[test]
    fn an_interrupted_write_in_place_is_undone() {
        let (_folder, root) = machine();
        let mut journal = journal(&root);
        let InstallStep::File(step) = &mut journal.steps[6] else { panic!() };
        step.in_place = true;
        let (before, after) =
            (step.before.content().unwrap().to_vec(), step.after.content().unwrap().to_vec());
        let steps = journal.steps.split_off(6);
        let journal = Journal::new(String::new(), steps);
        for cut in 1..after.len() {
            let mut content = after[..cut].to_vec();
            content.extend(before.iter().skip(cut));
            fs::write(root.path("/etc/resolv.conf"), &content).unwrap();
            let report = journal.undo(&root);
            assert!(report.failures.is_empty());
            assert_eq!(
                fs::read(root.path("/etc/resolv.conf")).unwrap(),
                before,
                "cut at {cut}: {report:?}"
            );
        }
    }
}
