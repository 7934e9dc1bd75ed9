//! Takes the sockets of the running server over: the start of `svcdns serve --take-over`.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::hand_over::{COMMANDS, LOCK, STEP_TIMEOUT, TAKE_OVER};
use crate::admin::{self, AdminContext, SocketError};
use crate::config::Config;
use crate::directory::TrustRule;
use crate::handover::{HandoverChannel, HandoverError, PassedDescriptor, Step, VERSION};
use crate::inherited::{Inherited, InheritedError, InheritedSockets, SocketGiver, SocketName};
use crate::service::{MAX_REGISTRIES, RegistryId};

/// Maximum wait for the sockets; the running server may be busy with another successor.
const PASS_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum wait until every registry was read, before the snapshots must do.
const REGISTRIES_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval at which the registries are looked at in that time.
const REGISTRIES_INTERVAL: Duration = Duration::from_millis(20);

/// Maximum wait for the end of the running server, which drains and writes its snapshots.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// The running server, which has passed its sockets.
#[derive(Debug)]
pub struct Predecessor {
    pub(super) succession: Succession,
    /// The sockets in its runtime directory, and the locks of its directories.
    pub(super) files: PassedFiles,
}

/// What a running server passes besides the sockets of its clients.
#[derive(Debug)]
pub(super) struct PassedFiles {
    /// The socket for commands.
    pub(super) commands: UnixListener,
    /// The socket for further successors.
    pub(super) take_over: UnixListener,
    /// The locks of its directories.
    pub(super) locks: Vec<File>,
}

/// Reason why a server cannot take over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// There is no running server.
    #[error(
        "no running svcdns was found to take over from ({}: {reason}): start this one without \
         --take-over, or name the directory of the other one with --runtime-dir", path.display()
    )]
    NotRunning {
        /// The socket of the running server.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// This server would have a port bridge.
    #[error(
        "a port bridge cannot be taken over, because its connections cannot move: stop the \
         running server, then start this one without --take-over"
    )]
    Bridge,
    /// The service manager passed sockets, too.
    #[error(
        "the service manager has passed the sockets of this server: start it without --take-over"
    )]
    HasSockets,
    /// The running server belongs to another user.
    #[error("the running server belongs to user {0}: start this one as the same user")]
    Stranger(u32),
    /// The running server refuses.
    #[error("{0}")]
    Refused(String),
    /// A passed socket cannot be served.
    #[error("a socket of the running server cannot be taken over: {0}")]
    Inherited(#[from] InheritedError),
    /// The running server does not pass what this version needs.
    #[error("the running server, which may be another version, did not pass its {0}")]
    Missing(&'static str),
    /// This server knows less than the running one.
    #[error(
        "the registries {0} could not be read within 30 s, and have no usable snapshot: the \
         running server, which has their data, keeps serving"
    )]
    Incomplete(String),
    /// A signal came first.
    #[error("stopped before the take-over: the running server keeps serving")]
    Stopped,
    /// The channel failed.
    #[error(transparent)]
    Channel(#[from] HandoverError),
    /// The path of the socket cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system reports an error.
    #[error("cannot take over the sockets: {0}")]
    Io(#[from] io::Error),
}

impl Predecessor {
    /// Finds the running server and receives its sockets, which it goes on serving.
    ///
    /// # Errors
    /// If there is none, or it refuses. It then goes on as before.
    pub async fn find(config: &Config) -> Result<(Self, InheritedSockets), TakeOverError> {
        if config.bridge.is_some() {
            return Err(TakeOverError::Bridge);
        }
        let candidate = config.runtime_directory();
        let path = admin::take_over_path(&candidate.path)?;
        let not_running = |reason: &str| TakeOverError::NotRunning {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        if candidate.trust == TrustRule::OwnedAndNoLink && !candidate.is_trusted() {
            return Err(not_running("not in a directory of this user"));
        }
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(not_running("does not exist"));
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                return Err(not_running("left behind by a server that exited"));
            }
            Err(error) => return Err(error.into()),
        };
        let mut channel = HandoverChannel::new(stream);
        if let Some(user) = channel.stranger()? {
            return Err(TakeOverError::Stranger(user));
        }
        let hello = Step::Hello { version: VERSION, process: std::process::id() };
        channel.send(&hello, &[], STEP_TIMEOUT).await?;
        let (mut passed, mut complete) = (Vec::new(), true);
        loop {
            match channel.receive(PASS_TIMEOUT).await? {
                (Step::Refused { reason }, _) => return Err(TakeOverError::Refused(reason)),
                (Step::Passed { descriptors, more, complete: is_complete }, files) => {
                    passed.extend(descriptors.into_iter().zip(files));
                    complete &= is_complete;
                    if !more {
                        break;
                    }
                }
                _ => return Err(TakeOverError::Missing("sockets")),
            }
        }
        Self::with(channel, complete, passed)
    }

    /// Sorts what the running server has passed.
    fn with(
        channel: HandoverChannel,
        is_complete: bool,
        passed: Vec<(PassedDescriptor, OwnedFd)>,
    ) -> Result<(Self, InheritedSockets), TakeOverError> {
        let (mut commands, mut take_over, mut locks) = (None, None, Vec::new());
        let mut inherited =
            InheritedSockets { sockets: Vec::new(), giver: SocketGiver::RunningServer };
        for (PassedDescriptor { name, .. }, file) in passed {
            match &*name {
                COMMANDS => commands = Some(unix_listener(file)?),
                TAKE_OVER => take_over = Some(unix_listener(file)?),
                LOCK => locks.push(File::from(file)),
                name => {
                    // A purpose that only a later version knows is not for this one.
                    let Ok(name) = SocketName::parse(name) else { continue };
                    inherited.sockets.push(Inherited::new(name, file)?);
                }
            }
        }
        let commands = commands.ok_or(TakeOverError::Missing("socket for commands"))?;
        let take_over = take_over.ok_or(TakeOverError::Missing("socket for successors"))?;
        let files = PassedFiles { commands, take_over, locks };
        Ok((Self { succession: Succession { channel, is_complete }, files }, inherited))
    }
}

/// The running server, until it has ended.
#[derive(Debug)]
pub(super) struct Succession {
    channel: HandoverChannel,
    /// Whether the running server has the data of every registry.
    is_complete: bool,
}

impl Succession {
    /// Waits until this server knows what the running one does.
    ///
    /// # Errors
    /// If a registry could not be read, and has no snapshot, or if a server has ended.
    pub(super) async fn wait_for_registries(
        &mut self,
        context: &AdminContext,
        stop: &CancellationToken,
    ) -> Result<(), TakeOverError> {
        let AdminContext { answerer, registries, .. } = context;
        let began = Instant::now();
        loop {
            let status = answerer.registry_status();
            if status.is_complete() && status.disconnected.is_empty() {
                return Ok(());
            }
            if began.elapsed() >= REGISTRIES_TIMEOUT {
                if status.is_complete() || !self.is_complete {
                    return Ok(());
                }
                let registries = registries.load();
                let numbered = RegistryId::first(MAX_REGISTRIES).zip(registries.iter());
                let unread = numbered.filter(|(number, _)| !status.known.contains(*number));
                let names: Vec<&str> = unread.map(|(_, state)| state.name.as_str()).collect();
                return Err(TakeOverError::Incomplete(names.join(", ")));
            }
            tokio::select! {
                () = stop.cancelled() => return Err(TakeOverError::Stopped),
                () = sleep(REGISTRIES_INTERVAL) => {}
            }
        }
    }

    /// Tells the running server that this one serves.
    ///
    /// # Errors
    /// If it has ended already.
    pub(super) async fn serving(&mut self) -> Result<(), TakeOverError> {
        Ok(self.channel.send(&Step::Serving, &[], STEP_TIMEOUT).await?)
    }

    /// Waits until the running server has ended, then cancels `ended`.
    pub(super) async fn end(mut self, ended: CancellationToken) {
        let _on_drop = ended.drop_guard();
        if let Err(HandoverError::TimedOut(_)) = self.channel.receive::<Step>(END_TIMEOUT).await {
            tracing::warn!("the previous server has not ended yet");
        }
    }
}

fn unix_listener(file: OwnedFd) -> io::Result<UnixListener> {
    UnixListener::from_std(StdUnixListener::from(file))
}
