//! svcdns: serves a service registry as DNS on the local machine.
//!
//! The lookup table connects registry changes to DNS queries. Each module has one job;
//! `docs/design.md` describes the architecture. `tests/house.rs` checks it: no module imports one
//! of a higher layer, and there are no import cycles.

pub mod admin;
pub mod answer;
pub mod bridge;
pub mod catalog;
pub mod checks;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod descriptors;
pub mod directory;
pub mod handover;
pub mod inherited;
pub mod metrics;
pub mod name;
pub mod path_watch;
mod percent;
pub mod registry;
mod regular_file;
pub mod resolv_conf;
pub mod server;
pub mod service;
mod socket_table;
mod state_file;
pub mod system;
mod tls_error;
pub mod upstream;
pub mod wire;

// Unit tests include files of `tests/support`, which name the crate like an external user.
#[cfg(test)]
extern crate self as svcdns;
