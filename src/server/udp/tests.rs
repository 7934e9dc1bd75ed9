use super::*;
use crate::server::Limits;
use crate::server::echo::Echo;
use crate::server::own_addresses::OwnAddresses;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::SockaddrIn;
use tokio::net;
use tokio::runtime::{Builder, LocalOptions};

fn worker() -> Worker<Echo> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let shared = UdpShared {
        rules: SharedRules::of(Limits::default()),
        counters: Arc::default(),
        open: OpenSockets::default(),
        heartbeats: Arc::default(),
        deferred_permits: Arc::new(Semaphore::new(1)),
        response_timeout: Duration::from_secs(5),
        drain_timeout: Duration::ZERO,
        abort: CancellationToken::new(),
    };
    let own = OwnAddresses::new(vec![address, SocketAddr::from(([127, 0, 0, 9], 53))]);
    shared.rules.set_own_addresses(&own);
    Worker {
        socket: Arc::new(StoppableSocket::new(socket).unwrap()),
        address,
        responder: Echo::default(),
        heartbeat: shared.heartbeats.add(address, 0),
        shared,
        stop: CancellationToken::new(),
    }
}

fn scratch() -> WorkerScratch<SockaddrIn> {
    WorkerScratch {
        batch: Batch::new(),
        random: fastrand::Rng::new(),
        backoff: ErrorBackoff::default(),
        deferred: Vec::new(),
        batches: 0,
    }
}

fn ask(worker: &Worker<Echo>, source: &str) -> (Disposition, u64, Vec<u8>) {
    let (mut out, mut queries) = (Vec::new(), 0);
    let context =
        BatchContext { lookahead: (), rules: worker.shared.rules.load(), now: Instant::now() };
    let client = worker.client(source.parse().unwrap());
    let request =
        Request { message: b"query", index: 0, client: &client, now: context.now, random: 0 };
    let disposition = worker.respond(request, &context, &mut queries, &mut out);
    (disposition, queries, out)
}

#[test]
fn implausible_sources_are_dropped() {
    let worker = worker();
    for source in
        [&*worker.address.to_string(), "127.0.0.9:53", "[::ffff:127.0.0.9]:53", "127.0.0.1:0"]
    {
        assert_eq!(ask(&worker, source), (Disposition::Silent, 0, Vec::new()), "{source}");
    }
    assert_eq!(worker.shared.counters.udp_implausible.get(), 4);
    // The port of a listener at another address is an ordinary source.
    assert_eq!(ask(&worker, "127.0.0.8:53"), (Disposition::Ready, 1, b"udp query".to_vec()));
}

#[test]
fn sources_without_access_are_refused() {
    let worker = worker();
    assert_eq!(ask(&worker, "192.0.2.1:9"), (Disposition::Ready, 0, b"refused query".to_vec()));
    assert_eq!(worker.shared.counters.udp_refused.get(), 1);
}

#[tokio::test]
async fn a_panic_loses_one_datagram_of_a_batch() {
    let worker = worker();
    let client = net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for query in ["first", "panic", "last"] {
        client.send_to(query.as_bytes(), worker.address).await.unwrap();
    }
    let mut scratch = scratch();
    let (socket, wait) = (&worker.socket.socket, ReceiveWait::ForDatagram);
    assert_eq!(scratch.batch.receive(socket, MAX_BATCH_DATAGRAMS, wait).unwrap(), 3);
    worker.respond_to_batch(&mut scratch);
    assert!(worker.send_batch(&mut scratch.batch, &mut SendRetry::default()));
    let counters = &worker.shared.counters;
    assert_eq!(
        (counters.panics.get(), counters.udp_queries.get(), counters.udp_responses.get()),
        (1, 3, 2)
    );
    let mut received = [0; 16];
    for expected in ["udp first", "udp last"] {
        let length = client.recv(&mut received).await.unwrap();
        assert_eq!(&received[..length], expected.as_bytes());
    }
}

#[tokio::test]
async fn unsendable_responses_are_counted_and_dropped() {
    let worker = worker();
    worker.send(&vec![0; 70_000], "127.0.0.1:9".parse().unwrap()).await;
    assert_eq!(worker.shared.counters.udp_send_errors.get(), 1);
    let client = net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    worker.send(b"response", client.local_addr().unwrap()).await;
    let mut received = [0; 16];
    assert_eq!(client.recv(&mut received).await.unwrap(), 8);
    assert_eq!(worker.shared.counters.udp_responses.get(), 1);
}

/// A worker on a thread of its own, and a client.
struct RunningWorker {
    worker: Arc<Worker<Echo>>,
    client: UdpSocket,
    thread: std::thread::JoinHandle<()>,
}

/// Runs a worker until its socket is stopped and its responses are sent.
fn run(worker: &Arc<Worker<Echo>>) -> std::thread::JoinHandle<()> {
    let worker = Arc::clone(worker);
    std::thread::spawn(move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .unwrap();
        let mut tasks = WorkerTasks::new(&runtime);
        worker.run::<SockaddrIn>(&runtime, &mut tasks);
        tasks.deferred.close();
        runtime.block_on(tasks.deferred.wait());
    })
}

fn client_of(worker: &Worker<Echo>) -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(worker.address).unwrap();
    client
}

fn running() -> RunningWorker {
    let worker = Arc::new(worker());
    RunningWorker { client: client_of(&worker), thread: run(&worker), worker }
}

impl RunningWorker {
    fn expect(&self, response: &str) {
        let mut received = [0; 64];
        let length = self.client.recv(&mut received).unwrap();
        assert_eq!(&received[..length], response.as_bytes());
    }

    fn ask(&self, query: &str) {
        self.client.send(query.as_bytes()).unwrap();
        self.expect(&format!("udp {query}"));
    }

    /// Waits for a turn of the worker's loop without a datagram.
    fn expect_idle_turn(&self) {
        let last = self.worker.heartbeat.last();
        while self.worker.heartbeat.last() == last {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_blocking(&self) -> bool {
        let flags = fcntl(&self.worker.socket.socket, FcntlArg::F_GETFL).unwrap();
        !OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK)
    }
}

#[test]
fn a_stopped_worker_leaves_its_socket_to_other_processes() {
    let running = running();
    // After this response, the worker blocks in the receive call.
    running.ask("query");
    let other = running.worker.socket.socket.try_clone().unwrap();
    running.worker.socket.stop();
    running.thread.join().unwrap();
    running.client.send(b"next").unwrap();
    let mut received = [0; 16];
    other.set_read_timeout(None).unwrap();
    assert_eq!(other.recv(&mut received).unwrap(), b"next".len());
    assert_eq!(&received[..4], b"next");
}

#[test]
fn idle_workers_come_round_in_both_modes_without_changing_the_socket() {
    let running = running();
    running.ask("query");
    running.expect_idle_turn();
    assert!(running.is_blocking());
    // The deferred response needs the runtime.
    running.client.send(b"hold").unwrap();
    running.ask("query");
    running.expect_idle_turn();
    assert!(running.is_blocking());
    running.ask("another");
    running.worker.responder.release();
    running.expect("udp hold, at last");
    for number in 0..20 {
        running.ask(&format!("query {number}"));
        assert!(running.is_blocking());
    }
    running.worker.socket.stop();
    running.thread.join().unwrap();
}

#[test]
fn queries_that_arrived_before_the_stop_are_answered() {
    let worker = Arc::new(worker());
    let client = client_of(&worker);
    let count = 2 * MAX_BATCH_DATAGRAMS;
    client.send(b"later").unwrap();
    for _ in 0..count {
        client.send(b"query").unwrap();
    }
    worker.socket.stop();
    let running = RunningWorker { client, thread: run(&worker), worker };
    for _ in 0..count {
        running.expect("udp query");
    }
    running.expect("udp later, at last");
    running.thread.join().unwrap();
}
