//! Settings of the server's parts, derived from the configuration.

use std::net::SocketAddr;

use super::Config;
use crate::service::{MAX_REGISTRIES, RegistryId};
use crate::upstream::Servers;
use crate::{answer, catalog, server, upstream};

impl Config {
    /// Returns the settings of the catalog.
    pub fn catalog(&self) -> catalog::Settings {
        let registries = self.registries.iter();
        let fallbacks = self.registries.iter().map(|registry| registry.source.is_fallback());
        catalog::Settings {
            layers: self.merge.layers(fallbacks),
            docker0: self.docker0,
            removal_graces: registries.map(|registry| registry.removal_grace).collect(),
            max_instances_per_service: self.max_instances_per_service,
            max_keys: self.max_keys,
            bridge_pool: self.bridge.as_ref().map(|bridge| bridge.pool),
            checks: self.checks.as_ref().map(|checks| checks.rules.clone()),
            ..catalog::Settings::new(self.zones.clone(), self.registries.len())
        }
    }

    /// Returns the settings of the authoritative side.
    ///
    /// The listen addresses become the address records of the name server.
    pub fn answer(&self, listen: &[SocketAddr]) -> answer::Settings {
        let mut addresses = Vec::new();
        for address in listen {
            if !addresses.contains(&address.ip()) {
                addresses.push(address.ip());
            }
        }
        answer::Settings {
            zones: self.zones.clone(),
            deployment: self.deployment.to_ascii_lowercase().into(),
            namespace: self.namespace.to_ascii_lowercase().into(),
            version_fallback: self.version_fallback,
            answers: self.answers,
            ttl: self.ttl,
            negative_ttl: self.negative_ttl,
            listen: addresses,
            forwarding: self.upstream.servers != Servers::Off,
            aliases: self.alias_targets.clone(),
            bridge: self.bridge.is_some(),
            registry_names: self.registries.iter().map(|registry| registry.name.clone()).collect(),
            static_registries: RegistryId::first(MAX_REGISTRIES)
                .zip(&self.registries)
                .filter(|(_, registry)| registry.source.is_fallback())
                .map(|(id, _)| id)
                .collect(),
        }
    }

    /// Returns the settings of forwarding; `None` if forwarding is off.
    ///
    /// The listen addresses are never used as upstreams.
    pub fn upstream(&self, listen: &[SocketAddr]) -> Option<upstream::Settings> {
        (self.upstream.servers != Servers::Off).then(|| upstream::Settings {
            servers: self.upstream.servers.clone(),
            domains: self.upstream.domains.clone(),
            order: self.upstream.order,
            own: listen.to_vec(),
            zones: self.zones.clone(),
            ca_file: self.upstream.ca_file.clone(),
            random_case: self.upstream.random_case,
            rebinding: self.rebinding.clone(),
            cache_bytes: self.cache_bytes,
            stale: self.serve_stale,
            negative_ttl: self.negative_ttl,
            forward_single_labels: self.upstream.forward_single_labels,
            other_opcodes: self.forward_opcodes,
        })
    }

    /// Returns the settings of the DNS server.
    pub fn server(&self) -> server::Settings {
        server::Settings {
            listen: self.listen.clone(),
            encrypted: self.encrypted.clone(),
            allow: self.allow.clone(),
            allow_loopback: true,
            log_queries: self.log_queries,
            limits: server::Limits {
                connections: self.tcp_connections,
                connections_per_source: self.tcp_connections_per_source,
                connections_per_loopback_source: self.tcp_connections_per_loopback_source,
                idle_timeout: self.tcp_idle_timeout,
                ..server::Limits::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::Flags;

    #[test]
    fn each_registry_can_have_its_own_removal_grace() {
        let flags = Flags::default().with("registry", "etcd://a").with("registry", "file:///b");
        let mut config = Config::load(Some(Path::new("/dev/null")), [], &flags).unwrap();
        config.registries[1].removal_grace = Duration::ZERO;
        assert_eq!(config.catalog().removal_graces, [Duration::from_secs(12), Duration::ZERO]);
    }
}
