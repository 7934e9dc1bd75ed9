//! Limit on the file descriptors of this process, and how its parts share them.
//!
//! | part | share |
//! | --- | --- |
//! | connections of DNS clients | 8/16 |
//! | sockets to upstreams | 2/16 |
//! | connections of the port bridge | 3/16 |
//! | listeners that the bridge binds | 1/16 |
//! | checks | 1/16 |
//! | the rest: listeners, registries, files, pipes | 1/16 |

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Limit if the kernel does not report one: an old seccomp filter may prevent it.
const USUAL_LIMIT: u64 = 1024;

/// A part of the program that opens descriptors on demand, up to its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DescriptorShare {
    /// Connections of DNS clients.
    Server,
    /// Sockets to upstreams.
    Upstreams,
    /// Connections of the port bridge, each with two descriptors.
    Bridge,
    /// Listeners that the port bridge binds.
    BridgeListeners,
    /// Checks of endpoints.
    Checks,
}

impl DescriptorShare {
    /// Returns the share of a process that may open this many descriptors; at least 1.
    pub(crate) fn of(self, descriptors: usize) -> usize {
        let sixteenths = match self {
            Self::Server => 8,
            Self::Bridge => 3,
            Self::Upstreams => 2,
            Self::BridgeListeners | Self::Checks => 1,
        };
        (descriptors / 16).saturating_mul(sixteenths).max(1)
    }

    /// Returns the share of this process.
    pub(crate) fn current(self) -> usize {
        self.of(limit())
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_leave_descriptors_for_everything_else() {
        let all = [
            DescriptorShare::Server,
            DescriptorShare::Upstreams,
            DescriptorShare::Bridge,
            DescriptorShare::BridgeListeners,
            DescriptorShare::Checks,
        ];
        let sum = |limit| all.iter().map(|share| share.of(limit)).sum::<usize>();
        assert_eq!([1024, 65_536].map(|limit| limit - sum(limit)), [64, 4096]);
        assert_eq!(DescriptorShare::Server.of(1024), 512);
        assert_eq!(sum(0), all.len());
    }
}
