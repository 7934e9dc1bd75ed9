//! Tests with paused time, which advances while all tasks wait.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use tokio::task::JoinHandle;
use tokio::time::{advance, sleep, sleep_until};

use super::*;
use crate::wire::{Parsed, question_end, rcode, records};

const STALE: Duration = Duration::from_secs(3600);
const NO_RESPONSE: ExchangeError = ExchangeError { error: TOO_LATE, sent: true };
const NOT_SENT: ExchangeError = ExchangeError { error: TOO_LATE, sent: false };

/// An action of the scripted upstream in response to a query.
#[derive(Clone, Copy, Debug)]
enum ScriptedAction {
    /// Answers with an address of this TTL in seconds, after a delay in milliseconds.
    Answer(u32, u64),
    /// Answers NXDOMAIN with this TTL.
    NxDomain(u32),
    /// Answers with this code and without records, not even an SOA record.
    Empty(u16),
    /// Answers SERVFAIL.
    ServFail,
    /// Answers with this code and TC set.
    Truncate(u16),
    /// Does not answer before the deadline.
    Hang,
    /// Fails at once, because no upstream is alive.
    Fail,
    Panic,
}

/// An upstream that performs its actions in order and repeats the last one.
#[derive(Debug)]
struct ScriptedUpstream {
    next: Mutex<VecDeque<ScriptedAction>>,
    asked: Mutex<Vec<Vec<u8>>>,
    /// Whether the upstream is known to be dead.
    down: AtomicBool,
}

impl Exchange for ScriptedUpstream {
    fn is_down(&self, _: CacheKey<'_>) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    async fn query(
        &self,
        _: CacheKey<'_>,
        mut message: Vec<u8>,
        deadline: Instant,
        _: &Notify,
    ) -> Result<UpstreamMessage, ExchangeError> {
        self.asked.lock().unwrap().push(message.clone());
        let action = {
            let mut next = self.next.lock().unwrap();
            if next.len() > 1 { next.pop_front().unwrap() } else { next[0] }
        };
        message.truncate(question_end(&message).unwrap());
        message[6..12].fill(0);
        let mut say = |code: u16, at: usize, record: &[u8]| {
            message[2..4].copy_from_slice(&(flags::QR | flags::AA | code).to_be_bytes());
            message[at] = u8::from(!record.is_empty());
            message.extend_from_slice(record);
        };
        match action {
            ScriptedAction::Answer(ttl, after) => {
                sleep(Duration::from_millis(after)).await;
                say(
                    0,
                    7,
                    &[b"\xC0\x0C\0\x01\0\x01", &ttl.to_be_bytes()[..], b"\0\x04\xC0\0\x02\x01"]
                        .concat(),
                );
            }
            ScriptedAction::NxDomain(ttl) => {
                let data = [b"\xC0\x0C\xC0\x0C", &[0; 16][..], &ttl.to_be_bytes()].concat();
                say(
                    rcode::NXDOMAIN,
                    9,
                    &[b"\xC0\x0C\0\x06\0\x01", &ttl.to_be_bytes()[..], b"\0\x18", &data].concat(),
                );
            }
            ScriptedAction::Empty(code) => say(code, 7, b""),
            ScriptedAction::ServFail => say(rcode::SERVFAIL, 7, b""),
            ScriptedAction::Truncate(code) => say(flags::TC | code, 7, b""),
            ScriptedAction::Hang => {
                sleep_until(deadline.into()).await;
                return Err(NO_RESPONSE);
            }
            ScriptedAction::Fail => return Err(NOT_SENT),
            ScriptedAction::Panic => panic!("asked to panic"),
        }
        Ok(message.into())
    }
}

struct ResolverFixture {
    resolver: Arc<Resolver>,
    upstream: Arc<ScriptedUpstream>,
}

/// The relevant parts of a response.
#[derive(Debug, PartialEq, Eq)]
struct ParsedAnswer {
    rcode: u16,
    ttls: Vec<u32>,
    authoritative: bool,
    /// The first EDE.
    error: Option<u16>,
}

fn fixture(action: &[ScriptedAction], stale: Duration) -> ResolverFixture {
    let upstream = ScriptedUpstream {
        next: Mutex::new(action.iter().copied().collect()),
        asked: Mutex::default(),
        down: AtomicBool::default(),
    };
    ResolverFixture {
        resolver: Resolver::new(1 << 20, stale, Arc::default()),
        upstream: Arc::new(upstream),
    }
}

/// Returns a query for `NAME.example`, type A, with an OPT record.
fn request(name: &str, more_flags: u16, dnssec_ok: bool, options: &[u8]) -> Vec<u8> {
    let mut out = vec![1, 2];
    out.extend(more_flags.to_be_bytes());
    out.extend([0, 1, 0, 0, 0, 0, 0, 1]);
    out.push(u8::try_from(name.len()).unwrap());
    out.extend(name.as_bytes());
    out.extend(b"\x07example\0\0\x01\0\x01\0\0\x29\x10\0\0\0");
    out.extend([if dnssec_ok { 0x80 } else { 0 }, 0]);
    out.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
    out.extend(options);
    out
}

fn plain(name: &str) -> Vec<u8> {
    request(name, flags::RD, false, b"")
}

fn read(message: &[u8]) -> ParsedAnswer {
    let (mut ttls, mut error) = (Vec::new(), None);
    for record in records(message, question_end(message).unwrap()).map(Result::unwrap) {
        if record.is_opt() {
            error = crate::wire::u16_at(record.data(message), 4);
        } else {
            ttls.push(record.ttl);
        }
    }
    let head = crate::wire::u16_at(message, 2).unwrap();
    assert_eq!((&message[..2], head & flags::RA), (&[1, 2][..], flags::RA));
    ParsedAnswer { rcode: head & 0xF, ttls, authoritative: head & flags::AA != 0, error }
}

fn answer(ttl: u32) -> ParsedAnswer {
    ParsedAnswer { rcode: 0, ttls: vec![ttl], authoritative: false, error: None }
}

fn stale(code: u16) -> ParsedAnswer {
    ParsedAnswer { rcode: 0, ttls: vec![30], authoritative: false, error: Some(code) }
}

fn failure(code: u16) -> ParsedAnswer {
    ParsedAnswer {
        rcode: rcode::SERVFAIL,
        ttls: Vec::new(),
        authoritative: false,
        error: Some(code),
    }
}

fn with(query: &[u8], run: impl FnOnce(&Query<'_>)) {
    let Parsed::Query(query) = Query::parse(query) else { panic!("no query") };
    run(&query);
}

impl ResolverFixture {
    /// Returns the response from the cache, if there is one.
    fn cached_response(&self, request: &[u8], transport: Transport) -> Option<ParsedAnswer> {
        let mut out = Vec::new();
        with(request, |query| {
            let found =
                self.resolver.answer_from_cache(&self.upstream, query, transport, now(), &mut out);
            assert_eq!(found == ImmediateAnswer::Written, !out.is_empty());
        });
        (!out.is_empty()).then(|| read(&out))
    }

    /// Resolves a query as the server does: from the cache, or in a task.
    fn ask(&self, request: &[u8], transport: Transport) -> JoinHandle<ParsedAnswer> {
        let (resolver, upstream, request) =
            (Arc::clone(&self.resolver), Arc::clone(&self.upstream), request.to_vec());
        let ready = self.cached_response(&request, transport);
        tokio::spawn(async move {
            if let Some(answer) = ready {
                return answer;
            }
            let Parsed::Query(query) = Query::parse(&request) else { panic!("no query") };
            match resolver.resolve(&upstream, &request, &query, transport, None).await {
                ResolvedQuery::Response(response) => read(&response),
                ResolvedQuery::Alias { .. } => panic!("no alias was scripted"),
            }
        })
    }

    async fn answer(&self, request: &[u8]) -> ParsedAnswer {
        self.ask(request, Transport::Udp).await.unwrap()
    }

    fn asked(&self) -> usize {
        self.upstream.asked.lock().unwrap().len()
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn answers_are_cached_until_they_expire() {
    let fixture = fixture(&[ScriptedAction::Answer(60, 5)], Duration::ZERO);
    assert_eq!(
        fixture.answer(&plain("a")).await,
        ParsedAnswer { authoritative: true, ..answer(60) }
    );
    advance(seconds(20)).await;
    assert_eq!(fixture.cached_response(&plain("A"), Transport::Udp), Some(answer(40)));
    advance(seconds(39)).await;
    // The second hit of an expiring entry starts a prefetch.
    assert_eq!(
        (fixture.cached_response(&plain("a"), Transport::Udp), fixture.asked()),
        (Some(answer(1)), 1)
    );
    sleep(Duration::from_millis(10)).await;
    sleep(seconds(1)).await;
    assert_eq!(fixture.asked(), 2);
    assert_eq!(fixture.resolver.counters.prefetches.get(), 1);
    assert_eq!(fixture.cached_response(&plain("a"), Transport::Udp), Some(answer(59)));
    advance(seconds(60)).await;
    assert_eq!(fixture.cached_response(&plain("a"), Transport::Udp), None);
}

#[tokio::test(start_paused = true)]
async fn popular_entries_are_prefetched_once() {
    let fixture = fixture(&[ScriptedAction::Answer(100, 0), ScriptedAction::Hang], Duration::ZERO);
    fixture.answer(&plain("a")).await;
    advance(seconds(91)).await;
    // The first hit does not start a prefetch.
    assert_eq!(fixture.cached_response(&plain("a"), Transport::Udp), Some(answer(9)));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(fixture.asked(), 1);
    for _ in 0..5 {
        assert!(fixture.cached_response(&plain("a"), Transport::Udp).is_some());
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(fixture.asked(), 2);
    // The prefetch failed, so the entry lives until it expires.
    sleep(seconds(5)).await;
    assert_eq!(
        fixture.cached_response(&plain("a"), Transport::Udp).map(|answer| answer.ttls),
        Some(vec![4])
    );
    assert_eq!(fixture.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn identical_queries_are_sent_once() {
    let fixture = fixture(&[ScriptedAction::Answer(60, 100)], Duration::ZERO);
    let equal: Vec<_> = (0..10)
        .map(|n| fixture.ask(&plain(if n % 2 == 0 { "a" } else { "A" }), Transport::Udp))
        .collect();
    let other = [
        request("a", flags::RD, true, b""),
        request("a", flags::RD | flags::CD, false, b""),
        request("a", 0, false, b""),
        plain("b"),
    ];
    let other: Vec<_> = other.iter().map(|request| fixture.ask(request, Transport::Tcp)).collect();
    for waiting in equal.into_iter().chain(other) {
        assert_eq!(waiting.await.unwrap(), ParsedAnswer { authoritative: true, ..answer(60) });
    }
    assert_eq!((fixture.asked(), fixture.resolver.counters.merged.get()), (5, 9));
    assert_eq!(fixture.resolver.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn other_waiting_clients_get_a_response_after_the_first_one_leaves() {
    let fixture = fixture(&[ScriptedAction::Answer(60, 100)], Duration::ZERO);
    let first = fixture.ask(&plain("a"), Transport::Tcp);
    sleep(Duration::from_millis(10)).await;
    let second = fixture.ask(&plain("a"), Transport::Tcp);
    sleep(Duration::from_millis(10)).await;
    first.abort();
    assert_eq!(second.await.unwrap().ttls, [60]);
    assert_eq!(fixture.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn truncated_responses_are_failures_over_tcp() {
    let fixture = fixture(&[ScriptedAction::Truncate(0)], STALE);
    assert_eq!(
        fixture.ask(&plain("a"), Transport::Tcp).await.unwrap(),
        failure(ExtendedError::NETWORK_ERROR)
    );
    let with_option = request("a", flags::RD, false, b"\0\x08\0\0");
    assert_eq!(
        fixture.ask(&with_option, Transport::Tcp).await.unwrap(),
        failure(ExtendedError::NETWORK_ERROR)
    );
    // A UDP client retries over TCP.
    let truncated = ParsedAnswer { rcode: 0, ttls: Vec::new(), authoritative: true, error: None };
    assert_eq!(fixture.answer(&plain("a")).await, truncated);
    assert_eq!(fixture.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn cached_truncated_failures_are_failures_over_tcp() {
    let fixture = fixture(&[ScriptedAction::Truncate(rcode::SERVFAIL)], STALE);
    let truncated =
        ParsedAnswer { rcode: rcode::SERVFAIL, ttls: Vec::new(), authoritative: true, error: None };
    assert_eq!(fixture.answer(&plain("a")).await, truncated);
    assert_eq!(
        fixture.cached_response(&plain("a"), Transport::Tcp),
        Some(failure(ExtendedError::NETWORK_ERROR))
    );
    assert_eq!(fixture.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn clients_waiting_for_a_query_get_servfail_if_its_task_panics() {
    let fixture = fixture(&[ScriptedAction::Panic, ScriptedAction::Answer(60, 0)], Duration::ZERO);
    let Parsed::Query(query) = Query::parse(&*plain("a").leak()) else { panic!("no query") };
    let Joined::Leader(leader) = fixture
        .resolver
        .in_flight
        .join(CacheKey::new(&query, &mut EMPTY_KEY_BUFFER.clone()).unwrap(), None)
    else {
        panic!("nobody asks yet")
    };
    let waiting = fixture.ask(&plain("a"), Transport::Udp);
    sleep(Duration::from_millis(10)).await;
    let (resolver, upstream) = (Arc::clone(&fixture.resolver), Arc::clone(&fixture.upstream));
    let asker = tokio::spawn(async move {
        resolver
            .exchange_and_cache(
                &*upstream,
                leader,
                shareable_upstream_query(&query),
                now() + QUERY_TIMEOUT,
            )
            .await
    });
    assert!(asker.await.is_err());
    assert_eq!(waiting.await.unwrap(), failure(ExtendedError::OTHER));
    assert_eq!(fixture.answer(&plain("a")).await.ttls, [60]);
}

#[tokio::test(start_paused = true)]
async fn failures_are_returned_in_time_and_cached() {
    let fixture = fixture(&[ScriptedAction::Hang], STALE);
    let mut rests = Vec::new();
    for _ in 0..5 {
        let began = now();
        assert_eq!(
            fixture.answer(&plain("a")).await,
            failure(ExtendedError::NO_REACHABLE_AUTHORITY)
        );
        assert_eq!(now() - began, QUERY_TIMEOUT);
        let asked = now();
        while fixture.cached_response(&plain("a"), Transport::Udp).is_some() {
            advance(Duration::from_millis(250)).await;
        }
        rests.push((now() - asked).as_secs());
    }
    assert_eq!(rests, [1, 2, 4, 5, 5]);
}

#[tokio::test(start_paused = true)]
async fn repeated_failures_are_cached_longer() {
    let fixture = fixture(&[ScriptedAction::ServFail], STALE);
    let mut rests = Vec::new();
    for _ in 0..8 {
        assert_eq!(fixture.answer(&plain("a")).await.rcode, rcode::SERVFAIL);
        let asked = now();
        while fixture.cached_response(&plain("a"), Transport::Udp).is_some() {
            advance(Duration::from_millis(250)).await;
        }
        rests.push((now() - asked).as_secs());
    }
    assert_eq!(rests, [1, 2, 4, 8, 16, 30, 30, 30]);
    // After a longer pause, a failure is not consecutive.
    advance(seconds(61)).await;
    fixture.answer(&plain("a")).await;
    advance(Duration::from_millis(1100)).await;
    assert_eq!(fixture.cached_response(&plain("a"), Transport::Udp), None);
}

#[tokio::test(start_paused = true)]
async fn stale_answers_are_served_when_upstreams_are_slow() {
    let fixture = fixture(
        &[ScriptedAction::Answer(10, 0), ScriptedAction::Hang, ScriptedAction::Answer(20, 100)],
        STALE,
    );
    fixture.answer(&plain("a")).await;
    advance(seconds(100)).await;
    let began = now();
    assert_eq!(fixture.answer(&plain("a")).await, stale(ExtendedError::STALE_ANSWER));
    assert_eq!(now() - began, CLIENT_RESPONSE_TIMER);
    // For 30 s the stale answer is served at once.
    assert_eq!(
        fixture.cached_response(&plain("a"), Transport::Udp),
        Some(stale(ExtendedError::STALE_ANSWER))
    );
    sleep(seconds(5)).await;
    assert_eq!(
        (fixture.cached_response(&plain("a"), Transport::Udp), fixture.asked()),
        (Some(stale(ExtendedError::STALE_ANSWER)), 2)
    );
    sleep(seconds(31)).await;
    assert_eq!(
        fixture.answer(&plain("a")).await,
        ParsedAnswer { authoritative: true, ..answer(20) }
    );
    assert_eq!(fixture.cached_response(&plain("a"), Transport::Udp), Some(answer(20)));
}

#[tokio::test(start_paused = true)]
async fn stale_answers_are_served_at_once_while_all_upstreams_are_dead() {
    let fail = ScriptedAction::Fail;
    let fixture = fixture(
        &[ScriptedAction::Answer(10, 0), fail, fail, fail, ScriptedAction::Answer(20, 0)],
        STALE,
    );
    fixture.answer(&plain("a")).await;
    advance(seconds(100)).await;
    fixture.upstream.down.store(true, Ordering::Relaxed);
    for asked in 2..4 {
        assert_eq!(
            fixture.cached_response(&plain("a"), Transport::Udp),
            Some(stale(ExtendedError::STALE_ANSWER))
        );
        // A refresh waits in the background for an upstream to come back.
        sleep(seconds(1)).await;
        assert_eq!(fixture.asked(), asked);
    }
    // A caller that did not check the cache does not wait either.
    let began = now();
    let request = plain("a");
    let Parsed::Query(query) = Query::parse(&request) else { panic!("no query") };
    let (_, age) =
        fixture.resolver.resolve_entry(&fixture.upstream, &query, now(), true, None).await.unwrap();
    assert_eq!((age, now()), (Age::Stale, began));
    // Once an upstream is back, it is queried at once: no failure defers the query.
    sleep(seconds(1)).await;
    fixture.upstream.down.store(false, Ordering::Relaxed);
    assert_eq!(
        fixture.answer(&plain("a")).await,
        ParsedAnswer { authoritative: true, ..answer(20) }
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_upstream_that_turns_out_to_be_dead_does_not_delay_refreshes() {
    let fixture = fixture(
        &[ScriptedAction::Answer(10, 0), ScriptedAction::Hang, ScriptedAction::Answer(20, 0)],
        STALE,
    );
    fixture.answer(&plain("a")).await;
    advance(seconds(100)).await;
    let asked = fixture.ask(&plain("a"), Transport::Udp);
    sleep(seconds(1)).await;
    fixture.upstream.down.store(true, Ordering::Relaxed);
    assert_eq!(asked.await.unwrap(), stale(ExtendedError::STALE_ANSWER));
    sleep(seconds(5)).await;
    fixture.upstream.down.store(false, Ordering::Relaxed);
    assert_eq!(
        fixture.answer(&plain("a")).await,
        ParsedAnswer { authoritative: true, ..answer(20) }
    );
}

#[tokio::test(start_paused = true)]
async fn failures_without_a_live_upstream_are_not_cached() {
    let fixture = fixture(&[ScriptedAction::Fail, ScriptedAction::Answer(10, 0)], STALE);
    fixture.upstream.down.store(true, Ordering::Relaxed);
    assert_eq!(fixture.answer(&plain("a")).await, failure(NOT_SENT.error.code));
    assert_eq!(
        fixture.answer(&plain("a")).await,
        ParsedAnswer { authoritative: true, ..answer(10) }
    );
}

#[tokio::test(start_paused = true)]
async fn late_responses_replace_stale_entries() {
    let fixture =
        fixture(&[ScriptedAction::Answer(10, 0), ScriptedAction::Answer(20, 3000)], STALE);
    fixture.answer(&plain("a")).await;
    advance(seconds(100)).await;
    assert_eq!(fixture.answer(&plain("a")).await, stale(ExtendedError::STALE_ANSWER));
    sleep(seconds(2)).await;
    assert_eq!(
        fixture.cached_response(&plain("a"), Transport::Udp).map(|answer| answer.rcode),
        Some(0)
    );
    assert_eq!(
        (fixture.cached_response(&plain("a"), Transport::Udp).unwrap().error, fixture.asked()),
        (None, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn stale_answers_are_preferred_to_failures_until_serve_stale_ends() {
    let fixture = fixture(&[ScriptedAction::NxDomain(10), ScriptedAction::ServFail], STALE);
    assert_eq!(fixture.answer(&plain("a")).await.rcode, rcode::NXDOMAIN);
    advance(seconds(5)).await;
    assert_eq!(
        fixture.cached_response(&plain("a"), Transport::Udp).unwrap(),
        ParsedAnswer { rcode: rcode::NXDOMAIN, ..answer(5) }
    );
    advance(seconds(5)).await;
    let began = now();
    let gone = ParsedAnswer { rcode: rcode::NXDOMAIN, ..stale(ExtendedError::STALE_NXDOMAIN) };
    assert_eq!((fixture.answer(&plain("a")).await, now()), (gone, began));
    advance(STALE).await;
    assert_eq!(fixture.answer(&plain("a")).await.rcode, rcode::SERVFAIL);
}

#[tokio::test(start_paused = true)]
async fn answers_contradicted_by_a_later_response_are_not_served_stale() {
    use ScriptedAction::{Answer, Empty, Hang, NxDomain, Truncate};
    let missing = rcode::NXDOMAIN;
    for (before, then) in [
        (NxDomain(1), Answer(0, 0)),
        (Answer(1, 0), Answer(0, 0)),
        (Answer(1, 0), NxDomain(0)),
        (Answer(1, 0), Empty(missing)),
        (Answer(1, 0), Empty(rcode::NOERROR)),
        (NxDomain(1), Empty(rcode::NOERROR)),
        (NxDomain(1), Truncate(rcode::NOERROR)),
        (Answer(1, 0), Truncate(missing)),
    ] {
        let fixture = fixture(&[before, then, Hang], STALE);
        fixture.answer(&plain("a")).await;
        advance(seconds(2)).await;
        fixture.answer(&plain("a")).await;
        advance(seconds(1)).await;
        assert_eq!(
            fixture.answer(&plain("a")).await,
            failure(ExtendedError::NO_REACHABLE_AUTHORITY),
            "{before:?}, then {then:?}"
        );
        assert_eq!(fixture.asked(), 3);
    }
}

/// A truncated response is incomplete: with the same code it contradicts no answer.
#[tokio::test(start_paused = true)]
async fn truncated_responses_do_not_replace_the_stale_answer() {
    use ScriptedAction::{Answer, Hang, Truncate};
    let fixture = fixture(&[Answer(1, 0), Truncate(rcode::NOERROR), Hang], STALE);
    fixture.answer(&plain("a")).await;
    advance(seconds(2)).await;
    // Over UDP, the client can retry over TCP; over TCP, the stale answer is the best one.
    fixture.answer(&plain("a")).await;
    assert_eq!(fixture.answer(&plain("a")).await, stale(ExtendedError::STALE_ANSWER));
}

/// Entries for other DO and CD hold the same data, so they are contradicted too.
#[tokio::test(start_paused = true)]
async fn answers_contradicted_under_other_do_and_cd_flags_are_not_served_stale() {
    use ScriptedAction::{Answer, Hang, NxDomain};
    let (dnssec, unchecked) =
        (request("a", flags::RD, true, b""), request("a", flags::RD | flags::CD, true, b""));
    for (first, second, forgotten) in [
        (plain("a"), dnssec.clone(), true),
        (dnssec.clone(), plain("a"), true),
        (unchecked.clone(), plain("a"), true),
        // Unvalidated data does not contradict validated data.
        (plain("a"), unchecked, false),
    ] {
        let fixture = fixture(&[Answer(1, 0), NxDomain(60), Hang], STALE);
        fixture.answer(&first).await;
        advance(seconds(2)).await;
        assert_eq!(fixture.answer(&second).await.rcode, rcode::NXDOMAIN);
        let expected = if forgotten {
            failure(ExtendedError::NO_REACHABLE_AUTHORITY)
        } else {
            stale(ExtendedError::STALE_ANSWER)
        };
        assert_eq!(fixture.answer(&first).await, expected, "{first:x?} {second:x?}");
    }
    // An answer is valid until its TTL expires, even if other clients get a newer one.
    let fixture = fixture(&[Answer(60, 0), NxDomain(60), Hang], STALE);
    fixture.answer(&plain("a")).await;
    assert_eq!(fixture.answer(&dnssec).await.rcode, rcode::NXDOMAIN);
    assert_eq!(fixture.answer(&plain("a")).await.rcode, rcode::NOERROR);
}

/// A chain has one time limit for the client; upstreams have one per query.
#[tokio::test(start_paused = true)]
async fn queries_through_aliases_have_the_time_limit_of_other_queries() {
    let fixture =
        fixture(&[ScriptedAction::Answer(10, 2000), ScriptedAction::Answer(20, 2000)], STALE);
    let began = now();
    let follow = async || {
        let request = plain("a");
        let Parsed::Query(query) = Query::parse(&request) else { panic!("no query") };
        let (resolver, upstream) = (&fixture.resolver, &fixture.upstream);
        let resolved =
            resolver.resolve_alias(upstream, &request, &query, Transport::Udp, began).await;
        let ResolvedQuery::Response(response) = resolved else { panic!("{resolved:?}") };
        read(&response)
    };
    advance(seconds(3)).await;
    assert_eq!(follow().await, failure(ExtendedError::NO_REACHABLE_AUTHORITY));
    assert_eq!(now() - began, QUERY_TIMEOUT);
    sleep(seconds(2)).await;
    assert_eq!((follow().await, fixture.asked()), (answer(9), 1));
    // A stale answer is served at once, and refreshed.
    sleep(seconds(20)).await;
    let late = now();
    assert_eq!((follow().await, now()), (stale(ExtendedError::STALE_ANSWER), late));
    sleep(seconds(3)).await;
    assert_eq!((follow().await, fixture.asked()), (answer(19), 2));
}

#[tokio::test(start_paused = true)]
async fn uncacheable_responses_are_not_cached() {
    let fixture = fixture(&[ScriptedAction::Answer(60, 0)], STALE);
    // One query has no RD; the other has an option to forward.
    for request in [request("a", 0, false, b""), request("a", flags::RD, false, b"\xFD\xE9\0\x01x")]
    {
        fixture.answer(&request).await;
        assert_eq!(fixture.cached_response(&plain("a"), Transport::Udp), None);
    }
    // A response to a query from before a change of upstreams is not cached.
    let slow = self::fixture(&[ScriptedAction::Answer(60, 100)], STALE);
    let waiting = slow.ask(&plain("a"), Transport::Udp);
    sleep(Duration::from_millis(50)).await;
    slow.resolver.cache.clear();
    assert_eq!(waiting.await.unwrap().ttls, [60]);
    assert_eq!(slow.cached_response(&plain("a"), Transport::Udp), None);
    // An answer with TTL 0, then a resolver without a cache.
    let none = self::fixture(&[ScriptedAction::Answer(0, 0)], STALE);
    none.answer(&plain("a")).await;
    assert_eq!(none.cached_response(&plain("a"), Transport::Udp), None);
    let off = ResolverFixture {
        resolver: Resolver::new(0, STALE, Arc::default()),
        ..self::fixture(&[ScriptedAction::Answer(60, 0)], STALE)
    };
    off.answer(&plain("a")).await;
    assert_eq!(
        (off.cached_response(&plain("a"), Transport::Udp), off.resolver.cache.len()),
        (None, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn excess_clients_are_rejected_at_once() {
    let fixture = fixture(&[ScriptedAction::Hang], STALE);
    let waiting: Vec<_> =
        (0..4096).map(|n| fixture.ask(&plain(&format!("n{n}")), Transport::Udp)).collect();
    tokio::task::yield_now().await;
    let began = now();
    assert_eq!(fixture.answer(&plain("more")).await, failure(ExtendedError::OTHER));
    assert_eq!((now(), fixture.resolver.counters.overloaded.get()), (began, 1));
    for waiting in waiting {
        waiting.await.unwrap();
    }
    assert_eq!(fixture.resolver.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn other_opcodes_are_forwarded_unchanged() {
    let fixture = fixture(&[ScriptedAction::Answer(60, 0), ScriptedAction::Hang], STALE);
    let request = request("a", 4 << 11, false, b"\0\x0A\0\x01x");
    let Parsed::Bad { query, .. } = Query::parse(&request) else { panic!("a query") };
    let answer = fixture.resolver.relay(&fixture.upstream, &request, &query, Transport::Udp).await;
    assert_eq!(
        (&answer[..2], &fixture.upstream.asked.lock().unwrap()[0][2..]),
        (&[1, 2][..], &request[2..])
    );
    assert_eq!(answer[12..16], request[12..16]);
    let answer = fixture.resolver.relay(&fixture.upstream, &request, &query, Transport::Udp).await;
    assert_eq!(answer[2..4], (flags::QR | 4 << 11 | rcode::SERVFAIL).to_be_bytes());
}

#[test]
fn the_cache_stays_within_its_size_limit() {
    for (bytes, size) in [(20_000, 60), (1 << 20, 60), (1 << 20, 3000)] {
        let cache = Cache::new(bytes, STALE);
        for n in 0..20_000u32 {
            let mut message = request(&format!("n{n}"), flags::RD | flags::QR, false, b"");
            message[6..8].copy_from_slice(&[0, 1]);
            message[10..12].fill(0);
            message.truncate(question_end(&message).unwrap());
            let mut buffer = EMPTY_KEY_BUFFER;
            let request = plain(&format!("n{n}"));
            let Parsed::Query(query) = Query::parse(&request) else { panic!("no query") };
            let key = CacheKey::new(&query, &mut buffer).unwrap();
            message.extend(b"\xC0\x0C\0\x01\0\x01\0\0\0\x3C");
            message.extend(u16::try_from(size).unwrap().to_be_bytes());
            message.extend(vec![0; size]);
            cache.insert(key, StoredResponse::new(&message, true).unwrap(), true, 0, now());
        }
        assert!(
            cache.bytes() <= bytes as u64 && cache.len() > 10,
            "{} bytes, {} entries",
            cache.bytes(),
            cache.len()
        );
    }
}

proptest! {
    #[test]
    fn cache_keys_are_equal_only_for_identical_queries(
        a in "[a-cA-C]{1,3}",
        b in "[a-cA-C]{1,3}",
        bits in 0u16..64,
    ) {
        let request = |name: &str, bits: u16| {
            let set = |bit: u16, flag: u16| if bits & bit != 0 { flag } else { 0 };
            request(name, set(1, flags::RD) | set(2, flags::CD), bits & 4 != 0, b"")
        };
        let key = |request: Vec<u8>| {
            let Parsed::Query(query) = Query::parse(&request) else { panic!("no query") };
            CacheKey::new(&query, &mut EMPTY_KEY_BUFFER.clone()).unwrap().flight_bytes().to_vec()
        };
        let equal = a.eq_ignore_ascii_case(&b) && bits & 7 == bits >> 3;
        prop_assert_eq!(key(request(&a, bits & 7)) == key(request(&b, bits >> 3)), equal);
    }
}
