//! Tests with misbehaving upstreams on real loopback sockets.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use super::super::exchange::{Connector, Incoming, Outgoing, QueryFailure, Sockets, Upstream};
use super::super::order::{UpstreamList, UpstreamOrder};
use super::super::{Protocol, Target};
use crate::wire::{rcode, u16_at};

mod edns;
mod order;
mod secure;

/// The test upstream, which the integration tests also use.
#[path = "../../../tests/support/upstream/mod.rs"]
#[allow(dead_code, unused_qualifications, reason = "each test program takes what it needs")]
mod upstream;

use upstream::{Behaviour, Damage, Edns, Forged, Record, Tcp};

type TestServer = upstream::Upstream;

impl Sockets {
    /// Queries the upstreams in the order `fastest`.
    async fn query(
        &self,
        upstreams: &[Arc<Upstream>],
        outgoing: &Outgoing,
        deadline: Instant,
    ) -> Result<Incoming, QueryFailure> {
        let list = UpstreamList::new(upstreams, UpstreamOrder::Fastest);
        self.query_upstreams(&list, outgoing, deadline).await
    }
}

/// Polls until `check` returns a value.
fn eventually<T>(what: &str, within: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(start.elapsed() < within, "waited {within:?} for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const NAME: &str = "www.example.com";

/// Returns a query for `NAME`, type A, with RD and an OPT record.
fn query_message() -> Vec<u8> {
    b"\0\0\x01\0\0\x01\0\0\0\0\0\x01\x03www\x07example\x03com\0\0\x01\0\x01\
        \0\0\x29\x04\xD0\0\0\0\0\0\0"
        .to_vec()
}

fn outgoing() -> Outgoing {
    Outgoing::new(query_message(), false).unwrap()
}

fn server() -> TestServer {
    let server = TestServer::start();
    server.put([Record::a(NAME, 60, "192.0.2.1")]);
    server
}

fn target(server: &TestServer) -> Target {
    Target { address: server.address, protocol: Protocol::Plain }
}

fn upstream_of(target: Target) -> Arc<Upstream> {
    Upstream::new(target, Connector::new(tokio::runtime::Handle::current(), None))
}

/// Returns the deadline of a client's query.
fn deadline() -> Instant {
    Instant::now() + seconds(4)
}

fn long() -> Instant {
    Instant::now() + seconds(30)
}

/// Sends a query; returns how many queries one upstream may have received.
///
/// The limit is one, plus one for each second if a busy machine took longer than the hedge delay.
async fn ask_counting(
    sockets: &Sockets,
    upstreams: &[Arc<Upstream>],
    outgoing: &Outgoing,
) -> (Result<Incoming, QueryFailure>, usize) {
    let hedge_delay =
        upstreams.iter().map(|upstream| upstream.health().hedge_delay()).min().unwrap();
    let began = Instant::now();
    let result = sockets.query(upstreams, outgoing, began + seconds(30)).await;
    let took = began.elapsed();
    (result, if took < hedge_delay { 1 } else { 2 + usize::try_from(took.as_secs()).unwrap() })
}

/// Checks that the answer is 192.0.2.1 and that the question is the original one.
fn assert_correct(incoming: &Incoming) {
    assert_eq!(incoming.message[12..33], query_message()[12..33]);
    assert!(
        incoming.message.windows(4).any(|bytes| bytes == [192, 0, 2, 1]),
        "{:x?}",
        incoming.message
    );
    assert_eq!((incoming.rcode, u16_at(&incoming.message, 6)), (0, Some(1)));
}

#[tokio::test]
async fn a_single_upstream_answers_every_query() {
    let server = server();
    let sockets = Sockets::default();
    let upstream = [upstream_of(target(&server))];
    let mut limit = 0;
    for _ in 0..20 {
        let (answer, queries) = ask_counting(&sockets, &upstream, &outgoing()).await;
        assert_correct(&answer.unwrap());
        let began = Instant::now();
        assert_correct(
            &sockets.query_one(&upstream[0], &outgoing(), began + seconds(30)).await.unwrap(),
        );
        limit += queries + 1 + usize::try_from(began.elapsed().as_secs()).unwrap();
    }
    // The response to a hedged query may still be on its way.
    let until = Instant::now() + seconds(30);
    while upstream[0].report().answered < upstream[0].report().asked {
        assert!(Instant::now() < until, "{:?}", upstream[0].report());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let report = upstream[0].report();
    assert!(
        (40..=limit).contains(&usize::try_from(report.asked).unwrap()),
        "{limit} at most: {report:?}"
    );
    assert_eq!((report.answered, report.failed, report.dead), (report.asked, 0, false));
    assert!(report.round_trip.is_some());
}

fn both(one: &TestServer, other: &TestServer) -> [Arc<Upstream>; 2] {
    [upstream_of(target(one)), upstream_of(target(other))]
}

/// Returns a target on which no program listens.
fn closed() -> Target {
    // The port is below the kernel's ephemeral range and the address is unused, so no program can
    // start to listen there.
    Target { address: "127.94.0.1:9".parse().unwrap(), protocol: Protocol::Plain }
}

#[tokio::test]
async fn queries_fail_without_a_usable_upstream() {
    let sockets = Sockets::default();
    assert_eq!(
        sockets.query(&[], &outgoing(), deadline()).await.unwrap_err(),
        QueryFailure::NoUpstream
    );
    let server = server();
    let upstream = upstream_of(target(&server));
    upstream.set_looping(true);
    assert_eq!(
        sockets.query(&[Arc::clone(&upstream)], &outgoing(), deadline()).await.unwrap_err(),
        QueryFailure::NoUpstream
    );
    assert!(upstream.report().looping);
    // `query_one` queries the upstream even so.
    assert_correct(&sockets.query_one(&upstream, &outgoing(), deadline()).await.unwrap());
    upstream.set_looping(false);
    assert_correct(&sockets.query(&[upstream], &outgoing(), deadline()).await.unwrap());
}

#[tokio::test]
async fn truncated_responses_are_retried_over_tcp() {
    let server = server();
    server.behave(Behaviour::truncating());
    let sockets = Sockets::default();
    let upstream = [upstream_of(target(&server))];
    for _ in 0..5 {
        assert_correct(&sockets.query(&upstream, &outgoing(), deadline()).await.unwrap());
    }
    assert_eq!(server.connections(), 1);
    // If TCP fails, a truncated response is better than none, and a complete response of another
    // upstream is better still.
    for tcp in [Tcp::Closes, Tcp::Silent, Tcp::Half] {
        server.behave(Behaviour::truncating().over_tcp(tcp));
        let incoming = sockets.query(&upstream, &outgoing(), deadline()).await.unwrap();
        assert_eq!((incoming.rcode, incoming.message[2] & 0x02), (0, 2), "{tcp:?}");
        let other = self::server();
        let upstreams = [Arc::clone(&upstream[0]), upstream_of(target(&other))];
        assert_correct(&sockets.query(&upstreams, &outgoing(), deadline()).await.unwrap());
    }
}

#[tokio::test]
async fn invalid_responses_are_ignored() {
    let damages = [
        Damage::Id,
        Damage::QuestionType,
        Damage::QuestionName,
        Damage::NoQuestion,
        Damage::NoResponse,
        Damage::Cut(0),
        Damage::Cut(11),
        Damage::Cut(40),
        Damage::PointerLoop,
        Damage::Garbage,
        Damage::Counts,
        Damage::DataLength,
        Damage::Trailing,
    ];
    for damage in damages {
        let (bad, good) = (server(), server());
        bad.behave(Behaviour::damaged(damage));
        let sockets = Sockets::default();
        let upstreams = both(&bad, &good);
        let incoming =
            sockets.query(&upstreams, &outgoing(), Instant::now() + seconds(30)).await.unwrap();
        // RDATA is not validated here; the cache detects a bad pointer.
        if damage != Damage::PointerLoop {
            assert_correct(&incoming);
            assert!(Arc::ptr_eq(&incoming.upstream, &upstreams[1]), "{damage:?}");
        }
    }
}

#[tokio::test]
async fn invalid_responses_do_not_extend_the_deadline() {
    let server = server();
    server.behave(Behaviour::damaged(Damage::Id));
    let sockets = Sockets::default();
    let upstreams = [upstream_of(target(&server))];
    let soon = Instant::now() + Duration::from_millis(900);
    assert_eq!(
        sockets.query(&upstreams, &outgoing(), soon).await.unwrap_err(),
        QueryFailure::TimedOut
    );
    server.behave(Behaviour::damaged(Damage::Counts));
    assert_eq!(
        sockets.query(&upstreams, &outgoing(), Instant::now() + seconds(30)).await.unwrap_err(),
        QueryFailure::BadResponse
    );
    assert_eq!(upstreams[0].report().last_error.as_deref(), Some("its response is malformed"));
}

#[tokio::test]
async fn forged_responses_are_ignored() {
    let sockets = Sockets::default();
    for forged in [Forged::OtherPort, Forged::OtherAddress, Forged::Ids(2), Forged::Ids(40)] {
        // Repeat until one query is enough: forged responses to two could meet on one socket.
        let server = loop {
            let server = server();
            server.behave(Behaviour::forged(forged));
            let (answer, queries) =
                ask_counting(&sockets, &[upstream_of(target(&server))], &outgoing()).await;
            assert_correct(&answer.unwrap());
            if queries == 1 {
                break server;
            }
        };
        // An attacker who guesses ids cannot inject into a connection.
        assert_eq!(server.connections(), usize::from(forged == Forged::Ids(40)), "{forged:?}");
    }
    let server = server();
    server.behave(Behaviour::forged(Forged::OnlyOtherPort));
    let upstream = [upstream_of(target(&server))];
    assert_eq!(
        sockets.query(&upstream, &outgoing(), Instant::now() + seconds(1)).await.unwrap_err(),
        QueryFailure::TimedOut
    );
}

#[tokio::test]
async fn oversized_datagrams_are_retried_over_tcp() {
    let server = server();
    server.behave(Behaviour::damaged(Damage::Oversized(9000)));
    let sockets = Sockets::default();
    let incoming =
        sockets.query(&[upstream_of(target(&server))], &outgoing(), deadline()).await.unwrap();
    assert!(incoming.message.len() >= 9000);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn late_responses_show_that_an_upstream_is_alive() {
    let server = server();
    server.put([Record::a("other.example", 60, "192.0.2.2")]);
    server.on(NAME, Behaviour::default().delayed(Duration::from_millis(500)));
    let sockets = Sockets::default();
    let upstream = [upstream_of(target(&server))];
    assert_eq!(
        sockets
            .query(&upstream, &outgoing(), Instant::now() + Duration::from_millis(50))
            .await
            .unwrap_err(),
        QueryFailure::TimedOut
    );
    let other = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x05other\x07example\0\0\x01\0\x01".to_vec();
    let other = Outgoing::new(other, false).unwrap();
    let until = Instant::now() + seconds(30);
    let mut asked = 1;
    while upstream[0].report().answered < asked || asked < 5 {
        asked += 1;
        let incoming = sockets.query(&upstream, &other, deadline()).await.unwrap();
        assert!(incoming.message.windows(4).any(|bytes| bytes == [192, 0, 2, 2]));
        assert!(Instant::now() < until, "the late answer was never counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!upstream[0].report().dead);
}

#[tokio::test]
async fn dead_upstreams_do_not_delay_queries() {
    let (dead, good) = (server(), server());
    dead.behave(Behaviour::never());
    let sockets = Sockets::default();
    let upstreams = both(&dead, &good);
    assert_correct(
        &sockets.query(&upstreams, &outgoing(), Instant::now() + seconds(30)).await.unwrap(),
    );
    while !upstreams[0].report().dead {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = dead.queries().len();
    for _ in 0..100 {
        let incoming =
            sockets.query(&upstreams, &outgoing(), Instant::now() + seconds(30)).await.unwrap();
        assert!(Arc::ptr_eq(&incoming.upstream, &upstreams[1]));
    }
    // Occasional probes find out whether the upstream is alive again.
    let probes = dead.queries().len() - before;
    assert!(probes < 20, "{probes}");
    dead.behave(Behaviour::default());
    let until = Instant::now() + seconds(60);
    while upstreams[0].report().dead {
        assert!(Instant::now() < until, "nobody noticed that it lives again");
        sockets.query(&upstreams, &outgoing(), deadline()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn all_upstreams_are_probed_at_once_if_all_are_dead() {
    let (one, other) = (server(), server());
    one.behave(Behaviour::never());
    other.behave(Behaviour::never());
    let sockets = Sockets::default();
    let upstreams = both(&one, &other);
    let failure = sockets
        .query(&upstreams, &outgoing(), Instant::now() + Duration::from_millis(2500))
        .await
        .unwrap_err();
    assert_eq!(failure, QueryFailure::TimedOut);
    assert!(upstreams.iter().all(|upstream| upstream.report().dead));
    other.behave(Behaviour::default());
    assert_correct(
        &sockets.query(&upstreams, &outgoing(), Instant::now() + seconds(30)).await.unwrap(),
    );
}

#[tokio::test]
async fn a_query_reaches_the_only_responsive_of_three_upstreams_in_time() {
    let servers = [server(), server(), server()];
    let sockets = Sockets::default();
    let upstreams = servers.each_ref().map(|server| upstream_of(target(server)));
    for (upstream, server) in upstreams.iter().zip(&servers) {
        measure(&sockets, upstream).await;
        server.forget();
    }
    // All upstreams may be alive, and the one that answers may have any rank.
    servers[..2].iter().for_each(|server| server.behave(Behaviour::never()));
    assert_correct(
        &sockets.query(&upstreams, &outgoing(), Instant::now() + seconds(30)).await.unwrap(),
    );
}

/// Queries often enough for a stable round trip.
async fn measure(sockets: &Sockets, upstream: &Arc<Upstream>) {
    for _ in 0..20 {
        sockets.query_one(upstream, &outgoing(), Instant::now() + seconds(30)).await.unwrap();
    }
}

#[tokio::test]
async fn closed_ports_fail_without_a_timeout() {
    let good = server();
    let sockets = Sockets::default();
    let upstreams = [upstream_of(closed()), upstream_of(target(&good))];
    assert_correct(&sockets.query(&upstreams, &outgoing(), deadline()).await.unwrap());
    let alone = [upstream_of(closed())];
    let started = Instant::now();
    assert_eq!(
        sockets.query(&alone, &outgoing(), started + seconds(60)).await.unwrap_err(),
        QueryFailure::Unreachable
    );
    // Retransmissions, which would meet the error of the first datagram, begin after 400 ms.
    assert!(started.elapsed() < Duration::from_millis(400), "the first ICMP error is noticed");
    let report = alone[0].report();
    assert!(report.dead && report.last_error.unwrap().contains("refused"));
    for protocol in [
        Protocol::Tcp,
        Protocol::Tls { name: None },
        Protocol::Https { name: None, path: "/dns-query".into() },
    ] {
        let alone = [upstream_of(Target { protocol, ..closed() })];
        assert_eq!(
            sockets.query(&alone, &outgoing(), Instant::now() + seconds(60)).await.unwrap_err(),
            QueryFailure::Unreachable
        );
        assert!(alone[0].report().last_error.unwrap().contains("cannot connect over TCP"));
    }
}

#[tokio::test]
async fn a_hedged_query_is_answered_before_the_slow_upstream_answers() {
    let (slow, good) = (server(), server());
    // The delay makes this upstream the second choice.
    good.behave(Behaviour::default().delayed(Duration::from_millis(60)));
    let sockets = Sockets::default();
    let upstreams = both(&slow, &good);
    for upstream in &upstreams {
        measure(&sockets, upstream).await;
    }
    while upstreams[0].health().rank(Instant::now()) >= upstreams[1].health().rank(Instant::now()) {
        measure(&sockets, &upstreams[0]).await;
    }
    slow.behave(Behaviour::default().delayed(seconds(20)));
    good.behave(Behaviour::default());
    slow.forget();
    let began = Instant::now();
    let incoming = sockets.query(&upstreams, &outgoing(), began + seconds(15)).await.unwrap();
    assert!(Arc::ptr_eq(&incoming.upstream, &upstreams[1]));
    // The upstream is queried again each second until the other one answers.
    let limit = 1 + usize::try_from(began.elapsed().as_secs()).unwrap();
    assert!(
        (1..=limit).contains(&slow.queries().len()),
        "{} queries, {limit} at most",
        slow.queries().len()
    );
}

#[tokio::test]
async fn upstreams_need_not_preserve_the_letter_case_of_client_queries() {
    let server = server();
    server.behave(Behaviour::damaged(Damage::LowerCase));
    let mut message = query_message();
    message[13..16].copy_from_slice(b"WwW");
    let outgoing = Outgoing::new(message.clone(), false).unwrap();
    let sockets = Sockets::default();
    let incoming =
        sockets.query(&[upstream_of(target(&server))], &outgoing, deadline()).await.unwrap();
    assert_eq!(incoming.message[12..33], message[12..33]);
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn large_queries_are_sent_over_tcp() {
    let server = server();
    let mut message = query_message();
    let at = message.len() - 2;
    message[at..].copy_from_slice(&3004_u16.to_be_bytes());
    message.extend([0xFD, 0xE9, 0x0B, 0xB8]);
    message.resize(message.len() + 3000, 7);
    let sockets = Sockets::default();
    let upstream = upstream_of(target(&server));
    let outgoing = Outgoing::new(message, false).unwrap();
    assert_correct(&sockets.query(&[Arc::clone(&upstream)], &outgoing, deadline()).await.unwrap());
    assert_eq!((server.connections(), upstream.report().failed), (1, 0));
}

#[tokio::test]
async fn lost_datagrams_are_retransmitted() {
    let server = server();
    server.behave(Behaviour::default().dropping(2));
    let sockets = Sockets::default();
    assert_correct(
        &sockets
            .query(&[upstream_of(target(&server))], &outgoing(), Instant::now() + seconds(30))
            .await
            .unwrap(),
    );
}

/// Returns the IDs and the source ports of all queries that a server received.
fn ids_and_ports(server: &TestServer) -> [HashSet<u16>; 2] {
    let queries = server.queries();
    [
        queries.iter().map(|received| received.query.id).collect(),
        queries.iter().map(|received| received.source.port()).collect(),
    ]
}

#[tokio::test]
async fn each_query_has_an_id_and_a_port_of_its_own() {
    let server = server();
    let sockets = Sockets::default();
    let upstream = [upstream_of(target(&server))];
    for _ in 0..400 {
        assert_correct(&sockets.query(&upstream, &outgoing(), long()).await.unwrap());
    }
    // Some values are drawn twice: 1 ID, and 3 ports of 28,232.
    let [ids, ports] = ids_and_ports(&server).map(|seen| seen.len());
    assert!(ids > 390 && ports > 380, "{ids} ids and {ports} ports of 400 queries");
}

#[tokio::test]
async fn queries_share_ports_at_a_high_rate() {
    const QUERIES: usize = 4000;
    let server = server();
    let sockets = Arc::new(Sockets::default());
    let upstream = upstream_of(target(&server));
    let began = Instant::now();
    let all: Vec<_> = (0..QUERIES)
        .map(|_| {
            let (sockets, upstream) = (Arc::clone(&sockets), Arc::clone(&upstream));
            tokio::spawn(async move { sockets.query_one(&upstream, &outgoing(), long()).await })
        })
        .collect();
    for one in all {
        assert_correct(&one.await.unwrap().unwrap());
    }
    let [_, ports] = ids_and_ports(&server).map(|seen| seen.len());
    // 500 queries at once and 500 a second get ports; the 64 shared ones change every few seconds.
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    let limit = 500 + 500 * seconds + 64 * (seconds / 2 + 1);
    assert!((65..limit).contains(&ports), "{ports} ports, below {limit}");
}

#[tokio::test]
async fn ports_stay_open_until_the_response_and_close_with_the_next_query() {
    let sockets = Sockets::default();
    for abandoned in [false, true] {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let upstream = upstream_of(Target { address, protocol: Protocol::Plain });
        let outgoing = outgoing();
        let mut query = Box::pin(sockets.query(std::slice::from_ref(&upstream), &outgoing, long()));
        let mut buffer = [0; 512];
        let (length, source) = tokio::select! {
            _ = &mut query => panic!("nobody has answered"),
            received = server.recv_from(&mut buffer) => received.unwrap(),
        };
        let query = (!abandoned).then_some(query);
        let one = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        one.connect(source).await.unwrap();
        // The port is open, but the datagram does not come from the upstream.
        assert_eq!(answer_from(&one, b"?").await, Err(ErrorKind::ConnectionRefused));
        let received = upstream::Query::parse(&buffer[..length]).unwrap();
        let response =
            upstream::Message::of([Record::a(NAME, 60, "192.0.2.1")]).to_bytes(&received);
        let before = upstream.report().answered;
        server.connect(source).await.unwrap();
        assert_eq!(answer_from(&server, &response).await, Ok(()), "abandoned: {abandoned}");
        match query {
            Some(query) => assert_correct(&query.await.unwrap()),
            None => {
                while upstream.report().answered == before {
                    tokio::task::yield_now().await;
                }
            }
        }
        let next = sockets.query(std::slice::from_ref(&upstream), &outgoing, long());
        let _ = tokio::time::timeout(Duration::from_millis(20), next).await;
        assert_eq!(answer_from(&server, &response).await, Err(ErrorKind::ConnectionRefused));
    }
}

/// Sends a datagram over a connected socket; returns the resulting ICMP error.
async fn answer_from(socket: &UdpSocket, datagram: &[u8]) -> Result<(), ErrorKind> {
    socket.send(datagram).await.unwrap();
    // On loopback, the error has arrived when the call returns.
    socket.take_error().unwrap().map_or(Ok(()), |error| Err(error.kind()))
}

#[tokio::test]
async fn letter_case_is_randomized_and_restored() {
    let server = server();
    let sockets = Sockets::default();
    let upstream = [upstream_of(target(&server))];
    let outgoing = Outgoing::new(query_message(), true).unwrap();
    for _ in 0..10 {
        assert_correct(&sockets.query(&upstream, &outgoing, deadline()).await.unwrap());
    }
    let names: HashSet<_> = server.queries().into_iter().map(|asked| asked.query.name).collect();
    assert!(names.len() > 3, "{names:?}");
    assert_eq!(server.connections(), 0);
    // An upstream that answers in lower case is queried once over TCP, then with the original
    // letter case.
    let server = self::server();
    server.behave(Behaviour::damaged(Damage::LowerCase));
    let upstream = [upstream_of(target(&server))];
    for _ in 0..10 {
        assert_correct(
            &sockets.query(&upstream, &outgoing, Instant::now() + seconds(30)).await.unwrap(),
        );
    }
    assert_eq!(server.connections(), 1);
    assert_eq!(server.queries().last().unwrap().query.name, NAME);
    // If TCP also fails, the letter case is kept after three mismatches.
    let server = self::server();
    server.behave(Behaviour::damaged(Damage::LowerCase).over_tcp(Tcp::Closes));
    let upstream = [upstream_of(target(&server))];
    let (mut failures, mut limit) = (0, 0);
    loop {
        let (answer, queries) = ask_counting(&sockets, &upstream, &outgoing).await;
        match answer {
            Ok(incoming) => break assert_correct(&incoming),
            Err(failure) => assert_eq!(failure, QueryFailure::BadResponse),
        }
        (failures, limit) = (failures + 1, limit + queries);
        assert!(failures <= 3, "{limit} queries at most");
    }
    assert!(limit >= 3, "{failures} failures, {limit} queries at most");
}

#[tokio::test]
async fn failures_are_retried_at_other_upstreams() {
    let (bad, good) = (server(), server());
    let sockets = Sockets::default();
    for code in [2_u16, 4, 5, 9] {
        bad.behave(Behaviour::code(code));
        let upstreams = both(&bad, &good);
        assert_correct(&sockets.query(&upstreams, &outgoing(), deadline()).await.unwrap());
        let incoming = sockets
            .query(&upstreams[..1], &outgoing(), Instant::now() + seconds(60))
            .await
            .unwrap();
        assert_eq!(incoming.rcode, code);
    }
    // NXDOMAIN is conclusive.
    bad.behave(Behaviour::code(3));
    let upstreams = [upstream_of(target(&bad))];
    assert_eq!(sockets.query(&upstreams, &outgoing(), deadline()).await.unwrap().rcode, 3);
    // An upstream that refuses all queries loses its rank.
    bad.behave(Behaviour::code(5));
    let upstreams = both(&bad, &good);
    for _ in 0..20 {
        assert_correct(
            &sockets.query(&upstreams, &outgoing(), Instant::now() + seconds(30)).await.unwrap(),
        );
    }
    bad.forget();
    let (answer, limit) = ask_counting(&sockets, &upstreams, &outgoing()).await;
    assert_correct(&answer.unwrap());
    assert!(bad.queries().len() <= limit);
}

#[tokio::test]
async fn one_connection_carries_many_queries() {
    let server = server();
    let upstream = upstream_of(Target { protocol: Protocol::Tcp, ..target(&server) });
    let upstreams = [Arc::clone(&upstream)];
    let sockets = Arc::new(Sockets::default());
    server.behave(Behaviour::default().delayed(Duration::from_millis(200)));
    let outgoing = outgoing();
    // These are more queries than one write carries, all queued before the connection is open.
    let many: Vec<_> = (0..600)
        .map(|_| {
            let (sockets, upstream, outgoing) =
                (Arc::clone(&sockets), Arc::clone(&upstream), outgoing.clone());
            tokio::spawn(async move {
                sockets.query(&[upstream], &outgoing, Instant::now() + seconds(30)).await
            })
        })
        .collect();
    for one in many {
        assert_correct(&one.await.unwrap().unwrap());
    }
    assert_eq!(server.connections(), 1);
    assert!(server.queries().iter().all(|asked| asked.transport == upstream::Transport::Tcp));
    // A connection closed by the upstream is opened again.
    server.behave(Behaviour::default().over_tcp(Tcp::Closes));
    assert_eq!(
        sockets.query(&upstreams, &outgoing, Instant::now() + seconds(60)).await.unwrap_err(),
        QueryFailure::Unreachable
    );
    assert_eq!(upstream.report().last_error.as_deref(), Some("it closed the connection"));
    server.behave(Behaviour::default());
    assert_correct(
        &sockets.query(&upstreams, &outgoing, Instant::now() + seconds(30)).await.unwrap(),
    );
}
