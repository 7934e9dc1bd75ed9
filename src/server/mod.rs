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
mod bind_error;
mod certificate;
mod client;
mod connection;
mod counters;
mod encrypted;
mod interfaces;
mod limits;
mod listening;
mod pace;
mod padding;
mod query_log;
mod quic;
mod respond;
mod serve;
mod serving;
mod settings;
mod sink;
mod sockets;
mod tasks;
mod tcp;
mod udp;
mod workers;

// The test double of a responder; the tests under `tests/` use it, too.
#[cfg(test)]
#[path = "../../tests/support/echo.rs"]
mod echo;

pub use access::Access;
pub use bind::{Bound, bind};
pub use bind_error::{BindError, PortTaken};
pub use certificate::{CertificateError, CertificateFiles};
pub use client::{Client, DnsTransport, StreamKind};
pub use counters::{Counters, StreamCounters};
pub use limits::Limits;
pub use respond::{Request, Respond, Response};
pub use settings::{Encrypted, Settings, SettingsError};
