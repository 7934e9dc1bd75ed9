//! Queries at a steady rate, whether or not the server answers: each lost answer shows.
//!
//! The load asks from many ports, so that the kernel spreads it over all sockets of an address. No
//! query over UDP is sent twice.

use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::dns::{A, addresses_in, query};
use super::seconds;

/// Sockets that ask over UDP, each from its own port.
const SOCKETS: usize = 64;

/// Time after which a query is lost: a busy machine may pause the server for long.
const PATIENCE: Duration = seconds(30);

/// Wrong answers that a report lists.
const MAX_LISTED: usize = 20;

/// What a load asks.
pub(crate) struct Ask {
    /// Queries over UDP, per second.
    pub(crate) udp_rate: u32,
    /// Queries over TCP, per second, each after the last one's answer; 0 for none.
    pub(crate) tcp_rate: u32,
    /// Names to ask for A records in turn, each with its answer.
    ///
    /// An answer is the sorted addresses with spaces between them, or a code such as `NXDOMAIN`.
    pub(crate) names: Vec<(String, String)>,
}

/// Answers that are right, by name.
#[derive(Clone)]
struct RightAnswers(Arc<Mutex<BTreeMap<String, Vec<String>>>>);

impl RightAnswers {
    fn is_right(&self, name: &str, answer: &str) -> bool {
        let right = self.0.lock().unwrap();
        right.get(name).is_some_and(|right| right.iter().any(|right| right == answer))
    }
}

/// What became of the queries of a load.
#[derive(Debug, Default)]
pub(crate) struct LoadReport {
    /// Queries sent.
    pub(crate) sent: usize,
    /// Queries answered, rightly or wrongly.
    pub(crate) answered: usize,
    /// Queries that were never answered.
    pub(crate) lost: usize,
    /// The first wrong answers, with their names.
    pub(crate) wrong: Vec<String>,
    /// Queries over TCP that were sent again, because the server had closed the connection
    /// (RFC 7766 section 6.2.4).
    pub(crate) tcp_sent_again: usize,
    /// Connections that the server reset.
    pub(crate) tcp_resets: usize,
    /// Response times of all answered queries over UDP, sorted.
    response_times: Vec<Duration>,
}

impl LoadReport {
    /// Returns the response time that this share of the answers over UDP had at most.
    pub(crate) fn response_time(&self, share: f64) -> Duration {
        let last = self.response_times.len().saturating_sub(1);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 queries")]
        let at = (last as f64 * share).round() as usize;
        self.response_times.get(at).copied().unwrap_or_default()
    }

    /// Fails the test unless every query was answered, and rightly.
    pub(crate) fn expect_no_loss(&self) {
        let longest = self.response_time(1.0);
        assert!(self.sent > 0 && self.lost == 0 && self.wrong.is_empty(), "{longest:?} {self:#?}");
        assert_eq!(self.answered, self.sent);
    }

    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.lost += other.lost;
        self.wrong.extend(other.wrong);
        self.tcp_sent_again += other.tcp_sent_again;
        self.tcp_resets += other.tcp_resets;
        self.response_times.extend(other.response_times);
    }

    fn note(&mut self, right: &RightAnswers, name: &str, response: &[u8]) {
        self.answered += 1;
        let answer = match addresses_in(Some(response.to_vec())) {
            Ok(found) => found.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" "),
            Err(code) => code.to_owned(),
        };
        if !right.is_right(name, &answer) && self.wrong.len() < MAX_LISTED {
            self.wrong.push(format!("{name}: {answer:?}"));
        }
    }
}

/// A load that runs until it is stopped.
pub(crate) struct SteadyLoad {
    stop: Arc<AtomicBool>,
    right: RightAnswers,
    threads: Vec<JoinHandle<LoadReport>>,
}

impl SteadyLoad {
    /// Starts to ask.
    pub(crate) fn start(server: SocketAddr, ask: Ask) -> Self {
        let Ask { udp_rate, tcp_rate, names } = ask;
        let stop = Arc::<AtomicBool>::default();
        let right = names.iter().map(|(name, answer)| (name.clone(), vec![answer.clone()]));
        let right = RightAnswers(Arc::new(Mutex::new(right.collect())));
        let names: Vec<String> = names.into_iter().map(|(name, _)| name).collect();
        let mut threads = Vec::new();
        if udp_rate > 0 {
            let (names, right, stop) = (names.clone(), right.clone(), Arc::clone(&stop));
            threads.push(thread::spawn(move || {
                UdpLoad::new(server, names, right).run(udp_rate, &stop)
            }));
        }
        if tcp_rate > 0 {
            let (right, stop) = (right.clone(), Arc::clone(&stop));
            threads
                .push(thread::spawn(move || ask_over_tcp(server, &names, &right, tcp_rate, &stop)));
        }
        Self { stop, right, threads }
    }

    /// Accepts another answer for a name from now on, before a change.
    pub(crate) fn allow(&self, name: &str, answer: &str) {
        let mut right = self.right.0.lock().unwrap();
        right.entry(name.to_owned()).or_default().push(answer.to_owned());
    }

    /// Accepts a single answer for a name from now on, after a change.
    pub(crate) fn allow_only(&self, name: &str, answer: &str) {
        self.right.0.lock().unwrap().insert(name.to_owned(), vec![answer.to_owned()]);
    }

    /// Stops to ask, and waits for the answers.
    pub(crate) fn stop(mut self) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = LoadReport::default();
        for thread in self.threads.drain(..) {
            report.add(thread.join().unwrap());
        }
        report.response_times.sort_unstable();
        report
    }
}

impl Drop for SteadyLoad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The part of a load that asks over UDP.
struct UdpLoad {
    sockets: Vec<UdpSocket>,
    /// Queries without an answer yet, by socket and id: when they were sent, and which name.
    pending: HashMap<(usize, u16), (Instant, usize)>,
    names: Vec<String>,
    right: RightAnswers,
    report: LoadReport,
}

impl UdpLoad {
    fn new(server: SocketAddr, names: Vec<String>, right: RightAnswers) -> Self {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = |_| {
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.connect(server).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let sockets = (0..SOCKETS).map(socket).collect();
        Self { sockets, pending: HashMap::new(), names, right, report: LoadReport::default() }
    }

    fn run(mut self, rate: u32, stop: &AtomicBool) -> LoadReport {
        let (start, interval) = (Instant::now(), seconds(1) / rate);
        let mut stopped = None;
        loop {
            if stopped.is_none() && stop.load(Ordering::Relaxed) {
                stopped = Some(Instant::now());
            }
            let due = interval * u32::try_from(self.report.sent).unwrap();
            if stopped.is_none() && start.elapsed() >= due {
                self.send();
                continue;
            }
            if stopped.is_some_and(|at| self.pending.is_empty() || at.elapsed() > PATIENCE) {
                self.report.lost += self.pending.len();
                return self.report;
            }
            self.receive();
        }
    }

    fn send(&mut self) {
        let number = self.report.sent;
        let (socket, name) = (number % SOCKETS, number % self.names.len());
        let id = u16::try_from(number / SOCKETS % 0x1_0000).unwrap();
        let message = query(id, &self.names[name], A);
        self.report.sent += 1;
        // A refusal by ICMP is an error of a later send: that query stays without an answer, too.
        let _ = self.sockets[socket].send(&message);
        let replaced = self.pending.insert((socket, id), (Instant::now(), name));
        self.report.lost += usize::from(replaced.is_some());
    }

    /// Takes the answers that arrive within a millisecond.
    fn receive(&mut self) {
        let mut wanted: Vec<_> =
            self.sockets.iter().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)).collect();
        if poll(&mut wanted, PollTimeout::from(1_u8)).unwrap_or(0) == 0 {
            return;
        }
        let mut response = [0; 4096];
        for (at, socket) in self.sockets.iter().enumerate() {
            while let Ok(length) = socket.recv(&mut response) {
                let response = &response[..length];
                let id = u16::from_be_bytes([response[0], response[1]]);
                // A late answer to a query that counts as lost.
                let Some((sent, name)) = self.pending.remove(&(at, id)) else { continue };
                self.report.response_times.push(sent.elapsed());
                self.report.note(&self.right, &self.names[name], response);
            }
        }
    }
}

/// How a query over TCP ended without an answer.
enum TcpFailure {
    /// The server closed the connection.
    Closed,
    /// The server reset the connection.
    Reset,
    /// Anything else.
    Other,
}

/// Asks on one connection, and opens another once the server has closed it.
fn ask_over_tcp(
    server: SocketAddr,
    names: &[String],
    right: &RightAnswers,
    rate: u32,
    stop: &AtomicBool,
) -> LoadReport {
    let (mut report, mut connection) = (LoadReport::default(), None);
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        let (name, id) = (&names[at % names.len()], fastrand::u16(..));
        at += 1;
        let message = query(id, name, A);
        report.sent += 1;
        for attempt in 0..2 {
            match exchange_tcp(server, &mut connection, &message) {
                Ok(response) => {
                    report.note(right, name, &response);
                    break;
                }
                Err(failure) => {
                    connection = None;
                    report.tcp_resets += usize::from(matches!(failure, TcpFailure::Reset));
                    if attempt == 0 && matches!(failure, TcpFailure::Closed) {
                        report.tcp_sent_again += 1;
                    } else {
                        report.lost += 1;
                        break;
                    }
                }
            }
        }
        thread::sleep(seconds(1) / rate);
    }
    report
}

/// Sends a message on the connection, which is opened if there is none, and reads the answer.
fn exchange_tcp(
    server: SocketAddr,
    connection: &mut Option<TcpStream>,
    message: &[u8],
) -> Result<Vec<u8>, TcpFailure> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe => TcpFailure::Closed,
        ErrorKind::ConnectionReset => TcpFailure::Reset,
        _ => TcpFailure::Other,
    };
    let stream = match connection {
        Some(stream) => stream,
        None => connection.insert(TcpStream::connect(server).map_err(failed)?),
    };
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, message].concat()).map_err(failed)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).map_err(failed)?;
    let mut response = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut response).map_err(failed)?;
    Ok(response)
}
