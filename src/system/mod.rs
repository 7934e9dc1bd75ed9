//! The machine's own resolver: who owns it, the safe way in and the way out again.
