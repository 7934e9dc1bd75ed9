//! The table of all keys.
//!
//! The flags, the environment variables, the check for unknown keys, the tables of the
//! documentation and the template file are all derived from it.

use std::sync::LazyLock;

use super::key::Key;
use super::keys::GENERAL;
use super::registry::KINDS;

/// All keys in documentation order: general keys, then the keys of each kind.
pub static KEYS: LazyLock<Vec<&'static Key>> = LazyLock::new(|| {
    GENERAL.iter().copied().chain(KINDS.iter().flat_map(|kind| kind.keys())).collect()
});
