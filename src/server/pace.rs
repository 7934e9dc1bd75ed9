//! Pacing of UDP receive and send calls.

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::batch::MAX_BATCH_DATAGRAMS;

/// Maximum wait for room in the send buffer.
///
/// After this wait, the worker drops the response.
pub(super) const SEND_BUFFER_WAIT: Duration = Duration::from_millis(5);

/// Chooses the number of datagrams to receive in one call.
///
/// Under load, that is a full batch; when traffic is sparse, it is one, because recvfrom costs less
/// than recvmmsg for a single datagram.
#[derive(Debug, Default)]
pub(super) struct BatchSize {
    /// Consecutive batches that held a single datagram.
    single_batches: u8,
}

impl BatchSize {
    /// Single-datagram batches before the worker receives one datagram at a time.
    ///
    /// After the same number of single receives, the worker tries a full batch again.
    const SWITCH_AFTER: u8 = 8;

    /// Returns the number of datagrams to receive at once.
    pub(super) fn next(&self) -> usize {
        if self.single_batches > Self::SWITCH_AFTER { 1 } else { MAX_BATCH_DATAGRAMS }
    }

    /// Records how many datagrams a call received.
    pub(super) fn record(&mut self, received: usize) {
        self.single_batches = match (received, self.single_batches) {
            (2.., _) => 0,
            (_, single_batches) if single_batches >= 2 * Self::SWITCH_AFTER => Self::SWITCH_AFTER,
            (_, single_batches) => single_batches + 1,
        };
    }
}

/// Decides the next step after a failed send.
///
/// One unreachable client must not stall the worker.
#[derive(Debug, Default)]
pub(super) struct SendRetry {
    /// Whether the worker has waited for room in the send buffer.
    waited: bool,
    /// Whether the worker has retried after an ICMP error.
    retried: bool,
}

/// Next step after a failed send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AfterFailure {
    /// Send again at once.
    Retry,
    /// Send again after [`SEND_BUFFER_WAIT`].
    WaitForRoom,
    /// Drop the response.
    Drop,
}

impl SendRetry {
    /// Returns the next step after `error`; allows one wait and one retry.
    pub(super) fn after(&mut self, error: &io::Error) -> AfterFailure {
        match error.kind() {
            ErrorKind::Interrupted => AfterFailure::Retry,
            ErrorKind::WouldBlock if !std::mem::replace(&mut self.waited, true) => {
                AfterFailure::WaitForRoom
            }
            // A pending ICMP error of an earlier response surfaces once on the next send, so that
            // send is retried.
            ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
                if !std::mem::replace(&mut self.retried, true) =>
            {
                AfterFailure::Retry
            }
            _ => AfterFailure::Drop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_traffic_switches_to_single_receives() {
        let mut batch_size = BatchSize::default();
        let mut requested = Vec::new();
        for _ in 0..1000 {
            requested.push(batch_size.next());
            batch_size.record(1);
        }
        let singles = requested.iter().filter(|requested| **requested == 1).count();
        assert!((800..1000).contains(&singles), "{singles}");
        while batch_size.next() == 1 {
            batch_size.record(1);
        }
        batch_size.record(2);
        assert_eq!(batch_size.next(), MAX_BATCH_DATAGRAMS);
    }

    #[test]
    fn a_full_buffer_and_a_pending_error_are_each_retried_once() {
        let mut retry = SendRetry::default();
        let full = io::Error::from(ErrorKind::WouldBlock);
        let refused = io::Error::from(ErrorKind::ConnectionRefused);
        assert_eq!(
            [&full, &full, &refused, &refused].map(|error| retry.after(error)),
            [
                AfterFailure::WaitForRoom,
                AfterFailure::Drop,
                AfterFailure::Retry,
                AfterFailure::Drop
            ]
        );
    }
}
