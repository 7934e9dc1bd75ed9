//! Queries in bursts at a steady rate, whether or not the server answers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::common::batch::Batch;
use super::figures::Spread;
use super::support::dns;

/// Sockets, each with its own port: the kernel spreads them over the sockets of the server.
const SOCKETS: usize = 64;

/// Queries per system call.
const BURST: usize = 16;

/// Queries of one socket that may wait for their responses at the same time.
const IDS: usize = 1 << 14;

/// Room for the responses that arrive at once after a restart, in bytes.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

/// Pause before each look for responses, unless a burst is due.
const PAUSE: Duration = Duration::from_micros(20);

/// Time after which a query is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// A name with its right answer: one address, or none for a name that does not exist.
pub(crate) struct Question {
    pub(crate) name: String,
    pub(crate) address: Option<Ipv4Addr>,
}

impl Question {
    /// Returns whether a response has exactly the right answer.
    fn is_right(&self, query: &[u8], response: &[u8]) -> bool {
        const NXDOMAIN: u8 = 3;
        let (Some(head), Some(question)) = (response.get(..12), response.get(12..query.len()))
        else {
            return false;
        };
        let (code, answers) = (head[3] & 0x0F, [head[6], head[7]]);
        question == &query[12..]
            && match self.address {
                Some(address) => {
                    (code, answers) == (0, [0, 1]) && response.ends_with(&address.octets())
                }
                None => (code, answers) == (NXDOMAIN, [0, 0]),
            }
    }
}

/// What became of the queries of a load.
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) wrong: u64,
    /// The first wrong answer: the name, and the header of the response.
    pub(crate) first_wrong: Option<(String, Vec<u8>)>,
    pub(crate) elapsed: Duration,
    /// Response times of every 64th answered query, and the longest of all.
    pub(crate) times: Spread,
    pub(crate) longest: Duration,
}

impl Outcome {
    pub(crate) fn lost(&self) -> u64 {
        self.sent - self.answered
    }
}

/// A socket with its queries that wait for a response.
struct Lane {
    socket: UdpSocket,
    /// When the query with this id was sent, and which question it asks.
    waiting: Vec<Option<(Instant, usize)>>,
    pending: usize,
    next: usize,
}

/// Asks at a rate, or as fast as responses come, until told to stop; waits for the last responses.
pub(crate) fn run(
    server: SocketAddr,
    questions: &[Question],
    rate: Option<u32>,
    stop: &AtomicBool,
) -> Outcome {
    let queries: Vec<Vec<u8>> =
        questions.iter().map(|question| dns::query(0, &question.name, dns::A)).collect();
    let mut lanes: Vec<Lane> = (0..SOCKETS).map(|_| Lane::new(server)).collect();
    let (mut batch, mut messages) = (Batch::new(BURST), vec![Vec::new(); BURST]);
    let (mut sent, mut answered, mut wrong) = (0, 0, 0);
    let mut first_wrong = None;
    let (mut times, mut longest) = (Vec::new(), Duration::ZERO);
    let every = rate.map(|rate| Duration::from_secs(1) * BURST as u32 / rate);
    let (begun, mut bursts, mut stopped) = (Instant::now(), 0, None);
    loop {
        if stopped.is_none() && stop.load(Ordering::Relaxed) {
            stopped = Some(Instant::now());
        }
        if let Some(at) = stopped
            && (at.elapsed() > PATIENCE || lanes.iter().all(|lane| lane.pending == 0))
        {
            break;
        }
        let lane = &mut lanes[bursts as usize % SOCKETS];
        let is_due = match every {
            Some(every) => begun.elapsed() >= every * bursts,
            None => lane.pending == 0,
        };
        if stopped.is_none() && is_due {
            lane.send(&queries, &mut messages, &mut batch);
            sent += BURST as u64;
            bursts += 1;
            continue;
        }
        thread::sleep(PAUSE);
        let mut wanted: Vec<_> =
            lanes.iter().map(|lane| PollFd::new(lane.socket.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut wanted, PollTimeout::ZERO).unwrap();
        let ready: Vec<bool> = wanted.iter().map(|it| it.any().unwrap_or(false)).collect();
        for (lane, _) in lanes.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            lane.receive(&mut batch, |question, time, response| {
                answered += 1;
                longest = longest.max(time);
                if answered % 64 == 0 {
                    times.push(time);
                }
                let right = questions[question].is_right(&queries[question], response);
                if !right {
                    wrong += 1;
                    let head = response[..response.len().min(12)].to_vec();
                    first_wrong.get_or_insert_with(|| (questions[question].name.clone(), head));
                }
            });
        }
    }
    times.push(longest);
    let (elapsed, times) = (begun.elapsed(), Spread::of(times));
    Outcome { sent, answered, wrong, first_wrong, elapsed, times, longest }
}

impl Lane {
    fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((IpAddr::from(Ipv4Addr::LOCALHOST), 0)).unwrap();
        socket.connect(server).unwrap();
        // Above the limit of the system, for which root is needed; else as much as allowed.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES).unwrap();
        }
        Self { socket, waiting: vec![None; IDS], pending: 0, next: 0 }
    }

    fn send(&mut self, queries: &[Vec<u8>], messages: &mut [Vec<u8>], batch: &mut Batch) {
        let now = Instant::now();
        for message in &mut *messages {
            let (id, question) = (self.next % IDS, self.next % queries.len());
            message.clone_from(&queries[question]);
            message[..2].copy_from_slice(&(id as u16).to_be_bytes());
            // A query that has waited for so long stays counted as sent, and so as lost.
            if self.waiting[id].replace((now, question)).is_none() {
                self.pending += 1;
            }
            self.next += 1;
        }
        batch.send(&self.socket, messages, &[None; BURST]);
    }

    /// Takes the responses that have arrived.
    fn receive(&mut self, batch: &mut Batch, mut take: impl FnMut(usize, Duration, &[u8])) {
        loop {
            let mut received = 0;
            for (response, _) in batch.receive(&self.socket, false) {
                received += 1;
                let id = usize::from(u16::from_be_bytes([response[0], response[1]]));
                // A second response, or one to a query that counts as lost.
                let Some((sent, question)) = self.waiting.get_mut(id).and_then(Option::take) else {
                    continue;
                };
                self.pending -= 1;
                take(question, sent.elapsed(), response);
            }
            if received < BURST {
                return;
            }
        }
    }
}
