//! A real etcd on free loopback ports, with its data in a temporary directory.
//!
//! Tests can kill, stall, move, wipe and restore it. Every helper blocks, and panics if it fails.
//!
//! A test file that needs no other helpers includes this as `mod support { pub mod etcd; }`. The
//! programs `etcd` and `etcdctl` are Debian's packages `etcd-server` and `etcd-client`, 3.4 or
//! later; `openssl` makes the certificates.

// Each test file uses some of the helpers.
#![allow(dead_code, unreachable_pub, clippy::expect_used, clippy::must_use_candidate)]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest wait for a member to become healthy on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The administrator that [`Etcd::enable_auth`] creates, as `name:password`.
pub const ROOT: &str = "root:root-secret";

/// Sends a signal to a child process; after SIGSTOP, returns once all of its threads have stopped.
///
/// Until then, threads that are running may still respond to a client.
pub fn signal_child(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed());
    kill(pid, signal).expect("signal the child");
    if signal == Signal::SIGSTOP {
        let change = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(pid), change).expect("wait for the child to stop");
    }
}

/// An etcd cluster of one or more members, which are killed when it is dropped.
pub struct Etcd {
    members: Vec<Member>,
    /// Additional arguments of every member.
    arguments: Vec<String>,
    tls: Option<Certificates>,
    /// The user for [`Etcd::ctl`], as `name:password`.
    login: Option<String>,
    /// Number of wipes; part of the cluster token, as each wipe makes a new cluster.
    token: u32,
}

struct Member {
    name: String,
    client: Port,
    peer: Port,
    /// Plain HTTP port with `/health`, even if the client port requires TLS or a login.
    health: Port,
    data: TempDir,
    process: Option<Child>,
}

/// Configures an [`Etcd`].
#[derive(Default)]
pub struct EtcdBuilder {
    members: usize,
    arguments: Vec<String>,
    tls: Option<Certificates>,
}

impl EtcdBuilder {
    /// Sets the number of members; the default is one.
    #[must_use]
    pub fn members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// Adds an argument of every member, such as `--auth-token-ttl=3`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Requires TLS and a client certificate of the same CA.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = Some(Certificates::new());
        self
    }

    /// Reserves ports and directories without starting any member.
    pub fn stopped(self) -> Etcd {
        let members = (0..self.members.max(1))
            .map(|index| Member {
                name: format!("e{index}"),
                client: Port::free(),
                peer: Port::free(),
                health: Port::free(),
                data: temporary_directory(),
                process: None,
            })
            .collect();
        Etcd { members, arguments: self.arguments, tls: self.tls, login: None, token: 0 }
    }

    /// Starts all members and waits until they are healthy.
    pub fn start(self) -> Etcd {
        let mut etcd = self.stopped();
        etcd.start_all();
        etcd
    }
}

impl Etcd {
    /// Starts one member without TLS and authentication.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Returns a builder for other clusters.
    pub fn builder() -> EtcdBuilder {
        EtcdBuilder::default()
    }

    /// Returns the endpoints of all members.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|index| self.endpoint(index)).collect()
    }

    /// Returns the endpoint of a member, `127.0.0.1:PORT`.
    pub fn endpoint(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.members[member].client.number)
    }

    /// Returns the registry's URL, `etcd://127.0.0.1:PORT[,…]`.
    pub fn url(&self) -> String {
        format!("etcd://{}", self.endpoints().join(","))
    }

    /// Returns the certificates of an etcd started with TLS.
    pub fn certificates(&self) -> &Certificates {
        self.tls.as_ref().expect("an etcd started with TLS")
    }

    // Starting and stopping

    /// Starts every stopped member and waits until all are healthy.
    pub fn start_all(&mut self) {
        for index in 0..self.members.len() {
            self.spawn(index);
        }
        for index in 0..self.members.len() {
            self.wait_healthy(index);
        }
    }

    /// Starts a member with its ports and data and waits until it is healthy.
    pub fn start_member(&mut self, member: usize) {
        self.spawn(member);
        self.wait_healthy(member);
    }

    /// Kills every member with SIGKILL.
    pub fn kill(&mut self) {
        for index in 0..self.members.len() {
            self.kill_member(index);
        }
    }

    /// Kills a member with SIGKILL.
    pub fn kill_member(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            process.kill().expect("kill etcd");
            process.wait().expect("wait for etcd");
        }
    }

    /// Suspends a member with open connections (SIGSTOP).
    pub fn stall(&self, member: usize) {
        self.signal(member, Signal::SIGSTOP);
    }

    /// Resumes a stalled member (SIGCONT).
    pub fn resume(&self, member: usize) {
        self.signal(member, Signal::SIGCONT);
    }

    fn signal(&self, member: usize, signal: Signal) {
        signal_child(self.pid(member), signal);
    }

    /// Returns the process id of a running member.
    pub fn pid(&self, member: usize) -> u32 {
        self.members[member].process.as_ref().expect("a running member").id()
    }

    /// Kills all members and deletes their data.
    ///
    /// The next start creates a new cluster on the same ports.
    pub fn wipe(&mut self) {
        self.kill();
        self.token += 1;
        for member in &mut self.members {
            member.data = temporary_directory();
        }
    }

    /// Saves a snapshot of the running cluster.
    pub fn save(&self, file: &Path) {
        self.ctl(&["snapshot", "save", &file.display().to_string()]);
    }

    /// Kills all members and replaces their data with a snapshot, for the next start.
    pub fn restore(&mut self, file: &Path) {
        self.kill();
        let cluster = self.initial_cluster();
        let token = self.cluster_token();
        for member in &mut self.members {
            member.data = temporary_directory();
            let output = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["snapshot", "restore"])
                .arg(file)
                .args([
                    "--name",
                    &member.name,
                    "--initial-cluster",
                    &cluster,
                    "--initial-cluster-token",
                    &token,
                ])
                .args(["--initial-advertise-peer-urls", &member.peer.url()])
                .arg("--data-dir")
                .arg(member.data.path().join("etcd"))
                .output()
                .expect("run etcdctl");
            assert!(
                output.status.success(),
                "restore: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }

    /// Serves the data on another port while `change` runs, then stops.
    ///
    /// Followers of the original port see an outage, and then a store that has changed meanwhile.
    /// For a single member only.
    pub fn elsewhere(&mut self, change: impl FnOnce(&Self)) {
        assert_eq!(self.members.len(), 1, "only a single member can serve elsewhere");
        self.kill();
        let original = std::mem::replace(&mut self.members[0].client, Port::free());
        self.start_all();
        change(self);
        self.kill();
        self.members[0].client = original;
    }

    // Content and users

    /// Runs `etcdctl` against all members and returns its output.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(arguments).unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error}"))
    }

    /// Runs `etcdctl` like [`Etcd::ctl`]; if it fails, returns its standard error.
    pub fn try_ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(arguments).output().expect("run etcdctl");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Returns an `etcdctl` command.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoints: Vec<_> =
            self.endpoints().iter().map(|endpoint| format!("{scheme}://{endpoint}")).collect();
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoints.join(","));
        // The defaults, 2 s and 5 s, are too short for a busy machine.
        command.args(["--dial-timeout", "20s", "--command-timeout", "20s"]);
        if let Some(tls) = &self.tls {
            command
                .arg("--cacert")
                .arg(tls.ca())
                .arg("--cert")
                .arg(tls.client())
                .arg("--key")
                .arg(tls.client_key());
        }
        if let Some(login) = &self.login {
            command.args(["--user", login]);
        }
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Puts a key without a lease.
    pub fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", "--", key, value]);
    }

    /// Puts a key with a lease.
    pub fn put_leased(&self, key: &str, value: &str, lease: i64) {
        self.ctl(&["put", &format!("--lease={lease:x}"), "--", key, value]);
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) {
        self.ctl(&["del", "--", key]);
    }

    /// Returns the value of a key.
    pub fn value(&self, key: &str) -> Option<String> {
        let text = self.ctl(&["get", "--print-value-only", "--", key]);
        (!text.is_empty()).then(|| text.trim_end_matches('\n').to_owned())
    }

    /// Returns the lease of a key, if the key exists.
    pub fn lease(&self, key: &str) -> Option<i64> {
        let text = self.ctl(&["get", "--write-out=json", "--", key]);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON of etcdctl");
        json["kvs"][0]["lease"].as_i64()
    }

    /// Returns the store's revision.
    pub fn revision(&self) -> u64 {
        let text = self.ctl(&["get", "--write-out=json", "--", "no such key"]);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON of etcdctl");
        json["header"]["revision"].as_u64().unwrap_or(0)
    }

    /// Compacts the history before a revision.
    pub fn compact(&self, revision: u64) {
        self.ctl(&["compact", &revision.to_string()]);
    }

    /// Returns a new lease with this time to live; etcd grants at least 2 s here.
    pub fn grant(&self, seconds: u32) -> i64 {
        let text = self.ctl(&["lease", "grant", &seconds.to_string()]);
        let id = text.split_whitespace().nth(1).expect("lease ID granted …");
        i64::from_str_radix(id, 16).expect("a lease id")
    }

    /// Returns a client of the first member, which is faster than `etcdctl`.
    pub async fn client(&self) -> etcd_client::Client {
        assert!(self.tls.is_none(), "the client does not support TLS");
        let options =
            self.login.as_ref().and_then(|login| login.split_once(':')).map(|(name, password)| {
                etcd_client::ConnectOptions::new().with_user(name, password)
            });
        etcd_client::Client::connect([self.endpoint(0)], options).await.expect("connect to etcd")
    }

    /// Puts many keys, 100 per revision.
    pub async fn put_many(&self, entries: impl IntoIterator<Item = (String, String)>) {
        let mut client = self.client().await;
        let mut operations = Vec::new();
        for (key, value) in entries {
            operations.push(etcd_client::TxnOp::put(key, value, None));
            if operations.len() == 100 {
                let full = std::mem::take(&mut operations);
                client.txn(etcd_client::Txn::new().and_then(full)).await.expect("put many");
            }
        }
        client.txn(etcd_client::Txn::new().and_then(operations)).await.expect("put many");
    }

    /// Turns authentication on; later calls log in as [`ROOT`].
    pub fn enable_auth(&mut self) {
        self.ctl(&["user", "add", ROOT]);
        self.ctl(&["role", "add", "root"]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        self.ctl(&["auth", "enable"]);
        self.login = Some(ROOT.to_owned());
    }

    /// Adds a user, with a role of the same name, who may read below `prefix`.
    pub fn add_reader(&self, user: &str, password: &str, prefix: &str) {
        self.add_user(user, password, "read", prefix);
    }

    /// Adds a user, with a role of the same name, who may read and write there.
    pub fn add_writer(&self, user: &str, password: &str, prefix: &str) {
        self.add_user(user, password, "readwrite", prefix);
    }

    fn add_user(&self, user: &str, password: &str, permission: &str, prefix: &str) {
        self.ctl(&["user", "add", &format!("{user}:{password}")]);
        self.ctl(&["role", "add", user]);
        self.ctl(&["role", "grant-permission", user, "--prefix=true", permission, prefix]);
        self.ctl(&["user", "grant-role", user, user]);
    }

    /// Changes the password of a user.
    pub fn set_password(&self, user: &str, password: &str) {
        let mut command = self.command(&["user", "passwd", user, "--interactive=false"]);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("run etcdctl");
        let mut input = process.stdin.take().expect("a pipe to etcdctl");
        writeln!(input, "{password}").expect("write to etcdctl");
        drop(input);
        assert!(process.wait().expect("wait for etcdctl").success(), "etcdctl user passwd {user}");
    }

    // Processes

    fn initial_cluster(&self) -> String {
        let members: Vec<_> = self
            .members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer.url()))
            .collect();
        members.join(",")
    }

    fn cluster_token(&self) -> String {
        format!("svcdns-test-{}", self.token)
    }

    fn spawn(&mut self, index: usize) {
        let cluster = self.initial_cluster();
        let token = self.cluster_token();
        let single = self.members.len() == 1;
        let member = &mut self.members[index];
        if member.process.is_some() {
            return;
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{}", member.client.number);
        let log = fs::File::create(member.data.path().join("log")).expect("create a log file");
        let mut command = Command::new("etcd");
        command
            .args([
                "--name",
                &member.name,
                "--log-level",
                "warn",
                "--logger",
                "zap",
                "--log-outputs",
                "stderr",
            ])
            .arg("--data-dir")
            .arg(member.data.path().join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args([
                "--listen-peer-urls",
                &member.peer.url(),
                "--initial-advertise-peer-urls",
                &member.peer.url(),
            ])
            .args(["--listen-metrics-urls", &member.health.url()])
            .args(["--initial-cluster", &cluster, "--initial-cluster-token", &token]);
        if single {
            // A single member elects itself at once, and grants leases of at least 1 s.
            command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        }
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(tls.ca());
            command.arg("--cert-file").arg(tls.server()).arg("--key-file").arg(tls.server_key());
        }
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        member.process =
            Some(command.spawn().expect("start etcd (Debian: apt-get install etcd-server)"));
    }

    fn wait_healthy(&mut self, index: usize) {
        let member = &mut self.members[index];
        let deadline = Instant::now() + START_TIMEOUT;
        while !is_healthy(member.health.number) {
            let exit = member
                .process
                .as_mut()
                .and_then(|process| process.try_wait().expect("check the process of etcd"));
            if exit.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(member.data.path().join("log")).unwrap_or_default();
                panic!("etcd {} is not healthy (exit: {exit:?}): {log}", member.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                // SIGKILL ends even a stalled process; other failures do not matter.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
}

/// Returns whether a member is part of a quorum, by its health endpoint.
fn is_healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let limit = Some(Duration::from_secs(10));
    let request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let sent = stream.set_read_timeout(limit).and_then(|()| stream.write_all(request));
    let mut response = String::new();
    sent.is_ok()
        && stream.read_to_string(&mut response).is_ok()
        && response.starts_with("HTTP/1.1 200")
}

/// Returns a temporary directory, in memory if possible.
///
/// etcd syncs every write to disk.
fn temporary_directory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("create a temporary directory")
}

/// A reserved loopback TCP port, even while nothing listens on it.
///
/// The port is below the kernel's range for outgoing connections. Bound to the UDP port of the same
/// number, it cannot be chosen by other tests, in this process and others.
struct Port {
    number: u16,
    _reservation: UdpSocket,
}

impl Port {
    fn free() -> Self {
        for _ in 0..10_000 {
            let number = fastrand::u16(12_000..32_000);
            let Ok(reservation) = UdpSocket::bind(("127.0.0.1", number)) else { continue };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self { number, _reservation: reservation };
            }
        }
        panic!("no free port on 127.0.0.1");
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.number)
    }
}

/// A CA with a server and a client certificate, as files with fixed names.
pub struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// Creates all files.
    pub fn new() -> Self {
        let certificates = Self { directory: temporary_directory() };
        certificates.replace();
        certificates
    }

    /// Replaces all files but one, which then no longer matches; returns its new content.
    pub fn replace_all_but(&self, file: &Path) -> Vec<u8> {
        let old = fs::read(file).expect("read the old file");
        self.replace();
        let new = fs::read(file).expect("read the new file");
        fs::write(file, old).expect("restore the old file");
        new
    }

    /// Replaces the CA and all certificates under the same file names.
    pub fn replace(&self) {
        self.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/CN=svcdns test authority",
            "-keyout",
            "ca-key.pem",
            "-out",
            "ca.pem",
        ]);
        for (name, usage) in [("server", "serverAuth,clientAuth"), ("client", "clientAuth")] {
            let extensions = format!(
                "subjectAltName=IP:127.0.0.1,DNS:etcd.test\n\
                 extendedKeyUsage={usage}\n\
                 basicConstraints=CA:FALSE\n"
            );
            fs::write(self.path("extensions"), extensions).expect("write certificate extensions");
            self.openssl(&[
                "req",
                "-new",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-subj",
                &format!("/CN={name}"),
                "-keyout",
                &format!("{name}-key.pem"),
                "-out",
                "request.pem",
            ]);
            self.openssl(&[
                "x509",
                "-req",
                "-in",
                "request.pem",
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca-key.pem",
                "-CAcreateserial",
                "-days",
                "30",
                "-extfile",
                "extensions",
                "-out",
                &format!("{name}.pem"),
            ]);
        }
    }

    /// Returns the file of the CA's certificate.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Returns the file of the server certificate, for 127.0.0.1 and etcd.test.
    pub fn server(&self) -> PathBuf {
        self.path("server.pem")
    }

    /// Returns the file of the server's key.
    pub fn server_key(&self) -> PathBuf {
        self.path("server-key.pem")
    }

    /// Returns the file of the client certificate.
    pub fn client(&self) -> PathBuf {
        self.path("client.pem")
    }

    /// Returns the file of the client's key.
    pub fn client_key(&self) -> PathBuf {
        self.path("client-key.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(self.directory.path())
            .output()
            .expect("run openssl");
        assert!(
            output.status.success(),
            "openssl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
