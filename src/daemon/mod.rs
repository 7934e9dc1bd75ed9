//! The running server, joined: opens the sockets, follows the registries, publishes what comes of them, and answers.
//!
//! Everything that changes what is served comes down one channel ([`crate::service::Update`]) to one thread, which owns the
//! catalog and publishes. Whoever has something new to say gets a sender of that channel.

mod directories;
mod error;
mod follow;
mod listen_error;
mod log;
mod responder;
mod server;
mod signals;

pub use error::{ServerError, StartError};
pub use follow::{Followed, Following};
pub use listen_error::ListenError;
pub use log::Log;
pub use responder::Responder;
pub use server::Server;
pub use signals::Signals;
