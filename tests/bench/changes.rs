//! From a put to the answer that shows it, and to the event that a bare watcher sees.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::{Client, EventType, WatchOptions};
use tokio::sync::mpsc as queue;

use super::ask::{self, Asker};
use super::figures::Spread;
use super::keys;
use super::support::SOON;
use super::support::etcd::Etcd;

/// What all changes showed, each counted from when its put was sent.
pub(crate) struct Changes {
    /// To the first answer with the new instance.
    pub(crate) answered: Spread,
    /// To the event in a watcher that does nothing else.
    pub(crate) watched: Spread,
    /// To etcd's reply.
    pub(crate) acknowledged: Spread,
    /// The first less the second, at least 0: which of two processes runs first is the scheduler's choice.
    pub(crate) behind: Spread,
    /// Of one question while waiting.
    pub(crate) poll: Spread,
}

/// When one put was sent, and when it was acknowledged.
type Put = (Instant, Instant);

/// Adds one instance to this many services, one after the other.
pub(crate) fn measure(etcd: &Etcd, server: SocketAddr, services: usize, changes: usize, pause: Duration) -> Changes {
    assert!(changes <= services, "each change needs a service of its own");
    let (order, orders) = queue::unbounded_channel();
    let (put, puts) = mpsc::channel();
    let (event, events) = mpsc::channel();
    let endpoint = etcd.endpoint(0);
    let putter = thread::spawn({
        let endpoint = endpoint.clone();
        move || keys::runtime().block_on(put_each(&endpoint, orders, &put))
    });
    // Ends with the channel's other side, at the latest with the program.
    thread::spawn(move || keys::runtime().block_on(watch(&endpoint, &event)));
    assert!(events.recv_timeout(SOON).unwrap().0.is_empty(), "the watch is confirmed first");

    let mut asker = Asker::new(server);
    let (mut answered, mut watched, mut acknowledged, mut behind, mut poll) = (vec![], vec![], vec![], vec![], vec![]);
    for number in 0..changes {
        thread::sleep(pause);
        let service = number * (services / changes);
        let address = Ipv4Addr::from_bits((10 << 24) + (200 << 16) + u32::try_from(number).unwrap());
        let (key, question) = (keys::key(service, address), ask::question(&keys::name(service)));
        let (begun, mut polls) = (Instant::now(), 1);
        order.send(key.clone()).unwrap();
        while !ask::holds(asker.ask(&question), address) {
            polls += 1;
            assert!(begun.elapsed() < SOON, "no answer shows {key}");
        }
        let at = Instant::now();
        poll.push((at - begun) / polls);
        let (sent, ack) = puts.recv_timeout(SOON).unwrap();
        let seen = loop {
            let (seen_key, seen) = events.recv_timeout(SOON).unwrap();
            if seen_key == key.as_bytes() {
                break seen;
            }
        };
        answered.push(at - sent);
        watched.push(seen - sent);
        acknowledged.push(ack - sent);
        behind.push(at.saturating_duration_since(seen));
    }
    drop(order);
    putter.join().unwrap();
    Changes {
        answered: Spread::of(answered),
        watched: Spread::of(watched),
        acknowledged: Spread::of(acknowledged),
        behind: Spread::of(behind),
        poll: Spread::of(poll),
    }
}

async fn put_each(endpoint: &str, mut orders: queue::UnboundedReceiver<String>, done: &mpsc::Sender<Put>) {
    let mut client = Client::connect([endpoint], None).await.unwrap();
    while let Some(key) = orders.recv().await {
        let sent = Instant::now();
        client.put(key, keys::VALUE, None).await.unwrap();
        done.send((sent, Instant::now())).unwrap();
    }
}

/// Says an empty key once etcd has confirmed the watch, then every key that is put, until the stream breaks.
async fn watch(endpoint: &str, seen: &mpsc::Sender<(Vec<u8>, Instant)>) {
    let client = Client::connect([endpoint], None).await.unwrap();
    let mut stream = client.watch_client().watch("/service/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    if seen.send((Vec::new(), Instant::now())).is_err() {
        return;
    }
    while let Ok(Some(message)) = stream.message().await {
        let at = Instant::now();
        for event in message.events().iter().filter(|event| event.event_type() == EventType::Put) {
            if seen.send((event.kv().unwrap().key().to_vec(), at)).is_err() {
                return;
            }
        }
    }
}
