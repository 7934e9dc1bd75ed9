//! The running server: sockets, registries, catalog, forwarder, HTTP interface.
//!
//! All updates ([`crate::service::Update`]) arrive in one channel. One thread receives them, owns
//! the catalog, and publishes snapshots. Each source of updates has a sender of that channel.

mod admin_port;
mod directories;
mod error;
mod follow;
mod follower;
mod hand_over;
mod health;
mod hold_log;
mod listen_error;
mod log;
mod notify;
mod parts;
mod publisher;
mod reload;
mod resolv_conf;
mod responder;
mod server;
mod signals;
mod snapshot_file;
mod snapshots;
mod start;
mod take_over;

pub use error::{ServerError, StartError};
pub use follow::{PipelineEnded, PipelineHandle, PipelineHandles, RegistryPipeline, UpdateChannel};
pub use listen_error::ListenError;
pub use log::Log;
pub use notify::{Notifier, ReloadNotice};
pub use parts::Launch;
pub use responder::Responder;
pub use server::Server;
pub use signals::{HangUp, ShutdownSignals};
pub use take_over::{Predecessor, TakeOverError};
