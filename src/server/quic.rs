//! DNS over QUIC (RFC 9250), with one QUIC stream per query.
//!
//! Connections count towards the same limits as those over TCP.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, Incoming, ReadToEndError, RecvStream, SendStream,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_rustls::rustls;
use tracing::{debug, error};

use super::admission::ConnectionPermit;
use super::connection_table::ConnectionUse;
use super::context::ServerContext;
use super::{
    Client, Disposition, DnsTransport, Limits, Respond, StreamCounters, StreamKind, padding,
};
use crate::wire::MAX_TCP_BYTES;

/// The exchange had no error. All of these codes are from RFC 9250 section 4.3.
const DOQ_NO_ERROR: VarInt = VarInt::from_u32(0);
/// The server cannot complete the exchange.
const DOQ_INTERNAL_ERROR: VarInt = VarInt::from_u32(1);
/// The client violated the protocol.
const DOQ_PROTOCOL_ERROR: VarInt = VarInt::from_u32(2);
/// The server closes the connection because of excessive load.
const DOQ_EXCESSIVE_LOAD: VarInt = VarInt::from_u32(4);

/// Flow control window of a connection, in bytes.
///
/// It has room for one query of maximum size or for many ordinary queries.
const RECEIVE_WINDOW_BYTES: u32 = 128 * 1024;
/// Maximum connection attempts that wait in the accept queue.
const MAX_PENDING_HANDSHAKES: usize = 64;
/// Maximum bytes buffered per connection attempt before it is accepted.
///
/// A first flight is about one datagram.
const PENDING_HANDSHAKE_BYTES: u64 = 16 * 1024;

/// A listening socket and the state of its connections.
#[derive(Debug)]
pub(super) struct QuicListener<R> {
    pub(super) endpoint: Endpoint,
    pub(super) address: SocketAddr,
    /// A second descriptor of the endpoint's socket, for a successor.
    socket: UdpSocket,
    /// State shared by all listeners.
    context: Arc<ServerContext<R>>,
}

impl<R> AsFd for QuicListener<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns the QUIC settings of a listening socket.
///
/// # Errors
/// If the TLS library lacks the cipher suite of Initial packets, which is impossible in practice.
pub(super) fn server_config(
    tls: rustls::ServerConfig,
    limits: &Limits,
) -> Result<ServerConfig, NoInitialCipherSuite> {
    let number = |number: usize| VarInt::from_u32(u32::try_from(number).unwrap_or(u32::MAX));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(number(limits.in_flight.max(1)))
        // RFC 9250 section 4.2: each query uses a bidirectional stream, and nothing else is sent.
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(limits.idle_timeout).ok())
        .stream_receive_window(number(MAX_TCP_BYTES + 2))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(limits.queued_bytes.max(1) as u64);
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config
        .transport_config(Arc::new(transport))
        // Access was checked for this address, so the client must not migrate to another.
        .migration(false)
        .max_incoming(MAX_PENDING_HANDSHAKES)
        .incoming_buffer_size(PENDING_HANDSHAKE_BYTES)
        .incoming_buffer_size_total(PENDING_HANDSHAKE_BYTES * MAX_PENDING_HANDSHAKES as u64);
    Ok(config)
}

/// Reason for closing a QUIC connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QuicCloseReason {
    /// The client closed the connection, or it was lost.
    Closed,
    /// The idle timeout expired.
    Idle,
    /// The client violated the protocol.
    ProtocolViolation,
    /// The server stops.
    Stopped,
    /// The connection was closed to make room for others.
    Evicted,
}

impl<R: Respond> QuicListener<R> {
    /// Wraps a bound, non-blocking socket.
    ///
    /// # Errors
    /// If the runtime rejects the socket, or `tls` lacks the cipher suite of Initial packets.
    pub(super) fn new(
        socket: UdpSocket,
        address: SocketAddr,
        context: Arc<ServerContext<R>>,
        tls: rustls::ServerConfig,
    ) -> io::Result<Self> {
        let config = server_config(tls, &context.rules.load().limits).map_err(io::Error::other)?;
        let (own, runtime) = (socket.try_clone()?, Arc::new(TokioRuntime));
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime)?;
        Ok(Self { endpoint, address, socket: own, context })
    }

    /// Accepts connections until the server stops.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let incoming = tokio::select! {
                biased;
                () = self.context.stop.cancelled() => return,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else {
                if !self.context.stop.is_cancelled() {
                    error!(
                        address = %self.address,
                        "DNS over QUIC ended because its socket failed; please report this"
                    );
                }
                return;
            };
            self.admit(incoming);
        }
    }

    /// Spawns a connection's task, or refuses the connection before its handshake.
    fn admit(self: &Arc<Self>, incoming: Incoming) {
        let source = incoming.remote_address().ip();
        if !self.context.rules.load().access.allows(source) {
            self.context.counters.quic.refused.increment();
            return incoming.refuse();
        }
        // Connections are scarce, so the client must validate its address first (RFC 9000 section
        // 8.1.2).
        if self.context.admission.is_busy(source) && !incoming.remote_address_validated() {
            self.context.counters.quic_retries.increment();
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            return;
        }
        let close = self.context.stop.child_token();
        let Some(permit) = self.context.admission.admit(StreamKind::Quic, source, false, close)
        else {
            return incoming.refuse();
        };
        let listener = Arc::clone(self);
        self.context
            .spawn(Box::pin(async move { listener.serve_connection(incoming, permit).await }));
    }

    /// Serves a connection until it closes; holds its permit meanwhile.
    async fn serve_connection(self: &Arc<Self>, incoming: Incoming, permit: Arc<ConnectionPermit>) {
        let handshake = async { incoming.accept()?.await };
        let handshake_timeout = self.context.rules.limit(|limits| limits.handshake_timeout);
        let handshake = permit.await_client(timeout(handshake_timeout, handshake));
        let connection = tokio::select! {
            biased;
            () = permit.closed() => return,
            connection = handshake => match connection {
                Ok(Ok(connection)) => connection,
                failed => {
                    debug!(error = ?failed.map(Result::err), "QUIC handshake failed");
                    self.context.counters.quic.failed_handshakes.increment();
                    return;
                }
            },
        };
        let mut streams = JoinSet::new();
        permit.touch();
        let mut reason = self.serve_streams(&connection, &permit, &mut streams).await;
        if reason == QuicCloseReason::Stopped {
            // Queries received before the stop still get a response unless the client violates the
            // protocol.
            while let Some(ended) = streams.join_next().await {
                if self.record_stream_end(&ended) {
                    reason = QuicCloseReason::ProtocolViolation;
                    break;
                }
            }
        }
        debug!(?reason, "QUIC connection closed");
        let code = match reason {
            QuicCloseReason::ProtocolViolation => {
                self.counters().broken.increment();
                DOQ_PROTOCOL_ERROR
            }
            QuicCloseReason::Idle => {
                self.counters().idle_timeouts.increment();
                DOQ_NO_ERROR
            }
            QuicCloseReason::Evicted => DOQ_EXCESSIVE_LOAD,
            QuicCloseReason::Closed | QuicCloseReason::Stopped => DOQ_NO_ERROR,
        };
        connection.close(code, b"");
    }

    /// Accepts streams, and answers the query of each in its own task.
    async fn serve_streams(
        self: &Arc<Self>,
        connection: &quinn::Connection,
        connection_permit: &Arc<ConnectionPermit>,
        streams: &mut JoinSet<Result<(), ProtocolViolation>>,
    ) -> QuicCloseReason {
        let permits = Arc::new(Semaphore::new(
            self.context.rules.limit(|limits| limits.in_flight).clamp(1, 1 << 16),
        ));
        let client = Client {
            source: connection.remote_address(),
            // The connection's address is more exact than the listener's, which may be a wildcard.
            destination: SocketAddr::new(
                connection.local_ip().unwrap_or_else(|| self.address.ip()),
                self.address.port(),
            ),
            transport: DnsTransport::Stream(StreamKind::Quic),
        };
        loop {
            let idle_timeout = self.context.rules.limit(|limits| limits.idle_timeout);
            let next = async {
                // The permit outlives a cancelled stream, so cancelling queries does not raise the
                // number in flight.
                let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
                connection.accept_bi().await.ok().map(|streams| (streams, permit))
            };
            tokio::select! {
                biased;
                () = connection_permit.closed() => {
                    return if connection_permit.is_evicted() {
                        QuicCloseReason::Evicted
                    } else {
                        QuicCloseReason::Stopped
                    };
                }
                Some(ended) = streams.join_next() => if self.record_stream_end(&ended) {
                    return QuicCloseReason::ProtocolViolation;
                },
                next = timeout(idle_timeout, next) => match next {
                    Ok(Some(((send, receive), permit))) => {
                        let connection = Arc::clone(connection_permit);
                        streams.spawn(
                            Arc::clone(self)
                                .serve_stream(client, connection, send, receive, permit),
                        );
                    }
                    Ok(None) => return QuicCloseReason::Closed,
                    Err(_) if streams.is_empty() => return QuicCloseReason::Idle,
                    // The connection has a pending response, so it is not idle.
                    Err(_) => {}
                },
            }
        }
    }

    /// Counts a panic; returns whether the client violated the protocol.
    fn record_stream_end(&self, ended: &Result<Result<(), ProtocolViolation>, JoinError>) -> bool {
        match ended {
            Err(failure) if failure.is_panic() => {
                if self.context.counters.panics.increment().is_power_of_two() {
                    error!("caught a panic while responding over QUIC; please report this");
                }
                false
            }
            Ok(Err(ProtocolViolation)) => true,
            _ => false,
        }
    }

    /// Reads the query of a stream, and writes its response.
    async fn serve_stream(
        self: Arc<Self>,
        client: Client,
        connection: Arc<ConnectionPermit>,
        send: SendStream,
        mut receive: RecvStream,
        _permit: OwnedSemaphorePermit,
    ) -> Result<(), ProtocolViolation> {
        let mut stream = ResponseStream(send);
        let read = timeout(
            self.context.rules.limit(|limits| limits.message_timeout),
            receive.read_to_end(MAX_TCP_BYTES + 2),
        );
        let request = match connection.await_client(read).await {
            Ok(Ok(bytes)) => parse_framed(&bytes)?.to_vec(),
            Ok(Err(ReadToEndError::TooLong)) => return Err(ProtocolViolation),
            // The client cancelled the query, or the connection ended.
            Ok(Err(ReadToEndError::Read(_))) => return Ok(()),
            Err(_) => {
                self.counters().message_timeouts.increment();
                let _ = receive.stop(DOQ_INTERNAL_ERROR);
                return Ok(());
            }
        };
        connection.touch();
        let padded = padding::is_wanted(&request, StreamKind::Quic);
        let Some(mut response) = self.respond(request, client, &connection).await else {
            return Ok(());
        };
        if padded {
            padding::pad(&mut response);
        }
        let Ok(length) = u16::try_from(response.len()) else {
            error!(
                bytes = response.len(),
                "response too long for DNS over QUIC, dropped; please report this"
            );
            return Ok(());
        };
        response.splice(0..0, length.to_be_bytes());
        let arrived = self.send(&mut stream.0, &response, &connection);
        if timeout(self.context.rules.limit(|limits| limits.write_timeout), arrived).await.is_err()
        {
            self.counters().write_timeouts.increment();
        }
        Ok(())
    }

    /// Writes a framed response, and waits until the client has acknowledged all of it.
    ///
    /// Returns `None` if the client does not want it, or the connection has ended.
    async fn send(
        &self,
        stream: &mut SendStream,
        response: &[u8],
        connection: &Arc<ConnectionPermit>,
    ) -> Option<()> {
        // Unlike over TCP, a stream that is not read does not delay the others.
        let blocks = ConnectionUse::Remainder;
        let written = stream.write_all(response);
        connection.await_room(response.len(), blocks, written).await.ok()?;
        stream.finish().ok()?;
        self.counters().responses.increment();
        // The connection no longer waits for its client, as over TCP once the kernel has the
        // response. A connection with a steady stream of queries always waits for some
        // acknowledgement.
        connection.touch();
        // The response is in memory until it is acknowledged, because it may have to be sent again.
        let _unacknowledged = connection.hold(response.len());
        stream.stopped().await.ok().map(drop)
    }

    /// Returns the response to a query, once it is available.
    async fn respond(
        &self,
        request: Vec<u8>,
        client: Client,
        connection: &Arc<ConnectionPermit>,
    ) -> Option<Vec<u8>> {
        let ServerContext { rules, responder, .. } = &*self.context;
        let sampled = self.counters().count_query();
        let received = rules.load().tap.receive();
        let mut response = Vec::with_capacity(512);
        let ready = match responder.respond_alone(&request, &client, &mut response) {
            Disposition::Ready => Some(response),
            Disposition::Silent => None,
            Disposition::Deferred => {
                let _in_progress = connection.begin(ConnectionUse::Query);
                return self
                    .context
                    .await_response(StreamKind::Quic, request, client, received)
                    .await;
            }
        };
        if let Some(received) = received {
            rules.load().tap.report(&client, &request, ready.as_deref(), received);
        }
        if let Some(sampled) = sampled {
            self.counters().times.immediate.observe(sampled.elapsed());
        }
        ready
    }

    /// Returns the counters of DNS over QUIC.
    fn counters(&self) -> &StreamCounters {
        self.context.counters.of(StreamKind::Quic)
    }
}

/// The sending side of a stream; reset on drop unless all data has arrived.
///
/// Without the reset, an abandoned stream would look like an empty response.
struct ResponseStream(SendStream);

impl Drop for ResponseStream {
    fn drop(&mut self) {
        // The reset has no effect if all data has arrived.
        let _ = self.0.reset(DOQ_INTERNAL_ERROR);
    }
}

/// Error: the client violated the protocol, so the server closes the connection.
///
/// See RFC 9250 section 4.3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProtocolViolation;

/// Returns the single message of a stream (RFC 9250 section 4.2).
///
/// The message ID must be 0 (section 4.2.1).
fn parse_framed(bytes: &[u8]) -> Result<&[u8], ProtocolViolation> {
    let (length, message) = bytes.split_first_chunk::<2>().ok_or(ProtocolViolation)?;
    if usize::from(u16::from_be_bytes(*length)) == message.len() && message.starts_with(&[0, 0]) {
        Ok(message)
    } else {
        Err(ProtocolViolation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_contains_one_message_with_id_0() {
        assert_eq!(parse_framed(&[0, 3, 0, 0, 7]), Ok(&[0, 0, 7][..]));
        for bytes in [
            &[][..],
            &[0],
            &[0, 0],
            &[0, 1, 0],
            &[0, 2, 0, 1],
            &[0, 3, 0, 0],
            &[0, 3, 0, 0, 7, 8],
            &[0, 2, 0, 0, 0, 2, 0, 0],
        ] {
            assert_eq!(parse_framed(bytes), Err(ProtocolViolation), "{bytes:?}");
        }
    }
}
