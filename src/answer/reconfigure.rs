//! Publication of a changed configuration.

use std::sync::Arc;
use std::time::Instant;

use super::answerer::Answerer;
use super::publish::{Publication, Publisher, add_aliases};
use super::settings::Settings;
use crate::catalog::{self, KeptRegistry, ServiceChange};

impl Publisher {
    /// Returns the answerer of the published generations.
    pub fn answerer(&self) -> &Arc<Answerer> {
        &self.answerer
    }

    /// Returns whether [`Self::apply_settings`] suffices for these settings of answers.
    #[must_use]
    pub fn has_table_for(&self, settings: &Settings) -> bool {
        settings.needs_same_table(self.answerer.snapshot.load().settings())
    }

    /// Publishes the same table with other settings, which must need no other.
    pub fn apply_settings(&mut self, settings: Settings) {
        let next = self.answerer.snapshot.load().with_settings(settings);
        self.store(next);
    }

    /// Rebuilds the catalog with other settings, and begins a publication of the result.
    ///
    /// Readers have the former table until the end of the publication. See
    /// [`Catalog::rebuild`](crate::catalog::Catalog::rebuild).
    pub fn rebuild(
        &mut self,
        catalog: catalog::Settings,
        settings: Settings,
        kept: &[KeptRegistry],
        now: Instant,
    ) -> Publication<'_> {
        let before = self.answerer.snapshot();
        let mut outcome = self.catalog.rebuild(catalog, kept, now);
        let mut next = before.rebuilt(settings, self.catalog.registry_status(now));
        next.bridged = self.catalog.bridged().clone();
        next.hosts = self.catalog.hosts().clone();
        next.zone_slots = Arc::new(self.answerer.tallies.slots(&next.settings().zones));
        add_aliases(&mut next);
        let added = outcome.changed.iter().filter(|change| change.after.is_some());
        let added = added.map(|change| ServiceChange { before: None, after: change.after.clone() });
        let added = added.collect();
        let reported = Some(std::mem::replace(&mut outcome.changed, added));
        let with_aliases = next.expand_aliases(&outcome.changed);
        next.update_services(with_aliases.as_ref().unwrap_or(&outcome.changed));
        let (next, indexed, bridge) = (Some(next), None, Vec::new());
        Publication {
            publisher: self,
            outcome,
            with_aliases,
            reported,
            next,
            indexed,
            compiled: 0,
            bridge,
        }
    }
}
