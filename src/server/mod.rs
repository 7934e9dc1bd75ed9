//! DNS over UDP, TCP, TLS and QUIC: sockets, access control, limits and shutdown.
//!
//! This module does not know registries or names. It reads a message, hands it to a [`Respond`],
//! and writes the response. Its invariants:
//!
//! - No socket error and no client ends a receive or accept loop.
//! - Every wait has a deadline and every queue a limit (RFC 7766 sections 6 and 10, RFC 9210
//!   section 4).
//! - A source without access gets only REFUSED or a closed connection.

mod access;
mod activity;
mod admission;
mod backoff;
mod batch;
mod bind;
mod bind_error;
mod certificate;
mod client;
mod connection;
mod connection_table;
mod context;
mod counters;
mod encrypted;
mod handle;
mod heartbeat;
mod interfaces;
mod limits;
mod listeners;
mod listening;
mod own_addresses;
mod pace;
mod padding;
mod query_log;
mod quic;
mod respond;
mod rules;
mod serve;
mod settings;
mod sink;
mod sockets;
mod tasks;
mod tcp;
mod udp;
mod workers;

// The responder's test double is also used by the integration tests under `tests/`.
#[cfg(test)]
#[path = "../../tests/support/echo.rs"]
mod echo;

pub use access::Access;
pub use bind::{Bound, bind, bind_or_inherit};
pub use bind_error::{BindError, PortTaken};
pub use certificate::{CertificateError, CertificateFiles};
pub use client::{Client, DnsTransport, StreamKind};
pub use counters::{Counters, ResponseTimes, StreamCounters};
pub use handle::{PreparedListeners, ServerHandle};
pub use heartbeat::{Heartbeats, SilentWorker};
pub use limits::Limits;
pub use listening::ListenReport;
pub use respond::{Disposition, Request, Respond};
pub use serve::StopOrder;
pub use settings::{EncryptedSettings, Settings, SettingsError};
