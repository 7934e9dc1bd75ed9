//! The keys and values of the benchmark's registry, as GoFrame writes them.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use super::support::etcd::Etcd;

/// Instances of each service.
pub(crate) const INSTANCES: usize = 10;

/// The metadata that GoFrame's HTTP server registers.
pub(crate) const VALUE: &str = r#"{"insecure":true,"protocol":"http"}"#;

/// Connections to etcd that put the keys.
const CONNECTIONS: usize = 4;

/// Returns the registered name of a service.
pub(crate) fn name(service: usize) -> String {
    format!("service-{service:05}.svc")
}

/// Returns the address of an instance.
pub(crate) fn address(service: usize, instance: usize) -> Ipv4Addr {
    let number = u32::try_from(service * INSTANCES + instance).unwrap();
    Ipv4Addr::from_bits((10 << 24) + (1 << 16) + number)
}

/// Returns the key of an instance at an address.
pub(crate) fn key(service: usize, address: Ipv4Addr) -> String {
    format!("/service/default/default/{}/latest/{address}:8000", name(service))
}

/// Returns the registered name, of 20 bytes, of a service with a single instance.
pub(crate) fn single_name(service: usize) -> String {
    format!("service-{service:08}.svc")
}

/// Returns the key of a service with a single instance.
pub(crate) fn single_key(service: usize) -> String {
    let address = Ipv4Addr::from_bits((10 << 24) + (1 << 16) + u32::try_from(service).unwrap());
    format!("/service/default/default/{}/latest/{address}:8000", single_name(service))
}

/// Puts every instance of every service.
///
/// Returns the bytes of all keys and values, and the time it took.
pub(crate) fn fill(etcd: &Etcd, services: usize) -> (usize, Duration) {
    fill_with(etcd, services, |service| {
        (0..INSTANCES).map(move |instance| key(service, address(service, instance)))
    })
}

/// Puts services with a single instance each; returns the same as [`fill`].
pub(crate) fn fill_single(etcd: &Etcd, services: usize) -> (usize, Duration) {
    fill_with(etcd, services, |service| [single_key(service)])
}

/// Puts the keys of every service.
fn fill_with<K: IntoIterator<Item = String>>(
    etcd: &Etcd,
    services: usize,
    keys: impl Fn(usize) -> K + Sync,
) -> (usize, Duration) {
    let (begun, keys) = (Instant::now(), &keys);
    let part = services.div_ceil(CONNECTIONS);
    let bytes = thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let range =
                    (connection * part).min(services)..((connection + 1) * part).min(services);
                scope.spawn(move || {
                    let mut bytes = 0;
                    let entries = range.flat_map(keys).map(|key| (key, VALUE.to_owned()));
                    runtime().block_on(etcd.put_many(
                        entries.inspect(|(key, value)| bytes += key.len() + value.len()),
                    ));
                    bytes
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    (bytes, begun.elapsed())
}

/// Returns a runtime on the caller's thread.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
