//! Errors that prevent the start of the server, or end it.

use std::io;

use super::listen_error::ListenError;
use crate::admin::SocketError;
use crate::directory::DirectoryError;
use crate::server::BindError;
use crate::upstream::CaFileError;

/// The reason why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The socket of the HTTP interface cannot be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The certificate authorities for upstreams cannot be read.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
    /// The thread that follows the registries cannot be started.
    #[error("cannot start the thread that follows the registries: {0}")]
    Thread(io::Error),
}

/// The reason why the server ended without being stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A socket can no longer be served.
    #[error(transparent)]
    Serve(#[from] BindError),
    /// The task of the DNS server panicked.
    #[error("the DNS server panicked; please report this: {0}")]
    Panicked(tokio::task::JoinError),
    /// The thread that publishes snapshots has ended.
    #[error("the publication of changes ended unexpectedly; please report this")]
    PublisherEnded,
}
