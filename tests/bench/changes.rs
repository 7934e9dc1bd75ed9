//! From a put to the answer that shows it: of svcdns, and of a bare watcher that is asked in the same way.
//!
//! Both are processes that follow the same etcd and are asked over UDP, one question every [`PERIOD`]: few enough to leave
//! the cores to those who work. They take turns in blocks, and who is not asked is stopped (`SIGSTOP`), so that neither is
//! measured while the other works.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::Client;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use tokio::sync::mpsc as queue;

use super::ask::{self, Asker};
use super::figures::Spread;
use super::keys;
use super::reading::Reading;
use super::startup::Server;
use super::support::SOON;
use super::support::etcd::Etcd;
use super::support::process::Process;
use super::watcher::Watcher;

/// Between two questions.
const PERIOD: Duration = Duration::from_micros(100);

/// Changes of one block.
const BLOCK: usize = 25;

/// What the changes showed to one of the two, each time counted from when its put was sent.
pub(crate) struct Seen {
    /// To the change's first answer, in milliseconds: bounded by the last query that was answered without the new
    /// instance and the first answer with it, read as the middle between them.
    pub(crate) shown: Vec<Reading>,
    /// To etcd's reply.
    pub(crate) acknowledged: Spread,
}

/// What both saw.
pub(crate) struct Changes {
    pub(crate) svcdns: Seen,
    pub(crate) watcher: Seen,
}

/// Who is asked.
struct Side<'a> {
    process: &'a Process,
    asker: Asker,
    shown: Vec<Reading>,
    acknowledged: Vec<Duration>,
}

impl<'a> Side<'a> {
    fn new(process: &'a Process, address: SocketAddr) -> Self {
        Self { process, asker: Asker::new(address), shown: vec![], acknowledged: vec![] }
    }

    fn seen(self) -> Seen {
        Seen { shown: self.shown, acknowledged: Spread::of(self.acknowledged) }
    }

    /// Asks until the answer holds the address: when it was asked in vain last, and when the answer came.
    fn wait(&mut self, question: &[u8], address: Ipv4Addr) -> (Instant, Instant) {
        let begun = Instant::now();
        let mut last = begun;
        loop {
            let asked = Instant::now();
            if ask::holds(self.asker.ask(question), address) {
                return (last, Instant::now());
            }
            assert!(begun.elapsed() < SOON, "no answer shows {address}");
            last = asked;
            thread::sleep(PERIOD.saturating_sub(asked.elapsed()));
        }
    }
}

/// When one put was sent, and when it was acknowledged.
type Put = (Instant, Instant);

/// Adds one instance to `2 * changes` services, one after the other; half of them are asked of either.
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
    let (order, orders) = queue::unbounded_channel();
    let (put, puts) = mpsc::channel();
    let endpoint = etcd.endpoint(0);
    let putter = thread::spawn(move || keys::runtime().block_on(put_each(&endpoint, orders, &put)));
    // The kernel may be late by 50 µs else.
    prctl::set_timerslack(1).unwrap();

    let mut last: Option<(Vec<u8>, Ipv4Addr)> = None;
    for number in 0..2 * changes {
        let side = number / BLOCK % 2;
        if number % BLOCK == 0 {
            sides[1 - side].process.signal(Signal::SIGSTOP);
            sides[side].process.signal(Signal::SIGCONT);
            // What it slept through comes first.
            if let Some((question, address)) = &last {
                sides[side].wait(question, *address);
            }
        }
        let side = &mut sides[side];
        // Not in step with anything that runs by the clock.
        thread::sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0));
        let service = number * (services / (2 * changes));
        let address =
            Ipv4Addr::from_bits((10 << 24) + (200 << 16) + u32::try_from(number).unwrap());
        let question = ask::question(&keys::name(service));
        order.send(keys::key(service, address)).unwrap();
        let (before, after) = side.wait(&question, address);
        let (sent, acknowledged) = puts.recv_timeout(SOON).unwrap();
        let [low, high] =
            [before, after].map(|at| at.saturating_duration_since(sent).as_secs_f64() * 1e3);
        side.shown.push(Reading { low, value: f64::midpoint(low, high), high });
        side.acknowledged.push(acknowledged - sent);
        last = Some((question, address));
    }
    for side in &sides {
        side.process.signal(Signal::SIGCONT);
    }
    drop(order);
    putter.join().unwrap();
    let [svcdns, watcher] = sides.map(Side::seen);
    Changes { svcdns, watcher }
}

async fn put_each(
    endpoint: &str,
    mut orders: queue::UnboundedReceiver<String>,
    done: &mpsc::Sender<Put>,
) {
    let mut client = Client::connect([endpoint], None).await.unwrap();
    while let Some(key) = orders.recv().await {
        let sent = Instant::now();
        client.put(key, keys::VALUE, None).await.unwrap();
        done.send((sent, Instant::now())).unwrap();
    }
}
