//! TCP and TLS over it: accepting connections, as many as there are places for.

use std::io;
use std::net::{self, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::admission::Place;
use super::backoff::Backoff;
use super::connection::{Activity, Connection};
use super::serving::Serving;
use super::{Respond, StreamKind};

/// One listening socket and what its connections need.
pub(super) struct Listener<R> {
    socket: TcpListener,
    pub(super) address: SocketAddr,
    /// What all listeners share.
    serving: Arc<Serving<R>>,
    /// Agrees on the encryption (RFC 7858); none for plain TCP.
    tls: Option<TlsAcceptor>,
}

impl<R: Respond> Listener<R> {
    /// A listener with this socket, which must not block.
    ///
    /// # Errors
    /// When the runtime does not take the socket.
    pub(super) fn new(
        socket: net::TcpListener,
        address: SocketAddr,
        serving: Arc<Serving<R>>,
        tls: Option<TlsAcceptor>,
    ) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::from_std(socket)?, address, serving, tls })
    }

    /// Accepts until the server stops; survives every error of the socket.
    pub(super) async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.serving.stop.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, source)) => {
                    backoff.reset();
                    self.admit(stream, source);
                }
                Err(error) => {
                    let pause = backoff.next();
                    if self.serving.counters.of(self.kind()).accept_errors.increment().is_power_of_two() {
                        warn!(address = %self.address, %error, kind = self.kind().name(), "cannot accept connections at the moment; trying again");
                    }
                    tokio::select! {
                        () = self.serving.stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// Starts the task of a connection, or closes it at once where there is no place for it.
    fn admit(self: &Arc<Self>, stream: TcpStream, source: SocketAddr) {
        let allowed = self.serving.access.allows(source.ip());
        if !allowed {
            self.serving.counters.of(self.kind()).refused.increment();
            if self.tls.is_some() {
                // A refusal would cost a handshake, which is not for strangers.
                return;
            }
        }
        let Some(place) = self.serving.admission.admit(self.kind(), source.ip(), !allowed) else { return };
        // Answers are written whole; waiting to fill a segment would only delay them.
        let _ = stream.set_nodelay(true);
        let listener = Arc::clone(self);
        self.serving.spawn(async move { listener.hold(stream, source, allowed, place).await });
    }

    /// Lives as long as the connection, and keeps its place.
    async fn hold(&self, stream: TcpStream, source: SocketAddr, allowed: bool, _place: Place) {
        // More exact than the listener's own address, which may be a wildcard.
        let destination = stream.local_addr().unwrap_or(self.address);
        let connection = Connection { kind: self.kind(), source, destination, serving: &self.serving, activity: Activity::new() };
        let Some(tls) = &self.tls else { return connection.hold(stream, allowed).await };
        let agreed = tokio::select! {
            biased;
            () = self.serving.stop.cancelled() => return,
            agreed = timeout(self.serving.limits.handshake_timeout, tls.accept(stream)) => agreed,
        };
        match agreed {
            Ok(Ok(stream)) => {
                connection.activity.touch();
                connection.hold(stream, allowed).await;
            }
            failed => {
                debug!(error = ?failed.map(Result::err), "a connection did not come to be encrypted");
                self.serving.counters.tls.failed_handshakes.increment();
            }
        }
    }

    /// The kind of its connections.
    pub(super) fn kind(&self) -> StreamKind {
        if self.tls.is_some() { StreamKind::Tls } else { StreamKind::Tcp }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Limits;
    use crate::server::connection::append;
    use crate::server::echo::Echo;
    use crate::server::serving::tests::serving;
    use std::io::ErrorKind;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Fixture {
        serving: Arc<Serving<Echo>>,
        client: TcpStream,
    }

    async fn connected(limits: Limits) -> Fixture {
        let socket = net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let (address, serving) = (socket.local_addr().unwrap(), serving(limits));
        let listener = Arc::new(Listener::new(socket, address, Arc::clone(&serving), None).unwrap());
        tokio::spawn(listener.run());
        let client = TcpStream::connect(address).await.unwrap();
        Fixture { serving, client }
    }

    impl Fixture {
        async fn send(&mut self, messages: &[&str]) {
            let mut octets = Vec::new();
            for message in messages {
                append(&mut octets, message.as_bytes());
            }
            self.client.write_all(&octets).await.unwrap();
        }

        /// The next answer, or how the connection ended.
        async fn next(&mut self) -> io::Result<String> {
            let read = async {
                let length = self.client.read_u16().await?;
                let mut answer = vec![0; length.into()];
                self.client.read_exact(&mut answer).await?;
                Ok(String::from_utf8(answer).unwrap())
            };
            timeout(Duration::from_secs(60), read).await.expect("an answer or an end within a minute")
        }
    }

    #[tokio::test]
    async fn a_slow_answer_holds_up_no_other() {
        let mut fixture = connected(Limits::default()).await;
        fixture.send(&["hold 1", "quick 2", "quick 3"]).await;
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 2");
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 3");
        fixture.serving.responder.release();
        assert_eq!(fixture.next().await.unwrap(), "tcp hold 1, at last");
    }

    #[tokio::test]
    async fn no_more_messages_are_taken_than_may_be_in_flight() {
        let mut fixture = connected(Limits { in_flight: 2, ..Limits::default() }).await;
        fixture.send(&["hold 1", "hold 2", "quick 3"]).await;
        // Released one by one: what comes first is never the third, which is not even read before.
        while fixture.serving.counters.tcp.queries.get() < 2 {
            tokio::task::yield_now().await;
        }
        fixture.serving.responder.release();
        assert!(fixture.next().await.unwrap().starts_with("tcp hold"));
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 3");
        fixture.serving.responder.release();
        assert!(fixture.next().await.unwrap().starts_with("tcp hold"));
    }

    #[tokio::test]
    async fn an_answer_that_never_comes_is_given_up() {
        let limits = Limits { answer_timeout: Duration::from_millis(30), in_flight: 1, ..Limits::default() };
        let mut fixture = connected(limits).await;
        fixture.send(&["never 1", "quick 2"]).await;
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 2");
        assert_eq!(fixture.serving.counters.tcp.answer_timeouts.get(), 1);
    }

    #[tokio::test]
    async fn a_connection_that_is_owed_an_answer_is_not_idle() {
        let mut fixture = connected(Limits { idle_timeout: Duration::from_millis(30), ..Limits::default() }).await;
        fixture.send(&["hold 1"]).await;
        // Several times what an idle connection would have.
        tokio::time::sleep(Duration::from_millis(200)).await;
        fixture.send(&["quick 2"]).await;
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 2");
        fixture.serving.responder.release();
        assert_eq!(fixture.next().await.unwrap(), "tcp hold 1, at last");
        assert_eq!(fixture.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(fixture.serving.counters.tcp.idle_timeouts.get(), 1);
    }

    #[tokio::test]
    async fn a_panic_costs_one_answer() {
        let mut fixture = connected(Limits::default()).await;
        fixture.send(&["panic-later 1", "quick 2"]).await;
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 2");
        fixture.client.shutdown().await.unwrap();
        assert_eq!(fixture.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(fixture.serving.counters.panics.get(), 1);
    }

    #[tokio::test]
    async fn the_client_may_close_its_side_and_still_gets_what_it_is_owed() {
        let mut fixture = connected(Limits::default()).await;
        fixture.send(&["hold 1", "quick 2"]).await;
        fixture.client.shutdown().await.unwrap();
        assert_eq!(fixture.next().await.unwrap(), "tcp quick 2");
        fixture.serving.responder.release();
        assert_eq!(fixture.next().await.unwrap(), "tcp hold 1, at last");
        assert_eq!(fixture.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn answers_in_flight_go_out_when_the_server_stops() {
        let mut fixture = connected(Limits::default()).await;
        fixture.send(&["hold 1"]).await;
        while fixture.serving.counters.tcp.queries.get() < 1 {
            tokio::task::yield_now().await;
        }
        fixture.serving.stop.cancel();
        fixture.send(&["quick 2"]).await;
        fixture.serving.responder.release();
        assert_eq!(fixture.next().await.unwrap(), "tcp hold 1, at last");
        assert_eq!(fixture.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(fixture.serving.counters.tcp.queries.get(), 1);
    }
}
