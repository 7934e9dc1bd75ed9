//! The tasks that read questions and send what the behaviour makes of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::behaviour::{Behaviour, Damage, Edns, Forged, Reply, Tcp};
use super::message::{Message, Question, Record};
use super::{Asked, State, Transport};

/// Between a forged answer and the right one.
const FORGED_EARLIER: Duration = Duration::from_millis(50);

/// How long a forwarded question is waited for.
const FORWARD: Duration = Duration::from_secs(10);

/// UDP and TCP of one port; none while one of them is taken.
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
        // An error is an earlier answer's: nobody listens there any more.
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else { continue };
        let Some((question, behaviour)) = state.take(&buffer[..length], source, Transport::Udp)
        else {
            continue;
        };
        let (socket, state) = (Arc::clone(&socket), Arc::clone(&state));
        tokio::spawn(async move {
            forge(&socket, &question, &behaviour, source).await;
            if let Some(octets) = answer(&state, &question, &behaviour, Transport::Udp).await {
                let _ = socket.send_to(&octets, source).await;
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

/// Questions of one connection, side by side; answers go out as they are ready (RFC 7766 section 7).
async fn connection(stream: TcpStream, source: SocketAddr, state: Arc<State>) {
    let (mut reader, mut writer) = stream.into_split();
    let (send, mut answers) = mpsc::unbounded_channel::<Option<Vec<u8>>>();
    let writing = async move {
        // None closes.
        while let Some(Some(octets)) = answers.recv().await {
            if writer.write_all(&octets).await.is_err() {
                break;
            }
        }
    };
    let reading = async move {
        while let Ok(length) = reader.read_u16().await {
            let mut octets = vec![0; length.into()];
            if reader.read_exact(&mut octets).await.is_err() {
                break;
            }
            let Some((question, behaviour)) = state.take(&octets, source, Transport::Tcp) else {
                continue;
            };
            let (send, state) = (send.clone(), Arc::clone(&state));
            tokio::spawn(async move {
                if behaviour.tcp == Tcp::Closes {
                    let _ = send.send(None);
                    return;
                }
                let Some(octets) = answer(&state, &question, &behaviour, Transport::Tcp).await
                else {
                    return;
                };
                let mut framed =
                    u16::try_from(octets.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
                framed.extend(octets);
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
        // What is being answered still goes out to a peer that has closed its half.
        () = async { reading.await; sleep(FORWARD).await } => {}
    }
}

impl State {
    /// Keeps what was asked; the question and how to treat it, none when it is to be passed over.
    fn take(
        &self,
        octets: &[u8],
        source: SocketAddr,
        transport: Transport,
    ) -> Option<(Question, Behaviour)> {
        let question = Question::parse(octets)?;
        self.asked.lock().unwrap().push(Asked {
            question: question.clone(),
            source,
            transport,
            at: Instant::now(),
        });
        let mut behaviours = self.behaviours.lock().unwrap();
        let behaviours = &mut *behaviours;
        let behaviour = behaviours
            .names
            .get_mut(&question.name.to_ascii_lowercase())
            .unwrap_or(&mut behaviours.all);
        if behaviour.drop > 0 {
            behaviour.drop -= 1;
            return None;
        }
        Some((question, behaviour.clone()))
    }
}

async fn answer(
    state: &State,
    question: &Question,
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
        let mut octets = Message::default().to_octets(question);
        octets[2] |= 0x02;
        return Some(octets);
    }
    match behaviour.edns {
        Edns::FormErr if question.opt.is_some() => {
            return Some(Message::code(1).to_octets(&question.without_opt()));
        }
        Edns::BadVersion if question.opt.is_some() => {
            return Some(Message::code(16).to_octets(question));
        }
        _ => {}
    }
    let seen =
        if behaviour.edns == Edns::Ignored { question.without_opt() } else { question.clone() };
    let octets = match &behaviour.reply {
        Reply::Never => return None,
        Reply::Table => {
            Message::from_table(&state.records.lock().unwrap(), question).to_octets(&seen)
        }
        Reply::Message(message) => message.to_octets(&seen),
        Reply::Describe => {
            Message::of([Record::txt(&question.name, 60, &question.described())]).to_octets(&seen)
        }
        Reply::Made(make) => make(&seen),
        Reply::Forward(to) => forward(question, *to).await?,
    };
    Some(damage(octets, &seen, behaviour.damage))
}

/// Asks somebody else in a message of our own: EDNS is a matter of two neighbours (RFC 6891 section 6.1.1).
async fn forward(question: &Question, to: SocketAddr) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind(SocketAddr::new(
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse().unwrap() },
        0,
    ));
    let socket = socket.await.ok()?;
    let id = fastrand::u16(..).to_be_bytes();
    let mut message =
        [&id[..], &(question.flags).to_be_bytes(), &[0, 1, 0, 0, 0, 0, 0, 1], question.section()]
            .concat();
    message.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    socket.send_to(&message, to).await.ok()?;
    let mut buffer = vec![0; 65_535];
    let length = timeout(FORWARD, socket.recv(&mut buffer)).await.ok()?.ok()?;
    buffer.truncate(length);
    buffer.get_mut(..2)?.copy_from_slice(&question.id.to_be_bytes());
    Some(buffer)
}

/// Sends what a forger would.
async fn forge(socket: &UdpSocket, question: &Question, behaviour: &Behaviour, to: SocketAddr) {
    let mut octets =
        Message::of([Record::a(&question.name, 3600, "192.0.2.66")]).to_octets(question);
    let here = socket.local_addr().unwrap();
    let from = match behaviour.forged {
        Forged::None => return,
        Forged::Ids(number) => {
            for offset in 1..=number {
                octets[..2].copy_from_slice(&question.id.wrapping_add(offset).to_be_bytes());
                let _ = socket.send_to(&octets, to).await;
            }
            sleep(FORGED_EARLIER).await;
            return;
        }
        Forged::OtherPort | Forged::OnlyOtherPort => SocketAddr::new(here.ip(), 0),
        Forged::OtherAddress => SocketAddr::new(Ipv4Addr::new(127, 0, 0, 99).into(), here.port()),
    };
    let other = UdpSocket::bind(from).await.unwrap();
    let _ = other.send_to(&octets, to).await;
    sleep(FORGED_EARLIER).await;
}

fn damage(mut octets: Vec<u8>, question: &Question, damage: Damage) -> Vec<u8> {
    let section = 12..12 + question.section().len();
    match damage {
        Damage::None => {}
        Damage::Id => octets[1] ^= 1,
        Damage::QuestionType => octets[section.end - 3] ^= 0x40,
        Damage::QuestionName => octets[13] = if octets[13] == b'x' { b'y' } else { b'x' },
        Damage::LowerCase => octets[12..section.end - 4].make_ascii_lowercase(),
        Damage::NoQuestion => {
            octets.drain(section);
            octets[4..6].copy_from_slice(&[0, 0]);
        }
        Damage::NoResponse => octets[2] &= 0x7F,
        Damage::Cut(length) => octets.truncate(length),
        Damage::PointerLoop => {
            let at = u16::try_from(section.end).unwrap() | 0xC000;
            octets.splice(section.end..section.end + 2, at.to_be_bytes());
        }
        Damage::Garbage => octets[2..].iter_mut().for_each(|octet| *octet = fastrand::u8(..)),
        Damage::Counts => octets[7] += 1,
        Damage::DataLength => {
            let opt = Message::default().to_octets(question).len() - section.end;
            // The data of the last record before the OPT is at least four octets long: an address.
            let at = octets.len() - opt - 6;
            octets[at..at + 2].copy_from_slice(&0xFFF0_u16.to_be_bytes());
        }
        Damage::Oversized(length) => {
            let mut message = Message::default();
            while octets.len() < length {
                message.answers.push(Record::txt(&question.name, 60, &"x".repeat(300)));
                octets = message.to_octets(question);
            }
        }
        Damage::Trailing => octets.extend([0xAB; 7]),
    }
    octets
}
