//! A responder for tests that echoes queries and misbehaves on demand.

use std::sync::Arc;
use std::time::Duration;

use svcdns::server::{Client, Disposition, DnsTransport, Request, Respond, StreamKind};
use tokio::sync::Notify;

/// Echoes a query after its transport: `udp hello`.
///
/// A query is text, with or without a leading id. Some first words ask for something else:
///
/// | word | response |
/// |---|---|
/// | `big` | 60,000 bytes |
/// | `client` | source and destination of the query |
/// | `silent` | none |
/// | `panic` | none: the responder panics |
/// | `later` | deferred by 10 ms: `udp later, at last` |
/// | `slow` | deferred by 500 ms |
/// | `hold` | deferred until released |
/// | `never` | deferred forever |
/// | `thread` | deferred: name of the thread that handles the query |
/// | `panic-later` | deferred, then a panic |
#[derive(Clone, Debug, Default)]
pub(crate) struct Echo {
    held: Arc<Notify>,
}

impl Echo {
    /// Releases the response to one `hold`.
    pub(crate) fn release(&self) {
        self.held.notify_one();
    }
}

impl Respond for Echo {
    fn fork(&self) -> Self {
        self.clone()
    }

    type Lookahead = ();

    fn look_ahead<'r>(&self, _: impl Iterator<Item = &'r [u8]>) {}

    fn respond(&self, request: Request<'_>, (): &(), out: &mut Vec<u8>) -> Disposition {
        let Request { message, client, .. } = request;
        // Always written, to check that only a ready response is sent.
        *out = echo(message, client);
        match first_word(message) {
            b"panic" => panic!("asked to panic"),
            b"silent" => return Disposition::Silent,
            b"later" | b"slow" | b"hold" | b"never" | b"thread" | b"panic-later" => {
                return Disposition::Deferred;
            }
            b"big" => *out = vec![b'x'; 60_000],
            b"client" => *out = format!("{} {}", client.source, client.destination).into_bytes(),
            _ => {}
        }
        Disposition::Ready
    }

    async fn respond_later(&self, request: Vec<u8>, client: Client) -> Option<Vec<u8>> {
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

/// Removes the id, whose first byte is below printable characters.
fn text(request: &[u8]) -> &[u8] {
    let id = if request.first().is_some_and(|byte| *byte < b' ') { 2 } else { 0 };
    request.get(id..).unwrap_or_default()
}

fn first_word(request: &[u8]) -> &[u8] {
    text(request).split(|byte| *byte == b' ').next().unwrap_or_default()
}

fn thread() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}
