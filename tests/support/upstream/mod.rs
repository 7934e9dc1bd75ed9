//! A test upstream: a DNS server over UDP and TCP on loopback, within the test process.
//!
//! Answers names from a table of records ([`Upstream::put`]), all others with NXDOMAIN or NODATA
//! and the SOA record of the root. It can drop, delay, truncate and forge responses: its behaviour
//! is set at run time, for all names ([`Upstream::behave`]) or for one ([`Upstream::on`]). It keeps
//! all queries with source and time ([`Upstream::queries`]).

mod behaviour;
mod message;
mod serve;

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

#[allow(unused_imports, reason = "each test program takes what it needs")]
pub(crate) use behaviour::{Behaviour, Closing, Damage, Edns, Forged, Reply, Tcp};
#[allow(unused_imports, reason = "each test program takes what it needs")]
pub(crate) use message::{Message, Query, Record, rtype};

use super::eventually;

/// A running upstream, which stops when dropped.
pub(crate) struct Upstream {
    /// UDP and TCP address.
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

/// A query with its source, transport and time.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedQuery {
    pub(crate) query: Query,
    pub(crate) source: SocketAddr,
    pub(crate) transport: Transport,
    pub(crate) at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// State that the server's tasks share with the test.
struct State {
    address: SocketAddr,
    records: Mutex<Vec<Record>>,
    behaviours: Mutex<Behaviours>,
    received: Mutex<Vec<ReceivedQuery>>,
    /// Number of TCP connections accepted so far.
    connections: Mutex<usize>,
    closing: Mutex<Closing>,
}

#[derive(Default)]
struct Behaviours {
    all: Behaviour,
    /// By name in lower case, without the trailing dot.
    names: HashMap<String, Behaviour>,
    /// By domain in the same form, for the domain and all names below it.
    domains: Vec<(String, Behaviour)>,
}

impl Upstream {
    /// Starts on a free port of 127.0.0.1, with an empty table.
    pub(crate) fn start() -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Starts on this address; port 0 means a free port.
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
            received: Mutex::default(),
            connections: Mutex::default(),
            closing: Mutex::default(),
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

    /// Returns the value of `--upstream` for this upstream.
    pub(crate) fn flag(&self) -> String {
        self.address.to_string()
    }

    /// Adds records to the table.
    pub(crate) fn put(&self, records: impl IntoIterator<Item = Record>) {
        self.state.records.lock().unwrap().extend(records);
    }

    /// Replaces the table.
    pub(crate) fn replace(&self, records: impl IntoIterator<Item = Record>) {
        *self.state.records.lock().unwrap() = records.into_iter().collect();
    }

    /// Sets the behaviour for names without a behaviour of their own.
    pub(crate) fn behave(&self, behaviour: Behaviour) {
        self.state.behaviours.lock().unwrap().all = behaviour;
    }

    /// Sets the behaviour for one name.
    pub(crate) fn on(&self, name: &str, behaviour: Behaviour) {
        self.state
            .behaviours
            .lock()
            .unwrap()
            .names
            .insert(name.trim_end_matches('.').to_ascii_lowercase(), behaviour);
    }

    /// Sets the behaviour for a domain, except for names with a behaviour of their own.
    pub(crate) fn below(&self, domain: &str, behaviour: Behaviour) {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        self.state.behaviours.lock().unwrap().domains.push((domain, behaviour));
    }

    /// Sets when connections accepted from now on are closed.
    pub(crate) fn close_connections(&self, closing: Closing) {
        *self.state.closing.lock().unwrap() = closing;
    }

    /// Returns all queries in order of arrival.
    pub(crate) fn queries(&self) -> Vec<ReceivedQuery> {
        self.state.received.lock().unwrap().clone()
    }

    /// Returns all queries for a name, in any letter case and of any type.
    pub(crate) fn queries_for(&self, name: &str) -> Vec<ReceivedQuery> {
        self.queries()
            .into_iter()
            .filter(|received| received.query.name.eq_ignore_ascii_case(name.trim_end_matches('.')))
            .collect()
    }

    /// Returns all queried names in lower case, except those of svcdns's own queries.
    ///
    /// Its own queries are probes and those of the loop guard.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let queries = self.queries().into_iter().map(|received| received.query);
        queries
            .filter(|query| query.qtype != rtype::NS)
            .map(|query| query.name.to_lowercase())
            .filter(|name| !name.starts_with("svcdns-loop-check-"))
            .collect()
    }

    /// Returns the probes: queries for NS records, which the tests' clients never ask for.
    pub(crate) fn probes(&self) -> Vec<ReceivedQuery> {
        self.queries().into_iter().filter(|received| received.query.qtype == rtype::NS).collect()
    }

    /// Waits until a name was queried this many times.
    pub(crate) fn wait_for(
        &self,
        name: &str,
        times: usize,
        within: Duration,
    ) -> Vec<ReceivedQuery> {
        eventually(&format!("{name} to be queried {times} times"), within, || {
            let received = self.queries_for(name);
            (received.len() >= times).then_some(received)
        })
    }

    /// Forgets all queries so far.
    pub(crate) fn forget(&self) {
        self.state.received.lock().unwrap().clear();
    }

    /// Returns the number of TCP connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        *self.state.connections.lock().unwrap()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // The runtime must not be dropped inside another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
