//! Which data a registry has: of which store, and of which part of it.

use std::fmt;

/// The store of a registry, and the part of it that is followed.
///
/// Displays as `nacos://a:8848,b:8848 namespace=public group=DEFAULT_GROUP`. It has no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The kind of registry, which is also the scheme of its URL.
    pub kind: String,
    /// The servers as `host:port`.
    pub servers: Vec<String>,
    /// The settings that select the part, as `NAME=VALUE`; empty for a whole store.
    pub part: Vec<String>,
}

impl StoreIdentity {
    /// Creates an identity; `part` has the names and values of the settings that select it.
    pub(super) fn new<'p>(
        kind: &str,
        servers: &[String],
        part: impl IntoIterator<Item = (&'p str, &'p str)>,
    ) -> Self {
        let part = part.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        Self { kind: kind.to_owned(), servers: servers.to_vec(), part }
    }

    /// Returns whether both are the same data.
    ///
    /// One common server suffices: a cluster gains and loses members, and stays the same store.
    pub fn is_same(&self, other: &Self) -> bool {
        let is_shared = |server| other.servers.contains(server);
        self.kind == other.kind && self.part == other.part && self.servers.iter().any(is_shared)
    }
}

impl fmt::Display for StoreIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.kind, self.servers.join(","))?;
        self.part.iter().try_for_each(|setting| write!(f, " {setting}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Source, consul, etcd, nacos, polaris, static_services};
    use super::*;

    fn servers(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    fn etcd(text: &str) -> StoreIdentity {
        Source::Etcd(Box::new(etcd::Settings::new(servers(text)))).store_identity().unwrap()
    }

    #[test]
    fn a_cluster_with_other_members_is_the_same_store() {
        let cluster = etcd("a:2379,b:2379,c:2379");
        assert!(cluster.is_same(&etcd("d:2379,c:2379")) && cluster.is_same(&cluster));
        assert!(!cluster.is_same(&etcd("a:2380")) && !cluster.is_same(&etcd("d:2379")));
        assert_eq!(cluster.to_string(), "etcd://a:2379,b:2379,c:2379");
        let consul = consul::Settings::new(servers("a:2379"));
        let consul = Source::Consul(Box::new(consul)).store_identity().unwrap();
        assert!(!cluster.is_same(&consul));
    }

    #[test]
    fn another_part_of_a_store_is_other_data() {
        let consul = |datacenter: Option<&str>, namespace: Option<&str>| {
            let mut settings = consul::Settings::new(servers("a:8500"));
            settings.datacenter = datacenter.map(str::to_owned);
            settings.namespace = namespace.map(str::to_owned);
            Source::Consul(Box::new(settings)).store_identity().unwrap()
        };
        let whole = consul(None, None);
        assert_eq!(whole.to_string(), "consul://a:8500");
        let one = consul(Some("one"), None);
        assert_eq!(one.to_string(), "consul://a:8500 datacenter=one");
        for other in [&whole, &consul(Some("two"), None), &consul(None, Some("one"))] {
            assert!(!one.is_same(other), "{other}");
        }

        let nacos = |change: fn(&mut nacos::Settings)| {
            let mut settings = nacos::Settings::new(servers("a:8848"));
            change(&mut settings);
            Source::Nacos(Box::new(settings)).store_identity().unwrap()
        };
        let public = nacos(|_| {});
        assert_eq!(public.to_string(), "nacos://a:8848 group=DEFAULT_GROUP");
        for other in [
            nacos(|settings| settings.namespace = Some("dev".to_owned())),
            nacos(|settings| settings.group = "other".to_owned()),
            nacos(|settings| settings.clusters = vec!["c1".to_owned()]),
        ] {
            assert!(!public.is_same(&other), "{other}");
        }

        let polaris = |namespace: &str| {
            let mut settings = polaris::Settings::new(servers("a:8090"));
            settings.namespace = namespace.to_owned();
            Source::Polaris(Box::new(settings)).store_identity().unwrap()
        };
        assert_eq!(polaris("default").to_string(), "polaris://a:8090 namespace=default");
        assert!(!polaris("default").is_same(&polaris("other")));
    }

    #[cfg(feature = "zookeeper")]
    #[test]
    fn another_root_in_zookeeper_is_other_data() {
        let zookeeper = |root: &str| {
            let mut settings = super::super::zookeeper::Settings::new(servers("a:2181"));
            settings.root = root.to_owned();
            Source::ZooKeeper(Box::new(settings)).store_identity().unwrap()
        };
        assert_eq!(zookeeper("/one").to_string(), "zookeeper://a:2181 root=/one");
        assert!(!zookeeper("/one").is_same(&zookeeper("/two")));
    }

    #[test]
    fn a_registry_without_servers_has_no_store() {
        let settings =
            static_services::Settings { file: "/etc/services.toml".into(), registrations: vec![] };
        assert_eq!(Source::Static(settings).store_identity(), None);
    }
}
