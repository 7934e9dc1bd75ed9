//! Connection to an instance, with further attempts if one fails or stays silent.
//!
//! An attempt that fails costs the client nothing: the next instance is tried at once. One that
//! stays silent is raced by a second one after [`RACE_DELAY`]. The first connection wins; slower
//! instances are set aside.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::choice::{WeightedInstance, choose};
use super::instance::{InstanceState, OpenCount, PauseClock};
use super::sockets::outgoing;

/// Time before a silent attempt is raced by another one.
const RACE_DELAY: Duration = Duration::from_millis(200);
/// Longest time of an attempt, unless it is the last one.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time of all attempts.
///
/// The kernel repeats a SYN after 1 s: a busy instance whose queue was full may accept that one.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1900);
/// Limit on the attempts of one connection, each at another instance.
const MAX_ATTEMPTS: usize = 3;

/// A connection to an instance.
#[derive(Debug)]
pub(super) struct Established {
    /// The connection.
    pub(super) stream: TcpStream,
    /// Its count at the instance.
    pub(super) count: OpenCount,
    /// Attempts that were made, this one included.
    pub(super) attempts: usize,
}

/// Reason why no instance was reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectFailure {
    /// No attempt succeeded; the reason of the last failure, if one was reported.
    #[error("no instance could be reached{}", .last.as_ref().map_or_else(String::new, |error|
        format!(": {error}")))]
    Unreachable {
        /// Attempts that were made.
        attempts: usize,
        /// Error of the last attempt that did not time out.
        last: Option<io::Error>,
    },
    /// The process itself ran out of something; no instance is to blame.
    #[error("this machine cannot open a connection: {0}")]
    Local(io::Error),
}

/// An attempt in progress.
struct ConnectAttempt {
    count: OpenCount,
    started: Instant,
    connecting: Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>,
}

/// The attempts of one connection.
struct Race<'i> {
    instances: &'i [WeightedInstance],
    clock: PauseClock,
    tried: Vec<SocketAddr>,
    attempts: Vec<ConnectAttempt>,
    last_error: Option<io::Error>,
}

/// Connects to one of the instances.
///
/// # Errors
/// If no instance accepts a connection within 1.9 s, or this machine cannot open one.
pub(super) async fn connect(
    instances: &[WeightedInstance],
    clock: PauseClock,
) -> Result<Established, ConnectFailure> {
    let mut race =
        Race { instances, clock, tried: Vec::new(), attempts: Vec::new(), last_error: None };
    let mut next_start = race.start_next()?;
    let end = Instant::now() + CONNECT_TIMEOUT;
    while let Some(first) = race.attempts.first() {
        let is_last = race.attempts.len() == 1 && next_start.is_none();
        let expiry = if is_last { end } else { first.started + ATTEMPT_TIMEOUT };
        let wake = next_start.map_or(expiry, |start| start.min(expiry));
        tokio::select! {
            biased;
            (index, connected) = race.next_ended() => {
                let ConnectAttempt { count, .. } = race.attempts.remove(index);
                match connected {
                    Ok(stream) => {
                        count.instance().record_success();
                        race.set_aside_slower_than(index);
                        let attempts = race.tried.len();
                        return Ok(Established { stream, count, attempts });
                    }
                    Err(error) if is_local(&error) => return Err(ConnectFailure::Local(error)),
                    Err(error) => {
                        count.instance().record_failure(clock.now());
                        race.last_error = Some(error);
                        next_start = race.start_next()?;
                    }
                }
            }
            () = tokio::time::sleep_until(wake) => {
                if wake == expiry {
                    race.attempts.remove(0).count.instance().record_failure(clock.now());
                }
                if next_start.is_some() {
                    next_start = race.start_next()?;
                }
            }
        }
    }
    let Race { tried, last_error, .. } = race;
    Err(ConnectFailure::Unreachable { attempts: tried.len(), last: last_error })
}

impl Race<'_> {
    /// Starts an attempt at an instance that was not tried yet.
    ///
    /// Returns the time for the attempt after that; `None` if there is none to start.
    fn start_next(&mut self) -> Result<Option<Instant>, ConnectFailure> {
        let chosen =
            choose(self.instances, &self.tried, self.clock.now(), |below| fastrand::u64(..below));
        let Some(state) = chosen.filter(|_| self.tried.len() < MAX_ATTEMPTS) else {
            return Ok(None);
        };
        self.start(Arc::clone(state)).map_err(ConnectFailure::Local)?;
        let may_start_another =
            self.tried.len() < MAX_ATTEMPTS && self.tried.len() < self.instances.len();
        Ok(may_start_another.then(|| Instant::now() + RACE_DELAY))
    }

    fn start(&mut self, state: Arc<InstanceState>) -> io::Result<()> {
        let address = state.address;
        let socket = outgoing(address)?;
        self.tried.push(address);
        self.attempts.push(ConnectAttempt {
            count: OpenCount::new(state),
            started: Instant::now(),
            connecting: Box::pin(socket.connect(address)),
        });
        Ok(())
    }

    /// Waits for the end of an attempt; returns its index.
    async fn next_ended(&mut self) -> (usize, io::Result<TcpStream>) {
        std::future::poll_fn(|context| {
            for (index, attempt) in self.attempts.iter_mut().enumerate() {
                if let Poll::Ready(connected) = attempt.connecting.as_mut().poll(context) {
                    return Poll::Ready((index, connected));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Sets the instances aside that were tried before the one with this index, which was faster.
    fn set_aside_slower_than(&self, index: usize) {
        for slower in &self.attempts[..index] {
            slower.count.instance().record_failure(self.clock.now());
        }
    }
}

/// Returns whether an error says that this process or machine has run out of something.
fn is_local(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(
            Errno::EMFILE
                | Errno::ENFILE
                | Errno::ENOBUFS
                | Errno::ENOMEM
                | Errno::EADDRNOTAVAIL
                | Errno::EAGAIN
        )
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn weighted(address: SocketAddr) -> WeightedInstance {
        WeightedInstance { state: Arc::new(InstanceState::new(address)), weight: 1 }
    }

    /// Returns a port of this machine on which nothing listens.
    fn refusing() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    /// A listener whose accept queue is full, so that further connections get no answer.
    struct Silent {
        _listener: socket2::Socket,
        _queued: Vec<socket2::Socket>,
        address: SocketAddr,
    }

    impl Silent {
        fn new() -> Self {
            let new = || {
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap()
            };
            let listener = new();
            listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            let mut queued = Vec::new();
            // The kernel completes connections while the queue has room for one.
            for _ in 0..4 {
                let client = new();
                client.set_nonblocking(true).unwrap();
                let _ = client.connect(&address.into());
                queued.push(client);
            }
            Self { _listener: listener, _queued: queued, address }
        }
    }

    #[tokio::test]
    async fn a_refused_attempt_is_followed_by_another_and_sets_its_instance_aside() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let clock = PauseClock::start();
        let good = weighted(listener.local_addr().unwrap());
        let bad = [weighted(refusing()), weighted(refusing())];
        // A weight as high as possible makes the bad ones the first choices.
        let instances = bad.clone().map(|one| WeightedInstance { weight: u32::MAX, ..one });
        let all = [&instances[..], std::slice::from_ref(&good)].concat();
        let established = connect(&all, clock).await.unwrap();
        assert_eq!(established.count.instance().address, good.state.address);
        let paused = bad.iter().filter(|one| one.state.is_paused(clock.now())).count();
        assert_eq!(paused, established.attempts - 1);
        assert!(bad.iter().all(|one| one.state.open() == 0) && good.state.open() == 1);
    }

    #[tokio::test]
    async fn a_silent_instance_is_raced_and_set_aside() {
        let (listener, silent) = (TcpListener::bind("127.0.0.1:0").unwrap(), Silent::new());
        let clock = PauseClock::start();
        let (slow, good) = (weighted(silent.address), weighted(listener.local_addr().unwrap()));
        // The slow one is the first choice, because the other one has a connection.
        let held = OpenCount::new(Arc::clone(&good.state));
        let start = Instant::now();
        let established = connect(&[slow.clone(), good.clone()], clock).await.unwrap();
        assert_eq!(established.count.instance().address, good.state.address);
        assert!(start.elapsed() >= RACE_DELAY && established.attempts == 2);
        assert!(slow.state.is_paused(clock.now()) && slow.state.open() == 0);
        drop(held);
    }

    #[tokio::test]
    async fn without_a_reachable_instance_the_attempts_end() {
        let clock = PauseClock::start();
        let refusing: Vec<_> = (0..5).map(|_| weighted(refusing())).collect();
        let error = connect(&refusing, clock).await.unwrap_err();
        assert!(matches!(error, ConnectFailure::Unreachable { attempts: 3, last: Some(_) }));
        assert!(error.to_string().starts_with("no instance could be reached: "), "{error}");
        let silent = Silent::new();
        let error = connect(&[weighted(silent.address)], clock).await.unwrap_err();
        assert!(matches!(error, ConnectFailure::Unreachable { attempts: 1, last: None }));
        assert!(matches!(
            connect(&[], clock).await,
            Err(ConnectFailure::Unreachable { attempts: 0, .. })
        ));
    }
}
