//! Why the server does not start, and why it ends.

use std::io;

use super::listen_error::ListenError;
use crate::admin::SocketError;
use crate::directory::DirectoryError;
use crate::server::BindError;
use crate::upstream::CaFileError;

/// The server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// One of its directories cannot be had.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The socket for the commands cannot be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A socket cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The authorities for upstreams over TLS cannot be read.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
    /// The system has no thread for following the registries.
    #[error("cannot start the thread that follows the registries: {0}")]
    Thread(io::Error),
}

/// The server ended unasked.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A socket could not be served.
    #[error(transparent)]
    Serve(#[from] BindError),
    /// The task that answers panicked.
    #[error("the DNS server panicked; please report this: {0}")]
    Panicked(tokio::task::JoinError),
    /// The thread that publishes changes is gone.
    #[error("the publication of changes ended unasked; please report this")]
    PublisherEnded,
}
