//! Passes the server's sockets to a successor (`svcdns serve --take-over`).
//!
//! Both servers then receive queries, each of which reaches one of them, until the successor says
//! that it serves. If it ends before, this server has not noticed more than a connection.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::answer::Answerer;
use crate::handover::{
    HandoverChannel, HandoverError, MAX_DESCRIPTORS, PassedDescriptor, Step, VERSION,
};
use crate::inherited::OpenSockets;

/// Name of the socket for commands, among the passed descriptors.
pub(super) const COMMANDS: &str = "commands";

/// Name of the socket for successors.
pub(super) const TAKE_OVER: &str = "take-over";

/// Name of a lock.
pub(super) const LOCK: &str = "lock";

/// Maximum wait for a message that the other process can send at once.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time in which a successor reads its snapshots and registries.
const SUCCESSOR_START_TIMEOUT: Duration = Duration::from_secs(300);

/// Maximum wait of a server that is told to stop for a message that is on its way.
const LAST_STEP_TIMEOUT: Duration = Duration::from_millis(100);

/// Pause after a failed accept, which usually means that file descriptors ran out.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What a server passes, and to whom.
#[derive(Debug)]
pub(super) struct HandoverOffer {
    /// The socket to which a successor connects.
    pub(super) listener: UnixListener,
    /// The sockets of clients.
    pub(super) sockets: OpenSockets,
    /// The socket for commands.
    pub(super) commands: OwnedFd,
    /// The locks of the directories.
    pub(super) locks: Vec<OwnedFd>,
    /// Reason why no successor can take over, if there is one.
    pub(super) refusal: Option<&'static str>,
    pub(super) answerer: Arc<Answerer>,
}

/// A successor that serves.
#[derive(Debug)]
pub(super) struct Successor {
    /// Its process ID.
    pub(super) process: u32,
    /// Closed when this server has ended, which the successor waits for.
    _channel: HandoverChannel,
}

/// Reason why a take-over did not happen.
#[derive(Debug, thiserror::Error)]
enum HandOverFailure {
    /// The other process belongs to another user.
    #[error("user {0} may not take over: only root and the user of this server may")]
    Stranger(u32),
    /// The other process was told why not.
    #[error("{0}")]
    Refused(String),
    /// The channel failed.
    #[error(transparent)]
    Channel(#[from] HandoverError),
    /// The other process does not follow the protocol.
    #[error("the other process sent an unexpected message")]
    Unexpected,
    /// The system reports an error.
    #[error("cannot pass the sockets: {0}")]
    Io(#[from] io::Error),
}

impl HandoverOffer {
    /// Waits for a successor that serves; keeps the server as it is until then.
    pub(super) async fn run(self, successor: oneshot::Sender<Successor>, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let attempt = match accepted {
                Ok((stream, _)) => {
                    let attempt = self.attempt(HandoverChannel::new(stream));
                    tokio::pin!(attempt);
                    tokio::select! {
                        biased;
                        attempt = &mut attempt => attempt,
                        // A successor that serves owns the files, even if its message came last.
                        () = stop.cancelled() => match timeout(LAST_STEP_TIMEOUT, attempt).await {
                            Ok(attempt) => attempt,
                            Err(_) => return,
                        },
                    }
                }
                Err(error) => {
                    tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
                    Err(error.into())
                }
            };
            match attempt {
                Ok(serving) => {
                    self.sockets.hand_over();
                    let _ = successor.send(serving);
                    return;
                }
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "no successor has taken over; this server keeps serving"
                    );
                }
            }
        }
    }

    async fn attempt(&self, mut channel: HandoverChannel) -> Result<Successor, HandOverFailure> {
        if let Some(user) = channel.stranger()? {
            return Err(HandOverFailure::Stranger(user));
        }
        let (Step::Hello { version, process }, _) = channel.receive(STEP_TIMEOUT).await? else {
            return Err(HandOverFailure::Unexpected);
        };
        if let Some(reason) = self.reason_against(version) {
            channel.send(&Step::Refused { reason: reason.clone() }, &[], STEP_TIMEOUT).await?;
            return Err(HandOverFailure::Refused(reason));
        }
        tracing::info!(process, "passing the sockets to a successor");
        let passed = self.passed()?;
        let mut rest = &passed[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(MAX_DESCRIPTORS));
            let step = Step::Passed {
                descriptors: now.iter().map(|(description, _)| description.clone()).collect(),
                more: !later.is_empty(),
                complete: self.answerer.registry_status().is_complete(),
            };
            let descriptors: Vec<BorrowedFd<'_>> = now.iter().map(|(_, one)| one.as_fd()).collect();
            channel.send(&step, &descriptors, STEP_TIMEOUT).await?;
            rest = later;
        }
        drop(passed);
        let (Step::Serving, _) = channel.receive(SUCCESSOR_START_TIMEOUT).await? else {
            return Err(HandOverFailure::Unexpected);
        };
        Ok(Successor { process, _channel: channel })
    }

    /// Returns why a successor with this version of the protocol cannot take over.
    fn reason_against(&self, version: u32) -> Option<String> {
        if version != VERSION {
            return Some(format!(
                "the running server, svcdns {}, does not know version {version} of the take-over: \
                 stop it, and start the other one",
                env!("CARGO_PKG_VERSION")
            ));
        }
        self.refusal.map(str::to_owned)
    }

    /// Returns descriptors for the successor, with their descriptions.
    fn passed(&self) -> io::Result<Vec<(PassedDescriptor, OwnedFd)>> {
        let describe = |name: &str, address: &dyn Display| PassedDescriptor {
            name: name.to_owned(),
            address: address.to_string(),
        };
        let mut passed = vec![
            (describe(COMMANDS, &""), self.commands.try_clone()?),
            (describe(TAKE_OVER, &""), self.listener.as_fd().try_clone_to_owned()?),
        ];
        for lock in &self.locks {
            passed.push((describe(LOCK, &""), lock.try_clone()?));
        }
        for (name, address, socket) in self.sockets.duplicates()? {
            passed.push((describe(name.text(), &address), socket));
        }
        Ok(passed)
    }
}
