//! DNS queries: raw messages over UDP and TCP, and dig.

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

/// Builds a query message: RD set, class IN, no OPT record.
pub(crate) fn query(id: u16, name: &str, qtype: u16) -> Vec<u8> {
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

/// Builds a query with an OPT record that allows responses of `size` bytes.
pub(crate) fn query_with_opt(id: u16, name: &str, qtype: u16, size: u16) -> Vec<u8> {
    let mut message = query(id, name, qtype);
    message[11] = 1;
    message.extend([0, 0, 41]);
    message.extend(size.to_be_bytes());
    message.extend([0, 0, 0, 0, 0, 0]);
    message
}

/// Sends one datagram from a new socket and returns the first response.
pub(crate) fn exchange(server: SocketAddr, message: &[u8], within: Duration) -> Option<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(within)).unwrap();
    socket.send(message).ok()?;
    let mut response = vec![0; 65_535];
    let length = loop {
        match socket.recv(&mut response) {
            // This process was stopped and continued.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => break received.ok()?,
        }
    };
    response.truncate(length);
    Some(response)
}

/// Queries over UDP, up to three times as resolvers do.
pub(crate) fn ask(server: SocketAddr, name: &str, qtype: u16) -> Option<Vec<u8>> {
    (0..3).find_map(|_| ask_once(server, name, qtype))
}

/// Queries over UDP once.
///
/// The response must carry the query's id and come within 6 s.
///
/// A busy machine may need seconds, and a server that waits for its registry needs longer.
fn ask_once(server: SocketAddr, name: &str, qtype: u16) -> Option<Vec<u8>> {
    let id = fastrand::u16(..);
    exchange(server, &query_with_opt(id, name, qtype, 1232), seconds(6))
        .filter(|response| response.get(..2) == Some(&id.to_be_bytes()))
}

/// Sends a message over TCP, after its two-byte length (RFC 1035 4.2.2).
pub(crate) fn send_tcp(stream: &mut TcpStream, message: &[u8]) {
    let mut framed = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    framed.extend(message);
    stream.write_all(&framed).unwrap();
}

/// Reads one message from a TCP connection; `None` once it is closed.
pub(crate) fn receive_tcp(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// Returns the response code as dig names it.
pub(crate) fn code_of(response: &[u8]) -> &'static str {
    match response.get(3).map(|flags| flags & 0x0F) {
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

/// Queries over UDP and returns the response code, or `no answer`.
pub(crate) fn code(server: SocketAddr, name: &str, qtype: u16) -> &'static str {
    ask(server, name, qtype).map_or("no answer", |response| code_of(&response))
}

/// Queries A over UDP and returns the sorted addresses.
///
/// # Errors
/// Returns the response code if it is not NOERROR, or `no answer`.
pub(crate) fn addresses(server: SocketAddr, name: &str) -> Result<Vec<IpAddr>, &'static str> {
    addresses_in(ask(server, name, A))
}

/// Returns the sorted addresses of a response.
///
/// # Errors
/// As [`addresses`].
pub(crate) fn addresses_in(response: Option<Vec<u8>>) -> Result<Vec<IpAddr>, &'static str> {
    let Some(response) = response else { return Err("no answer") };
    let code = code_of(&response);
    if code != "NOERROR" {
        return Err(code);
    }
    let message = hickory_proto::op::Message::from_vec(&response)
        .map_err(|_| "a response that does not parse")?;
    let mut addresses: Vec<_> =
        message.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
    addresses.sort_unstable();
    Ok(addresses)
}

/// Runs `dig` against a server and returns its output.
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

/// Runs `dig +short` and returns its lines, sorted.
pub(crate) fn dig_short(server: SocketAddr, arguments: &[&str]) -> Vec<String> {
    let text = dig(server, &[&["+short"], arguments].concat());
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Queries the addresses of one name continuously, and records every failure.
///
/// A response without an address is a failure.
pub(crate) struct Prober {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Probed>>,
}

/// Results of a [`Prober`].
#[derive(Debug, Default)]
pub(crate) struct Probed {
    pub(crate) answers: usize,
    /// The time since the start, and the result.
    pub(crate) failures: Vec<(Duration, String)>,
    pub(crate) slowest: Duration,
}

impl Prober {
    /// Starts a thread that queries every 10 ms.
    pub(crate) fn start(server: SocketAddr, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (stop.clone(), name.to_owned());
        let thread = thread::spawn(move || {
            let (mut probed, start) = (Probed::default(), Instant::now());
            while !stopped.load(Ordering::Relaxed) {
                let sent = Instant::now();
                // No retries: a query that a resolver would have to repeat is a failure.
                match addresses_in(ask_once(server, &name, A)) {
                    Ok(addresses) if !addresses.is_empty() => probed.answers += 1,
                    other => probed.failures.push((start.elapsed(), format!("{other:?}"))),
                }
                probed.slowest = probed.slowest.max(sent.elapsed());
                thread::sleep(Duration::from_millis(10));
            }
            probed
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops the prober; fails the test if any query failed.
    pub(crate) fn expect_no_loss(self) -> Probed {
        self.expect_gap_below(Duration::ZERO)
    }

    /// Stops the prober; limits the time from the first failure to the last.
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
            "{} of {} queries failed, first {first:?}",
            probed.failures.len(),
            probed.failures.len() + probed.answers
        );
        assert!(probed.answers > 10, "the prober sent hardly any queries: {probed:?}");
        probed
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
