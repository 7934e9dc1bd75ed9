//! Limit on the file descriptors of this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Limit if the kernel does not report one: an old seccomp filter may prevent it.
const USUAL_LIMIT: u64 = 1024;

/// Returns the number of descriptors that the process may open.
pub(crate) fn limit() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(USUAL_LIMIT, |(soft, _)| soft);
    usize::try_from(soft).unwrap_or(usize::MAX)
}

/// Raises the soft limit to the hard one; returns the limit from then on.
///
/// The soft limit is usually 1,024, for programs that use `select`. Processes that this one starts
/// inherit the limit.
pub fn raise_limit() -> usize {
    // The limit is not set if it is high enough: a service's system call filter may kill the
    // process for that.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, soft, hard, "cannot raise the limit on open files");
    }
    limit()
}
