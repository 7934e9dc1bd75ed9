//! The machine's own resolver: who owns it, the safe way in and the way out again.
//!
//! [`detect()`] finds out who owns name resolution, from files and from what was [`Seen`] running. Everything here works below
//! a [`Root`], so that it can be tried in a directory.

mod command;
mod detect;
mod edit;
mod entry;
mod journal;
mod plan;
mod prove;
mod root;
mod seen;
mod unit;
mod way;

pub use command::{Failure, run};
pub use detect::{Container, File, Kind, Machine, NetworkManager, Owner, Reach, Resolvconf, Resolved, detect};
pub use entry::{Entry, FileEntry, Octets};
pub use journal::{BEFORE, CommandStep, Edited, FOLDER, FileStep, Journal, JournalError, Lock, Step, Undone};
pub use plan::{Obstacle, Plan, Wish, command_line, enabled_unit, own_file, plan, told};
pub use prove::look_up;
pub use root::Root;
pub use seen::{Mount, Seen};
pub use unit::{SERVER as SERVER_UNIT, server as server_unit};
pub use way::Way;
