//! Connection to an instance, with further attempts if one fails or stays silent.
//!
//! An attempt that fails costs the client nothing: the next instance is tried at once. One that
//! stays silent is raced by another one after [`RACE_DELAY`]. The first connection wins; slower
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
use super::sockets::SocketOptions;

/// Time before a silent attempt is raced by another one.
const RACE_DELAY: Duration = Duration::from_millis(200);
/// Longest time of an attempt, unless it is the last one.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time of all attempts.
///
/// The kernel repeats a SYN after 1 s: a busy instance whose queue was full may accept that one.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1900);
/// Limit on the attempts of one connection that are not refused, each at another instance.
const MAX_SILENT_ATTEMPTS: usize = 3;
/// Limit on all attempts of one connection: a refusal takes next to no time, but some work.
const MAX_ATTEMPTS: usize = 128;

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
    options: SocketOptions,
    end: Instant,
    tried: Vec<SocketAddr>,
    refused: usize,
    attempts: Vec<ConnectAttempt>,
    last_error: Option<io::Error>,
    /// Why this machine opens no further connection, although those in progress may succeed.
    exhaustion: Option<io::Error>,
}

/// Connects to one of the instances.
///
/// # Errors
/// If no instance accepts a connection within 1.9 s, or this machine cannot open one.
pub(super) async fn connect(
    instances: &[WeightedInstance],
    clock: PauseClock,
    options: SocketOptions,
) -> Result<Established, ConnectFailure> {
    let mut race = Race {
        instances,
        clock,
        options,
        end: Instant::now() + CONNECT_TIMEOUT,
        tried: Vec::new(),
        refused: 0,
        attempts: Vec::new(),
        last_error: None,
        exhaustion: None,
    };
    loop {
        race.start_next();
        let Some(first) = race.attempts.first() else { break };
        let next_start = race.next_start();
        let is_last = race.attempts.len() == 1 && next_start.is_none();
        let expiry = if is_last { race.end } else { race.end.min(first.started + ATTEMPT_TIMEOUT) };
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
                    Err(error) => race.fail(count.instance(), error),
                }
            }
            () = tokio::time::sleep_until(wake) => {
                if wake == expiry {
                    race.attempts.remove(0).count.instance().record_failure(clock.now());
                }
            }
        }
    }
    let Race { tried, last_error, exhaustion, .. } = race;
    Err(match exhaustion {
        Some(error) => ConnectFailure::Local(error),
        None => ConnectFailure::Unreachable { attempts: tried.len(), last: last_error },
    })
}

impl Race<'_> {
    /// Returns the time for another attempt while those in progress stay silent, if it may be made.
    fn next_start(&self) -> Option<Instant> {
        let last = self.attempts.last()?;
        let start = last.started + RACE_DELAY;
        let may_start = self.may_start() && self.tried.len() < self.instances.len();
        (may_start && start < self.end).then_some(start)
    }

    fn may_start(&self) -> bool {
        self.exhaustion.is_none()
            && self.tried.len() < MAX_ATTEMPTS
            && self.tried.len() - self.refused < MAX_SILENT_ATTEMPTS
    }

    /// Starts an attempt at an instance that was not tried yet, if there is one.
    fn start_next(&mut self) {
        while self.may_start() && Instant::now() < self.end {
            let now = self.clock.now();
            let draw = |below| fastrand::u64(..below);
            let chosen = choose(self.instances, &self.tried, self.refused > 0, now, draw);
            let Some(state) = chosen.map(Arc::clone) else { return };
            let address = state.address;
            self.tried.push(address);
            match self.options.outgoing(address) {
                Ok(socket) => {
                    return self.attempts.push(ConnectAttempt {
                        count: OpenCount::new(state),
                        started: Instant::now(),
                        connecting: Box::pin(socket.connect(address)),
                    });
                }
                Err(error) => self.fail(&state, error),
            }
        }
    }

    /// Records the failure of an attempt, which is no longer in progress.
    fn fail(&mut self, instance: &InstanceState, error: io::Error) {
        self.refused += 1;
        if is_exhaustion(&error) {
            self.exhaustion = Some(error);
        } else {
            instance.record_failure(self.clock.now());
            self.last_error = Some(error);
        }
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
///
/// An address family that the machine lacks (EADDRNOTAVAIL, EAFNOSUPPORT) concerns one instance,
/// and so does a lack of ports (EADDRNOTAVAIL): each destination has its own.
fn is_exhaustion(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
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
        let established =
            connect(&all, clock, SocketOptions::new(Duration::from_secs(30))).await.unwrap();
        assert_eq!(established.count.instance().address, good.state.address);
        let paused = bad.iter().filter(|one| one.state.is_set_aside(clock.now())).count();
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
        let established = connect(
            &[slow.clone(), good.clone()],
            clock,
            SocketOptions::new(Duration::from_secs(30)),
        )
        .await
        .unwrap();
        assert_eq!(established.count.instance().address, good.state.address);
        assert!(start.elapsed() >= RACE_DELAY && established.attempts == 2);
        assert!(slow.state.is_set_aside(clock.now()) && slow.state.open() == 0);
        drop(held);
    }

    #[tokio::test]
    async fn without_a_reachable_instance_the_attempts_end() {
        let (clock, options) = (PauseClock::start(), SocketOptions::new(Duration::from_secs(30)));
        let refusing: Vec<_> = (0..5).map(|_| weighted(refusing())).collect();
        let error = connect(&refusing, clock, options).await.unwrap_err();
        assert!(matches!(error, ConnectFailure::Unreachable { attempts: 5, last: Some(_) }));
        assert!(error.to_string().starts_with("no instance could be reached: "), "{error}");
        let silent = Silent::new();
        let error = connect(&[weighted(silent.address)], clock, options).await.unwrap_err();
        assert!(matches!(error, ConnectFailure::Unreachable { attempts: 1, last: None }));
        assert!(matches!(
            connect(&[], clock, options).await,
            Err(ConnectFailure::Unreachable { attempts: 0, .. })
        ));
    }

    #[tokio::test]
    async fn dead_instances_fail_no_connection_while_a_healthy_one_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (clock, options) = (PauseClock::start(), SocketOptions::new(Duration::from_secs(30)));
        let healthy = weighted(listener.local_addr().unwrap());
        // Instances without connections are the first choices.
        let held = OpenCount::new(Arc::clone(&healthy.state));
        let dead: Vec<_> = (0..8).map(|_| weighted(refusing())).collect();
        let established = connect(&[&dead[..], &[healthy]].concat(), clock, options).await.unwrap();
        assert_eq!(established.attempts, 9);
        drop(held);
    }

    #[tokio::test]
    async fn silent_attempts_are_limited_whatever_refuses() {
        let (clock, options) = (PauseClock::start(), SocketOptions::new(Duration::from_secs(30)));
        let silent: Vec<_> = (0..4).map(|_| Silent::new()).collect();
        let silent: Vec<_> = silent.iter().map(|one| weighted(one.address)).collect();
        let dead: Vec<_> = (0..4).map(|_| weighted(refusing())).collect();
        // The silent ones have a connection: the dead ones are tried first.
        let held: Vec<_> =
            silent.iter().map(|one| OpenCount::new(Arc::clone(&one.state))).collect();
        let error = connect(&[dead, silent].concat(), clock, options).await.unwrap_err();
        assert!(matches!(error, ConnectFailure::Unreachable { attempts: 7, .. }), "{error:?}");
        drop(held);
    }

    #[tokio::test]
    async fn an_instance_that_this_machine_cannot_reach_is_set_aside_for_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (clock, options) = (PauseClock::start(), SocketOptions::new(Duration::from_secs(30)));
        let healthy = weighted(listener.local_addr().unwrap());
        // A link-local address without a link: connecting fails at once, as without IPv6.
        let unreachable = weighted("[fe80::1]:80".parse().unwrap());
        let held = OpenCount::new(Arc::clone(&healthy.state));
        let instances = [unreachable.clone(), healthy];
        let established = connect(&instances, clock, options).await.unwrap();
        assert_eq!(established.attempts, 2);
        assert!(unreachable.state.is_set_aside(clock.now()));
        drop(held);
    }

    #[test]
    fn only_a_lack_of_descriptors_or_memory_is_local() {
        let is_local = |errno: Errno| is_exhaustion(&io::Error::from_raw_os_error(errno as i32));
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM] {
            assert!(is_local(errno), "{errno}");
        }
        for errno in [Errno::EADDRNOTAVAIL, Errno::EAFNOSUPPORT, Errno::EAGAIN, Errno::EINVAL] {
            assert!(!is_local(errno), "{errno}");
        }
    }
}
