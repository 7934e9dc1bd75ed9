//! Services known to a publisher of this process: what a registry would have said, without the registry.
#![allow(dead_code, reason = "each benchmark takes what it needs")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use svcdns::answer::{self, Answerer, Publisher};
use svcdns::catalog;
use svcdns::name::Zones;
use svcdns::registry::gsvc;
use svcdns::service::{Change, ListKind, Put, RegistryId, Removal, Update};

/// What GoFrame's HTTP server registers as its metadata.
pub(crate) const VALUE: &str = r#"{"insecure":true,"protocol":"http"}"#;

/// Changes that are applied at once while a list comes in, as they come from etcd.
const BATCH: usize = 1000;

/// So many services of so many instances each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) services: usize,
    pub(crate) instances: usize,
}

impl Shape {
    /// The registered name of a service, of 20 octets, which is its DNS name, too.
    pub(crate) fn name(service: usize) -> String {
        format!("service-{service:08}.svc")
    }

    /// The address of an instance; those past the last one are nobody's.
    pub(crate) fn address(self, service: usize, instance: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(
            (10 << 24) + (1 << 16) + u32::try_from(service * self.instances + instance).unwrap(),
        )
    }

    /// The service that has an instance at this address.
    pub(crate) fn service_at(self, address: Ipv4Addr) -> usize {
        (address.to_bits().wrapping_sub((10 << 24) + (1 << 16)) as usize) / self.instances
    }

    /// The key of an instance.
    pub(crate) fn key(self, service: usize, instance: usize) -> String {
        key(service, self.address(service, instance))
    }

    /// Every instance, as service and number.
    fn keys(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.services)
            .flat_map(move |service| (0..self.instances).map(move |instance| (service, instance)))
    }
}

/// The key of an instance of a service at any address.
pub(crate) fn key(service: usize, address: Ipv4Addr) -> String {
    format!("/service/default/default/{}/latest/{address}:8000", Shape::name(service))
}

/// A store of keys that speaks to a publisher as the follower of an etcd does.
pub(crate) struct Store {
    pub(crate) publisher: Publisher,
    pub(crate) answerer: Arc<Answerer>,
    reader: gsvc::Reader,
    revision: u64,
}

impl Store {
    /// Nothing known yet; the settings are those that svcdns comes with, but names outside the zone are refused.
    pub(crate) fn empty() -> Self {
        let zones = Zones::new(&["svc".to_owned()]).unwrap();
        let answer = answer::Settings {
            listen: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            ..answer::Settings::new(zones.clone())
        };
        let (publisher, answerer) =
            Publisher::new(catalog::Settings::new(zones), answer, 1, Instant::now());
        Self { publisher, answerer, reader: gsvc::Reader::default(), revision: 0 }
    }

    /// One list of all services, `value` being what an instance says of itself.
    pub(crate) fn list(&mut self, shape: Shape, value: impl Fn(usize, usize) -> String) {
        self.apply([Change::Connected(true), Change::ListBegin(ListKind::Routine)]);
        let mut keys = shape.keys().peekable();
        while keys.peek().is_some() {
            let batch: Vec<_> = keys
                .by_ref()
                .take(BATCH)
                .map(|(service, instance)| {
                    self.put(&shape.key(service, instance), &value(service, instance))
                })
                .collect();
            self.apply(batch);
        }
        self.apply([Change::ListEnd { revision: self.revision }]);
        assert!(self.answerer.condition().synced, "the list is complete");
    }

    /// The services of a shape, all known.
    pub(crate) fn of(shape: Shape) -> Self {
        let mut store = Self::empty();
        store.list(shape, |_, _| VALUE.to_owned());
        store
    }

    /// That a key has this value now.
    pub(crate) fn put(&mut self, key: &str, value: &str) -> Change {
        self.revision += 1;
        let content = self.reader.parse(key.as_bytes(), value.as_bytes());
        Change::Put(Put { key: key.into(), revision: self.revision, lease: 0, content })
    }

    /// That a key was deleted.
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
