//! Detection of forwarding loops by tokens.
//!
//! From time to time, svcdns queries each upstream for a token, a random name that no other program
//! queries. If a query for that token arrives at svcdns, the upstream has sent it back. The
//! upstream is then not used until a probe shows that the loop is gone. Only tokens in use are
//! special, so a client cannot fake a loop. A token below a domain shows a loop of that domain
//! only; see [`domain_loops`](super::domain_loops).
//!
//! Tokens of the periodic probes are names below `empty.as112.arpa` (RFC 7535), an empty zone that
//! AS112 servers worldwide serve to absorb stray queries. Forwarders do forward these names:
//! dnsmasq, unbound and systemd-resolved do not treat the zone as special, and the names have
//! several labels. The zone is unsigned, so no resolver can synthesize NXDOMAIN from cached proofs
//! (RFC 8198), as it could below a nonexistent top-level domain. Without a loop, only the upstream
//! and perhaps an AS112 server see the random number.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::exchange::{Outgoing, Sockets, Upstream};
use crate::name::Name;
use crate::wire::{HEADER_BYTES, flags, put_u16, rtype};

/// The zone of all tokens, in wire form.
const TOKEN_PARENT: &[u8] = b"\x05empty\x05as112\x04arpa\0";

/// Prefix of a token's first label.
///
/// The prefix explains the query to readers of an upstream's log.
const TOKEN_PREFIX: &[u8] = b"svcdns-loop-check-";

/// Length of a token's first label, in bytes.
const TOKEN_LABEL_BYTES: usize = TOKEN_PREFIX.len() + 32;

/// Maximum length of a domain with room for a token, in bytes of its wire form.
pub(super) const MAX_TOKEN_DOMAIN_BYTES: usize = 255 - 1 - TOKEN_LABEL_BYTES;

/// Maximum tokens of domains that are known at the same time.
const MAX_DOMAIN_TOKENS: usize = 64;

/// Timing of the probes of upstreams.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProbeTimings {
    /// Time limit for an upstream's response.
    pub(super) timeout: Duration,
    /// Time after a successful probe until the next one.
    pub(super) interval: Duration,
    /// First interval after a failed probe; doubles up to `interval`.
    pub(super) retry: Duration,
}

impl Default for ProbeTimings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(4),
            interval: Duration::from_secs(300),
            retry: Duration::from_secs(10),
        }
    }
}

/// Detects forwarding loops by probe names.
#[derive(Debug, Default)]
pub(super) struct LoopGuard {
    tokens: Mutex<Vec<LoopToken>>,
    /// Notified when a token arrives in a query.
    token_caught: Notify,
}

/// A token sent to an upstream.
#[derive(Debug)]
struct LoopToken {
    name: Name,
    upstream: Arc<Upstream>,
    purpose: TokenPurpose,
    seen: bool,
}

/// The meaning of a token that arrives in a query.
#[derive(Debug)]
enum TokenPurpose {
    /// The upstream sends all queries back; each upstream has one such token.
    Upstream,
    /// The upstream sends queries for one domain back.
    ///
    /// The check that waits for the token is notified.
    Domain(Arc<Notify>),
}

impl LoopGuard {
    /// Returns whether a query's `name` is a token, and records that it was sent back.
    ///
    /// Such a query must not be forwarded: the caller answers NXDOMAIN.
    pub(super) fn catch_token(&self, name: &Name) -> bool {
        let bytes = name.as_wire();
        if usize::from(bytes[0]) != TOKEN_LABEL_BYTES || !bytes[1..].starts_with(TOKEN_PREFIX) {
            return false;
        }
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(token) = tokens.iter_mut().find(|token| token.name == *name) else { return false };
        token.seen = true;
        match &token.purpose {
            TokenPurpose::Domain(seen) => seen.notify_one(),
            TokenPurpose::Upstream => {
                if !token.upstream.is_looping() {
                    token.upstream.set_looping(true);
                    let upstream = token.upstream.target();
                    tracing::error!(
                        %upstream,
                        "this upstream sends queries back to svcdns: it is not used until the \
                         loop is gone; let it forward elsewhere, or set another with --upstream"
                    );
                }
                self.token_caught.notify_one();
            }
        }
        true
    }

    /// Replaces the upstream's token by a new one.
    fn issue(&self, upstream: &Arc<Upstream>) -> Option<Name> {
        let name = token_below(TOKEN_PARENT)?;
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|token| {
            matches!(token.purpose, TokenPurpose::Domain(_))
                || !Arc::ptr_eq(&token.upstream, upstream)
        });
        let (upstream, purpose) = (Arc::clone(upstream), TokenPurpose::Upstream);
        tokens.push(LoopToken { name, upstream, purpose, seen: false });
        Some(name)
    }

    /// Returns whether the upstream sends queries for names below `domain` back.
    ///
    /// Returns `None` if it does not respond within `timeout`, or `domain` is too long for a token.
    pub(super) async fn loops_below(
        &self,
        sockets: &Sockets,
        upstream: &Arc<Upstream>,
        domain: &Name,
        timeout: Duration,
    ) -> Option<bool> {
        let name = token_below(domain.as_wire())?;
        let outgoing = Outgoing::new(probe_query(&name), false)?;
        let seen = Arc::new(Notify::new());
        let token = LoopToken {
            name,
            upstream: Arc::clone(upstream),
            purpose: TokenPurpose::Domain(Arc::clone(&seen)),
            seen: false,
        };
        self.keep_domain_token(token);
        let responded = tokio::select! {
            biased;
            () = seen.notified() => true,
            // The query is sent once: a lost token costs less than a second query for each slow
            // one.
            response = tokio::time::timeout(timeout, sockets.attempt(upstream, &outgoing)) => {
                matches!(response, Ok(Ok(_)))
            }
        };
        let was_seen = self.was_seen(&name);
        (was_seen || responded).then_some(was_seen)
    }

    /// Adds a token of a domain; if there are too many, drops the oldest one.
    ///
    /// Tokens outlive their check, because an upstream may send one back again.
    fn keep_domain_token(&self, token: LoopToken) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let is_of_domain = |token: &LoopToken| matches!(token.purpose, TokenPurpose::Domain(_));
        if tokens.iter().filter(|token| is_of_domain(token)).count() >= MAX_DOMAIN_TOKENS
            && let Some(oldest) = tokens.iter().position(is_of_domain)
        {
            tokens.remove(oldest);
        }
        tokens.push(token);
    }

    /// Returns whether the token has arrived in a query.
    fn was_seen(&self, name: &Name) -> bool {
        self.tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|token| token.seen && token.name == *name)
    }

    /// Drops the tokens of upstreams that are not in the list.
    fn retain(&self, upstreams: &[Arc<Upstream>]) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|token| {
            upstreams.iter().any(|upstream| Arc::ptr_eq(upstream, &token.upstream))
        });
    }

    /// Probes an upstream; clears its loop mark if it answered without a loop.
    ///
    /// Returns whether it did.
    async fn probe(&self, sockets: &Sockets, upstream: &Arc<Upstream>, timeout: Duration) -> bool {
        let Some(name) = self.issue(upstream) else { return false };
        let Some(outgoing) = Outgoing::new(probe_query(&name), false) else { return false };
        // A missing response does not show that the loop is gone.
        if sockets.query_one(upstream, &outgoing, Instant::now() + timeout).await.is_err()
            || self.was_seen(&name)
        {
            return false;
        }
        if upstream.is_looping() {
            upstream.set_looping(false);
            tracing::info!(
                upstream = %upstream.target(),
                "this upstream no longer sends queries back: it is used again"
            );
        }
        true
    }

    /// Probes all upstreams after each change, and periodically, until `stop`.
    pub(super) async fn run(
        self: Arc<Self>,
        mut routing: watch::Receiver<Vec<Arc<Upstream>>>,
        timings: ProbeTimings,
        stop: CancellationToken,
    ) {
        // Some upstreams answer one query per connection, so the shared one is left to clients.
        let sockets = Arc::new(Sockets::exclusive());
        let mut schedules: Vec<ProbeSchedule> = Vec::new();
        let mut changed = true;
        while !stop.is_cancelled() {
            let now = Instant::now();
            if changed {
                let upstreams = routing.borrow_and_update().clone();
                self.retain(&upstreams);
                schedules = upstreams
                    .into_iter()
                    .map(|upstream| ProbeSchedule { upstream, due: now, pause: timings.retry })
                    .collect();
            }
            let mut probes = JoinSet::new();
            for (index, schedule) in
                schedules.iter().enumerate().filter(|(_, schedule)| schedule.due <= now)
            {
                let (guard, sockets, upstream) =
                    (Arc::clone(&self), Arc::clone(&sockets), Arc::clone(&schedule.upstream));
                probes.spawn(async move {
                    (index, guard.probe(&sockets, &upstream, timings.timeout).await)
                });
            }
            while let Some(probed) = tokio::select! {
                () = stop.cancelled() => return,
                probed = probes.join_next() => probed,
            } {
                if let Ok((index, good)) = probed
                    && let Some(schedule) = schedules.get_mut(index)
                {
                    schedule.reschedule(good, timings);
                }
            }
            // A token can still arrive after its probe has ended.
            schedules
                .iter_mut()
                .filter(|schedule| schedule.upstream.is_looping())
                .for_each(ProbeSchedule::bring_forward);
            let due = schedules
                .iter()
                .map(|schedule| schedule.due)
                .min()
                .unwrap_or(now + timings.interval);
            changed = tokio::select! {
                () = stop.cancelled() => return,
                there = routing.changed() => {
                    if there.is_err() {
                        return;
                    }
                    true
                }
                () = self.token_caught.notified() => false,
                () = tokio::time::sleep_until(due.into()) => false,
            };
        }
    }
}

/// Returns a token below a domain in wire form; `None` if it would be too long.
fn token_below(domain: &[u8]) -> Option<Name> {
    // The label has 128 bits from the system's random source.
    let label = [TOKEN_PREFIX, format!("{:032x}", rand::random::<u128>()).as_bytes()].concat();
    let length = [u8::try_from(label.len()).ok()?];
    let (name, _) = Name::from_wire(&[&length, &label[..], domain].concat()).ok()?;
    Some(name)
}

/// Schedule of an upstream's next probe.
#[derive(Debug)]
struct ProbeSchedule {
    upstream: Arc<Upstream>,
    due: Instant,
    /// Time until the probe after the next one if the next one fails.
    pause: Duration,
}

impl ProbeSchedule {
    /// Sets the time of the next probe; `good` is whether the last one succeeded.
    fn reschedule(&mut self, good: bool, timings: ProbeTimings) {
        let pause = if good { timings.interval } else { self.pause };
        self.due = Instant::now() + pause;
        self.pause = if good { timings.retry } else { (self.pause * 2).min(timings.interval) };
    }

    /// Moves the next probe forward to the time after a failed one.
    fn bring_forward(&mut self) {
        self.due = self.due.min(Instant::now() + self.pause);
    }
}

/// Builds a query for the A records of `name`.
fn probe_query(name: &Name) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_BYTES + name.as_wire().len() + 4);
    for word in [0, flags::RD, 1, 0, 0, 0] {
        put_u16(&mut message, word);
    }
    message.extend_from_slice(name.as_wire());
    put_u16(&mut message, rtype::A);
    put_u16(&mut message, rtype::IN);
    message
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::net::UdpSocket;
    use tokio::runtime::Handle;

    use super::super::exchange::Connector;
    use super::*;

    /// Maximum wait for a change, long enough for a very busy machine.
    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    fn upstream(address: SocketAddr) -> Arc<Upstream> {
        Upstream::new(address.to_string().parse().unwrap(), Connector::new(Handle::current(), None))
    }

    /// Starts a fake upstream that reports each name to `guard` while `looping` is set.
    ///
    /// While it is not set, the upstream answers by itself. Returns its address and the queried
    /// names.
    async fn forwarder(
        guard: Arc<LoopGuard>,
        looping: Arc<AtomicBool>,
    ) -> (SocketAddr, Arc<Mutex<Vec<Name>>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, names) = (socket.local_addr().unwrap(), Arc::<Mutex<Vec<Name>>>::default());
        let seen = Arc::clone(&names);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let (name, _) = Name::from_wire(&buffer[HEADER_BYTES..length]).unwrap();
                let circle = looping.load(Ordering::SeqCst) && guard.catch_token(&name);
                seen.lock().unwrap().push(name);
                buffer[2] |= 0x80;
                buffer[3] = if circle { 2 } else { 3 };
                socket.send_to(&buffer[..length], from).await.unwrap();
            }
        });
        (address, names)
    }

    async fn wait_for(what: &str, ready: impl Fn() -> bool) {
        let begin = Instant::now();
        while !ready() {
            assert!(begin.elapsed() < TEST_TIMEOUT, "{what} did not come about");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn loops_are_detected_and_cleared() {
        let (guard, looping) = (Arc::<LoopGuard>::default(), Arc::new(AtomicBool::new(true)));
        let (address, names) = forwarder(Arc::clone(&guard), Arc::clone(&looping)).await;
        let good = Arc::new(AtomicBool::new(false));
        let (other, other_names) = forwarder(Arc::clone(&guard), good).await;
        let (bad, good) = (upstream(address), upstream(other));
        let (_tell, routing) = watch::channel(vec![Arc::clone(&bad), Arc::clone(&good)]);
        let timings = ProbeTimings {
            timeout: TEST_TIMEOUT,
            interval: Duration::from_millis(50),
            retry: Duration::from_millis(5),
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(Arc::clone(&guard).run(routing, timings, stop.clone()));
        wait_for("the loop to be detected", || bad.is_looping()).await;
        wait_for("probes of the other upstream", || other_names.lock().unwrap().len() > 1).await;
        assert!(!good.is_looping());
        looping.store(false, Ordering::SeqCst);
        wait_for("the end of the loop", || !bad.is_looping()).await;
        looping.store(true, Ordering::SeqCst);
        wait_for("the loop to be detected again", || bad.is_looping()).await;
        stop.cancel();
        running.await.unwrap();
        let mut names = names.lock().unwrap().clone();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "each probe has a name of its own");
        assert!(names.iter().all(
            |name| name.to_string().ends_with(".empty.as112.arpa.") && name.label_count() == 4
        ));
    }

    #[tokio::test]
    async fn all_upstreams_are_probed_after_a_change() {
        let guard = Arc::<LoopGuard>::default();
        let (address, names) = forwarder(Arc::clone(&guard), Arc::default()).await;
        let only = upstream(address);
        let (tell, routing) = watch::channel(vec![Arc::clone(&only)]);
        let timings = ProbeTimings {
            timeout: TEST_TIMEOUT,
            interval: Duration::from_secs(3600),
            retry: Duration::from_secs(3600),
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(Arc::clone(&guard).run(routing, timings, stop.clone()));
        wait_for("the first probe", || names.lock().unwrap().len() == 1).await;
        tell.send(vec![only]).unwrap();
        wait_for("the second probe", || names.lock().unwrap().len() == 2).await;
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn tokens_below_a_domain_detect_only_a_loop_of_that_domain() {
        let (guard, looping) = (Arc::<LoopGuard>::default(), Arc::new(AtomicBool::new(true)));
        let (address, names) = forwarder(Arc::clone(&guard), Arc::clone(&looping)).await;
        let (upstream, sockets) = (upstream(address), Sockets::default());
        let name = |text: &str| Name::from_text(text).unwrap();
        let loops = async |domain: &Name| {
            guard.loops_below(&sockets, &upstream, domain, TEST_TIMEOUT).await
        };
        assert_eq!(loops(&name("a.corp.example")).await, Some(true));
        assert!(!upstream.is_looping(), "other names do not loop");
        looping.store(false, Ordering::SeqCst);
        assert_eq!(loops(&name("a.corp.example")).await, Some(false));
        let names = names.lock().unwrap().clone();
        assert!(names.iter().all(|token| token.ends_with(&name("a.corp.example"))), "{names:?}");
        // The upstream may repeat the query after the check.
        assert!(guard.catch_token(&names[0]));
        let long =
            name(&["x".repeat(60), "y".repeat(60), "z".repeat(60), "w".repeat(60)].join("."));
        assert_eq!(loops(&long).await, None, "there is no room for a token");
        for _ in 0..2 * MAX_DOMAIN_TOKENS {
            loops(&name("b.example")).await;
        }
        assert_eq!(guard.tokens.lock().unwrap().len(), MAX_DOMAIN_TOKENS);
    }

    #[tokio::test]
    async fn only_issued_and_current_tokens_are_recognized() {
        let guard = LoopGuard::default();
        let upstream = upstream("127.0.0.1:9".parse().unwrap());
        let first = guard.issue(&upstream).unwrap();
        let second = guard.issue(&upstream).unwrap();
        let text = second.to_string();
        let digit = if text.as_bytes()[TOKEN_PREFIX.len()] == b'0' { "1" } else { "0" };
        let mut other = text.clone();
        other.replace_range(TOKEN_PREFIX.len()..=TOKEN_PREFIX.len(), digit);
        for name in [
            &*first.to_string(),
            &other,
            &format!("a.{text}"),
            "empty.as112.arpa",
            "svcdns-loop-check-.empty.as112.arpa",
        ] {
            assert!(!guard.catch_token(&Name::from_text(name).unwrap()), "{name}");
        }
        assert!(!upstream.is_looping());
        // Upstreams may change the letter case.
        assert!(
            guard.catch_token(&Name::from_text(&text.to_uppercase()).unwrap())
                && upstream.is_looping()
        );
        guard.retain(&[]);
        assert!(!guard.catch_token(&second));
    }

    #[test]
    fn probe_queries_are_well_formed() {
        let name = Name::from_text("a.empty.as112.arpa").unwrap();
        let message = probe_query(&name);
        let crate::wire::Parsed::Query(query) = crate::wire::Query::parse(&message) else {
            panic!("no query")
        };
        assert_eq!((query.name(), query.qtype), (name.as_wire(), rtype::A));
        assert!(Outgoing::new(message.clone(), false).is_some());
    }
}
