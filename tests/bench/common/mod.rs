//! What the benchmarks of servers share.
#![allow(dead_code, reason = "each benchmark takes what it needs")]

pub(crate) mod batch;
pub(crate) mod cores;
pub(crate) mod programs;
