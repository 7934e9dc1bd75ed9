//! The one table of everything that can be set. Flags, variables, the check for unknown keys, the table in the
//! documentation and the template file are all made from it. The keys of a kind of registry are in that kind's own table.

use std::sync::LazyLock;

use super::key::Key;
use super::keys::GENERAL;
use super::registry::KINDS;

/// Every key, in the order of the documentation: those without a section first, those of the kinds of registry last.
pub static KEYS: LazyLock<Vec<&'static Key>> =
    LazyLock::new(|| GENERAL.iter().chain(KINDS.iter().flat_map(|kind| kind.keys)).copied().collect());
