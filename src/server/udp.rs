//! The UDP loop: batches of datagrams in, batches of answers out, with no allocation and no task for an answer that is ready.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use super::backoff::Backoff;
use super::batch::{Batch, Left};
use super::{Access, Counters, Respond, Response};
use crate::wire::Transport;

/// Full batches in a row before the other tasks of the thread get their turn.
const TURN: usize = 2;
/// How long a full send buffer may hold up the loop before answers are dropped.
const SEND_PATIENCE: Duration = Duration::from_millis(10);

/// One UDP socket and what is needed to answer on it.
#[derive(Debug)]
pub(super) struct Worker<R> {
    pub(super) socket: UdpSocket,
    pub(super) address: SocketAddr,
    /// All listening addresses.
    pub(super) own: Arc<[SocketAddr]>,
    pub(super) access: Access,
    pub(super) responder: Arc<R>,
    pub(super) counters: Arc<Counters>,
    /// A place for each answer that is waited for, over all sockets.
    pub(super) places: Arc<Semaphore>,
    /// How long such an answer may take.
    pub(super) patience: Duration,
    /// The answers of this thread that are waited for.
    pub(super) tracker: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl<R: Respond> Worker<R> {
    /// Answers until the server stops; survives every error of the socket.
    pub(super) async fn run(self: Arc<Self>) {
        let mut batch = Batch::new();
        let mut draws = fastrand::Rng::new();
        let mut backoff = Backoff::default();
        let mut stopped = pin!(self.stop.cancelled());
        let mut full = 0;
        loop {
            let ready = tokio::select! {
                biased;
                () = &mut stopped => return,
                ready = self.socket.readable() => ready,
            };
            match ready.and_then(|()| batch.receive(&self.socket)) {
                Ok(left) => {
                    if backoff.reset() {
                        debug!(address = %self.address, "receiving over UDP works again");
                    }
                    self.answer_all(&mut batch, &mut draws);
                    self.send_all(&mut batch).await;
                    full = if left == Left::Perhaps { full + 1 } else { 0 };
                    if full >= TURN {
                        full = 0;
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    let pause = backoff.next();
                    if self.counters.udp_receive_errors.increment().is_power_of_two() {
                        warn!(address = %self.address, %error, "cannot receive over UDP at the moment; going on");
                    }
                    tokio::select! {
                        () = &mut stopped => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// Writes the answers of a batch that are ready, and begins to wait for the others.
    fn answer_all(self: &Arc<Self>, batch: &mut Batch, draws: &mut fastrand::Rng) {
        let now = Instant::now();
        batch.answer(|request, source, out| match self.answer(request, source, now, draws.u64(..), out) {
            Response::Ready => true,
            Response::Silent => false,
            Response::Later => self.later(request, source, out),
        });
    }

    /// Writes the answer to one datagram, where it is ready.
    fn answer(&self, request: &[u8], source: SocketAddr, now: Instant, draw: u64, out: &mut Vec<u8>) -> Response {
        // Nothing answers at port 0, and our own addresses ask only when somebody forges them to make us talk to ourselves.
        if source.port() == 0 || self.own.iter().any(|own| own.port() == source.port() && own.ip() == source.ip().to_canonical()) {
            self.counters.udp_implausible.increment();
            return Response::Silent;
        }
        let responder = &self.responder;
        let written = |written| if written { Response::Ready } else { Response::Silent };
        if self.access.allows(source.ip()) {
            self.counters.udp_queries.increment();
            self.contained(request, || responder.respond(request, Transport::Udp, now, draw, out))
        } else {
            self.counters.udp_refused.increment();
            self.contained(request, || written(responder.refuse(request, out)))
        }
    }

    /// A panic costs the answer to its datagram.
    fn contained(&self, request: &[u8], respond: impl FnOnce() -> Response) -> Response {
        catch_unwind(AssertUnwindSafe(respond)).unwrap_or_else(|_| {
            if self.counters.panics.increment().is_power_of_two() {
                error!(octets = request.len(), "a panic while answering was contained; please report this");
            }
            Response::Silent
        })
    }

    /// Begins to wait for an answer; without a place for that, writes the failure. Says whether that is written.
    ///
    /// In a task of this thread, where the responder's own sockets are: an answer wakes no other thread.
    fn later(self: &Arc<Self>, request: &[u8], source: SocketAddr, out: &mut Vec<u8>) -> bool {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            if self.counters.udp_overloads.increment().is_power_of_two() {
                warn!("too many questions over UDP wait for their answers; answering SERVFAIL to more");
            }
            let fail = || if self.responder.fail(request, out) { Response::Ready } else { Response::Silent };
            return self.contained(request, fail) == Response::Ready;
        };
        let (worker, request) = (Arc::clone(self), request.to_vec());
        let waiting = Waiting { counters: Arc::clone(&self.counters), _place: place };
        self.tracker.spawn(async move {
            let _waiting = waiting;
            match timeout(worker.patience, worker.responder.later(request, Transport::Udp)).await {
                Ok(Some(answer)) => worker.send(&answer, source).await,
                Ok(None) => {}
                Err(_) => {
                    worker.counters.udp_answer_timeouts.increment();
                }
            }
        });
        false
    }

    /// Sends the answers of a batch, each independent of the others.
    async fn send_all(&self, batch: &mut Batch) {
        let mut patience = Patience::default();
        while batch.unsent() > 0 {
            match batch.send(&self.socket) {
                Ok(count) => {
                    patience = Patience::default();
                    self.counters.udp_answers.add(count as u64);
                }
                Err(error) => {
                    let given_up = if error.kind() == ErrorKind::WouldBlock { batch.unsent() } else { 1 };
                    if !patience.lasts(&error, &self.socket).await {
                        self.count_unsent(&error, given_up);
                        batch.skip(given_up);
                        patience = Patience::default();
                    }
                }
            }
        }
        batch.shrink();
    }

    /// Sends one answer, or drops and counts it.
    async fn send(&self, answer: &[u8], target: SocketAddr) {
        let mut patience = Patience::default();
        loop {
            match self.socket.try_send_to(answer, target) {
                Ok(_) => {
                    self.counters.udp_answers.increment();
                    return;
                }
                Err(error) if patience.lasts(&error, &self.socket).await => {}
                Err(error) => return self.count_unsent(&error, 1),
            }
        }
    }

    fn count_unsent(&self, error: &io::Error, answers: usize) {
        if error.kind() == ErrorKind::WouldBlock {
            self.counters.udp_dropped.add(answers as u64);
        } else {
            debug!(%error, "cannot send an answer over UDP");
            self.counters.udp_send_errors.add(answers as u64);
        }
    }
}

/// Whether it is worth trying again to send: a client that cannot be reached holds up nobody for long.
#[derive(Debug, Default)]
struct Patience {
    waited: bool,
    repeated: bool,
}

impl Patience {
    /// Waits for room in a full buffer, for a moment and once. Else false.
    async fn lasts(&mut self, error: &io::Error, socket: &UdpSocket) -> bool {
        match error.kind() {
            ErrorKind::WouldBlock if !self.waited => {
                // Once the moment has passed, one more try: the socket may only not have told yet that there is room.
                self.waited = true;
                let _ = timeout(SEND_PATIENCE, socket.writable()).await;
                true
            }
            // An error left behind by an earlier answer (ICMP) is reported once, in place of sending this one.
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                !std::mem::replace(&mut self.repeated, true)
            }
            _ => false,
        }
    }
}

/// An answer that is waited for.
#[derive(Debug)]
struct Waiting {
    counters: Arc<Counters>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if std::thread::panicking() && self.counters.panics.increment().is_power_of_two() {
            error!("a panic while an answer was waited for was contained; please report this");
        }
    }
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

        fn fail(&self, _: &[u8], _: &mut Vec<u8>) -> bool {
            false
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
            responder: Arc::new(Echo),
            counters: Arc::default(),
            places: Arc::new(Semaphore::new(1)),
            patience: Duration::from_secs(5),
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    #[tokio::test]
    async fn sources_that_cannot_be_clients_are_dropped() {
        let worker = worker().await;
        let mut answer = Vec::new();
        let mut ask = |source: SocketAddr| worker.answer(b"question", source, Instant::now(), 0, &mut answer);
        for source in [worker.address, "127.0.0.9:53".parse().unwrap(), "127.0.0.1:0".parse().unwrap()] {
            assert_eq!(ask(source), Response::Silent, "{source}");
        }
        assert_eq!(worker.counters.udp_implausible.get(), 3);
        assert_eq!(worker.counters.udp_queries.get(), 0);
        // The same port at another address is a client like any other.
        assert_eq!(ask(SocketAddr::from(([127, 0, 0, 8], 53))), Response::Ready);
    }

    #[tokio::test]
    async fn a_source_without_access_gets_the_refusal() {
        let worker = worker().await;
        let mut answer = Vec::new();
        assert_eq!(worker.answer(b"question", "192.0.2.1:9".parse().unwrap(), Instant::now(), 0, &mut answer), Response::Ready);
        assert_eq!(answer, b"refused");
        assert_eq!(worker.counters.udp_refused.get(), 1);
        assert_eq!(worker.counters.udp_queries.get(), 0);
    }

    #[tokio::test]
    async fn a_panic_costs_one_datagram_of_a_batch() {
        let worker = Arc::new(worker().await);
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for question in ["first", "!", "last"] {
            client.send_to(question.as_bytes(), worker.address).await.unwrap();
        }
        let mut batch = Batch::new();
        worker.socket.readable().await.unwrap();
        batch.receive(&worker.socket).unwrap();
        worker.answer_all(&mut batch, &mut fastrand::Rng::new());
        worker.send_all(&mut batch).await;
        assert_eq!((worker.counters.panics.get(), worker.counters.udp_answers.get()), (1, 2));
        let mut received = [0; 16];
        for expected in ["first", "last"] {
            let length = client.recv(&mut received).await.unwrap();
            assert_eq!(&received[..length], expected.as_bytes());
        }
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
