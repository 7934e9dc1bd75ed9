//! Queries to one server: as many as it answers, or so many a second.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::common::batch::Batch;
use super::content::Content;
use super::ending;
use super::queries::{self, Asked, Kind};

/// Queries in flight of all sockets: above 200 the receive buffers of servers that leave them as they come overflow.
pub(crate) const IN_FLIGHT: usize = 128;
/// Sockets that ask at once where as much is asked as is answered.
pub(crate) const SOCKETS: usize = 16;
/// In flight to a server that is slow: it is busy all the same, and no answer takes so long that it counts as lost.
pub(crate) const IN_FLIGHT_SLOW: usize = 16;
/// Where a rate is set, one socket asks at most so many at once: what is late must not look like [`STALL`].
const AT_ONCE: usize = 16;

/// A query without an answer for so long is lost.
const LOST: Duration = Duration::from_millis(500);

/// Of so many answers one is checked in full, which costs the load more the more records there are, and an echo's none; the others
/// are held to what costs the same for all, and to that one's length.
pub(crate) const IN_FULL: usize = 16;

/// Fewest right answers of a load, and longest wait for them: the machine may be busy.
const FEWEST: usize = 100;
const PATIENCE: Duration = Duration::from_secs(10);

/// When the load itself finds that it stood still for so long, it was the machine's doing.
const STALL: Duration = Duration::from_micros(100);

/// Whom to ask, about what, and how to know a right answer.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) content: Content,
    /// What follows a name's first label, on the wire.
    pub(crate) zone: &'static [u8],
    /// An answer of the right size is right: it is an echo's.
    pub(crate) echo: bool,
}

/// What a load saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) right: usize,
    pub(crate) wrong: usize,
    pub(crate) lost: usize,
    /// Octets of all right answers.
    pub(crate) bytes: usize,
    pub(crate) elapsed: Duration,
    /// How long each answer took, where a rate was set.
    pub(crate) times: Vec<Took>,
    /// Answers left out of these: they were under way while the load stood still.
    pub(crate) stalled: usize,
    /// How long after it was due each query was asked, in nanoseconds.
    pub(crate) late: Vec<u32>,
    /// Octets of the last answer of each kind that was checked in full.
    lengths: [usize; Kind::COUNT],
}

/// Bounds of the time that an answer took, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    /// From when the query was sent to the last look at the socket that did not find the answer.
    pub(crate) least: u32,
    /// From when the query was due to the look that found the answer.
    pub(crate) most: u32,
}

/// A query's place: its number is the end of its id.
#[derive(Debug)]
struct Slot {
    message: Vec<u8>,
    asked: Option<Asked>,
    /// When the query was due.
    at: Instant,
    /// When the query was sent, where times count.
    sent: Instant,
    stalled: bool,
}

/// A socket and the queries that it waits for.
struct Asker<'a> {
    target: &'a Target,
    socket: UdpSocket,
    slots: Vec<Slot>,
    /// Slots in which nothing is in flight.
    free: Vec<usize>,
    sequence: u16,
    /// When a look at the socket that left nothing there began, where times count.
    emptied: Instant,
}

impl<'a> Asker<'a> {
    fn new(target: &'a Target, slots: usize) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(target.address).unwrap();
        let now = Instant::now();
        let slot = |_| Slot {
            message: Vec::with_capacity(64),
            asked: None,
            at: now,
            sent: now,
            stalled: false,
        };
        let (slots, free) = ((0..slots).map(slot).collect(), (0..slots).collect());
        Self { target, socket, slots, free, sequence: fastrand::u16(..), emptied: now }
    }

    /// Asks in at most so many free slots, the first query due then and each one so long after that before; how many.
    fn ask(
        &mut self,
        kind: Kind,
        most: usize,
        mut due: Instant,
        interval: Duration,
        batch: &mut Batch,
        timed: bool,
    ) -> usize {
        let asking = self.free.split_off(self.free.len().saturating_sub(most));
        let slots = u16::try_from(self.slots.len()).unwrap();
        for number in &asking {
            self.sequence = self.sequence.wrapping_add(1);
            let id = self.sequence.wrapping_mul(slots) | u16::try_from(*number).unwrap();
            let slot = &mut self.slots[*number];
            slot.asked = Some(queries::write(
                kind,
                self.target.content,
                self.target.zone,
                id,
                &mut slot.message,
            ));
            (slot.at, slot.stalled) = (due, false);
            due += interval;
        }
        if !asking.is_empty() {
            let messages: Vec<&[u8]> =
                asking.iter().map(|number| &*self.slots[*number].message).collect();
            batch.send(&self.socket, &messages, &[None; IN_FLIGHT][..messages.len()]);
            if timed {
                let sent = Instant::now();
                for number in &asking {
                    self.slots[*number].sent = sent;
                }
            }
        }
        asking.len()
    }

    /// Takes the answers that are there; how many.
    fn take(&mut self, seen: &mut Seen, batch: &mut Batch, timed: bool) -> usize {
        let (mut taken, mut came) = (0, 0);
        let begun = timed.then(Instant::now);
        let received = batch.receive(&self.socket, false);
        let now = timed.then(Instant::now);
        for (message, _) in received {
            came += 1;
            let [a, b, ..] = *message else { continue };
            let number = usize::from(u16::from_be_bytes([a, b])) % self.slots.len();
            let slot = &mut self.slots[number];
            // Else it is an answer that came after it was given up.
            let Some(asked) = slot.asked.take_if(|_| slot.message[..2] == [a, b]) else { continue };
            self.free.push(number);
            taken += 1;
            if !self.target.seems_right(message, &slot.message, asked, seen) {
                seen.wrong += 1;
                continue;
            }
            seen.right += 1;
            seen.bytes += message.len();
            match now {
                Some(_) if slot.stalled => seen.stalled += 1,
                Some(now) => seen.times.push(Took {
                    least: nanoseconds(self.emptied.saturating_duration_since(slot.sent)),
                    most: nanoseconds(now - slot.at),
                }),
                None => {}
            }
        }
        // A full batch may have left answers in the socket.
        if let Some(begun) = begun
            && came < AT_ONCE
        {
            self.emptied = begun;
        }
        taken
    }

    /// Gives up what was asked too long ago.
    fn give_up(&mut self, now: Instant, seen: &mut Seen) {
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if now.saturating_duration_since(slot.at) > LOST && slot.asked.take().is_some() {
                self.free.push(number);
                seen.lost += 1;
            }
        }
    }
}

impl Target {
    /// Whether an answer that fits is right: checked in full.
    fn is_right(&self, message: &[u8], query: &[u8], asked: Asked) -> bool {
        if self.echo {
            return message.len() == queries::size(asked, self.content);
        }
        queries::is_right(message, query, asked, self.content)
    }

    /// The same for one in [`IN_FULL`] and any of another length than the last such; the others only have to fit.
    fn seems_right(&self, message: &[u8], query: &[u8], asked: Asked, seen: &mut Seen) -> bool {
        let length = &mut seen.lengths[asked.kind as usize];
        let full = seen.right.is_multiple_of(IN_FULL) || message.len() != *length;
        let right = queries::fits(message, query, asked, self.content, self.echo)
            && (!full || self.is_right(message, query, asked));
        if right {
            *length = message.len();
        }
        right
    }

    /// One query, and its answer if one comes soon.
    fn probe(&self, service: usize, kind: Kind) -> Option<Vec<u8>> {
        let (mut query, mut answer) = (Vec::new(), vec![0; 1500]);
        let asked = queries::write_about(
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
        let length = socket.recv(&mut answer).ok()?;
        answer.truncate(length);
        self.seems_right(&answer, &query, asked, &mut Seen::default()).then_some(answer)
    }

    /// Whether a right answer to such a query comes soon.
    pub(crate) fn answers(&self, service: usize, kind: Kind) -> bool {
        self.probe(service, kind).is_some()
    }

    /// Octets of the answer to such a query.
    pub(crate) fn size_of_answer(&self, kind: Kind) -> Option<usize> {
        (0..5).find_map(|_| self.probe(0, kind)).map(|answer| answer.len())
    }
}

fn nanoseconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

/// Asks for so long, always with so many queries in flight.
pub(crate) fn flood(target: &Target, kind: Kind, in_flight: usize, period: Duration) -> Seen {
    let mut askers: Vec<_> =
        (0..SOCKETS).map(|_| Asker::new(target, in_flight / SOCKETS)).collect();
    let (mut batch, mut seen, begun) =
        (Batch::new(in_flight / SOCKETS), Seen::default(), Instant::now());
    let (mut now, mut swept) = (begun, begun);
    while now - begun < period || seen.right < FEWEST && now - begun < PATIENCE {
        ending::go_on();
        let mut taken = 0;
        for asker in &mut askers {
            asker.ask(kind, IN_FLIGHT, now, Duration::ZERO, &mut batch, false);
            taken += asker.take(&mut seen, &mut batch, false);
        }
        if taken == 0 {
            let mut ready: Vec<_> = askers
                .iter()
                .map(|asker| PollFd::new(asker.socket.as_fd(), PollFlags::POLLIN))
                .collect();
            // Only a signal ends it early, which shows above.
            let _ = poll(&mut ready, PollTimeout::from(50_u16));
        }
        now = Instant::now();
        if now - swept > LOST / 5 {
            for asker in &mut askers {
                asker.give_up(now, &mut seen);
            }
            swept = now;
        }
    }
    // What is still under way is answered, too, and costs the server its time.
    finish(&mut askers, &mut seen, &mut batch, begun, false);
    seen
}

/// Asks so many queries a second for so long, each when it is due, answered or not.
///
/// Its answer's time counts from when the query was due, unless the load itself stood still: then all that is due moves, and
/// what is under way is not counted.
pub(crate) fn at_rate(target: &Target, kind: Kind, rate: f64, period: Duration) -> Seen {
    let (mut asker, mut batch, mut seen) =
        (Asker::new(target, IN_FLIGHT), Batch::new(AT_ONCE), Seen::default());
    let interval = Duration::from_secs_f64(1.0 / rate);
    let expected = (period.as_secs_f64() * rate) as usize + 1;
    seen.times.reserve(expected);
    seen.late.reserve(expected);
    let begun = Instant::now();
    let (mut due, mut last, mut swept) = (begun, begun, begun);
    while last - begun < period || seen.right < FEWEST && last - begun < PATIENCE {
        ending::go_on();
        let now = Instant::now();
        if now - last > STALL {
            due += now - last;
            asker.slots.iter_mut().for_each(|slot| slot.stalled = true);
        }
        last = now;
        // All that are due go at once, else the load falls behind before fast servers do. Where all slots are taken queries
        // wait, and their time counts.
        if now >= due {
            let most =
                ((now - due).as_nanos() / interval.as_nanos() + 1).min(AT_ONCE as u128) as usize;
            for _ in 0..asker.ask(kind, most, due, interval, &mut batch, true) {
                seen.late.push(nanoseconds(now - due));
                due += interval;
            }
        }
        if asker.free.len() < asker.slots.len() {
            asker.take(&mut seen, &mut batch, true);
        }
        if now - swept > LOST / 5 {
            asker.give_up(now, &mut seen);
            swept = now;
        }
    }
    finish(std::slice::from_mut(&mut asker), &mut seen, &mut batch, begun, true);
    seen
}

/// Waits for the answers that are still to come; the load has lasted until the last of them.
fn finish(askers: &mut [Asker], seen: &mut Seen, batch: &mut Batch, begun: Instant, timed: bool) {
    let ended = Instant::now();
    seen.elapsed = ended - begun;
    for asker in askers {
        while asker.free.len() < asker.slots.len() && ended.elapsed() < LOST {
            if asker.take(seen, batch, timed) > 0 {
                seen.elapsed = begun.elapsed();
            }
        }
        seen.lost += asker.slots.len() - asker.free.len();
    }
}
