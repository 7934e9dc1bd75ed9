//! A svcdns server in this process, with one answering thread.

use std::net::{Ipv4Addr, SocketAddr};
use std::process;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::unistd::Pid;
use svcdns::answer::Answerer;
use svcdns::daemon::Responder;
use svcdns::server::{self, Limits, Settings};
use svcdns::upstream::Forwarder;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::common::cores;
use super::support::{SOON, dns, eventually};

/// A server that runs until it is dropped.
pub(crate) struct InProcessServer {
    pub(crate) address: SocketAddr,
    /// All threads of the server, the answering one included.
    threads: Vec<u32>,
    stop: CancellationToken,
    serve: Option<JoinHandle<()>>,
}

impl InProcessServer {
    /// Starts a server on loopback, with all its threads pinned to a core.
    pub(crate) fn start(answerer: &Arc<Answerer>, core: usize) -> Self {
        let before = cores::threads(process::id());
        let limits = Limits { udp_workers: 1, ..Limits::default() };
        let settings = Settings {
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            limits,
            ..Settings::default()
        };
        let bound = server::bind(&settings).unwrap();
        let (address, stop) = (bound.addresses()[0], CancellationToken::new());
        // Names outside the zone are refused.
        let forwarder = Forwarder::start(None, &TaskTracker::new(), &stop);
        let responder = Responder::new(Arc::clone(answerer), forwarder.lane());
        let stopped = stop.clone();
        let serve = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime
                .block_on(bound.serve(responder, |_, error| panic!("{error}"), stopped))
                .unwrap();
        });
        eventually("the server to answer", SOON, || dns::ask(address, "nothing.svc", dns::A));
        let mut threads = cores::threads(process::id());
        threads.retain(|thread| !before.contains(thread));
        for thread in &threads {
            cores::pin(Pid::from_raw(thread.cast_signed()), core);
        }
        Self { address, threads, stop, serve: Some(serve) }
    }

    /// Returns the CPU time of the server's threads, and how often they waited.
    pub(crate) fn spent(&self) -> (Duration, u64) {
        self.threads
            .iter()
            .map(|thread| cores::spent(*thread))
            .fold(Default::default(), |(time, waits), (more, again)| (time + more, waits + again))
    }
}

impl Drop for InProcessServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(serve) = self.serve.take() {
            let _ = serve.join();
        }
    }
}
