//! Processor time that a server spends on an answer, from `/proc/PID/stat` around a bounded load.

use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use super::ask::{self, Asker};
use super::figures::{Spread, processor_time};
use super::keys::{self, INSTANCES};
use super::startup::Server;
use super::yardstick::Yardstick;

/// Sockets that ask at once; each waits for its answer before it asks again.
pub(crate) const SOCKETS: usize = 4;

/// Cost of an answer, in microseconds of processor time.
pub(crate) struct Cost {
    pub(crate) user: Spread,
    pub(crate) system: Spread,
    pub(crate) total: Spread,
    /// Answers per second.
    pub(crate) rate: Spread,
}

/// Costs of the two servers under the same questions.
pub(crate) struct Costs {
    pub(crate) svcdns: Cost,
    pub(crate) yardstick: Cost,
}

/// Asks both servers in turn.
pub(crate) fn measure(server: &Server, services: usize, questions: usize, rounds: usize) -> Costs {
    let yardstick = Yardstick::start(services);
    let servers = [(server.pid(), server.address), (yardstick.pid(), yardstick.address)];
    let mut measured = [vec![], vec![]];
    for (_, address) in servers {
        load(address, services, questions / 10);
    }
    for _ in 0..rounds {
        for ((pid, address), rounds) in servers.iter().zip(&mut measured) {
            let (before, begun) = (processor_time(*pid), Instant::now());
            load(*address, services, questions);
            let (elapsed, after) = (begun.elapsed(), processor_time(*pid));
            let each = [0, 1].map(|mode: usize| (after[mode] - before[mode]) / questions as f64);
            rounds.push((each, questions as f64 / elapsed.as_secs_f64()));
        }
    }
    let [svcdns, yardstick] = measured.map(|rounds| Cost {
        user: Spread::new(rounds.iter().map(|(each, _)| each[0]).collect()),
        system: Spread::new(rounds.iter().map(|(each, _)| each[1]).collect()),
        total: Spread::new(rounds.iter().map(|(each, _)| each[0] + each[1]).collect()),
        rate: Spread::new(rounds.iter().map(|(_, rate)| *rate).collect()),
    });
    Costs { svcdns, yardstick }
}

/// Asks for the addresses of services at random.
fn load(server: SocketAddr, services: usize, questions: usize) {
    thread::scope(|scope| {
        for _ in 0..SOCKETS {
            scope.spawn(|| {
                let mut asker = Asker::new(server);
                for _ in 0..questions / SOCKETS {
                    let answer = asker.ask(&ask::question(&keys::name(fastrand::usize(..services))));
                    assert_eq!(ask::records(answer), Some(INSTANCES), "the answer of a service");
                }
            });
        }
    });
}
