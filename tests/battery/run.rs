//! One scenario with one kind: a server that follows the store, and what it answers.

use std::fs;
use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::opt::EdnsCode;
use tempfile::TempDir;

use super::kind::{Inapplicable, Instance, Kind};
use super::support::process::Process;
use super::support::svcdns::{self, Svcdns};
use super::support::{SOON, dns, eventually, seconds};
use super::table::{Cell, Table, Times};

/// A scenario with one kind.
pub(crate) struct Run<'a> {
    pub(crate) kind: Box<dyn Kind>,
    /// Number of times that a scenario repeats a change to measure it.
    pub(crate) rounds: u16,
    name: &'static str,
    table: &'a Table,
    directory: TempDir,
    /// The service whose changes are timed, with the notifications about it.
    watched: Option<(String, Receiver<Instant>)>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        name: &'static str,
        kind: Box<dyn Kind>,
        rounds: u16,
        table: &'a Table,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { kind, rounds, name, table, directory, watched: None }
    }

    /// Records what was measured of a case that passed.
    pub(crate) fn passed(&self, case: &'static str, measured: String) {
        eprintln!("{}: {case}: {measured}", self.name);
        self.table.set(case, self.name, Cell::Passed(measured));
    }

    /// Records that a case does not apply to the kind.
    pub(crate) fn inapplicable(&self, case: &'static str, reason: Inapplicable) {
        self.table.set(case, self.name, Cell::Inapplicable(reason));
    }

    /// Starts a server that follows the registry.
    pub(crate) fn serve(&self) -> Svcdns {
        self.serve_beside("")
    }

    /// Starts a server that follows the registry, with more lines of configuration.
    pub(crate) fn serve_beside(&self, lines: &str) -> Svcdns {
        Svcdns::serve(&["--config", &self.configuration(lines), "--log", "debug"])
    }

    /// Starts `svcdns register` for an instance, a program that returns after every outage.
    pub(crate) fn register(&self, instance: &Instance) -> Process {
        let endpoint = format!("{}:80", instance.address);
        let file = self.configuration("");
        let arguments = ["register", "--config", &file, &instance.name, &endpoint];
        Process::start(svcdns::command().args(arguments))
    }

    fn configuration(&self, lines: &str) -> String {
        let file = self.directory.path().join("svcdns.toml");
        fs::write(&file, format!("{}{lines}", self.kind.section())).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// Waits between two rounds of changes, so that each finds a quiet registry.
    ///
    /// svcdns follows a lasting flood of changes more slowly, and looks closer at many removals.
    pub(crate) fn rest(&self) {
        if self.rounds > 1 {
            thread::sleep(seconds(3));
        }
    }

    /// Makes a change to a service, and waits until it is answered.
    pub(crate) fn time(
        &mut self,
        times: &mut Times,
        name: &str,
        change: impl FnOnce(&mut dyn Kind) -> Instant,
        is_answered: impl FnMut() -> bool,
    ) {
        if self.watched.as_ref().is_none_or(|(watched, _)| watched != name) {
            let programs = self.kind.programs().ok();
            let notifications = programs.and_then(|programs| programs.notifications(name));
            self.watched = notifications.map(|notifications| (name.to_owned(), notifications));
        }
        let notifications = self.watched.as_ref().map(|(_, notifications)| notifications);
        if let Some(notifications) = notifications {
            while notifications.try_recv().is_ok() {}
        }
        let start = change(&mut *self.kind);
        let answer = time_to_answer(start, is_answered);
        let notified = notifications.and_then(|notifications| {
            // A change may take several steps, each with a notification: the last one before the
            // answer counts, or the first one after it.
            let first = notifications.recv_timeout(seconds(1)).ok()?;
            let others = notifications.try_iter().take_while(|time| *time <= start + answer);
            Some(others.last().unwrap_or(first))
        });
        times.add(answer, notified.map(|notified| notified.saturating_duration_since(start)));
    }
}

/// Polls every millisecond until a change is answered; returns the time since its start.
pub(crate) fn time_to_answer(start: Instant, mut is_answered: impl FnMut() -> bool) -> Duration {
    while !is_answered() {
        assert!(start.elapsed() < SOON, "a change is not answered after {:?}", start.elapsed());
        thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

/// Returns whether the name has exactly these instances.
pub(crate) fn has(server: SocketAddr, name: &str, instances: &[&Instance]) -> bool {
    let mut wanted: Vec<_> =
        instances.iter().map(|instance| instance.address.parse().unwrap()).collect();
    wanted.sort_unstable();
    dns::addresses(server, name) == Ok(wanted)
}

/// Returns whether the name does not exist or has no instance.
pub(crate) fn is_gone(server: SocketAddr, name: &str) -> bool {
    match dns::addresses(server, name) {
        Ok(addresses) => addresses.is_empty(),
        Err(code) => code == "NXDOMAIN",
    }
}

/// Returns the weights of the SRV records of a name.
pub(crate) fn weights(server: SocketAddr, name: &str) -> Vec<u16> {
    let response = dns::ask(server, name, dns::SRV).expect("a response");
    let message = Message::from_vec(&response).unwrap();
    let records = message.answers.iter().map(|record| &record.data);
    records
        .filter_map(|data| if let RData::SRV(srv) = data { Some(srv.weight) } else { None })
        .collect()
}

/// Returns whether a response is marked as stale (EDE 3, Stale Answer).
pub(crate) fn is_stale(server: SocketAddr, name: &str) -> bool {
    extended_error(server, name) == ("NOERROR", Some(3))
}

/// Returns whether the name does not exist as far as is known (EDE 19, Stale NXDOMAIN Answer).
pub(crate) fn is_stale_nxdomain(server: SocketAddr, name: &str) -> bool {
    extended_error(server, name) == ("NXDOMAIN", Some(19))
}

/// Returns the response code of an A query, and its extended error (RFC 8914), if any.
fn extended_error(server: SocketAddr, name: &str) -> (&'static str, Option<u16>) {
    let Some(response) = dns::ask(server, name, dns::A) else { return ("no answer", None) };
    let message = Message::from_vec(&response).unwrap();
    let option = message.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Unknown(15)));
    let info_code = option.map(|option| {
        let bytes = <Vec<u8>>::try_from(option).unwrap();
        u16::from_be_bytes([bytes[0], bytes[1]])
    });
    (dns::code_of(&response), info_code)
}

/// Returns whether the registry is connected, and its error, according to `status`.
pub(crate) fn status(server: &Svcdns) -> (bool, String) {
    let output = server.run(&["status", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let registries = status["registries"].as_array().unwrap();
    let registry = registries.iter().find(|registry| registry["name"] == "store").unwrap();
    let error = registry["error"].as_str().unwrap_or_default();
    (registry["connected"].as_bool().unwrap(), error.to_owned())
}

/// Waits until `svcdns ls --rejected` shows all these texts; returns what it prints.
pub(crate) fn wait_for_rejected(server: &Svcdns, shown: &[String]) -> String {
    let list = || String::from_utf8_lossy(&server.run(&["ls", "--rejected"]).stdout).into_owned();
    let mut missing = Vec::new();
    let what = "all invalid entries in the list of rejected ones";
    let deadline = Instant::now() + SOON;
    eventually(what, 2 * SOON, || {
        let text = list();
        missing = shown.iter().filter(|shown| !text.contains(*shown)).collect();
        assert!(Instant::now() < deadline, "ls --rejected does not show {missing:?}:\n{text}");
        missing.is_empty().then_some(text)
    })
}
