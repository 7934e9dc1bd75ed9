//! Questions to the server from a process of their own, and whether the answers are right.

use std::env;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::common::batch::Batch;
use super::content::Shape;
use super::support::dns;

/// Questions that are sent by one call; then all their answers are waited for.
const BURST: usize = 64;

/// Without any answer for so long, a burst is lost: the machine may be busy, and nothing is to be lost over loopback.
const LOST: Duration = Duration::from_secs(30);

/// How questions come.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Sockets, each with a burst of its own in flight.
    pub(crate) lanes: usize,
    /// Questions a second; none for as many as are answered.
    pub(crate) rate: Option<u32>,
}

/// What a load saw.
pub(crate) struct Seen {
    pub(crate) right: u64,
    pub(crate) failed: u64,
    pub(crate) elapsed: Duration,
}

/// Runs a load as a child of this process, on the core that this thread is kept on.
pub(crate) fn run(load: Load, server: SocketAddr, shape: Shape, period: Duration) -> Seen {
    let numbers = [
        load.lanes,
        load.rate.unwrap_or(0) as usize,
        shape.services,
        shape.instances,
        period.as_millis() as usize,
    ];
    let mut command = Command::new(env::current_exe().unwrap());
    command.arg("--load").arg(server.to_string()).args(numbers.map(|number| number.to_string()));
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let seen: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [right, failed, nanoseconds] = seen[..] else {
        panic!("the load ended with {} and {text:?}", output.status)
    };
    Seen { right, failed, elapsed: Duration::from_nanos(nanoseconds) }
}

/// The child: asks, and prints what it saw.
pub(crate) fn play(arguments: &[String]) {
    prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    prctl::set_timerslack(1).unwrap();
    let server = arguments[0].parse().unwrap();
    let numbers: Vec<usize> = arguments[1..].iter().map(|number| number.parse().unwrap()).collect();
    let [lanes, rate, services, instances, milliseconds] = numbers[..] else {
        panic!("five numbers: {arguments:?}")
    };
    let shape = Shape { services, instances };
    let period = Duration::from_millis(milliseconds as u64);
    // The time between two bursts of one lane.
    let every = (rate > 0).then(|| Duration::from_secs(1) * (BURST * lanes) as u32 / rate as u32);

    let mut lanes: Vec<_> = (0..lanes).map(|_| Lane::new(server)).collect();
    let (mut batch, mut seen) = (Batch::new(BURST), (0, 0));
    let (begun, mut due) = (Instant::now(), Instant::now());
    while begun.elapsed() < period {
        for lane in &mut lanes {
            lane.collect(shape, &mut batch, &mut seen);
            if let Some(every) = every {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                due += every;
            }
            lane.ask(shape, &mut batch);
        }
    }
    for lane in &mut lanes {
        lane.collect(shape, &mut batch, &mut seen);
    }
    println!("{} {} {}", seen.0, seen.1, begun.elapsed().as_nanos());
}

/// A socket and the burst that it waits for.
struct Lane {
    socket: UdpSocket,
    messages: Vec<Vec<u8>>,
    /// The service that each question is for; the question's number is its id.
    services: [usize; BURST],
    waiting: usize,
}

impl Lane {
    fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(LOST)).unwrap();
        let messages =
            (0..BURST).map(|id| dns::question(id as u16, &Shape::name(0), dns::A)).collect();
        Self { socket, messages, services: [0; BURST], waiting: 0 }
    }

    fn ask(&mut self, shape: Shape, batch: &mut Batch) {
        for (message, service) in self.messages.iter_mut().zip(&mut self.services) {
            *service = fastrand::usize(..shape.services);
            put_number(*service, message);
        }
        batch.send(&self.socket, &self.messages, &[None; BURST]);
        self.waiting = BURST;
    }

    /// Waits for all answers of the burst; those that do not come are wrong.
    fn collect(&mut self, shape: Shape, batch: &mut Batch, (right, failed): &mut (u64, u64)) {
        while self.waiting > 0 {
            let mut came = 0;
            for (answer, _) in batch.receive(&self.socket, true) {
                let question = usize::from(answer[1]);
                let fits = answer[0] == 0
                    && question < BURST
                    && is_right(answer, shape, self.services[question], &self.messages[question]);
                *if fits { &mut *right } else { &mut *failed } += 1;
                came += 1;
            }
            if came == 0 {
                *failed += self.waiting as u64;
                self.waiting = 0;
            }
            self.waiting = self.waiting.saturating_sub(came);
        }
    }
}

/// Writes the eight digits of a service's number into a question for some service.
fn put_number(mut service: usize, question: &mut [u8]) {
    for digit in question[12 + 1 + 8..][..8].iter_mut().rev() {
        *digit = b'0' + (service % 10) as u8;
        service /= 10;
    }
}

/// Whether all instances are there, or all but the one that the storm took, and nobody else's.
fn is_right(answer: &[u8], shape: Shape, service: usize, question: &[u8]) -> bool {
    let Some(records) = answer
        .strip_prefix(&[question[0], question[1], 0x85])
        .and_then(|_| answer.get(question.len()..))
    else {
        return false;
    };
    let count = usize::from(answer[7]);
    // No error.
    answer[3].trailing_zeros() >= 4
        && answer[12..question.len()] == question[12..]
        && (shape.instances - 1..=shape.instances).contains(&count)
        && records.len() == 16 * count
        && records.chunks(16).all(|record| {
            let (head, address) = record.split_at(12);
            head[..6] == [0xC0, 12, 0, 1, 0, 1]
                && shape.service_at(<[u8; 4]>::try_from(address).unwrap().into()) == service
        })
}
