//! What is tried with octets that nobody chose: by cargo-fuzz, which looks for octets that reach new code (`make fuzz`), by the
//! property test with drawn ones (`tests/properties.rs`), and by the replay of those that were kept (`tests/corpus.rs`).
//!
//! Each target is a function of octets that panics where something does not hold.
#![allow(missing_docs, dead_code, unreachable_pub, reason = "each program takes what it needs")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a panic is the finding"
)]

pub mod answers;
pub mod choices;
pub mod configuration;
pub mod files;
pub mod names;
pub mod packets;
pub mod question;
pub mod registrations;
pub mod registry;
pub mod upstream;
pub mod world;

/// A target: what is done with the octets.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its folder in the corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("changes", world::changes),
    ("configuration", configuration::configuration),
    ("files", files::files),
    ("packets", packets::packets),
    ("registry", registry::registry),
    ("upstream", upstream::upstream),
];
