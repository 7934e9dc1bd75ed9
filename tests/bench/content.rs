//! Services in a publisher of this process, without a registry.
#![allow(dead_code, reason = "each benchmark uses some of it")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use svcdns::answer::{self, Answerer, Publisher};
use svcdns::catalog;
use svcdns::name::Zones;
use svcdns::registry::gsvc;
use svcdns::service::{Change, ListKind, Put, RegistryId, Removal, Update};

/// The metadata that GoFrame's HTTP server registers.
pub(crate) const VALUE: &str = r#"{"insecure":true,"protocol":"http"}"#;

/// Changes of a list that are applied at once, as from etcd.
const CHANGES_PER_BATCH: usize = 1000;

/// The number of services, and of instances of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) services: usize,
    pub(crate) instances: usize,
}

impl Shape {
    /// Returns the registered name of a service, which is also its DNS name.
    ///
    /// All names have 20 bytes.
    pub(crate) fn name(service: usize) -> String {
        format!("service-{service:08}.svc")
    }

    /// Returns the address of an instance; addresses after the last one are unused.
    pub(crate) fn address(self, service: usize, instance: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(
            (10 << 24) + (1 << 16) + u32::try_from(service * self.instances + instance).unwrap(),
        )
    }

    /// Returns the service that has an instance at an address.
    pub(crate) fn service_at(self, address: Ipv4Addr) -> usize {
        (address.to_bits().wrapping_sub((10 << 24) + (1 << 16)) as usize) / self.instances
    }

    /// Returns the key of an instance.
    pub(crate) fn key(self, service: usize, instance: usize) -> String {
        key(service, self.address(service, instance))
    }

    /// Returns every instance, as service and number.
    fn keys(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.services)
            .flat_map(move |service| (0..self.instances).map(move |instance| (service, instance)))
    }
}

/// Returns the key of an instance of a service at any address.
pub(crate) fn key(service: usize, address: Ipv4Addr) -> String {
    format!("/service/default/default/{}/latest/{address}:8000", Shape::name(service))
}

/// A publisher that gets changes as from an etcd registry.
pub(crate) struct Store {
    pub(crate) publisher: Publisher,
    pub(crate) answerer: Arc<Answerer>,
    parser: gsvc::KeyParser,
    revision: u64,
}

impl Store {
    /// Returns a publisher without services.
    ///
    /// The settings are the defaults, but names outside the zone are refused.
    pub(crate) fn empty() -> Self {
        let zones = Zones::new(&["svc".to_owned()]).unwrap();
        let answer = answer::Settings {
            listen: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            ..answer::Settings::new(zones.clone())
        };
        let (publisher, answerer) =
            Publisher::new(catalog::Settings::new(zones, 1), answer, Instant::now());
        Self { publisher, answerer, parser: gsvc::KeyParser::default(), revision: 0 }
    }

    /// Publishes a list of all services; `value` gives the metadata of an instance.
    pub(crate) fn list(&mut self, shape: Shape, value: impl Fn(usize, usize) -> String) {
        self.apply([Change::Connected(true), Change::list_begin(ListKind::Routine)]);
        let mut keys = shape.keys().peekable();
        while keys.peek().is_some() {
            let batch: Vec<_> = keys
                .by_ref()
                .take(CHANGES_PER_BATCH)
                .map(|(service, instance)| {
                    self.put(&shape.key(service, instance), &value(service, instance))
                })
                .collect();
            self.apply(batch);
        }
        self.apply([Change::ListEnd { revision: self.revision }]);
        assert!(self.answerer.registry_status().synced, "the list is complete");
    }

    /// Returns a publisher with all services of a shape.
    pub(crate) fn of(shape: Shape) -> Self {
        let mut store = Self::empty();
        store.list(shape, |_, _| VALUE.to_owned());
        store
    }

    /// Returns the change that puts a key.
    pub(crate) fn put(&mut self, key: &str, value: &str) -> Change {
        self.revision += 1;
        let content = self.parser.parse(key.as_bytes(), value.as_bytes());
        Change::Put(Put { key: key.into(), revision: self.revision, lease: 0, content })
    }

    /// Returns the change that deletes a key.
    pub(crate) fn delete(&mut self, key: &str) -> Change {
        self.revision += 1;
        Change::Delete { key: key.into(), revision: self.revision, removal: Removal::Explicit }
    }

    /// Publishes changes.
    pub(crate) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.publisher.apply(
            [Update::Registry(RegistryId::FIRST, changes.into_iter().collect())],
            Instant::now(),
        );
    }
}
