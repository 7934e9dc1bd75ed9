//! Accepts connections over TCP and TLS, within the connection limits.

use std::io;
use std::net::{self, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::admission::ConnectionPermit;
use super::backoff::ErrorBackoff;
use super::connection::StreamConnection;
use super::context::ServerContext;
use super::{Respond, StreamKind};

/// Pause after which no more connections were complete before the stop.
const LAST_ACCEPT_PAUSE: Duration = Duration::from_millis(5);
/// Connections that are accepted after the stop, from clients that make no pause.
const MAX_LAST_CONNECTIONS: usize = 256;

/// A listening socket and the state of its connections.
pub(super) struct StreamListener<R> {
    socket: TcpListener,
    pub(super) address: SocketAddr,
    /// State shared by all listeners.
    context: Arc<ServerContext<R>>,
    /// Performs TLS handshakes (RFC 7858); `None` for plain TCP.
    tls: Option<TlsAcceptor>,
}

impl<R> AsFd for StreamListener<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<R: Respond> StreamListener<R> {
    /// Wraps a non-blocking socket.
    ///
    /// # Errors
    /// If the runtime rejects the socket.
    pub(super) fn new(
        socket: net::TcpListener,
        address: SocketAddr,
        context: Arc<ServerContext<R>>,
        tls: Option<TlsAcceptor>,
    ) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::from_std(socket)?, address, context, tls })
    }

    /// Accepts connections until the server stops; survives socket errors.
    pub(super) async fn run(self: Arc<Self>) {
        let mut backoff = ErrorBackoff::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.context.stop.cancelled() => return self.accept_rest().await,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, source)) => {
                    backoff.reset();
                    self.admit(stream, source);
                    if self.context.admission.has_evicted() {
                        // Usually, the evicted connection then closes before the next accept, which
                        // keeps descriptors free. If they run out all the same, accepting pauses.
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) => {
                    if is_out_of_descriptors(&error) {
                        self.context.admission.make_room();
                    }
                    let pause = backoff.next();
                    if self
                        .context
                        .counters
                        .of(self.kind())
                        .accept_errors
                        .increment()
                        .is_power_of_two()
                    {
                        warn!(
                            address = %self.address,
                            %error,
                            transport = self.kind().name(),
                            "cannot accept connections; retrying"
                        );
                    }
                    tokio::select! {
                        () = self.context.stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// Accepts the connections that were complete before the stop: a query may have arrived.
    ///
    /// Closing the socket would reset them, unless a successor has it, too.
    async fn accept_rest(self: &Arc<Self>) {
        if self.context.open.are_handed_over() {
            return;
        }
        for _ in 0..MAX_LAST_CONNECTIONS {
            let Ok(Ok((stream, source))) = timeout(LAST_ACCEPT_PAUSE, self.socket.accept()).await
            else {
                return;
            };
            self.admit(stream, source);
        }
    }

    /// Spawns a connection's task, or closes the connection if a limit is reached.
    fn admit(self: &Arc<Self>, stream: TcpStream, source: SocketAddr) {
        let allowed = self.context.rules.load().access.allows(source.ip());
        if !allowed {
            self.context.counters.of(self.kind()).refused.increment();
            if self.tls.is_some() {
                // Refusing the query would need a handshake.
                return;
            }
        }
        let close = self.context.stop.child_token();
        let Some(permit) = self.context.admission.admit(self.kind(), source.ip(), !allowed, close)
        else {
            return;
        };
        // Responses are written whole: Nagle's algorithm would only delay them.
        let _ = stream.set_nodelay(true);
        let listener = Arc::clone(self);
        self.context
            .spawn(async move { listener.serve_connection(stream, source, allowed, permit).await });
    }

    /// Serves a connection until it closes; holds its permit until then.
    async fn serve_connection(
        &self,
        stream: TcpStream,
        source: SocketAddr,
        allowed: bool,
        permit: Arc<ConnectionPermit>,
    ) {
        // The connection's address is more exact than the listener's, which may be a wildcard.
        let destination = stream.local_addr().unwrap_or(self.address);
        let connection = StreamConnection {
            kind: self.kind(),
            source,
            destination,
            context: &self.context,
            permit: &permit,
        };
        // Each is boxed, so that an idle connection takes no memory for the handshake of the other
        // kind.
        match &self.tls {
            None => Box::pin(connection.serve(stream, allowed)).await,
            Some(tls) => Box::pin(Self::serve_encrypted(connection, tls, stream)).await,
        }
    }

    /// Performs the handshake, then serves the connection.
    async fn serve_encrypted(
        connection: StreamConnection<'_, R>,
        tls: &TlsAcceptor,
        stream: TcpStream,
    ) {
        let StreamConnection { context, permit, .. } = connection;
        let handshake_timeout = context.rules.limit(|limits| limits.handshake_timeout);
        let handshake = timeout(handshake_timeout, tls.accept(stream));
        let handshake = tokio::select! {
            biased;
            () = permit.closed() => return,
            handshake = permit.await_client(handshake) => handshake,
        };
        match handshake {
            Ok(Ok(stream)) => {
                permit.touch();
                connection.serve(stream, true).await;
            }
            failed => {
                debug!(error = ?failed.map(Result::err), "TLS handshake failed");
                context.counters.tls.failed_handshakes.increment();
            }
        }
    }

    /// Returns the kind of this listener's connections.
    pub(super) fn kind(&self) -> StreamKind {
        if self.tls.is_some() { StreamKind::Tls } else { StreamKind::Tcp }
    }
}

/// Returns whether the process or the system has no free file descriptor.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .is_some_and(|code| matches!(Errno::from_raw(code), Errno::EMFILE | Errno::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Limits;
    use crate::server::connection::append_framed;
    use crate::server::context::tests::context;
    use crate::server::echo::Echo;
    use std::io::ErrorKind;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct TcpFixture {
        context: Arc<ServerContext<Echo>>,
        client: TcpStream,
    }

    async fn connected(limits: Limits) -> TcpFixture {
        let socket = net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let (address, context) = (socket.local_addr().unwrap(), context(limits));
        let listener =
            Arc::new(StreamListener::new(socket, address, Arc::clone(&context), None).unwrap());
        tokio::spawn(listener.run());
        let client = TcpStream::connect(address).await.unwrap();
        TcpFixture { context, client }
    }

    impl TcpFixture {
        async fn send(&mut self, messages: &[&str]) {
            let mut bytes = Vec::new();
            for message in messages {
                append_framed(&mut bytes, message.as_bytes());
            }
            self.client.write_all(&bytes).await.unwrap();
        }

        /// Returns the next response, or the error that ended the connection.
        async fn next(&mut self) -> io::Result<String> {
            let read = async {
                let length = self.client.read_u16().await?;
                let mut response = vec![0; length.into()];
                self.client.read_exact(&mut response).await?;
                Ok(String::from_utf8(response).unwrap())
            };
            timeout(Duration::from_secs(60), read)
                .await
                .expect("a response or an end within a minute")
        }
    }

    #[tokio::test]
    async fn a_slow_response_does_not_delay_others() {
        let mut fixture = connected(Limits::default()).await;
        fixture.send(&["hold 1", "quick 2", "quick 3"]).await;
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 2");
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 3");
        fixture.context.responder.release();
        assert_eq!(fixture.next().await.unwrap(), "tcp hold 1, at last");
    }

    #[tokio::test]
    async fn reading_stops_at_the_in_flight_limit() {
        let mut fixture = connected(Limits { in_flight: 2, ..Limits::default() }).await;
        fixture.send(&["hold 1", "hold 2", "quick 3"]).await;
        // Released one by one: the third query is not even read before, so the first response
        // cannot be its.
        while fixture.context.counters.tcp.queries.get() < 2 {
            tokio::task::yield_now().await;
        }
        fixture.context.responder.release();
        assert!(fixture.next().await.unwrap().starts_with("tcp hold"));
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 3");
        fixture.context.responder.release();
        assert!(fixture.next().await.unwrap().starts_with("tcp hold"));
    }

    #[tokio::test]
    async fn deferred_responses_time_out() {
        let limits = Limits {
            response_timeout: Duration::from_millis(30),
            in_flight: 1,
            ..Limits::default()
        };
        let mut fixture = connected(limits).await;
        fixture.send(&["never 1", "quick 2"]).await;
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 2");
        assert_eq!(fixture.context.counters.tcp.response_timeouts.get(), 1);
    }

    #[tokio::test]
    async fn a_connection_with_a_pending_response_is_not_idle() {
        let mut fixture =
            connected(Limits { idle_timeout: Duration::from_millis(30), ..Limits::default() })
                .await;
        fixture.send(&["hold 1"]).await;
        // Several times the idle timeout.
        tokio::time::sleep(Duration::from_millis(200)).await;
        fixture.send(&["quick 2"]).await;
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 2");
        fixture.context.responder.release();
        assert_eq!(fixture.next().await.unwrap(), "tcp hold 1, at last");
        assert_eq!(fixture.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(fixture.context.counters.tcp.idle_timeouts.get(), 1);
    }

    #[tokio::test]
    async fn a_panic_loses_one_response() {
        let mut fixture = connected(Limits::default()).await;
        fixture.send(&["panic-later 1", "quick 2"]).await;
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 2");
        fixture.client.shutdown().await.unwrap();
        assert_eq!(fixture.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(fixture.context.counters.panics.get(), 1);
    }

    #[tokio::test]
    async fn a_half_closed_client_gets_its_pending_responses() {
        let mut fixture = connected(Limits::default()).await;
        fixture.send(&["hold 1", "quick 2"]).await;
        fixture.client.shutdown().await.unwrap();
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 2");
        fixture.context.responder.release();
        assert_eq!(fixture.next().await.unwrap(), "tcp hold 1, at last");
        assert_eq!(fixture.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn queries_that_arrived_before_the_stop_are_answered() {
        let mut fixture = connected(Limits::default()).await;
        fixture.send(&["hold 1"]).await;
        while fixture.context.counters.tcp.queries.get() < 1 {
            tokio::task::yield_now().await;
        }
        // Nothing of this runtime reads between the two.
        fixture.send(&["quick 2", "quick 3"]).await;
        fixture.context.stop.cancel();
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 2");
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 3");
        fixture.context.responder.release();
        assert_eq!(fixture.next().await.unwrap(), "tcp hold 1, at last");
        assert_eq!(fixture.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn queries_after_the_stop_are_not_answered_and_not_reset() {
        let mut fixture = connected(Limits::default()).await;
        fixture.send(&["hold 1"]).await;
        while fixture.context.counters.tcp.queries.get() < 1 {
            tokio::task::yield_now().await;
        }
        fixture.context.stop.cancel();
        // The connection has stopped to read once this time has passed several times.
        tokio::time::sleep(Duration::from_secs(1)).await;
        fixture.send(&["quick 2"]).await;
        fixture.context.responder.release();
        assert_eq!(fixture.next().await.unwrap(), "tcp hold 1, at last");
        assert_eq!(fixture.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(fixture.context.counters.tcp.queries.get(), 1);
    }

    #[tokio::test]
    async fn a_connection_that_was_complete_before_the_stop_is_served() {
        let socket = net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let (address, context) = (socket.local_addr().unwrap(), context(Limits::default()));
        let client = TcpStream::connect(address).await.unwrap();
        let mut fixture = TcpFixture { context: Arc::clone(&context), client };
        fixture.send(&["quick 1"]).await;
        context.stop.cancel();
        let listener = StreamListener::new(socket, address, context, None).unwrap();
        Arc::new(listener).run().await;
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 1");
        assert_eq!(fixture.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
