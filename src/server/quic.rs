//! DNS over QUIC (RFC 9250): a connection is admitted as over TCP, and each question has a stream of its own.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, Incoming, ReadToEndError, RecvStream, SendStream, ServerConfig, TokioRuntime, TransportConfig,
    VarInt,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_rustls::rustls;
use tracing::{debug, error};

use super::admission::Place;
use super::serving::Serving;
use super::{Client, DnsTransport, Limits, Respond, Response, StreamCounters, StreamKind, padding};
use crate::wire::TCP_MAX;

/// Nothing went wrong (RFC 9250 section 4.3, as the others).
const DOQ_NO_ERROR: VarInt = VarInt::from_u32(0);
/// We cannot answer.
const DOQ_INTERNAL_ERROR: VarInt = VarInt::from_u32(1);
/// The client does what no client may.
const DOQ_PROTOCOL_ERROR: VarInt = VarInt::from_u32(2);

/// Octets of questions that may be under way on one connection: one of the greatest length, or many of the usual one.
const RECEIVE_WINDOW: u32 = 128 * 1024;
/// Attempts at a connection that may wait to be looked at; each is looked at at once.
const MOST_INCOMING: usize = 64;
/// Octets that may come ahead of a handshake's end, of one attempt; the first flight is about one datagram.
const INCOMING_OCTETS: u64 = 16 * 1024;

/// One listening socket and what its connections need.
#[derive(Debug)]
pub(super) struct QuicListener<R> {
    pub(super) endpoint: Endpoint,
    pub(super) address: SocketAddr,
    /// What all listeners share.
    serving: Arc<Serving<R>>,
}

/// The settings of a listening socket.
///
/// # Errors
/// When the library has no cipher that QUIC begins with: never.
fn config(tls: rustls::ServerConfig, limits: &Limits) -> Result<ServerConfig, NoInitialCipherSuite> {
    let number = |number: usize| VarInt::from_u32(u32::try_from(number).unwrap_or(u32::MAX));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(number(limits.in_flight.max(1)))
        // RFC 9250 section 4.2: each question has a stream in both directions, and nothing else is sent.
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(limits.idle_timeout).ok())
        .stream_receive_window(number(TCP_MAX + 2))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(limits.queued_octets.max(1) as u64);
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config
        .transport_config(Arc::new(transport))
        // Whoever was let in stays where it was let in from.
        .migration(false)
        .max_incoming(MOST_INCOMING)
        .incoming_buffer_size(INCOMING_OCTETS)
        .incoming_buffer_size_total(INCOMING_OCTETS * MOST_INCOMING as u64);
    Ok(config)
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client has closed it, or it was lost.
    Closed,
    /// Nothing was asked for long enough.
    Idle,
    /// The client broke the rules.
    Malformed,
    /// The server stops.
    Stopped,
}

impl<R: Respond> QuicListener<R> {
    /// A listener with this socket, which must not block.
    ///
    /// # Errors
    /// When the runtime does not take the socket, or `tls` lacks the cipher QUIC begins with.
    pub(super) fn new(socket: UdpSocket, address: SocketAddr, serving: Arc<Serving<R>>, tls: rustls::ServerConfig) -> io::Result<Self> {
        let config = config(tls, &serving.limits).map_err(io::Error::other)?;
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))?;
        Ok(Self { endpoint, address, serving })
    }

    /// Accepts until the server stops.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let incoming = tokio::select! {
                biased;
                () = self.serving.stop.cancelled() => return,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else {
                if !self.serving.stop.is_cancelled() {
                    error!(address = %self.address, "DNS over QUIC has ended: its socket is lost; please report this");
                }
                return;
            };
            self.admit(incoming);
        }
    }

    /// Starts the task of a connection, or refuses it before a handshake costs anything.
    fn admit(self: &Arc<Self>, incoming: Incoming) {
        let source = incoming.remote_address().ip();
        if !self.serving.access.allows(source) {
            self.serving.counters.quic.refused.increment();
            return incoming.refuse();
        }
        // Places are few: first the source has to show that it is where it says (RFC 9000 section 8.1.2).
        if self.serving.admission.is_busy() && !incoming.remote_address_validated() {
            self.serving.counters.quic_retries.increment();
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            return;
        }
        let Some(place) = self.serving.admission.admit(StreamKind::Quic, source, false) else { return incoming.refuse() };
        let listener = Arc::clone(self);
        self.serving.spawn(async move { listener.hold(incoming, place).await });
    }

    /// Lives as long as the connection, and keeps its place.
    async fn hold(self: &Arc<Self>, incoming: Incoming, _place: Place) {
        let handshake = async { incoming.accept()?.await };
        let connection = tokio::select! {
            biased;
            () = self.serving.stop.cancelled() => return,
            connection = timeout(self.serving.limits.handshake_timeout, handshake) => match connection {
                Ok(Ok(connection)) => connection,
                failed => {
                    debug!(error = ?failed.map(Result::err), "a connection did not come to be encrypted");
                    self.serving.counters.quic.failed_handshakes.increment();
                    return;
                }
            },
        };
        let mut answers = JoinSet::new();
        let mut end = self.converse(&connection, &mut answers).await;
        if end == End::Stopped {
            // What was asked before is still answered, as long as its client keeps to the rules.
            while let Some(ended) = answers.join_next().await {
                if self.reap(&ended) {
                    end = End::Malformed;
                    break;
                }
            }
        }
        debug!(?end, "a connection over QUIC ends");
        let code = match end {
            End::Malformed => {
                self.counted().broken.increment();
                DOQ_PROTOCOL_ERROR
            }
            End::Idle => {
                self.counted().idle_timeouts.increment();
                DOQ_NO_ERROR
            }
            End::Closed | End::Stopped => DOQ_NO_ERROR,
        };
        connection.close(code, b"");
    }

    /// Takes streams, and has the question of each answered in a task of its own.
    async fn converse(self: &Arc<Self>, connection: &quinn::Connection, answers: &mut JoinSet<Result<(), Malformed>>) -> End {
        let places = Arc::new(Semaphore::new(self.serving.limits.in_flight.clamp(1, 1 << 16)));
        let client = Client {
            source: connection.remote_address(),
            // More exact than the listener's own address, which may be a wildcard.
            destination: SocketAddr::new(connection.local_ip().unwrap_or_else(|| self.address.ip()), self.address.port()),
            transport: DnsTransport::Stream(StreamKind::Quic),
        };
        loop {
            let next = async {
                // A client that takes back its questions gets no more of them under way for it.
                let place = Arc::clone(&places).acquire_owned().await.ok()?;
                connection.accept_bi().await.ok().map(|streams| (streams, place))
            };
            tokio::select! {
                biased;
                () = self.serving.stop.cancelled() => return End::Stopped,
                Some(ended) = answers.join_next() => if self.reap(&ended) {
                    return End::Malformed;
                },
                next = timeout(self.serving.limits.idle_timeout, next) => match next {
                    Ok(Some(((send, receive), place))) => {
                        answers.spawn(Arc::clone(self).stream(client, send, receive, place));
                    }
                    Ok(None) => return End::Closed,
                    Err(_) if answers.is_empty() => return End::Idle,
                    // A connection that is owed an answer is not idle.
                    Err(_) => {}
                },
            }
        }
    }

    /// Takes note of how a stream has ended; says whether its client broke the rules.
    fn reap(&self, ended: &Result<Result<(), Malformed>, JoinError>) -> bool {
        match ended {
            Err(failure) if failure.is_panic() => {
                if self.serving.counters.panics.increment().is_power_of_two() {
                    error!("a panic while answering over QUIC was contained; please report this");
                }
                false
            }
            Ok(Err(Malformed)) => true,
            _ => false,
        }
    }

    /// Reads the question of a stream, and writes its answer.
    async fn stream(
        self: Arc<Self>,
        client: Client,
        send: SendStream,
        mut receive: RecvStream,
        _place: OwnedSemaphorePermit,
    ) -> Result<(), Malformed> {
        let mut reply = Reply(send);
        let request = match timeout(self.serving.limits.message_timeout, receive.read_to_end(TCP_MAX + 2)).await {
            Ok(Ok(octets)) => message(&octets)?.to_vec(),
            Ok(Err(ReadToEndError::TooLong)) => return Err(Malformed),
            // The client has taken it back, or the connection has ended.
            Ok(Err(ReadToEndError::Read(_))) => return Ok(()),
            Err(_) => {
                self.counted().message_timeouts.increment();
                let _ = receive.stop(DOQ_INTERNAL_ERROR);
                return Ok(());
            }
        };
        self.counted().queries.increment();
        let padded = padding::is_wanted(&request, StreamKind::Quic);
        let Some(mut answer) = self.answer(request, client).await else { return Ok(()) };
        if padded {
            padding::pad(&mut answer);
        }
        let Ok(length) = u16::try_from(answer.len()) else {
            error!(octets = answer.len(), "an answer is too long for DNS over QUIC and was left out; please report this");
            return Ok(());
        };
        let written = async {
            reply.0.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat()).await.ok()?;
            reply.0.finish().ok()?;
            self.counted().answers.increment();
            // Until it has arrived: what is under way when a connection is closed is lost.
            reply.0.stopped().await.ok()
        };
        if timeout(self.serving.limits.write_timeout, written).await.is_err() {
            self.counted().write_timeouts.increment();
        }
        Ok(())
    }

    /// The answer to a query, once it is there.
    async fn answer(&self, request: Vec<u8>, client: Client) -> Option<Vec<u8>> {
        let Serving { tap, responder, .. } = &*self.serving;
        let received = tap.receive();
        let mut answer = Vec::with_capacity(512);
        let answered = match responder.respond_alone(&request, &client, &mut answer) {
            Response::Ready => Some(answer),
            Response::Silent => None,
            Response::Later => return self.serving.later(StreamKind::Quic, request, client, received).await,
        };
        if let Some(received) = received {
            tap.finished(&client, &request, answered.as_deref(), received);
        }
        answered
    }

    fn counted(&self) -> &StreamCounters {
        self.serving.counters.of(StreamKind::Quic)
    }
}

/// The way of an answer. Given up before all of it has arrived, it says so: left alone, it would look like an empty answer.
struct Reply(SendStream);

impl Drop for Reply {
    fn drop(&mut self) {
        // Says nothing where all has arrived.
        let _ = self.0.reset(DOQ_INTERNAL_ERROR);
    }
}

/// What no client may send: the connection is closed for it (RFC 9250 section 4.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Malformed;

/// The one message of a stream (RFC 9250 section 4.2), which has id 0 (section 4.2.1).
fn message(octets: &[u8]) -> Result<&[u8], Malformed> {
    let (length, message) = octets.split_first_chunk::<2>().ok_or(Malformed)?;
    if usize::from(u16::from_be_bytes(*length)) == message.len() && message.starts_with(&[0, 0]) { Ok(message) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_holds_one_message_with_id_0() {
        assert_eq!(message(&[0, 3, 0, 0, 7]), Ok(&[0, 0, 7][..]));
        for octets in [&[][..], &[0], &[0, 0], &[0, 1, 0], &[0, 2, 0, 1], &[0, 3, 0, 0], &[0, 3, 0, 0, 7, 8], &[0, 2, 0, 0, 0, 2, 0, 0]] {
            assert_eq!(message(octets), Err(Malformed), "{octets:?}");
        }
    }
}
