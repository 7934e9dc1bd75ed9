//! What the servers of this benchmark serve, and their configuration.

use std::net::{Ipv4Addr, SocketAddr};

use super::load::Question;
use super::support::files::Files;
use super::support::upstream::{Record, Upstream};

/// Services of the registry, each with one instance.
const SERVICES: u8 = 200;

/// A registry, an upstream, and the names to ask for.
pub(crate) struct World {
    files: Files,
    /// A registry with other names, which some reloads add.
    second: Files,
    upstream: Upstream,
    pub(crate) questions: Vec<Question>,
}

/// The parts of a configuration that a reload changes here.
#[derive(Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) ttl: &'static str,
    pub(crate) zones: &'static str,
    pub(crate) log: &'static str,
    pub(crate) order: &'static str,
    pub(crate) has_second_registry: bool,
    pub(crate) has_second_address: bool,
}

impl Default for Variant {
    fn default() -> Self {
        Self {
            ttl: "5s",
            zones: "'svc'",
            log: "info",
            order: "strict",
            has_second_registry: false,
            has_second_address: false,
        }
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let address = |number| Ipv4Addr::new(10, 0, 0, number);
        let key =
            |number: u8| format!("default/default/s{number}.svc/latest/{}:80", address(number));
        let keys: Vec<String> = (0..SERVICES).map(key).collect();
        let keys: Vec<(&str, &str)> = keys.iter().map(|key| (&**key, "{}")).collect();
        let files = Files::new(&keys);
        let second = Files::new(&[("default/default/other.svc/latest/10.1.0.1:80", "{}")]);
        let upstream = Upstream::start();
        let outside = Ipv4Addr::new(192, 0, 2, 1);
        upstream.put([Record::a("host.example", 86_400, &outside.to_string())]);
        let of_registry =
            (0..SERVICES).map(|number| (format!("s{number}.svc"), Some(address(number))));
        let others = [
            ("legacy.svc", Some(Ipv4Addr::new(10, 2, 0, 1))),
            ("www.svc", Some(address(0))),
            ("host.example", Some(outside)),
            ("absent.svc", None),
        ];
        let others = others.map(|(name, address)| (name.to_owned(), address));
        let questions = of_registry.chain(others);
        let questions = questions.map(|(name, address)| Question { name, address }).collect();
        Self { files, second, upstream, questions }
    }

    /// Returns a configuration file for a server on this address.
    pub(crate) fn configuration(&self, address: SocketAddr, variant: Variant) -> String {
        let second = SocketAddr::from(([127, 0, 0, 2], address.port()));
        let listen = if variant.has_second_address {
            format!("'{address}', '{second}'")
        } else {
            format!("'{address}'")
        };
        let [first, second] = [&self.files, &self.second].map(Files::url);
        let registries = if variant.has_second_registry {
            format!("'{first}', '{second}'")
        } else {
            format!("'{first}'")
        };
        let Variant { ttl, zones, log, order, .. } = variant;
        format!(
            "listen = [{listen}]\nregistry = [{registries}]\nzone = [{zones}]\nttl = '{ttl}'\n\
             upstream = ['{}']\nupstream-order = '{order}'\nadmin-listen = 'off'\nlog = '{log}'\n\
             [[static]]\nname = 'legacy'\nendpoints = ['10.2.0.1:80']\n[alias]\n'www' = 's0'\n",
            self.upstream.address
        )
    }
}
