//! The sink of finished queries: who asked what, what the response was, and how long it took.
//!
//! Every worker offers every query to it, on every transport, refused ones included. Without a sink
//! that costs one branch: no copy, no clock.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Client;

/// A query and how it was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finished<'q> {
    /// Who asked, where, and how.
    pub(super) client: &'q Client,
    /// The query, without TCP's length prefix.
    pub(super) request: &'q [u8],
    /// The response, without length prefix and padding; `None` if the client gets none.
    pub(super) response: Option<&'q [u8]>,
    /// Time from the receipt of the query until its response was ready to be sent.
    pub(super) duration: Duration,
}

/// Takes finished queries.
///
/// Many threads call it at once, on the path of a query: it must not block.
pub(super) trait Sink: fmt::Debug + Send + Sync {
    /// Decides whether to take the query that has just come in.
    ///
    /// Called once for each query, before the worker keeps anything of it.
    fn wants(&self) -> bool;

    /// Takes a query that it wanted.
    fn finished(&self, query: &Finished<'_>);
}

/// The workers' way to the sink; by default there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Tap(Option<Arc<dyn Sink>>);

impl Tap {
    pub(super) fn new(sink: impl Sink + 'static) -> Self {
        Self(Some(Arc::new(sink)))
    }

    /// Whether the sink wants the query that has just come in. To be called once for each query.
    #[inline]
    pub(super) fn wants(&self) -> bool {
        self.0.as_deref().is_some_and(Sink::wants)
    }

    /// The time of receipt of the query that has just come in, if the sink wants it.
    ///
    /// To be called in place of [`Self::wants`].
    #[inline]
    pub(super) fn receive(&self) -> Option<Instant> {
        self.wants().then(Instant::now)
    }

    /// Hands over a query that the sink wants.
    #[cold]
    pub(super) fn finished(&self, client: &Client, request: &[u8], response: Option<&[u8]>, received: Instant) {
        if let Self(Some(sink)) = self {
            sink.finished(&Finished { client, request, response, duration: received.elapsed() });
        }
    }

    /// Keeps a query that the sink wants until its response is ready.
    #[cold]
    pub(super) fn keep(&self, client: &Client, request: &[u8], received: Instant) -> Kept {
        Kept { tap: self.clone(), client: *client, request: request.into(), received }
    }
}

/// A query that the sink wants and whose response is not ready yet.
///
/// Dropped before it is finished (the connection is gone, the server stops, the responder panicked), it
/// is handed over without a response.
#[derive(Debug)]
pub(super) struct Kept {
    tap: Tap,
    client: Client,
    request: Box<[u8]>,
    received: Instant,
}

impl Kept {
    /// Hands it over with its response.
    pub(super) fn finished(mut self, response: Option<&[u8]>) {
        // What is dropped then has nobody to be handed to.
        let tap = std::mem::take(&mut self.tap);
        tap.finished(&self.client, &self.request, response, self.received);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.tap.finished(&self.client, &self.request, None, self.received);
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

    /// A query: its client, its text, the text of its response, and the time it took.
    type Taken = (Client, String, Option<String>, Duration);

    /// Takes every second query.
    #[derive(Clone, Debug, Default)]
    struct Recorder {
        offered: Arc<Mutex<usize>>,
        taken: Arc<Mutex<Vec<Taken>>>,
    }

    impl Sink for Recorder {
        fn wants(&self) -> bool {
            let mut offered = self.offered.lock().unwrap();
            *offered += 1;
            *offered % 2 == 1
        }

        fn finished(&self, query: &Finished<'_>) {
            let text = |message: &[u8]| String::from_utf8(message.to_vec()).unwrap();
            let Finished { client, request, response, duration } = *query;
            self.taken.lock().unwrap().push((*client, text(request), response.map(text), duration));
        }
    }

    /// Asks one query after the other. After each, asks one that the recorder does not take.
    async fn taken(queries: &[&str], ask: impl AsyncFn(&str) -> SocketAddr, recorder: &Recorder) -> Vec<(SocketAddr, Taken)> {
        let mut found = Vec::new();
        for query in queries {
            let source = ask(query).await;
            found.push((source, recorder.taken.lock().unwrap().pop().unwrap()));
            ask("passed over").await;
            assert!(recorder.taken.lock().unwrap().is_empty());
        }
        found
    }

    /// Asks over UDP and waits for the response; returns where the query came from.
    async fn over_udp(address: SocketAddr, query: &str) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(query.as_bytes(), address).await.unwrap();
        socket.recv(&mut [0; 64]).await.unwrap();
        socket.local_addr().unwrap()
    }

    /// The same over TCP.
    async fn over_tcp(address: SocketAddr, query: &str) -> SocketAddr {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let length = u16::try_from(query.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length, query.as_bytes()].concat()).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        stream.read_exact(&mut vec![0; length.into()]).await.unwrap();
        stream.local_addr().unwrap()
    }

    #[tokio::test]
    async fn refused_queries_are_offered_too() {
        let recorder = Recorder::default();
        let limits = Limits { udp_workers: 1, ..Limits::default() };
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let mut bound = bind(&Settings { listen, allow_loopback: false, limits, ..Settings::default() }).unwrap();
        bound.tap = Tap::new(recorder.clone());
        let (address, stop) = (bound.addresses()[0], CancellationToken::new());
        let serving = tokio::spawn(bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone()));
        let mut found = taken(&["udp"], async |query| over_udp(address, query).await, &recorder).await;
        found.extend(taken(&["tcp"], async |query| over_tcp(address, query).await, &recorder).await);
        let found = found.into_iter().map(|(_, (_, request, response, _))| (request, response.unwrap()));
        let expected = ["udp", "tcp"].map(|query| (query.to_owned(), format!("refused {query}")));
        assert_eq!(found.collect::<Vec<_>>(), expected);
        stop.cancel();
        serving.await.unwrap().unwrap();
    }

    #[test]
    fn a_query_dropped_before_its_response_is_handed_over_without_one() {
        let recorder = Recorder::default();
        let tap = Tap::new(recorder.clone());
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let client = Client { source: address, destination: address, transport: DnsTransport::Udp };
        drop(tap.keep(&client, b"dropped", Instant::now()));
        tap.keep(&client, b"answered", Instant::now()).finished(Some(b"response"));
        let taken = recorder.taken.lock().unwrap();
        let taken: Vec<_> = taken.iter().map(|(_, request, response, _)| (&**request, response.as_deref())).collect();
        assert_eq!(taken, [("dropped", None), ("answered", Some("response"))]);
    }

    #[tokio::test]
    async fn the_sink_gets_what_it_wants_over_each_transport() {
        let recorder = Recorder::default();
        // One thread, which takes queries in their order.
        let limits = Limits { udp_workers: 1, ..Limits::default() };
        let mut bound = bind(&Settings { listen: vec!["127.0.0.1:0".parse().unwrap()], limits, ..Settings::default() }).unwrap();
        bound.tap = Tap::new(recorder.clone());
        let (address, stop) = (bound.addresses()[0], CancellationToken::new());
        let serving = tokio::spawn(bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone()));
        for (transport, name, found) in [
            (DnsTransport::Udp, "udp", taken(&["hello", "slow"], async |query| over_udp(address, query).await, &recorder).await),
            (
                DnsTransport::Stream(StreamKind::Tcp),
                "tcp",
                taken(&["hello", "slow"], async |query| over_tcp(address, query).await, &recorder).await,
            ),
        ] {
            let responses = [("hello", format!("{name} hello"), 0), ("slow", format!("{name} slow, at last"), 500)];
            assert_eq!(found.len(), responses.len());
            for ((source, (client, request, response, duration)), (expected, answer, millis)) in found.into_iter().zip(responses) {
                assert_eq!(client, Client { source, destination: address, transport });
                assert_eq!((&*request, response), (expected, Some(answer)));
                assert!(duration >= Duration::from_millis(millis), "{duration:?}");
            }
        }
        // No response: nobody can tell when it is finished, except by what comes after it.
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(b"silent", address).await.unwrap();
        over_udp(address, "passed over").await;
        stop.cancel();
        serving.await.unwrap().unwrap();
        let (_, request, response, _) = recorder.taken.lock().unwrap().pop().unwrap();
        assert_eq!((&*request, response), ("silent", None));
    }

    #[test]
    fn without_a_sink_no_query_is_wanted() {
        let tap = Tap::default();
        assert!(!tap.wants());
        assert_eq!(tap.receive(), None);
    }
}
