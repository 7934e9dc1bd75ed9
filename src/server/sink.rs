//! A sink for finished queries: client, query, response and duration.
//!
//! Every worker offers every query on every transport to the sink, including refused queries.
//! Without a sink, that costs one branch: no copy and no clock read.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Client;

/// A query and its response.
#[derive(Clone, Copy, Debug)]
pub(super) struct FinishedQuery<'q> {
    /// Client, destination address and transport.
    pub(super) client: &'q Client,
    /// The query without its TCP length prefix.
    pub(super) request: &'q [u8],
    /// The response without length prefix or padding; `None` if the client gets none.
    pub(super) response: Option<&'q [u8]>,
    /// Time from the receipt of the query until its response was ready to send.
    pub(super) duration: Duration,
}

/// Receives finished queries.
///
/// Many threads call the sink at once while they serve queries, so it must not block.
pub(super) trait QuerySink: fmt::Debug + Send + Sync {
    /// Decides whether to record the query that has just arrived.
    ///
    /// Called once for each query, before the worker copies anything.
    fn wants(&self) -> bool;

    /// Records a query that the sink wanted.
    fn record(&self, query: &FinishedQuery<'_>);
}

/// Handle to the sink, if there is one. There is none by default.
#[derive(Clone, Debug, Default)]
pub(super) struct Tap(Option<Arc<dyn QuerySink>>);

impl Tap {
    /// Creates a handle to `sink`.
    pub(super) fn new(sink: impl QuerySink + 'static) -> Self {
        Self(Some(Arc::new(sink)))
    }

    /// Returns whether the sink wants the query. Must be called once for each query.
    #[inline]
    pub(super) fn wants(&self) -> bool {
        self.0.as_deref().is_some_and(QuerySink::wants)
    }

    /// Returns the current time if the sink wants the query.
    ///
    /// The caller uses this method instead of [`Self::wants`].
    #[inline]
    pub(super) fn receive(&self) -> Option<Instant> {
        self.wants().then(Instant::now)
    }

    /// Reports a wanted query to the sink.
    #[cold]
    pub(super) fn report(
        &self,
        client: &Client,
        request: &[u8],
        response: Option<&[u8]>,
        received: Instant,
    ) {
        if let Self(Some(sink)) = self {
            sink.record(&FinishedQuery { client, request, response, duration: received.elapsed() });
        }
    }

    /// Copies a wanted query, to report it once its deferred response is available.
    #[cold]
    pub(super) fn defer(&self, client: &Client, request: &[u8], received: Instant) -> TimedQuery {
        TimedQuery { tap: self.clone(), client: *client, request: request.into(), received }
    }
}

/// A query that the sink wants and whose response is deferred.
///
/// If dropped, it reports the query without a response: the connection is gone, the server stops,
/// or the responder panicked.
#[derive(Debug)]
pub(super) struct TimedQuery {
    tap: Tap,
    client: Client,
    request: Box<[u8]>,
    received: Instant,
}

impl TimedQuery {
    /// Reports the query with its response.
    pub(super) fn report(mut self, response: Option<&[u8]>) {
        // With an empty tap, `drop` reports nothing.
        let tap = std::mem::take(&mut self.tap);
        tap.report(&self.client, &self.request, response, self.received);
    }
}

impl Drop for TimedQuery {
    fn drop(&mut self) {
        self.tap.report(&self.client, &self.request, None, self.received);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::echo::Echo;
    use crate::server::{DnsTransport, Limits, Settings, StreamKind, bind};
    use std::net::SocketAddr;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UdpSocket};
    use tokio_util::sync::CancellationToken;

    /// Client, query text, response text and duration.
    type RecordedQuery = (Client, String, Option<String>, Duration);

    /// Records every second query.
    #[derive(Clone, Debug, Default)]
    struct Recorder {
        offered: Arc<Mutex<usize>>,
        recorded: Arc<Mutex<Vec<RecordedQuery>>>,
    }

    impl QuerySink for Recorder {
        fn wants(&self) -> bool {
            let mut offered = self.offered.lock().unwrap();
            *offered += 1;
            *offered % 2 == 1
        }

        fn record(&self, query: &FinishedQuery<'_>) {
            let text = |message: &[u8]| String::from_utf8(message.to_vec()).unwrap();
            let FinishedQuery { client, request, response, duration } = *query;
            self.recorded.lock().unwrap().push((
                *client,
                text(request),
                response.map(text),
                duration,
            ));
        }
    }

    /// Sends each query, followed by one that the recorder does not want.
    async fn send_and_record(
        queries: &[&str],
        ask: impl AsyncFn(&str) -> SocketAddr,
        recorder: &Recorder,
    ) -> Vec<(SocketAddr, RecordedQuery)> {
        let mut found = Vec::new();
        for query in queries {
            let source = ask(query).await;
            found.push((source, recorder.recorded.lock().unwrap().pop().unwrap()));
            ask("unwanted").await;
            assert!(recorder.recorded.lock().unwrap().is_empty());
        }
        found
    }

    /// Sends a query over UDP and waits for the response; returns the local address.
    async fn over_udp(address: SocketAddr, query: &str) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(query.as_bytes(), address).await.unwrap();
        socket.recv(&mut [0; 64]).await.unwrap();
        socket.local_addr().unwrap()
    }

    /// Sends a query over TCP and waits for the response; returns the local address.
    async fn over_tcp(address: SocketAddr, query: &str) -> SocketAddr {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let length = u16::try_from(query.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length, query.as_bytes()].concat()).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        stream.read_exact(&mut vec![0; length.into()]).await.unwrap();
        stream.local_addr().unwrap()
    }

    #[tokio::test]
    async fn refused_queries_reach_the_sink() {
        let recorder = Recorder::default();
        let limits = Limits { udp_workers: 1, ..Limits::default() };
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let mut bound =
            bind(&Settings { listen, allow_loopback: false, limits, ..Settings::default() })
                .unwrap();
        bound.rules.tap = Tap::new(recorder.clone());
        let (address, stop) = (bound.addresses()[0], CancellationToken::new());
        let serving =
            tokio::spawn(bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone()));
        let mut found =
            send_and_record(&["udp"], async |query| over_udp(address, query).await, &recorder)
                .await;
        found.extend(
            send_and_record(&["tcp"], async |query| over_tcp(address, query).await, &recorder)
                .await,
        );
        let found =
            found.into_iter().map(|(_, (_, request, response, _))| (request, response.unwrap()));
        let expected = ["udp", "tcp"].map(|query| (query.to_owned(), format!("refused {query}")));
        assert_eq!(found.collect::<Vec<_>>(), expected);
        stop.cancel();
        serving.await.unwrap().unwrap();
    }

    #[test]
    fn dropped_queries_are_reported_without_a_response() {
        let recorder = Recorder::default();
        let tap = Tap::new(recorder.clone());
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let client = Client { source: address, destination: address, transport: DnsTransport::Udp };
        drop(tap.defer(&client, b"dropped", Instant::now()));
        tap.defer(&client, b"answered", Instant::now()).report(Some(b"response"));
        let recorded = recorder.recorded.lock().unwrap();
        let recorded: Vec<_> = recorded
            .iter()
            .map(|(_, request, response, _)| (&**request, response.as_deref()))
            .collect();
        assert_eq!(recorded, [("dropped", None), ("answered", Some("response"))]);
    }

    #[tokio::test]
    async fn the_sink_receives_wanted_queries_on_every_transport() {
        let recorder = Recorder::default();
        // A single thread handles the queries in order.
        let limits = Limits { udp_workers: 1, ..Limits::default() };
        let mut bound = bind(&Settings {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            limits,
            ..Settings::default()
        })
        .unwrap();
        bound.rules.tap = Tap::new(recorder.clone());
        let (address, stop) = (bound.addresses()[0], CancellationToken::new());
        let serving =
            tokio::spawn(bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone()));
        for (transport, name, found) in [
            (
                DnsTransport::Udp,
                "udp",
                send_and_record(
                    &["hello", "slow"],
                    async |query| over_udp(address, query).await,
                    &recorder,
                )
                .await,
            ),
            (
                DnsTransport::Stream(StreamKind::Tcp),
                "tcp",
                send_and_record(
                    &["hello", "slow"],
                    async |query| over_tcp(address, query).await,
                    &recorder,
                )
                .await,
            ),
        ] {
            let responses = [
                ("hello", format!("{name} hello"), 0),
                ("slow", format!("{name} slow, at last"), 500),
            ];
            assert_eq!(found.len(), responses.len());
            for ((source, (client, request, response, duration)), (expected, answer, millis)) in
                found.into_iter().zip(responses)
            {
                assert_eq!(client, Client { source, destination: address, transport });
                assert_eq!((&*request, response), (expected, Some(answer)));
                assert!(duration >= Duration::from_millis(millis), "{duration:?}");
            }
        }
        // The query has no response that would show when it is finished, but the next query has.
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(b"silent", address).await.unwrap();
        over_udp(address, "unwanted").await;
        stop.cancel();
        serving.await.unwrap().unwrap();
        let (_, request, response, _) = recorder.recorded.lock().unwrap().pop().unwrap();
        assert_eq!((&*request, response), ("silent", None));
    }

    #[test]
    fn without_a_sink_no_query_is_recorded() {
        let tap = Tap::default();
        assert!(!tap.wants());
        assert_eq!(tap.receive(), None);
    }
}
