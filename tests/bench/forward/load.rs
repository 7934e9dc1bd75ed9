//! Loads on one server: at full speed, one query at a time, or at a fixed rate.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::prctl;

use super::common::batch::Batch;
use super::queries::{self, Kind};

/// Sockets of the load at full speed.
const SOCKETS: usize = 8;
/// Queries in flight per socket.
const QUERIES_PER_SOCKET: usize = 16;
/// Queries in flight in total.
pub(crate) const QUERIES_IN_FLIGHT: usize = SOCKETS * QUERIES_PER_SOCKET;

/// After this time without a response, all queries in flight count as lost.
const LOST_AFTER_MS: u16 = 500;

/// A load continues past its period until it has this many right responses.
const MIN_RESPONSES: usize = 1000;

/// Limit for a load that does not get enough responses.
///
/// Generous, because the machine may be busy.
const MAX_LOAD_TIME: Duration = Duration::from_secs(30);

/// Results of a load.
#[derive(Debug, Default)]
pub(crate) struct LoadResult {
    pub(crate) right: usize,
    /// Queries without a response, or with an error or a wrong address.
    pub(crate) failed: usize,
    pub(crate) elapsed: Duration,
    /// Latency of each right response; empty for the load at full speed.
    pub(crate) times: Vec<Duration>,
}

impl LoadResult {
    fn record(&mut self, right: bool, time: Duration) {
        if right {
            self.right += 1;
            self.times.push(time);
        }
    }
}

/// A socket with its queries in flight; the low bits of a query's id are its index.
struct PipelinedSocket {
    socket: UdpSocket,
    /// Id and right address of each query in flight.
    waiting: [Option<(u16, [u8; 4])>; QUERIES_PER_SOCKET],
    messages: Vec<Vec<u8>>,
    sequence: u16,
}

impl PipelinedSocket {
    fn new(server: SocketAddr) -> Self {
        Self {
            socket: connect(server),
            waiting: [None; QUERIES_PER_SOCKET],
            messages: vec![Vec::new(); QUERIES_PER_SOCKET],
            sequence: fastrand::u16(..),
        }
    }

    /// Sends queries until [`QUERIES_PER_SOCKET`] are in flight.
    fn fill(&mut self, kind: Kind, batch: &mut Batch) {
        let mut filled = 0;
        for (number, waiting) in
            self.waiting.iter_mut().enumerate().filter(|(_, waiting)| waiting.is_none())
        {
            self.sequence = self.sequence.wrapping_add(1);
            let id = self.sequence << 4 | u16::try_from(number).unwrap();
            *waiting = Some((id, queries::write(kind, id, &mut self.messages[filled])));
            filled += 1;
        }
        batch.send(&self.socket, &self.messages[..filled], &[None; QUERIES_PER_SOCKET][..filled]);
    }

    /// Receives the responses that have arrived, and returns their number.
    fn receive(&mut self, result: &mut LoadResult, batch: &mut Batch) -> usize {
        let mut received = 0;
        for (message, _) in batch.receive(&self.socket, false) {
            let id = u16::from_be_bytes([message[0], message[1]]);
            let waiting = &mut self.waiting[usize::from(id) % QUERIES_PER_SOCKET];
            // Another id is that of a response that came after its query counted as lost.
            if let Some((_, address)) = waiting.take_if(|(wanted, _)| *wanted == id) {
                let count = if queries::is_right(message, address) {
                    &mut result.right
                } else {
                    &mut result.failed
                };
                *count += 1;
                received += 1;
            }
        }
        received
    }
}

/// Keeps [`QUERIES_IN_FLIGHT`] queries in flight for this time.
pub(crate) fn flood(server: SocketAddr, kind: Kind, period: Duration) -> LoadResult {
    let mut sockets: Vec<_> = (0..SOCKETS).map(|_| PipelinedSocket::new(server)).collect();
    let (mut batch, mut result, begun) =
        (Batch::new(QUERIES_PER_SOCKET), LoadResult::default(), Instant::now());
    while begun.elapsed() < period
        || result.right < MIN_RESPONSES && begun.elapsed() < MAX_LOAD_TIME
    {
        let mut received = 0;
        for socket in &mut sockets {
            socket.fill(kind, &mut batch);
            received += socket.receive(&mut result, &mut batch);
        }
        if received == 0 {
            let mut ready: Vec<_> = sockets
                .iter()
                .map(|socket| PollFd::new(socket.socket.as_fd(), PollFlags::POLLIN))
                .collect();
            if poll(&mut ready, PollTimeout::from(LOST_AFTER_MS)).unwrap() == 0 {
                result.failed += QUERIES_IN_FLIGHT;
                for socket in &mut sockets {
                    socket.waiting = [None; QUERIES_PER_SOCKET];
                }
            }
        }
    }
    result.elapsed = begun.elapsed();
    result
}

/// Queries every hot name until it is answered, so that the cache has all of them.
pub(crate) fn warm(server: SocketAddr) {
    let (socket, mut message, mut buffer) = (connect(server), Vec::new(), [0; 1500]);
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    for number in 0..queries::HOT_NAMES {
        let begun = Instant::now();
        loop {
            let address = queries::write_hot(number, fastrand::u16(..), &mut message);
            let _ = socket.send(&message);
            if socket
                .recv(&mut buffer)
                .is_ok_and(|length| queries::is_right(&buffer[..length], address))
            {
                break;
            }
            assert!(begun.elapsed() < MAX_LOAD_TIME, "{server} does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Sends one query at a time.
pub(crate) fn one_by_one(server: SocketAddr, kind: Kind, queries: usize) -> LoadResult {
    let (socket, mut message, mut buffer) = (connect(server), Vec::new(), [0; 1500]);
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut result = LoadResult::default();
    for id in 0..queries {
        let address = queries::write(kind, u16::try_from(id & 0xFFFF).unwrap(), &mut message);
        let sent = Instant::now();
        socket.send(&message).unwrap();
        // A late response to an earlier query may come first.
        while let Ok(length) = socket.recv(&mut buffer) {
            if buffer[..2] == message[..2] {
                result.record(queries::is_right(&buffer[..length], address), sent.elapsed());
                break;
            }
        }
    }
    result.failed = queries - result.right;
    result
}

/// Sends `rate` queries per second, whether or not they are answered.
pub(crate) fn at_rate(server: SocketAddr, kind: Kind, rate: u32, queries: usize) -> LoadResult {
    // With the default timer slack, the kernel may wake us 50 µs late.
    prctl::set_timerslack(1).unwrap();
    let (socket, mut message, mut buffer) = (connect(server), Vec::new(), [0; 1500]);
    socket.set_nonblocking(true).unwrap();
    let mut sent: Vec<(Instant, [u8; 4])> = Vec::with_capacity(queries);
    let (mut result, mut answered, begun) = (LoadResult::default(), 0, Instant::now());
    while answered < queries {
        let due = begun + Duration::from_secs(1) / rate * u32::try_from(sent.len()).unwrap();
        let all_sent = sent.len() == queries;
        let until = if all_sent { due + Duration::from_secs(5) } else { due };
        let wait = until.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            if all_sent {
                break;
            }
            let address = queries::write(kind, u16::try_from(sent.len()).unwrap(), &mut message);
            sent.push((Instant::now(), address));
            socket.send(&message).unwrap();
            continue;
        }
        ppoll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], Some(wait.into()), None)
            .unwrap();
        while let Ok(length) = socket.recv(&mut buffer) {
            let at = Instant::now();
            if let Some((sent, address)) =
                sent.get(usize::from(u16::from_be_bytes([buffer[0], buffer[1]])))
            {
                answered += 1;
                result.record(queries::is_right(&buffer[..length], *address), at - *sent);
            }
        }
    }
    result.failed = queries - result.right;
    result
}

fn connect(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(server).unwrap();
    socket
}
