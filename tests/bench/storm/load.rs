//! Sends queries from a separate process, and checks the responses.

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

/// Queries per system call.
///
/// A socket waits for all their responses before it sends more.
const QUERIES_PER_BURST: usize = 64;

/// Longest wait for a response of a burst.
///
/// Generous, because the machine may be busy; loopback itself loses nothing.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A pattern of queries.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Sockets, each with one burst in flight.
    pub(crate) lanes: usize,
    /// Queries per second; `None` sends as soon as responses come.
    pub(crate) rate: Option<u32>,
}

/// Results of a load.
pub(crate) struct LoadResult {
    pub(crate) right: u64,
    pub(crate) failed: u64,
    pub(crate) elapsed: Duration,
    /// Response times of the bursts, from when each was due; empty without a rate.
    pub(crate) times: Vec<Duration>,
}

/// Runs a load in a child process, on the core that this thread is pinned to.
pub(crate) fn run(load: Load, server: SocketAddr, shape: Shape, period: Duration) -> LoadResult {
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
    let figures: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [right, failed, nanoseconds, ref times @ ..] = figures[..] else {
        panic!("the load ended with {} and {text:?}", output.status)
    };
    let times = times.iter().copied().map(Duration::from_nanos).collect();
    LoadResult { right, failed, elapsed: Duration::from_nanos(nanoseconds), times }
}

/// Sends the queries and prints the results; runs in the child process.
pub(crate) fn send(arguments: &[String]) {
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
    let every = (rate > 0)
        .then(|| Duration::from_secs(1) * (QUERIES_PER_BURST * lanes) as u32 / rate as u32);

    let mut lanes: Vec<_> = (0..lanes).map(|_| BurstSocket::new(server)).collect();
    let (mut batch, mut counts, mut times) = (Batch::new(QUERIES_PER_BURST), (0, 0), Vec::new());
    let (begun, mut due) = (Instant::now(), Instant::now());
    while begun.elapsed() < period {
        for lane in &mut lanes {
            let is_waiting = lane.waiting > 0;
            lane.receive(shape, &mut batch, &mut counts);
            if let Some(every) = every {
                if is_waiting {
                    times.push(lane.due.elapsed());
                }
                thread::sleep(due.saturating_duration_since(Instant::now()));
                lane.due = due;
                due += every;
            }
            lane.send(shape, &mut batch);
        }
    }
    for lane in &mut lanes {
        lane.receive(shape, &mut batch, &mut counts);
    }
    print!("{} {} {}", counts.0, counts.1, begun.elapsed().as_nanos());
    for time in times {
        print!(" {}", time.as_nanos());
    }
    println!();
}

/// A socket with the burst in flight.
struct BurstSocket {
    socket: UdpSocket,
    messages: Vec<Vec<u8>>,
    /// The service of each query; a query's number is its id.
    services: [usize; QUERIES_PER_BURST],
    waiting: usize,
    /// When the burst was due, if there is a rate.
    due: Instant,
}

impl BurstSocket {
    fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(RESPONSE_TIMEOUT)).unwrap();
        let messages = (0..QUERIES_PER_BURST)
            .map(|id| dns::query(id as u16, &Shape::name(0), dns::A))
            .collect();
        Self { socket, messages, services: [0; QUERIES_PER_BURST], waiting: 0, due: Instant::now() }
    }

    fn send(&mut self, shape: Shape, batch: &mut Batch) {
        for (message, service) in self.messages.iter_mut().zip(&mut self.services) {
            *service = fastrand::usize(..shape.services);
            put_number(*service, message);
        }
        batch.send(&self.socket, &self.messages, &[None; QUERIES_PER_BURST]);
        self.waiting = QUERIES_PER_BURST;
    }

    /// Waits for all responses of the burst; a missing one counts as failed.
    fn receive(&mut self, shape: Shape, batch: &mut Batch, (right, failed): &mut (u64, u64)) {
        while self.waiting > 0 {
            let mut received = 0;
            for (response, _) in batch.receive(&self.socket, true) {
                let query = usize::from(response[1]);
                let is_right = response[0] == 0
                    && query < QUERIES_PER_BURST
                    && is_right(response, shape, self.services[query], &self.messages[query]);
                *if is_right { &mut *right } else { &mut *failed } += 1;
                received += 1;
            }
            if received == 0 {
                *failed += self.waiting as u64;
                self.waiting = 0;
            }
            self.waiting = self.waiting.saturating_sub(received);
        }
    }
}

/// Writes the eight digits of a service's number into a query for some service.
fn put_number(mut service: usize, query: &mut [u8]) {
    for digit in query[12 + 1 + 8..][..8].iter_mut().rev() {
        *digit = b'0' + (service % 10) as u8;
        service /= 10;
    }
}

/// Returns whether the response has all instances of the service, and no others.
///
/// One instance may be missing: the storm may just have removed it.
fn is_right(response: &[u8], shape: Shape, service: usize, query: &[u8]) -> bool {
    let Some(records) = response
        .strip_prefix(&[query[0], query[1], 0x85])
        .and_then(|_| response.get(query.len()..))
    else {
        return false;
    };
    let count = usize::from(response[7]);
    // RCODE 0.
    response[3].trailing_zeros() >= 4
        && response[12..query.len()] == query[12..]
        && (shape.instances - 1..=shape.instances).contains(&count)
        && records.len() == 16 * count
        && records.chunks(16).all(|record| {
            let (head, address) = record.split_at(12);
            head[..6] == [0xC0, 12, 0, 1, 0, 1]
                && shape.service_at(<[u8; 4]>::try_from(address).unwrap().into()) == service
        })
}
