//! Fuzz targets: functions of bytes that panic when a property does not hold.
//!
//! Three programs run them: cargo-fuzz with inputs that reach new code (`make fuzz`), a property
//! test with random inputs (`tests/properties.rs`), and a replay of the corpus (`tests/corpus.rs`).
#![allow(missing_docs, dead_code, unreachable_pub, reason = "each program uses some targets")]
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
pub mod query;
pub mod registrations;
pub mod registry;
pub mod upstream;
pub mod world;

/// A fuzz target; its argument is the input.
pub type Target = fn(&[u8]);

/// Every target with its name, also that of its directory in the corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("changes", world::changes),
    ("configuration", configuration::configuration),
    ("files", files::files),
    ("packets", packets::packets),
    ("registry", registry::registry),
    ("upstream", upstream::upstream),
];
