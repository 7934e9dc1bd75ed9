//! The content of the registry, written as GoFrame writes it.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use super::support::etcd::Etcd;

/// Instances of each service.
pub(crate) const INSTANCES: usize = 10;

/// What GoFrame's HTTP server registers as its metadata.
pub(crate) const VALUE: &str = r#"{"insecure":true,"protocol":"http"}"#;

/// Connections that fill etcd.
const CONNECTIONS: usize = 4;

/// The registered name of a service.
pub(crate) fn name(service: usize) -> String {
    format!("service-{service:05}.svc")
}

/// The address of one of a service's instances.
pub(crate) fn address(service: usize, instance: usize) -> Ipv4Addr {
    let number = u32::try_from(service * INSTANCES + instance).unwrap();
    Ipv4Addr::from_bits((10 << 24) + (1 << 16) + number)
}

/// The key of an instance at an address.
pub(crate) fn key(service: usize, address: Ipv4Addr) -> String {
    format!("/service/default/default/{}/latest/{address}:8000", name(service))
}

/// The registered name, of 20 octets, of a service of one instance.
pub(crate) fn lone_name(service: usize) -> String {
    format!("service-{service:08}.svc")
}

/// The key of the one instance of such a service.
pub(crate) fn lone_key(service: usize) -> String {
    let address = Ipv4Addr::from_bits((10 << 24) + (1 << 16) + u32::try_from(service).unwrap());
    format!("/service/default/default/{}/latest/{address}:8000", lone_name(service))
}

/// Writes every instance of every service; octets of keys and values, and how long it took.
pub(crate) fn fill(etcd: &Etcd, services: usize) -> (usize, Duration) {
    fill_with(etcd, services, |service| {
        (0..INSTANCES).map(move |instance| key(service, address(service, instance)))
    })
}

/// Writes services of one instance each; octets of keys and values, and how long it took.
pub(crate) fn fill_lone(etcd: &Etcd, services: usize) -> (usize, Duration) {
    fill_with(etcd, services, |service| [lone_key(service)])
}

/// Writes the keys of every service.
fn fill_with<K: IntoIterator<Item = String>>(
    etcd: &Etcd,
    services: usize,
    keys: impl Fn(usize) -> K + Sync,
) -> (usize, Duration) {
    let (begun, keys) = (Instant::now(), &keys);
    let part = services.div_ceil(CONNECTIONS);
    let octets = thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let range =
                    (connection * part).min(services)..((connection + 1) * part).min(services);
                scope.spawn(move || {
                    let mut octets = 0;
                    let entries = range.flat_map(keys).map(|key| (key, VALUE.to_owned()));
                    runtime().block_on(etcd.put_many(
                        entries.inspect(|(key, value)| octets += key.len() + value.len()),
                    ));
                    octets
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    (octets, begun.elapsed())
}

/// A runtime of one thread: the caller's.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
