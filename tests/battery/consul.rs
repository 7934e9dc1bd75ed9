//! Consul: a service of an agent, with a TTL check, for each instance.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::kind::{Facts, Instance, Login, Program, Programs, Secret, ServedKind, Store};
use super::support::consul::{self, Consul};
use super::support::seconds;

/// The name by which a run without Consul is listed as skipped.
const TEST: &str = "the_battery_with_consul";

/// Interval at which GoFrame's programs pass their check.
const PASS_INTERVAL: Duration = seconds(10);

/// An agent with a data directory, and the programs that are registered there.
pub(crate) struct ConsulKind {
    consul: Consul,
    programs: BTreeMap<String, Program>,
    has_login: bool,
    /// Has the file `token`.
    directory: TempDir,
}

impl ConsulKind {
    /// Starts an agent; `None` if Consul was not built.
    pub(crate) fn start() -> Option<Self> {
        let consul = Consul::start_persistent(TEST)?;
        let directory = tempfile::tempdir().unwrap();
        Some(Self { consul, programs: BTreeMap::new(), has_login: false, directory })
    }
}

fn endpoint(instance: &Instance) -> SocketAddr {
    SocketAddr::new(instance.address.parse().unwrap(), 80)
}

/// Returns the ID of an instance; GoFrame's default version is empty.
fn id(instance: &Instance) -> String {
    format!("{}--{}:80", instance.name, instance.address)
}

impl ServedKind for ConsulKind {
    fn section(&self) -> String {
        let login = if self.has_login {
            format!("token-file = \"{}\"\n", self.file().display())
        } else {
            String::new()
        };
        format!("[registry.store]\nurl = \"{}\"\n{login}", self.consul.url())
    }

    fn put(&mut self, instance: &Instance) -> Instant {
        let id = id(instance);
        self.programs.remove(&id);
        let start = Instant::now();
        self.consul.put(&instance.name, "", endpoint(instance), &instance.metadata());
        let (server, token) = (self.consul.address(), self.consul.token().map(str::to_owned));
        let path = format!("/v1/agent/check/pass/service:{}", consul::encoded(&id));
        // GoFrame's programs give up at the first failure. These go on, so that the battery sees
        // what svcdns does and not what the program does not.
        let program = Program::start(PASS_INTERVAL, move || {
            let _ = consul::request(server, "PUT", &path, token.as_deref(), "");
        });
        self.programs.insert(id, program);
        start
    }

    fn put_many(&mut self, instances: &[Instance]) {
        let mut services: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
        for instance in instances {
            services.entry(instance.name.clone()).or_default().push(endpoint(instance));
        }
        self.consul.fill(services.into_iter());
    }
}

impl Programs for ConsulKind {
    fn remove(&mut self, instance: &Instance) -> Instant {
        let id = id(instance);
        self.programs.remove(&id);
        let start = Instant::now();
        self.consul.deregister(&id);
        start
    }

    fn let_die(&mut self, instance: &Instance) {
        self.programs.remove(&id(instance)).expect("a program");
    }

    fn remove_many(&mut self, _instances: &[Instance]) {
        self.consul.request("PUT", "/v1/catalog/deregister", &json!({ "Node": "bulk" }));
    }

    fn put_invalid(&mut self) -> Vec<String> {
        let good: SocketAddr = ([10, 0, 0, 2], 80).into();
        for name in ["notjson", "array", "slash/es", "..svc"] {
            let metadata = match name {
                "notjson" => "not json",
                "array" => "[1]",
                _ => "{}",
            };
            // Without the check, which nobody passes.
            let (_, mut service) = consul::goframe_service(name, "", good, metadata);
            service["Check"].take();
            self.consul.register(&service);
        }
        // What GoFrame registers for a server on [::], addresses that are none, and a name that
        // Consul stores but never shows.
        for (id, address, port) in [
            ("bell\u{7}name", "10.0.0.2", 80),
            ("v6broken", "[", 0),
            ("port0", "10.0.0.2", 0),
            ("octal", "010.0.0.1", 80),
            ("multicast", "224.0.0.1", 80),
            ("own", "good.svc", 80),
        ] {
            let service = json!({ "ID": id, "Name": id, "Address": address, "Port": port });
            self.consul.register(&service);
        }
        let shown = ["notjson", "array", "slash", "..svc", "v6broken", "port0"];
        let others = ["010.0.0.1", "224.0.0.1", "good.svc"];
        shown.into_iter().chain(others).map(str::to_owned).collect()
    }

    fn notifications(&self, name: &str) -> Option<Receiver<Instant>> {
        let (sender, receiver) = mpsc::channel();
        let server = self.consul.address();
        let path = format!("/v1/health/service/{}", consul::encoded(name));
        let mut index = consul::next_index(server, &path, 0).ok()?;
        thread::spawn(move || {
            while let Ok(next) = consul::next_index(server, &path, index) {
                if sender.send(Instant::now()).is_err() {
                    return;
                }
                index = next;
            }
        });
        Some(receiver)
    }
}

impl Store for ConsulKind {
    fn facts(&self) -> Facts {
        Facts {
            expiry: consul::TTL,
            // The check whether the agent answers: every 5 s, with 5 s for the answer.
            longest_timeout: seconds(10),
            programs_return_after_a_wipe: false,
        }
    }

    fn address(&self) -> String {
        self.consul.address().to_string()
    }

    fn pid(&self) -> Option<u32> {
        Some(self.consul.process().pid())
    }

    fn kill(&mut self) {
        self.consul.kill();
    }

    fn wipe(&mut self) {
        self.consul.wipe();
    }

    fn start(&mut self) {
        self.consul.restart();
    }

    fn stall(&mut self) {
        self.consul.stall();
    }

    fn resume(&mut self) {
        self.consul.resume();
    }
}

impl Login for ConsulKind {
    fn require(&mut self, secret: Secret) {
        if !self.has_login {
            self.consul = Consul::start_with_tokens(TEST, true).expect("an agent with tokens");
            let rules = "service_prefix \"\" { policy = \"read\" }\n\
                         node_prefix \"\" { policy = \"read\" }";
            let policy = json!({ "Name": "svcdns", "Rules": rules });
            self.consul.request("PUT", "/v1/acl/policy", &policy);
            self.has_login = true;
        }
        for old in [Secret::First, Secret::Second] {
            let _ = self.delete_token(old);
        }
        let token = json!({
            "AccessorID": accessor(secret), "SecretID": secret.text(),
            "Policies": [{ "Name": "svcdns" }],
        });
        self.consul.request("PUT", "/v1/acl/token", &token);
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("token")
    }

    fn refusal(&self) -> &'static str {
        "check registry.store.token-file"
    }
}

/// Returns the public ID of a token.
fn accessor(secret: Secret) -> String {
    format!("ac{}", &secret.text()[2..])
}

impl ConsulKind {
    fn delete_token(&self, secret: Secret) -> Result<Value, String> {
        let path = format!("/v1/acl/token/{}", accessor(secret));
        self.consul.try_request("DELETE", &path, "").map(Value::from)
    }
}
