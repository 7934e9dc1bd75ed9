//! What the service manager is told: sd_notify(3), without its library.
//!
//! The server does not depend on the manager: sending never waits, and a failure is only logged.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use crate::admin::HealthReport;

/// Variable with the address of the manager's socket: a path, or `@` and an abstract name.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// Variable with the time within which the manager must hear of the server, in microseconds.
const WATCHDOG_VARIABLE: &str = "WATCHDOG_USEC";

/// Variable with the ID of the process that must send, if not any.
const WATCHDOG_PROCESS_VARIABLE: &str = "WATCHDOG_PID";

/// Variable with the ID of the service's process, from systemd 248 on.
const MAIN_PROCESS_VARIABLE: &str = "SYSTEMD_EXEC_PID";

/// Variable with the ID of this run of the service.
const INVOCATION_VARIABLE: &str = "INVOCATION_ID";

/// Interval at which a changed status is noticed.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum length of the status, in bytes; `systemctl status` shows one line.
const MAX_STATUS_BYTES: usize = 400;

/// Tells the service manager about the server, if it was started by one.
#[derive(Clone, Debug, Default)]
pub struct Notifier(Option<Arc<Manager>>);

/// The service manager that started the server.
#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Interval of the signs of life, if the manager wants any.
    watchdog: Option<Duration>,
    state: Mutex<NotifiedState>,
}

/// What the manager knows.
#[derive(Debug, Default)]
struct NotifiedState {
    /// The last state could not be sent yet.
    unsent: Option<String>,
    is_stopping: bool,
    has_failed: bool,
}

/// Guard of a reload: the manager regards the server as reloading until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it reports the end of the reload"]
pub struct ReloadNotice(Notifier);

impl Notifier {
    /// Returns the notifier for the manager that the environment names, if any.
    pub fn from_environment() -> Self {
        let Some(name) = std::env::var_os(SOCKET_VARIABLE).filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        let own = std::process::id().to_string();
        let is_meant = std::env::var(WATCHDOG_PROCESS_VARIABLE).map_or(true, |id| id == own);
        let watchdog = std::env::var(WATCHDOG_VARIABLE).ok().filter(|_| is_meant);
        let watchdog = watchdog.and_then(|micros| micros.parse().ok()).map(Duration::from_micros);
        match Manager::at(&name, watchdog.filter(|limit| !limit.is_zero())) {
            Ok(manager) => Self(Some(Arc::new(manager))),
            Err(error) => {
                tracing::warn!(
                    socket = %name.to_string_lossy(),
                    %error,
                    "cannot notify the service manager ({SOCKET_VARIABLE})"
                );
                Self::default()
            }
        }
    }

    /// Returns whether a service manager would start another server after the end of this one.
    ///
    /// The programs that a service starts, such as a user's shell, inherit some of the variables.
    pub(super) fn has_service_manager() -> bool {
        let own = std::process::id().to_string();
        let is_main = std::env::var(MAIN_PROCESS_VARIABLE).map_or(true, |id| id == own);
        std::env::var_os(SOCKET_VARIABLE).is_some()
            || is_main && std::env::var_os(INVOCATION_VARIABLE).is_some()
    }

    /// Reports that the server answers queries.
    pub fn ready(&self) {
        self.state("READY=1");
    }

    /// Reports a reload, and its end once the returned guard is dropped, however it ended.
    pub fn reloading(&self) -> ReloadNotice {
        // In the same message: from version 253 on, systemd ignores the first without the second,
        // and then waits for the end of the reload until its time-out.
        let now = clock_gettime(ClockId::Monotonic);
        let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.state(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
        ReloadNotice(self.clone())
    }

    /// Reports that the server is shutting down; later reports of its start are not sent.
    pub fn stopping(&self) {
        if let Some(manager) = &self.0 {
            let mut known = manager.lock();
            if !std::mem::replace(&mut known.is_stopping, true) {
                manager.send_state(&mut known, "STOPPING=1");
            }
        }
    }

    /// Reports the health in words, and signs of life, until `stop` is cancelled.
    ///
    /// A server that hangs gives no sign of life, and systemd restarts it.
    pub async fn follow(self, health: impl Fn() -> HealthReport, stop: CancellationToken) {
        let Some(manager) = &self.0 else { return };
        // Half of the limit, as sd_watchdog_enabled(3) recommends.
        let watchdog = manager.watchdog.map(|limit| limit / 2);
        let period = watchdog.unwrap_or(STATUS_INTERVAL);
        let mut signs = interval_at(Instant::now(), period);
        // Two signs in a row would find no work between them.
        signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reported = String::new();
        loop {
            manager.resend();
            let status = one_line(&health().to_string());
            if status != reported {
                manager.send(&format!("STATUS={status}"));
                reported = status;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = signs.tick(), if watchdog.is_some() => {
                    if health().is_live() {
                        manager.send("WATCHDOG=1");
                    }
                }
                () = sleep(STATUS_INTERVAL) => {}
            }
        }
    }

    fn state(&self, state: &str) {
        if let Some(manager) = &self.0 {
            manager.state(state);
        }
    }
}

impl Drop for ReloadNotice {
    fn drop(&mut self) {
        self.0.ready();
    }
}

impl Manager {
    /// Opens a socket for messages to this address.
    fn at(name: &OsString, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::new(ErrorKind::Unsupported, "not a Unix socket")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address, watchdog, state: Mutex::default() })
    }

    /// Sends a change of state, which replaces one that was not sent yet.
    fn state(&self, state: &str) {
        let mut known = self.lock();
        if !known.is_stopping {
            self.send_state(&mut known, state);
        }
    }

    /// Sends a change of state while no other thread can decide to send one.
    fn send_state(&self, known: &mut NotifiedState, state: &str) {
        known.unsent = match self.socket.send_to_addr(state.as_bytes(), &self.address) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(state.to_owned()),
            sent => {
                note_failure(known, sent);
                None
            }
        };
    }

    /// Sends the last change of state, if the queue of the manager had no room for it.
    fn resend(&self) {
        let mut known = self.lock();
        if let Some(unsent) = known.unsent.take() {
            self.send_state(&mut known, &unsent);
        }
    }

    /// Sends a message that the next one makes obsolete.
    fn send(&self, message: &str) {
        let sent = self.socket.send_to_addr(message.as_bytes(), &self.address);
        note_failure(&mut self.lock(), sent);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, NotifiedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs the first failure only: the server works without its manager.
fn note_failure(known: &mut NotifiedState, sent: io::Result<usize>) {
    if let Err(error) = sent
        && error.kind() != ErrorKind::WouldBlock
        && !std::mem::replace(&mut known.has_failed, true)
    {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Returns the text as one line of limited length.
fn one_line(text: &str) -> String {
    let mut line = text.trim().replace('\n', "; ");
    let end = (0..=MAX_STATUS_BYTES.min(line.len())).rev().find(|&end| line.is_char_boundary(end));
    line.truncate(end.unwrap_or_default());
    line
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// A generous deadline for a message.
    const SOON: Duration = Duration::from_secs(60);

    /// Opens the socket of a manager, and the notifier for it.
    fn manager(watchdog: Option<Duration>) -> (tempfile::TempDir, UnixDatagram, Notifier) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let manager = Manager::at(&path.into_os_string(), watchdog).unwrap();
        (folder, socket, Notifier(Some(Arc::new(manager))))
    }

    fn next(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 1024];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_reload_is_one_message_with_its_time_and_ends_with_ready() {
        let (_folder, socket, notifier) = manager(None);
        notifier.ready();
        assert_eq!(next(&socket), "READY=1");
        let notice = notifier.reloading();
        let message = next(&socket);
        let micros = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0, "{message}");
        drop(notice);
        assert_eq!(next(&socket), "READY=1");

        let notice = notifier.reloading();
        next(&socket);
        notifier.stopping();
        drop(notice);
        assert_eq!(next(&socket), "STOPPING=1");
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0]).is_err(), "no start after the stop");
    }

    #[test]
    fn an_abstract_address_works() {
        let name = format!("svcdns-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notifier(Some(Arc::new(Manager::at(&format!("@{name}").into(), None).unwrap()))).ready();
        assert_eq!(next(&socket), "READY=1");
        assert!(Manager::at(&"vsock:2:1".into(), None).is_err());
    }

    #[tokio::test]
    async fn a_manager_that_reads_nothing_delays_nothing_and_gets_the_last_state() {
        let (_folder, socket, notifier) = manager(None);
        // More than the queue of a socket takes (net.unix.max_dgram_qlen).
        for _ in 0..3000 {
            drop(notifier.reloading());
        }
        socket.set_nonblocking(true).unwrap();
        let mut bytes = [0; 1024];
        while socket.recv(&mut bytes).is_ok() {}
        let stop = CancellationToken::new();
        let follow = notifier.follow(HealthReport::default, stop.clone());
        let task = tokio::spawn(follow);
        let read = tokio::task::spawn_blocking(move || {
            socket.set_nonblocking(false).unwrap();
            [next(&socket), next(&socket)]
        });
        assert_eq!(read.await.unwrap(), ["READY=1", "STATUS=ready"]);
        stop.cancel();
        task.await.unwrap();
    }

    #[test]
    fn a_manager_that_is_gone_is_no_error() {
        let (folder, socket, notifier) = manager(None);
        drop((folder, socket));
        drop(notifier.reloading());
        notifier.stopping();
        Notifier::default().ready();
    }

    #[tokio::test]
    async fn signs_of_life_end_when_the_work_does() {
        let (_folder, socket, notifier) = manager(Some(Duration::from_millis(20)));
        let (stop, alive) = (CancellationToken::new(), Arc::new(AtomicBool::new(true)));
        let (asked, is_alive) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&alive));
        let count = Arc::clone(&asked);
        let health = move || {
            count.fetch_add(1, Ordering::Relaxed);
            let hanging = if is_alive.load(Ordering::Relaxed) { vec![] } else { vec!["x".into()] };
            HealthReport { hanging, ..HealthReport::default() }
        };
        let task = tokio::spawn(notifier.follow(health, stop.clone()));
        let read = tokio::task::spawn_blocking(move || {
            let messages = [next(&socket), next(&socket), next(&socket)];
            alive.store(false, Ordering::Relaxed);
            let wait_for_more = || {
                let (before, begun) = (asked.load(Ordering::Relaxed), std::time::Instant::now());
                while asked.load(Ordering::Relaxed) < before + 3 && begun.elapsed() < SOON {
                    std::thread::sleep(Duration::from_millis(1));
                }
            };
            wait_for_more();
            // Messages from before.
            socket.set_nonblocking(true).unwrap();
            while socket.recv(&mut [0; 64]).is_ok() {}
            wait_for_more();
            (messages, socket.recv(&mut [0; 64]).is_err())
        });
        let (messages, is_silent) = read.await.unwrap();
        assert_eq!(messages, ["STATUS=ready", "WATCHDOG=1", "WATCHDOG=1"]);
        assert!(is_silent, "a sign of life of a server that does nothing");
        stop.cancel();
        task.await.unwrap();
    }

    #[test]
    fn a_long_status_is_cut_between_characters() {
        let line = one_line(&"ü".repeat(MAX_STATUS_BYTES));
        assert_eq!(line, "ü".repeat(MAX_STATUS_BYTES / 2));
    }
}
