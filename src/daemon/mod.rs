//! The running server, joined: what every transport asks, and what a person is told of its sockets.

mod listen_error;
mod responder;

pub use listen_error::{ListenError, report_not_listening};
pub use responder::Responder;
