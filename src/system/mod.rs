//! The machine's own resolver: who owns it, the safe way in and the way out again.
//!
//! [`detect()`] finds out who owns name resolution, from files and from what was [`Seen`] running. Everything here works below
//! a [`Root`], so that it can be tried in a directory.

mod detect;
mod entry;
mod root;
mod seen;

pub use detect::{Container, File, Kind, Machine, NetworkManager, Owner, Reach, Resolvconf, Resolved, detect};
pub use root::Root;
pub use seen::{Mount, Seen};
