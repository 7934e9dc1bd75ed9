//! Sockets: UDP and TCP on every listening address, TLS and QUIC where wanted, who may ask, limits, and a clean stop.
//!
//! Knows no registry and no names: a message goes in and a message comes out, made by a [`Respond`]. What this room
//! holds to: no error of a socket and no client ends a loop; every wait has a deadline and every queue a bound
//! (RFC 7766 sections 6 and 10, RFC 9210 section 4); a source without access gets a refusal and nothing else.

mod access;
mod admission;
mod backoff;
mod batch;
mod bind;
mod certificate;
mod client;
mod connection;
mod counters;
mod encrypted;
mod interfaces;
mod listening;
mod pace;
mod padding;
mod query_log;
mod quic;
mod serve;
mod settings;
mod sink;
mod tasks;
mod tcp;
mod udp;
mod workers;

// The test double of a responder; the tests under `tests/` use it, too.
#[cfg(test)]
#[path = "../../tests/support/echo.rs"]
mod echo;

pub use access::Access;
pub use bind::{BindError, PortTaken, bind};
pub use certificate::{CertificateError, CertificateFiles};
pub use client::{Client, DnsTransport, StreamKind};
pub use counters::{Counters, StreamCounters};
pub use encrypted::Encrypted;
pub use serve::Bound;
pub use settings::{Limits, Settings, SettingsError};

use std::iter;
use std::time::Instant;

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
