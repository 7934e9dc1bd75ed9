use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::checks::CheckFailure;
use crate::checks::probe::HttpScheme;
use crate::checks::tests::settings;
use crate::service::{CheckTarget, Probe};

/// Time after which a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn target(address: SocketAddr, probe: Probe) -> CheckTarget {
    CheckTarget { address: address.ip(), port: address.port(), probe }
}

/// Starts a server that treats each connection with `serve`; returns its address.
async fn server<F: Future<Output = ()> + Send + 'static>(
    address: &str,
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Reads a request and returns it.
async fn request(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(text).unwrap()
}

/// Starts a server that responds with these bytes and closes.
async fn responding(response: &'static str) -> SocketAddr {
    server("127.0.0.1:0", move |mut stream| async move {
        request(&mut stream).await;
        let _ = stream.write_all(response.as_bytes()).await;
    })
    .await
}

async fn check(address: SocketAddr, probe: Probe) -> Result<(), CheckFailure> {
    Prober::new(settings()).probe(target(address, probe), HttpScheme::Http).await.1
}

#[tokio::test]
async fn responses_with_status_2xx_and_3xx_pass() {
    for (response, expected) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", Ok(())),
        ("HTTP/1.0 204 No Content\r\n\r\n", Ok(())),
        // No redirect is followed: it may lead to another machine.
        ("HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n", Ok(())),
        // An informational response precedes the final one.
        ("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Ok(())),
        ("HTTP/1.1 404 Not Found\r\n\r\n", Err(CheckFailure::Status(404))),
        ("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy", Err(CheckFailure::Status(503))),
        ("", Err(CheckFailure::Closed)),
        ("HTTP/1.1 200", Err(CheckFailure::Closed)),
        ("SSH-2.0-OpenSSH_9.2\r\n", Err(CheckFailure::NotHttp)),
        ("\x15\x03\x01\0\x02\x02\x16", Err(CheckFailure::NotHttp)),
    ] {
        assert_eq!(check(responding(response).await, Probe::Http).await, expected, "{response:?}");
    }
}

#[tokio::test]
async fn a_response_that_never_gets_to_its_end_in_time_fails() {
    // Each part arrives in time, but not the header.
    let address = server("127.0.0.1:0", |mut stream| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx-slow: ").await;
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(check(address, Probe::Http).await, Err(CheckFailure::NoResponse));
}

#[tokio::test]
async fn requests_name_the_endpoint_and_ask_for_the_end_of_the_connection() {
    let (sender, mut requests) = mpsc::channel(1);
    let address = server("[::1]:0", move |mut stream| {
        let sender = sender.clone();
        async move {
            sender.send(request(&mut stream).await).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        }
    })
    .await;
    assert_eq!(check(address, Probe::Http).await, Ok(()));
    let request = requests.recv().await.unwrap();
    let mut lines: Vec<&str> = request.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "GET /health HTTP/1.1");
    lines.sort_unstable();
    let host = format!("host: [::1]:{}", address.port());
    let agent = format!("user-agent: svcdns/{} (check)", env!("CARGO_PKG_VERSION"));
    assert_eq!(lines, ["accept: */*", "connection: close", &host, &agent]);
}

#[tokio::test]
async fn servers_can_send_a_whole_response_before_the_connection_ends() {
    let (sender, mut results) = mpsc::channel(1);
    let address = server("127.0.0.1:0", move |mut stream| {
        let sender = sender.clone();
        async move {
            request(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 50000\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            let written = stream.write_all("x".repeat(50_000).as_bytes()).await;
            let read = stream.read(&mut [0]).await;
            sender.send((written.is_ok(), read.ok())).await.unwrap();
        }
    })
    .await;
    assert_eq!(check(address, Probe::Http).await, Ok(()));
    // No reset, which programs report as an error.
    assert_eq!(results.recv().await, Some((true, Some(0))));
}

#[tokio::test]
async fn a_response_without_end_passes_within_the_timeout() {
    let address = server("127.0.0.1:0", |mut stream| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 1000]).await.is_ok() {}
    })
    .await;
    let endless_headers = server("127.0.0.1:0", |mut stream| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while stream.write_all(b"name: value\r\n").await.is_ok() {}
    })
    .await;
    tokio::time::timeout(PATIENCE, async {
        assert_eq!(check(address, Probe::Http).await, Ok(()));
        assert_eq!(check(endless_headers, Probe::Http).await, Err(CheckFailure::NotHttp));
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn servers_that_accept_and_never_respond_fail_http_checks_only() {
    let address = server("127.0.0.1:0", |stream| async move {
        tokio::time::sleep(PATIENCE).await;
        drop(stream);
    })
    .await;
    let began = Instant::now();
    assert_eq!(check(address, Probe::Http).await, Err(CheckFailure::NoResponse));
    assert!(began.elapsed() >= settings().timeout);
    assert_eq!(check(address, Probe::Tcp).await, Ok(()));
}

#[tokio::test]
async fn closed_ports_refuse() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for probe in [Probe::Tcp, Probe::Http] {
        assert_eq!(check(closed, probe).await, Err(CheckFailure::Refused));
    }
}

/// Receives updates until the verdict on a target is this.
async fn expect(updates: &mut mpsc::Receiver<Update>, target: CheckTarget, fails: bool) {
    let verdict = CheckVerdict { target, fails };
    tokio::time::timeout(PATIENCE, async {
        loop {
            let Some(Update::Checks(verdicts)) = updates.recv().await else { panic!("no verdict") };
            if verdicts.contains(&verdict) {
                return;
            }
        }
    })
    .await
    .unwrap_or_else(|_| panic!("no {verdict:?}"));
}

#[tokio::test]
async fn endpoints_are_checked_until_they_are_unwanted() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let address = server("127.0.0.1:0", move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        async {}
    })
    .await;
    let closed: SocketAddr = (Ipv4Addr::LOCALHOST, 1).into();
    let fast = Settings {
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(100),
        ..settings()
    };
    let (requests, received) = mpsc::unbounded_channel();
    let (sender, mut updates) = mpsc::channel(8);
    let monitor = Arc::<CheckMonitor>::default();
    let stop = CancellationToken::new();
    let follower = tokio::spawn(follow(fast, received, Arc::clone(&monitor), sender, stop.clone()));
    let [open, closed] = [address, closed].map(|address| target(address, Probe::Tcp));
    requests.send(vec![CheckChange::Wanted(open), CheckChange::Wanted(closed)]).unwrap();
    expect(&mut updates, closed, true).await;
    let failing = monitor.failure_at(closed.socket_address()).unwrap();
    assert_eq!(failing.failure, CheckFailure::Refused);
    tokio::time::timeout(PATIENCE, async {
        while count.load(Ordering::Relaxed) < 5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(monitor.failure_at(address), None);
    requests.send(vec![CheckChange::Unwanted(open), CheckChange::Unwanted(closed)]).unwrap();
    expect(&mut updates, closed, false).await;
    // A check that is running may still connect, and none after it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = count.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(count.load(Ordering::Relaxed), before);
    assert_eq!(monitor.report().tcp, 0);
    stop.cancel();
    follower.await.unwrap();
}

#[tokio::test]
async fn slow_endpoints_do_not_delay_the_checks_of_others() {
    // One after the other, the checks of the slow endpoints would take 200 s.
    let mut changes = Vec::new();
    for _ in 0..100 {
        let silent = server("127.0.0.1:0", |stream| async move {
            tokio::time::sleep(2 * PATIENCE).await;
            drop(stream);
        });
        changes.push(CheckChange::Wanted(target(silent.await, Probe::Http)));
    }
    let closed = target((Ipv4Addr::LOCALHOST, 1).into(), Probe::Http);
    changes.push(CheckChange::Wanted(closed));
    let (interval, timeout) = (Duration::from_secs(2), Duration::from_secs(2));
    let settings = Settings { interval, timeout, fall: 1, ..settings() };
    let (requests, received) = mpsc::unbounded_channel();
    let (sender, mut updates) = mpsc::channel(8);
    let stop = CancellationToken::new();
    let monitor = Arc::<CheckMonitor>::default();
    let follower = tokio::spawn(follow(settings, received, monitor, sender, stop.clone()));
    requests.send(changes).unwrap();
    expect(&mut updates, closed, true).await;
    stop.cancel();
    follower.await.unwrap();
}
