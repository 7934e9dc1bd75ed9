//! Messages of an upstream: on their way through the exchange, into the cache, and out of it to a client.
//!
//! The upstream is one of ours on a loopback address, over UDP and TCP: it answers whatever it is told to.

use std::cell::{OnceCell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use svcdns::name::Zones;
use svcdns::upstream::{Forwarder, Lane, Servers, Settings};
use svcdns::wire::{HEADER, Parsed, Query, Transport, question_end, records, u16_at};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::choices::Choices;
use super::question::Question;

/// What is said to the next question: flags, counts of records, and all that follows the question.
type Reply = Rc<RefCell<Vec<u8>>>;

struct Here {
    runtime: Runtime,
    tasks: LocalSet,
    lane: Lane,
    reply: Reply,
    asked: RefCell<u32>,
}

thread_local! {
    /// Never dropped: a runtime cannot be while its thread ends.
    static HERE: OnceCell<&'static Here> = const { OnceCell::new() };
}

/// The target: how the client asks, and what the upstream answers: two octets of flags, three counts of one, the records.
pub fn upstream(octets: &[u8]) {
    HERE.with(|here| here.get_or_init(|| Box::leak(Box::new(Here::new()))).try_out(octets));
}

impl Here {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (tasks, reply) = (LocalSet::new(), Reply::default());
        let (udp, tcp) = runtime.block_on(sockets());
        let lane = {
            let _inside = runtime.enter();
            Forwarder::start(
                settings(udp.local_addr().unwrap()),
                &TaskTracker::new(),
                &CancellationToken::new(),
            )
            .lane()
        };
        tasks.spawn_local(answer_datagrams(udp, Rc::clone(&reply)));
        tasks.spawn_local(answer_connections(tcp, Rc::clone(&reply)));
        Self { runtime, tasks, lane, reply, asked: RefCell::default() }
    }

    fn try_out(&self, octets: &[u8]) {
        // A name of its own for each: nothing is in the cache.
        let name = format!("{:08x}", self.asked.replace_with(|asked| *asked + 1));
        let name = [b"\x08", name.as_bytes(), b"\x07example\x03com\0"].concat();
        let mut choices = Choices::new(octets);
        let Question { packet, transport, .. } =
            Question::new(&mut Choices::new(&[0; 20].map(|_| choices.octet())), &name);
        self.reply.replace(choices.rest().to_vec());
        let Parsed::Query(query) = Query::parse(&packet) else { return };
        let said = self
            .tasks
            .block_on(&self.runtime, self.lane.resolve(packet.clone(), transport))
            .expect("no answer");
        check(&query, transport, &said);
        // From the cache, as it came and some time after.
        let _inside = self.runtime.enter();
        for age in [0, 2, 100_000] {
            let mut kept = Vec::new();
            if self.lane.respond(
                &query,
                transport,
                Instant::now() + Duration::from_secs(age),
                &mut kept,
            ) {
                check(&query, transport, &kept);
                assert!(
                    age > 0 || kept.len() == said.len() && kept[4..HEADER] == said[4..HEADER],
                    "{said:02x?}\n{kept:02x?}"
                );
            }
        }
    }
}

/// What holds of every answer to a client.
fn check(query: &Query<'_>, transport: Transport, answer: &[u8]) {
    assert!(answer.len() <= query.limit(transport), "{} octets", answer.len());
    assert_eq!(answer[..2], query.id.to_be_bytes());
    assert!(answer[2] & 0x80 != 0);
    assert_eq!(answer[HEADER..][..query.question.len()], *query.question);
    let end = question_end(answer).expect("one question");
    assert!(records(answer, end).all(|record| record.is_ok()), "{answer:02x?}");
    let opts =
        records(answer, end).map_while(Result::ok).filter(svcdns::wire::Record::is_opt).count();
    assert_eq!(opts, usize::from(query.edns.is_some()));
    // Data of records goes through as it came, for better or worse.
    let _ = Message::from_vec(answer);
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
        servers: Servers::Named(vec![upstream.to_string().parse().unwrap()]),
        domains: Vec::new(),
        own: Vec::new(),
        zones: Zones::new(&["svc".to_owned()]).unwrap(),
        ca_file: None,
        random_case: false,
        rebinding: None,
        cache_octets: 1 << 20,
        stale: Duration::from_secs(3600),
        other_opcodes: false,
    }
}

async fn answer_datagrams(socket: UdpSocket, reply: Reply) {
    let mut room = [0; 4096];
    while let Ok((octets, client)) = socket.recv_from(&mut room).await {
        let answer = answer_to(&room[..octets], &reply);
        let _ = socket.send_to(&answer, client).await;
    }
}

async fn answer_connections(listener: TcpListener, reply: Reply) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let reply = Rc::clone(&reply);
        tokio::task::spawn_local(async move {
            while let Ok(octets) = stream.read_u16().await {
                let mut request = vec![0; usize::from(octets)];
                if stream.read_exact(&mut request).await.is_err() {
                    return;
                }
                let answer = answer_to(&request, &reply);
                let framed =
                    [&u16::try_from(answer.len()).unwrap().to_be_bytes(), answer.as_slice()]
                        .concat();
                if stream.write_all(&framed).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// The request's id, opcode and question, and all else as told: what does not answer the question at all is passed over, and
/// waited out.
fn answer_to(request: &[u8], reply: &Reply) -> Vec<u8> {
    let Some(end) = question_end(request) else { return Vec::new() };
    let reply = reply.borrow();
    let told = |at| reply.get(at).copied().unwrap_or_default();
    let mut answer = request[..end].to_vec();
    answer[2] = 0x80 | told(0) & 0x07;
    answer[3] = told(1);
    for (at, count) in [(7, told(2)), (9, told(3)), (11, told(4))] {
        answer[at - 1] = 0;
        answer[at] = count;
    }
    answer.extend_from_slice(reply.get(5..).unwrap_or_default());
    debug_assert_eq!(u16_at(&answer, 4), Some(1));
    answer
}
