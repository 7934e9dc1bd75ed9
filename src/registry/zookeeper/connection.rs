//! A connection to one server, which carries one session.
//!
//! The client is our own because ZooKeeper's protocol is small, and because the supervisor needs
//! what the crate zookeeper-client hides: events and replies in the order in which the server sent
//! them, and the transaction of each reply, which reveals a restored store.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::failure::{ErrorCode, malformed};
use super::wire::{
    LENGTH_BYTES, NodeEvent, ReplyHeader, Session, ZooKeeperRequest, digest_login, ping, xid,
};
use super::{DigestLogin, Settings};
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::identify::ServerKind;
use crate::registry::tls::{describe_connect_error, describe_handshake_error, is_plain_server};

/// Maximum length of a message, in bytes; the names of all folders are one message.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Length above which a message is none of ZooKeeper's, in bytes.
const MAX_BELIEVED_BYTES: usize = 1024 * 1024 * 1024;

/// Maximum length of the reply that opens a session, in bytes.
const MAX_CONNECT_REPLY_BYTES: usize = 256;

/// Room for each read from the stream, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// Length of a buffer above which it is not kept, in bytes.
const MAX_KEPT_BUFFER_BYTES: usize = 1024 * 1024;

/// A stream of bytes, plain or over TLS.
trait SessionStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> SessionStream for S {}

/// A message of the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ServerMessage {
    /// A watched node has changed.
    Event(NodeEvent),
    /// The reply to the request with this number.
    Reply(Reply),
    /// A message without content.
    Alive,
}

/// The reply to a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) xid: i32,
    /// The record of the result, or the error.
    pub(super) result: Result<Vec<u8>, ErrorCode>,
}

/// A connection with a session.
///
/// The server replies in the order of the requests, so any number of them may be in flight.
/// Events arrive in order with the replies: a reply after an event shows its change.
pub(super) struct ZooKeeperConnection {
    reader: ReadHalf<Box<dyn SessionStream>>,
    writer: WriteHalf<Box<dyn SessionStream>>,
    /// Bytes that were read; those before `parsed` are done with.
    input: Vec<u8>,
    parsed: usize,
    /// Bytes to be written; those before `written` are.
    output: Vec<u8>,
    written: usize,
    /// Whether the stream may hold written bytes back.
    needs_flush: bool,
    session: Session,
    /// Time without a request after which a ping is sent.
    ping_after: Duration,
    last_sent: Instant,
    last_received: Instant,
    last_xid: i32,
    /// Numbers of the requests without a reply.
    pending: VecDeque<i32>,
    /// The last transaction that any reply has shown.
    last_zxid: i64,
    login_keys: Option<String>,
}

impl ZooKeeperConnection {
    /// Connects to a server, opens or resumes a session, and sends the login if there is one.
    ///
    /// Returns `None` if a session to resume has expired.
    pub(super) async fn open(
        settings: &Settings,
        endpoint: &str,
        session: Session,
    ) -> Result<Option<Self>, Failure> {
        let limit = settings.tuning.connection.dial_timeout;
        let until = Instant::now() + limit;
        let stream = timeout_at(until, connect(settings, endpoint)).await.unwrap_or_else(|_| {
            let limit = limit.as_secs_f64();
            Err(Failure::connection(format!("no connection within {limit} s")))
        })?;
        // A server that has just begun to listen may accept a connection and never answer it. Other
        // servers wait for a request that they understand.
        let started = timeout_at(until, Self::start(settings, stream, session)).await;
        let opened = started.unwrap_or_else(|_| {
            let text = format!("the server opened no session within {} s", limit.as_secs_f64());
            Err(Failure::new(FailureKind::Protocol, text))
        })?;
        let Some(mut connection) = opened else { return Ok(None) };
        if let Some(login) = &settings.login {
            connection.log_in(login).await?;
        }
        Ok(Some(connection))
    }

    async fn start(
        settings: &Settings,
        stream: Box<dyn SessionStream>,
        session: Session,
    ) -> Result<Option<Self>, Failure> {
        let (reader, writer) = split(stream);
        let now = Instant::now();
        let mut connection = Self {
            reader,
            writer,
            input: Vec::new(),
            parsed: 0,
            output: session.connect_frame(),
            written: 0,
            needs_flush: false,
            session,
            ping_after: session.timeout,
            last_sent: now,
            last_received: now,
            last_xid: 0,
            pending: VecDeque::new(),
            last_zxid: 0,
            login_keys: settings.login.as_ref().map(|login| login.keys.clone()),
        };
        let opened = loop {
            if let Some(frame) = connection.next_frame(MAX_CONNECT_REPLY_BYTES)? {
                break Session::parse(&connection.input[frame]).map_err(|_| malformed())?;
            }
            if let Err(failure) = connection.transfer().await {
                return Err(match failure.kind {
                    FailureKind::Closed if connection.input.is_empty() => failure,
                    // A beginning of another protocol.
                    FailureKind::Closed => malformed(),
                    _ => failure,
                });
            }
        };
        let Some(opened) = opened else { return Ok(None) };
        connection.session = opened;
        // The server may have a longer minimum than was asked for: that is no reason to notice a
        // stall later.
        connection.ping_after = opened.timeout.min(session.timeout) / 3;
        Ok(Some(connection))
    }

    /// Returns the session.
    pub(super) fn session(&self) -> Session {
        self.session
    }

    /// Returns the last transaction that any message has shown, 0 for none.
    pub(super) fn last_zxid(&self) -> i64 {
        self.last_zxid
    }

    /// Sends the login with its current password.
    ///
    /// A session may log in several times, and has the rights of all its users.
    pub(super) async fn log_in(&mut self, login: &DigestLogin) -> Result<(), Failure> {
        let password = login.password.read().await;
        let password =
            password.map_err(|error| Failure::new(FailureKind::Settings, error.to_string()))?;
        self.write(&digest_login(&login.user, password.expose()));
        Ok(())
    }

    /// Sends a request, and returns the number that its reply will have.
    pub(super) fn send(&mut self, request: ZooKeeperRequest<'_>) -> i32 {
        self.last_xid = self.last_xid.checked_add(1).unwrap_or(1);
        self.write(&request.frame(self.last_xid));
        self.pending.push_back(self.last_xid);
        self.last_xid
    }

    /// Sends a request and waits for its reply; events that arrive meanwhile are lost.
    pub(super) async fn call(
        &mut self,
        request: ZooKeeperRequest<'_>,
    ) -> Result<Result<Vec<u8>, ErrorCode>, Failure> {
        let number = self.send(request);
        loop {
            match self.next().await? {
                ServerMessage::Reply(Reply { xid, result }) if xid == number => return Ok(result),
                _ => {}
            }
        }
    }

    /// Waits for the next message; cancel safe.
    ///
    /// # Errors
    /// Returns an error if the session or the connection has ended, or the server was silent for
    /// too long.
    pub(super) async fn next(&mut self) -> Result<ServerMessage, Failure> {
        loop {
            if let Some(incoming) = self.buffered()? {
                return Ok(incoming);
            }
            self.transfer().await?;
        }
    }

    /// Returns the next message if it was read already.
    ///
    /// # Errors
    /// The errors are those of [`Self::next`].
    pub(super) fn buffered(&mut self) -> Result<Option<ServerMessage>, Failure> {
        let Some(frame) = self.next_frame(MAX_MESSAGE_BYTES)? else { return Ok(None) };
        let (header, body) = ReplyHeader::parse(&self.input[frame]).map_err(|_| malformed())?;
        let ReplyHeader { xid, zxid, error } = header;
        let code = ErrorCode(error);
        if let Some(failure) = code.of_session(self.login_keys.as_deref()) {
            return Err(failure);
        }
        let incoming = match xid {
            xid::EVENT => match NodeEvent::parse(body).map_err(|_| malformed())? {
                Some(event) => ServerMessage::Event(event),
                None => ServerMessage::Alive,
            },
            xid::PING | xid::AUTH => ServerMessage::Alive,
            _ if self.pending.pop_front() != Some(xid) => return Err(malformed()),
            _ => {
                let result = if error == 0 { Ok(body.to_vec()) } else { Err(code) };
                ServerMessage::Reply(Reply { xid, result })
            }
        };
        // Events have -1, and so have some errors.
        self.last_zxid = self.last_zxid.max(zxid);
        Ok(Some(incoming))
    }

    /// Returns where in the input the next complete record is.
    fn next_frame(&mut self, limit: usize) -> Result<Option<std::ops::Range<usize>>, Failure> {
        let unparsed = &self.input[self.parsed..];
        let Some((length, rest)) = unparsed.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(i32::from_be_bytes(*length)).map_err(|_| malformed())?;
        if length > limit {
            return Err(if limit == MAX_MESSAGE_BYTES && length <= MAX_BELIEVED_BYTES {
                too_long(length)
            } else {
                malformed()
            });
        }
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.parsed + LENGTH_BYTES;
        self.parsed = start + length;
        Ok(Some(start..self.parsed))
    }

    /// Asks the server to end the session, as far as this needs no waiting.
    ///
    /// Without it, the server keeps the session and its watches until the session expires.
    pub(super) fn close(&mut self) {
        self.send(ZooKeeperRequest::Close);
        let mut context = Context::from_waker(Waker::noop());
        let mut writer = Pin::new(&mut self.writer);
        if writer.as_mut().poll_write(&mut context, &self.output[self.written..]).is_ready() {
            let _ = writer.poll_flush(&mut context);
        }
    }

    fn write(&mut self, frame: &[u8]) {
        self.output.extend(frame);
        self.last_sent = Instant::now();
    }

    /// Reads or writes some bytes, or sends a ping; cancel safe.
    async fn transfer(&mut self) -> Result<(), Failure> {
        self.input.drain(..self.parsed);
        self.parsed = 0;
        if self.input.is_empty() && self.input.capacity() > MAX_KEPT_BUFFER_BYTES {
            self.input = Vec::new();
        }
        self.input.reserve(READ_BYTES);
        let has_output = self.written < self.output.len();
        let silent_at = self.last_received + 2 * self.ping_after;
        let ping_at = self.last_sent + self.ping_after;
        tokio::select! {
            // Writing and reading come first: the times count only if nothing has arrived.
            biased;
            written = write_or_flush(&mut self.writer, &self.output[self.written..]),
                if has_output || self.needs_flush =>
            {
                self.written += written.map_err(|error| broken(&error))?;
                self.needs_flush = has_output;
                if self.written == self.output.len() {
                    self.output.clear();
                    self.written = 0;
                }
            }
            read = self.reader.read_buf(&mut self.input) => {
                if read.map_err(|error| broken(&error))? == 0 {
                    return Err(Failure::new(
                        FailureKind::Closed,
                        "the server closed the connection: it may be starting, without a leader, \
                         or have too many connections of this address (maxClientCnxns)",
                    ));
                }
                self.last_received = Instant::now();
            }
            () = sleep_until(silent_at) => {
                let silence = (2 * self.ping_after).as_secs_f64();
                return Err(Failure::connection(format!("no message within {silence:.1} s")));
            }
            () = sleep_until(ping_at) => self.write(&ping()),
        }
        Ok(())
    }
}

/// Writes some bytes, or flushes if there are none; returns the number written. Cancel safe.
async fn write_or_flush(
    writer: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> std::io::Result<usize> {
    if bytes.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    writer.write(bytes).await
}

fn too_long(length: usize) -> Failure {
    let text = format!(
        "the server sent a message of {} MiB, and svcdns reads at most {} MiB: a node has too much \
         data or too many children",
        length >> 20,
        MAX_MESSAGE_BYTES >> 20
    );
    Failure::new(FailureKind::Answer, text)
}

fn broken(error: &std::io::Error) -> Failure {
    Failure::connection(format!("the connection broke: {error}"))
}

async fn connect(settings: &Settings, endpoint: &str) -> Result<Box<dyn SessionStream>, Failure> {
    let target = match &settings.tls {
        Some(tls) => {
            let invalid = |text| Failure::new(FailureKind::Settings, text);
            Some(tls.target(endpoint).await.map_err(invalid)?)
        }
        None => None,
    };
    let stream = TcpStream::connect(endpoint).await;
    let stream = stream.map_err(|error| Failure::connection(describe_connect_error(&error)))?;
    // Without effect on success: requests are written at once.
    let _ = stream.set_nodelay(true);
    let Some((connector, name)) = target else { return Ok(Box::new(stream)) };
    let stream = connector.connect(name, stream).await.map_err(|error| {
        if is_plain_server(&error) {
            return Failure::new(FailureKind::OtherServer, ServerKind::ZooKeeper.no_tls());
        }
        Failure::connection(format!("TLS: {}", describe_handshake_error(&error)))
    })?;
    Ok(Box::new(stream))
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::registry::zookeeper::wire::EventKind;

    /// Session timeout of the tests.
    const TIMEOUT: Duration = Duration::from_secs(9);

    fn frame(record: &[u8]) -> Vec<u8> {
        let length = u32::try_from(record.len()).unwrap().to_be_bytes();
        [&length[..], record].concat()
    }

    /// Returns the message of a server with this number, transaction, error and record.
    fn message(xid: i32, zxid: i64, error: i32, record: &[u8]) -> Vec<u8> {
        let header = [&xid.to_be_bytes()[..], &zxid.to_be_bytes(), &error.to_be_bytes()].concat();
        frame(&[&header, record].concat())
    }

    /// Returns the reply that opens a session with this timeout.
    fn connect_reply(timeout: Duration) -> Vec<u8> {
        let timeout = u32::try_from(timeout.as_millis()).unwrap().to_be_bytes();
        let length = 16_u32.to_be_bytes();
        frame(&[&[0; 4][..], &timeout, &7_i64.to_be_bytes(), &length, &[1; 16], &[0]].concat())
    }

    /// Opens a session with a server that sends this reply; returns its end of the stream.
    async fn open(reply: &[u8]) -> (Result<Option<ZooKeeperConnection>, Failure>, DuplexStream) {
        let (ours, mut server) = duplex(1 << 20);
        server.write_all(reply).await.unwrap();
        let settings = Settings::new(vec!["zk.example:2181".to_owned()]);
        let session = Session::new(TIMEOUT);
        let opened = ZooKeeperConnection::start(&settings, Box::new(ours), session).await;
        let mut connect = vec![0; session.connect_frame().len()];
        if opened.is_ok() {
            server.read_exact(&mut connect).await.unwrap();
            assert_eq!(connect, session.connect_frame());
        }
        (opened, server)
    }

    async fn open_session() -> (ZooKeeperConnection, DuplexStream) {
        let (opened, server) = open(&connect_reply(TIMEOUT)).await;
        (opened.unwrap().unwrap(), server)
    }

    #[tokio::test]
    async fn events_and_replies_arrive_in_the_order_of_the_server() {
        let (mut connection, mut server) = open_session().await;
        assert_eq!(connection.session().id, 7);
        let first = connection.send(ZooKeeperRequest::Data { path: "/a", watch: false });
        let second = connection.send(ZooKeeperRequest::Data { path: "/b", watch: false });
        let event = b"\0\0\0\x02\0\0\0\x03\0\0\0\x02/a";
        let messages = [
            message(first, 5, 0, b"data"),
            message(xid::EVENT, -1, 0, event),
            message(xid::PING, 6, 0, b""),
            message(second, 4, ErrorCode::NO_NODE.0, b""),
        ];
        let write = async {
            for byte in messages.concat() {
                server.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let read = async {
            let mut received = Vec::new();
            for _ in 0..4 {
                received.push(connection.next().await.unwrap());
            }
            received
        };
        let (received, ()) = tokio::join!(read, write);
        let deleted = NodeEvent { kind: EventKind::Deleted, path: "/a".into() };
        let reply = |xid, result| ServerMessage::Reply(Reply { xid, result });
        assert_eq!(
            received,
            [
                reply(first, Ok(b"data".to_vec())),
                ServerMessage::Event(deleted),
                ServerMessage::Alive,
                reply(second, Err(ErrorCode::NO_NODE)),
            ]
        );
        assert_eq!(connection.last_zxid(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_pinged_and_then_left() {
        let (mut connection, mut server) = open_session().await;
        let start = Instant::now();
        let failure = connection.next().await.unwrap_err();
        assert_eq!(start.elapsed(), TIMEOUT * 2 / 3);
        assert_eq!(failure.text, "no message within 6.0 s");
        drop(connection);
        let mut sent = Vec::new();
        server.read_to_end(&mut sent).await.unwrap();
        assert_eq!(sent, ping());
    }

    #[tokio::test(start_paused = true)]
    async fn events_do_not_stop_the_pings() {
        let (mut connection, mut server) = open_session().await;
        let event = message(xid::EVENT, -1, 0, b"\0\0\0\x03\0\0\0\x03\0\0\0\x02/a");
        for _ in 0..8 {
            server.write_all(&event).await.unwrap();
            assert!(matches!(connection.next().await, Ok(ServerMessage::Event(_))));
            let pause = tokio::time::sleep(Duration::from_secs(1));
            tokio::select! {
                message = connection.next() => panic!("{message:?}"),
                () = pause => {}
            }
        }
        drop(connection);
        let mut sent = Vec::new();
        server.read_to_end(&mut sent).await.unwrap();
        assert_eq!(sent, ping().repeat(2), "after 3 s and after 6 s");
    }

    #[tokio::test]
    async fn messages_that_are_not_zookeepers_end_the_session() {
        for junk in [
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            frame(&[0; 300]),
            frame(b"short"),
            u32::MAX.to_be_bytes().to_vec(),
        ] {
            let (opened, _server) = open(&junk).await;
            assert_eq!(opened.err().map(|failure| failure.kind), Some(FailureKind::Answer));
        }
        for junk in [
            message(9, 1, 0, b""),
            message(xid::EVENT, -1, 0, b"\0\0\0\x02"),
            frame(b"short"),
            u32::MAX.to_be_bytes().to_vec(),
            (64 * 1024 * 1024 + 1_u32).to_be_bytes().to_vec(),
        ] {
            let (mut connection, mut server) = open_session().await;
            server.write_all(&junk).await.unwrap();
            assert_eq!(connection.next().await.unwrap_err().kind, FailureKind::Answer, "{junk:?}");
        }
        let (mut connection, mut server) = open_session().await;
        server.write_all(&(65 * 1024 * 1024_u32).to_be_bytes()).await.unwrap();
        let text = connection.next().await.unwrap_err().text;
        assert!(text.contains("65 MiB") && text.contains("at most 64 MiB"), "{text}");
        let (mut connection, mut server) = open_session().await;
        let expired = message(1, 1, ErrorCode::SESSION_EXPIRED.0, b"");
        server.write_all(&expired).await.unwrap();
        assert_eq!(connection.next().await.unwrap_err().text, "the session has expired");
    }

    #[tokio::test]
    async fn an_expired_session_is_not_resumed() {
        let (opened, _server) = open(&connect_reply(Duration::ZERO)).await;
        assert!(opened.unwrap().is_none());
    }
}
