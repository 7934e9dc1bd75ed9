//! The interface between the server and the code that responds to queries.

use std::iter;
use std::time::Instant;

use super::Client;

/// Responds to messages. Many threads may call it at once.
pub trait Respond: Send + Sync + Sized + 'static {
    /// Returns a responder for another thread, with its own sockets and buffers.
    #[must_use]
    fn fork(&self) -> Self;

    /// The result of [`Self::look_ahead`].
    type Lookahead;

    /// Inspects a batch before [`Self::respond`] is called for each of its messages.
    ///
    /// The responder can fetch the data for all messages at once.
    fn look_ahead<'r>(&self, requests: impl Iterator<Item = &'r [u8]>) -> Self::Lookahead;

    /// Clears `out` and writes the response if it is available at once.
    ///
    /// The response has no TCP length prefix. `lookahead` is the result of [`Self::look_ahead`] for
    /// the batch that contains `request`. This function must not block.
    fn respond(
        &self,
        request: Request<'_>,
        lookahead: &Self::Lookahead,
        out: &mut Vec<u8>,
    ) -> Disposition;

    /// Responds to a message that is the only one of its batch.
    fn respond_alone(&self, message: &[u8], client: &Client, out: &mut Vec<u8>) -> Disposition {
        let lookahead = self.look_ahead(iter::once(message));
        self.respond(
            Request { message, index: 0, client, now: Instant::now(), random: fastrand::u64(..) },
            &lookahead,
            out,
        )
    }

    /// Returns the response after [`Disposition::Deferred`]; `None` to send nothing.
    ///
    /// The responder enforces its own deadline; the server adds
    /// [`Limits::response_timeout`](super::Limits::response_timeout).
    fn respond_later(
        &self,
        request: Vec<u8>,
        client: Client,
    ) -> impl Future<Output = Option<Vec<u8>>> + Send;

    /// Clears `out` and writes REFUSED for a source without access.
    ///
    /// Returns `false` to send nothing.
    fn refuse(&self, request: &[u8], out: &mut Vec<u8>) -> bool;

    /// Clears `out` and writes SERVFAIL, because too many queries wait for a response.
    ///
    /// Returns `false` to send nothing.
    fn fail(&self, request: &[u8], out: &mut Vec<u8>) -> bool;
}

/// A message to respond to.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// The message without its TCP length prefix.
    pub message: &'r [u8],
    /// Index of the message in its batch, from 0.
    pub index: usize,
    /// Client, destination address and transport.
    pub client: &'r Client,
    /// Time of receipt.
    pub now: Instant,
    /// A fresh random number.
    pub random: u64,
}

/// The result of [`Respond::respond`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The response is in the buffer.
    Ready,
    /// The client gets no response.
    Silent,
    /// [`Respond::respond_later`] returns the response.
    Deferred,
}
