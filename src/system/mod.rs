//! The machine's own resolver: who owns it, the safe way in and the way out again.
//!
//! [`detect()`] finds out who owns name resolution, from files and from what was [`Seen`] running. Everything here works below
//! a [`Root`], so that it can be tried in a directory, but for the private view of one command ([`enter`]).

mod command;
mod detect;
mod doctor;
mod edit;
mod entry;
mod folder;
mod journal;
mod journal_error;
mod nsswitch;
mod plan;
mod pointed;
mod port_owner;
mod private;
mod prove;
mod resolved;
mod root;
mod seen;
mod unit;
mod way;

pub use command::{Failure, RunError, run};
pub use detect::{Container, File, Kind, Machine, NetworkManager, Owner, Reach, Resolvconf, Resolved, detect};
pub use doctor::{Finding, Level, Patient, Reply, Running, examine};
pub use entry::{Entry, FileEntry, Octets};
pub use folder::{FOLDER, Lock};
pub use journal::{CommandStep, Edited, FileStep, Journal, Step, Undone};
pub use journal_error::{JournalError, WeakSpot};
pub use nsswitch::{Asked, Hosts, Service};
pub use plan::{Obstacle, Plan, Wish, check_state_directory, command_line, enabled_unit, own_file, plan, told};
pub use pointed::Pointed;
pub use port_owner::{Held, Holder, free_loopback, held, holder_of};
pub use private::{PrivateError, enter};
pub use prove::look_up;
pub use resolved::{Routes, Scope};
pub use root::Root;
pub use seen::{Mount, Seen};
pub use unit::{SERVER as SERVER_UNIT, server as server_unit};
pub use way::Way;
