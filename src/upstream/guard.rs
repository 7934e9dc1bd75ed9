//! Finds upstreams that lead back to us, by a token.
//!
//! Each upstream is asked, now and then, for a name that nobody can guess and that nobody else asks for. If that very name
//! comes in as a question, the upstream has sent it here: it is set aside until it no longer does. Nothing else than a name
//! in use right now is special, so no question can feign a loop.
//!
//! The names lie below `empty.as112.arpa` (RFC 7535), a zone that holds nothing and that servers all over the world answer for,
//! made for questions that lead nowhere. A forwarder asks on for them: the zone is in no table of special names of dnsmasq,
//! unbound or systemd-resolved, the names have dots, and it is not signed, so that no resolver may conclude from signed
//! answers about other names that this one does not exist (RFC 8198), as it may below a top-level domain that does not.
//! Where there is no loop the question tells the upstream, and at most an AS112 server, nothing but a random number.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::exchange::{Outgoing, Sockets, Upstream};
use crate::name::Name;
use crate::wire::{HEADER_BYTES, flags, put_u16, rtype};

/// What stands behind the label with the random number.
const BELOW: &[u8] = b"\x05empty\x05as112\x04arpa\0";

/// The random label's beginning: whoever finds it in a log shall find out what it is.
const MARK: &[u8] = b"svcdns-loop-check-";

/// Octets of the random label.
const LABEL: usize = MARK.len() + 32;

/// When upstreams are asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timings {
    /// How long an upstream may take to answer.
    pub(super) patience: Duration,
    /// How long after a good answer it is asked again.
    pub(super) good: Duration,
    /// How long after a loop or no answer at all it is asked again, at first; twice as long each time, until `good`.
    pub(super) bad: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self { patience: Duration::from_secs(4), good: Duration::from_secs(300), bad: Duration::from_secs(10) }
    }
}

/// The names in use.
#[derive(Debug, Default)]
pub(super) struct Guard {
    tokens: Mutex<Vec<Token>>,
    /// A token came in.
    caught: Notify,
}

/// A name in use: it is one upstream's, until the next.
#[derive(Debug)]
struct Token {
    name: Name,
    upstream: Arc<Upstream>,
    seen: bool,
}

impl Guard {
    /// Whether this question is one that we asked an upstream. Then the upstream is set aside, and SERVFAIL is the answer:
    /// it must not be forwarded again.
    pub(super) fn is_token(&self, name: &Name) -> bool {
        let octets = name.as_wire();
        if octets.len() != 1 + LABEL + BELOW.len() || !octets.ends_with(BELOW) {
            return false;
        }
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(token) = tokens.iter_mut().find(|token| token.name == *name) else { return false };
        token.seen = true;
        if !token.upstream.is_set_aside() {
            token.upstream.set_aside(true);
            let upstream = token.upstream.target();
            tracing::error!(
                %upstream,
                "this upstream sends questions back to svcdns, in a circle: it is not asked until it no longer does. Let it ask \
                 somebody else, or name another with --upstream"
            );
        }
        self.caught.notify_one();
        true
    }

    /// A name of its own for the upstream, in place of the one before.
    fn issue(&self, upstream: &Arc<Upstream>) -> Option<Name> {
        // From the system's random source; 128 bits.
        let label = [MARK, format!("{:032x}", rand::random::<u128>()).as_bytes()].concat();
        let name = Name::from_labels([&label[..], b"empty", b"as112", b"arpa"]).ok()?;
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|token| !Arc::ptr_eq(&token.upstream, upstream));
        tokens.push(Token { name, upstream: Arc::clone(upstream), seen: false });
        Some(name)
    }

    fn was_seen(&self, name: &Name) -> bool {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|token| token.seen && token.name == *name)
    }

    /// Forgets the names of all other upstreams.
    fn keep(&self, upstreams: &[Arc<Upstream>]) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|token| upstreams.iter().any(|upstream| Arc::ptr_eq(upstream, &token.upstream)));
    }

    /// Asks one upstream, and takes it back when its answer did not lead through us. Whether that is so.
    async fn probe(&self, sockets: &Sockets, upstream: &Arc<Upstream>, patience: Duration) -> bool {
        let Some(name) = self.issue(upstream) else { return false };
        let Some(outgoing) = Outgoing::new(question(&name), false) else { return false };
        // No answer is no proof of anything.
        if sockets.ask_one(upstream, &outgoing, Instant::now() + patience).await.is_err() || self.was_seen(&name) {
            return false;
        }
        if upstream.is_set_aside() {
            upstream.set_aside(false);
            tracing::info!(upstream = %upstream.target(), "this upstream no longer sends questions back: it is asked again");
        }
        true
    }

    /// Asks the upstreams in force, all of them after each change and each again after a while, until `stop`.
    pub(super) async fn run(self: Arc<Self>, mut in_force: watch::Receiver<Vec<Arc<Upstream>>>, timings: Timings, stop: CancellationToken) {
        let sockets = Arc::new(Sockets::default());
        let mut watched: Vec<Watched> = Vec::new();
        let mut changed = true;
        while !stop.is_cancelled() {
            let now = Instant::now();
            if changed {
                let upstreams = in_force.borrow_and_update().clone();
                self.keep(&upstreams);
                watched = upstreams.into_iter().map(|upstream| Watched { upstream, due: now, pause: timings.bad }).collect();
            }
            let mut probes = JoinSet::new();
            for (place, one) in watched.iter().enumerate().filter(|(_, one)| one.due <= now) {
                let (guard, sockets, upstream) = (Arc::clone(&self), Arc::clone(&sockets), Arc::clone(&one.upstream));
                probes.spawn(async move { (place, guard.probe(&sockets, &upstream, timings.patience).await) });
            }
            while let Some(probed) = tokio::select! {
                () = stop.cancelled() => return,
                probed = probes.join_next() => probed,
            } {
                if let Ok((place, good)) = probed
                    && let Some(one) = watched.get_mut(place)
                {
                    one.plan(good, timings);
                }
            }
            // A token can come in late, after its answer or without one.
            watched.iter_mut().filter(|one| one.upstream.is_set_aside()).for_each(Watched::hasten);
            let due = watched.iter().map(|one| one.due).min().unwrap_or(now + timings.good);
            changed = tokio::select! {
                () = stop.cancelled() => return,
                there = in_force.changed() => {
                    if there.is_err() {
                        return;
                    }
                    true
                }
                () = self.caught.notified() => false,
                () = tokio::time::sleep_until(due.into()) => false,
            };
        }
    }
}

/// An upstream in force, and when it is asked again.
#[derive(Debug)]
struct Watched {
    upstream: Arc<Upstream>,
    due: Instant,
    /// The next pause after a loop.
    pause: Duration,
}

impl Watched {
    /// Plans the next time.
    fn plan(&mut self, good: bool, timings: Timings) {
        let pause = if good { timings.good } else { self.pause };
        self.due = Instant::now() + pause;
        self.pause = if good { timings.bad } else { (self.pause * 2).min(timings.good) };
    }

    /// Plans it earlier, where it was planned as after a good answer.
    fn hasten(&mut self) {
        self.due = self.due.min(Instant::now() + self.pause);
    }
}

/// A question for the address of `name`.
fn question(name: &Name) -> Vec<u8> {
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

    /// How long a change may take to be seen, on a machine that is very busy.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn upstream(address: SocketAddr) -> Arc<Upstream> {
        Upstream::new(address.to_string().parse().unwrap(), Connector::new(Handle::current(), None))
    }

    /// A forwarder that sends every question to us while it is `looping`, and has answers of its own otherwise; tells the
    /// names it was asked for.
    async fn forwarder(guard: Arc<Guard>, looping: Arc<AtomicBool>) -> (SocketAddr, Arc<Mutex<Vec<Name>>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, names) = (socket.local_addr().unwrap(), Arc::<Mutex<Vec<Name>>>::default());
        let seen = Arc::clone(&names);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let (name, _) = Name::from_wire(&buffer[HEADER_BYTES..length]).unwrap();
                let circle = looping.load(Ordering::SeqCst) && guard.is_token(&name);
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
            assert!(begin.elapsed() < PATIENCE, "{what} did not come about");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_loop_is_found_and_heals() {
        let (guard, looping) = (Arc::<Guard>::default(), Arc::new(AtomicBool::new(true)));
        let (address, names) = forwarder(Arc::clone(&guard), Arc::clone(&looping)).await;
        let good = Arc::new(AtomicBool::new(false));
        let (other, asked) = forwarder(Arc::clone(&guard), good).await;
        let (bad, good) = (upstream(address), upstream(other));
        let (_tell, in_force) = watch::channel(vec![Arc::clone(&bad), Arc::clone(&good)]);
        let timings = Timings { patience: PATIENCE, good: Duration::from_millis(50), bad: Duration::from_millis(5) };
        let stop = CancellationToken::new();
        let running = tokio::spawn(Arc::clone(&guard).run(in_force, timings, stop.clone()));
        wait_for("the loop being found", || bad.is_set_aside()).await;
        wait_for("questions to the other one", || asked.lock().unwrap().len() > 1).await;
        assert!(!good.is_set_aside());
        looping.store(false, Ordering::SeqCst);
        wait_for("its end", || !bad.is_set_aside()).await;
        looping.store(true, Ordering::SeqCst);
        wait_for("the loop being found again", || bad.is_set_aside()).await;
        stop.cancel();
        running.await.unwrap();
        let mut names = names.lock().unwrap().clone();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "each question has a name of its own");
        assert!(names.iter().all(|name| name.to_string().ends_with(".empty.as112.arpa.") && name.label_count() == 4));
    }

    #[tokio::test]
    async fn all_are_asked_again_after_a_change() {
        let guard = Arc::<Guard>::default();
        let (address, names) = forwarder(Arc::clone(&guard), Arc::default()).await;
        let one = upstream(address);
        let (tell, in_force) = watch::channel(vec![Arc::clone(&one)]);
        let timings = Timings { patience: PATIENCE, good: Duration::from_secs(3600), bad: Duration::from_secs(3600) };
        let stop = CancellationToken::new();
        let running = tokio::spawn(Arc::clone(&guard).run(in_force, timings, stop.clone()));
        wait_for("the first question", || names.lock().unwrap().len() == 1).await;
        tell.send(vec![one]).unwrap();
        wait_for("the second question", || names.lock().unwrap().len() == 2).await;
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn only_the_very_name_in_use_is_special() {
        let guard = Guard::default();
        let upstream = upstream("127.0.0.1:9".parse().unwrap());
        let first = guard.issue(&upstream).unwrap();
        let second = guard.issue(&upstream).unwrap();
        let text = second.to_string();
        let digit = if text.as_bytes()[MARK.len()] == b'0' { "1" } else { "0" };
        let mut other = text.clone();
        other.replace_range(MARK.len()..=MARK.len(), digit);
        for name in [&*first.to_string(), &other, &format!("a.{text}"), "empty.as112.arpa", "svcdns-loop-check-.empty.as112.arpa"] {
            assert!(!guard.is_token(&Name::from_text(name).unwrap()), "{name}");
        }
        assert!(!upstream.is_set_aside());
        // In any case: upstreams may change it.
        assert!(guard.is_token(&Name::from_text(&text.to_uppercase()).unwrap()) && upstream.is_set_aside());
        guard.keep(&[]);
        assert!(!guard.is_token(&second));
    }

    #[test]
    fn the_question_is_well_formed() {
        let name = Name::from_text("a.empty.as112.arpa").unwrap();
        let question = question(&name);
        let crate::wire::Parsed::Query(query) = crate::wire::Query::parse(&question) else { panic!("no query") };
        assert_eq!((query.name(), query.qtype), (name.as_wire(), rtype::A));
        assert!(Outgoing::new(question.clone(), false).is_some());
    }
}
