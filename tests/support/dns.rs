//! Questions: by hand over UDP and TCP, and by dig.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::seconds;

pub(crate) const A: u16 = 1;
pub(crate) const TXT: u16 = 16;
pub(crate) const AAAA: u16 = 28;
pub(crate) const SRV: u16 = 33;

/// A question as octets: recursion desired, class IN, no OPT.
pub(crate) fn question(id: u16, name: &str, qtype: u16) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(id.to_be_bytes());
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(qtype.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// The same with an OPT that allows this many octets.
pub(crate) fn question_with_opt(id: u16, name: &str, qtype: u16, size: u16) -> Vec<u8> {
    let mut message = question(id, name, qtype);
    message[11] = 1;
    message.extend([0, 0, 41]);
    message.extend(size.to_be_bytes());
    message.extend([0, 0, 0, 0, 0, 0]);
    message
}

/// Sends one datagram from a socket of its own; the first datagram that comes back, if one does in this time.
pub(crate) fn exchange(server: SocketAddr, message: &[u8], within: Duration) -> Option<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(within)).unwrap();
    socket.send(message).ok()?;
    let mut answer = vec![0; 65_535];
    let length = loop {
        match socket.recv(&mut answer) {
            // A process that was stopped and goes on.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => break received.ok()?,
        }
    };
    answer.truncate(length);
    Some(answer)
}

/// Asks over UDP, as resolvers do: again when there is no answer.
pub(crate) fn ask(server: SocketAddr, name: &str, qtype: u16) -> Option<Vec<u8>> {
    (0..3).find_map(|_| ask_once(server, name, qtype))
}

/// Asks over UDP; one answer within 6 s, with our id. A busy machine may take seconds for it, and a server that waits for a
/// registry longer.
fn ask_once(server: SocketAddr, name: &str, qtype: u16) -> Option<Vec<u8>> {
    let id = fastrand::u16(..);
    exchange(server, &question_with_opt(id, name, qtype, 1232), seconds(6))
        .filter(|answer| answer.get(..2) == Some(&id.to_be_bytes()))
}

/// Sends a message over a TCP connection, with its length in front.
pub(crate) fn send_tcp(stream: &mut TcpStream, message: &[u8]) {
    let mut framed = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    framed.extend(message);
    stream.write_all(&framed).unwrap();
}

/// Reads one message from a TCP connection; none when it was closed.
pub(crate) fn receive_tcp(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// The response code of an answer, as dig names it.
pub(crate) fn code_of(answer: &[u8]) -> &'static str {
    match answer.get(3).map(|flags| flags & 0x0F) {
        Some(0) => "NOERROR",
        Some(1) => "FORMERR",
        Some(2) => "SERVFAIL",
        Some(3) => "NXDOMAIN",
        Some(4) => "NOTIMP",
        Some(5) => "REFUSED",
        Some(_) => "another code",
        None => "no answer",
    }
}

/// Asks over UDP: the response code, or `no answer`.
pub(crate) fn code(server: SocketAddr, name: &str, qtype: u16) -> &'static str {
    ask(server, name, qtype).map_or("no answer", |answer| code_of(&answer))
}

/// Asks for A over UDP: the addresses, sorted, or the response code when it is not NOERROR.
pub(crate) fn addresses(server: SocketAddr, name: &str) -> Result<Vec<IpAddr>, &'static str> {
    addresses_in(ask(server, name, A))
}

fn addresses_in(answer: Option<Vec<u8>>) -> Result<Vec<IpAddr>, &'static str> {
    let Some(answer) = answer else { return Err("no answer") };
    let code = code_of(&answer);
    if code != "NOERROR" {
        return Err(code);
    }
    let message = hickory_proto::op::Message::from_vec(&answer)
        .map_err(|_| "an answer that does not parse")?;
    let mut addresses: Vec<_> =
        message.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
    addresses.sort_unstable();
    Ok(addresses)
}

/// What `dig` prints for a question to this server, with these arguments.
pub(crate) fn dig(server: SocketAddr, arguments: &[&str]) -> String {
    let output = Command::new("dig")
        .args([
            &format!("@{}", server.ip()),
            "-p",
            &server.port().to_string(),
            "+tries=3",
            "+timeout=6",
        ])
        .args(arguments)
        .env("HOME", "/nonexistent")
        .output()
        .expect("dig runs");
    String::from_utf8(output.stdout).unwrap()
}

/// `dig +short`, as sorted lines.
pub(crate) fn dig_short(server: SocketAddr, arguments: &[&str]) -> Vec<String> {
    let text = dig(server, &[&["+short"], arguments].concat());
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Asks for the addresses of one name all the time, and counts what is not an answer with at least one of them.
pub(crate) struct Prober {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Probed>>,
}

/// What a prober saw.
#[derive(Debug, Default)]
pub(crate) struct Probed {
    pub(crate) answers: usize,
    /// When, after the start, and what.
    pub(crate) failures: Vec<(Duration, String)>,
    pub(crate) slowest: Duration,
}

impl Prober {
    /// Asks every 10 ms until it is stopped.
    pub(crate) fn start(server: SocketAddr, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (stop.clone(), name.to_owned());
        let thread = thread::spawn(move || {
            let (mut probed, start) = (Probed::default(), Instant::now());
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                // Once: what a resolver would ask again is a loss, too.
                match addresses_in(ask_once(server, &name, A)) {
                    Ok(addresses) if !addresses.is_empty() => probed.answers += 1,
                    other => probed.failures.push((start.elapsed(), format!("{other:?}"))),
                }
                probed.slowest = probed.slowest.max(asked.elapsed());
                thread::sleep(Duration::from_millis(10));
            }
            probed
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops it; fails the test when one question had no answer.
    pub(crate) fn expect_no_loss(self) -> Probed {
        self.expect_gap_below(Duration::ZERO)
    }

    /// Stops it; fails the test when questions had no answer, unless the first and the last of them lie less than this apart.
    pub(crate) fn expect_gap_below(mut self, longest: Duration) -> Probed {
        self.stop.store(true, Ordering::Relaxed);
        let probed = self.thread.take().unwrap().join().unwrap();
        let gap = probed
            .failures
            .last()
            .zip(probed.failures.first())
            .map_or(Duration::ZERO, |(last, first)| last.0.saturating_sub(first.0));
        let first =
            probed.failures.iter().take(if gap < longest { 0 } else { 5 }).collect::<Vec<_>>();
        assert!(
            first.is_empty(),
            "{} of {} questions failed, first {first:?}",
            probed.failures.len(),
            probed.failures.len() + probed.answers
        );
        assert!(probed.answers > 10, "the prober hardly asked: {probed:?}");
        probed
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
