//! Tests of upstreams that fail queries with EDNS.

use super::*;

/// Queries until the upstream gets no more queries with EDNS.
async fn until_disabled(sockets: &Sockets, upstreams: &[Arc<Upstream>], server: &TestServer) {
    let began = Instant::now();
    loop {
        server.forget();
        assert_correct(&sockets.query(upstreams, &outgoing(), deadline()).await.unwrap());
        let queries = server.queries_for(NAME);
        if queries.iter().all(|received| received.query.opt.is_none()) {
            return;
        }
        assert!(began.elapsed() < seconds(30), "EDNS is still used");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn upstreams_that_fail_with_edns_are_queried_without_it() {
    for edns in Edns::FAULTS {
        let server = server();
        server.behave(Behaviour::edns(edns));
        let upstream = [upstream_of(target(&server))];
        let sockets = Sockets::default();
        let began = Instant::now();
        let answer = sockets.query(&upstream, &outgoing(), deadline()).await;
        let took = began.elapsed();
        assert_correct(&answer.unwrap_or_else(|failure| panic!("{edns:?}: {failure}")));
        assert!(took < seconds(2), "{edns:?}: {took:?}");
        if edns == Edns::Ignored {
            // Success does not matter here: the upstream answers as if there were no OPT record.
            tokio::time::sleep(seconds(1)).await;
            sockets.query(&upstream, &outgoing(), deadline()).await.unwrap();
            assert!(server.queries_for(NAME).iter().all(|asked| asked.query.opt.is_some()));
        } else {
            until_disabled(&sockets, &upstream, &server).await;
        }
    }
}

#[tokio::test]
async fn tcp_upstreams_that_fail_with_edns_are_queried_without_it() {
    for edns in Edns::FAULTS.into_iter().filter(|edns| *edns != Edns::Ignored) {
        let server = server();
        server.behave(Behaviour::edns(edns));
        let upstream = [upstream_of(Target { protocol: Protocol::Tcp, ..target(&server) })];
        let sockets = Sockets::default();
        let began = Instant::now();
        assert_correct(&sockets.query(&upstream, &outgoing(), deadline()).await.unwrap());
        assert!(began.elapsed() < seconds(2), "{edns:?}: {:?}", began.elapsed());
        until_disabled(&sockets, &upstream, &server).await;
    }
}

#[tokio::test]
async fn a_lost_datagram_does_not_disable_edns() {
    for drop in [1, 2, 3] {
        let server = server();
        server.behave(Behaviour::default().dropping(drop));
        let upstream = [upstream_of(target(&server))];
        let sockets = Sockets::default();
        assert_correct(&sockets.query(&upstream, &outgoing(), deadline()).await.unwrap());
        tokio::time::sleep(seconds(1)).await;
        server.forget();
        assert_correct(&sockets.query(&upstream, &outgoing(), deadline()).await.unwrap());
        assert!(server.queries_for(NAME)[0].query.opt.is_some(), "{drop} lost");
    }
}

#[tokio::test]
async fn a_failing_name_does_not_disable_edns() {
    for edns in Edns::FAULTS {
        let server = server();
        server.put([Record::a("other.example", 60, "192.0.2.2")]);
        server.on(NAME, Behaviour::edns(edns));
        let upstream = [upstream_of(target(&server))];
        let sockets = Sockets::default();
        assert_correct(&sockets.query(&upstream, &outgoing(), deadline()).await.unwrap());
        tokio::time::sleep(seconds(1)).await;
        ask_other(&sockets, &upstream).await;
        assert!(server.queries_for("other.example")[0].query.opt.is_some(), "{edns:?}");
    }
}

/// Queries a name other than `NAME`.
async fn ask_other(sockets: &Sockets, upstreams: &[Arc<Upstream>]) {
    let mut message = query_message();
    message.splice(12..29, *b"\x05other\x07example\0");
    let other = Outgoing::new(message, false).unwrap();
    sockets.query(upstreams, &other, deadline()).await.unwrap();
}

#[tokio::test]
async fn failures_of_one_name_do_not_disable_edns_for_a_working_upstream() {
    for edns in [Edns::FormErr, Edns::Code(2), Edns::Code(5), Edns::CodeWithOpt(2)] {
        let server = server();
        server.put([Record::a("other.example", 60, "192.0.2.2")]);
        let upstream = [upstream_of(target(&server))];
        let sockets = Sockets::default();
        ask_other(&sockets, &upstream).await;
        // This name fails with and without EDNS, or with EDNS only.
        server.on(NAME, Behaviour::edns(edns));
        sockets.query(&upstream, &outgoing(), deadline()).await.unwrap();
        server.on(NAME, Behaviour::code(rcode::SERVFAIL));
        sockets.query(&upstream, &outgoing(), deadline()).await.unwrap();
        tokio::time::sleep(seconds(1)).await;
        server.forget();
        ask_other(&sockets, &upstream).await;
        assert!(server.queries_for("other.example")[0].query.opt.is_some(), "{edns:?}");
    }
}
