//! Time from a put to the first answer that contains it.
//!
//! svcdns and a bare watcher follow the same etcd and are queried over UDP every
//! [`QUERY_INTERVAL`], which leaves the cores to etcd and the programs. They take turns in blocks:
//! the other program is stopped meanwhile (`SIGSTOP`) and uses no CPU time.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::Client;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use tokio::sync::mpsc as queue;

use super::figures::Spread;
use super::keys;
use super::reading::Reading;
use super::startup::Server;
use super::support::SOON;
use super::support::etcd::Etcd;
use super::support::process::Process;
use super::udp_client::{self, UdpClient};
use super::watcher::Watcher;

/// Time between two queries.
const QUERY_INTERVAL: Duration = Duration::from_micros(100);

/// Changes per block.
const CHANGES_PER_BLOCK: usize = 25;

/// Times of the changes for one of the two programs, from when each put was sent.
pub(crate) struct ChangeTimes {
    /// To the first answer with the new instance, in milliseconds.
    ///
    /// The bounds are the last query answered without it and the first answer with it; the value
    /// is midway between them.
    pub(crate) visible: Vec<Reading>,
    /// To etcd's acknowledgement.
    pub(crate) acknowledged: Spread,
}

/// Times of both programs.
pub(crate) struct Changes {
    pub(crate) svcdns: ChangeTimes,
    pub(crate) watcher: ChangeTimes,
}

/// One of the two programs, with its times so far.
struct Side<'a> {
    process: &'a Process,
    client: UdpClient,
    visible: Vec<Reading>,
    acknowledged: Vec<Duration>,
}

impl<'a> Side<'a> {
    fn new(process: &'a Process, address: SocketAddr) -> Self {
        Self { process, client: UdpClient::new(address), visible: vec![], acknowledged: vec![] }
    }

    fn times(self) -> ChangeTimes {
        ChangeTimes { visible: self.visible, acknowledged: Spread::of(self.acknowledged) }
    }

    /// Queries until the answer contains the address.
    ///
    /// Returns when the last query without it was sent, and when the answer with it came.
    fn wait(&mut self, query: &[u8], address: Ipv4Addr) -> (Instant, Instant) {
        let begun = Instant::now();
        let mut last = begun;
        loop {
            let sent = Instant::now();
            if udp_client::contains(self.client.exchange(query), address) {
                return (last, Instant::now());
            }
            assert!(begun.elapsed() < SOON, "no answer contains {address}");
            last = sent;
            thread::sleep(QUERY_INTERVAL.saturating_sub(sent.elapsed()));
        }
    }
}

/// Times of sending a put and of its acknowledgement.
type PutTimes = (Instant, Instant);

/// Adds one instance to each of `2 * changes` services.
///
/// Each of the two programs is measured for half of them.
pub(crate) fn measure(
    etcd: &Etcd,
    server: &Server,
    services: usize,
    changes: usize,
    pause: Duration,
) -> Changes {
    assert!(2 * changes <= services, "each change needs a service of its own");
    let watcher = Watcher::start(etcd);
    let mut sides =
        [Side::new(&server.process, server.address), Side::new(&watcher.process, watcher.address)];
    let (key_sender, keys_to_put) = queue::unbounded_channel();
    let (put, puts) = mpsc::channel();
    let endpoint = etcd.endpoint(0);
    let putter =
        thread::spawn(move || keys::runtime().block_on(put_each(&endpoint, keys_to_put, &put)));
    // With the default timer slack, the kernel may wake us 50 µs late.
    prctl::set_timerslack(1).unwrap();

    let mut last: Option<(Vec<u8>, Ipv4Addr)> = None;
    for number in 0..2 * changes {
        let side = number / CHANGES_PER_BLOCK % 2;
        if number % CHANGES_PER_BLOCK == 0 {
            sides[1 - side].process.signal(Signal::SIGSTOP);
            sides[side].process.signal(Signal::SIGCONT);
            // Wait until it has caught up with the changes while it was stopped.
            if let Some((query, address)) = &last {
                sides[side].wait(query, *address);
            }
        }
        let side = &mut sides[side];
        // A random pause, so that changes do not coincide with periodic timers.
        thread::sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0));
        let service = number * (services / (2 * changes));
        let address =
            Ipv4Addr::from_bits((10 << 24) + (200 << 16) + u32::try_from(number).unwrap());
        let query = udp_client::query(&keys::name(service));
        key_sender.send(keys::key(service, address)).unwrap();
        let (before, after) = side.wait(&query, address);
        let (sent, acknowledged) = puts.recv_timeout(SOON).unwrap();
        let [low, high] =
            [before, after].map(|at| at.saturating_duration_since(sent).as_secs_f64() * 1e3);
        side.visible.push(Reading { low, value: f64::midpoint(low, high), high });
        side.acknowledged.push(acknowledged - sent);
        last = Some((query, address));
    }
    for side in &sides {
        side.process.signal(Signal::SIGCONT);
    }
    drop(key_sender);
    putter.join().unwrap();
    let [svcdns, watcher] = sides.map(Side::times);
    Changes { svcdns, watcher }
}

async fn put_each(
    endpoint: &str,
    mut keys_to_put: queue::UnboundedReceiver<String>,
    done: &mpsc::Sender<PutTimes>,
) {
    let mut client = Client::connect([endpoint], None).await.unwrap();
    while let Some(key) = keys_to_put.recv().await {
        let sent = Instant::now();
        client.put(key, keys::VALUE, None).await.unwrap();
        done.send((sent, Instant::now())).unwrap();
    }
}
