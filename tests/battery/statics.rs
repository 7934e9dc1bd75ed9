//! Static services: tables of the configuration file.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

use super::kind::{Inapplicable, Instance, Kind, Login, Programs, Store};

/// The tables of the configuration file, by name and weight.
#[derive(Default)]
pub(crate) struct StaticKind(BTreeMap<(String, u16), Vec<String>>);

impl Kind for StaticKind {
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

    fn put(&mut self, instance: &Instance) -> Instant {
        let table = self.0.entry((instance.name.clone(), instance.weight)).or_default();
        table.push(format!("{}:80", instance.address));
        Instant::now()
    }

    fn put_many(&mut self, instances: &[Instance]) {
        for instance in instances {
            self.put(instance);
        }
    }

    fn programs(&mut self) -> Result<&mut dyn Programs, Inapplicable> {
        Err("a change takes effect with a reload, not by itself")
    }

    fn store(&mut self) -> Result<&mut dyn Store, Inapplicable> {
        Err("no server: the services are in the configuration file")
    }

    fn login(&mut self) -> Result<&mut dyn Login, Inapplicable> {
        Err("no login: the services are in the configuration file")
    }
}
