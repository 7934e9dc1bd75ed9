//! Joins registries, catalog and table: takes changes from the one channel and publishes them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::{Answerer, Published, Publisher};
use crate::config::{Config, RegistryUrl};
use crate::registry::etcd::{self, Etcd};
use crate::registry::file::{self, File};
use crate::registry::{Batch, Command, Feed, Registry, RegistryIndex, State};
use crate::service::{Addresses, Change};
use crate::upstream::Wanted;

/// Batches that may wait to be published; then the registries wait. Single events that come together are published together.
const WAITING: usize = 64;

/// Most changes of one publication: a flood must not keep what has come already from being seen.
const MOST: usize = 50_000;

/// Questions to a registry that may wait.
const COMMANDS: usize = 16;

/// How long after a panic a registry is followed again.
const RESTART: Duration = Duration::from_secs(1);

/// All registries of a configuration, and what is made of them.
///
/// All of it is the work of one thread with a runtime of its own, the one that calls [`Self::begin`] and [`Self::next`]: from
/// what the network brings to the publication no other thread has to be woken, and all that is kept comes from one arena of
/// the allocator. Whoever reads much at a time lets the others in between.
#[derive(Debug)]
pub(super) struct Following {
    followers: Vec<Follower>,
    publisher: Publisher,
    batches: mpsc::Receiver<Batch>,
    commands: Vec<mpsc::Sender<Command>>,
    hosts: Option<Hosts>,
    wake: Option<Instant>,
}

/// A registry that is not followed yet.
#[derive(Debug)]
struct Follower {
    source: Source,
    feed: Feed,
    asked: mpsc::Receiver<Command>,
}

#[derive(Debug)]
enum Source {
    Etcd(Box<etcd::Settings>),
    File(file::Settings),
}

/// The way to who looks up the addresses of host names, and back.
#[derive(Debug)]
pub(super) struct Hosts {
    /// Where to tell which are wanted.
    pub(super) wanted: Arc<Wanted>,
    /// What is found.
    pub(super) found: mpsc::Receiver<Vec<(Box<str>, Addresses)>>,
}

/// Who can look at what is followed.
#[derive(Debug)]
pub(super) struct Followed {
    /// The way in for questions.
    pub(super) answerer: Arc<Answerer>,
    /// The registries' own reports.
    pub(super) states: Vec<Arc<State>>,
}

impl Following {
    /// Prepares to follow every registry, for a server that listens on these addresses. Without a way to look up `hosts`,
    /// other names are not forwarded either.
    pub(super) fn new(config: &Config, listen: &[std::net::SocketAddr], hosts: Option<Hosts>) -> (Self, Followed) {
        let count = config.registries.len();
        let mut settings = config.answer(listen);
        settings.forwarding &= hosts.is_some();
        let (publisher, answerer) = Publisher::new(config.catalog(), settings, count, Instant::now());
        let (sender, batches) = mpsc::channel(WAITING);
        let (mut followers, mut commands, mut states) = (Vec::new(), Vec::new(), Vec::new());
        for (url, index) in config.registries.iter().zip(0..=u8::MAX) {
            let state = Arc::new(State::new(url.to_string()));
            let (asking, asked) = mpsc::channel(COMMANDS);
            let feed = Feed::new(RegistryIndex(index), sender.clone(), Arc::clone(&state));
            let source = match url {
                RegistryUrl::Etcd { endpoints } => Source::Etcd(Box::new(config.etcd(endpoints))),
                RegistryUrl::File(directory) => Source::File(config.file(directory)),
            };
            followers.push(Follower { source, feed, asked });
            commands.push(asking);
            states.push(state);
        }
        (Self { followers, publisher, batches, commands, hosts, wake: None }, Followed { answerer, states })
    }

    /// Begins to follow every registry until `stop`, as tasks of the runtime that this is called in.
    pub(super) fn begin(&mut self, tracker: &TaskTracker, stop: &CancellationToken) {
        for Follower { source, feed, asked } in self.followers.drain(..) {
            match source {
                Source::Etcd(settings) => tracker.spawn(keep(move || Etcd::new((*settings).clone()), feed, asked, stop.clone())),
                Source::File(settings) => tracker.spawn(keep(move || File::new(settings.clone()), feed, asked, stop.clone())),
            };
        }
    }

    /// Waits for changes, or for what time brings, and publishes all that has come, once. None when every registry has
    /// ended. Also says how long the publication took.
    pub(super) async fn next(&mut self) -> Option<(Published, Duration)> {
        let wake = self.wake;
        let (first, found) = tokio::select! {
            batch = self.batches.recv() => (Some(batch?), None),
            Some(found) = found(&mut self.hosts) => (None, Some(found)),
            () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => (None, None),
        };
        let began = Instant::now();
        if let Some(found) = found {
            return Some((self.publisher.resolve(found), began.elapsed()));
        }
        let Self { publisher, batches, .. } = self;
        let mut taken = 0;
        let waiting = std::iter::from_fn(|| {
            let batch = (taken < MOST).then(|| batches.try_recv().ok()).flatten()?;
            taken += batch.1.len();
            Some(batch)
        });
        let of = |(RegistryIndex(index), batch): Batch| batch.into_iter().map(move |change| (index, change));
        let mut publication = publisher.begin(first.into_iter().chain(waiting).flat_map(of), began);
        while publication.go_on() {
            // Else the connections of this thread would miss their pings.
            yield_now().await;
        }
        let mut published = publication.publish();
        self.wake = published.wake;
        if let Some(hosts) = &self.hosts {
            hosts.wanted.tell(std::mem::take(&mut published.hosts));
        }
        for (registry, leases) in published.doubts.drain(..) {
            if let Some(commands) = self.commands.get(usize::from(registry)) {
                // A registry that is too busy to be asked leaves the doubt unanswered, as one that cannot be reached does.
                let _ = commands.try_send(Command::AskLeases(leases));
            }
        }
        Some((published, began.elapsed()))
    }
}

/// The next addresses of host names; waits for ever where nobody looks them up.
async fn found(hosts: &mut Option<Hosts>) -> Option<Vec<(Box<str>, Addresses)>> {
    match hosts {
        Some(hosts) => hosts.found.recv().await,
        None => std::future::pending().await,
    }
}

/// Follows a registry until `stop`, and anew should its follower panic.
async fn keep<R: Registry>(make: impl Fn() -> R + Send, feed: Feed, mut commands: mpsc::Receiver<Command>, stop: CancellationToken) {
    loop {
        let (asking, asked) = mpsc::channel(COMMANDS);
        let mut follower = tokio::spawn(make().follow(feed.clone(), asked, stop.clone()));
        let ended = loop {
            tokio::select! {
                ended = &mut follower => break ended,
                command = commands.recv() => match command {
                    Some(command) => drop(asking.try_send(command)),
                    // Nobody asks any more: only the end is left to wait for.
                    None => break (&mut follower).await,
                },
            }
        };
        if stop.is_cancelled() || ended.is_ok() {
            return;
        }
        tracing::error!(registry = %feed.state(), "the follower of a registry panicked and is started again; please report this");
        feed.state().update(|report| {
            report.connected = false;
            report.error = Some("its follower panicked".to_owned());
        });
        if feed.send(vec![Change::Connected(false)]).await.is_err() {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RESTART) => {}
        }
    }
}
