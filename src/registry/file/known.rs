//! What was said of each file, so that only differences are said: when it was last written, until when it counts, and a
//! digest of its content; never the content itself.
//!
//! A file counts for a while after it was last written. Its age is taken once, when a new time of writing is seen, and
//! from then on measured by the monotonic clock: a time of writing in the future, a step of the wall clock and a
//! suspended machine then kill nobody and let nobody live for ever.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant, SystemTime};

use crate::registry::gsvc;
use crate::service::{Change, Put, Reason, Registration, Rejected, Removal};

use super::Timings;
use super::folder::Found;

/// A difference between the clocks' progress that no scheduling explains.
const JUMP: Duration = Duration::from_secs(2);

/// A folder, a pipe, a device or a symbolic link where a file is expected, or no permission to read it.
pub const UNREADABLE: Reason = Reason::new("unreadable", "not a regular file that can be read");

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) wall: SystemTime,
    pub(super) monotonic: Instant,
}

/// The files that were seen, by name.
#[derive(Debug)]
pub(super) struct Known {
    timings: Timings,
    /// One for each file in the folder. The catalog alone limits how many are served, and lists the surplus as
    /// rejected.
    files: HashMap<OsString, File>,
    /// Files whose content makes no sense since then: their writers may be at it.
    unsettled: HashMap<OsString, Instant>,
    hasher: RandomState,
    last: Option<Moment>,
    /// Until then an old time of writing proves nothing: the wall clock has jumped.
    lenient: Option<Instant>,
}

#[derive(Debug)]
struct File {
    written: SystemTime,
    deadline: Instant,
    digest: u64,
    /// Whether it counts. One that is dead is remembered as long as it lies there, for its time of writing may look young.
    alive: bool,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { wall: SystemTime::now(), monotonic: Instant::now() }
    }
}

impl Known {
    pub(super) fn new(timings: Timings) -> Self {
        Self { timings, files: HashMap::new(), unsettled: HashMap::new(), hasher: RandomState::new(), last: None, lenient: None }
    }

    /// Compares the clocks; after a jump of the wall clock every live file gets its whole time again. Returns whether it jumped.
    pub(super) fn jumped(&mut self, now: Moment) -> bool {
        let Some(last) = self.last.replace(now) else { return false };
        let monotonic = now.monotonic.saturating_duration_since(last.monotonic);
        let jumped = match now.wall.duration_since(last.wall) {
            Ok(wall) => wall.abs_diff(monotonic) > JUMP,
            Err(back) => back.duration() + monotonic > JUMP,
        };
        if jumped {
            let fresh = now.monotonic + self.timings.dead_after;
            self.lenient = Some(fresh);
            for file in self.files.values_mut().filter(|file| file.alive) {
                file.deadline = fresh;
            }
        }
        jumped
    }

    /// When this file was last written as far as its content is known: it need not be read again.
    pub(super) fn written(&self, name: &OsStr) -> Option<SystemTime> {
        if self.unsettled.contains_key(name) {
            return None;
        }
        self.files.get(name).map(|file| file.written)
    }

    /// The difference that a look at a file makes.
    pub(super) fn see(&mut self, name: &OsStr, found: Found, now: Moment) -> Option<Change> {
        let (written, content) = match found {
            Found::Gone => return self.forget(name),
            Found::Unchanged => return self.expire(name, now),
            Found::Failed => (None, Err(Unsettled(Rejected::new(&name.to_string_lossy(), UNREADABLE)))),
            Found::Unreadable { written } => (Some(written), Ok(Err(Rejected::new(&name.to_string_lossy(), UNREADABLE)))),
            Found::File { written, content } => (Some(written), read(name, &content)),
        };
        if written.is_some_and(|written| !self.refresh(name, written, now)) {
            return self.expire(name, now);
        }
        let content = match content {
            Ok(content) => content,
            Err(Unsettled(rejected)) => {
                let since = *self.unsettled.entry(name.into()).or_insert(now.monotonic);
                if now.monotonic.saturating_duration_since(since) < self.timings.patience {
                    return None;
                }
                Err(rejected)
            }
        };
        self.unsettled.remove(name);
        self.say(name, content, written.unwrap_or(now.wall), now)
    }

    /// Whether a file last written then counts now; notes the time where it is known already.
    fn refresh(&mut self, name: &OsStr, written: SystemTime, now: Moment) -> bool {
        let lenient = self.lenient.is_some_and(|until| now.monotonic < until);
        let deadline = self.deadline(written, now);
        match self.files.get_mut(name) {
            Some(file) if file.written == written => file.alive && now.monotonic < file.deadline,
            Some(file) => {
                file.written = written;
                file.deadline = deadline.unwrap_or(if lenient && file.alive { file.deadline } else { now.monotonic });
                now.monotonic < file.deadline
            }
            None => deadline.is_some(),
        }
    }

    /// Until when a file counts whose time of writing is seen first now; none where it is dead. The future counts as now.
    fn deadline(&self, written: SystemTime, now: Moment) -> Option<Instant> {
        let age = now.wall.duration_since(written).unwrap_or_default();
        self.timings.dead_after.checked_sub(age).filter(|left| !left.is_zero()).map(|left| now.monotonic + left)
    }

    fn say(&mut self, name: &OsStr, content: Result<Registration, Rejected>, written: SystemTime, now: Moment) -> Option<Change> {
        // Who and where stand in the name, which is the key here.
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
            let deadline = self.deadline(written, now)?;
            self.files.insert(name.into(), File { written, deadline, digest, alive: true });
        }
        Some(Change::Put(Put { key: key(name), revision: 0, lease: 0, content }))
    }

    fn expire(&mut self, name: &OsStr, now: Moment) -> Option<Change> {
        let file = self.files.get_mut(name).filter(|file| file.alive && file.deadline <= now.monotonic)?;
        file.alive = false;
        self.unsettled.remove(name);
        Some(deleted(name))
    }

    fn forget(&mut self, name: &OsStr) -> Option<Change> {
        self.unsettled.remove(name);
        self.files.remove(name).filter(|file| file.alive).map(|_| deleted(name))
    }

    /// Forgets every file that a full look at the folder did not find.
    pub(super) fn keep_only(&mut self, present: impl Fn(&OsStr) -> bool) -> Vec<Change> {
        self.unsettled.retain(|name, _| present(name));
        self.files.extract_if(|name, _| !present(name)).filter(|(_, file)| file.alive).map(|(name, _)| deleted(&name)).collect()
    }

    /// The files that must be looked at without any news of them: their time is up, or they made no sense.
    pub(super) fn due(&self, now: Instant) -> Vec<OsString> {
        let expired = self.files.iter().filter(|(_, file)| file.alive && file.deadline <= now).map(|(name, _)| name);
        expired.chain(self.unsettled.keys()).cloned().collect()
    }

    /// Whether a file must be looked at again shortly.
    pub(super) fn is_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Number of files that count.
    #[cfg(test)]
    fn alive(&self) -> usize {
        self.files.values().filter(|file| file.alive).count()
    }
}

/// A content that makes no sense, though it may in a moment: GoFrame empties a file before it writes it.
struct Unsettled(Rejected);

fn read(name: &OsStr, content: &[u8]) -> Result<Result<Registration, Rejected>, Unsettled> {
    match gsvc::parse_file_name(name.as_bytes(), content) {
        // GoFrame never writes an empty file: there is always `UpdateAt`.
        Ok(_) if content.trim_ascii().is_empty() => Err(Unsettled(Rejected::new("", gsvc::VALUE_NOT_JSON))),
        Err(rejected) if rejected.reason == gsvc::VALUE_NOT_JSON => Err(Unsettled(rejected)),
        content => Ok(content),
    }
}

/// The key of a file: its name.
fn key(name: &OsStr) -> Box<str> {
    name.to_str().map_or_else(|| name.as_bytes().escape_ascii().to_string().into(), Into::into)
}

fn deleted(name: &OsStr) -> Change {
    Change::Delete { key: key(name), revision: 0, removal: Removal::Explicit }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "service#default#default#a#latest#10.0.0.1-80";

    struct Test {
        known: Known,
        now: Moment,
    }

    impl Test {
        fn new() -> Self {
            let mut test = Self { known: Known::new(Timings::default()), now: Moment::now() };
            test.known.jumped(test.now);
            test
        }

        fn pass(&mut self, seconds: u64) {
            let step = Duration::from_secs(seconds);
            self.now = Moment { wall: self.now.wall + step, monotonic: self.now.monotonic + step };
            assert!(!self.known.jumped(self.now));
        }

        /// What a look says of a file with this content, written that many seconds ago.
        fn look(&mut self, content: &str, age: i64) -> &'static str {
            let age_of = Duration::from_secs(age.unsigned_abs());
            let written = if age < 0 { self.now.wall + age_of } else { self.now.wall - age_of };
            self.see(Found::File { written, content: content.into() })
        }

        fn see(&mut self, found: Found) -> &'static str {
            match self.known.see(NAME.as_ref(), found, self.now) {
                None => "nothing",
                Some(Change::Put(Put { content: Ok(_), .. })) => "put",
                Some(Change::Put(Put { content: Err(_), .. })) => "rejected",
                Some(Change::Delete { .. }) => "deleted",
                Some(_) => "something else",
            }
        }
    }

    #[test]
    fn a_refresh_is_no_change() {
        let mut test = Test::new();
        assert_eq!(test.look(r#"{"UpdateAt":"2026-11-22 23:22:19","protocol":"grpc"}"#, 0), "put");
        test.pass(10);
        assert_eq!(test.look(r#"{"UpdateAt":"2026-11-22 23:22:29","protocol":"grpc"}"#, 0), "nothing");
        test.pass(15);
        assert_eq!(test.known.due(test.now.monotonic).len(), 0);
        assert_eq!(test.look(r#"{"UpdateAt":"2026-11-22 23:22:29","protocol":"http"}"#, 0), "put");
        assert_eq!(test.see(Found::Gone), "deleted");
        assert_eq!(test.see(Found::Gone), "nothing");
    }

    #[test]
    fn a_file_dies_twenty_seconds_after_its_last_writing() {
        let mut test = Test::new();
        assert_eq!(test.look("{}", 21), "nothing");
        assert_eq!(test.look("{}", 15), "put");
        test.pass(4);
        assert_eq!(test.see(Found::Unchanged), "nothing");
        test.pass(1);
        assert_eq!(test.known.due(test.now.monotonic), [NAME]);
        assert_eq!(test.see(Found::Unchanged), "deleted");
        assert_eq!(test.known.due(test.now.monotonic).len(), 0);
        assert_eq!(test.look("{}", 20), "nothing");
        assert_eq!(test.look("{}", 0), "put", "written again");
        assert_eq!(test.look("{}", 3600), "deleted", "its time of writing set back");
    }

    #[test]
    fn a_time_of_writing_in_the_future_counts_as_now_once() {
        let mut test = Test::new();
        let written = test.now.wall + Duration::from_secs(3600);
        assert_eq!(test.look("{}", -3600), "put");
        test.pass(19);
        assert_eq!(test.see(Found::File { written, content: b"{}".to_vec() }), "nothing");
        test.pass(1);
        assert_eq!(test.see(Found::File { written, content: b"{}".to_vec() }), "deleted");
        test.pass(1);
        assert_eq!(test.see(Found::File { written, content: b"{}".to_vec() }), "nothing");
        assert_eq!(test.known.alive(), 0);
    }

    #[test]
    fn a_jump_of_the_wall_clock_gives_everyone_their_time_again() {
        for (forward, by) in [(true, 3600), (false, 3600), (true, 86_400 * 30)] {
            let mut test = Test::new();
            assert_eq!(test.look("{}", 0), "put");
            test.pass(19);
            let by = Duration::from_secs(by);
            let before = test.now.wall;
            test.now.wall = if forward { before + by } else { before - by };
            assert!(test.known.jumped(test.now));
            test.pass(19);
            assert_eq!(test.see(Found::Unchanged), "nothing");
            // Written just before the jump, seen after it.
            assert_eq!(test.see(Found::File { written: before, content: b"{}".to_vec() }), "nothing");
            test.pass(if forward { 1 } else { 20 });
            assert_eq!(test.see(Found::Unchanged), "deleted");
        }
    }

    #[test]
    fn an_empty_moment_keeps_what_was_said() {
        let mut test = Test::new();
        assert_eq!(test.look("", 0), "nothing", "made, not yet written");
        assert!(test.known.is_unsettled());
        assert_eq!(test.look("{}", 0), "put");
        assert!(!test.known.is_unsettled());
        for content in ["", "{\"proto"] {
            assert_eq!(test.look(content, 0), "nothing");
            assert_eq!(test.known.due(test.now.monotonic), [NAME]);
            assert_eq!(test.known.written(NAME.as_ref()), None, "it must be read again");
            test.pass(1);
            assert_eq!(test.see(Found::Failed), "nothing");
            assert_eq!(test.look("{}", 0), "nothing");
            assert_eq!(test.known.due(test.now.monotonic).len(), 0);
        }
        assert_eq!(test.look("", 0), "nothing");
        test.pass(2);
        assert_eq!(test.look("", 2), "rejected");
        assert!(!test.known.is_unsettled());
        assert_eq!(test.look("{}", 0), "put");
    }

    #[test]
    fn what_a_full_look_does_not_find_is_gone() {
        let mut test = Test::new();
        assert_eq!(test.look("{}", 0), "put");
        assert!(test.known.keep_only(|name| name == NAME).is_empty());
        assert_eq!(test.known.keep_only(|_| false).len(), 1);
        assert_eq!(test.known.keep_only(|_| false).len(), 0);
    }

    #[test]
    fn names_that_are_no_text_have_a_key_too() {
        assert_eq!(&*key(OsStr::from_bytes(b"a#\xff")), "a#\\xff");
        assert_eq!(&*key(OsStr::new("a#ü")), "a#ü");
    }
}
