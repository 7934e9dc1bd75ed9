//! GoFrame's names of services in Polaris.
//!
//! GoFrame (`contrib/registry/polaris`) joins the segments of a key with hyphens:
//! `service-default-default-hello.svc-latest`. A hyphen in a segment is not escaped, and a slash
//! becomes one. The version is also metadata of each instance, so the name can be split there; a
//! deployment or namespace with a hyphen must be configured.

use crate::service::ServiceId;

/// GoFrame's default deployment and namespace.
const DEFAULT: &str = "default";

/// GoFrame's default version.
const LATEST: &str = "latest";

/// How GoFrame's names of services are split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceNaming {
    /// The heads with which GoFrame's names begin.
    pub heads: Vec<String>,
    /// Deployments that contain a hyphen.
    pub deployments: Vec<String>,
    /// GoFrame's namespaces that contain a hyphen.
    pub namespaces: Vec<String>,
}

impl Default for ServiceNaming {
    fn default() -> Self {
        Self {
            heads: ["service", "services"].map(str::to_owned).into(),
            deployments: Vec::new(),
            namespaces: Vec::new(),
        }
    }
}

impl ServiceNaming {
    /// Returns the name under which GoFrame registers a service.
    pub(super) fn join(head: &str, id: &ServiceId) -> String {
        let ServiceId { deployment, namespace, name, version } = id;
        [head, deployment, namespace, name, version].join("-").replace('/', "-")
    }

    /// Returns the identity of an instance; `None` if its service is not GoFrame's.
    ///
    /// `version` is that of the instance, or empty.
    pub(super) fn split(&self, service: &str, version: &str) -> Option<ServiceId> {
        let first = |text: &str, known: &[String]| {
            let known = known.iter().filter_map(|known| {
                let rest = text.strip_prefix(&*written(known))?.strip_prefix('-')?;
                Some((known.clone(), rest.to_owned()))
            });
            known.max_by_key(|(known, _)| known.len())
        };
        let (_, rest) = first(service, &self.heads)?;
        let next = |text: &str, known: &[String]| {
            first(text, known).or_else(|| {
                let (segment, rest) = text.split_once('-')?;
                Some((segment.to_owned(), rest.to_owned()))
            })
        };
        let (deployment, rest) = next(&rest, &self.deployments)?;
        let (namespace, rest) = next(&rest, &self.namespaces)?;
        let end = format!("-{}", written(version));
        let of_version = rest.strip_suffix(&end).filter(|_| !version.is_empty());
        // GoFrame's reader takes what follows the last hyphen for the version, whatever it is.
        let (name, last) = match of_version {
            Some(name) => (name, version),
            None => rest.rsplit_once('-')?,
        };
        if name.is_empty() {
            return None;
        }
        let or = |text: &str, default: &str| if text.is_empty() { default } else { text }.into();
        Some(ServiceId {
            deployment: or(&deployment, DEFAULT),
            namespace: or(&namespace, DEFAULT),
            name: name.into(),
            version: or(if version.is_empty() { last } else { version }, LATEST),
        })
    }

    /// Returns the identity of an instance of another program: its service and version.
    pub(super) fn foreign(service: &str, version: &str) -> ServiceId {
        ServiceId {
            deployment: DEFAULT.into(),
            namespace: DEFAULT.into(),
            name: service.into(),
            version: if version.is_empty() { LATEST } else { version }.into(),
        }
    }
}

/// Returns a segment as GoFrame writes it into a name.
fn written(segment: &str) -> String {
    segment.replace('/', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id([deployment, namespace, name, version]: [&str; 4]) -> ServiceId {
        ServiceId {
            deployment: deployment.into(),
            namespace: namespace.into(),
            name: name.into(),
            version: version.into(),
        }
    }

    fn with_hyphens() -> ServiceNaming {
        ServiceNaming {
            deployments: vec!["my-dep".to_owned()],
            namespaces: ["my", "my-ns", "my-ns-2"].map(str::to_owned).into(),
            ..ServiceNaming::default()
        }
    }

    #[test]
    fn names_are_split_at_the_version_of_the_metadata() {
        let naming = ServiceNaming::default();
        for (service, version, expected) in [
            (
                "service-default-default-hello.svc-latest",
                "latest",
                ["default", "default", "hello.svc", "latest"],
            ),
            ("services-d-n-hello-world-v1", "v1", ["d", "n", "hello-world", "v1"]),
            ("service-d-n-hello-world-v1-rc-2", "v1-rc-2", ["d", "n", "hello-world", "v1-rc-2"]),
            ("service-d-n-a-b-c", "b-c", ["d", "n", "a", "b-c"]),
            ("service-d-n-a-b-c", "", ["d", "n", "a-b", "c"]),
            ("service-d-n-a-b-c", "other", ["d", "n", "a-b", "other"]),
            ("service-d-n-a-v1-2", "v1/2", ["d", "n", "a", "v1/2"]),
            ("service---a-latest", "latest", ["default", "default", "a", "latest"]),
        ] {
            assert_eq!(naming.split(service, version), Some(id(expected)), "{service} {version}");
        }
    }

    #[test]
    fn configured_deployments_and_namespaces_may_hold_hyphens() {
        let naming = with_hyphens();
        for (service, expected) in [
            ("service-my-dep-my-ns-user-svc-v1", ["my-dep", "my-ns", "user-svc", "v1"]),
            ("service-my-dep-my-ns-2-user-v1", ["my-dep", "my-ns-2", "user", "v1"]),
            ("service-my-dep-my-other-v1", ["my-dep", "my", "other", "v1"]),
            ("service-default-prod-user-v1", ["default", "prod", "user", "v1"]),
        ] {
            assert_eq!(naming.split(service, "v1"), Some(id(expected)), "{service}");
        }
        let unknown = ServiceNaming::default().split("service-default-my-ns-user-svc-v1", "v1");
        assert_eq!(unknown, Some(id(["default", "my", "ns-user-svc", "v1"])));
    }

    #[test]
    fn names_of_other_programs_are_not_split() {
        let naming = ServiceNaming::default();
        for service in
            ["web", "service", "service-a", "service-a-b", "service-a-b-c", "svc-a-b-c-d"]
        {
            assert_eq!(naming.split(service, ""), None, "{service}");
        }
        let foreign = ServiceNaming::foreign("user-service", "");
        assert_eq!(foreign, id(["default", "default", "user-service", "latest"]));
    }

    #[test]
    fn joined_names_are_split_again() {
        for parts in [
            ["default", "default", "hello.svc", "latest"],
            ["my-dep", "my-ns", "user-svc", "v1.2.0-rc-1"],
        ] {
            let service = ServiceNaming::join("service", &id(parts));
            assert_eq!(with_hyphens().split(&service, parts[3]), Some(id(parts)), "{service}");
        }
    }
}
