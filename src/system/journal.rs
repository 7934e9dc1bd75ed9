//! What `install` changes, written down before the first change.
//!
//! Each step says what it finds and what it leaves. What has been done is never noted: a step is undone by looking at
//! what stands there now. So a journal can be undone from any point at which its installation, or its undoing, ended.

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::command::{self, RunError};
use super::entry::{self, Entry};
use super::folder::{self, FOLDER, FORMER_JOURNAL};
use super::journal_error::{JOURNAL, JournalError, at};
use super::{Root, edit, unit};

/// The form of the journal; another one is another version's.
const FORM: u32 = 1;

/// What is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Journal {
    form: u32,
    /// What it was made for: an installation that wants the same finds it done.
    pub purpose: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Whether all of them were done and proven.
    pub complete: bool,
    /// Whether it was found where the versions before wrote it.
    #[serde(skip)]
    former: bool,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A folder that is not there yet.
    Folder(PathBuf),
    /// A file or link.
    File(FileStep),
    /// Programs that are run.
    Command(CommandStep),
}

/// A file or link that is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileStep {
    /// Where.
    pub path: PathBuf,
    /// What was there.
    pub before: Entry,
    /// What is put there.
    pub after: Entry,
    /// What is undone when somebody has changed it since.
    pub edited: Edited,
    /// Whether it is written in place: a mount cannot be replaced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
}

/// What is undone of a file that somebody has changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Edited {
    /// It is others' file: only our lines go.
    OwnLines,
    /// It is the person's now: nothing.
    Keep,
    /// It is ours, and would go on working: it is moved into our folder.
    SetAside,
}

/// Programs that are run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct CommandStep {
    /// What for.
    pub purpose: String,
    /// What is run, in order.
    pub run: Vec<Vec<String>>,
    /// What undoes it, in order. It must do no harm where nothing was done.
    pub undo: Vec<Vec<String>>,
    /// What ends well where there is something to undo; empty for always.
    pub undo_if: Vec<String>,
}

/// What was undone, in words for a person.
#[derive(Debug, Default)]
pub struct Undone {
    /// What happened.
    pub told: Vec<String>,
    /// What could not be undone, and why: it can be tried again.
    pub failures: Vec<String>,
}

impl Journal {
    /// A journal of steps that are yet to be done.
    pub fn new(purpose: String, steps: Vec<Step>) -> Self {
        Self { form: FORM, purpose, steps, complete: false, former: false }
    }

    /// The journal of this machine; none where nothing is installed.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn load(root: &Root) -> Result<Option<Self>, JournalError> {
        if let Some(journal) = Self::read(root, Path::new(JOURNAL))? {
            return Ok(Some(journal));
        }
        let former = Self::read(root, Path::new(FORMER_JOURNAL))?;
        Ok(former.map(|journal| Self { former: true, ..journal }))
    }

    fn read(root: &Root, path: &Path) -> Result<Option<Self>, JournalError> {
        let found = root.path(root.follow(path).map_err(at(path))?);
        match fs::symlink_metadata(&found) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            about => about.map_err(at(path))?,
        };
        if let Some(spot) = folder::weak_spot(root, path)? {
            return Err(JournalError::Untrusted { path: path.to_owned(), spot });
        }
        let text = fs::read_to_string(found).map_err(at(path))?;
        let unknown = |why: String| JournalError::Unknown(path.to_owned(), why);
        let journal: Self = serde_json::from_str(&text).map_err(|error| unknown(error.to_string()))?;
        let form = journal.form;
        if form == FORM { Ok(Some(journal)) } else { Err(unknown(format!("form {form}"))) }
    }

    /// Writes it to the disk.
    ///
    /// # Errors
    /// When that fails.
    pub fn save(&self, root: &Root) -> Result<(), JournalError> {
        let text = serde_json::to_string_pretty(self).map_err(|error| JournalError::Unknown(JOURNAL.into(), error.to_string()))?;
        // Content of other people's files: root's alone.
        let Entry::File(mut file) = Entry::new(text + "\n") else { return Ok(()) };
        file.mode = 0o600;
        file.owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Entry::File(file).put(&root.path(JOURNAL), false).map_err(at(JOURNAL))
    }

    /// Removes it: nothing is installed any more.
    ///
    /// # Errors
    /// When that fails.
    pub fn forget(root: &Root) -> Result<(), JournalError> {
        Entry::Absent.put(&root.path(JOURNAL), false).map_err(at(JOURNAL))?;
        folder::leave_former(root)
    }

    /// Removes what the server of this installation kept. Says so if something is left.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove_state(&self, root: &Root) -> Result<Option<String>, JournalError> {
        let is_ours = |unit: &FileStep| unit.before == Entry::Absent;
        // Of the versions before, the directory is the folder of the journal.
        let has_state = !self.former && self.server_unit().is_some_and(is_ours);
        if has_state { folder::remove_state(root) } else { Ok(None) }
    }

    /// Whether this version would leave the same behind for the same purpose.
    pub fn is_up_to_date(&self) -> bool {
        let unit = self.server_unit().and_then(|unit| unit.after.octets());
        !self.former && unit.is_none_or(unit::is_current)
    }

    /// The step that writes the server's unit, if there is one.
    fn server_unit(&self) -> Option<&FileStep> {
        self.steps.iter().find_map(|step| match step {
            Step::File(file) if file.path == unit::server_path() => Some(file),
            _ => None,
        })
    }

    /// Does these steps.
    ///
    /// # Errors
    /// At the first that fails; the rest is not done.
    pub fn apply(&self, root: &Root, steps: Range<usize>) -> Result<(), JournalError> {
        self.steps.get(steps).unwrap_or_default().iter().try_for_each(|step| step.apply(root))
    }

    /// Whether the files are as this journal left them.
    pub fn stands(&self, root: &Root) -> bool {
        self.steps.iter().all(|step| match step {
            Step::File(file) => Entry::read(&root.path(&file.path)).is_ok_and(|now| now.reads_as(&file.after)),
            Step::Folder(_) | Step::Command(_) => true,
        })
    }

    /// Undoes all steps, the last one first; goes on when one fails.
    pub fn undo(&self, root: &Root) -> Undone {
        let mut undone = Undone::default();
        for step in self.steps.iter().rev() {
            match step.undo(root) {
                Ok(told) => undone.told.extend(told),
                Err(error) => undone.failures.push(error.to_string()),
            }
        }
        undone
    }
}

impl Step {
    fn apply(&self, root: &Root) -> Result<(), JournalError> {
        match self {
            Self::Folder(path) => {
                let made = root.path(path);
                DirBuilder::new().mode(0o755).create(&made).map_err(at(path))?;
                // Whatever the umask is: others than root read what is in it.
                fs::set_permissions(&made, Permissions::from_mode(0o755)).map_err(at(path))?;
                entry::sync(made.parent().unwrap_or_else(|| Path::new("/"))).map_err(at(path))
            }
            Self::File(file) => {
                let path = root.path(&file.path);
                if !Entry::read(&path).map_err(at(&file.path))?.reads_as(&file.before) {
                    return Err(JournalError::Changed(file.path.clone()));
                }
                file.after.put(&path, file.in_place).map_err(at(&file.path))
            }
            Self::Command(step) => Ok(step.run.iter().try_for_each(|line| command::run(line).map(drop))?),
        }
    }

    fn undo(&self, root: &Root) -> Result<Option<String>, JournalError> {
        match self {
            Self::Folder(path) => match fs::remove_dir(root.path(path)) {
                Ok(()) => Ok(None),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                    Ok(Some(format!("{}: left, something is in it", path.display())))
                }
                Err(error) => Err(at(path)(error)),
            },
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
        for line in &self.undo {
            match command::run(line) {
                Ok(_) => {}
                // The program has gone, and what it was told with it.
                Err(failure) if matches!(failure.why, RunError::NotRun(_)) => return Ok(Some(failure.to_string())),
                Err(failure) => return Err(failure.into()),
            }
        }
        Ok(None)
    }
}

impl FileStep {
    fn undo(&self, root: &Root) -> Result<Option<String>, JournalError> {
        let name = self.path.display();
        let path = root.path(&self.path);
        if !self.in_place {
            entry::remove(&entry::new_path(&path)).map_err(at(&self.path))?;
        }
        let now = Entry::read(&path).map_err(at(&self.path))?;
        let restore = |entry: &Entry| entry.put(&path, self.in_place).map_err(at(&self.path));
        if now == self.before {
            return Ok(None);
        }
        if now.reads_as(&self.after) || now.reads_as(&self.before) {
            restore(&self.before)?;
            let done = if self.before == Entry::Absent { "removed" } else { "as it was before" };
            return Ok(Some(format!("{name}: {done}")));
        }
        let Some(octets) = now.octets() else {
            return Ok(Some(format!("{name}: somebody has replaced it since; left as it is")));
        };
        match self.edited {
            Edited::OwnLines
                if self.in_place && (is_cut_off(octets, &self.after, &self.before) || is_cut_off(octets, &self.before, &self.after)) =>
            {
                restore(&self.before)?;
                Ok(Some(format!("{name}: as it was before")))
            }
            Edited::OwnLines if edit::has_ours(octets) => {
                let rest = edit::take_out(octets);
                let was_link = matches!(self.before, Entry::Link { .. });
                if rest.trim_ascii().is_empty() && self.before == Entry::Absent {
                    restore(&Entry::Absent)?;
                } else if self.before.octets() == Some(&rest) {
                    restore(&self.before)?;
                } else {
                    restore(&now.with(rest))?;
                }
                let link = match &self.before {
                    Entry::Link { target, .. } if was_link => format!("; before, it was a link to {}", target.display()),
                    _ => String::new(),
                };
                Ok(Some(format!("{name}: somebody has changed it since; only the lines of svcdns were taken out{link}")))
            }
            Edited::OwnLines => Ok(Some(format!("{name}: somebody has written it anew since, without our lines; left as it is"))),
            Edited::Keep => Ok(Some(format!("{name}: somebody has changed it since; left as it is"))),
            Edited::SetAside => {
                let aside = Path::new(FOLDER).join(self.path.file_name().unwrap_or_default());
                now.put(&root.path(&aside), false).map_err(at(&aside))?;
                restore(&self.before)?;
                Ok(Some(format!("{name}: somebody has changed it since; moved to {}", aside.display())))
            }
        }
    }
}

/// Whether these octets are what a write in place of `new` over `old` leaves when it is cut off.
fn is_cut_off(octets: &[u8], new: &Entry, old: &Entry) -> bool {
    let (Some(new), Some(old)) = (new.octets(), old.octets()) else { return false };
    let written = new.iter().zip(octets).take_while(|(one, other)| one == other).count();
    if octets.len() > old.len() { octets.len() == written } else { octets.len() == old.len() && octets[written..] == old[written..] }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    use super::super::Lock;
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

    /// Everything below a folder, as it reads.
    fn tree(root: &Root) -> BTreeMap<PathBuf, String> {
        fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if fs::symlink_metadata(&path).unwrap().is_dir() {
                    found.insert(path.clone(), "a folder".to_owned());
                    walk(&path, found);
                } else {
                    found.insert(path.clone(), format!("{:?}", Entry::read(&path).unwrap()));
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(&root.path("/"), &mut found);
        found
    }

    fn file(root: &Root, path: &str, after: Entry, edited: Edited) -> Step {
        let before = Entry::read(&root.path(path)).unwrap();
        let own = |entry: Entry| match entry {
            Entry::File(mut file) => {
                file.owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
                Entry::File(file)
            }
            other => other,
        };
        Step::File(FileStep { path: path.into(), before, after: own(after), edited, in_place: false })
    }

    fn journal(root: &Root) -> Journal {
        let wanted = edit::Wanted { server: "127.0.0.1".parse().unwrap(), search: &[], keep_others: false };
        let conf = edit::put_in(&fs::read(root.path("/etc/resolv.conf")).unwrap(), &wanted);
        let flag = root.path("/run/flag").display().to_string();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let steps = vec![
            file(root, "/var/lib/svcdns-install/resolv.conf.before", Entry::new("x"), Edited::Keep),
            Step::Folder("/etc/svcdns".into()),
            file(root, "/etc/svcdns/svcdns.toml", Entry::new("listen = []\n"), Edited::Keep),
            Step::Command(CommandStep {
                purpose: "raise the flag".to_owned(),
                run: vec![words(&["touch", &flag])],
                undo: vec![words(&["rm", &flag])],
                undo_if: words(&["test", "-e", &flag]),
            }),
            file(root, "/etc/unit", Entry::new("[Unit]\n"), Edited::SetAside),
            file(root, "/etc/link", Entry::new("no link\n"), Edited::OwnLines),
            file(root, "/etc/resolv.conf", Entry::new(conf), Edited::OwnLines),
        ];
        Journal::new("test".to_owned(), steps)
    }

    #[test]
    fn undone_from_wherever_it_stopped_everything_is_as_before() {
        for stopped in 0..=7 {
            for half_written in [false, true] {
                for undone_before in [0, 3, 5, 7] {
                    let (_folder, root) = machine();
                    let before = tree(&root);
                    let lock = Lock::take(&root).unwrap();
                    journal(&root).save(&root).unwrap();
                    journal(&root).apply(&root, 0..stopped).unwrap();
                    let journal = Journal::load(&root).unwrap().unwrap();
                    if let (true, Some(Step::File(next))) = (half_written, journal.steps.get(stopped)) {
                        let folder = root.path(next.path.parent().unwrap());
                        if folder.exists() {
                            fs::write(entry::new_path(&root.path(&next.path)), "half").unwrap();
                        }
                    }
                    // The undoing is cut off, too, and begun again.
                    for step in journal.steps.iter().rev().take(undone_before) {
                        step.undo(&root).unwrap();
                    }
                    let undone = journal.undo(&root);
                    assert!(undone.failures.is_empty(), "{undone:?}");
                    Journal::forget(&root).unwrap();
                    drop(lock);
                    assert_eq!(tree(&root), before, "stopped after {stopped}, half: {half_written}, undone: {undone_before}");
                }
            }
        }
    }

    #[test]
    fn what_others_changed_since_stays() {
        let (_folder, root) = machine();
        let _lock = Lock::take(&root).unwrap();
        let journal = journal(&root);
        journal.apply(&root, 0..7).unwrap();
        assert!(journal.stands(&root));
        for (path, more) in
            [("/etc/resolv.conf", "options rotate\n"), ("/etc/svcdns/svcdns.toml", "ttl = \"1s\"\n"), ("/etc/unit", "# mine\n")]
        {
            let text = fs::read_to_string(root.path(path)).unwrap();
            fs::write(root.path(path), text + more).unwrap();
        }
        fs::remove_file(root.path("/etc/link")).unwrap();
        symlink("elsewhere", root.path("/etc/link")).unwrap();
        assert!(!journal.stands(&root));
        let undone = journal.undo(&root);
        assert!(undone.failures.is_empty(), "{undone:?}");
        assert_eq!(root.text("/etc/resolv.conf").unwrap(), "# mine\nnameserver 192.0.2.1\noptions rotate\n");
        assert_eq!(root.text("/etc/svcdns/svcdns.toml").unwrap(), "listen = []\nttl = \"1s\"\n");
        assert_eq!(root.text("/var/lib/svcdns-install/unit").unwrap(), "[Unit]\n# mine\n");
        assert!(!root.has("/etc/unit"));
        assert_eq!(fs::read_link(root.path("/etc/link")).unwrap(), Path::new("elsewhere"));
        let told = undone.told.join("\n");
        for said in [
            "only the lines of svcdns",
            "/etc/svcdns/svcdns.toml: somebody",
            "moved to /var/lib/svcdns-install/unit",
            "/etc/link: somebody has replaced",
        ] {
            assert!(told.contains(said), "{said}: {told}");
        }
    }

    #[test]
    fn a_change_in_the_last_moment_is_not_overwritten() {
        let (_folder, root) = machine();
        let journal = journal(&root);
        fs::write(root.path("/etc/resolv.conf"), "nameserver 192.0.2.99\n").unwrap();
        let error = journal.apply(&root, 6..7).unwrap_err();
        assert!(matches!(error, JournalError::Changed(_)), "{error}");
        assert_eq!(root.text("/etc/resolv.conf").unwrap(), "nameserver 192.0.2.99\n");
    }

    #[test]
    fn one_at_a_time_and_no_other_versions_journal() {
        let (_folder, root) = machine();
        let lock = Lock::take(&root).unwrap();
        assert!(matches!(Lock::take(&root), Err(JournalError::Locked)));
        drop(lock);
        let _lock = Lock::take(&root).unwrap();
        assert!(Journal::load(&root).unwrap().is_none());
        for text in ["", "{}", r#"{"form":2,"purpose":"","steps":[],"complete":true}"#] {
            fs::write(root.path(JOURNAL), text).unwrap();
            assert!(matches!(Journal::load(&root), Err(JournalError::Unknown(..))), "{text}");
        }
    }

    #[test]
    fn a_write_in_place_that_was_cut_off() {
        let (_folder, root) = machine();
        let mut journal = journal(&root);
        let Step::File(step) = &mut journal.steps[6] else { panic!() };
        step.in_place = true;
        let (before, after) = (step.before.octets().unwrap().to_vec(), step.after.octets().unwrap().to_vec());
        let steps = journal.steps.split_off(6);
        let journal = Journal::new(String::new(), steps);
        for cut in 1..after.len() {
            let mut octets = after[..cut].to_vec();
            octets.extend(before.iter().skip(cut));
            fs::write(root.path("/etc/resolv.conf"), &octets).unwrap();
            let undone = journal.undo(&root);
            assert!(undone.failures.is_empty());
            assert_eq!(fs::read(root.path("/etc/resolv.conf")).unwrap(), before, "cut at {cut}: {undone:?}");
        }
    }
}
