//! svcdns: a service registry, served as DNS on the local machine.
//!
//! Data comes in from two sides, registry changes and DNS questions, and meets in one table. Each module is one room of
//! the house with one job; `docs/design.md` has the plan and `tests/house.rs` holds the rooms to it: no room imports
//! upward, none in a circle.

pub mod admin;
pub mod answer;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod directory;
pub mod metrics;
pub mod name;
pub mod registry;
pub mod resolv_conf;
pub mod server;
pub mod service;
pub mod system;
pub mod upstream;
pub mod wire;

// Lets the unit tests include a file of `tests/support`, which names the crate from outside.
#[cfg(test)]
extern crate self as svcdns;
