//! Lease checks: which of some leases still exist.

use std::time::Duration;

use etcd_client::{LeaseStatus, ResponseHeader};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::change;
use super::connection::Connection;
use crate::registry::Feed;
use crate::registry::failure::Failure;
use crate::service::{Change, LeaseReply};

/// Longest wait for a list of all leases.
const MAX_LIST_TIME: Duration = Duration::from_secs(2);

/// Longest wait for lookups of leases.
const MAX_LOOKUP_TIME: Duration = Duration::from_secs(2);

/// Limit on the leases to look up one by one if etcd does not list them.
const MAX_LOOKUPS: usize = 32;

/// Checks which leases still exist, and sends the reply if anything is known.
///
/// Makes one call that lists all leases, if `may_list`. If that fails, looks up some of `leases`.
/// Returns whether the list failed.
///
/// `connection` must lead to the member that reported the removals. A member lists the leases of
/// its own state, from which it removes an expired one before it reports that the keys are gone.
pub(super) async fn check(
    connection: Connection,
    leases: Vec<i64>,
    may_list: bool,
    feed: Feed,
) -> bool {
    let registry = feed.state();
    let failed = |failure: Failure| {
        tracing::debug!(%registry, reason = failure.text, "looking up leases one by one");
    };
    let listed =
        if may_list { list(&connection, &leases).await.map_err(failed).ok() } else { None };
    let has_list_failed = may_list && listed.is_none();
    let reply = match listed {
        Some(reply) => reply,
        None => timeout(MAX_LOOKUP_TIME, look_up(&connection, &leases)).await.unwrap_or_default(),
    };
    let unknown = leases.len().saturating_sub(reply.gone.len() + reply.alive.len());
    tracing::debug!(
        %registry, gone = reply.gone.len(), alive = reply.alive.len(), unknown, "leases checked"
    );
    if unknown < leases.len() {
        // If the feed is closed, the supervisor ends by itself.
        let _ = feed.send(vec![Change::LeasesChecked(reply)]).await;
    }
    has_list_failed
}

/// Lists all leases with one call.
///
/// With authentication, etcd 3.5.31 and 3.6.9 list leases only for a user that may read every key
/// of every lease, those of other programs too; 3.4.23 lists them for everyone.
async fn list(connection: &Connection, leases: &[i64]) -> Result<LeaseReply, Failure> {
    let action = "list the leases";
    let list = || {
        let mut client = connection.lease();
        async move { client.leases().await }
    };
    let response = timeout(MAX_LIST_TIME, connection.call(action, list))
        .await
        .unwrap_or_else(|_| Err(Failure::timeout(MAX_LIST_TIME).of(action)))?;
    let existing = response.leases().iter().map(LeaseStatus::id);
    Ok(compare(leases, existing, revision(response.header())))
}

/// Separates the leases that are gone from those in the store's list.
fn compare(leases: &[i64], existing: impl Iterator<Item = i64>, revision: u64) -> LeaseReply {
    let mut alive: Vec<i64> =
        existing.filter(|lease| leases.binary_search(lease).is_ok()).collect();
    alive.sort_unstable();
    let is_gone = |lease: &&i64| alive.binary_search(lease).is_err();
    LeaseReply { revision, gone: leases.iter().filter(is_gone).copied().collect(), alive }
}

/// Looks up leases evenly spread over all, at the same time.
async fn look_up(connection: &Connection, leases: &[i64]) -> LeaseReply {
    let mut lookups = JoinSet::new();
    for lease in leases.iter().copied().step_by(leases.len().div_ceil(MAX_LOOKUPS).max(1)) {
        let connection = connection.clone();
        lookups.spawn(async move { (lease, exists(&connection, lease).await) });
    }
    let count = lookups.len();
    let mut found = LeaseReply { revision: u64::MAX, ..LeaseReply::default() };
    for (lease, result) in lookups.join_all().await {
        if let Ok((exists, revision)) = result {
            if exists { &mut found.alive } else { &mut found.gone }.push(lease);
            found.revision = found.revision.min(revision);
        }
    }
    extrapolate(leases, count, found)
}

/// Returns whether a lease exists, and the revision of the reply.
async fn exists(connection: &Connection, lease: i64) -> Result<(bool, u64), Failure> {
    let time_to_live = || {
        let mut client = connection.lease();
        async move { client.time_to_live(lease, None).await }
    };
    let response = connection.call("look up a lease", time_to_live).await?;
    Ok((response.ttl() >= 0, revision(response.header())))
}

/// Applies a unanimous result of `count` lookups to all leases.
///
/// Other leases stay unknown: the catalog asks about them again.
fn extrapolate(leases: &[i64], count: usize, found: LeaseReply) -> LeaseReply {
    match (found.gone.len(), found.alive.len()) {
        (gone, 0) if gone == count => LeaseReply { gone: leases.to_vec(), ..found },
        (0, alive) if alive == count => LeaseReply { alive: leases.to_vec(), ..found },
        _ => found,
    }
}

fn revision(header: Option<&ResponseHeader>) -> u64 {
    header.map_or(0, |header| change::revision(header.revision()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(gone: &[i64], alive: &[i64]) -> LeaseReply {
        LeaseReply { revision: 7, gone: gone.to_vec(), alive: alive.to_vec() }
    }

    #[test]
    fn leases_missing_from_the_list_of_the_store_are_gone() {
        assert_eq!(compare(&[1, 3, 5], [9, 5, 4, 1].into_iter(), 7), reply(&[3], &[1, 5]));
        assert_eq!(compare(&[1, 3], [].into_iter(), 7), reply(&[1, 3], &[]));
    }

    #[test]
    fn only_unanimous_lookups_are_extrapolated_to_other_leases() {
        let leases = [1, 2, 3, 4, 5, 6];
        let after = |gone: &[i64], alive: &[i64]| extrapolate(&leases, 3, reply(gone, alive));
        assert_eq!(after(&[1, 3, 5], &[]), reply(&leases, &[]));
        assert_eq!(after(&[], &[1, 3, 5]), reply(&[], &leases));
        assert_eq!(after(&[1], &[3, 5]), reply(&[1], &[3, 5]));
        assert_eq!(after(&[1, 3], &[]), reply(&[1, 3], &[]), "one lookup failed");
        assert_eq!(after(&[], &[3]), reply(&[], &[3]), "two lookups failed");
    }
}
