//! A real etcd for tests: started on free loopback ports with its data in a temporary folder, killed, stalled, moved,
//! wiped and restored at will, and gone with the value that holds it.
//!
//! A test file takes it in with `mod support { pub mod etcd; }`. Everything here blocks and panics with a message: it is
//! for tests. The programs `etcd` and `etcdctl` are Debian's `etcd-server` and `etcd-client`, 3.4 or later; certificates
//! are made with `openssl`.

// Each test file uses its part of this.
#![allow(dead_code, unreachable_pub, clippy::expect_used, clippy::must_use_candidate)]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest wait for an etcd to become healthy: generous, since the machine may be busy with other tests.
const READY: Duration = Duration::from_secs(60);

/// The administrator that [`Etcd::enable_auth`] makes, as `name:password`.
pub const ROOT: &str = "root:root-secret";

/// An etcd of one or more members. Dropping it kills the members.
pub struct Etcd {
    members: Vec<Member>,
    /// More arguments for every member.
    arguments: Vec<String>,
    tls: Option<Certificates>,
    /// `name:password` that [`Etcd::ctl`] logs in with.
    login: Option<String>,
    /// Distinguishes the clusters that this value has been: a wiped store is another cluster.
    token: u32,
}

struct Member {
    name: String,
    client: Port,
    peer: Port,
    /// Plain HTTP with `/health`, whatever TLS and authentication the client port asks for.
    health: Port,
    data: TempDir,
    process: Option<Child>,
}

/// What to start.
#[derive(Default)]
pub struct Builder {
    members: usize,
    arguments: Vec<String>,
    tls: Option<Certificates>,
}

impl Builder {
    /// A cluster of this many members; one unless told.
    #[must_use]
    pub fn members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// One more argument for every member, such as `--auth-token-ttl=3`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Clients must speak TLS and show a certificate of the same authority.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = Some(Certificates::new());
        self
    }

    /// Takes ports and folders, and starts nothing yet.
    pub fn stopped(self) -> Etcd {
        let members = (0..self.members.max(1))
            .map(|index| Member {
                name: format!("e{index}"),
                client: Port::free(),
                peer: Port::free(),
                health: Port::free(),
                data: folder(),
                process: None,
            })
            .collect();
        Etcd { members, arguments: self.arguments, tls: self.tls, login: None, token: 0 }
    }

    /// Starts it and waits until every member is healthy.
    pub fn start(self) -> Etcd {
        let mut etcd = self.stopped();
        etcd.start_all();
        etcd
    }
}

impl Etcd {
    /// One member, no TLS, no authentication.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// What to start, in detail.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// `127.0.0.1:PORT` of every member.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|index| self.endpoint(index)).collect()
    }

    /// `127.0.0.1:PORT` of one member.
    pub fn endpoint(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.members[member].client.number)
    }

    /// `etcd://127.0.0.1:PORT[,…]`.
    pub fn url(&self) -> String {
        format!("etcd://{}", self.endpoints().join(","))
    }

    /// The certificates, where started with TLS.
    pub fn certificates(&self) -> &Certificates {
        self.tls.as_ref().expect("an etcd started with TLS")
    }

    // Life and death

    /// Starts every member that does not run, and waits until all are healthy.
    pub fn start_all(&mut self) {
        for index in 0..self.members.len() {
            self.spawn(index);
        }
        for index in 0..self.members.len() {
            self.wait_healthy(index);
        }
    }

    /// Starts one member again on its ports with its data, and waits until it is healthy.
    pub fn start_member(&mut self, member: usize) {
        self.spawn(member);
        self.wait_healthy(member);
    }

    /// `kill -9` of every member.
    pub fn kill(&mut self) {
        for index in 0..self.members.len() {
            self.kill_member(index);
        }
    }

    /// `kill -9` of one member.
    pub fn kill_member(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            process.kill().expect("kill etcd");
            process.wait().expect("wait for etcd");
        }
    }

    /// Stops a member where it stands, connections open (`SIGSTOP`).
    pub fn stall(&self, member: usize) {
        self.signal(member, Signal::SIGSTOP);
    }

    /// Lets a stalled member go on (`SIGCONT`).
    pub fn resume(&self, member: usize) {
        self.signal(member, Signal::SIGCONT);
    }

    fn signal(&self, member: usize, signal: Signal) {
        let process = self.members[member].process.as_ref().expect("a running member");
        kill(Pid::from_raw(i32::try_from(process.id()).expect("a process id")), signal).expect("signal etcd");
    }

    /// Kills it and throws all data away; the next start makes a new cluster on the same ports.
    pub fn wipe(&mut self) {
        self.kill();
        self.token += 1;
        for member in &mut self.members {
            member.data = folder();
        }
    }

    /// Saves a snapshot of a running etcd.
    pub fn save(&self, file: &Path) {
        self.ctl(&["snapshot", "save", &file.display().to_string()]);
    }

    /// Kills it and puts a snapshot in the place of its data; start it again to serve it.
    pub fn restore(&mut self, file: &Path) {
        self.kill();
        let cluster = self.initial_cluster();
        let token = self.cluster_token();
        for member in &mut self.members {
            member.data = folder();
            let output = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["snapshot", "restore"])
                .arg(file)
                .args(["--name", &member.name, "--initial-cluster", &cluster, "--initial-cluster-token", &token])
                .args(["--initial-advertise-peer-urls", &member.peer.url()])
                .arg("--data-dir")
                .arg(member.data.path().join("etcd"))
                .output()
                .expect("run etcdctl");
            assert!(output.status.success(), "restore: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// Serves the same data on another port while `change` runs, then stops again: whoever follows the usual port sees an
    /// outage, and afterwards a store that went on without it. One member only.
    pub fn elsewhere(&mut self, change: impl FnOnce(&Self)) {
        assert_eq!(self.members.len(), 1, "only a single member can serve elsewhere");
        self.kill();
        let usual = std::mem::replace(&mut self.members[0].client, Port::free());
        self.start_all();
        change(self);
        self.kill();
        self.members[0].client = usual;
    }

    // Content

    /// Runs `etcdctl` with these arguments against all members.
    ///
    /// # Panics
    /// When it fails.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(arguments).unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error}"))
    }

    /// As [`Etcd::ctl`], with what it wrote to its standard error where it fails.
    pub fn try_ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(arguments).output().expect("run etcdctl");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// The `etcdctl` command itself, for those that go on running.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoints: Vec<_> = self.endpoints().iter().map(|endpoint| format!("{scheme}://{endpoint}")).collect();
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoints.join(","));
        // Its own limits, 2 s and 5 s, are too short for a busy machine.
        command.args(["--dial-timeout", "20s", "--command-timeout", "20s"]);
        if let Some(tls) = &self.tls {
            command.arg("--cacert").arg(tls.ca()).arg("--cert").arg(tls.client()).arg("--key").arg(tls.client_key());
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

    /// Puts a key on a lease.
    pub fn put_leased(&self, key: &str, value: &str, lease: i64) {
        self.ctl(&["put", &format!("--lease={lease:x}"), "--", key, value]);
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) {
        self.ctl(&["del", "--", key]);
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<String> {
        let text = self.ctl(&["get", "--print-value-only", "--", key]);
        (!text.is_empty()).then(|| text.trim_end_matches('\n').to_owned())
    }

    /// The store's revision.
    pub fn revision(&self) -> u64 {
        let text = self.ctl(&["get", "--write-out=json", "--", "no such key"]);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON of etcdctl");
        json["header"]["revision"].as_u64().unwrap_or(0)
    }

    /// Forgets the history before a revision.
    pub fn compact(&self, revision: u64) {
        self.ctl(&["compact", &revision.to_string()]);
    }

    /// A new lease of this many seconds (etcd grants 2 at least, as started here).
    pub fn grant(&self, seconds: u32) -> i64 {
        let text = self.ctl(&["lease", "grant", &seconds.to_string()]);
        let id = text.split_whitespace().nth(1).expect("lease ID granted …");
        i64::from_str_radix(id, 16).expect("a lease id")
    }

    /// A client of the first member, for what `etcdctl` would take too long for.
    pub async fn client(&self) -> etcd_client::Client {
        assert!(self.tls.is_none(), "the quick client speaks no TLS");
        let options = self
            .login
            .as_ref()
            .and_then(|login| login.split_once(':'))
            .map(|(name, password)| etcd_client::ConnectOptions::new().with_user(name, password));
        etcd_client::Client::connect([self.endpoint(0)], options).await.expect("connect to etcd")
    }

    /// Puts many keys, 100 at one revision.
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

    /// Turns authentication on, with [`ROOT`] as the administrator that later calls log in as.
    pub fn enable_auth(&mut self) {
        self.ctl(&["user", "add", ROOT]);
        self.ctl(&["role", "add", "root"]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        self.ctl(&["auth", "enable"]);
        self.login = Some(ROOT.to_owned());
    }

    /// A user with a role of the same name that may read below `prefix`.
    pub fn add_reader(&self, user: &str, password: &str, prefix: &str) {
        self.add_user(user, password, "read", prefix);
    }

    /// A user with a role of the same name that may read and write below `prefix`.
    pub fn add_writer(&self, user: &str, password: &str, prefix: &str) {
        self.add_user(user, password, "readwrite", prefix);
    }

    fn add_user(&self, user: &str, password: &str, permission: &str, prefix: &str) {
        self.ctl(&["user", "add", &format!("{user}:{password}")]);
        self.ctl(&["role", "add", user]);
        self.ctl(&["role", "grant-permission", user, "--prefix=true", permission, prefix]);
        self.ctl(&["user", "grant-role", user, user]);
    }

    /// Gives a user another password, as an administrator does.
    pub fn set_password(&self, user: &str, password: &str) {
        let mut command = self.command(&["user", "passwd", user, "--interactive=false"]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("run etcdctl");
        let mut input = process.stdin.take().expect("a pipe to etcdctl");
        writeln!(input, "{password}").expect("write to etcdctl");
        drop(input);
        assert!(process.wait().expect("wait for etcdctl").success(), "etcdctl user passwd {user}");
    }

    // Starting

    fn initial_cluster(&self) -> String {
        let members: Vec<_> = self.members.iter().map(|member| format!("{}={}", member.name, member.peer.url())).collect();
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
            .args(["--name", &member.name, "--log-level", "warn", "--logger", "zap", "--log-outputs", "stderr"])
            .arg("--data-dir")
            .arg(member.data.path().join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &member.peer.url(), "--initial-advertise-peer-urls", &member.peer.url()])
            .args(["--listen-metrics-urls", &member.health.url()])
            .args(["--initial-cluster", &cluster, "--initial-cluster-token", &token]);
        if single {
            // One member elects itself at once, and grants leases from 1 s.
            command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        }
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(tls.ca());
            command.arg("--cert-file").arg(tls.server()).arg("--key-file").arg(tls.server_key());
        }
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        member.process = Some(command.spawn().expect("start etcd (Debian: apt-get install etcd-server)"));
    }

    fn wait_healthy(&mut self, index: usize) {
        let member = &mut self.members[index];
        let deadline = Instant::now() + READY;
        while !healthy(member.health.number) {
            let ended = member.process.as_mut().and_then(|process| process.try_wait().expect("look at etcd"));
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(member.data.path().join("log")).unwrap_or_default();
                panic!("etcd {} is not healthy (ended: {ended:?}): {log}", member.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                // Nothing can be done about a failure here, and SIGKILL ends a stalled process too.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
}

/// `GET /health` answers 200 once the member takes part in a quorum.
fn healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let limit = Some(Duration::from_secs(10));
    let asked = stream
        .set_read_timeout(limit)
        .and_then(|()| stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
    let mut answer = String::new();
    asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
}

/// A folder in memory where there is one: etcd waits for the disk at every write.
fn folder() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("make a temporary folder")
}

/// A loopback TCP port that stays ours while this value lives, even while nobody listens on it.
///
/// It lies below the ports that the kernel hands to outgoing connections, and holding the UDP port of the same number
/// keeps other tests, in this process and others, from choosing it.
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

/// An authority with a server's and a client's certificate, as files that keep their names when they are replaced.
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes all of them.
    pub fn new() -> Self {
        let certificates = Self { folder: folder() };
        certificates.replace();
        certificates
    }

    /// Makes a new authority and new certificates under the same file names.
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
            let extensions = format!("subjectAltName=IP:127.0.0.1,DNS:etcd.test\nextendedKeyUsage={usage}\nbasicConstraints=CA:FALSE\n");
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

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The server's certificate, for 127.0.0.1 and etcd.test.
    pub fn server(&self) -> PathBuf {
        self.path("server.pem")
    }

    /// The server's key.
    pub fn server_key(&self) -> PathBuf {
        self.path("server-key.pem")
    }

    /// A client's certificate.
    pub fn client(&self) -> PathBuf {
        self.path("client.pem")
    }

    /// The client's key.
    pub fn client_key(&self) -> PathBuf {
        self.path("client-key.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(self.folder.path()).output().expect("run openssl");
        assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
