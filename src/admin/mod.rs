//! HTTP for people and programs that look after the server.

mod socket;

pub use socket::{StateDir, StateDirError, is_trusted, socket_path};
