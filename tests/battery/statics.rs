//! Static services: tables of the configuration file.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

use super::kind::{Facts, Inapplicable, Instance, Kind, Login, Store};
use super::support::seconds;

/// The tables of the configuration file, by name and weight.
#[derive(Default)]
pub(crate) struct StaticKind(BTreeMap<(String, u16), Vec<String>>);

impl Kind for StaticKind {
    fn facts(&self) -> Facts {
        Facts {
            expiry: seconds(0),
            longest_timeout: seconds(0),
            programs_return_after_a_wipe: false,
        }
    }

    fn section(&self) -> String {
        let mut text = String::new();
        for ((name, weight), endpoints) in &self.0 {
            let _ = writeln!(
                text,
                "[[static]]\nname = {name:?}\nendpoints = {endpoints:?}\n\
                 metadata = {{ weight = {weight} }}"
            );
        }
        text
    }

    fn changes(&self) -> Result<(), Inapplicable> {
        Err("svcdns reads the configuration at startup: a change needs a restart")
    }

    fn put(&mut self, instance: &Instance) -> Instant {
        let table = self.0.entry((instance.name.clone(), instance.weight)).or_default();
        table.push(format!("{}:80", instance.address));
        Instant::now()
    }

    fn remove(&mut self, _instance: &Instance) -> Instant {
        unreachable!("no case removes what cannot change");
    }

    fn let_die(&mut self, _instance: &Instance) {
        unreachable!("no case lets die what cannot change");
    }

    fn put_many(&mut self, instances: &[Instance]) {
        for instance in instances {
            self.put(instance);
        }
    }

    fn remove_many(&mut self, _instances: &[Instance]) {
        unreachable!("no case removes what cannot change");
    }

    fn put_invalid(&mut self) -> Vec<String> {
        unreachable!("no case changes what cannot change");
    }

    fn store(&mut self) -> Result<&mut dyn Store, Inapplicable> {
        Err("no server: the services are in the configuration file")
    }

    fn login(&mut self) -> Result<&mut dyn Login, Inapplicable> {
        Err("no login: the services are in the configuration file")
    }
}
