//! The files already sent, so that only differences are sent again.
//!
//! For each file, this module keeps the modification time, the expiry time and a digest of the
//! content, never the content itself.
//!
//! The age of a file is computed once, when a new modification time is seen; from then on the
//! monotonic clock measures it. A modification time in the future, a step of the wall clock or a
//! suspended machine therefore neither expires a file early nor keeps it forever.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant, SystemTime};

use crate::registry::gsvc;
use crate::service::{Change, Put, Reason, Registration, Rejected, Removal};

use super::FileTimings;
use super::directory::FileRead;

/// Maximum difference in the progress of the two clocks; a larger one is a jump.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(2);

/// The file is not a regular file or cannot be read.
pub const UNREADABLE: Reason =
    Reason::new("unreadable", "the file is not a regular file or cannot be read");

/// A reading of both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClockReading {
    pub(super) wall: SystemTime,
    pub(super) monotonic: Instant,
}

/// The known files of the directory, by name.
#[derive(Debug)]
pub(super) struct KnownFiles {
    timings: FileTimings,
    /// Every file in the directory.
    ///
    /// Only the catalog limits how many are served; it lists the rest as rejected.
    files: HashMap<OsString, KnownFile>,
    /// Time since which a file's content has been invalid, for example half written.
    incomplete: HashMap<OsString, Instant>,
    /// Files of directories that vanished, and may come back.
    suspended: HashMap<OsString, SuspendedFile>,
    hasher: RandomState,
    last_reading: Option<ClockReading>,
    /// Time until which an old modification time does not expire a file.
    ///
    /// Set after a jump of the wall clock.
    lenient_until: Option<Instant>,
}

#[derive(Debug)]
struct KnownFile {
    modified: SystemTime,
    expires: Instant,
    digest: u64,
    /// Whether the file has not expired.
    ///
    /// Expired files stay known while they exist, because their modification time may look recent.
    alive: bool,
}

/// A file that was alive when its directory vanished.
#[derive(Debug)]
struct SuspendedFile {
    modified: SystemTime,
    /// Time to live that it had left.
    left: Duration,
}

impl ClockReading {
    /// Reads the monotonic clock and the wall clock.
    pub(super) fn now() -> Self {
        Self { wall: SystemTime::now(), monotonic: Instant::now() }
    }
}

impl KnownFiles {
    pub(super) fn new(timings: FileTimings) -> Self {
        Self {
            timings,
            files: HashMap::new(),
            incomplete: HashMap::new(),
            suspended: HashMap::new(),
            hasher: RandomState::new(),
            last_reading: None,
            lenient_until: None,
        }
    }

    /// Returns whether the wall clock has jumped since the last call.
    ///
    /// After a jump, every file that is alive gets its full time to live again.
    pub(super) fn detect_clock_jump(&mut self, now: ClockReading) -> bool {
        let Some(last) = self.last_reading.replace(now) else { return false };
        let monotonic = now.monotonic.saturating_duration_since(last.monotonic);
        let jumped = match now.wall.duration_since(last.wall) {
            Ok(wall) => wall.abs_diff(monotonic) > MAX_CLOCK_DIFFERENCE,
            Err(backwards) => backwards.duration() + monotonic > MAX_CLOCK_DIFFERENCE,
        };
        if jumped {
            let expires = now.monotonic + self.timings.expire_after;
            self.lenient_until = Some(expires);
            for file in self.files.values_mut().filter(|file| file.alive) {
                file.expires = expires;
            }
        }
        jumped
    }

    /// Returns the modification time of a file whose content is known.
    ///
    /// A file with this time need not be read again.
    pub(super) fn modified(&self, name: &OsStr) -> Option<SystemTime> {
        if self.incomplete.contains_key(name) {
            return None;
        }
        self.files.get(name).map(|file| file.modified)
    }

    /// Records the result of reading a file, and returns the change, if any.
    pub(super) fn update(
        &mut self,
        name: &OsStr,
        result: FileRead,
        now: ClockReading,
    ) -> Option<Change> {
        let unreadable = || Rejected::new(&name.to_string_lossy(), UNREADABLE);
        let (modified, content) = match result {
            FileRead::Missing => return self.forget(name),
            FileRead::Unchanged => return self.expire(name, now),
            FileRead::Failed => (None, Err(Incomplete(unreadable()))),
            FileRead::Unreadable { modified } => (Some(modified), Ok(Err(unreadable()))),
            FileRead::Content { modified, content } => (Some(modified), parse(name, &content)),
        };
        if modified.is_some_and(|modified| !self.refresh(name, modified, now)) {
            return self.expire(name, now);
        }
        let content = match content {
            Ok(content) => content,
            Err(Incomplete(rejected)) => {
                let since = *self.incomplete.entry(name.into()).or_insert(now.monotonic);
                let duration = now.monotonic.saturating_duration_since(since);
                if duration < self.timings.write_grace {
                    return None;
                }
                Err(rejected)
            }
        };
        self.incomplete.remove(name);
        self.record(name, content, modified.unwrap_or(now.wall), now)
    }

    /// Records a modification time, and returns whether the file is alive.
    fn refresh(&mut self, name: &OsStr, modified: SystemTime, now: ClockReading) -> bool {
        let lenient = self.lenient_until.is_some_and(|until| now.monotonic < until);
        let expires = self.expiry(name, modified, now);
        match self.files.get_mut(name) {
            Some(file) if file.modified == modified => file.alive && now.monotonic < file.expires,
            Some(file) => {
                file.modified = modified;
                file.expires = expires.unwrap_or(if lenient && file.alive {
                    file.expires
                } else {
                    now.monotonic
                });
                now.monotonic < file.expires
            }
            None => expires.is_some(),
        }
    }

    /// Returns the expiry time of a file with a new modification time.
    ///
    /// Returns `None` if it has expired already. A time in the future counts as now. A file of a
    /// directory that came back has the time to live that it had left.
    fn expiry(&self, name: &OsStr, modified: SystemTime, now: ClockReading) -> Option<Instant> {
        let age = now.wall.duration_since(modified).unwrap_or_default();
        let by_age = self.timings.expire_after.checked_sub(age);
        let suspended = self.suspended.get(name).filter(|file| file.modified == modified);
        let left = by_age.max(suspended.map(|file| file.left));
        left.filter(|left| !left.is_zero()).map(|left| now.monotonic + left)
    }

    /// Records the content of a file that is alive, and returns the change, if any.
    fn record(
        &mut self,
        name: &OsStr,
        content: Result<Registration, Rejected>,
        modified: SystemTime,
        now: ClockReading,
    ) -> Option<Change> {
        // Identity and endpoints are part of the name, which is the key here.
        let digest = match &content {
            Ok(registration) => self.hasher.hash_one((0, &*registration.metadata)),
            Err(rejected) => self.hasher.hash_one((1, &rejected.found, rejected.reason)),
        };
        if let Some(file) = self.files.get_mut(name) {
            if file.alive && file.digest == digest {
                return None;
            }
            file.digest = digest;
            file.alive = true;
        } else {
            let expires = self.expiry(name, modified, now)?;
            self.files.insert(name.into(), KnownFile { modified, expires, digest, alive: true });
        }
        Some(Change::Put(Put { key: key(name), revision: 0, lease: 0, content }))
    }

    /// Marks a file as expired if its expiry time has passed.
    fn expire(&mut self, name: &OsStr, now: ClockReading) -> Option<Change> {
        let file = self.files.get_mut(name)?;
        if !file.alive || file.expires > now.monotonic {
            return None;
        }
        file.alive = false;
        self.incomplete.remove(name);
        Some(delete(name))
    }

    fn forget(&mut self, name: &OsStr) -> Option<Change> {
        self.incomplete.remove(name);
        self.files.remove(name).filter(|file| file.alive).map(|_| delete(name))
    }

    /// Forgets every file for which `exists` is false, and returns the deletions.
    pub(super) fn retain(&mut self, exists: impl Fn(&OsStr) -> bool) -> Vec<Change> {
        self.incomplete.retain(|name, _| exists(name));
        let removed = self.files.extract_if(|name, _| !exists(name));
        removed.filter(|(_, file)| file.alive).map(|(name, _)| delete(&name)).collect()
    }

    /// Forgets every file without reporting deletions, as before a new list.
    pub(super) fn clear(&mut self) {
        self.files.clear();
        self.incomplete.clear();
    }

    /// Forgets every file, because the directory has vanished; returns how many were alive.
    ///
    /// Their programs could not refresh them. Until [`Self::end_suspension`], a file that comes
    /// back unchanged therefore continues with the time to live that it had left.
    pub(super) fn suspend(&mut self, now: Instant) -> usize {
        let alive = self.files.drain().filter(|(_, file)| file.alive);
        let mut count = 0;
        self.suspended.extend(alive.map(|(name, KnownFile { modified, expires, .. })| {
            count += 1;
            let left = expires.saturating_duration_since(now);
            (name, SuspendedFile { modified, left })
        }));
        self.incomplete.clear();
        count
    }

    /// Forgets the files of directories that vanished.
    pub(super) fn end_suspension(&mut self) {
        self.suspended = HashMap::new();
    }

    /// Extends every time to live by a time in which the files could not be read.
    pub(super) fn extend(&mut self, by: Duration) {
        for file in self.files.values_mut() {
            file.expires += by;
        }
    }

    /// Returns the expired and the incomplete files, to read even without an event.
    pub(super) fn due(&self, now: Instant) -> Vec<OsString> {
        let expired = self.files.iter().filter(|(_, file)| file.alive && file.expires <= now);
        expired.map(|(name, _)| name).chain(self.incomplete.keys()).cloned().collect()
    }

    /// Returns whether there are incomplete files, which must be read again soon.
    pub(super) fn has_incomplete(&self) -> bool {
        !self.incomplete.is_empty()
    }

    #[cfg(test)]
    fn count_alive(&self) -> usize {
        self.files.values().filter(|file| file.alive).count()
    }
}

/// Invalid content that may be an unfinished write.
///
/// GoFrame truncates a file before it writes it.
struct Incomplete(Rejected);

fn parse(name: &OsStr, content: &[u8]) -> Result<Result<Registration, Rejected>, Incomplete> {
    match gsvc::parse_file_name(name.as_bytes(), content) {
        // A complete file is never empty: GoFrame always writes `UpdateAt`.
        Ok(_) if content.trim_ascii().is_empty() => {
            Err(Incomplete(Rejected::new("", gsvc::VALUE_NOT_JSON)))
        }
        Err(rejected) if rejected.reason == gsvc::VALUE_NOT_JSON => Err(Incomplete(rejected)),
        content => Ok(content),
    }
}

/// Returns the key of a file: its name, escaped if it is not UTF-8.
fn key(name: &OsStr) -> Box<str> {
    name.to_str().map_or_else(|| name.as_bytes().escape_ascii().to_string().into(), Into::into)
}

fn delete(name: &OsStr) -> Change {
    Change::Delete { key: key(name), revision: 0, removal: Removal::Explicit }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "service#default#default#a#latest#10.0.0.1-80";

    struct FilesFixture {
        files: KnownFiles,
        now: ClockReading,
    }

    impl FilesFixture {
        fn new() -> Self {
            let mut fixture =
                Self { files: KnownFiles::new(FileTimings::default()), now: ClockReading::now() };
            fixture.files.detect_clock_jump(fixture.now);
            fixture
        }

        /// Advances both clocks.
        fn advance(&mut self, seconds: u64) {
            let step = Duration::from_secs(seconds);
            let ClockReading { wall, monotonic } = self.now;
            self.now = ClockReading { wall: wall + step, monotonic: monotonic + step };
            assert!(!self.files.detect_clock_jump(self.now));
        }

        /// Returns the change for a file with this content and age in seconds.
        fn read(&mut self, content: &str, age: i64) -> &'static str {
            let duration = Duration::from_secs(age.unsigned_abs());
            let modified =
                if age < 0 { self.now.wall + duration } else { self.now.wall - duration };
            self.update(FileRead::Content { modified, content: content.into() })
        }

        /// Returns the change for a result of reading the file.
        fn update(&mut self, result: FileRead) -> &'static str {
            match self.files.update(NAME.as_ref(), result, self.now) {
                None => "nothing",
                Some(Change::Put(Put { content: Ok(_), .. })) => "put",
                Some(Change::Put(Put { content: Err(_), .. })) => "rejected",
                Some(Change::Delete { .. }) => "deleted",
                Some(_) => "something else",
            }
        }

        fn due(&self) -> Vec<OsString> {
            self.files.due(self.now.monotonic)
        }
    }

    #[test]
    fn a_refresh_without_new_content_is_not_a_change() {
        let mut fixture = FilesFixture::new();
        let content = |time: &str, protocol: &str| {
            format!(r#"{{"UpdateAt":"2026-11-22 {time}","protocol":"{protocol}"}}"#)
        };
        assert_eq!(fixture.read(&content("23:22:19", "grpc"), 0), "put");
        fixture.advance(10);
        assert_eq!(fixture.read(&content("23:22:29", "grpc"), 0), "nothing");
        fixture.advance(15);
        assert_eq!(fixture.due().len(), 0);
        assert_eq!(fixture.read(&content("23:22:29", "http"), 0), "put");
        assert_eq!(fixture.update(FileRead::Missing), "deleted");
        assert_eq!(fixture.update(FileRead::Missing), "nothing");
    }

    #[test]
    fn files_expire_20_seconds_after_their_last_write() {
        let mut fixture = FilesFixture::new();
        assert_eq!(fixture.read("{}", 21), "nothing");
        assert_eq!(fixture.read("{}", 15), "put");
        fixture.advance(4);
        assert_eq!(fixture.update(FileRead::Unchanged), "nothing");
        fixture.advance(1);
        assert_eq!(fixture.due(), [NAME]);
        assert_eq!(fixture.update(FileRead::Unchanged), "deleted");
        assert_eq!(fixture.due().len(), 0);
        assert_eq!(fixture.read("{}", 20), "nothing");
        assert_eq!(fixture.read("{}", 0), "put", "written again");
        assert_eq!(fixture.read("{}", 3600), "deleted", "modification time set back");
    }

    #[test]
    fn a_modification_time_in_the_future_counts_as_the_current_time_once() {
        let mut fixture = FilesFixture::new();
        let modified = fixture.now.wall + Duration::from_secs(3600);
        let unchanged = || FileRead::Content { modified, content: b"{}".to_vec() };
        assert_eq!(fixture.read("{}", -3600), "put");
        fixture.advance(19);
        assert_eq!(fixture.update(unchanged()), "nothing");
        fixture.advance(1);
        assert_eq!(fixture.update(unchanged()), "deleted");
        fixture.advance(1);
        assert_eq!(fixture.update(unchanged()), "nothing");
        assert_eq!(fixture.files.count_alive(), 0);
    }

    #[test]
    fn a_jump_of_the_wall_clock_restarts_every_time_to_live() {
        for (forward, by) in [(true, 3600), (false, 3600), (true, 86_400 * 30)] {
            let mut fixture = FilesFixture::new();
            assert_eq!(fixture.read("{}", 0), "put");
            fixture.advance(19);
            let by = Duration::from_secs(by);
            let before = fixture.now.wall;
            fixture.now.wall = if forward { before + by } else { before - by };
            assert!(fixture.files.detect_clock_jump(fixture.now));
            fixture.advance(19);
            assert_eq!(fixture.update(FileRead::Unchanged), "nothing");
            // The file was written just before the jump and read after it.
            let read = FileRead::Content { modified: before, content: b"{}".to_vec() };
            assert_eq!(fixture.update(read), "nothing");
            fixture.advance(if forward { 1 } else { 20 });
            assert_eq!(fixture.update(FileRead::Unchanged), "deleted");
        }
    }

    #[test]
    fn invalid_content_is_ignored_during_the_write_grace() {
        let mut fixture = FilesFixture::new();
        assert_eq!(fixture.read("", 0), "nothing", "created, not yet written");
        assert!(fixture.files.has_incomplete());
        assert_eq!(fixture.read("{}", 0), "put");
        assert!(!fixture.files.has_incomplete());
        for content in ["", "{\"proto"] {
            assert_eq!(fixture.read(content, 0), "nothing");
            assert_eq!(fixture.due(), [NAME]);
            assert_eq!(fixture.files.modified(NAME.as_ref()), None, "must be read again");
            fixture.advance(1);
            assert_eq!(fixture.update(FileRead::Failed), "nothing");
            assert_eq!(fixture.read("{}", 0), "nothing");
            assert_eq!(fixture.due().len(), 0);
        }
        assert_eq!(fixture.read("", 0), "nothing");
        fixture.advance(2);
        assert_eq!(fixture.read("", 2), "rejected");
        assert!(!fixture.files.has_incomplete());
        assert_eq!(fixture.read("{}", 0), "put");
    }

    #[test]
    fn files_missing_from_a_scan_are_deleted_once() {
        let mut fixture = FilesFixture::new();
        assert_eq!(fixture.read("{}", 0), "put");
        assert!(fixture.files.retain(|name| name == NAME).is_empty());
        assert_eq!(fixture.files.retain(|_| false).len(), 1);
        assert_eq!(fixture.files.retain(|_| false).len(), 0);
    }

    #[test]
    fn files_of_a_restored_directory_keep_their_remaining_time_to_live() {
        let mut fixture = FilesFixture::new();
        assert_eq!(fixture.read("{}", 12), "put");
        fixture.advance(5);
        assert_eq!(fixture.files.suspend(fixture.now.monotonic), 1);
        assert_eq!(fixture.files.count_alive(), 0);
        fixture.advance(600);
        assert_eq!(fixture.read("{}", 618), "nothing", "another file of this name");
        assert_eq!(fixture.read("{}", 617), "put");
        fixture.advance(2);
        assert_eq!(fixture.update(FileRead::Unchanged), "nothing");
        fixture.advance(1);
        assert_eq!(fixture.update(FileRead::Unchanged), "deleted");

        fixture.files.suspend(fixture.now.monotonic);
        fixture.files.end_suspension();
        assert_eq!(fixture.read("{}", 620), "nothing");
    }

    #[test]
    fn the_time_to_live_pauses_while_files_cannot_be_read() {
        let mut fixture = FilesFixture::new();
        assert_eq!(fixture.read("{}", 15), "put");
        fixture.advance(60);
        fixture.files.extend(Duration::from_secs(60));
        fixture.advance(4);
        assert_eq!(fixture.update(FileRead::Unchanged), "nothing");
        fixture.advance(1);
        assert_eq!(fixture.update(FileRead::Unchanged), "deleted");
    }

    #[test]
    fn file_names_that_are_not_utf_8_are_escaped_in_keys() {
        assert_eq!(&*key(OsStr::from_bytes(b"a#\xff")), "a#\\xff");
        assert_eq!(&*key(OsStr::new("a#ü")), "a#ü");
    }
}
