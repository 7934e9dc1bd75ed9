//! Loads on one server: at full speed, or at a fixed rate.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::common::batch::Batch;
use super::content::Content;
use super::interrupt;
use super::queries::{self, Expected, Kind};

/// Queries in flight in total, at full speed.
///
/// More than 200 overflow the default receive buffers that some servers keep.
pub(crate) const QUERIES_IN_FLIGHT: usize = 128;
/// Sockets at full speed.
pub(crate) const SOCKETS: usize = 16;
/// Queries in flight to a slow server.
///
/// Enough to keep it busy, and few enough not to time out.
pub(crate) const QUERIES_IN_FLIGHT_SLOW: usize = 16;
/// Limit for queries in one call at a fixed rate.
///
/// A larger call would look like a stall of the load.
const MAX_QUERIES_AT_ONCE: usize = 16;

/// After this time a query counts as lost.
const QUERY_TIMEOUT: Duration = Duration::from_millis(500);

/// One in this many responses is checked in full.
///
/// The full check costs the load time per record, and nothing for an echo. The other responses only
/// get checks that cost the same for all servers, and must have the length of the last one that was
/// checked in full.
pub(crate) const FULL_CHECK_INTERVAL: usize = 16;

/// A load continues past its period until it has this many right responses.
const MIN_RESPONSES: usize = 100;
/// Limit for a load that does not get enough responses.
const MAX_LOAD_TIME: Duration = Duration::from_secs(10);

/// If the load itself did not run for this time, the machine stalled it.
const STALL_THRESHOLD: Duration = Duration::from_micros(100);

/// A server with the content that it should serve.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) content: Content,
    /// The labels after a name's first label, in wire form.
    pub(crate) zone: &'static [u8],
    /// Whether the server is an echo, whose responses only need the right length.
    pub(crate) echo: bool,
}

/// Results of a load.
#[derive(Debug, Default)]
pub(crate) struct LoadResult {
    pub(crate) right: usize,
    pub(crate) wrong: usize,
    pub(crate) lost: usize,
    /// Bytes of all right responses.
    pub(crate) bytes: usize,
    pub(crate) elapsed: Duration,
    /// Latency of each right response, at a fixed rate.
    pub(crate) times: Vec<Latency>,
    /// Right responses without a latency, because the load was stalled meanwhile.
    pub(crate) stalled: usize,
    /// Delay of each query after it was due, in nanoseconds.
    pub(crate) late: Vec<u32>,
    /// Length of the last response of each kind that was checked in full.
    lengths: [usize; Kind::COUNT],
}

/// Bounds of a response's latency, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    /// From when the query was sent to the last receive call without the response.
    pub(crate) lower: u32,
    /// From when the query was due to the receive call with the response.
    pub(crate) upper: u32,
}

/// A query in flight; the low part of its id is its slot's number.
#[derive(Debug)]
struct Slot {
    message: Vec<u8>,
    expected: Option<Expected>,
    /// Due time of the query.
    at: Instant,
    /// Send time of the query; only maintained at a fixed rate.
    sent: Instant,
    stalled: bool,
}

/// A socket with its queries in flight.
struct PipelinedSocket<'a> {
    target: &'a Target,
    socket: UdpSocket,
    slots: Vec<Slot>,
    /// Slots without a query in flight.
    free: Vec<usize>,
    sequence: u16,
    /// Start of the last receive call that emptied the socket.
    ///
    /// Only maintained at a fixed rate.
    emptied: Instant,
}

impl<'a> PipelinedSocket<'a> {
    fn new(target: &'a Target, slots: usize) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(target.address).unwrap();
        let now = Instant::now();
        let slot = |_| Slot {
            message: Vec::with_capacity(64),
            expected: None,
            at: now,
            sent: now,
            stalled: false,
        };
        let (slots, free) = ((0..slots).map(slot).collect(), (0..slots).collect());
        Self { target, socket, slots, free, sequence: fastrand::u16(..), emptied: now }
    }

    /// Sends up to `limit` queries, as slots are free, and returns their number.
    ///
    /// The first query was due at `due`, each later one `interval` after the previous one.
    fn send(
        &mut self,
        kind: Kind,
        limit: usize,
        mut due: Instant,
        interval: Duration,
        batch: &mut Batch,
        timed: bool,
    ) -> usize {
        let sending = self.free.split_off(self.free.len().saturating_sub(limit));
        let slots = u16::try_from(self.slots.len()).unwrap();
        for number in &sending {
            self.sequence = self.sequence.wrapping_add(1);
            let id = self.sequence.wrapping_mul(slots) | u16::try_from(*number).unwrap();
            let slot = &mut self.slots[*number];
            slot.expected = Some(queries::write(
                kind,
                self.target.content,
                self.target.zone,
                id,
                &mut slot.message,
            ));
            (slot.at, slot.stalled) = (due, false);
            due += interval;
        }
        if !sending.is_empty() {
            let messages: Vec<&[u8]> =
                sending.iter().map(|number| &*self.slots[*number].message).collect();
            batch.send(&self.socket, &messages, &[None; QUERIES_IN_FLIGHT][..messages.len()]);
            if timed {
                let sent = Instant::now();
                for number in &sending {
                    self.slots[*number].sent = sent;
                }
            }
        }
        sending.len()
    }

    /// Receives responses, and returns how many belong to a query in flight.
    fn receive(&mut self, result: &mut LoadResult, batch: &mut Batch, timed: bool) -> usize {
        let (mut matched, mut datagrams) = (0, 0);
        let begun = timed.then(Instant::now);
        let received = batch.receive(&self.socket, false);
        let now = timed.then(Instant::now);
        for (message, _) in received {
            datagrams += 1;
            let [a, b, ..] = *message else { continue };
            let number = usize::from(u16::from_be_bytes([a, b])) % self.slots.len();
            let slot = &mut self.slots[number];
            // Another id is that of a response that came after its query counted as lost.
            let Some(expected) = slot.expected.take_if(|_| slot.message[..2] == [a, b]) else {
                continue;
            };
            self.free.push(number);
            matched += 1;
            if !self.target.check(message, &slot.message, expected, result) {
                result.wrong += 1;
                continue;
            }
            result.right += 1;
            result.bytes += message.len();
            match now {
                Some(_) if slot.stalled => result.stalled += 1,
                Some(now) => result.times.push(Latency {
                    lower: nanoseconds(self.emptied.saturating_duration_since(slot.sent)),
                    upper: nanoseconds(now - slot.at),
                }),
                None => {}
            }
        }
        // A full batch may have left responses in the socket.
        if let Some(begun) = begun
            && datagrams < MAX_QUERIES_AT_ONCE
        {
            self.emptied = begun;
        }
        matched
    }

    /// Counts queries that are older than [`QUERY_TIMEOUT`] as lost.
    fn expire(&mut self, now: Instant, result: &mut LoadResult) {
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if now.saturating_duration_since(slot.at) > QUERY_TIMEOUT
                && slot.expected.take().is_some()
            {
                self.free.push(number);
                result.lost += 1;
            }
        }
    }
}

impl Target {
    /// Checks a response in full.
    fn is_right(&self, message: &[u8], query: &[u8], expected: Expected) -> bool {
        if self.echo {
            return message.len() == queries::response_bytes(expected, self.content);
        }
        queries::is_right(message, query, expected, self.content)
    }

    /// Checks a response.
    ///
    /// One in [`FULL_CHECK_INTERVAL`], and any of another length than the last of these, is checked
    /// in full.
    fn check(
        &self,
        message: &[u8],
        query: &[u8],
        expected: Expected,
        result: &mut LoadResult,
    ) -> bool {
        let length = &mut result.lengths[expected.kind as usize];
        let full = result.right.is_multiple_of(FULL_CHECK_INTERVAL) || message.len() != *length;
        let right = queries::fits(message, query, expected, self.content, self.echo)
            && (!full || self.is_right(message, query, expected));
        if right {
            *length = message.len();
        }
        right
    }

    /// Sends one query and returns the right response, if it comes within 200 ms.
    fn probe(&self, service: usize, kind: Kind) -> Option<Vec<u8>> {
        let (mut query, mut response) = (Vec::new(), vec![0; 1500]);
        let expected = queries::write_for(
            service,
            kind,
            self.content,
            self.zone,
            fastrand::u16(..),
            &mut query,
        );
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket.send(&query).ok()?;
        let length = socket.recv(&mut response).ok()?;
        response.truncate(length);
        self.check(&response, &query, expected, &mut LoadResult::default()).then_some(response)
    }

    /// Returns whether the right response to such a query comes within 200 ms.
    pub(crate) fn answers(&self, service: usize, kind: Kind) -> bool {
        self.probe(service, kind).is_some()
    }

    /// Returns the length of the right response to such a query, if one comes.
    pub(crate) fn response_bytes(&self, kind: Kind) -> Option<usize> {
        (0..5).find_map(|_| self.probe(0, kind)).map(|response| response.len())
    }
}

fn nanoseconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

/// Keeps `in_flight` queries in flight for this time.
pub(crate) fn flood(target: &Target, kind: Kind, in_flight: usize, period: Duration) -> LoadResult {
    let mut sockets: Vec<_> =
        (0..SOCKETS).map(|_| PipelinedSocket::new(target, in_flight / SOCKETS)).collect();
    let (mut batch, mut result, begun) =
        (Batch::new(in_flight / SOCKETS), LoadResult::default(), Instant::now());
    let (mut now, mut swept) = (begun, begun);
    while now - begun < period || result.right < MIN_RESPONSES && now - begun < MAX_LOAD_TIME {
        interrupt::check();
        let mut received = 0;
        for socket in &mut sockets {
            socket.send(kind, QUERIES_IN_FLIGHT, now, Duration::ZERO, &mut batch, false);
            received += socket.receive(&mut result, &mut batch, false);
        }
        if received == 0 {
            let mut ready: Vec<_> = sockets
                .iter()
                .map(|socket| PollFd::new(socket.socket.as_fd(), PollFlags::POLLIN))
                .collect();
            // Only a signal makes this fail; `interrupt::check` then ends the run.
            let _ = poll(&mut ready, PollTimeout::from(50_u16));
        }
        now = Instant::now();
        if now - swept > QUERY_TIMEOUT / 5 {
            for socket in &mut sockets {
                socket.expire(now, &mut result);
            }
            swept = now;
        }
    }
    // The server's CPU time includes the responses that are still in flight.
    finish(&mut sockets, &mut result, &mut batch, begun, false);
    result
}

/// Sends `rate` queries per second for this time, whether or not they are answered.
///
/// A latency counts from when the query was due. If the load itself was stalled, later queries are
/// due later, and queries in flight get no latency.
pub(crate) fn at_rate(target: &Target, kind: Kind, rate: f64, period: Duration) -> LoadResult {
    let (mut socket, mut batch, mut result) = (
        PipelinedSocket::new(target, QUERIES_IN_FLIGHT),
        Batch::new(MAX_QUERIES_AT_ONCE),
        LoadResult::default(),
    );
    let interval = Duration::from_secs_f64(1.0 / rate);
    let expected = (period.as_secs_f64() * rate) as usize + 1;
    result.times.reserve(expected);
    result.late.reserve(expected);
    let begun = Instant::now();
    let (mut due, mut last, mut swept) = (begun, begun, begun);
    while last - begun < period || result.right < MIN_RESPONSES && last - begun < MAX_LOAD_TIME {
        interrupt::check();
        let now = Instant::now();
        if now - last > STALL_THRESHOLD {
            due += now - last;
            socket.slots.iter_mut().for_each(|slot| slot.stalled = true);
        }
        last = now;
        // All queries that are due are sent in one call; otherwise the load would fall behind fast
        // servers. If no slot is free, queries wait, which counts as latency.
        if now >= due {
            let limit = ((now - due).as_nanos() / interval.as_nanos() + 1)
                .min(MAX_QUERIES_AT_ONCE as u128) as usize;
            for _ in 0..socket.send(kind, limit, due, interval, &mut batch, true) {
                result.late.push(nanoseconds(now - due));
                due += interval;
            }
        }
        if socket.free.len() < socket.slots.len() {
            socket.receive(&mut result, &mut batch, true);
        }
        if now - swept > QUERY_TIMEOUT / 5 {
            socket.expire(now, &mut result);
            swept = now;
        }
    }
    finish(std::slice::from_mut(&mut socket), &mut result, &mut batch, begun, true);
    result
}

/// Waits for the remaining responses.
///
/// The load's duration extends to the last of them.
fn finish(
    sockets: &mut [PipelinedSocket],
    result: &mut LoadResult,
    batch: &mut Batch,
    begun: Instant,
    timed: bool,
) {
    let ended = Instant::now();
    result.elapsed = ended - begun;
    for socket in sockets {
        while socket.free.len() < socket.slots.len() && ended.elapsed() < QUERY_TIMEOUT {
            if socket.receive(result, batch, timed) > 0 {
                result.elapsed = begun.elapsed();
            }
        }
        result.lost += socket.slots.len() - socket.free.len();
    }
}
