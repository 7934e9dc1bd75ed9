//! The table of all keys.
//!
//! Flags, environment variables, the check for unknown keys, the tables of the documentation and
//! the template file are made from it.

use std::sync::LazyLock;

use super::key::Key;
use super::keys::GENERAL;
use super::registry::KINDS;

/// All keys in the order of the documentation: general keys, then those of a kind.
pub static KEYS: LazyLock<Vec<&'static Key>> = LazyLock::new(|| {
    GENERAL.iter().chain(KINDS.iter().flat_map(|kind| kind.keys)).copied().collect()
});
