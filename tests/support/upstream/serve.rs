//! Tasks of the test upstream that receive queries and send responses.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use svcdns::system::find_bound_sockets;
use svcdns::wire;

use super::behaviour::{Behaviour, Damage, Edns, Forged, Reply, Tcp};
use super::message::{Message, Query, Record};
use super::{ReceivedQuery, State, Transport};

/// Time between a forged response and the correct one.
const FORGED_LEAD: Duration = Duration::from_millis(50);

/// Time limit for the response to a forwarded query.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);

/// Binds UDP and TCP to the same port; returns `None` while either is in use.
pub(super) fn bind(address: SocketAddr) -> Option<(std::net::UdpSocket, std::net::TcpListener)> {
    let tcp = std::net::TcpListener::bind(address).ok()?;
    let udp = std::net::UdpSocket::bind(tcp.local_addr().ok()?).ok()?;
    tcp.set_nonblocking(true).ok()?;
    udp.set_nonblocking(true).ok()?;
    Some((udp, tcp))
}

pub(super) async fn udp(socket: Arc<UdpSocket>, state: Arc<State>) {
    let mut buffer = vec![0; 65_535];
    loop {
        // An ICMP error of an earlier response: its client is gone.
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else { continue };
        let Some((query, behaviour)) = state.take(&buffer[..length], source, Transport::Udp) else {
            continue;
        };
        let (socket, state) = (Arc::clone(&socket), Arc::clone(&state));
        tokio::spawn(async move {
            forge(&socket, &query, &behaviour, source).await;
            if let Some(bytes) = answer(&state, &query, &behaviour, Transport::Udp).await {
                let _ = socket.send_to(&bytes, source).await;
            }
        });
    }
}

pub(super) async fn tcp(listener: TcpListener, state: Arc<State>) {
    loop {
        let Ok((stream, source)) = listener.accept().await else { continue };
        *state.connections.lock().unwrap() += 1;
        tokio::spawn(connection(stream, source, Arc::clone(&state)));
    }
}

/// Serves one connection, with responses out of order (RFC 7766 section 7).
async fn connection(stream: TcpStream, source: SocketAddr, state: Arc<State>) {
    let closing = {
        let mut closing = state.closing.lock().unwrap();
        let this = if closing.unanswered > 0 { Some(0) } else { closing.after };
        closing.unanswered = closing.unanswered.saturating_sub(1);
        this
    };
    let (mut reader, mut writer) = stream.into_split();
    let (send, mut answers) = mpsc::unbounded_channel::<Option<Vec<u8>>>();
    let writing = async move {
        let mut written = 0;
        // `None` closes the connection.
        while let Some(Some(bytes)) = answers.recv().await {
            if closing == Some(0) || writer.write_all(&bytes).await.is_err() {
                break;
            }
            written += 1;
            if closing == Some(written) {
                break;
            }
        }
    };
    let reading = async move {
        while let Ok(length) = reader.read_u16().await {
            let mut bytes = vec![0; length.into()];
            if reader.read_exact(&mut bytes).await.is_err() {
                break;
            }
            let Some((query, behaviour)) = state.take(&bytes, source, Transport::Tcp) else {
                continue;
            };
            let (send, state) = (send.clone(), Arc::clone(&state));
            tokio::spawn(async move {
                if behaviour.tcp == Tcp::Closes {
                    let _ = send.send(None);
                    return;
                }
                let Some(bytes) = answer(&state, &query, &behaviour, Transport::Tcp).await else {
                    return;
                };
                let mut framed =
                    u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
                framed.extend(bytes);
                match behaviour.tcp {
                    Tcp::Silent => return,
                    Tcp::Half => framed.truncate(framed.len() / 2),
                    _ => {}
                }
                let _ = send.send(Some(framed));
            });
        }
    };
    tokio::select! {
        () = writing => {}
        // Pending responses are still sent after the client has closed its half.
        () = async { reading.await; sleep(FORWARD_TIMEOUT).await } => {}
    }
}

impl State {
    /// Records the query; returns it with the behaviour, or `None` to drop it.
    fn take(
        &self,
        bytes: &[u8],
        source: SocketAddr,
        transport: Transport,
    ) -> Option<(Query, Behaviour)> {
        let query = Query::parse(bytes)?;
        self.received.lock().unwrap().push(ReceivedQuery {
            query: query.clone(),
            source,
            transport,
            at: Instant::now(),
        });
        let mut behaviours = self.behaviours.lock().unwrap();
        let behaviours = &mut *behaviours;
        let name = query.name.to_ascii_lowercase();
        let is_in = |domain: &str| {
            name.strip_suffix(domain).is_some_and(|front| front.is_empty() || front.ends_with('.'))
        };
        let behaviour = match behaviours.names.get_mut(&name) {
            Some(behaviour) => behaviour,
            None => behaviours
                .domains
                .iter_mut()
                .find(|(domain, _)| is_in(domain))
                .map_or(&mut behaviours.all, |(_, behaviour)| behaviour),
        };
        if behaviour.drop > 0 {
            behaviour.drop -= 1;
            return None;
        }
        if behaviour.deaf_to.is_some_and(|program| is_of(program, source, transport)) {
            return None;
        }
        Some((query, behaviour.clone()))
    }
}

/// Returns whether a program of this name has the socket from which a query came.
fn is_of(program: &str, source: SocketAddr, transport: Transport) -> bool {
    let transport = match transport {
        Transport::Udp => wire::Transport::Udp,
        Transport::Tcp => wire::Transport::Tcp,
    };
    let sockets = find_bound_sockets(transport, source).into_iter();
    sockets.filter_map(|socket| socket.owner).any(|owner| owner.command == program)
}

async fn answer(
    state: &State,
    query: &Query,
    behaviour: &Behaviour,
    transport: Transport,
) -> Option<Vec<u8>> {
    if !behaviour.delay.is_zero() {
        sleep(behaviour.delay).await;
    }
    if behaviour.forged == Forged::OnlyOtherPort {
        return None;
    }
    if behaviour.truncate && transport == Transport::Udp {
        let mut bytes = Message::default().to_bytes(query);
        bytes[2] |= 0x02;
        return Some(bytes);
    }
    match behaviour.edns {
        Edns::FormErr if query.opt.is_some() => {
            return Some(Message::code(1).to_bytes(&query.without_opt()));
        }
        Edns::BadVersion if query.opt.is_some() => {
            return Some(Message::code(16).to_bytes(query));
        }
        Edns::Silent if query.opt.is_some() => return None,
        Edns::Code(code) if query.opt.is_some() => {
            return Some(Message::code(code).to_bytes(&query.without_opt()));
        }
        Edns::CodeWithOpt(code) if query.opt.is_some() => {
            return Some(Message::code(code).to_bytes(query));
        }
        _ => {}
    }
    let seen = if behaviour.edns == Edns::Ignored { query.without_opt() } else { query.clone() };
    let bytes = match &behaviour.reply {
        Reply::Never => return None,
        Reply::Table => Message::from_table(&state.records.lock().unwrap(), query).to_bytes(&seen),
        Reply::Message(message) => message.to_bytes(&seen),
        Reply::Describe => {
            Message::of([Record::txt(&query.name, 60, &query.described())]).to_bytes(&seen)
        }
        Reply::Made(make) => make(&seen),
        Reply::Forward(to) => forward(query, *to).await?,
    };
    let bytes = if seen.opt.is_some() { misplace_opt(bytes, behaviour.edns) } else { bytes };
    Some(damage(bytes, &seen, behaviour.damage))
}

/// Damages a response whose last record is OPT, without options.
fn misplace_opt(mut bytes: Vec<u8>, edns: Edns) -> Vec<u8> {
    let opt = bytes.len() - 11..bytes.len();
    match edns {
        Edns::Misplaced => {
            // OPT belongs to the last section that has any records without it.
            bytes[11] -= 1;
            let section = if bytes[9] == 0 { 7 } else { 9 };
            bytes[section] += 1;
        }
        Edns::Twice => {
            bytes[11] += 1;
            bytes.extend_from_within(opt);
        }
        Edns::Trailing => bytes.extend([0xAB; 7]),
        Edns::Cut => bytes.truncate(opt.start - 2),
        _ => {}
    }
    bytes
}

/// Forwards the query in a new message.
///
/// EDNS is hop by hop (RFC 6891 section 6.1.1).
async fn forward(query: &Query, to: SocketAddr) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind(SocketAddr::new(
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse().unwrap() },
        0,
    ));
    let socket = socket.await.ok()?;
    let id = fastrand::u16(..).to_be_bytes();
    let mut message =
        [&id[..], &(query.flags).to_be_bytes(), &[0, 1, 0, 0, 0, 0, 0, 1], query.section()]
            .concat();
    message.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    socket.send_to(&message, to).await.ok()?;
    let mut buffer = vec![0; 65_535];
    let length = timeout(FORWARD_TIMEOUT, socket.recv(&mut buffer)).await.ok()?.ok()?;
    buffer.truncate(length);
    buffer.get_mut(..2)?.copy_from_slice(&query.id.to_be_bytes());
    Some(buffer)
}

/// Sends the forged responses.
async fn forge(socket: &UdpSocket, query: &Query, behaviour: &Behaviour, to: SocketAddr) {
    let mut bytes = Message::of([Record::a(&query.name, 3600, "192.0.2.66")]).to_bytes(query);
    let here = socket.local_addr().unwrap();
    let from = match behaviour.forged {
        Forged::None => return,
        Forged::Ids(number) => {
            for offset in 1..=number {
                bytes[..2].copy_from_slice(&query.id.wrapping_add(offset).to_be_bytes());
                let _ = socket.send_to(&bytes, to).await;
            }
            sleep(FORGED_LEAD).await;
            return;
        }
        Forged::OtherPort | Forged::OnlyOtherPort => SocketAddr::new(here.ip(), 0),
        Forged::OtherAddress => SocketAddr::new(Ipv4Addr::new(127, 0, 0, 99).into(), here.port()),
    };
    let other = UdpSocket::bind(from).await.unwrap();
    let _ = other.send_to(&bytes, to).await;
    sleep(FORGED_LEAD).await;
}

fn damage(mut bytes: Vec<u8>, query: &Query, damage: Damage) -> Vec<u8> {
    let section = 12..12 + query.section().len();
    match damage {
        Damage::None => {}
        Damage::Id => bytes[1] ^= 1,
        Damage::QuestionType => bytes[section.end - 3] ^= 0x40,
        Damage::QuestionName => bytes[13] = if bytes[13] == b'x' { b'y' } else { b'x' },
        Damage::LowerCase => bytes[12..section.end - 4].make_ascii_lowercase(),
        Damage::NoQuestion => {
            bytes.drain(section);
            bytes[4..6].copy_from_slice(&[0, 0]);
        }
        Damage::NoResponse => bytes[2] &= 0x7F,
        Damage::Cut(length) => bytes.truncate(length),
        Damage::PointerLoop => {
            let at = u16::try_from(section.end).unwrap() | 0xC000;
            bytes.splice(section.end..section.end + 2, at.to_be_bytes());
        }
        Damage::Garbage => bytes[2..].iter_mut().for_each(|byte| *byte = fastrand::u8(..)),
        Damage::Counts => bytes[7] += 1,
        Damage::DataLength => {
            let opt = Message::default().to_bytes(query).len() - section.end;
            // The last record before OPT is an address, of at least four bytes.
            let at = bytes.len() - opt - 6;
            bytes[at..at + 2].copy_from_slice(&0xFFF0_u16.to_be_bytes());
        }
        Damage::Oversized(length) => {
            let mut message = Message::default();
            while bytes.len() < length {
                message.answers.push(Record::txt(&query.name, 60, &"x".repeat(300)));
                bytes = message.to_bytes(query);
            }
        }
        Damage::Trailing => bytes.extend([0xAB; 7]),
    }
    bytes
}
