//! Holds: removals that are reported but not applied yet, for each registry and cause.

use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::service::{RegistryId, WallClock};

/// Reason why removals are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HoldCause {
    /// A list of a restored or replaced store lacks the keys.
    Restored,
    /// The lists after a reconnect lack the keys.
    Reconnect,
    /// Many keys expired within seconds.
    Expiry,
    /// The list of one service lacks the keys, and may be incomplete.
    ///
    /// No mass removal: such a hold is never certain.
    Doubt,
}

impl HoldCause {
    /// All causes.
    pub const ALL: [Self; 4] = [Self::Restored, Self::Reconnect, Self::Expiry, Self::Doubt];

    /// Returns the code of the cause, for scripts and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Restored => "restored",
            Self::Reconnect => "reconnect",
            Self::Expiry => "expiry",
            Self::Doubt => "doubt",
        }
    }
}

impl fmt::Display for HoldCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restored => "the store may have lost its data, and lacks these keys",
            Self::Reconnect => "after an outage, the store lacks these keys",
            Self::Expiry => "many keys expired at the same time",
            Self::Doubt => "the list of a service lacks these keys, and may be incomplete",
        })
    }
}

/// The held removals of one registry that have one cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The registry that has removed the keys.
    pub registry: RegistryId,
    /// Reason for the hold.
    pub cause: HoldCause,
    /// Number of held keys.
    pub keys: usize,
    /// Time of the first removal.
    pub since: Instant,
    /// Time at which the last of the keys is removed, unless it is put again.
    pub until: Instant,
    /// Whether this is known to be a mass removal.
    ///
    /// Otherwise, svcdns waits for a reply about the keys' leases, or for more lists.
    pub is_certain: bool,
}

/// A hold in wall-clock time, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HoldView {
    /// Code of the cause, for scripts.
    pub cause: String,
    /// The cause, for people.
    pub message: String,
    /// Number of held keys.
    pub keys: usize,
    /// Time of the first removal, in seconds since 1970-01-01 UTC.
    pub since: u64,
    /// Time by which all of the keys are removed, in seconds since 1970-01-01 UTC.
    pub until: u64,
}

impl Hold {
    /// Returns the view of the hold, with times of this clock.
    pub fn view(&self, clock: &WallClock) -> HoldView {
        HoldView {
            cause: self.cause.code().to_owned(),
            message: self.cause.to_string(),
            keys: self.keys,
            since: clock.time_of(self.since).0,
            until: clock.time_of(self.until).0,
        }
    }
}

/// The result of a [`Release`](crate::service::Release).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The number of the request.
    pub ticket: u64,
    /// The holds that ended, as they were before.
    pub holds: Vec<Hold>,
}

/// A value for each [`HoldCause`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PerCause<T>([T; HoldCause::ALL.len()]);

impl<T> PerCause<T> {
    /// Returns the value of a cause.
    pub fn get(&self, cause: HoldCause) -> &T {
        &self.0[cause as usize]
    }

    /// Returns the value of a cause, to change it.
    pub(super) fn get_mut(&mut self, cause: HoldCause) -> &mut T {
        &mut self.0[cause as usize]
    }
}

impl PerCause<usize> {
    /// Returns the sum over all causes.
    pub fn total(&self) -> usize {
        self.0.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_own_code_and_place() {
        for (index, cause) in HoldCause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, index);
            assert!(cause.code().bytes().all(|byte| byte.is_ascii_lowercase()), "{cause}");
        }
        let mut codes = HoldCause::ALL.map(HoldCause::code).to_vec();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), HoldCause::ALL.len());
    }
}
