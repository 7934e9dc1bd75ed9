//! What the battery needs from a kind of registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Reason why a case does not apply to a kind, as the table shows it.
pub(crate) type Inapplicable = &'static str;

/// A registry of one kind, with its own store: a real one, if a package has its server.
///
/// The methods write what a GoFrame program writes, with a client of the store that is not
/// svcdns's. They panic if the store refuses.
pub(crate) trait Kind {
    /// Returns the configuration, the section `[registry.store]` for most kinds.
    fn section(&self) -> String;

    /// Registers an instance, or gives it new metadata, and keeps it alive as its program would.
    ///
    /// Returns the time just before the store was asked to.
    fn put(&mut self, instance: &Instance) -> Instant;

    /// Registers many instances at once.
    fn put_many(&mut self, instances: &[Instance]);

    /// Returns the programs, if their registrations can change while svcdns runs.
    fn programs(&mut self) -> Result<&mut dyn Programs, Inapplicable>;

    /// Returns the server of the store.
    fn store(&mut self) -> Result<&mut dyn Store, Inapplicable>;

    /// Returns the secret that the store requires.
    fn login(&mut self) -> Result<&mut dyn Login, Inapplicable>;
}

/// A kind to which every case applies: its store has a server, and may require a secret.
pub(crate) trait ServedKind: Programs + Store + Login {
    /// See [`Kind::section`].
    fn section(&self) -> String;
    /// See [`Kind::put`].
    fn put(&mut self, instance: &Instance) -> Instant;
    /// See [`Kind::put_many`].
    fn put_many(&mut self, instances: &[Instance]);
}

impl<K: ServedKind> Kind for K {
    fn section(&self) -> String {
        ServedKind::section(self)
    }

    fn put(&mut self, instance: &Instance) -> Instant {
        ServedKind::put(self, instance)
    }

    fn put_many(&mut self, instances: &[Instance]) {
        ServedKind::put_many(self, instances);
    }

    fn programs(&mut self) -> Result<&mut dyn Programs, Inapplicable> {
        Ok(self)
    }

    fn store(&mut self) -> Result<&mut dyn Store, Inapplicable> {
        Ok(self)
    }

    fn login(&mut self) -> Result<&mut dyn Login, Inapplicable> {
        Ok(self)
    }
}

/// The programs that have registered the instances of a [`Kind`].
pub(crate) trait Programs {
    /// Removes an instance as its program does when it is stopped; returns the time before it.
    fn remove(&mut self, instance: &Instance) -> Instant;

    /// Lets the program of an instance die: nothing removes the instance or keeps it alive.
    fn let_die(&mut self, instance: &Instance);

    /// Removes all instances of [`Kind::put_many`] as one change, if the store has such a call.
    fn remove_many(&mut self, instances: &[Instance]);

    /// Writes invalid entries of every sort; returns what `ls --rejected` must show of each.
    fn put_invalid(&mut self) -> Vec<String>;

    /// Watches a service with the store's own client; sends the time of every notification.
    ///
    /// A change after the call is notified.
    fn notifications(&self, _name: &str) -> Option<Receiver<Instant>> {
        None
    }
}

/// How long things take with a kind of registry that has a server.
#[derive(Clone, Copy)]
pub(crate) struct Facts {
    /// Longest time that an instance stays after its program has died.
    pub(crate) expiry: Duration,
    /// Longest time-out of svcdns on a connection to the store.
    pub(crate) longest_timeout: Duration,
    /// Whether GoFrame's programs register again once the store has lost its data.
    pub(crate) programs_return_after_a_wipe: bool,
}

/// The server of a store, a process of its own.
pub(crate) trait Store {
    /// Returns how long things take with this kind.
    fn facts(&self) -> Facts;
    /// Returns the address that messages must name, `host:port`.
    fn address(&self) -> String;
    /// Returns the process, whose processor time the battery reads, if it is one of its own.
    fn pid(&self) -> Option<u32>;
    /// Ends the server with SIGKILL.
    fn kill(&mut self);
    /// Ends the server with SIGKILL and deletes its data.
    fn wipe(&mut self);
    /// Starts the server again, and waits until it serves.
    fn start(&mut self);
    /// Suspends the server with its connections open (SIGSTOP).
    fn stall(&mut self);
    /// Continues a stalled server (SIGCONT).
    fn resume(&mut self);
}

/// A secret of a store, and the file from which svcdns reads it.
pub(crate) trait Login {
    /// Makes the store accept this secret only.
    fn require(&mut self, secret: Secret);
    /// Returns the file from which svcdns reads the secret.
    fn file(&self) -> PathBuf;
    /// Returns a text of the error if the secret is wrong.
    fn refusal(&self) -> &'static str;
}

/// The secrets of a [`Login`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secret {
    First,
    Second,
    Wrong,
}

impl Secret {
    /// Returns the secret, in the form of a UUID, the only one that every store accepts.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::First => "5ec4e701-0000-4000-8000-000000000001",
            Self::Second => "5ec4e702-0000-4000-8000-000000000002",
            Self::Wrong => "5ec4e703-0000-4000-8000-000000000003",
        }
    }

    /// Replaces a file by one with the secret.
    pub(crate) fn write(self, file: &Path) {
        let new = file.with_extension("new");
        fs::write(&new, self.text()).unwrap();
        fs::rename(new, file).unwrap();
    }

    /// The text with which every secret begins.
    pub(crate) const START: &str = "5ec4e70";
}

/// Returns the keys of a user whose password is in a file.
pub(crate) fn login_keys(user: &str, file: &Path) -> String {
    format!("username = \"{user}\"\npassword-file = \"{}\"\n", file.display())
}

/// An instance of a service, with one endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    /// The name that its program registers.
    pub(crate) name: String,
    /// The address; the port is always 80.
    pub(crate) address: String,
    pub(crate) weight: u16,
}

impl Instance {
    /// An instance at 10.0.0.`last`, without a weight of its own.
    pub(crate) fn new(name: &str, last: u8) -> Self {
        Self { name: name.to_owned(), address: format!("10.0.0.{last}"), weight: 1 }
    }

    /// Returns the same instance with another weight.
    pub(crate) fn weighing(&self, weight: u16) -> Self {
        Self { weight, ..self.clone() }
    }

    /// Returns the metadata in the form of GoFrame: JSON with sorted keys.
    pub(crate) fn metadata(&self) -> String {
        format!(r#"{{"insecure":true,"protocol":"http","weight":{}}}"#, self.weight)
    }
}

/// A program that keeps its registration alive, until it is dropped.
///
/// Dropping it is a SIGKILL: it writes nothing from then on, and removes nothing.
pub(crate) struct Program {
    is_dead: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Program {
    /// Calls `renew` at this interval, for the first time after one interval.
    pub(crate) fn start(interval: Duration, mut renew: impl FnMut() + Send + 'static) -> Self {
        let is_dead = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_dead);
        let thread = thread::spawn(move || {
            loop {
                let next = Instant::now() + interval;
                while let Some(left) = next.checked_duration_since(Instant::now()) {
                    if seen.load(Ordering::Relaxed) {
                        return;
                    }
                    thread::park_timeout(left);
                }
                renew();
            }
        });
        Self { is_dead, thread: Some(thread) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.is_dead.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
