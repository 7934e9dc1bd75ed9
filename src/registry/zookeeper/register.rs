//! Registration of a service as GoFrame does it, the only code that writes to ZooKeeper.

use std::convert::Infallible;
use std::mem;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::connection::{ServerMessage, ZooKeeperConnection};
use super::failure::{ErrorCode, malformed};
use super::paths::{child, invalid_path};
use super::wire::{Session, ZooKeeperRequest, parse_data};
use crate::registry::failure::Failure;
use crate::registry::register::{RegistrationProgress, StoreRegistration, keep_registered};
use crate::registry::{RegisterError, RegisterEvent, Registrant, gsvc};
use crate::service::ServiceId;

/// Time for which a leaf that was deleted stays so.
///
/// A GoFrame program that replaces a leaf deletes it and then creates its own. It exits if there is
/// another one meanwhile.
const RECREATE_AFTER: Duration = Duration::from_secs(1);

/// Registers a service until `stop` is cancelled, then removes it.
///
/// The leaf is named after the service, as in GoFrame, so it holds one instance. Like GoFrame, it
/// first replaces what another program has written. What another program writes later stays until
/// that program is gone.
///
/// # Errors
/// Returns an error if ZooKeeper's layout cannot hold the registration, if the first attempt is
/// refused for good, or if the leaf could not be deleted at the end.
pub async fn register(
    settings: &Settings,
    registrant: &Registrant,
    stop: CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let settings = &settings.clone().bounded();
    let registration = LeafRegistration::new(settings, registrant)?;
    keep_registered(registration, settings.attempts(), stop, events).await
}

/// The leaf of a registration.
struct LeafRegistration<'a> {
    settings: &'a Settings,
    leaf: Box<str>,
    data: String,
    session_timeout: Duration,
    /// The session that owns the leaf; a new connection resumes it.
    session: Session,
    /// The connection of the session, kept for the removal.
    connection: Option<ZooKeeperConnection>,
    has_written: bool,
    /// Whether the leaf was ours when it was last read.
    is_ours: bool,
}

/// Owner of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeafOwner {
    /// There is no leaf.
    Nobody,
    Us,
    /// Another program; the leaf has this version.
    Other {
        version: i32,
    },
}

impl<'a> LeafRegistration<'a> {
    fn new(settings: &'a Settings, registrant: &Registrant) -> Result<Self, RegisterError> {
        let Registrant { head, id, endpoints, metadata, ttl } = registrant;
        let leaf = child(&child(&settings.root, &folder_name(head, id)), &id.name);
        if let Some(why) = invalid_path(&leaf) {
            let text = format!("ZooKeeper cannot hold the node {leaf}: {why}");
            return Err(RegisterError::NotWritable(text));
        }
        let (key, value) = (gsvc::key(head, id, endpoints), gsvc::value(metadata));
        Ok(Self {
            settings,
            leaf,
            data: leaf_data(&key, &value),
            session_timeout: *ttl,
            session: Session::new(*ttl),
            connection: None,
            has_written: false,
            is_ours: false,
        })
    }

    /// Connects, and resumes the session or else opens another.
    async fn connect(&mut self, endpoint: &str) -> Result<(), Failure> {
        self.connection = None;
        let mut connection =
            ZooKeeperConnection::open(self.settings, endpoint, self.session).await?;
        if connection.is_none() {
            self.session = Session::new(self.session_timeout);
            connection = ZooKeeperConnection::open(self.settings, endpoint, self.session).await?;
        }
        let connection = connection.ok_or_else(malformed)?;
        self.session = connection.session();
        self.connection = Some(connection);
        Ok(())
    }

    async fn call(
        &mut self,
        request: ZooKeeperRequest<'_>,
    ) -> Result<Result<Vec<u8>, ErrorCode>, Failure> {
        match &mut self.connection {
            Some(connection) => connection.call(request).await,
            None => Err(Failure::connection("the connection has ended")),
        }
    }

    /// Reads whose the leaf is, and sets a watch on it.
    async fn owner(&mut self) -> Result<LeafOwner, Failure> {
        let leaf = self.leaf.clone();
        match self.call(ZooKeeperRequest::Data { path: &leaf, watch: true }).await? {
            Ok(body) => {
                let (_, stat) = parse_data(&body).map_err(|_| malformed())?;
                let is_ours = stat.owner == self.session.id;
                let version = stat.version;
                Ok(if is_ours { LeafOwner::Us } else { LeafOwner::Other { version } })
            }
            Err(ErrorCode::NO_NODE) => Ok(LeafOwner::Nobody),
            Err(code) => Err(self.failed(code, "read", &leaf)),
        }
    }

    /// Creates the leaf, or the nodes above it; returns whether it is there now.
    async fn create_leaf(&mut self) -> Result<bool, Failure> {
        let (path, data) = (self.leaf.clone(), mem::take(&mut self.data));
        let create =
            ZooKeeperRequest::Create { path: &path, data: data.as_bytes(), is_ephemeral: true };
        let created = self.call(create).await;
        self.data = data;
        match created? {
            Ok(_) => return Ok(true),
            // Another program was faster.
            Err(ErrorCode::NODE_EXISTS) => {}
            Err(ErrorCode::NO_NODE) => self.create_folder().await?,
            Err(code) => return Err(self.failed(code, "create", &path)),
        }
        Ok(false)
    }

    /// Creates the persistent nodes above the leaf that do not exist.
    async fn create_folder(&mut self) -> Result<(), Failure> {
        let leaf = self.leaf.clone();
        let ends = leaf.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
        for end in ends {
            let path = &leaf[..end];
            match self
                .call(ZooKeeperRequest::Create { path, data: b"", is_ephemeral: false })
                .await?
            {
                Ok(_) | Err(ErrorCode::NODE_EXISTS) => {}
                Err(code) => return Err(self.failed(code, "create", path)),
            }
        }
        Ok(())
    }

    /// Deletes the leaf of another program, unless it has changed since it was read.
    async fn replace(&mut self, version: i32) -> Result<(), Failure> {
        let path = self.leaf.clone();
        match self.call(ZooKeeperRequest::Delete { path: &path, version }).await? {
            Ok(_) | Err(ErrorCode::NO_NODE | ErrorCode::BAD_VERSION) => Ok(()),
            Err(code) => Err(self.failed(code, "replace", &path)),
        }
    }

    /// Waits until the leaf has changed since [`Self::owner`].
    async fn changed(&mut self) -> Result<(), Failure> {
        while let Some(connection) = &mut self.connection {
            if let ServerMessage::Event(event) = connection.next().await?
                && event.path == self.leaf
            {
                break;
            }
        }
        Ok(())
    }

    fn failed(&self, code: ErrorCode, verb: &str, path: &str) -> Failure {
        code.of_node(self.settings.login_keys()).of(&format!("{verb} {path}"))
    }
}

impl StoreRegistration for LeafRegistration<'_> {
    fn key(&self) -> &str {
        &self.leaf
    }

    fn expiry_seconds(&self) -> u64 {
        self.session.timeout.as_secs().max(1)
    }

    async fn keep(
        &mut self,
        endpoint: &str,
        progress: &mut RegistrationProgress<impl Fn(RegisterEvent)>,
    ) -> Result<Infallible, Failure> {
        self.connect(endpoint).await?;
        loop {
            let mut owner = self.owner().await?;
            if owner == LeafOwner::Nobody && self.has_written {
                sleep(RECREATE_AFTER).await;
                owner = self.owner().await?;
            }
            self.is_ours = owner == LeafOwner::Us;
            match owner {
                LeafOwner::Us => progress.refreshed(),
                LeafOwner::Nobody => {
                    if self.create_leaf().await? {
                        self.has_written = true;
                        self.is_ours = true;
                        progress.registered();
                    }
                    // Read again, to set the watch.
                    continue;
                }
                LeafOwner::Other { version } if !self.has_written => {
                    self.replace(version).await?;
                    continue;
                }
                LeafOwner::Other { .. } => progress.failed(Failure::connection(format!(
                    "another program has replaced {}, which holds one instance: waiting until \
                     that one is gone",
                    self.leaf
                ))),
            }
            progress.set_working();
            self.changed().await?;
        }
    }

    /// Ends the session, and with it the leaf, if that is ours.
    async fn remove(&mut self, endpoint: &str) -> Result<bool, Failure> {
        if self.session.id == 0 {
            return Ok(false);
        }
        if self.connection.is_none() {
            match ZooKeeperConnection::open(self.settings, endpoint, self.session).await? {
                Some(connection) => self.connection = Some(connection),
                // The leaf has ended with its session.
                None => return Ok(self.is_ours),
            }
        }
        let closed = self.call(ZooKeeperRequest::Close).await;
        self.connection = None;
        closed?.map_err(|code| code.of_node(None).of("end the session"))?;
        Ok(self.is_ours)
    }
}

/// Returns GoFrame's name for the folder of a service: the prefix of its key with `-` for `/`.
fn folder_name(head: &str, id: &ServiceId) -> String {
    let ServiceId { deployment, namespace, name, version } = id;
    format!("{head}-{deployment}-{namespace}-{name}-{version}").trim_matches('-').to_owned()
}

/// Returns the data of a leaf as Go writes it: the fields in this order, both texts.
fn leaf_data(key: &str, value: &str) -> String {
    let escaped = |text: &str| gsvc::escape_html(&json!(text).to_string());
    format!(r#"{{"Key":{},"Value":{}}}"#, escaped(key), escaped(value))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::service::{Endpoint, Metadata};

    fn registrant(name: &str, version: &str) -> Registrant {
        let host = IpAddr::from(Ipv4Addr::new(10, 9, 0, 5)).into();
        let metadata = serde_json::from_str(r#"{"protocol":"http","insecure":true}"#).unwrap();
        Registrant {
            head: "service".to_owned(),
            id: ServiceId {
                deployment: "default".into(),
                namespace: "default".into(),
                name: name.into(),
                version: version.into(),
            },
            endpoints: vec![Endpoint { host, port: 32909 }],
            metadata: Metadata::new(metadata),
            ttl: Duration::from_secs(10),
        }
    }

    #[test]
    fn leaves_have_goframes_form() {
        let settings = Settings::new(vec!["127.0.0.1:2181".to_owned()]);
        let registrant = registrant("hello.svc", "latest");
        let leaf = LeafRegistration::new(&settings, &registrant).unwrap();
        let expected = "/microservices/service-default-default-hello.svc-latest/hello.svc";
        assert_eq!(&*leaf.leaf, expected);
        let expected = concat!(
            r#"{"Key":"/service/default/default/hello.svc/latest/10.9.0.5:32909","#,
            r#""Value":"{\"insecure\":true,\"protocol\":\"http\"}"}"#,
        );
        assert_eq!(leaf.data, expected);
        assert_eq!(leaf_data("a", "<&>"), r#"{"Key":"a","Value":"\u003c\u0026\u003e"}"#);
    }

    #[test]
    fn names_that_zookeeper_refuses_are_not_writable() {
        let settings = Settings::new(vec!["127.0.0.1:2181".to_owned()]);
        for name in ["..", "a\u{7}b", "🦀"] {
            let refused = LeafRegistration::new(&settings, &registrant(name, "v1"));
            assert!(matches!(refused, Err(RegisterError::NotWritable(_))), "{name}");
        }
    }
}
