//! Arbitrary responses of an upstream, through exchange and cache.
//!
//! The upstream is a server of this module, on a loopback address over UDP and TCP.

use std::cell::{OnceCell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use svcdns::name::Zones;
use svcdns::upstream::{Forwarder, Lane, LaneOutcome, Resolution, Servers, Settings};
use svcdns::wire::{HEADER_BYTES, Parsed, Query, Transport, flags, question_end, records, u16_at};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::choices::Choices;
use super::query::TestQuery;

/// The next response: flags (2 bytes), record counts (3 bytes), records.
type NextResponse = Rc<RefCell<Vec<u8>>>;

/// Address of the client.
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A forwarder with its upstream.
struct Setup {
    runtime: Runtime,
    tasks: LocalSet,
    lane: Arc<Lane>,
    next: NextResponse,
    queries: RefCell<u32>,
}

thread_local! {
    /// Never dropped: a runtime cannot be dropped while its thread ends.
    static SETUP: OnceCell<&'static Setup> = const { OnceCell::new() };
}

/// Fuzzes responses; the input is 20 bytes for the query and a [`NextResponse`].
pub fn upstream(input: &[u8]) {
    SETUP.with(|setup| setup.get_or_init(|| Box::leak(Box::new(Setup::new()))).run(input));
}

impl Setup {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (tasks, next) = (LocalSet::new(), NextResponse::default());
        let (udp, tcp) = runtime.block_on(sockets());
        let lane = {
            let _inside = runtime.enter();
            Forwarder::start(
                Some(settings(udp.local_addr().unwrap())),
                &TaskTracker::new(),
                &CancellationToken::new(),
            )
            .lane()
            .load_full()
            .unwrap()
        };
        tasks.spawn_local(serve_datagrams(udp, Rc::clone(&next)));
        tasks.spawn_local(serve_connections(tcp, Rc::clone(&next)));
        Self { runtime, tasks, lane, next, queries: RefCell::default() }
    }

    fn run(&self, input: &[u8]) {
        // A new name for each run, so that the cache has no entry for it.
        let name = format!("{:08x}", self.queries.replace_with(|queries| *queries + 1));
        let name = [b"\x08", name.as_bytes(), b"\x07example\x03com\0"].concat();
        let mut choices = Choices::new(input);
        let TestQuery { packet, transport, .. } =
            TestQuery::new(&mut Choices::new(&[0; 20].map(|_| choices.byte())), &name);
        self.next.replace(choices.rest().to_vec());
        let Parsed::Query(query) = Query::parse(&packet) else { return };
        let resolution = self
            .tasks
            .block_on(&self.runtime, self.lane.resolve(&packet, transport, CLIENT.into()));
        let forwarded = match resolution.expect("a response") {
            Resolution::Response(response) => response,
            // Without RD, only the cache answers.
            Resolution::Outside => return assert_eq!(query.flags & flags::RD, 0),
            // The target is in the served zone or special: any answer is acceptable.
            Resolution::Alias(chain) => {
                let answer = match Query::parse(chain.query()) {
                    Parsed::Query(_) => [&chain.query()[..2], b"\x81\x80", &chain.query()[4..]],
                    other => panic!("{other:?} for {:02x?}", chain.query()),
                };
                let followed = self.lane.finish(&chain, &answer.concat());
                check(&query, transport, &followed);
                return;
            }
        };
        check(&query, transport, &forwarded);
        // From the cache: fresh, and at two later times.
        let _inside = self.runtime.enter();
        for age in [0, 2, 100_000] {
            let mut cached = Vec::new();
            let now = Instant::now() + Duration::from_secs(age);
            let outcome = self.lane.respond(&query, transport, now, &mut cached);
            if matches!(outcome, LaneOutcome::Written | LaneOutcome::Cached) {
                check(&query, transport, &cached);
                assert!(
                    age > 0
                        || cached.len() == forwarded.len()
                            && cached[4..HEADER_BYTES] == forwarded[4..HEADER_BYTES],
                    "{forwarded:02x?}\n{cached:02x?}"
                );
            }
        }
    }
}

/// Checks the rules for every response to a client.
fn check(query: &Query<'_>, transport: Transport, response: &[u8]) {
    assert!(response.len() <= query.limit(transport), "{} bytes", response.len());
    assert_eq!(response[..2], query.id.to_be_bytes());
    assert!(response[2] & 0x80 != 0);
    assert_eq!(response[HEADER_BYTES..][..query.question.len()], *query.question);
    let end = question_end(response).expect("one question");
    assert!(records(response, end).all(|record| record.is_ok()), "{response:02x?}");
    let opts =
        records(response, end).map_while(Result::ok).filter(svcdns::wire::Record::is_opt).count();
    assert_eq!(opts, usize::from(query.edns.is_some()));
    // Record data passes unchanged, even if malformed: decoding may fail, but not panic.
    let _ = Message::from_vec(response);
}

async fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

fn settings(upstream: SocketAddr) -> Settings {
    Settings {
        order: None,
        servers: Servers::Named(vec![upstream.to_string().parse().unwrap()]),
        domains: Vec::new(),
        own: Vec::new(),
        zones: Zones::new(&["svc".to_owned()]).unwrap(),
        ca_file: None,
        random_case: false,
        rebinding: None,
        cache_bytes: 1 << 20,
        stale: Duration::from_secs(3600),
        negative_ttl: 1,
        forward_single_labels: false,
        other_opcodes: false,
    }
}

async fn serve_datagrams(socket: UdpSocket, next: NextResponse) {
    let mut buffer = [0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        let response = respond(&buffer[..length], &next);
        let _ = socket.send_to(&response, client).await;
    }
}

async fn serve_connections(listener: TcpListener, next: NextResponse) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let next = Rc::clone(&next);
        tokio::task::spawn_local(async move {
            while let Ok(length) = stream.read_u16().await {
                let mut request = vec![0; usize::from(length)];
                if stream.read_exact(&mut request).await.is_err() {
                    return;
                }
                let response = respond(&request, &next);
                let framed =
                    [&u16::try_from(response.len()).unwrap().to_be_bytes(), response.as_slice()]
                        .concat();
                if stream.write_all(&framed).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Composes the [`NextResponse`] with the request's id, opcode and question.
///
/// The forwarder would ignore a response to another query, and wait for its timeout.
fn respond(request: &[u8], next: &NextResponse) -> Vec<u8> {
    let Some(end) = question_end(request) else { return Vec::new() };
    let next = next.borrow();
    let byte = |at| next.get(at).copied().unwrap_or_default();
    let mut response = request[..end].to_vec();
    response[2] = 0x80 | byte(0) & 0x07;
    response[3] = byte(1);
    for (at, count) in [(7, byte(2)), (9, byte(3)), (11, byte(4))] {
        response[at - 1] = 0;
        response[at] = count;
    }
    response.extend_from_slice(next.get(5..).unwrap_or_default());
    debug_assert_eq!(u16_at(&response, 4), Some(1));
    response
}
