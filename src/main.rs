//! The `svcdns` program: see the library for its rooms.

fn main() {}
