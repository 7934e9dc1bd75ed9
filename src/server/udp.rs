//! The UDP loop: one datagram in, one out, no allocation and no task a query.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::backoff::Backoff;
use super::{Access, Counters, Respond, Response};
use crate::wire::Transport;

/// Octets read of a datagram; no query comes near, and the rest of a longer one is lost.
const DATAGRAM: usize = 4096;
/// Datagrams answered in a row before the other tasks of the runtime get their turn.
const TURN: usize = 64;
/// How long a full send buffer may hold up the loop before the answer is dropped.
const SEND_PATIENCE: Duration = Duration::from_millis(10);

/// One UDP socket and what is needed to answer on it.
#[derive(Debug)]
pub(super) struct Worker<R> {
    pub(super) socket: UdpSocket,
    pub(super) address: SocketAddr,
    /// All listening addresses.
    pub(super) own: Box<[SocketAddr]>,
    pub(super) access: Access,
    pub(super) responder: R,
    pub(super) counters: Arc<Counters>,
    pub(super) stop: CancellationToken,
}

/// How a turn ended.
enum Turn {
    /// Nothing is left to read.
    Over,
    /// There may be more.
    Interrupted,
}

impl<R: Respond> Worker<R> {
    /// Answers until the server stops; survives every error of the socket.
    pub(super) async fn run(self: Arc<Self>) {
        let mut request = vec![0; DATAGRAM];
        let mut answer = Vec::with_capacity(DATAGRAM);
        let mut draws = fastrand::Rng::new();
        let mut backoff = Backoff::default();
        loop {
            let received = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                received = self.socket.recv_from(&mut request) => received,
            };
            match self.turn(received, &mut request, &mut answer, &mut draws).await {
                Ok(Turn::Over) => {
                    if backoff.reset() {
                        debug!(address = %self.address, "receiving over UDP works again");
                    }
                }
                Ok(Turn::Interrupted) => tokio::task::yield_now().await,
                Err(error) => {
                    let pause = backoff.next();
                    if self.counters.udp_receive_errors.increment().is_power_of_two() {
                        warn!(address = %self.address, %error, "cannot receive over UDP at the moment; going on");
                    }
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// Answers what was `received`, then what else is there, up to one turn's worth.
    async fn turn(
        self: &Arc<Self>,
        mut received: io::Result<(usize, SocketAddr)>,
        request: &mut [u8],
        answer: &mut Vec<u8>,
        draws: &mut fastrand::Rng,
    ) -> io::Result<Turn> {
        for left in (0..TURN).rev() {
            let (length, source) = match received {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Over),
                received => received?,
            };
            let message = request.get(..length).unwrap_or_default();
            match self.answer(message, source, draws.u64(..), answer) {
                Response::Ready => self.send(answer, source).await,
                Response::Silent => {}
                Response::Later => self.later(message.to_vec(), source),
            }
            if left == 0 {
                break;
            }
            received = self.socket.try_recv_from(request);
        }
        Ok(Turn::Interrupted)
    }

    /// Writes the answer to one datagram, where it is ready.
    fn answer(&self, request: &[u8], source: SocketAddr, draw: u64, answer: &mut Vec<u8>) -> Response {
        // Nothing answers at port 0, and our own addresses ask only when somebody forges them to make us talk to ourselves.
        if source.port() == 0 || self.own.iter().any(|own| own.port() == source.port() && own.ip() == source.ip().to_canonical()) {
            self.counters.udp_implausible.increment();
            return Response::Silent;
        }
        let responder = &self.responder;
        let outcome = if self.access.allows(source.ip()) {
            self.counters.udp_queries.increment();
            let now = Instant::now();
            catch_unwind(AssertUnwindSafe(|| responder.respond(request, Transport::Udp, now, draw, answer)))
        } else {
            self.counters.udp_refused.increment();
            let refuse = || if responder.refuse(request, answer) { Response::Ready } else { Response::Silent };
            catch_unwind(AssertUnwindSafe(refuse))
        };
        outcome.unwrap_or_else(|_| {
            if self.counters.panics.increment().is_power_of_two() {
                error!(octets = request.len(), "a panic while answering was contained; please report this");
            }
            Response::Silent
        })
    }

    /// Sends an answer that has to be waited for.
    fn later(self: &Arc<Self>, request: Vec<u8>, source: SocketAddr) {
        let worker = Arc::clone(self);
        tokio::spawn(async move {
            if let Some(answer) = worker.responder.later(request, Transport::Udp).await {
                worker.send(&answer, source).await;
            }
        });
    }

    /// Sends one answer, or drops and counts it: a client that cannot be reached holds up nobody for long.
    async fn send(&self, answer: &[u8], target: SocketAddr) {
        let outcome = match self.socket.try_send_to(answer, target) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                match tokio::time::timeout(SEND_PATIENCE, self.socket.send_to(answer, target)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(error),
                }
            }
            // An error left behind by an earlier answer (ICMP) is reported once, in place of sending this one.
            Err(error) if is_leftover(error.kind()) => self.socket.try_send_to(answer, target),
            outcome => outcome,
        };
        match outcome {
            Ok(_) => self.counters.udp_answers.increment(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.counters.udp_dropped.increment(),
            Err(error) => {
                debug!(%error, "cannot send an answer over UDP");
                self.counters.udp_send_errors.increment()
            }
        };
    }
}

/// Whether an error can stem from another datagram than the one being sent.
fn is_leftover(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the request itself; panics where it begins with `!`.
    struct Echo;

    impl Respond for Echo {
        fn fork(&self) -> Self {
            Self
        }

        fn respond(&self, request: &[u8], _: Transport, _: Instant, _: u64, out: &mut Vec<u8>) -> Response {
            assert!(!request.starts_with(b"!"), "asked to panic");
            out.clear();
            out.extend_from_slice(request);
            Response::Ready
        }

        async fn later(&self, request: Vec<u8>, _: Transport) -> Option<Vec<u8>> {
            Some(request)
        }

        fn refuse(&self, _: &[u8], out: &mut Vec<u8>) -> bool {
            out.clear();
            out.extend_from_slice(b"refused");
            true
        }
    }

    async fn worker() -> Worker<Echo> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        Worker {
            socket,
            address,
            own: [address, SocketAddr::from(([127, 0, 0, 9], 53))].into(),
            access: Access::new(&[]),
            responder: Echo,
            counters: Arc::default(),
            stop: CancellationToken::new(),
        }
    }

    #[tokio::test]
    async fn sources_that_cannot_be_clients_are_dropped() {
        let worker = worker().await;
        let mut answer = Vec::new();
        for source in [worker.address, "127.0.0.9:53".parse().unwrap(), "127.0.0.1:0".parse().unwrap()] {
            assert_eq!(worker.answer(b"question", source, 0, &mut answer), Response::Silent, "{source}");
        }
        assert_eq!(worker.counters.udp_implausible.get(), 3);
        assert_eq!(worker.counters.udp_queries.get(), 0);
        // The same port at another address is a client like any other.
        assert_eq!(worker.answer(b"question", SocketAddr::from(([127, 0, 0, 8], 53)), 0, &mut answer), Response::Ready);
    }

    #[tokio::test]
    async fn a_source_without_access_gets_the_refusal() {
        let worker = worker().await;
        let mut answer = Vec::new();
        assert_eq!(worker.answer(b"question", "192.0.2.1:9".parse().unwrap(), 0, &mut answer), Response::Ready);
        assert_eq!(answer, b"refused");
        assert_eq!(worker.counters.udp_refused.get(), 1);
        assert_eq!(worker.counters.udp_queries.get(), 0);
    }

    #[tokio::test]
    async fn a_panic_costs_one_datagram() {
        let worker = worker().await;
        let source = "127.0.0.1:9".parse().unwrap();
        let mut answer = Vec::new();
        assert_eq!(worker.answer(b"!", source, 0, &mut answer), Response::Silent);
        assert_eq!(worker.counters.panics.get(), 1);
        assert_eq!(worker.answer(b"question", source, 0, &mut answer), Response::Ready);
        assert_eq!(answer, b"question");
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_sent_is_counted_and_forgotten() {
        let worker = worker().await;
        worker.send(&vec![0; 70_000], "127.0.0.1:9".parse().unwrap()).await;
        assert_eq!(worker.counters.udp_send_errors.get(), 1);
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        worker.send(b"answer", client.local_addr().unwrap()).await;
        let mut received = [0; 16];
        assert_eq!(client.recv(&mut received).await.unwrap(), 6);
        assert_eq!(worker.counters.udp_answers.get(), 1);
    }
}
