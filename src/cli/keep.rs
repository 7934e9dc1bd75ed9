//! `svcdns keep`: restores the `nameserver` line that another program removes.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use hickory_proto::rr::RecordType;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::privilege::require_root;
use super::resolve;
use crate::daemon::{HangUp, Log, ShutdownSignals};
use crate::name::Name;
use crate::path_watch::{ChangeSignal, PathWatches};
use crate::resolv_conf::RESOLV_CONF;
use crate::system::{
    self, JOURNAL_FOLDER, JournalError, LineCheck, LostLine, RemovedLine, RestoreError, Root,
};

/// The messages that are logged.
const LOG_FILTER: &str = "error,svcdns=info";

/// Delay between a change and the reading, because the writer may not be done.
const SETTLE: Duration = Duration::from_millis(200);

/// Longest time between two readings if no change is reported.
const POLL_INTERVAL: Duration = Duration::from_secs(30);

/// Pause before another attempt if a precondition is not met yet.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Longest wait for a writer that has left the file empty or incomplete.
///
/// A DHCP client removes the file, then writes it: the name servers of its lease are still to come.
const UNFINISHED_WAIT: Duration = Duration::from_secs(3);

pub(super) async fn run() -> anyhow::Result<ExitCode> {
    require_root("keep")?;
    let root = Root::default();
    if matches!(system::check_line(&root)?, LineCheck::NotInstalled) {
        bail!("no line in {RESOLV_CONF} is to be kept: run `svcdns install --keep` first");
    }
    let _log = Log::start(LOG_FILTER)?;
    let stop = CancellationToken::new();
    let ending = tokio::spawn(ShutdownSignals::new()?.stop_on(stop.clone(), HangUp::Ignore));
    tokio::select! {
        () = stop.cancelled() => {}
        () = Keeper::new(&root).run() => {
            info!("svcdns is no longer installed: stopped");
        }
    }
    ending.abort();
    Ok(ExitCode::SUCCESS)
}

/// Maintains the `nameserver` line until svcdns is no longer installed.
struct Keeper<'a> {
    root: &'a Root,
    restorations: AttemptPace,
    errors: AttemptPace,
    /// Time since which the file has been empty or incomplete.
    unfinished_since: Option<Instant>,
    /// The end of the pause before the line is restored.
    pause_end: Option<Instant>,
    /// The last warning, which is not repeated.
    last_warning: String,
}

impl<'a> Keeper<'a> {
    fn new(root: &'a Root) -> Self {
        Self {
            root,
            restorations: AttemptPace::default(),
            errors: AttemptPace::default(),
            unfinished_since: None,
            pause_end: None,
            last_warning: String::new(),
        }
    }

    async fn run(mut self) {
        let changes = ChangeSignal::default();
        let paths = [RESOLV_CONF, JOURNAL_FOLDER].map(Into::into).to_vec();
        let mut watches = PathWatches::new(paths, changes.clone());
        loop {
            // The watches come first, so that a change during the reading is reported.
            watches.refresh();
            let wait = match system::check_line(self.root) {
                Ok(LineCheck::NotInstalled) => return,
                Ok(LineCheck::Changing) => RETRY_PAUSE,
                Ok(LineCheck::InEffect) => {
                    self.unfinished_since = None;
                    self.pause_end = None;
                    self.last_warning.clear();
                    POLL_INTERVAL
                }
                Ok(LineCheck::Removed(removed)) => self.restore(removed).await,
                Err(error) => self.report(&error).await,
            };
            tokio::select! {
                () = changes.changed() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Restores the line; returns the time until the next reading if nothing changes.
    async fn restore(&mut self, removed: RemovedLine) -> Duration {
        let RemovedLine { line, lost, unfinished, .. } = removed;
        if let Some(wait) = self.writer_wait(unfinished) {
            return wait;
        }
        if let Some(wait) = self.restoration_wait(&lost) {
            return wait;
        }
        if !responds(line.server).await {
            self.warn(format!(
                "another program has rewritten resolv.conf: {lost}. The nameserver line is not \
                 restored while svcdns does not respond at {}",
                line.server
            ));
            return RETRY_PAUSE;
        }
        match system::restore_line(self.root, unfinished) {
            Ok(true) => {
                self.restorations.record(Instant::now());
                (self.unfinished_since, self.pause_end) = (None, None);
                let servers: Vec<String> = lost
                    .servers
                    .iter()
                    .filter(|server| **server != line.server)
                    .map(ToString::to_string)
                    .collect();
                info!(
                    upstreams = servers.join(" "),
                    "another program had rewritten resolv.conf ({lost}): the nameserver line is \
                     restored"
                );
                POLL_INTERVAL
            }
            Ok(false) => RETRY_PAUSE,
            Err(error) => self.report(&error).await,
        }
    }

    /// Returns the time until the next reading if the writer may not have finished.
    fn writer_wait(&mut self, unfinished: bool) -> Option<Duration> {
        if !unfinished {
            self.unfinished_since = None;
            return None;
        }
        let since = *self.unfinished_since.get_or_insert_with(Instant::now);
        (since.elapsed() < UNFINISHED_WAIT).then_some(RETRY_PAUSE)
    }

    /// Returns the rest of the pause before the line is restored, if there is one.
    ///
    /// The file is read again during and after the pause, because it may change further.
    fn restoration_wait(&mut self, lost: &LostLine) -> Option<Duration> {
        let now = Instant::now();
        let end = match self.pause_end {
            Some(end) => end,
            None => now + self.begin_pause(now, lost),
        };
        self.pause_end = Some(end);
        (now < end).then(|| end - now)
    }

    /// Returns the pause before the line is restored, and logs why there is one.
    fn begin_pause(&mut self, now: Instant, lost: &LostLine) -> Duration {
        let pause = self.restorations.pause(now);
        if let Some(times) = self.restorations.fight() {
            warn!(
                "another program rewrites resolv.conf each time svcdns restores its nameserver \
                 line ({times} times in a row): {lost}. The next repair follows in {}. Turn the \
                 rewriting off in the other program, or run `sudo svcdns uninstall`",
                humantime::format_duration(pause)
            );
        }
        pause
    }

    /// Logs an error and pauses; returns the time until the next reading if nothing changes.
    ///
    /// Changes do not end the pause: the attempt may have caused them, in the journal's directory.
    async fn report(&mut self, error: &RestoreError) -> Duration {
        if matches!(
            error,
            RestoreError::Journal(JournalError::Locked(_) | JournalError::Changed(_))
        ) {
            return RETRY_PAUSE;
        }
        self.warn(format!("cannot restore the nameserver line in resolv.conf now: {error}"));
        let now = Instant::now();
        // The next reading is never later than without a change.
        let pause = self.errors.pause(now).min(POLL_INTERVAL);
        self.errors.record(now);
        tokio::time::sleep(pause).await;
        POLL_INTERVAL.saturating_sub(pause)
    }

    fn warn(&mut self, message: String) {
        if self.last_warning != message {
            warn!("{message}");
            self.last_warning = message;
        }
    }
}

/// Returns whether svcdns answers at an address: without it, no name would resolve.
async fn responds(server: IpAddr) -> bool {
    // Answered without an upstream (RFC 6761 section 6.3).
    let Ok(name) = Name::from_text("localhost") else { return false };
    resolve::query(SocketAddr::new(server, 53), &name, RecordType::A).await.is_ok()
}

/// Pauses between attempts, which double while attempts follow each other closely.
///
/// An attempt restores the line, which another program soon removes; or it ends with an error.
#[derive(Debug, Default)]
struct AttemptPace {
    /// The number of attempts in a row.
    in_a_row: u32,
    last: Option<Instant>,
}

impl AttemptPace {
    /// The first pause.
    const MIN_PAUSE: Duration = Duration::from_secs(1);
    /// The longest pause.
    const MAX_PAUSE: Duration = Duration::from_secs(300);
    /// Time without an attempt after which the next one counts as the first again.
    ///
    /// Other programs have then accepted the line.
    const ACCEPTED_AFTER: Duration = Duration::from_secs(60);

    /// Returns the pause before an attempt that is due at `now`.
    fn pause(&mut self, now: Instant) -> Duration {
        if self.last.is_some_and(|last| now.duration_since(last) >= Self::ACCEPTED_AFTER) {
            self.in_a_row = 0;
        }
        match self.in_a_row {
            0 => Duration::ZERO,
            times => Self::MIN_PAUSE.saturating_mul(1 << (times - 1).min(16)).min(Self::MAX_PAUSE),
        }
    }

    /// Records an attempt.
    fn record(&mut self, now: Instant) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.last = Some(now);
    }

    /// Returns how often the line was removed in a row, if two programs compete.
    fn fight(&self) -> Option<u32> {
        (self.in_a_row >= 2).then_some(self.in_a_row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn retries_slow_down_while_an_error_lasts() {
        let root = Root::at("/nonexistent");
        let mut keeper = Keeper::new(&root);
        let error = || {
            let error = std::io::Error::from(std::io::ErrorKind::StorageFull);
            RestoreError::from(JournalError::System { path: RESOLV_CONF.into(), error })
        };
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let begun = Instant::now();
            let wait = keeper.report(&error()).await;
            pauses.push(begun.elapsed().as_secs());
            assert_eq!(begun.elapsed() + wait, POLL_INTERVAL);
            // A change that the attempt itself has caused.
            tokio::time::sleep(SETTLE).await;
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(keeper.restorations.fight(), None);
        // A later error is the first one again.
        tokio::time::sleep(AttemptPace::ACCEPTED_AFTER).await;
        let begun = Instant::now();
        assert_eq!(keeper.report(&error()).await, POLL_INTERVAL);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[test]
    fn pauses_double_while_two_programs_overwrite_each_other() {
        let mut pace = AttemptPace::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..11 {
            let pause = pace.pause(now);
            now += pause;
            pace.record(now);
            now += Duration::from_millis(200);
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(pace.fight(), Some(11));
        // A DHCP client that renews its lease is no fight.
        for _ in 0..3 {
            now += AttemptPace::ACCEPTED_AFTER;
            assert_eq!(pace.pause(now), Duration::ZERO);
            pace.record(now);
            assert_eq!(pace.fight(), None);
        }
    }
}
