//! Helpers for benchmarks of servers.
#![allow(dead_code, reason = "each benchmark uses some of it")]

pub(crate) mod batch;
pub(crate) mod cores;
pub(crate) mod programs;
