//! The addresses that are listened on for plain DNS, each with its threads for UDP and its loop for TCP; those of a wildcard
//! as they come and go.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::bind_error::LISTEN;
use super::interfaces::{Changes, addresses_for};
use super::serving::Serving;
use super::sockets::{PlainEndpoint, workers_beside};
use super::udp::{Own, UdpShared};
use super::workers::Thread;
use super::{BindError, Respond, StreamKind, tcp};
use crate::wire::Transport;

/// How long changes are gathered before the addresses are read: they often come several at a time.
const GATHER: Duration = Duration::from_millis(50);
/// How soon an address is tried again that could not be listened on, such as an IPv6 address still being checked.
const RETRY: Duration = Duration::from_secs(1);
/// How often the addresses are read without having heard of a change, should that message be lost.
const REREAD: Duration = Duration::from_secs(30);

/// Hears of an address that the machine has and that cannot be listened on.
pub(super) type Report = Box<dyn Fn(SocketAddr, BindError) + Send>;

/// All that is listened on.
pub(super) struct Listening<R> {
    serving: Arc<Serving<R>>,
    shared: UdpShared,
    report: Report,
    open: HashMap<SocketAddr, Open>,
    /// Threads started so far.
    started: usize,
}

/// One address that is listened on.
#[derive(Debug)]
struct Open {
    /// Whether it goes with its address.
    followed: bool,
    /// Cancelled: nothing more is accepted or read there.
    stop: CancellationToken,
    threads: Vec<Thread>,
    tcp: JoinHandle<()>,
}

impl<R: Respond> Listening<R> {
    /// Nothing yet.
    pub(super) fn new(serving: Arc<Serving<R>>, shared: UdpShared, report: Report) -> Self {
        Self { serving, shared, report, open: HashMap::new(), started: 0 }
    }

    /// Answers on these sockets from now on.
    ///
    /// # Errors
    /// When the runtime does not take the one for TCP, or there is no thread for one for UDP; none of them is served then.
    pub(super) async fn serve(&mut self, endpoint: PlainEndpoint) -> Result<(), BindError> {
        let PlainEndpoint { address, followed, udp, tcp } = endpoint;
        let stop = self.serving.stop.child_token();
        let unless_done = stop.clone().drop_guard();
        let serving = Arc::new(self.serving.until(stop.clone()));
        let listener = tcp::Listener::new(tcp, address, Arc::clone(&serving), None);
        let listener = Arc::new(listener.map_err(|source| BindError::System { address, transport: Transport::Tcp, source })?);
        let mut threads = Vec::with_capacity(udp.len());
        for socket in udp {
            let responder = self.serving.responder.fork();
            threads.push(Thread::start(self.started, address, socket, responder, self.shared.clone(), stop.clone()).await?);
            self.started += 1;
        }
        let tcp = tokio::spawn(serving.keep(address, StreamKind::Tcp, move || Arc::clone(&listener).run()));
        self.open.insert(address, Open { followed, stop: unless_done.disarm(), threads, tcp });
        self.tell_own();
        Ok(())
    }

    /// Listens on each address that the machine has for one of `wildcards`, as they come and go, until the server stops.
    pub(super) async fn follow(&mut self, wildcards: &[SocketAddr]) {
        let stop = self.serving.stop.clone();
        if wildcards.is_empty() {
            return stop.cancelled().await;
        }
        let mut changes = Changes::watch()
            .inspect_err(|error| warn!(%error, seconds = REREAD.as_secs(), "not told when addresses change; reading them now and then"))
            .ok();
        // How often each was tried in vain.
        let mut in_vain = HashMap::new();
        while !stop.is_cancelled() {
            self.update(wildcards, &mut in_vain).await;
            let pause = if in_vain.is_empty() { REREAD } else { RETRY };
            let changed = async {
                match &changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            };
            let changed = tokio::select! {
                () = stop.cancelled() => return,
                changed = changed => changed,
                () = sleep(pause) => continue,
            };
            if let Err(error) = changed {
                warn!(%error, seconds = REREAD.as_secs(), "no longer told when addresses change; reading them now and then");
                changes = None;
            }
            sleep(GATHER).await;
        }
    }

    /// Listens on what has come, and no longer on what has gone.
    async fn update(&mut self, wildcards: &[SocketAddr], in_vain: &mut HashMap<SocketAddr, u32>) {
        let mut present = Vec::new();
        for wildcard in wildcards {
            match addresses_for(*wildcard) {
                Ok(found) => present.extend(found),
                Err(error) => return warn!(%error, "cannot read the addresses of this machine at the moment; trying again"),
            }
        }
        let gone = |address: &SocketAddr, open: &mut Open| open.followed && !present.contains(address);
        let gone: Vec<(SocketAddr, Open)> = self.open.extract_if(gone).collect();
        if !gone.is_empty() {
            self.tell_own();
        }
        for (_, open) in &gone {
            open.stop.cancel();
        }
        for (address, Open { threads, tcp, .. }) in gone {
            let _ = tcp.await;
            for mut thread in threads {
                thread.ended().await;
            }
            info!(%address, "no longer answering: the address is gone");
        }
        in_vain.retain(|address, _| present.contains(address));
        for address in present {
            if self.open.contains_key(&address) {
                continue;
            }
            if self.listen_on(address, in_vain.get(&address).copied().unwrap_or_default()).await {
                in_vain.remove(&address);
                info!(%address, "answering over UDP and TCP: the address is new");
            } else {
                *in_vain.entry(address).or_default() += 1;
            }
        }
    }

    /// Begins to listen on an address that was tried `before` so many times; says whether that works.
    async fn listen_on(&mut self, address: SocketAddr, before: u32) -> bool {
        let error = match PlainEndpoint::open(address, workers_beside(self.threads(), self.serving.limits.udp_workers)) {
            Ok(endpoint) => match self.serve(PlainEndpoint { followed: true, ..endpoint }).await {
                Ok(()) => return true,
                Err(error) => error,
            },
            // Still being checked for a second owner in the network (RFC 4862 section 5.4), or gone again.
            Err((_, error)) if error.kind() == ErrorKind::AddrNotAvailable => return false,
            Err((transport, error)) => BindError::explain(transport, &LISTEN, address, error),
        };
        // Said once, and not at once: it may be a socket of ours that is just being closed.
        if before == 1 {
            (self.report)(address, error);
        }
        false
    }

    /// Threads that answer over UDP.
    fn threads(&self) -> usize {
        self.open.values().map(|open| open.threads.len()).sum()
    }

    /// Waits until all loops have ended, and says which threads may still have answers to let out.
    pub(super) async fn ended(self) -> Vec<Thread> {
        let mut left = Vec::new();
        for Open { threads, tcp, .. } in self.open.into_values() {
            let _ = tcp.await;
            left.extend(threads);
        }
        left
    }

    /// Tells the threads which addresses are our own.
    fn tell_own(&self) {
        self.shared.own.store(Arc::new(Own::new(self.open.keys().copied().collect())));
    }
}
