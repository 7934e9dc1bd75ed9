//! Tests of the strict order, and of upstreams that are all dead.

use super::*;

/// Returns a list in strict order; only the first upstream knows `NAME`.
fn strict(upstreams: &[Arc<Upstream>]) -> UpstreamList {
    UpstreamList::new(upstreams, UpstreamOrder::Strict)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Starts a server that answers NXDOMAIN to every query at once.
fn denying() -> TestServer {
    TestServer::start()
}

async fn ask(
    sockets: &Sockets,
    list: &UpstreamList,
    within: Duration,
) -> (Result<Incoming, QueryFailure>, Duration) {
    let began = Instant::now();
    let result = sockets.query_upstreams(list, &outgoing(), began + within).await;
    (result, began.elapsed())
}

async fn wait_until(what: &str, ready: impl Fn() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < seconds(30), "waited for {what}");
        tokio::time::sleep(millis(10)).await;
    }
}

/// Lets the upstream miss a client's query and a probe, so that it counts as dead.
async fn kill(sockets: &Sockets, server: &TestServer, upstream: &Arc<Upstream>) {
    server.behave(Behaviour::never());
    let list = strict(std::slice::from_ref(upstream));
    let (result, _) = ask(sockets, &list, millis(1200)).await;
    assert_eq!(result.unwrap_err(), QueryFailure::TimedOut);
    assert!(upstream.report().dead);
    server.forget();
}

#[tokio::test]
async fn strict_order_prefers_a_slower_earlier_upstream_to_a_faster_later_one() {
    let (first, second) = (server(), denying());
    first.behave(Behaviour::default().delayed(millis(20)));
    let upstreams = both(&first, &second);
    let sockets = Sockets::default();
    for _ in 0..30 {
        let (answer, took) = ask(&sockets, &strict(&upstreams), seconds(4)).await;
        // On a very busy machine, the first upstream may have been silent for too long.
        if took < millis(400) {
            assert_correct(&answer.unwrap());
        }
    }
    assert!(second.queries().len() < 5, "{:?}", second.queries());
    // The fastest upstream would deny the name.
    let list = UpstreamList::new(&upstreams[..], UpstreamOrder::Fastest);
    assert_eq!(ask(&sockets, &list, seconds(4)).await.0.unwrap().rcode, rcode::NXDOMAIN);
}

#[tokio::test]
async fn nxdomain_and_nodata_from_the_first_upstream_are_final() {
    let (first, second) = (denying(), server());
    let sockets = Sockets::default();
    let upstreams = both(&first, &second);
    let denied = ask(&sockets, &strict(&upstreams), seconds(4)).await.0.unwrap();
    assert_eq!(denied.rcode, rcode::NXDOMAIN);
    first.put([Record::txt(NAME, 60, "no address")]);
    let no_data = ask(&sockets, &strict(&upstreams), seconds(4)).await.0.unwrap();
    assert_eq!((no_data.rcode, u16_at(&no_data.message, 6)), (rcode::NOERROR, Some(0)));
    assert!(second.queries().is_empty());
}

#[tokio::test]
async fn the_next_upstream_is_queried_immediately_after_a_failure() {
    let second = server();
    for code in [rcode::SERVFAIL, rcode::REFUSED, rcode::NOTIMP] {
        let first = server();
        first.behave(Behaviour::code(code));
        let sockets = Sockets::default();
        let upstreams = both(&first, &second);
        for _ in 0..5 {
            let (answer, _) = ask(&sockets, &strict(&upstreams), seconds(4)).await;
            assert_correct(&answer.unwrap());
        }
        // The first upstream is queried first every time, because it may know another name.
        assert!(first.queries_for(NAME).len() >= 5, "{code}");
    }
    let upstreams = [upstream_of(closed()), upstream_of(target(&second))];
    let sockets = Sockets::default();
    assert_correct(&ask(&sockets, &strict(&upstreams), seconds(4)).await.0.unwrap());
}

#[tokio::test]
async fn the_next_upstream_is_queried_after_400_ms_of_silence() {
    let (first, second) = (server(), server());
    first.behave(Behaviour::default().delayed(seconds(10)));
    let sockets = Sockets::default();
    let upstreams = both(&first, &second);
    let (answer, took) = ask(&sockets, &strict(&upstreams), seconds(4)).await;
    let answer = answer.unwrap();
    assert_correct(&answer);
    assert!(Arc::ptr_eq(&answer.upstream, &upstreams[1]) && took >= millis(400), "{took:?}");
    // Both upstreams were queried, and the first to answer wins.
    let (first, second) = (server(), denying());
    first.behave(Behaviour::default().delayed(millis(600)));
    second.behave(Behaviour::default().delayed(seconds(3)));
    let upstreams = both(&first, &second);
    let (answer, took) = ask(&sockets, &strict(&upstreams), seconds(4)).await;
    if took < seconds(3) {
        assert_correct(&answer.unwrap());
        assert!(!second.queries().is_empty());
    }
}

#[tokio::test]
async fn a_lost_datagram_does_not_change_the_order() {
    let (first, second) = (server(), denying());
    let sockets = Sockets::default();
    let upstreams = both(&first, &second);
    for _ in 0..5 {
        first.behave(Behaviour::default().dropping(1));
        let (answer, took) = ask(&sockets, &strict(&upstreams), seconds(4)).await;
        if took < millis(400) {
            assert_correct(&answer.unwrap());
        }
    }
    assert!(second.queries().len() < 5, "{:?}", second.queries());
}

#[tokio::test]
async fn dead_upstreams_receive_probes_instead_of_client_queries() {
    let (first, second) = (server(), denying());
    let sockets = Sockets::default();
    let upstreams = both(&first, &second);
    kill(&sockets, &first, &upstreams[0]).await;
    let (denied, took) = ask(&sockets, &strict(&upstreams), seconds(4)).await;
    assert_eq!(denied.unwrap().rcode, rcode::NXDOMAIN);
    assert!(took < millis(400), "nobody waits for a dead upstream: {took:?}");
    wait_until("a probe", || !first.probes().is_empty()).await;
    assert!(first.queries_for(NAME).is_empty(), "{:?}", first.queries());
    assert!(first.probes().iter().all(|probe| probe.query.name.is_empty()));
    // Once the upstream is back, a probe notices it, and its answers count again.
    first.behave(Behaviour::default());
    let began = Instant::now();
    loop {
        let answer = ask(&sockets, &strict(&upstreams), seconds(4)).await.0.unwrap();
        if answer.rcode == rcode::NOERROR {
            break assert_correct(&answer);
        }
        assert!(began.elapsed() < seconds(20), "its return went unnoticed");
        tokio::time::sleep(millis(50)).await;
    }
}

#[tokio::test]
async fn an_upstream_that_ignores_one_name_is_not_dead() {
    let (first, second) = (server(), denying());
    first.on("slow.example", Behaviour::never());
    let sockets = Sockets::default();
    let upstreams = both(&first, &second);
    let mut message = query_message();
    message.splice(12..29, *b"\x04slow\x07example\0");
    let slow = Outgoing::new(message, false).unwrap();
    let list = strict(&upstreams);
    let asked = sockets.query_upstreams(&list, &slow, Instant::now() + seconds(4)).await;
    assert_eq!(asked.unwrap().rcode, rcode::NXDOMAIN);
    wait_until("the answer to the probe", || upstreams[0].report().answered > 0).await;
    tokio::time::sleep(millis(1100)).await;
    assert!(!upstreams[0].report().dead);
    assert_correct(&ask(&sockets, &list, seconds(4)).await.0.unwrap());
}

/// Some upstreams drop queries for names that they do not serve.
#[tokio::test]
async fn an_upstream_that_ignores_unknown_names_is_not_dead() {
    let (first, second) = (server(), denying());
    first.behave(Behaviour::never());
    first.on(NAME, Behaviour::default());
    let sockets = Sockets::default();
    let upstreams = both(&first, &second);
    let list = strict(&upstreams);
    assert_correct(&ask(&sockets, &list, seconds(4)).await.0.unwrap());
    let mut message = query_message();
    message.splice(12..29, *b"\x04slow\x07example\0");
    let unknown = Outgoing::new(message, false).unwrap();
    for _ in 0..3 {
        let asked = sockets.query_upstreams(&list, &unknown, Instant::now() + seconds(4)).await;
        assert_eq!(asked.unwrap().rcode, rcode::NXDOMAIN);
        tokio::time::sleep(millis(1100)).await;
        assert!(!upstreams[0].report().dead);
        assert_correct(&ask(&sockets, &list, seconds(4)).await.0.unwrap());
    }
    // As the only upstream, it is found again after an outage.
    first.on(NAME, Behaviour::never());
    kill(&sockets, &first, &upstreams[0]).await;
    assert!(ask(&sockets, &strict(&upstreams[..1]), seconds(4)).await.0.is_err());
    first.on(NAME, Behaviour::default());
    assert_correct(&ask(&sockets, &strict(&upstreams[..1]), seconds(4)).await.0.unwrap());
}

#[tokio::test]
async fn a_truncated_answer_wins_over_nxdomain_from_a_later_upstream() {
    let (first, second) = (server(), denying());
    let sockets = Sockets::default();
    let upstreams = both(&first, &second);
    // TCP fails at once, or only after the second upstream has answered.
    for tcp in [Tcp::Closes, Tcp::Silent] {
        first.behave(Behaviour::truncating().over_tcp(tcp));
        let answer = ask(&sockets, &strict(&upstreams), seconds(4)).await.0.unwrap();
        assert_eq!((answer.rcode, answer.message[2] & 0x02), (rcode::NOERROR, 2));
    }
}

#[tokio::test]
async fn queries_fail_within_1_s_while_all_upstreams_are_dead() {
    for order in [UpstreamOrder::Strict, UpstreamOrder::Fastest] {
        let (one, other) = (server(), server());
        let sockets = Sockets::default();
        let upstreams = both(&one, &other);
        kill(&sockets, &one, &upstreams[0]).await;
        kill(&sockets, &other, &upstreams[1]).await;
        let list = UpstreamList::new(&upstreams[..], order);
        for _ in 0..3 {
            let (failed, took) = ask(&sockets, &list, seconds(4)).await;
            assert_eq!(failed.unwrap_err(), QueryFailure::Dead);
            // 800 ms, and what a busy machine adds.
            assert!(took < millis(1500), "{took:?}");
        }
        for server in [&one, &other] {
            assert!(server.queries_for(NAME).is_empty(), "{:?}", server.queries());
            // About four probes a second, each of two datagrams.
            assert!((3..=24).contains(&server.probes().len()), "{}", server.probes().len());
        }
        other.behave(Behaviour::default());
        let (answer, took) = ask(&sockets, &list, seconds(4)).await;
        assert_correct(&answer.unwrap());
        assert!(took < millis(1000), "{took:?}");
    }
}

#[tokio::test]
async fn a_waiting_query_is_answered_when_its_upstream_recovers() {
    let only = server();
    let sockets = Sockets::default();
    let upstreams = [upstream_of(target(&only))];
    kill(&sockets, &only, &upstreams[0]).await;
    let list = strict(&upstreams);
    let (answer, ()) = tokio::join!(ask(&sockets, &list, seconds(4)), async {
        tokio::time::sleep(millis(300)).await;
        only.behave(Behaviour::default());
    });
    assert_correct(&answer.0.unwrap());
    assert!(answer.1 < millis(1000), "{:?}", answer.1);
}

#[tokio::test]
async fn the_first_upstream_is_preferred_when_all_recover_together() {
    let (first, second) = (server(), denying());
    let sockets = Sockets::default();
    let upstreams = both(&first, &second);
    kill(&sockets, &first, &upstreams[0]).await;
    kill(&sockets, &second, &upstreams[1]).await;
    // The second upstream's answer to the probe arrives first.
    first.behave(Behaviour::default().delayed(millis(100)));
    second.behave(Behaviour::default());
    assert_correct(&ask(&sockets, &strict(&upstreams), seconds(4)).await.0.unwrap());
}
