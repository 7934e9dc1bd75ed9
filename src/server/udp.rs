//! Answering over UDP: batches of datagrams in, batches of answers out, with no allocation and no task for an answer that is
//! ready.
//!
//! A thread with nothing to wait for but datagrams waits in the call that receives them: no readiness is asked for, no event
//! loop turns. While answers are under way that have to be waited for, its runtime runs, and watches the socket too.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::runtime::LocalRuntime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::backoff::Backoff;
use super::batch::{Address, Batch, SIZE, send_one};
use super::pace::{Most, Next, Patience, SEND_PAUSE};
use super::sink::Tap;
use super::tasks::Tasks;
use super::{Access, Client, Counters, DnsTransport, Request, Respond, Response};

/// Full batches in a row before the other tasks of the thread get their turn.
const TURN: usize = 2;

/// One UDP socket and what is needed to answer on it.
#[derive(Debug)]
pub(super) struct Worker<R> {
    pub(super) socket: Arc<Stoppable>,
    pub(super) address: SocketAddr,
    pub(super) responder: R,
    pub(super) shared: UdpShared,
    pub(super) stop: CancellationToken,
}

/// What all UDP workers share.
#[derive(Clone, Debug)]
pub(super) struct UdpShared {
    /// All listening addresses.
    pub(super) own: Arc<ArcSwap<Own>>,
    pub(super) access: Access,
    pub(super) tap: Tap,
    pub(super) counters: Arc<Counters>,
    /// A place for each answer that is waited for.
    pub(super) places: Arc<Semaphore>,
    /// How long such an answer may take.
    pub(super) patience: Duration,
    /// How long answers in flight have to get out at the end.
    pub(super) drain: Duration,
    /// Cancelled: answers in flight are given up.
    pub(super) abort: CancellationToken,
}

/// A socket, and whether its reading has ended.
#[derive(Debug)]
pub(super) struct Stoppable {
    pub(super) socket: UdpSocket,
    stopped: AtomicBool,
}

impl Stoppable {
    pub(super) fn new(socket: UdpSocket) -> Self {
        Self { socket, stopped: AtomicBool::new(false) }
    }

    /// Ends the reading, and wakes a thread that waits in it. What is being answered can still be sent.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // Says that there is no connection to shut down, and wakes whoever reads all the same (inet_shutdown).
        let _ = SockRef::from(&self.socket).shutdown(std::net::Shutdown::Read);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// All addresses that are listened on. Questions that seem to come from them are forged, to make us talk to ourselves.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Their ports, each once: clients seldom have one of them.
    ports: Vec<u16>,
    addresses: Vec<SocketAddr>,
}

impl Own {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        let mut ports: Vec<u16> = addresses.iter().map(SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        Self { ports, addresses }
    }

    fn contains(&self, source: &SocketAddr) -> bool {
        self.ports.iter().any(|port| *port == source.port())
            && self.addresses.iter().any(|own| own.port() == source.port() && own.ip() == source.ip().to_canonical())
    }
}

/// What a thread uses again and again while it answers.
#[derive(Debug)]
struct Hand<A> {
    batch: Batch<A>,
    draws: fastrand::Rng,
    backoff: Backoff,
    /// Questions of the last batch whose answers have to be waited for.
    later: Vec<Later>,
}

/// What the datagrams of a batch have in common.
#[derive(Debug)]
struct Common<A> {
    ahead: A,
    own: Guard<Arc<Own>>,
    now: Instant,
}

/// A question whose answer has to be waited for.
#[derive(Debug)]
struct Later {
    request: Vec<u8>,
    source: SocketAddr,
    waiting: Waiting,
    /// When it was received, if the sink wants it.
    received: Option<Instant>,
}

impl<R: Respond> Worker<R> {
    /// Answers until the server stops; survives every error of the socket. A panic may end it before.
    pub(super) fn run<A: Address>(self: &Arc<Self>, runtime: &LocalRuntime, tasks: &mut Tasks) {
        // The responder may begin tasks of its own.
        let _entered = runtime.enter();
        let mut hand =
            Hand::<A> { batch: Batch::new(), draws: fastrand::Rng::new(), backoff: Backoff::default(), later: Vec::with_capacity(SIZE) };
        while !self.socket.is_stopped() && !self.stop.is_cancelled() {
            if tasks.are_under_way() || !hand.later.is_empty() {
                runtime.block_on(self.answer_beside(&mut hand, tasks));
            } else {
                self.answer_alone(&mut hand, tasks);
            }
        }
    }

    /// Answers until there is a task to care for, or the server stops. Waits in the system call.
    fn answer_alone<A: Address>(&self, hand: &mut Hand<A>, tasks: &Tasks) {
        let socket = &self.socket.socket;
        if let Err(error) = socket.set_nonblocking(false) {
            return std::thread::sleep(self.receive_failed(&error, hand));
        }
        let mut most = Most::default();
        loop {
            let received = hand.batch.receive(socket, most.next());
            if self.socket.is_stopped() {
                return;
            }
            match received {
                Ok(count) => {
                    most.learn(count);
                    self.received(hand);
                    self.answer_all(hand);
                    let mut patience = Patience::default();
                    while !self.send_all(&mut hand.batch, &mut patience) {
                        std::thread::sleep(SEND_PAUSE);
                    }
                    if !hand.later.is_empty() || tasks.are_under_way() {
                        return;
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => std::thread::sleep(self.receive_failed(&error, hand)),
            }
        }
    }

    /// Answers while there are tasks to care for, or until the server stops.
    async fn answer_beside<A: Address>(self: &Arc<Self>, hand: &mut Hand<A>, tasks: &mut Tasks) {
        self.wait_for_answers(hand, tasks);
        // Registered for this time only, else each datagram would cost a look into what nobody waits for.
        let watched = self.socket.socket.set_nonblocking(true).and_then(|()| self.socket.socket.try_clone());
        let watched = match watched.and_then(tokio::net::UdpSocket::from_std) {
            Ok(watched) => watched,
            // The tasks go on meanwhile.
            Err(error) => return sleep(self.receive_failed(&error, hand)).await,
        };
        let mut stopped = pin!(self.stop.cancelled());
        let mut full = 0;
        loop {
            let ready = tokio::select! {
                biased;
                () = &mut stopped => return,
                ready = watched.readable() => ready,
            };
            match ready.and_then(|()| self.receive_watched(&watched, &mut hand.batch)) {
                Ok(left) => {
                    self.received(hand);
                    self.answer_all(hand);
                    let waited_for = self.wait_for_answers(hand, tasks);
                    let mut patience = Patience::default();
                    while !self.send_all(&mut hand.batch, &mut patience) {
                        sleep(SEND_PAUSE).await;
                    }
                    if tasks.may_rest(waited_for, Instant::now()) {
                        return;
                    }
                    full = if left == Left::Perhaps { full + 1 } else { 0 };
                    if full >= TURN {
                        full = 0;
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => {
                    let pause = self.receive_failed(&error, hand);
                    tokio::select! {
                        () = &mut stopped => return,
                        () = sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// Receives from a socket that is watched, and says whether the runtime is to tell when there is more.
    fn receive_watched<A: Address>(&self, watched: &tokio::net::UdpSocket, batch: &mut Batch<A>) -> io::Result<Left> {
        let mut count = 0;
        let outcome = watched.try_io(Interest::READABLE, || {
            count = batch.receive(&self.socket.socket, SIZE)?;
            // Fewer than asked for: the socket is empty. To say so here spares a call that would find nothing.
            if count < SIZE { Err(ErrorKind::WouldBlock.into()) } else { Ok(Left::Perhaps) }
        });
        match outcome {
            Err(error) if error.kind() == ErrorKind::WouldBlock && count > 0 => Ok(Left::Nothing),
            outcome => outcome,
        }
    }

    /// Notes that receiving works.
    fn received<A>(&self, hand: &mut Hand<A>) {
        if hand.backoff.reset() {
            debug!(address = %self.address, "receiving over UDP works again");
        }
    }

    /// Notes that receiving does not work; says how long to pause.
    #[cold]
    fn receive_failed<A>(&self, error: &io::Error, hand: &mut Hand<A>) -> Duration {
        if self.shared.counters.udp_receive_errors.increment().is_power_of_two() {
            warn!(address = %self.address, %error, "cannot receive over UDP at the moment; going on");
        }
        hand.backoff.next()
    }

    /// Writes the answers of a batch that are ready, and notes what has to be waited for.
    fn answer_all<A: Address>(&self, hand: &mut Hand<A>) {
        let Hand { batch, draws, later, .. } = hand;
        let ahead = self.responder.look_ahead(batch.requests());
        let common = Common { ahead, own: self.shared.own.load(), now: Instant::now() };
        let mut queries = 0;
        batch.answer(|number, octets, source, out| {
            let (client, wanted) = (self.client(source), self.shared.tap.wants());
            let request = Request { octets, number, client: &client, now: common.now, draw: draws.u64(..) };
            let written = match self.answer(request, &common, &mut queries, out) {
                Response::Ready => true,
                Response::Silent => false,
                Response::Later => match self.place() {
                    Some(waiting) => {
                        later.push(Later { request: octets.to_vec(), source, waiting, received: wanted.then_some(common.now) });
                        return false;
                    }
                    None => self.fail(octets, out),
                },
            };
            if wanted {
                self.shared.tap.finished(&client, octets, written.then_some(out), common.now);
            }
            written
        });
        if queries > 0 {
            self.shared.counters.udp_queries.add(queries);
        }
    }

    /// The client that asks from `source`: each address has sockets of its own.
    fn client(&self, source: SocketAddr) -> Client {
        Client { source, destination: self.address, transport: DnsTransport::Udp }
    }

    /// Writes the answer to one datagram, where it is ready. Counts it in `queries` where it is one that may be asked.
    fn answer(&self, request: Request<'_>, common: &Common<R::Ahead>, queries: &mut u64, out: &mut Vec<u8>) -> Response {
        // Borrowed: a copy would be made field by field.
        let source = &request.client.source;
        // Nothing answers at port 0.
        if source.port() == 0 || common.own.contains(source) {
            self.shared.counters.udp_implausible.increment();
            return Response::Silent;
        }
        let (responder, octets) = (&self.responder, request.octets);
        let written = |written| if written { Response::Ready } else { Response::Silent };
        if self.shared.access.allows(source.ip()) {
            *queries += 1;
            self.contained(octets, || responder.respond(request, &common.ahead, out))
        } else {
            self.shared.counters.udp_refused.increment();
            self.contained(octets, || written(responder.refuse(octets, out)))
        }
    }

    /// A panic costs the answer to its datagram.
    fn contained(&self, request: &[u8], respond: impl FnOnce() -> Response) -> Response {
        catch_unwind(AssertUnwindSafe(respond)).unwrap_or_else(|_| {
            if self.shared.counters.panics.increment().is_power_of_two() {
                error!(octets = request.len(), "a panic while answering was contained; please report this");
            }
            Response::Silent
        })
    }

    /// A place to wait for an answer, if one is free.
    fn place(&self) -> Option<Waiting> {
        let place = Arc::clone(&self.shared.places).try_acquire_owned().ok()?;
        Some(Waiting { counters: Arc::clone(&self.shared.counters), _place: place })
    }

    /// Writes the failure for want of a place to wait. Says whether it is written.
    fn fail(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        if self.shared.counters.udp_overloads.increment().is_power_of_two() {
            warn!("too many queries over UDP wait for their responses (the limit is fixed); answering SERVFAIL to more");
        }
        let fail = || if self.responder.fail(request, out) { Response::Ready } else { Response::Silent };
        self.contained(request, fail) == Response::Ready
    }

    /// Begins to wait for the answers of a batch that were not ready; says whether there are any.
    ///
    /// In tasks of this thread, where the responder's own sockets are: an answer wakes no other thread.
    fn wait_for_answers<A>(self: &Arc<Self>, hand: &mut Hand<A>, tasks: &Tasks) -> bool {
        let any = !hand.later.is_empty();
        for Later { request, source, waiting, received } in hand.later.drain(..) {
            let worker = Arc::clone(self);
            tasks.answers.spawn(async move {
                let _waiting = waiting;
                let UdpShared { tap, patience, counters, .. } = &worker.shared;
                let client = worker.client(source);
                let kept = received.map(|received| tap.keep(&client, &request, received));
                let answer = timeout(*patience, worker.responder.later(request, client)).await.unwrap_or_else(|_| {
                    counters.udp_answer_timeouts.increment();
                    None
                });
                if let Some(kept) = kept {
                    kept.finished(answer.as_deref());
                }
                if let Some(answer) = answer {
                    worker.send(&answer, source).await;
                }
            });
        }
        any
    }

    /// Sends the answers of a batch, each independent of the others. False: the socket takes no more, and after
    /// [`SEND_PAUSE`] it is worth another try.
    fn send_all<A: Address>(&self, batch: &mut Batch<A>, patience: &mut Patience) -> bool {
        while batch.unsent() > 0 {
            match batch.send(&self.socket.socket) {
                Ok(count) => {
                    *patience = Patience::default();
                    self.shared.counters.udp_answers.add(count as u64);
                }
                Err(error) => match patience.after(&error) {
                    Next::Again => {}
                    Next::Pause => return false,
                    Next::GiveUp => {
                        let given_up = if error.kind() == ErrorKind::WouldBlock { batch.unsent() } else { 1 };
                        self.count_unsent(&error, given_up);
                        batch.skip(given_up);
                        *patience = Patience::default();
                    }
                },
            }
        }
        batch.shrink();
        true
    }

    /// Sends one answer, or drops and counts it.
    async fn send(&self, answer: &[u8], target: SocketAddr) {
        let mut patience = Patience::default();
        loop {
            match send_one(&self.socket.socket, answer, target) {
                Ok(()) => {
                    self.shared.counters.udp_answers.increment();
                    return;
                }
                Err(error) => match patience.after(&error) {
                    Next::Again => {}
                    Next::Pause => sleep(SEND_PAUSE).await,
                    Next::GiveUp => return self.count_unsent(&error, 1),
                },
            }
        }
    }

    fn count_unsent(&self, error: &io::Error, answers: usize) {
        if error.kind() == ErrorKind::WouldBlock {
            self.shared.counters.udp_dropped.add(answers as u64);
        } else {
            debug!(%error, "cannot send an answer over UDP");
            self.shared.counters.udp_send_errors.add(answers as u64);
        }
    }
}

/// What is left in a watched socket after a batch was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nothing: the socket says when there is something again.
    Nothing,
    /// There may be more.
    Perhaps,
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
    use crate::server::echo::Echo;
    use nix::sys::socket::SockaddrIn;
    use tokio::net;
    use tokio::runtime::{Builder, LocalOptions};

    fn worker() -> Worker<Echo> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let shared = UdpShared {
            own: Arc::new(ArcSwap::from_pointee(Own::new(vec![address, SocketAddr::from(([127, 0, 0, 9], 53))]))),
            access: Access::new(&[]),
            tap: Tap::default(),
            counters: Arc::default(),
            places: Arc::new(Semaphore::new(1)),
            patience: Duration::from_secs(5),
            drain: Duration::ZERO,
            abort: CancellationToken::new(),
        };
        Worker { socket: Arc::new(Stoppable::new(socket)), address, responder: Echo::default(), shared, stop: CancellationToken::new() }
    }

    fn hand() -> Hand<SockaddrIn> {
        Hand { batch: Batch::new(), draws: fastrand::Rng::new(), backoff: Backoff::default(), later: Vec::new() }
    }

    fn ask(worker: &Worker<Echo>, source: &str) -> (Response, u64, Vec<u8>) {
        let (mut answer, mut queries) = (Vec::new(), 0);
        let common = Common { ahead: (), own: worker.shared.own.load(), now: Instant::now() };
        let client = worker.client(source.parse().unwrap());
        let request = Request { octets: b"question", number: 0, client: &client, now: common.now, draw: 0 };
        let response = worker.answer(request, &common, &mut queries, &mut answer);
        (response, queries, answer)
    }

    #[test]
    fn sources_that_cannot_be_clients_are_dropped() {
        let worker = worker();
        for source in [&*worker.address.to_string(), "127.0.0.9:53", "[::ffff:127.0.0.9]:53", "127.0.0.1:0"] {
            assert_eq!(ask(&worker, source), (Response::Silent, 0, Vec::new()), "{source}");
        }
        assert_eq!(worker.shared.counters.udp_implausible.get(), 4);
        // The same port at another address is a client like any other.
        assert_eq!(ask(&worker, "127.0.0.8:53"), (Response::Ready, 1, b"udp question".to_vec()));
    }

    #[test]
    fn a_source_without_access_gets_the_refusal() {
        let worker = worker();
        assert_eq!(ask(&worker, "192.0.2.1:9"), (Response::Ready, 0, b"refused question".to_vec()));
        assert_eq!(worker.shared.counters.udp_refused.get(), 1);
    }

    #[tokio::test]
    async fn a_panic_costs_one_datagram_of_a_batch() {
        let worker = worker();
        let client = net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for question in ["first", "panic", "last"] {
            client.send_to(question.as_bytes(), worker.address).await.unwrap();
        }
        let mut hand = hand();
        assert_eq!(hand.batch.receive(&worker.socket.socket, SIZE).unwrap(), 3);
        worker.answer_all(&mut hand);
        assert!(worker.send_all(&mut hand.batch, &mut Patience::default()));
        let counters = &worker.shared.counters;
        assert_eq!((counters.panics.get(), counters.udp_queries.get(), counters.udp_answers.get()), (1, 3, 2));
        let mut received = [0; 16];
        for expected in ["udp first", "udp last"] {
            let length = client.recv(&mut received).await.unwrap();
            assert_eq!(&received[..length], expected.as_bytes());
        }
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_sent_is_counted_and_forgotten() {
        let worker = worker();
        worker.send(&vec![0; 70_000], "127.0.0.1:9".parse().unwrap()).await;
        assert_eq!(worker.shared.counters.udp_send_errors.get(), 1);
        let client = net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        worker.send(b"answer", client.local_addr().unwrap()).await;
        let mut received = [0; 16];
        assert_eq!(client.recv(&mut received).await.unwrap(), 6);
        assert_eq!(worker.shared.counters.udp_answers.get(), 1);
    }

    #[test]
    fn a_thread_that_waits_for_datagrams_is_woken_to_stop() {
        let worker = Arc::new(worker());
        let socket = Arc::clone(&worker.socket);
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
            worker.run::<SockaddrIn>(&runtime, &mut Tasks::new(&runtime));
        });
        // Once it has answered, it waits for the next one.
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"question", socket.socket.local_addr().unwrap()).unwrap();
        assert_eq!(client.recv(&mut [0; 16]).unwrap(), b"udp question".len());
        socket.stop();
        thread.join().unwrap();
    }
}
