//! The seam of this room: who makes the responses implements [`Respond`].

use std::iter;
use std::time::Instant;

use super::Client;

/// Makes answers. Called from many threads at once.
pub trait Respond: Send + Sync + Sized + 'static {
    /// Another one of the same, for a thread of its own: what it needs for itself alone, such as sockets, is its own.
    #[must_use]
    fn fork(&self) -> Self;

    /// What [`Self::look_ahead`] found out.
    type Ahead;

    /// Looks at messages that came together before [`Self::respond`] is asked for each: what they need may be fetched for all at
    /// once.
    fn look_ahead<'r>(&self, requests: impl Iterator<Item = &'r [u8]>) -> Self::Ahead;

    /// Clears `out` and writes the answer to a request, without TCP's length prefix, if it is ready. `ahead` is what was found
    /// out about it and those that came with it. Must neither block nor wait.
    fn respond(&self, request: Request<'_>, ahead: &Self::Ahead, out: &mut Vec<u8>) -> Response;

    /// The same for a message that came alone.
    fn respond_alone(&self, octets: &[u8], client: &Client, out: &mut Vec<u8>) -> Response {
        let ahead = self.look_ahead(iter::once(octets));
        self.respond(Request { octets, number: 0, client, now: Instant::now(), draw: fastrand::u64(..) }, &ahead, out)
    }

    /// The answer that [`Response::Later`] promised; none: stay silent. Ends within its own deadline.
    fn later(&self, request: Vec<u8>, client: Client) -> impl Future<Output = Option<Vec<u8>>> + Send;

    /// Clears `out` and writes the refusal for a source without access. False: stay silent.
    fn refuse(&self, request: &[u8], out: &mut Vec<u8>) -> bool;

    /// Clears `out` and writes that there is no answer now (SERVFAIL): too many others are waited for. False: stay silent.
    fn fail(&self, request: &[u8], out: &mut Vec<u8>) -> bool;
}

/// A message to answer.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// What came, without TCP's length prefix.
    pub octets: &'r [u8],
    /// Its number among those that came together, from 0 on.
    pub number: usize,
    /// Who asks, where, and how.
    pub client: &'r Client,
    /// When.
    pub now: Instant,
    /// A fresh random number.
    pub draw: u64,
}

/// What [`Respond::respond`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The answer is written.
    Ready,
    /// There is nothing to say.
    Silent,
    /// The answer has to be waited for: [`Respond::later`] gives it.
    Later,
}
