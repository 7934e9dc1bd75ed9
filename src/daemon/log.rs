//! The log of the server.

use std::io::IsTerminal;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::Formatter;
use tracing_subscriber::fmt::format::{DefaultFields, Format};
use tracing_subscriber::reload::Handle;
use tracing_subscriber::{EnvFilter, fmt};

/// Limit on lines that wait to be written; further lines are dropped and counted.
const MAX_WAITING_LINES: usize = 8_192;

/// The server's log, written to standard error by a thread of its own.
///
/// The reader of standard error may stall: a paused terminal, a full pipe, a log service that
/// hangs. The threads that answer queries also log, and must not wait for the reader. Dropping the
/// log writes the waiting lines, for at most 1 s.
#[derive(Debug)]
pub struct Log {
    lost: ErrorCounter,
    filter: LogFilter,
    _writer: WorkerGuard,
}

/// The filter of the log, which can be replaced.
#[derive(Clone, Debug)]
pub(super) struct LogFilter(Handle<EnvFilter, LogFormatter>);

/// What formats and writes the lines of the log.
type LogFormatter = Formatter<DefaultFields, Format, NonBlocking>;

impl LogFilter {
    /// Parses a list of `tracing` directives.
    ///
    /// # Errors
    /// If the filter is invalid.
    pub(super) fn parse(filter: &str) -> Result<EnvFilter, ParseError> {
        EnvFilter::builder().parse(filter)
    }

    /// Logs the events that pass `filter` from now on.
    pub(super) fn replace(&self, filter: EnvFilter) {
        // Fails only if the log has ended.
        let _ = self.0.reload(filter);
    }
}

impl Log {
    /// Starts to log the events that pass `filter`, a list of `tracing` directives.
    ///
    /// Must be called only once.
    ///
    /// # Errors
    /// If the filter is invalid.
    pub fn start(filter: &str) -> Result<Self, ParseError> {
        let filter = LogFilter::parse(filter)?;
        let lossy = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(MAX_WAITING_LINES)
            .thread_name("log");
        let (writer, guard) = lossy.finish(std::io::stderr());
        let lost = writer.error_counter();
        let subscriber = fmt()
            .with_env_filter(filter)
            .with_writer(writer)
            .with_ansi(std::io::stderr().is_terminal())
            // Internal errors would also go to standard error, and panic if it is closed.
            .log_internal_errors(false)
            .with_filter_reloading();
        let filter = LogFilter(subscriber.reload_handle());
        subscriber.init();
        Ok(Self { lost, filter, _writer: guard })
    }

    /// Returns the filter of the log.
    pub(super) fn filter(&self) -> &LogFilter {
        &self.filter
    }

    /// Returns the counter of lines dropped because the reader of the log was too slow.
    pub(super) fn lost_lines(&self) -> ErrorCounter {
        self.lost.clone()
    }
}
