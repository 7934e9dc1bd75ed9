//! What is known now: the one mirror of the registries' keys, and the model made of it.
//!
//! Has no DNS bytes, no clock of its own and no I/O: `apply` and `tick` are told the time, and say which services changed
//! and what to ask a registry.

mod model;

pub use model::{Docker0, Group, Instance, Key, LeftOut, Service};
