//! Real ZooKeeper servers on free loopback ports, with their data in temporary directories.
//!
//! Tests can kill, stall and wipe them. ZooKeeper 3.8 is Debian's package `libzookeeper-java`;
//! `make registries` fetches other releases with Maven. Every helper blocks, and panics if it
//! fails.

pub(crate) mod client;
pub(crate) mod following;
mod release;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use client::{Acl, Client, Code};
pub(crate) use release::Release;

use super::process::Process;
use super::{SOON, eventually, free_address, seconds};

/// GoFrame's default root node.
pub(crate) const ROOT: &str = "/microservices";

/// ZooKeeper's unit of time here; a session lives for 2 to 20 of these.
///
/// The default is 2 s, with which GoFrame's sessions live for 40 s.
pub(crate) const TICK: Duration = Duration::from_millis(500);

/// Time after which the instances of a dead program are removed: the longest session, and the tick
/// at whose end the server notices.
pub(crate) const EXPIRY: Duration = TICK.saturating_mul(21);

/// A session that does not expire during a test.
pub(crate) const LONG_SESSION: Duration = seconds(3600);

/// Metadata of GoFrame's HTTP servers.
pub(crate) const HTTP: &str = r#"{"insecure":true,"protocol":"http"}"#;

/// One server, or an ensemble of several; they are killed when it is dropped.
pub(crate) struct ZooKeeper {
    release: Release,
    members: Vec<Member>,
    /// Additional lines of the configuration of every member.
    lines: String,
}

struct Member {
    client: SocketAddr,
    /// Port for clients with TLS.
    secure: SocketAddr,
    /// Ports for the other members: one for data, one for elections.
    peers: [SocketAddr; 2],
    folder: TempDir,
    process: Option<Process>,
}

impl ZooKeeper {
    /// Starts one server of Debian's release; `None` skips the test.
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::start_release(test, Release::Debian, 1, "")
    }

    /// Starts one server with an empty root node; `None` skips the test.
    pub(crate) fn start_with_root(test: &str) -> Option<(Self, Client)> {
        let zookeeper = Self::start(test)?;
        let client = zookeeper.client();
        client.ensure(ROOT, &[Acl::world(Acl::ALL)]);
        Some((zookeeper, client))
    }

    /// Starts one server with an empty root node, where sessions live as long as a client asks for.
    ///
    /// Neither a stall of the server nor one of the test ends them. `None` skips the test.
    pub(crate) fn start_patient(test: &str) -> Option<(Self, Client)> {
        let lines = format!("maxSessionTimeout={}\n", LONG_SESSION.as_millis());
        let zookeeper = Self::start_with(test, &lines)?;
        let client = zookeeper.client();
        client.ensure(ROOT, &[Acl::world(Acl::ALL)]);
        Some((zookeeper, client))
    }

    /// Starts an ensemble of Debian's release; `None` skips the test.
    pub(crate) fn start_ensemble(test: &str, members: usize) -> Option<Self> {
        Self::start_release(test, Release::Debian, members, "")
    }

    /// Starts one server with these lines in its configuration; `None` skips the test.
    pub(crate) fn start_with(test: &str, lines: &str) -> Option<Self> {
        Self::start_release(test, Release::Debian, 1, lines)
    }

    /// Starts one server that also accepts clients with TLS; `None` skips the test.
    ///
    /// `server.pem` in the folder has its certificate and key, `ca.pem` the authority of clients.
    /// `client_auth` is `none` or `need`.
    pub(crate) fn start_with_tls(test: &str, folder: &Path, client_auth: &str) -> Option<Self> {
        let path = |name: &str| folder.join(name).display().to_string();
        let lines = format!(
            "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
             ssl.keyStore.location={}\nssl.trustStore.location={}\nssl.clientAuth={client_auth}\n",
            path("server.pem"),
            path("ca.pem")
        );
        Self::start_with(test, &lines)
    }

    /// Starts servers of any release; `None` skips the test.
    pub(crate) fn start_release(
        test: &str,
        release: Release,
        members: usize,
        lines: &str,
    ) -> Option<Self> {
        if !release.is_available(test) {
            return None;
        }
        let members = (0..members).map(|_| Member {
            client: free_address(),
            secure: free_address(),
            peers: [free_address(), free_address()],
            folder: temporary_directory(),
            process: None,
        });
        let members = members.collect();
        let mut zookeeper = Self { release, members, lines: lines.to_owned() };
        zookeeper.start_all();
        Some(zookeeper)
    }

    /// Returns the address of a member.
    pub(crate) fn address(&self, member: usize) -> SocketAddr {
        self.members[member].client
    }

    /// Returns the address of a member for clients with TLS.
    pub(crate) fn secure_address(&self, member: usize) -> SocketAddr {
        self.members[member].secure
    }

    /// Returns the addresses of all members.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.client).collect()
    }

    /// Returns the registry's URL.
    pub(crate) fn url(&self) -> String {
        let addresses: Vec<_> = self.addresses().iter().map(ToString::to_string).collect();
        format!("zookeeper://{}", addresses.join(","))
    }

    /// Returns the process of a running member.
    pub(crate) fn process(&self, member: usize) -> &Process {
        self.members[member].process.as_ref().expect("a running member")
    }

    /// Returns whether a watch may include everything below a node: since 3.6.
    pub(crate) fn has_recursive_watches(&self) -> bool {
        self.release.has_recursive_watches()
    }

    /// Opens a session.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.addresses())
    }

    /// Starts a program with one instance, 10.0.0.`last`:8000.
    pub(crate) fn program(&self, name: &str, last: u8) -> Registered {
        Registered::new(self.client(), name, &format!("10.0.0.{last}:8000"), HTTP)
    }

    // Starting and stopping

    /// Starts every stopped member, and waits until all serve.
    pub(crate) fn start_all(&mut self) {
        for member in 0..self.members.len() {
            self.spawn(member);
        }
        for member in 0..self.members.len() {
            self.wait_until_serving(member);
        }
    }

    /// Starts a member, and waits until it serves.
    pub(crate) fn start_member(&mut self, member: usize) {
        self.spawn(member);
        self.wait_until_serving(member);
    }

    /// Kills every member with SIGKILL.
    pub(crate) fn kill(&mut self) {
        for member in 0..self.members.len() {
            self.kill_member(member);
        }
    }

    /// Kills a member with SIGKILL.
    pub(crate) fn kill_member(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            process.kill();
        }
    }

    /// Kills every member and deletes its data; the next start has an empty store.
    pub(crate) fn wipe(&mut self) {
        self.kill();
        for member in &self.members {
            fs::remove_dir_all(member.folder.path().join("data")).unwrap();
        }
    }

    /// Suspends a member with open connections (SIGSTOP).
    pub(crate) fn stall(&self, member: usize) {
        self.process(member).signal(Signal::SIGSTOP);
    }

    /// Resumes a stalled member (SIGCONT).
    pub(crate) fn resume(&self, member: usize) {
        self.process(member).signal(Signal::SIGCONT);
    }

    /// Sends one of ZooKeeper's commands of four letters to a member, and returns the answer.
    pub(crate) fn ask(&self, member: usize, command: &str) -> String {
        eventually(command, SOON, || four_letters(self.address(member), command))
    }

    /// Returns a figure of a member by its name in the command `mntr`.
    pub(crate) fn figure(&self, member: usize, name: &str) -> u64 {
        let text = self.ask(member, "mntr");
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
        let value = value.unwrap_or_else(|| panic!("{name} is not in {text}"));
        value.trim().parse().unwrap()
    }

    /// Runs lines in ZooKeeper's own command line, `zkCli.sh`, and returns its output.
    pub(crate) fn cli(&self, lines: &str) -> String {
        let mut command = Command::new("java");
        command.arg("-cp").arg(self.release.class_path());
        command.args(["org.apache.zookeeper.ZooKeeperMain", "-waitforconnection", "-server"]);
        command.arg(self.address(0).to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("run java");
        let mut input = process.stdin.take().unwrap();
        write!(input, "{}\nquit\n", lines.trim_end()).unwrap();
        drop(input);
        let output = process.wait_with_output().unwrap();
        // It also succeeds if ZooKeeper refuses a line.
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn spawn(&mut self, index: usize) {
        if self.members[index].process.is_some() {
            return;
        }
        let member = &self.members[index];
        let data = member.folder.path().join("data");
        fs::create_dir_all(&data).unwrap();
        let mut text = format!(
            "tickTime={}\ndataDir={}\nclientPortAddress=127.0.0.1\nclientPort={}\n\
             admin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\n{}",
            TICK.as_millis(),
            data.display(),
            member.client.port(),
            self.lines
        );
        if self.lines.contains("ssl.") {
            let port = member.secure.port();
            let _ = writeln!(text, "secureClientPortAddress=127.0.0.1\nsecureClientPort={port}");
        }
        if self.members.len() > 1 {
            // Generous, since all members share a busy machine.
            text += "initLimit=60\nsyncLimit=20\n";
            for (number, member) in (1..).zip(&self.members) {
                let [data, election] = member.peers.map(|address| address.port());
                let _ = writeln!(text, "server.{number}=127.0.0.1:{data}:{election}");
            }
            fs::write(data.join("myid"), format!("{}\n", index + 1)).unwrap();
        }
        let file = member.folder.path().join("zoo.cfg");
        fs::write(&file, text).unwrap();
        let mut command = Command::new("java");
        command
            .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(self.release.class_path())
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(file);
        self.members[index].process = Some(Process::start(&mut command));
    }

    fn wait_until_serving(&mut self, index: usize) {
        let Member { client, process, .. } = &mut self.members[index];
        let process = process.as_mut().unwrap();
        eventually("ZooKeeper to serve", SOON, || {
            assert!(process.ended().is_none(), "ZooKeeper ended:\n{}", process.log());
            // A member without a quorum answers that it does not serve.
            four_letters(*client, "srvr").filter(|text| text.starts_with("Zookeeper version"))
        });
    }
}

/// Sends a command of four letters; `None` without an answer.
///
/// A connection that the server accepts in its first milliseconds is never answered.
fn four_letters(server: SocketAddr, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect(server).ok()?;
    stream.set_read_timeout(Some(seconds(2))).unwrap();
    stream.write_all(command.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    (!text.is_empty()).then_some(text)
}

/// Returns a temporary directory, in memory if possible: ZooKeeper syncs every write to disk.
fn temporary_directory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

// GoFrame's form

/// Returns the node of a service in GoFrame's form, `ROOT/service-default-default-NAME-latest`.
pub(crate) fn folder(name: &str) -> String {
    format!("{ROOT}/service-default-default-{name}-latest")
}

/// Returns the data of a leaf as GoFrame writes it.
pub(crate) fn leaf_data(name: &str, endpoints: &str, metadata: &str) -> Vec<u8> {
    let key = format!("/service/default/default/{name}/latest/{endpoints}");
    // The order of the fields, and no spaces.
    let [key, value] = [key.as_str(), metadata].map(|text| serde_json::to_string(text).unwrap());
    format!(r#"{{"Key":{key},"Value":{value}}}"#).into_bytes()
}

/// Creates a persistent leaf with an instance at 10.0.0.`last`:8000; returns its path.
pub(crate) fn put_leaf(client: &Client, name: &str, leaf: &str, last: u8) -> String {
    let (folder, acl) = (folder(name), [Acl::world(Acl::ALL)]);
    client.ensure(&folder, &acl);
    let path = format!("{folder}/{leaf}");
    let data = leaf_data(name, &format!("10.0.0.{last}:8000"), HTTP);
    client.ensure_with(&path, &data, &acl);
    path
}

/// A program that has registered a service as GoFrame's servers do.
///
/// When dropped, it ends as with SIGKILL: its instance stays until the session expires.
pub(crate) struct Registered {
    client: Client,
    leaf: String,
}

impl Registered {
    /// Registers the only instance of a service; replaces an instance of another program.
    pub(crate) fn new(client: Client, name: &str, endpoints: &str, metadata: &str) -> Self {
        let data = leaf_data(name, endpoints, metadata);
        Self::with_leaf(client, name, name, &data, &[Acl::world(Acl::ALL)])
    }

    /// Registers an instance in a leaf of any name.
    pub(crate) fn with_leaf(
        client: Client,
        name: &str,
        leaf: &str,
        data: &[u8],
        acl: &[Acl],
    ) -> Self {
        let folder = folder(name);
        client.ensure(&folder, acl);
        let leaf = format!("{folder}/{leaf}");
        // GoFrame deletes the node of another program.
        let mut created = client.keep(&leaf, data, acl);
        if created == Err(Code::NODE_EXISTS) {
            client.delete(&leaf).expect("delete the node of another program");
            created = client.keep(&leaf, data, acl);
        }
        created.expect("create a node");
        Self { client, leaf }
    }

    /// Ends the program as SIGTERM does: it deletes its node.
    pub(crate) fn stop(self) {
        match self.client.delete(&self.leaf) {
            Ok(()) | Err(Code::NO_NODE) => self.client.close(),
            Err(code) => panic!("delete {}: {code:?}", self.leaf),
        }
    }
}
