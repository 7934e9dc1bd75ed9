//! A test upstream of ours that drops, delays, truncates, spoofs and loops: a DNS server over UDP and TCP on one port of a
//! loopback address, inside the test's process.
//!
//! Every name is answered from a table of records ([`Upstream::put`]); what is not in it gets NXDOMAIN or NODATA with the SOA
//! of the root. How it behaves is set while it runs, for all names ([`Upstream::behave`]) or for one ([`Upstream::on`]).
//! Every question it got is kept with its octets, source port and time ([`Upstream::asked`]).

mod behaviour;
mod message;
mod serve;

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

#[allow(unused_imports, reason = "each test program takes what it needs")]
pub(crate) use behaviour::{Behaviour, Damage, Edns, Forged, Reply, Tcp};
#[allow(unused_imports, reason = "each test program takes what it needs")]
pub(crate) use message::{Message, Question, Record, rtype};

use super::eventually;

/// A running upstream. Dropped, it is gone: its port is closed.
pub(crate) struct Upstream {
    /// Where it listens, UDP and TCP.
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

/// What came in.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) question: Question,
    pub(crate) source: SocketAddr,
    pub(crate) transport: Transport,
    pub(crate) at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// What the server's tasks share with the test.
struct State {
    address: SocketAddr,
    records: Mutex<Vec<Record>>,
    behaviours: Mutex<Behaviours>,
    asked: Mutex<Vec<Asked>>,
    /// TCP connections accepted so far.
    connections: Mutex<usize>,
}

#[derive(Default)]
struct Behaviours {
    all: Behaviour,
    /// By name in lower case, without the final dot.
    names: HashMap<String, Behaviour>,
}

impl Upstream {
    /// On a free port of 127.0.0.1, with an empty table.
    pub(crate) fn start() -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// At this address; port 0 for a free one.
    pub(crate) fn start_at(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (udp, tcp) =
            eventually(&format!("UDP and TCP at {address}"), super::seconds(20), || {
                serve::bind(address)
            });
        let address = udp.local_addr().unwrap();
        let state = Arc::new(State {
            address,
            records: Mutex::default(),
            behaviours: Mutex::default(),
            asked: Mutex::default(),
            connections: Mutex::default(),
        });
        {
            let _inside = runtime.enter();
            let udp = Arc::new(tokio::net::UdpSocket::from_std(udp).unwrap());
            let tcp = tokio::net::TcpListener::from_std(tcp).unwrap();
            runtime.spawn(serve::udp(udp, Arc::clone(&state)));
            runtime.spawn(serve::tcp(tcp, Arc::clone(&state)));
        }
        Self { address, state, runtime: Some(runtime) }
    }

    /// As `--upstream` takes it.
    pub(crate) fn flag(&self) -> String {
        self.address.to_string()
    }

    /// Adds records to the table.
    pub(crate) fn put(&self, records: impl IntoIterator<Item = Record>) {
        self.state.records.lock().unwrap().extend(records);
    }

    /// Replaces the whole table.
    pub(crate) fn replace(&self, records: impl IntoIterator<Item = Record>) {
        *self.state.records.lock().unwrap() = records.into_iter().collect();
    }

    /// From now on, for names without a behaviour of their own.
    pub(crate) fn behave(&self, behaviour: Behaviour) {
        self.state.behaviours.lock().unwrap().all = behaviour;
    }

    /// From now on, for this name.
    pub(crate) fn on(&self, name: &str, behaviour: Behaviour) {
        self.state
            .behaviours
            .lock()
            .unwrap()
            .names
            .insert(name.trim_end_matches('.').to_ascii_lowercase(), behaviour);
    }

    /// Everything that was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// What was asked for this name, in whatever case and type.
    pub(crate) fn asked_for(&self, name: &str) -> Vec<Asked> {
        self.asked()
            .into_iter()
            .filter(|asked| asked.question.name.eq_ignore_ascii_case(name.trim_end_matches('.')))
            .collect()
    }

    /// The names that were asked for, in lower case; not those by which svcdns looks for loops.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let names = self.asked().into_iter().map(|asked| asked.question.name.to_lowercase());
        names.filter(|name| !name.starts_with("svcdns-loop-check-")).collect()
    }

    /// Waits until this name was asked for at least so often.
    pub(crate) fn wait_for(&self, name: &str, times: usize, within: Duration) -> Vec<Asked> {
        eventually(&format!("{name} to be asked for {times} times"), within, || {
            let asked = self.asked_for(name);
            (asked.len() >= times).then_some(asked)
        })
    }

    /// Forgets what was asked so far.
    pub(crate) fn forget(&self) {
        self.state.asked.lock().unwrap().clear();
    }

    /// TCP connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        *self.state.connections.lock().unwrap()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // Not by dropping the runtime, which may not be done inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
