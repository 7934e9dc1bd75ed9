//! A real Consul agent on free loopback ports, with its data in a temporary directory.
//!
//! Tests can kill, stall and wipe it, and register services as GoFrame programs do. Consul is
//! built from its Go module (`tests/consul`), which takes minutes: `make registries` builds it, and
//! other runs use that build. Every helper blocks, and panics if it fails.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{env, fs};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::Process;
use super::{SOON, eventually, free_address, go, seconds, skip};

/// Time after which GoFrame's check is critical unless it was passed.
pub(crate) const TTL: Duration = seconds(20);

/// Interval at which GoFrame passes its check.
const PASS_INTERVAL: Duration = seconds(10);

/// Returns whether there is a Consul; if not, the test is skipped.
///
/// With `BUILD_CONSUL` set, Consul is built if necessary.
pub(crate) fn is_available(test: &str) -> bool {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        if env::var_os("BUILD_CONSUL").is_some() {
            return go::CONSUL.build(|| {}).err();
        }
        let reason = "no consul was built: make registries builds it, and runs this test";
        (!go::CONSUL.is_built()).then(|| reason.to_owned())
    });
    if let Some(reason) = missing {
        skip(test, reason);
    }
    missing.is_none()
}

/// A Consul agent that is a cluster by itself; it is killed when dropped.
pub(crate) struct Consul {
    address: SocketAddr,
    https: Option<SocketAddr>,
    configuration: Value,
    folder: TempDir,
    /// Whether the agent has a data directory, and so survives a restart.
    persistent: bool,
    /// The token for [`Consul::try_request`].
    token: Option<String>,
    process: Option<Process>,
}

impl Consul {
    /// Starts an agent that keeps everything in memory; `None` skips the test.
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::stopped(test, false, &json!({})).map(Self::started)
    }

    /// Starts an agent with a data directory; `None` skips the test.
    pub(crate) fn start_persistent(test: &str) -> Option<Self> {
        Self::stopped(test, true, &json!({})).map(Self::started)
    }

    /// Starts an agent that denies what no token allows; `None` skips the test.
    ///
    /// [`Consul::try_request`] uses a token with all rights.
    pub(crate) fn start_with_acl(test: &str) -> Option<Self> {
        Self::start_with_tokens(test, false)
    }

    /// Starts such an agent, perhaps with a data directory; `None` skips the test.
    pub(crate) fn start_with_tokens(test: &str, persistent: bool) -> Option<Self> {
        let management = "11111111-2222-3333-4444-555555555555";
        let acl = json!({
            "acl": {
                "enabled": true, "default_policy": "deny",
                "tokens": { "initial_management": management, "agent": management },
            },
        });
        let mut consul = Self::stopped(test, persistent, &acl)?;
        consul.token = Some(management.to_owned());
        Some(consul.started())
    }

    /// Starts an agent with more configuration; `None` skips the test.
    pub(crate) fn start_with(test: &str, persistent: bool, configuration: &Value) -> Option<Self> {
        Self::stopped(test, persistent, configuration).map(Self::started)
    }

    /// Reserves ports and a directory without starting the agent; `None` skips the test.
    ///
    /// With `tls` in the configuration, the agent also serves HTTPS.
    pub(crate) fn stopped(test: &str, persistent: bool, configuration: &Value) -> Option<Self> {
        if !is_available(test) {
            return None;
        }
        let address = free_address();
        let https = configuration.get("tls").map(|_| free_address());
        let ports: Vec<u16> = (0..3).map(|_| free_address().port()).collect();
        let mut merged = json!({
            "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "log_level": "WARN",
            "disable_update_check": true, "performance": { "raft_multiplier": 1 },
            "ports": {
                "http": address.port(), "dns": -1, "grpc": -1, "grpc_tls": -1,
                "https": https.map_or(-1, |https| i32::from(https.port())),
                "server": ports[0], "serf_lan": ports[1], "serf_wan": ports[2],
            },
        });
        let object = merged.as_object_mut().unwrap();
        object.extend(configuration.as_object().unwrap().clone());
        let folder = tempfile::tempdir().unwrap();
        let (token, process) = (None, None);
        Some(Self { address, https, configuration: merged, folder, persistent, token, process })
    }

    fn started(mut self) -> Self {
        self.restart();
        self
    }

    /// Returns the address of the agent's HTTP interface.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of the agent's HTTPS interface.
    pub(crate) fn https_address(&self) -> SocketAddr {
        self.https.unwrap()
    }

    /// Returns the registry's URL.
    pub(crate) fn url(&self) -> String {
        format!("consul://{}", self.address)
    }

    /// Returns the token with which [`Consul::try_request`] works.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Returns the process of the running agent.
    pub(crate) fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    // Starting and stopping

    /// Starts the stopped agent, and waits until it has a leader.
    pub(crate) fn restart(&mut self) {
        let file = self.folder.path().join("agent.json");
        fs::write(&file, self.configuration.to_string()).unwrap();
        let mut command = Command::new(go::CONSUL.program());
        command.arg("agent").arg("-config-file").arg(file);
        if self.persistent {
            command.args(["-server", "-bootstrap-expect", "1", "-data-dir"]).arg(self.data());
        } else {
            command.arg("-dev");
        }
        let mut process = Process::start(&mut command);
        eventually("a leader of the Consul cluster", SOON, || {
            assert!(process.ended().is_none(), "the agent ended:\n{}", process.log());
            let leader = self.try_request("GET", "/v1/status/leader", "").ok()?;
            // The leader creates the token some time after its election.
            let has_token = || self.try_request("GET", "/v1/acl/token/self", "").is_ok();
            (leader.len() > 4 && (self.token.is_none() || has_token())).then_some(())
        });
        self.process = Some(process);
    }

    /// Kills the agent with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Kills the agent and deletes its data; the next start has an empty cluster.
    pub(crate) fn wipe(&mut self) {
        self.kill();
        if self.persistent {
            fs::remove_dir_all(self.data()).unwrap();
        }
    }

    /// Suspends the agent with open connections (SIGSTOP).
    pub(crate) fn stall(&self) {
        self.process().signal(Signal::SIGSTOP);
    }

    /// Resumes a stalled agent (SIGCONT).
    pub(crate) fn resume(&self) {
        self.process().signal(Signal::SIGCONT);
    }

    fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    // Content

    /// Sends a request with the token, and returns the body of a response with status 200.
    ///
    /// # Errors
    /// Returns the response, or the failure of the connection.
    pub(crate) fn try_request(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<String, String> {
        request(self.address, method, path, self.token.as_deref(), body)
    }

    /// Sends a request like [`Consul::try_request`]; also returns the head of the response.
    pub(crate) fn exchange(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<(String, String), String> {
        exchange(self.address, method, path, self.token.as_deref(), body)
    }

    /// Sends a request like [`Consul::try_request`] that must succeed.
    ///
    /// Tries again while the agent refuses the connection because this address has too many.
    pub(crate) fn request(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = eventually(path, SOON, || match self.try_request(method, path, &body) {
            Ok(answer) => Some(answer),
            // A refused connection is closed, often before its answer is read.
            Err(error)
                if [" 429 ", "os error 104", "os error 32"]
                    .iter()
                    .any(|refusal| error.contains(refusal)) =>
            {
                None
            }
            Err(error) => panic!("{error}"),
        });
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    /// Registers a service with the agent.
    pub(crate) fn register(&self, service: &Value) {
        self.request("PUT", "/v1/agent/service/register", service);
    }

    /// Deregisters a service from the agent by its ID.
    pub(crate) fn deregister(&self, id: &str) {
        let path = format!("/v1/agent/service/deregister/{}", encoded(id));
        self.request("PUT", &path, &Value::Null);
    }

    /// Sets the status of a service's TTL check: `pass`, `warn` or `fail`.
    pub(crate) fn set_check(&self, verb: &str, id: &str) {
        let path = format!("/v1/agent/check/{verb}/service:{}", encoded(id));
        self.request("PUT", &path, &Value::Null);
    }

    /// Registers a service as GoFrame does, with a check that is passed once.
    ///
    /// GoFrame's default version is the empty text. Returns the ID of the service.
    pub(crate) fn put(&self, name: &str, version: &str, at: SocketAddr, metadata: &str) -> String {
        let (id, service) = goframe_service(name, version, at, metadata);
        self.register(&service);
        self.set_check("pass", &id);
        id
    }

    /// Starts a program that registers a service and stays alive, as GoFrame's servers do.
    pub(crate) fn program(&self, name: &str, version: &str, at: SocketAddr) -> Program {
        let id = self.put(name, version, at, r#"{"insecure":true,"protocol":"http"}"#);
        let (stop, stopped) = mpsc::channel::<()>();
        let (address, token) = (self.address, self.token.clone());
        let path = format!("/v1/agent/check/pass/service:{}", encoded(&id));
        let passes = thread::spawn(move || {
            while stopped.recv_timeout(PASS_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                // Like GoFrame's, the program never passes its check again after a failure.
                if request(address, "PUT", &path, token.as_deref(), "").is_err() {
                    return;
                }
            }
        });
        Program { id, stop: Some(stop), passes: Some(passes) }
    }

    /// Creates a token with these rules and returns it.
    pub(crate) fn create_token(&self, name: &str, rules: &str) -> String {
        self.request("PUT", "/v1/acl/policy", &json!({ "Name": name, "Rules": rules }));
        let token = json!({ "Policies": [{ "Name": name }] });
        let token = self.request("PUT", "/v1/acl/token", &token);
        token["SecretID"].as_str().unwrap().to_owned()
    }

    /// Puts services straight into the catalog, without an agent that checks them.
    ///
    /// Each has one instance for each address.
    pub(crate) fn fill(&self, services: impl Iterator<Item = (String, Vec<SocketAddr>)>) {
        let node = json!({ "Node": "bulk", "Address": "127.0.0.1" });
        let node = json!({ "Node": { "Verb": "set", "Node": node } });
        let instances = services.flat_map(|(name, addresses)| {
            addresses.into_iter().map(move |at| {
                let (_, service) = goframe_service(&name, "", at, "{}");
                let instance = json!({
                    "ID": service["ID"], "Service": name, "Tags": service["Tags"],
                    "Meta": service["Meta"], "Address": service["Address"],
                    "Port": service["Port"],
                });
                json!({ "Service": { "Verb": "set", "Node": "bulk", "Service": instance } })
            })
        });
        let operations: Vec<Value> = std::iter::once(node).chain(instances).collect();
        // Consul's limit on the operations of a transaction.
        for operations in operations.chunks(64) {
            self.request("PUT", "/v1/txn", &Value::from(operations));
        }
    }
}

/// A service that stays registered until its program ends.
pub(crate) struct Program {
    pub(crate) id: String,
    stop: Option<Sender<()>>,
    passes: Option<JoinHandle<()>>,
}

impl Program {
    /// Ends the program as SIGTERM does: it deregisters its service.
    pub(crate) fn stop(mut self, consul: &Consul) {
        self.end();
        consul.deregister(&self.id);
    }

    /// Ends the program as SIGKILL does: its check expires.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(passes) = self.passes.take() {
            passes.join().unwrap();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

/// Returns the ID of a service, and its registration as GoFrame v2.10 writes it.
pub(crate) fn goframe_service(
    name: &str,
    version: &str,
    at: SocketAddr,
    metadata: &str,
) -> (String, Value) {
    let id = format!("{name}-{version}-{at}");
    let service = json!({
        "ID": id, "Name": name, "Tags": [version], "Address": at.ip().to_string(),
        "Port": at.port(), "Meta": { "metadata": metadata, "version": version },
        "Check": {
            "CheckID": format!("service:{id}"), "TTL": format!("{}s", TTL.as_secs()),
            "DeregisterCriticalServiceAfter": "1m",
        },
    });
    (id, service)
}

/// Writes a certificate for 127.0.0.1, and its key, to `server.pem` and `server.key`.
///
/// The certificate is its own CA.
pub(crate) fn write_certificate(folder: &Path) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let own = rcgen::generate_simple_self_signed(names).unwrap();
    fs::write(folder.join("server.pem"), own.cert.pem()).unwrap();
    fs::write(folder.join("server.key"), own.signing_key.serialize_pem()).unwrap();
}

/// Percent-encodes a text for one segment of a path.
pub(crate) fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Waits until the data at a path changes, and returns the new index.
///
/// With the index 0, returns the current index at once.
pub(crate) fn next_index(server: SocketAddr, path: &str, index: u64) -> Result<u64, String> {
    let path = format!("{path}?index={index}&wait=60s");
    let (head, _) = exchange(server, "GET", &path, None, "")?;
    let mut lines = head.lines();
    let found = lines.find_map(|line| line.strip_prefix("X-Consul-Index: ")?.trim().parse().ok());
    found.ok_or(head)
}

/// Sends an HTTP request and returns the body of a response with status 200.
pub(crate) fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> Result<String, String> {
    exchange(server, method, path, token, body).map(|(_, body)| body)
}

/// Sends an HTTP request and returns head and body of a response with status 200.
fn exchange(
    server: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> Result<(String, String), String> {
    let exchange = || {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(SOON))?;
        let length = body.len();
        let token = token.map(|token| format!("X-Consul-Token: {token}\r\n")).unwrap_or_default();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n{token}\r\n\
             {body}"
        )?;
        let mut response = String::new();
        stream.read_to_string(&mut response).map(|_| response)
    };
    let response = exchange().map_err(|error: io::Error| format!("{path}: {error}"))?;
    match response.split_once("\r\n\r\n") {
        Some((head, text)) if head.split(' ').nth(1) == Some("200") => {
            Ok((head.to_owned(), text.to_owned()))
        }
        _ => Err(format!("{path}: {response}")),
    }
}
