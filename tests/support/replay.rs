//! A small HTTP server that replays what a real server answered.
//!
//! Recordings are pairs of files, `NAME.request` and `NAME.response`, with the exact bytes of one
//! exchange. A timeline, `NAME.timeline.tsv`, says which of `NAME.1.response`, `NAME.2.response` …
//! was the answer at each time. A test chooses the exchanges that are in force, or makes up
//! answers: cut short, of another kind of server, or none at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::free_address;

/// Largest request that the server reads, in bytes.
const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;

/// A request, as received or as recorded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// The path without parameters, as sent.
    pub(crate) path: String,
    /// The parameters of the query, decoded.
    pub(crate) parameters: BTreeMap<String, String>,
    /// The headers, with names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// The content of a body, so that two spellings of it are equal.
#[derive(Debug, PartialEq)]
enum Content {
    Form(BTreeMap<String, String>),
    Json(Value),
    Bytes(Vec<u8>),
}

impl Request {
    /// Reads a request; `None` at the end of the stream, or if it is malformed.
    fn read(stream: &mut impl BufRead) -> Option<Self> {
        let first = read_line(stream)?;
        let mut words = first.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut headers = BTreeMap::new();
        loop {
            let line = read_line(stream)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':')?;
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(Some(0), |text| text.parse().ok())?;
        if length > MAX_REQUEST_BYTES {
            return None;
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        Some(Self { method, path: path.to_owned(), parameters: decode_form(query), headers, body })
    }

    /// Returns a parameter of the query, empty if there is none.
    pub(crate) fn parameter(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }

    /// Returns a header, empty if there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Returns the fields of a body that is a form.
    pub(crate) fn form(&self) -> BTreeMap<String, String> {
        decode_form(&String::from_utf8_lossy(&self.body))
    }

    /// Returns the body if it is JSON.
    pub(crate) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Returns whether both requests ask for the same: all but the headers is equal.
    pub(crate) fn asks_as(&self, other: &Self) -> bool {
        let target = |request: &Self| (request.method.clone(), request.path.clone());
        target(self) == target(other)
            && self.parameters == other.parameters
            && self.content() == other.content()
    }

    fn content(&self) -> Content {
        if self.header("content-type").starts_with("application/x-www-form-urlencoded") {
            Content::Form(self.form())
        } else if let Some(value) = self.json() {
            Content::Json(value)
        } else {
            Content::Bytes(self.body.clone())
        }
    }
}

/// Reads a line without its end; `None` at the end of the stream.
fn read_line(stream: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
    Some(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Decodes `name=value&…` (application/x-www-form-urlencoded).
pub(crate) fn decode_form(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    let decode = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decoded(name), percent_decoded(value))
    };
    pairs.map(decode).collect()
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let code = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reaction {
    /// Sends these bytes, and closes the connection only if they say so.
    Answer(Vec<u8>),
    /// Sends these bytes, or none, and closes the connection.
    Close(Vec<u8>),
    /// Sends these bytes, or none, and keeps the connection open in silence.
    Hang(Vec<u8>),
}

/// Returns a response with a body; the status may have a reason, as in `200 OK`.
pub(crate) fn response(status: &str, content_type: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let (body, length) = (body.as_ref(), body.as_ref().len());
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Returns a response with a JSON body.
pub(crate) fn json_response(status: &str, body: &Value) -> Vec<u8> {
    response(status, "application/json", body.to_string())
}

/// Decides what to do with a request.
type Respond = dyn Fn(&Request) -> Reaction + Send + Sync;

/// A server in threads of the test; it ends when dropped.
pub(crate) struct HttpServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

/// What the threads of a server share.
struct Shared {
    respond: Mutex<Arc<Respond>>,
    /// The requests so far, each with the time at which it was complete.
    requests: Mutex<Vec<(Instant, Request)>>,
    connections: Mutex<Vec<TcpStream>>,
    /// The certificate, of a server that speaks TLS.
    tls: Option<Arc<ServerConfig>>,
    is_killed: AtomicBool,
    is_stalled: Mutex<bool>,
    resumed: Condvar,
}

impl HttpServer {
    /// Starts a server on a free port of 127.0.0.1.
    pub(crate) fn start(respond: impl Fn(&Request) -> Reaction + Send + Sync + 'static) -> Self {
        Self::start_with(None, respond)
    }

    /// Starts a server that speaks TLS; returns it with its own certificate as PEM.
    pub(crate) fn start_tls(
        respond: impl Fn(&Request) -> Reaction + Send + Sync + 'static,
    ) -> (Self, String) {
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key.into())
            .unwrap();
        (Self::start_with(Some(Arc::new(config)), respond), own.cert.pem())
    }

    fn start_with(
        tls: Option<Arc<ServerConfig>>,
        respond: impl Fn(&Request) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            respond: Mutex::new(Arc::new(respond)),
            requests: Mutex::default(),
            connections: Mutex::default(),
            tls,
            is_killed: AtomicBool::new(true),
            is_stalled: Mutex::default(),
            resumed: Condvar::new(),
        });
        let mut server = Self { address: free_address(), shared, accepting: None };
        server.restart();
        server
    }

    /// Returns the address, which a restart keeps.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reacts otherwise from now on.
    pub(crate) fn set(&self, respond: impl Fn(&Request) -> Reaction + Send + Sync + 'static) {
        *self.shared.respond.lock().unwrap() = Arc::new(respond);
    }

    /// Returns whether the server runs.
    pub(crate) fn is_running(&self) -> bool {
        self.accepting.is_some()
    }

    /// Returns the requests so far, each with the time at which it was complete.
    pub(crate) fn requests(&self) -> Vec<(Instant, Request)> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Returns the number of requests so far.
    pub(crate) fn request_count(&self) -> usize {
        self.shared.requests.lock().unwrap().len()
    }

    /// Ends the server: its connections close, and new ones are refused.
    pub(crate) fn kill(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.shared.is_killed.store(true, Ordering::SeqCst);
        self.resume();
        // The thread waits for a connection; this one ends it.
        let _ = TcpStream::connect(self.address);
        accepting.join().unwrap();
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Starts the killed server again, at the same address.
    pub(crate) fn restart(&mut self) {
        assert!(self.accepting.is_none(), "the server runs");
        let listener = TcpListener::bind(self.address).unwrap();
        self.shared.is_killed.store(false, Ordering::SeqCst);
        let shared = Arc::clone(&self.shared);
        self.accepting = Some(thread::spawn(move || shared.accept(&listener)));
    }

    /// Stops reacting, with all connections open, as a process does after SIGSTOP.
    pub(crate) fn stall(&self) {
        *self.shared.is_stalled.lock().unwrap() = true;
    }

    /// Reacts again, also to what came meanwhile.
    pub(crate) fn resume(&self) {
        *self.shared.is_stalled.lock().unwrap() = false;
        self.shared.resumed.notify_all();
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.is_killed() {
                return;
            }
            let Ok(stream) = stream else { continue };
            let _ = stream.set_nodelay(true);
            self.connections.lock().unwrap().push(stream.try_clone().unwrap());
            let shared = Arc::clone(self);
            thread::spawn(move || {
                match &shared.tls {
                    None => shared.serve(&stream),
                    Some(config) => {
                        let session = ServerConnection::new(Arc::clone(config)).unwrap();
                        shared.serve(StreamOwned::new(session, &stream));
                    }
                }
                let _ = stream.shutdown(Shutdown::Both);
                let address = stream.peer_addr().ok();
                let mut connections = shared.connections.lock().unwrap();
                connections
                    .retain(|open| open.peer_addr().ok().is_some_and(|at| Some(at) != address));
            });
        }
    }

    fn is_killed(&self) -> bool {
        self.is_killed.load(Ordering::SeqCst)
    }

    fn wait_while_stalled(&self) {
        let is_stalled = self.is_stalled.lock().unwrap();
        drop(self.resumed.wait_while(is_stalled, |is_stalled| *is_stalled).unwrap());
    }

    /// Serves a connection until one side closes it.
    fn serve(&self, stream: impl Read + Write) {
        let mut reader = BufReader::new(stream);
        while let Some(request) = Request::read(&mut reader) {
            self.wait_while_stalled();
            if self.is_killed() {
                return;
            }
            self.requests.lock().unwrap().push((Instant::now(), request.clone()));
            let respond = Arc::clone(&self.respond.lock().unwrap());
            let reaction = respond(&request);
            self.wait_while_stalled();
            let stream = reader.get_mut();
            // A client that has given up is not a failure of the server.
            match reaction {
                Reaction::Answer(bytes) => {
                    let sent = stream.write_all(&bytes).and_then(|()| stream.flush());
                    let is_last = request.header("connection").eq_ignore_ascii_case("close");
                    if sent.is_err() || is_last || says_close(&bytes) {
                        return;
                    }
                }
                Reaction::Close(bytes) => {
                    let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
                    return;
                }
                Reaction::Hang(bytes) => {
                    let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
                    // The client closes the connection, or the end of the server.
                    let _ = reader.read(&mut [0]);
                    return;
                }
            }
        }
    }
}

/// Returns whether the headers of a response announce the end of its connection.
fn says_close(response: &[u8]) -> bool {
    let (head, _) = split_head(response);
    head.to_ascii_lowercase().contains("\nconnection: close")
}

/// Splits a message after its headers.
fn split_head(message: &[u8]) -> (String, &[u8]) {
    let end = message.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let (head, rest) = message.split_at(end.unwrap_or(message.len()));
    (String::from_utf8_lossy(head).into_owned(), rest.get(4..).unwrap_or_default())
}

/// Returns the body of a response, without the framing of its chunks.
pub(crate) fn body_of(response: &[u8]) -> Vec<u8> {
    let (head, mut rest) = split_head(response);
    if !head.to_ascii_lowercase().contains("\ntransfer-encoding: chunked") {
        return rest.to_vec();
    }
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|bytes| bytes == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).unwrap().trim();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
    body
}

/// The recorded exchanges of one folder.
#[derive(Clone, Debug)]
pub(crate) struct Recordings {
    folder: PathBuf,
}

impl Recordings {
    /// Opens a folder of `tests/recordings`, such as `nacos/2.4.3`.
    pub(crate) fn open(folder: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(folder);
        assert!(folder.is_dir(), "{} is not a folder", folder.display());
        Self { folder }
    }

    fn read(&self, file: &str) -> Vec<u8> {
        let path = self.folder.join(file);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Returns whether there is an exchange of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.folder.join(format!("{name}.request")).is_file()
    }

    /// Returns a recorded request.
    pub(crate) fn request(&self, name: &str) -> Request {
        let bytes = self.read(&format!("{name}.request"));
        Request::read(&mut bytes.as_slice()).expect("a recorded request")
    }

    /// Returns the bytes of a recorded response.
    pub(crate) fn response(&self, name: &str) -> Vec<u8> {
        self.read(&format!("{name}.response"))
    }

    /// Returns the JSON body of a recorded response.
    pub(crate) fn body(&self, name: &str) -> Value {
        let body = body_of(&self.response(name));
        serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Answers as recorded in these exchanges; `None` if none of them asks the same.
    pub(crate) fn answers(
        &self,
        names: &[&str],
    ) -> impl Fn(&Request) -> Option<Vec<u8>> + Send + Sync + 'static {
        let exchanges: Vec<_> =
            names.iter().map(|name| (self.request(name), self.response(name))).collect();
        move |request| {
            let found = exchanges.iter().find(|(recorded, _)| recorded.asks_as(request));
            found.map(|(_, response)| response.clone())
        }
    }

    /// Returns a recorded timeline.
    pub(crate) fn timeline(&self, name: &str) -> Timeline {
        let text = String::from_utf8(self.read(&format!("{name}.timeline.tsv"))).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let step = |line: &str| {
            let mut columns = line.split('\t');
            let at = Duration::from_secs_f64(columns.next().unwrap().parse().unwrap());
            let file = columns.next_back().filter(|file| file.ends_with(".response"));
            (at, file.map(|file| self.read(file)))
        };
        Timeline { steps: lines.map(step).collect() }
    }
}

/// What a server answered to one request over time.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    /// The times in order; `None` if there was no answer.
    steps: Vec<(Duration, Option<Vec<u8>>)>,
}

impl Timeline {
    /// Returns the answer at a time after the start; `None` if there was none.
    pub(crate) fn at(&self, time: Duration) -> Option<&[u8]> {
        let next = self.steps.partition_point(|(at, _)| *at <= time);
        self.steps[next.max(1) - 1].1.as_deref()
    }

    /// Returns the time of the first answer with such a body.
    pub(crate) fn first(&self, is_wanted: impl Fn(&str) -> bool) -> Duration {
        let is_found = |answer: &Option<Vec<u8>>| {
            let body = answer.as_ref().map(|answer| body_of(answer));
            body.is_some_and(|body| is_wanted(&String::from_utf8_lossy(&body)))
        };
        self.steps.iter().find(|(_, answer)| is_found(answer)).expect("such an answer").0
    }
}
