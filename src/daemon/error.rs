//! Errors that prevent the start of the server, or end it early.

use std::io;

use super::TakeOverError;
use super::listen_error::ListenError;
use crate::admin::SocketError;
use crate::directory::DirectoryError;
use crate::server::BindError;
use crate::upstream::CaFileError;

/// Reason why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Taking a directory failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Opening the socket of the HTTP interface failed.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Opening a listener failed.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Taking over from the running server failed.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// The system has no descriptors for a successor.
    #[error("cannot prepare for a successor: {0}")]
    Offer(io::Error),
    /// Reading the CA certificates for upstreams failed.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
    /// Starting the thread that follows the registries failed.
    #[error("cannot start the thread that follows the registries: {0}")]
    Thread(io::Error),
}

/// Reason why the server ended without being stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Serving a socket failed.
    #[error(transparent)]
    Serve(#[from] BindError),
    /// The task of the DNS server panicked.
    #[error("the DNS server panicked; please report this: {0}")]
    Panicked(tokio::task::JoinError),
    /// The thread that publishes snapshots ended early.
    #[error("the publication of changes ended unexpectedly; please report this")]
    PublisherEnded,
}
