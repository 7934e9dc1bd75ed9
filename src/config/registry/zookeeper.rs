//! ZooKeeper: URLs `zookeeper://host:port[,host:port…]/root`, and the section `[zookeeper]`.

use super::login::LoginKeys;
use super::tls::tls_keys;
use super::{RegistryKind, UrlParser};
use crate::config::error::ConfigError;
use crate::config::key::{SecretKey, keys};
use crate::config::layers::Layers;

pub(super) static KIND: RegistryKind = RegistryKind {
    name: "zookeeper",
    tls_scheme: None,
    form: "zookeeper://host:port[,host:port]/root",
    example: "zookeeper://10.0.0.1:2181,10.0.0.2:2181/microservices",
    keys: KEYS,
    secrets: &[&PASSWORD],
    tls: Some(&TLS_KEYS),
    note: Some(
        "in ZooKeeper, a leaf holds one registration, and GoFrame names it after the service: a \
         second program of the same service replaces the first",
    ),
    read,
};

keys! { KEYS:
    USERNAME = "zookeeper" "username" Text "USER" "" r#""""#
        "Log in to ZooKeeper as this user, with the scheme `digest`; requires a password.";
    PASSWORD_FILE = "zookeeper" "password-file" Text "FILE" "file" r#""""#
        "Read the ZooKeeper password from this file. Alternatively, set the environment variable \
         SVCDNS_ZOOKEEPER_PASSWORD.";
}

static PASSWORD: SecretKey =
    SecretKey { name: "password", variable: "SVCDNS_ZOOKEEPER_PASSWORD", file: PASSWORD_FILE };

static LOGIN_KEYS: LoginKeys = LoginKeys { username: USERNAME, password: &PASSWORD };

tls_keys! { "zookeeper" "ZooKeeper" "the other `zookeeper` TLS settings" }

#[cfg(feature = "zookeeper")]
fn read(layers: &Layers) -> Result<UrlParser, ConfigError> {
    use super::endpoints::RefusedInUrl;
    use super::heads;
    use super::login::ConfiguredLogin;
    use crate::registry::Source;
    use crate::registry::zookeeper::{DigestLogin, Settings};

    /// Default client port of ZooKeeper.
    const ZOOKEEPER_PORT: u16 = 2181;

    let ConfiguredLogin { username, password, keys } = LOGIN_KEYS.read(layers)?;
    let login = username.zip(password).zip(keys);
    let login = login.map(|((user, password), keys)| DigestLogin { user, password, keys });
    let (tls, heads) = (TLS_KEYS.read(layers)?, heads(layers)?);
    let settings = Settings { login, tls, heads, ..Settings::new(Vec::new()) };
    let refused = RefusedInUrl::new(
        "user or password",
        &LOGIN_KEYS.recommended(layers),
        "the servers of a ZooKeeper URL",
    );
    Ok(Box::new(move |_, rest| {
        let (servers, root) = split_root(rest);
        let endpoints = refused.parse_endpoints(servers, ZOOKEEPER_PORT)?;
        let root = root.map_or_else(|| Ok(settings.root.clone()), parse_root)?;
        Ok(Source::ZooKeeper(Box::new(Settings { endpoints, root, ..settings.clone() })))
    }))
}

#[cfg(not(feature = "zookeeper"))]
fn read(layers: &Layers) -> Result<UrlParser, ConfigError> {
    LOGIN_KEYS.read(layers)?;
    TLS_KEYS.read(layers)?;
    Ok(Box::new(|_, _| {
        let why = "this svcdns was built without ZooKeeper: use one that was built with the Cargo \
                   feature `zookeeper`, which is on by default";
        Err(why.to_owned())
    }))
}

/// Splits a URL after its servers; `None` if it has no root.
#[cfg(feature = "zookeeper")]
fn split_root(rest: &str) -> (&str, Option<&str>) {
    match rest.find('/') {
        Some(at) if at + 1 < rest.len() => (&rest[..at], Some(&rest[at..])),
        _ => (rest, None),
    }
}

/// Parses the root of a URL; a slash at its end is ignored.
#[cfg(feature = "zookeeper")]
fn parse_root(root: &str) -> Result<String, String> {
    use crate::registry::zookeeper::invalid_path;

    let root = root.strip_suffix('/').unwrap_or(root);
    if let Some((_, after)) = root.split_once(',') {
        let why = format!(
            "unexpected {after:?} after the root of a ZooKeeper URL: the root follows all servers, \
             as in {}",
            KIND.example
        );
        return Err(why);
    }
    if let Some(at) = root.find(['?', '#']) {
        return Err(format!("unexpected {:?} after the root of a ZooKeeper URL", &root[at..]));
    }
    match invalid_path(root) {
        Some(why) => Err(format!("{root:?} cannot be the path of a node in ZooKeeper: {why}")),
        None => Ok(root.to_owned()),
    }
}

#[cfg(all(test, feature = "zookeeper"))]
mod tests {
    use super::*;

    #[test]
    fn the_root_follows_all_servers() {
        for (rest, servers, root) in [
            ("a", "a", None),
            ("a:1,b:2/", "a:1,b:2/", None),
            ("a:1,b:2/micro/services", "a:1,b:2", Some("/micro/services")),
            ("[::1]:2181/x/", "[::1]:2181", Some("/x/")),
        ] {
            assert_eq!(split_root(rest), (servers, root), "{rest}");
        }
        assert_eq!(parse_root("/micro/services/"), Ok("/micro/services".to_owned()));
        for (root, expected) in [
            ("/x,b:2", "the root follows all servers"),
            ("/x?timeout=3", "unexpected \"?timeout=3\""),
            ("//x", "a name in it is empty"),
            ("/x/../y", "a name in it is a dot or two"),
        ] {
            let error = parse_root(root).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
