//! A small client of ZooKeeper that shares no code with svcdns's.
//!
//! It has the calls that the tests need, in ZooKeeper's wire protocol: big-endian integers, and
//! texts and bytes after their length. A session reconnects by itself, as the client of GoFrame
//! does.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::super::{SOON, eventually, seconds};

/// Session time that GoFrame's programs ask for; the server grants less.
pub(crate) const ASKED_SESSION_TIME: Duration = seconds(120);

/// Longest wait for the answer to a connection, which a server that just started may never send.
const CONNECT_TIMEOUT: Duration = seconds(3);

/// Time between two attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Requests of [`Client::create_many`] that wait for their answers at once.
const PIPELINED: usize = 500;

/// Numbers of requests; the first answers carry these, too.
const WATCH_EVENT: i32 = -1;
const PING: i32 = -2;
const AUTH: i32 = -4;

/// A refusal of the server, by its number in ZooKeeper's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) i32);

impl Code {
    pub(crate) const CONNECTION_LOSS: Self = Self(-4);
    pub(crate) const NO_NODE: Self = Self(-101);
    pub(crate) const NO_AUTH: Self = Self(-102);
    pub(crate) const NODE_EXISTS: Self = Self(-110);
}

/// How long a node lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    Persistent,
    /// As long as the session of its creator.
    Ephemeral,
}

/// An entry of a node's access control list.
#[derive(Clone, Debug)]
pub(crate) struct Acl {
    pub(crate) permissions: i32,
    pub(crate) scheme: &'static str,
    pub(crate) id: String,
}

impl Acl {
    pub(crate) const READ: i32 = 1;
    pub(crate) const ALL: i32 = 31;

    /// Gives these rights to who knows `login`, a `user:password` of the scheme `digest`.
    pub(crate) fn digest(login: &str, permissions: i32) -> Self {
        let (user, _) = login.split_once(':').expect("user:password");
        Self { permissions, scheme: "digest", id: format!("{user}:{}", digest(login)) }
    }

    /// Gives everyone these rights.
    pub(crate) fn world(permissions: i32) -> Self {
        Self { permissions, scheme: "world", id: "anyone".to_owned() }
    }
}

/// Content of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) data: Vec<u8>,
    /// The session of an ephemeral node, or 0.
    pub(crate) owner: i64,
}

/// A session; when dropped, it ends as with SIGKILL: nodes stay until the session expires.
pub(crate) struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    servers: Vec<SocketAddr>,
    /// Credentials of the scheme `digest`, as `user:password`.
    logins: Vec<String>,
    /// The nodes that GoFrame's programs create again in each new session.
    kept: Mutex<Vec<KeptNode>>,
    link: Mutex<Option<Link>>,
    session: AtomicI64,
    watches: Mutex<HashMap<String, Sender<Instant>>>,
    is_dropped: AtomicBool,
}

/// The answer to a request: the record of its result.
type Answer = Result<Vec<u8>, Code>;

/// An ephemeral node with its data and its access control list.
struct KeptNode {
    path: String,
    data: Vec<u8>,
    acl: Vec<Acl>,
}

/// A connection whose session is established.
struct Link {
    stream: TcpStream,
    next_number: i32,
    /// Where the answers go, in the order of the requests.
    waiting: VecDeque<(i32, Sender<Answer>)>,
}

/// What identifies a session to the server.
#[derive(Clone, Default)]
struct Identity {
    session: i64,
    password: Vec<u8>,
    last_zxid: i64,
}

impl Client {
    /// Opens a session with one of these servers.
    pub(crate) fn connect(servers: &[SocketAddr]) -> Self {
        Self::connect_as(servers, &[])
    }

    /// Opens a session with credentials, each `user:password` of the scheme `digest`.
    pub(crate) fn connect_as(servers: &[SocketAddr], logins: &[&str]) -> Self {
        let shared = Arc::new(Shared {
            servers: servers.to_vec(),
            logins: logins.iter().map(|&login| login.to_owned()).collect(),
            kept: Mutex::default(),
            link: Mutex::default(),
            session: AtomicI64::new(0),
            watches: Mutex::default(),
            is_dropped: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || of_thread.run());
        let client = Self { shared, thread: Some(thread) };
        eventually("a session of ZooKeeper", SOON, || client.is_connected().then_some(()));
        client
    }

    /// Returns the id of the session.
    pub(crate) fn session(&self) -> i64 {
        self.shared.session.load(Ordering::Relaxed)
    }

    fn is_connected(&self) -> bool {
        self.shared.link.lock().unwrap().is_some()
    }

    /// Closes the session, as a program does at its end: its ephemeral nodes are deleted.
    pub(crate) fn close(self) {
        let answer = self.send(-11, &[]);
        // The thread stays until there is an answer, and does not connect again.
        self.shared.is_dropped.store(true, Ordering::Relaxed);
        let _ = answer.recv();
    }

    /// Creates a node that everyone may change.
    pub(crate) fn create(&self, path: &str, data: &[u8], lifetime: Lifetime) -> Result<(), Code> {
        self.create_with(path, data, lifetime, &[Acl::world(Acl::ALL)])
    }

    /// Creates a node with an access control list.
    pub(crate) fn create_with(
        &self,
        path: &str,
        data: &[u8],
        lifetime: Lifetime,
        acl: &[Acl],
    ) -> Result<(), Code> {
        self.call(1, &creation(path, data, lifetime, acl)).map(drop)
    }

    /// Creates an ephemeral node, and again in each session that follows this one.
    pub(crate) fn keep(&self, path: &str, data: &[u8], acl: &[Acl]) -> Result<(), Code> {
        self.create_with(path, data, Lifetime::Ephemeral, acl)?;
        let node = KeptNode { path: path.to_owned(), data: data.to_vec(), acl: acl.to_vec() };
        self.shared.kept.lock().unwrap().push(node);
        Ok(())
    }

    /// Creates a persistent node unless it exists; tries again if the connection is lost.
    pub(crate) fn ensure(&self, path: &str, acl: &[Acl]) {
        self.ensure_with(path, b"", acl);
    }

    /// Creates a persistent node with data, like [`Client::ensure`].
    pub(crate) fn ensure_with(&self, path: &str, data: &[u8], acl: &[Acl]) {
        eventually(path, SOON, || match self.create_with(path, data, Lifetime::Persistent, acl) {
            Ok(()) | Err(Code::NODE_EXISTS) => Some(()),
            Err(Code::CONNECTION_LOSS) => None,
            Err(code) => panic!("{path}: {code:?}"),
        });
    }

    /// Creates many nodes without waiting for each.
    pub(crate) fn create_many(
        &self,
        nodes: impl IntoIterator<Item = (String, Vec<u8>, Lifetime)>,
        acl: &[Acl],
    ) {
        let mut answers = VecDeque::new();
        for (path, data, lifetime) in nodes {
            answers.push_back(self.send(1, &creation(&path, &data, lifetime, acl)));
            if answers.len() == PIPELINED {
                let first = answers.pop_front().unwrap();
                first.recv().expect("a connection").expect("create a node");
            }
        }
        for answer in answers {
            answer.recv().expect("a connection").expect("create a node");
        }
    }

    pub(crate) fn delete(&self, path: &str) -> Result<(), Code> {
        let mut body = text(path);
        body.extend((-1_i32).to_be_bytes());
        self.call(2, &body).map(drop)
    }

    /// Replaces the data of a node.
    pub(crate) fn set(&self, path: &str, data: &[u8]) -> Result<(), Code> {
        let body = [text(path), bytes(data), (-1_i32).to_be_bytes().to_vec()].concat();
        self.call(5, &body).map(drop)
    }

    pub(crate) fn get(&self, path: &str) -> Result<Node, Code> {
        let body = [text(path), vec![0]].concat();
        let answer = self.call(4, &body)?;
        let (data, rest) = take_bytes(&answer);
        // ephemeralOwner follows four longs and three integers.
        let owner = i64::from_be_bytes(rest[44..52].try_into().unwrap());
        Ok(Node { data: data.to_vec(), owner })
    }

    /// Returns the names of a node's children, sorted.
    pub(crate) fn children(&self, path: &str) -> Result<Vec<String>, Code> {
        let answer = self.call(8, &[text(path), vec![0]].concat())?;
        let (count, mut rest) = take_integer(&answer);
        let mut names = Vec::new();
        for _ in 0..count {
            let (name, after) = take_bytes(rest);
            names.push(String::from_utf8(name.to_vec()).unwrap());
            rest = after;
        }
        names.sort();
        Ok(names)
    }

    /// Replaces the access control list of a node.
    pub(crate) fn set_acl(&self, path: &str, acl: &[Acl]) -> Result<(), Code> {
        let body = [text(path), acl_bytes(acl), (-1_i32).to_be_bytes().to_vec()].concat();
        self.call(7, &body).map(drop)
    }

    /// Watches a node and everything below it; sends the time of each notification.
    ///
    /// Needs a server of version 3.6 or later. The watch ends with the connection.
    pub(crate) fn watch(&self, path: &str) -> Receiver<Instant> {
        let (sender, receiver) = mpsc::channel();
        self.shared.watches.lock().unwrap().insert(path.to_owned(), sender);
        // 1 is persistent and recursive.
        let body = [text(path), 1_i32.to_be_bytes().to_vec()].concat();
        self.call(106, &body).expect("watch a node");
        receiver
    }

    fn call(&self, operation: i32, body: &[u8]) -> Answer {
        self.send(operation, body).recv().unwrap_or(Err(Code::CONNECTION_LOSS))
    }

    /// Sends a request, once there is a connection.
    fn send(&self, operation: i32, body: &[u8]) -> Receiver<Answer> {
        eventually("a connection to ZooKeeper", SOON, || {
            self.shared.link.lock().unwrap().as_mut().map(|link| link.send(operation, body))
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.is_dropped.store(true, Ordering::Relaxed);
        if let Some(link) = &*self.shared.link.lock().unwrap() {
            let _ = link.stream.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Link {
    fn send(&mut self, operation: i32, body: &[u8]) -> Receiver<Answer> {
        let number = self.next_number;
        self.next_number += 1;
        let (sender, receiver) = mpsc::channel();
        self.waiting.push_back((number, sender));
        // A failure shows as the end of the connection.
        let _ = write_request(&mut self.stream, number, operation, body);
        receiver
    }
}

impl Shared {
    /// Holds the session until the client is dropped.
    fn run(&self) {
        let mut identity = Identity::default();
        for server in self.servers.iter().cycle() {
            let _ = self.connection(*server, &mut identity);
            // Ends the calls that wait for an answer.
            drop(self.link.lock().unwrap().take());
            if self.is_dropped.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(RETRY_INTERVAL);
        }
    }

    /// Connects, and reads until the connection ends.
    fn connection(&self, server: SocketAddr, identity: &mut Identity) -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&server, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        let asked = i32::try_from(ASKED_SESSION_TIME.as_millis()).unwrap();
        let request = [
            &0_i32.to_be_bytes()[..],
            &identity.last_zxid.to_be_bytes(),
            &asked.to_be_bytes(),
            &identity.session.to_be_bytes(),
            &bytes(&identity.password),
            &[0],
        ];
        stream.write_all(&bytes(&request.concat()))?;
        let answer = read_frame(&mut stream)?;
        let granted = i32::from_be_bytes(answer[4..8].try_into().unwrap());
        if granted <= 0 {
            // The session has expired.
            *identity = Identity { last_zxid: identity.last_zxid, ..Identity::default() };
            return Ok(());
        }
        let session = i64::from_be_bytes(answer[8..16].try_into().unwrap());
        let is_new = session != identity.session;
        identity.session = session;
        identity.password = take_bytes(&answer[16..]).0.to_vec();
        for login in &self.logins {
            let body = [0_i32.to_be_bytes().to_vec(), text("digest"), bytes(login.as_bytes())];
            write_request(&mut stream, AUTH, 100, &body.concat())?;
        }
        let mut link = Link { stream: stream.try_clone()?, next_number: 1, waiting: [].into() };
        if is_new {
            for KeptNode { path, data, acl } in &*self.kept.lock().unwrap() {
                link.send(1, &creation(path, data, Lifetime::Ephemeral, acl));
            }
        }
        self.session.store(session, Ordering::Relaxed);
        *self.link.lock().unwrap() = Some(link);
        let granted = Duration::from_millis(u64::try_from(granted).unwrap());
        self.read(&mut stream, granted, identity)
    }

    /// Hands out answers and notifications, and pings the server.
    fn read(
        &self,
        stream: &mut TcpStream,
        session_time: Duration,
        identity: &mut Identity,
    ) -> std::io::Result<()> {
        let (interval, silence) = (session_time / 3, session_time * 2 / 3);
        stream.set_read_timeout(Some((interval / 4).max(Duration::from_millis(10))))?;
        let (mut last_ping, mut last_frame) = (Instant::now(), Instant::now());
        let mut received = Vec::new();
        let mut buffer = [0; 16 * 1024];
        while !self.is_dropped.load(Ordering::Relaxed) || self.has_waiting() {
            if last_ping.elapsed() >= interval {
                last_ping = Instant::now();
                let _link = self.link.lock().unwrap();
                write_request(stream, PING, 11, &[])?;
            }
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    if last_frame.elapsed() > silence {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) => return Err(error),
            }
            last_frame = Instant::now();
            let mut rest = &received[..];
            while let Some((length, after)) = rest.split_first_chunk::<4>() {
                let length = usize::try_from(i32::from_be_bytes(*length)).unwrap();
                let Some(frame) = after.get(..length) else { break };
                self.receive(frame, identity);
                rest = &after[length..];
            }
            received = rest.to_vec();
        }
        Ok(())
    }

    fn has_waiting(&self) -> bool {
        self.link.lock().unwrap().as_ref().is_some_and(|link| !link.waiting.is_empty())
    }

    fn receive(&self, frame: &[u8], identity: &mut Identity) {
        let (number, rest) = take_integer(frame);
        let zxid = i64::from_be_bytes(rest[..8].try_into().unwrap());
        let (code, body) = take_integer(&rest[8..]);
        match number {
            WATCH_EVENT => {
                let (path, _) = take_bytes(&body[8..]);
                let path = String::from_utf8_lossy(path);
                let now = Instant::now();
                let mut watches = self.watches.lock().unwrap();
                watches.retain(|top, sender| {
                    let below = path.strip_prefix(top.as_str());
                    let is_below =
                        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
                    !is_below || sender.send(now).is_ok()
                });
            }
            PING | AUTH => {}
            _ => {
                identity.last_zxid = identity.last_zxid.max(zxid);
                let mut link = self.link.lock().unwrap();
                let first = link.as_mut().and_then(|link| link.waiting.pop_front());
                let (expected, sender) = first.expect("an answer to a request");
                assert_eq!(number, expected, "answers come in the order of the requests");
                let answer = if code == 0 { Ok(body.to_vec()) } else { Err(Code(code)) };
                let _ = sender.send(answer);
            }
        }
    }
}

/// Returns the Base64 form of a login's SHA-1, by which ZooKeeper stores it.
fn digest(login: &str) -> String {
    let script = "printf %s \"$1\" | openssl dgst -sha1 -binary | openssl base64";
    let output = Command::new("sh").args(["-c", script, "sh", login]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn creation(path: &str, data: &[u8], lifetime: Lifetime, acl: &[Acl]) -> Vec<u8> {
    let flags = i32::from(lifetime == Lifetime::Ephemeral);
    [text(path), bytes(data), acl_bytes(acl), flags.to_be_bytes().to_vec()].concat()
}

fn acl_bytes(acl: &[Acl]) -> Vec<u8> {
    let mut found = length_of(acl.len()).to_vec();
    for Acl { permissions, scheme, id } in acl {
        found.extend(permissions.to_be_bytes());
        found.extend(text(scheme));
        found.extend(text(id));
    }
    found
}

fn text(text: &str) -> Vec<u8> {
    bytes(text.as_bytes())
}

/// Returns bytes after their length, as a field or a whole frame.
fn bytes(data: &[u8]) -> Vec<u8> {
    [&length_of(data.len())[..], data].concat()
}

fn length_of(length: usize) -> [u8; 4] {
    i32::try_from(length).unwrap().to_be_bytes()
}

fn take_integer(data: &[u8]) -> (i32, &[u8]) {
    let (integer, rest) = data.split_first_chunk::<4>().unwrap();
    (i32::from_be_bytes(*integer), rest)
}

/// Splits off a field of bytes, which may be absent (length -1).
fn take_bytes(data: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = take_integer(data);
    rest.split_at(usize::try_from(length).unwrap_or(0))
}

fn write_request(
    stream: &mut TcpStream,
    number: i32,
    operation: i32,
    body: &[u8],
) -> std::io::Result<()> {
    let request = [&number.to_be_bytes()[..], &operation.to_be_bytes(), body].concat();
    stream.write_all(&bytes(&request))
}

fn read_frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}
