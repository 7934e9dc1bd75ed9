//! Where the server's log goes.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Logs to standard error from now on, as this filter says (tracing's notation). To be called once.
///
/// # Errors
/// When the filter cannot be understood.
pub fn log(filter: &str) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would complain to standard error, and panic where that is what nobody reads any more.
        .log_internal_errors(false)
        .init();
    Ok(())
}
