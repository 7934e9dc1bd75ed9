//! Polaris: an instance of a service for each endpoint, at a server that answers as recorded.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::kind::{Facts, Instance, Login, Program, Programs, Secret, ServedKind, Store};
use super::support::polaris::{PolarisServer, goframe_metadata};
use super::support::seconds;

/// Interval of a program's heartbeats, with GoFrame's TTL of 10 s.
const HEARTBEAT_INTERVAL: Duration = seconds(10);

/// A server with the programs that are registered there.
pub(crate) struct PolarisKind {
    server: Arc<Mutex<PolarisServer>>,
    /// The body of each registration, and the program that keeps it alive.
    programs: BTreeMap<String, (Value, Option<Program>)>,
    has_login: bool,
    /// Has the file `token`.
    directory: TempDir,
}

impl PolarisKind {
    /// Starts a server.
    pub(crate) fn start() -> Self {
        Self {
            server: Arc::new(Mutex::new(PolarisServer::start())),
            programs: BTreeMap::new(),
            has_login: false,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn server(&self) -> std::sync::MutexGuard<'_, PolarisServer> {
        self.server.lock().unwrap()
    }
}

fn endpoint(instance: &Instance) -> SocketAddr {
    SocketAddr::new(instance.address.parse().unwrap(), 80)
}

fn service(name: &str) -> String {
    format!("service-default-default-{}-latest", name.replace('/', "-"))
}

fn metadata(instance: &Instance) -> Value {
    let mut metadata = goframe_metadata("latest");
    metadata["weight"] = instance.weight.to_string().into();
    metadata
}

/// Returns the key of a program.
fn id(instance: &Instance) -> String {
    format!("{} {}", instance.name, instance.address)
}

impl ServedKind for PolarisKind {
    fn section(&self) -> String {
        let login = if self.has_login {
            format!("token-file = \"{}\"\n", self.file().display())
        } else {
            String::new()
        };
        format!("[registry.store]\nurl = \"{}\"\n{login}", self.server().url())
    }

    fn put(&mut self, instance: &Instance) -> Instant {
        let id = id(instance);
        self.programs.remove(&id);
        let start = Instant::now();
        let body =
            self.server().put(&service(&instance.name), endpoint(instance), &metadata(instance));
        let (server, of_heartbeat) = (Arc::clone(&self.server), body.clone());
        let program = Program::start(HEARTBEAT_INTERVAL, move || {
            let server = server.lock().unwrap();
            if server.http.is_running() {
                server.heartbeat(&of_heartbeat);
            }
        });
        self.programs.insert(id, (body, Some(program)));
        start
    }

    fn put_many(&mut self, instances: &[Instance]) {
        let body = |instance: &Instance| {
            json!({
                "service": service(&instance.name), "host": instance.address, "port": 80,
                "version": "latest", "weight": 100, "metadata": metadata(instance),
                "health_check": { "type": "HEARTBEAT", "heartbeat": { "ttl": 10 } },
            })
        };
        self.server().fill(instances.iter().map(body));
    }
}

impl Programs for PolarisKind {
    fn remove(&mut self, instance: &Instance) -> Instant {
        let (body, program) = self.programs.remove(&id(instance)).expect("a program");
        drop(program);
        let start = Instant::now();
        self.server().deregister(&body);
        start
    }

    fn let_die(&mut self, instance: &Instance) {
        let (_, program) = self.programs.get_mut(&id(instance)).expect("a program");
        program.take();
    }

    fn remove_many(&mut self, _instances: &[Instance]) {
        self.server().empty(|name| name.starts_with("service-default-default-service-"));
    }

    fn put_invalid(&mut self) -> Vec<String> {
        let server = self.server();
        let version = json!({ "version": "latest" });
        let good: SocketAddr = ([10, 0, 0, 2], 80).into();
        for name in ["sla/sh", "..svc", "bell\u{7}name", "NoName "] {
            server.put(name, good, &version);
        }
        for (name, host, port) in [
            ("empty", "", 80_i64),
            ("port0", "10.0.0.2", 0),
            ("bigport", "10.0.0.2", 65_536),
            ("octal", "010.0.0.1", 80),
            ("multicast", "224.0.0.1", 80),
            ("own", "good.svc", 80),
        ] {
            let instance = json!({
                "service": name, "host": host, "port": port, "version": "latest", "weight": 100,
                "metadata": version,
                "health_check": { "type": "HEARTBEAT", "heartbeat": { "ttl": 10 } },
            });
            server.fill(std::iter::once(instance));
        }
        let shown = ["sla%2Fsh", "..svc", "empty", "port0", "bigport"];
        let others = ["010.0.0.1", "224.0.0.1", "good.svc"];
        shown.into_iter().chain(others).map(str::to_owned).collect()
    }
}

impl Store for PolarisKind {
    fn facts(&self) -> Facts {
        Facts {
            // Three heartbeats, and what the server takes to notice.
            expiry: HEARTBEAT_INTERVAL * 3 + seconds(1),
            // The list of names, each second, with 5 s for the answer.
            longest_timeout: seconds(10),
            // They return after more than a minute.
            programs_return_after_a_wipe: false,
        }
    }

    fn address(&self) -> String {
        self.server().address().to_string()
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn kill(&mut self) {
        self.server().http.kill();
    }

    fn wipe(&mut self) {
        let mut server = self.server();
        server.http.kill();
        server.wipe();
    }

    fn start(&mut self) {
        self.server().http.restart();
    }

    fn stall(&mut self) {
        self.server().http.stall();
    }

    fn resume(&mut self) {
        self.server().http.resume();
    }
}

impl Login for PolarisKind {
    fn require(&mut self, secret: Secret) {
        self.has_login = true;
        self.server().require(secret.text());
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("token")
    }

    fn refusal(&self) -> &'static str {
        "check registry.store.token-file"
    }
}
