//! A test responder that echoes queries, and misbehaves on demand.

use std::sync::Arc;
use std::time::Duration;

use svcdns::server::{Client, DnsTransport, Request, Respond, Response, StreamKind};
use tokio::sync::Notify;

/// Echoes a query with its transport in front: `udp hello`.
///
/// A query is text, with or without an id in front. Some first words ask for something else:
///
/// | word | response |
/// |---|---|
/// | `big` | 60,000 bytes |
/// | `client` | source and destination of the query |
/// | `silent` | none |
/// | `panic` | none: the responder panics |
/// | `later` | deferred by 10 ms: `udp later, at last` |
/// | `slow` | deferred by 500 ms |
/// | `hold` | deferred until [`Echo::release`] |
/// | `never` | deferred for ever |
/// | `thread` | deferred: the name of the thread that received the query |
/// | `panic-later` | deferred, then none: the responder panics |
#[derive(Clone, Debug, Default)]
pub(crate) struct Echo {
    held: Arc<Notify>,
}

impl Echo {
    /// Sends the response to one `hold`.
    pub(crate) fn release(&self) {
        self.held.notify_one();
    }
}

impl Respond for Echo {
    fn fork(&self) -> Self {
        self.clone()
    }

    type Ahead = ();

    fn look_ahead<'r>(&self, _: impl Iterator<Item = &'r [u8]>) {}

    fn respond(&self, request: Request<'_>, (): &(), out: &mut Vec<u8>) -> Response {
        let Request { octets, client, .. } = request;
        // Written even if the response is deferred: the server must not send it then.
        *out = echo(octets, client);
        match first_word(octets) {
            b"panic" => panic!("asked to panic"),
            b"silent" => return Response::Silent,
            b"later" | b"slow" | b"hold" | b"never" | b"thread" | b"panic-later" => {
                return Response::Later;
            }
            b"big" => *out = vec![b'x'; 60_000],
            b"client" => *out = format!("{} {}", client.source, client.destination).into_bytes(),
            _ => {}
        }
        Response::Ready
    }

    async fn later(&self, request: Vec<u8>, client: Client) -> Option<Vec<u8>> {
        let begun_in = thread();
        match first_word(&request) {
            b"slow" => tokio::time::sleep(Duration::from_millis(500)).await,
            b"hold" => self.held.notified().await,
            b"never" => std::future::pending().await,
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        match first_word(&request) {
            b"thread" => {
                assert_eq!(begun_in, thread());
                Some(begun_in.into_bytes())
            }
            b"panic-later" => panic!("asked to panic"),
            _ => Some([&echo(&request, &client), &b", at last"[..]].concat()),
        }
    }

    fn refuse(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        *out = [b"refused ", text(request)].concat();
        true
    }

    fn fail(&self, _: &[u8], out: &mut Vec<u8>) -> bool {
        *out = b"too many".to_vec();
        true
    }
}

fn echo(request: &[u8], client: &Client) -> Vec<u8> {
    let transport: &[u8] = match client.transport {
        DnsTransport::Udp => b"udp ",
        DnsTransport::Stream(StreamKind::Tcp) => b"tcp ",
        DnsTransport::Stream(StreamKind::Tls) => b"tls ",
        DnsTransport::Stream(StreamKind::Quic) => b"quic ",
    };
    [transport, text(request)].concat()
}

/// Returns a query without its id, whose first byte is below those of text.
fn text(request: &[u8]) -> &[u8] {
    let id = if request.first().is_some_and(|octet| *octet < b' ') { 2 } else { 0 };
    request.get(id..).unwrap_or_default()
}

fn first_word(request: &[u8]) -> &[u8] {
    text(request).split(|octet| *octet == b' ').next().unwrap_or_default()
}

fn thread() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}
