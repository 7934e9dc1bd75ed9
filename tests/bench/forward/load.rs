//! Queries to one server: as many as it answers, one after the other, or so many a second.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::prctl;

use super::common::batch::Batch;
use super::queries::{self, Kind};

/// Sockets that ask at once.
const SOCKETS: usize = 8;
/// Queries in flight of each socket.
const IN_FLIGHT: usize = 16;
/// Queries in flight of all.
pub(crate) const ALL_IN_FLIGHT: usize = SOCKETS * IN_FLIGHT;

/// Without any answer for so long, what is in flight is lost.
const LOST: u16 = 500;

/// Fewest answers of a load, however long they take.
const FEWEST: usize = 1000;

/// Longest wait for anything: this machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a load saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) right: usize,
    /// Answers with an error or another address, or none.
    pub(crate) failed: usize,
    pub(crate) elapsed: Duration,
    /// How long each right answer took, where one can say it.
    pub(crate) times: Vec<Duration>,
}

impl Seen {
    fn take(&mut self, right: bool, time: Duration) {
        if right {
            self.right += 1;
            self.times.push(time);
        }
    }
}

/// A socket and the queries that it waits for; the number of each is the end of its id.
struct Asker {
    socket: UdpSocket,
    /// The id and the right address of each that is in flight.
    waiting: [Option<(u16, [u8; 4])>; IN_FLIGHT],
    messages: Vec<Vec<u8>>,
    sequence: u16,
}

impl Asker {
    fn new(server: SocketAddr) -> Self {
        Self {
            socket: connect(server),
            waiting: [None; IN_FLIGHT],
            messages: vec![Vec::new(); IN_FLIGHT],
            sequence: fastrand::u16(..),
        }
    }

    /// Asks again wherever nothing is in flight.
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
        batch.send(&self.socket, &self.messages[..filled], &[None; IN_FLIGHT][..filled]);
    }

    /// Takes the answers that are there; how many.
    fn take(&mut self, seen: &mut Seen, batch: &mut Batch) -> usize {
        let mut taken = 0;
        for (message, _) in batch.receive(&self.socket, false) {
            let id = u16::from_be_bytes([message[0], message[1]]);
            let waiting = &mut self.waiting[usize::from(id) % IN_FLIGHT];
            // Else it is an answer that came after it was given up.
            if let Some((_, address)) = waiting.take_if(|(wanted, _)| *wanted == id) {
                let count = if queries::is_right(message, address) {
                    &mut seen.right
                } else {
                    &mut seen.failed
                };
                *count += 1;
                taken += 1;
            }
        }
        taken
    }
}

/// Asks for so long, always with [`ALL_IN_FLIGHT`] queries in flight.
pub(crate) fn flood(server: SocketAddr, kind: Kind, period: Duration) -> Seen {
    let mut askers: Vec<_> = (0..SOCKETS).map(|_| Asker::new(server)).collect();
    let (mut batch, mut seen, begun) = (Batch::new(IN_FLIGHT), Seen::default(), Instant::now());
    while begun.elapsed() < period || seen.right < FEWEST && begun.elapsed() < PATIENCE {
        let mut taken = 0;
        for asker in &mut askers {
            asker.fill(kind, &mut batch);
            taken += asker.take(&mut seen, &mut batch);
        }
        if taken == 0 {
            let mut ready: Vec<_> = askers
                .iter()
                .map(|asker| PollFd::new(asker.socket.as_fd(), PollFlags::POLLIN))
                .collect();
            if poll(&mut ready, PollTimeout::from(LOST)).unwrap() == 0 {
                seen.failed += ALL_IN_FLIGHT;
                for asker in &mut askers {
                    asker.waiting = [None; IN_FLIGHT];
                }
            }
        }
    }
    seen.elapsed = begun.elapsed();
    seen
}

/// Asks for every hot name, until each has been answered.
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
            assert!(begun.elapsed() < PATIENCE, "{server} does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Asks one query at a time.
pub(crate) fn one_by_one(server: SocketAddr, kind: Kind, queries: usize) -> Seen {
    let (socket, mut message, mut buffer) = (connect(server), Vec::new(), [0; 1500]);
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut seen = Seen::default();
    for id in 0..queries {
        let address = queries::write(kind, u16::try_from(id & 0xFFFF).unwrap(), &mut message);
        let sent = Instant::now();
        socket.send(&message).unwrap();
        // An answer to an earlier one, which was given up, may come first.
        while let Ok(length) = socket.recv(&mut buffer) {
            if buffer[..2] == message[..2] {
                seen.take(queries::is_right(&buffer[..length], address), sent.elapsed());
                break;
            }
        }
    }
    seen.failed = queries - seen.right;
    seen
}

/// Asks so many queries a second, answered or not.
pub(crate) fn at_rate(server: SocketAddr, kind: Kind, rate: u32, queries: usize) -> Seen {
    // The kernel may be late by 50 µs else.
    prctl::set_timerslack(1).unwrap();
    let (socket, mut message, mut buffer) = (connect(server), Vec::new(), [0; 1500]);
    socket.set_nonblocking(true).unwrap();
    let mut sent: Vec<(Instant, [u8; 4])> = Vec::with_capacity(queries);
    let (mut seen, mut answered, begun) = (Seen::default(), 0, Instant::now());
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
            if let Some((asked, address)) =
                sent.get(usize::from(u16::from_be_bytes([buffer[0], buffer[1]])))
            {
                answered += 1;
                seen.take(queries::is_right(&buffer[..length], *address), at - *asked);
            }
        }
    }
    seen.failed = queries - seen.right;
    seen
}

fn connect(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(server).unwrap();
    socket
}
