//! An HTTP server for unit tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

/// A server that takes requests whose bodies have no empty line.
pub(crate) struct HttpTestServer {
    pub(crate) endpoint: String,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl HttpTestServer {
    /// Starts a server; `respond` gets the number of earlier requests.
    ///
    /// It returns the response, and the time until it is sent.
    pub(crate) async fn start(
        respond: impl Fn(usize) -> (String, Duration) + Send + Sync + Copy + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let (connections, requests) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let server = Self { endpoint, connections, requests };
        let (connections, requests) =
            (Arc::clone(&server.connections), Arc::clone(&server.requests));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let requests = Arc::clone(&requests);
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut line = String::new();
                    while stream.read_line(&mut line).await.is_ok_and(|length| length > 0) {
                        if line == "\r\n" {
                            let number = requests.fetch_add(1, Ordering::SeqCst);
                            let (response, wait) = respond(number);
                            tokio::time::sleep(wait).await;
                            if stream.write_all(response.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                        line.clear();
                    }
                });
            }
        });
        server
    }

    /// Returns the number of requests so far.
    pub(crate) fn request_count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Returns the number of connections so far.
    pub(crate) fn connection_count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Returns a response with this body.
pub(crate) fn response(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
