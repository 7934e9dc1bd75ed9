//! Lookup of the host names of endpoints, repeated as TTLs expire.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::service::{Addresses, HostChange, Update};

/// Limit on concurrent lookups, so that many new hosts do not flood the upstreams.
const MAX_CONCURRENT_LOOKUPS: usize = 16;
/// Limit on the addresses of one host.
const MAX_ADDRESSES_PER_HOST: usize = 64;
/// Minimum and maximum time until a host is looked up again, regardless of its TTL.
const REFRESH_INTERVAL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));
/// First and maximum time until a failed lookup is retried; the time doubles.
const RETRY_INTERVAL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// The addresses of a host and their TTL; the list is empty if the host has none.
pub type LookupResult = Result<(Vec<IpAddr>, Duration), LookupFailed>;

/// Error: no upstream could resolve a host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no upstream could resolve the host name")]
pub struct LookupFailed;

/// Queue of requests to follow or drop hosts; adding one never blocks for long.
#[derive(Debug, Default)]
pub struct HostRequests {
    changes: Mutex<Vec<HostChange>>,
    changed: Notify,
}

impl HostRequests {
    /// Adds requests for [`follow_hosts`].
    pub fn update(&self, changes: Vec<HostChange>) {
        if !changes.is_empty() {
            self.changes.lock().unwrap_or_else(PoisonError::into_inner).extend(changes);
            self.changed.notify_one();
        }
    }

    /// Returns the queued requests and empties the queue.
    fn take(&self) -> Vec<HostChange> {
        std::mem::take(&mut self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A host whose addresses are followed.
#[derive(Debug)]
struct TrackedHost {
    /// Time of the next lookup; `None` during a lookup.
    due: Option<Instant>,
    failures: u32,
    /// Whether a lookup has succeeded; its addresses are kept through failures.
    known: bool,
    /// Serial number of the request; a lookup made for an earlier request is ignored.
    request: u64,
}

/// Resolves the requested hosts and sends their addresses to `updates`.
///
/// Each host is resolved with `lookup`, again when its TTL expires.
///
/// Returns when `stop` is cancelled or the channel is closed. `lookup` must end within a few
/// seconds.
pub async fn follow_hosts<F>(
    requests: &HostRequests,
    lookup: impl Fn(Box<str>) -> F,
    updates: mpsc::Sender<Update>,
    stop: CancellationToken,
) where
    F: Future<Output = LookupResult> + Send + 'static,
{
    let mut hosts: HashMap<Box<str>, TrackedHost> = HashMap::new();
    let mut lookups: JoinSet<(Box<str>, u64, LookupResult)> = JoinSet::new();
    let mut requested = 0;
    loop {
        for change in requests.take() {
            match change {
                HostChange::Wanted(host) => {
                    requested += 1;
                    hosts.insert(
                        host,
                        TrackedHost {
                            due: Some(Instant::now()),
                            failures: 0,
                            known: false,
                            request: requested,
                        },
                    );
                }
                HostChange::Unwanted(host) => {
                    hosts.remove(&host);
                }
            }
        }
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (host, tracked) in &mut hosts {
            let Some(due) = tracked.due else { continue };
            if due > now {
                next = Some(next.map_or(due, |next| next.min(due)));
            } else if lookups.len() < MAX_CONCURRENT_LOOKUPS {
                tracked.due = None;
                let (host, request, result) = (host.clone(), tracked.request, lookup(host.clone()));
                lookups.spawn(async move { (host, request, result.await) });
            }
        }
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            () = requests.changed.notified() => None,
            () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() => None,
            ended = lookups.join_next(), if !lookups.is_empty() => ended,
        };
        // A lookup that panicked is repeated only once the host is requested again: otherwise it
        // could panic again and again.
        let Some(Ok((host, request, result))) = ended else { continue };
        let Some(tracked) = hosts.get_mut(&host).filter(|tracked| tracked.request == request)
        else {
            continue;
        };
        if let Some(addresses) = tracked.apply(result)
            && updates.send(Update::Hosts(vec![(host, addresses)])).await.is_err()
        {
            return;
        }
    }
}

impl TrackedHost {
    /// Applies the result of a lookup; returns the addresses to publish, if any.
    fn apply(&mut self, result: LookupResult) -> Option<Addresses> {
        let now = Instant::now();
        let Ok((mut addresses, ttl)) = result else {
            let pause =
                RETRY_INTERVAL.0.saturating_mul(1 << self.failures.min(10)).min(RETRY_INTERVAL.1);
            self.due = Some(now + pause);
            self.failures = self.failures.saturating_add(1);
            // The addresses found earlier remain published.
            return (!self.known).then_some(Addresses::Failed);
        };
        self.due = Some(now + ttl.clamp(REFRESH_INTERVAL.0, REFRESH_INTERVAL.1));
        (self.failures, self.known) = (0, true);
        addresses.retain(|address| is_servable(*address));
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MAX_ADDRESSES_PER_HOST);
        Some(Addresses::Known(addresses.into()))
    }
}

/// Returns whether an address is a valid unicast destination.
///
/// The same rule applies to registered addresses (RFC 1122 section 3.2.1.3, RFC 4291 section 2.7).
fn is_servable(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            !address.is_unspecified() && !address.is_multicast() && address.octets()[0] < 240
        }
        IpAddr::V6(address) => !address.is_unspecified() && !address.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A fake resolver: the answers of lookups, and the hosts looked up so far.
    #[derive(Debug, Default)]
    struct FakeZone {
        answers: Mutex<HashMap<Box<str>, LookupResult>>,
        lookups: Mutex<Vec<Box<str>>>,
    }

    impl FakeZone {
        fn set(&self, host: &str, result: LookupResult) {
            self.answers.lock().unwrap().insert(host.into(), result);
        }

        fn lookups(&self) -> usize {
            self.lookups.lock().unwrap().len()
        }
    }

    struct RunningLookups {
        zone: Arc<FakeZone>,
        requests: Arc<HostRequests>,
        found: mpsc::Receiver<Update>,
    }

    impl RunningLookups {
        fn start() -> Self {
            let (zone, requests) =
                (Arc::new(FakeZone::default()), Arc::new(HostRequests::default()));
            let (sender, found) = mpsc::channel(8);
            let (answers, wants) = (Arc::clone(&zone), Arc::clone(&requests));
            tokio::spawn(async move {
                let lookup = |host: Box<str>| {
                    answers.lookups.lock().unwrap().push(host.clone());
                    let result = answers
                        .answers
                        .lock()
                        .unwrap()
                        .get(&host)
                        .cloned()
                        .unwrap_or(Err(LookupFailed));
                    async move { result }
                };
                follow_hosts(&wants, lookup, sender, CancellationToken::new()).await;
            });
            Self { zone, requests, found }
        }

        async fn next(&mut self) -> (String, Addresses) {
            let Some(Update::Hosts(mut found)) = self.found.recv().await else {
                panic!("no addresses")
            };
            let (host, addresses) = found.remove(0);
            (host.into(), addresses)
        }
    }

    #[allow(clippy::unnecessary_wraps, reason = "the signature of a lookup")]
    fn addresses(texts: &[&str], seconds: u64) -> LookupResult {
        Ok((texts.iter().map(|text| text.parse().unwrap()).collect(), Duration::from_secs(seconds)))
    }

    fn known(texts: &[&str]) -> Addresses {
        Addresses::Known(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_are_looked_up_at_once_and_as_ttls_expire() {
        let mut following = RunningLookups::start();
        following.zone.set(
            "web.example",
            addresses(&["192.0.2.2", "192.0.2.1", "192.0.2.2", "0.0.0.0", "ff02::1"], 30),
        );
        following.requests.update(vec![HostChange::Wanted("web.example".into())]);
        let began = Instant::now();
        assert_eq!(
            following.next().await,
            ("web.example".to_owned(), known(&["192.0.2.1", "192.0.2.2"]))
        );
        following.zone.set("web.example", addresses(&["192.0.2.3"], 30));
        assert_eq!(following.next().await, ("web.example".to_owned(), known(&["192.0.2.3"])));
        assert!(began.elapsed() >= Duration::from_secs(30));
        // A TTL of 0 does not cause a busy loop.
        following.zone.set("web.example", addresses(&[], 0));
        assert_eq!(following.next().await.1, known(&[]));
        let before = following.zone.lookups();
        assert_eq!(following.next().await.1, known(&[]));
        assert_eq!(following.zone.lookups(), before + 1);
        assert!(began.elapsed() >= Duration::from_secs(65));
    }

    #[tokio::test(start_paused = true)]
    async fn known_addresses_survive_failed_lookups() {
        let mut following = RunningLookups::start();
        following.requests.update(vec![HostChange::Wanted("web.example".into())]);
        assert_eq!(following.next().await.1, Addresses::Failed);
        following.zone.set("web.example", addresses(&["192.0.2.1"], 10));
        // Failures are published until the first answer arrives.
        loop {
            match following.next().await.1 {
                Addresses::Failed => {}
                found => break assert_eq!(found, known(&["192.0.2.1"])),
            }
        }
        following.zone.set("web.example", Err(LookupFailed));
        let lookups = following.zone.lookups();
        let silence = tokio::time::timeout(Duration::from_secs(600), following.next()).await;
        assert!(silence.is_err(), "{silence:?}");
        let retries = following.zone.lookups() - lookups;
        assert!((8..=30).contains(&retries), "{retries} retries in ten minutes");
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_no_longer_requested_are_not_looked_up() {
        let mut following = RunningLookups::start();
        following.zone.set("web.example", addresses(&["192.0.2.1"], 5));
        following.requests.update(vec![HostChange::Wanted("web.example".into())]);
        following.next().await;
        following.requests.update(vec![HostChange::Unwanted("web.example".into())]);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let lookups = following.zone.lookups();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(following.zone.lookups(), lookups);
    }
}
