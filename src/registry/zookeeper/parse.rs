//! Conversion of ZooKeeper's nodes to [`crate::service`].
//!
//! GoFrame (`contrib/registry/zookeeper`) writes each registration as one leaf: its data has the
//! key and the value. The names of the nodes do not identify it, because they join the parts of
//! the key with hyphens, which the parts may contain.

use std::borrow::Cow;

use serde::Deserialize;

use crate::registry::gsvc::{KeyParser, MAX_VALUE_BYTES, VALUE_TOO_LONG};
use crate::registry::identify::excerpt;
use crate::service::{Reason, Registration, Rejected, ServiceId};

/// The data of a leaf is not what GoFrame writes.
pub const LEAF_NOT_JSON: Reason = Reason::new(
    "leaf-not-json",
    "the data of the node is not a JSON object with the text \"Key\", as GoFrame writes it",
);

/// Maximum length of a leaf's data, in bytes.
///
/// JSON escapes the value, which may double its length; the key is short.
const MAX_LEAF_BYTES: usize = 4 * MAX_VALUE_BYTES;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Leaf<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value: Option<Cow<'a, str>>,
}

/// Parses the data of leaves, one after the other.
pub(super) struct LeafParser {
    /// First segments of the keys to follow.
    heads: Vec<String>,
    keys: KeyParser,
}

impl LeafParser {
    pub(super) fn new(heads: Vec<String>) -> Self {
        Self { heads, keys: KeyParser::default() }
    }

    /// Parses the data of a leaf; `None` if its key has another head.
    pub(super) fn parse(&mut self, data: &[u8]) -> Option<Result<Registration, Rejected>> {
        if data.len() > MAX_LEAF_BYTES {
            return Some(Err(Rejected::new(&excerpt(data), VALUE_TOO_LONG)));
        }
        let Ok(Leaf { key, value }) = serde_json::from_slice(data) else {
            return Some(Err(Rejected::new(&excerpt(data), LEAF_NOT_JSON)));
        };
        let head = key.trim_matches(|c: char| c == '/' || c.is_whitespace()).split('/').next();
        if !self.heads.iter().any(|followed| Some(&**followed) == head) {
            return None;
        }
        Some(self.keys.parse(key.as_bytes(), value.unwrap_or_default().as_bytes()))
    }

    /// Returns a registration without an endpoint for a folder without a leaf.
    ///
    /// The service is known then, although it has no instance. `None` if the name of the folder
    /// can be split in several ways.
    pub(super) fn empty_service(&self, folder: &str) -> Option<Registration> {
        split_folder(folder, &self.heads).map(Registration::without_endpoints)
    }
}

/// Splits the name of a folder, such as `service-default-default-hello.svc-latest`.
///
/// With a hyphen in one of the parts, only GoFrame's defaults around the name are certain enough.
fn split_folder(folder: &str, heads: &[String]) -> Option<ServiceId> {
    let rest = heads.iter().find_map(|head| folder.strip_prefix(&**head)?.strip_prefix('-'))?;
    let parts: Vec<&str> = rest.split('-').collect();
    let [deployment, namespace, name, version] = if let Ok(parts) = <[&str; 4]>::try_from(parts) {
        parts
    } else {
        let name = rest.strip_prefix("default-default-")?.strip_suffix("-latest")?;
        ["default", "default", name, "latest"]
    };
    let is_whole = [deployment, namespace, name, version].iter().all(|part| !part.is_empty());
    is_whole.then(|| ServiceId {
        deployment: deployment.into(),
        namespace: namespace.into(),
        name: name.into(),
        version: version.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::gsvc::GOFRAME_HEADS;
    use crate::service::Endpoint;

    fn parser() -> LeafParser {
        LeafParser::new(GOFRAME_HEADS.map(str::to_owned).to_vec())
    }

    #[test]
    fn the_key_in_the_data_identifies_a_registration() {
        let data = br#"{"Key":"/service/default/my-ns/user-svc/v1.2.0/10.9.0.5:80,10.9.0.6:80",
            "Value":"{\"insecure\":true,\"protocol\":\"http\"}"}"#;
        let found = parser().parse(data).unwrap().unwrap();
        assert_eq!(&*found.id.namespace, "my-ns");
        assert_eq!((&*found.id.name, &*found.id.version), ("user-svc", "v1.2.0"));
        let endpoints: Vec<_> = found.endpoints.iter().map(Endpoint::to_string).collect();
        assert_eq!(endpoints, ["10.9.0.5:80", "10.9.0.6:80"]);
        let metadata = serde_json::to_string(&*found.metadata).unwrap();
        assert_eq!(metadata, r#"{"insecure":true,"protocol":"http"}"#);
        let bare = br#"{"Key":"service/d/n/a/v/10.0.0.1:80"}"#;
        assert!(parser().parse(bare).unwrap().unwrap().metadata.is_empty());
        let other = br#"{"Key":"/other/d/n/a/v/10.0.0.1:80","Value":"{}"}"#;
        assert!(parser().parse(other).is_none(), "another head");
    }

    #[test]
    fn invalid_data_is_rejected_with_its_reason() {
        let long = format!(r#"{{"Key":"{}"}}"#, "a".repeat(MAX_LEAF_BYTES));
        for (data, reason) in [
            (&b""[..], "leaf-not-json"),
            (b"10.0.0.1:80", "leaf-not-json"),
            (b"[]", "leaf-not-json"),
            (br#"{"Key":7}"#, "leaf-not-json"),
            (b"{\"Key\":\"/service/d/n/a/v/10.0.0.1:80\xff\"}", "leaf-not-json"),
            (br#"{"Key":"/service/d/n/a"}"#, "too-few-segments"),
            (br#"{"Key":"/service/d/n/a/v/10.0.0.1:80","Value":"x"}"#, "value-not-json"),
            (long.as_bytes(), "value-too-long"),
        ] {
            let rejected = parser().parse(data).unwrap().unwrap_err();
            assert_eq!(rejected.reason.code(), reason, "{}", rejected.found);
        }
    }

    #[test]
    fn folders_are_split_only_if_there_is_one_likely_way() {
        let parser = parser();
        let split = |folder: &str| {
            let id = parser.empty_service(folder)?.id;
            Some(format!("{}/{}/{}/{}", id.deployment, id.namespace, id.name, id.version))
        };
        for (folder, expected) in [
            ("service-default-default-hello.svc-latest", Some("default/default/hello.svc/latest")),
            ("services-default-default-a-latest", Some("default/default/a/latest")),
            ("service-prod-shop-cart-v2", Some("prod/shop/cart/v2")),
            ("service-default-default-user-svc-latest", Some("default/default/user-svc/latest")),
            ("service-default-my-ns-user-svc-v1.2.0", None),
            ("service-default-default-user-svc-v1-rc", None),
            ("service-default-default-latest", None),
            ("service-default-default--latest", None),
            ("other-default-default-a-latest", None),
            ("service", None),
            ("", None),
        ] {
            assert_eq!(split(folder).as_deref(), expected, "{folder}");
        }
    }
}
