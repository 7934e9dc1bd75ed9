//! Suggestion of a published name for one that does not exist.

use super::owner::{owner_labels, service_owner};
use super::settings::Settings;
use super::table::Snapshot;

/// Maximum services compared for one suggestion; the rest are ignored.
const MAX_COMPARED_SERVICES: usize = 50_000;

/// Returns the published name most similar to `wanted`, if any is close enough.
///
/// Both are texts in front of the zone, in lower case. The work is linear in the number of
/// services, so only explanations may call this function.
pub(super) fn closest_name(
    snapshot: &Snapshot,
    settings: &Settings,
    wanted: &str,
) -> Option<String> {
    let mut closest: Option<(usize, String)> = None;
    for service in snapshot.services().take(MAX_COMPARED_SERVICES) {
        for group in service.visible_groups() {
            let Some(owner) = service_owner(settings, service.base(), group) else { continue };
            let labels: Vec<_> = owner_labels(&owner).map(String::from_utf8_lossy).collect();
            let name = labels.join(".");
            let max_distance = 1 + name.len() / 4;
            if name.len().abs_diff(wanted.len()) > max_distance {
                continue;
            }
            let distance = strsim::osa_distance(wanted, &name);
            let candidate = (distance, name);
            // Ties go to the lesser name, because services come in no particular order.
            if distance <= max_distance && closest.as_ref().is_none_or(|best| candidate < *best) {
                closest = Some(candidate);
            }
        }
    }
    closest.map(|(_, name)| name)
}
