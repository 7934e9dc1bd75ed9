//! Registration of a service over HTTP, the only code that writes to Nacos.

use std::convert::Infallible;

use hyper::Method;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::client::NacosClient;
use super::parse::DEFAULT_CLUSTER;
use crate::percent;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::http;
use crate::registry::identify::{ServerKind, excerpt};
use crate::registry::register::{RegistrationProgress, StoreRegistration, keep_registered};
use crate::registry::{RegisterError, RegisterEvent, Registrant};
use crate::service::Endpoint;

/// Longest time until Nacos removes an instance after its last heartbeat, in seconds.
///
/// Nacos counts it as unhealthy after 15 to 21 s, and svcdns then serves it no longer.
const EXPIRY_SECONDS: u64 = 36;

/// Code of the answer to a heartbeat of an unknown instance, in v1.
const RESOURCE_NOT_FOUND: i64 = 20_404;

/// Code of the answer to a heartbeat of an unknown instance, in v3.
const INSTANCE_NOT_FOUND: i64 = 21_003;

/// Code of a successful heartbeat in v1.
const HEARTBEAT_OK: i64 = 10_200;

/// Registers a service until `stop` is cancelled, then deregisters it.
///
/// Each endpoint is an instance, with the fields that GoFrame writes. Instances are registered
/// again if the server has lost them.
///
/// # Errors
/// Returns an error if Nacos's layout cannot hold the registration, if the first attempt is
/// refused for good, or if an instance could not be deregistered at the end.
pub async fn register(
    settings: &Settings,
    registrant: &Registrant,
    stop: CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let registration = NacosRegistration {
        settings,
        name: registrant.id.name.to_string(),
        instances: instances(settings, registrant)?,
        interface: None,
        tried: None,
    };
    keep_registered(registration, settings.attempts(), stop, events).await
}

/// An interface of Nacos that takes registrations.
///
/// Nacos 2 has v1, too, so v2 is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteInterface {
    V1,
    V3,
}

impl WriteInterface {
    fn path(self) -> &'static str {
        match self {
            Self::V1 => "/nacos/v1/ns/instance",
            Self::V3 => "/nacos/v3/client/ns/instance",
        }
    }

    /// Checks the answer to a registration.
    ///
    /// # Errors
    /// If it does not confirm the registration, such as the page of a proxy.
    fn check_written(self, body: &[u8]) -> Result<(), Failure> {
        let is_written = match self {
            Self::V1 => body.trim_ascii() == b"ok",
            Self::V3 => code(body)? == 0,
        };
        if is_written { Ok(()) } else { Err(unexpected(body)) }
    }
}

/// An instance in the forms of its requests.
#[derive(Debug)]
struct RegisteredInstance {
    /// `host:port`, for messages.
    endpoint: String,
    /// The fields that identify it.
    identity: String,
    /// The fields of its heartbeat in v1, with the group before the name.
    heartbeat: String,
    /// All fields.
    registration: String,
}

/// Returns the instances to register, one for each endpoint.
fn instances(
    settings: &Settings,
    registrant: &Registrant,
) -> Result<Vec<RegisteredInstance>, RegisterError> {
    let Registrant { head: _, id, endpoints, metadata, ttl: _ } = registrant;
    if (&*id.deployment, &*id.namespace, &*id.version) != ("default", "default", "latest") {
        return Err(RegisterError::NotWritable(
            "Nacos has no place for GoFrame's deployment, namespace and version: they must be \
             `default`, `default` and `latest`"
                .to_owned(),
        ));
    }
    // Metadata values are strings in Nacos.
    let metadata: Map<String, Value> =
        metadata.iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    let metadata = percent::encode(&Value::from(metadata).to_string());
    let cluster = settings.clusters.first().map_or(DEFAULT_CLUSTER, String::as_str);
    let instance = |endpoint: &Endpoint| {
        let (name, group) = (percent::encode(&id.name), percent::encode(&settings.group));
        let place = format!(
            "groupName={group}&ip={}&port={}&clusterName={}&ephemeral=true",
            percent::encode(&endpoint.host.to_string()),
            endpoint.port,
            percent::encode(cluster),
        );
        let identity = format!("serviceName={name}&{place}");
        RegisteredInstance {
            endpoint: endpoint.to_string(),
            heartbeat: format!("serviceName={group}%40%40{name}&{place}"),
            registration: format!(
                "{identity}&weight=100&enabled=true&healthy=true&metadata={metadata}"
            ),
            identity,
        }
    };
    Ok(endpoints.iter().map(instance).collect())
}

/// A service that is kept registered.
struct NacosRegistration<'a> {
    settings: &'a Settings,
    /// The name of the service, for messages.
    name: String,
    instances: Vec<RegisteredInstance>,
    /// The interface that took the last registration; `None` before the first.
    interface: Option<WriteInterface>,
    /// The interface of the last write that may have taken effect, with or without an answer.
    tried: Option<WriteInterface>,
}

impl StoreRegistration for NacosRegistration<'_> {
    fn key(&self) -> &str {
        &self.name
    }

    fn expiry_seconds(&self) -> u64 {
        EXPIRY_SECONDS
    }

    async fn keep(
        &mut self,
        endpoint: &str,
        progress: &mut RegistrationProgress<impl Fn(RegisterEvent)>,
    ) -> Result<Infallible, Failure> {
        let client = NacosClient::new(self.settings, endpoint).await?;
        loop {
            let mut registered = false;
            for instance in &self.instances {
                if let Some(interface) = self.interface
                    && beat(&client, interface, instance).await?
                {
                    continue;
                }
                self.interface = Some(write(&client, instance, &mut self.tried).await?);
                progress.set_written();
                registered = true;
            }
            if registered {
                progress.registered();
            } else {
                progress.refreshed();
            }
            progress.set_working();
            sleep(self.settings.tuning.heartbeat_interval).await;
        }
    }

    async fn remove(&mut self, endpoint: &str) -> Result<bool, Failure> {
        let Some(interface) = self.tried else { return Ok(false) };
        let client = NacosClient::new(self.settings, endpoint).await?;
        for instance in &self.instances {
            let form = format!("{}{}", instance.identity, client.namespace());
            let removed = client.write(Method::DELETE, interface.path(), form).await;
            removed.map_err(|failure| failure.of(&format!("deregister {}", instance.endpoint)))?;
        }
        Ok(true)
    }
}

/// Registers an instance in the first interface that the server has.
async fn write(
    client: &NacosClient,
    instance: &RegisteredInstance,
    tried: &mut Option<WriteInterface>,
) -> Result<WriteInterface, Failure> {
    match write_to(client, WriteInterface::V1, instance, tried).await {
        Err(failure) if failure.kind == FailureKind::Missing => {
            write_to(client, WriteInterface::V3, instance, tried).await
        }
        result => result,
    }
}

/// Registers an instance in an interface, which is then the one that was tried.
async fn write_to(
    client: &NacosClient,
    interface: WriteInterface,
    instance: &RegisteredInstance,
    tried: &mut Option<WriteInterface>,
) -> Result<WriteInterface, Failure> {
    let form = format!("{}{}", instance.registration, client.namespace());
    let before = tried.replace(interface);
    let answer = client.write(Method::POST, interface.path(), form).await;
    let written = answer.and_then(|answer| interface.check_written(&answer.body));
    written.map(|()| interface).map_err(|failure| {
        if failure.kind == FailureKind::Missing || failure.kind.is_refusal() {
            *tried = before;
        }
        failure.of(&format!("register {}", instance.endpoint))
    })
}

/// Sends the heartbeat of an instance; returns whether the server knows it.
async fn beat(
    client: &NacosClient,
    interface: WriteInterface,
    instance: &RegisteredInstance,
) -> Result<bool, Failure> {
    let action = format!("refresh {}", instance.endpoint);
    let namespace = client.namespace();
    let answer = match interface {
        WriteInterface::V1 => {
            let form = format!("{}{namespace}", instance.heartbeat);
            client.write(Method::PUT, "/nacos/v1/ns/instance/beat", form).await
        }
        WriteInterface::V3 => {
            let form = format!("{}{namespace}&heartBeat=true", instance.registration);
            client.write(Method::POST, interface.path(), form).await
        }
    };
    let answer = answer.map_err(|failure| failure.of(&action))?;
    match (interface, code(&answer.body).map_err(|failure| failure.of(&action))?) {
        (WriteInterface::V1, HEARTBEAT_OK) | (WriteInterface::V3, 0) => Ok(true),
        (_, RESOURCE_NOT_FOUND | INSTANCE_NOT_FOUND) => Ok(false),
        _ => Err(unexpected(&answer.body).of(&action)),
    }
}

/// The part of an answer that says whether it is a success.
#[derive(Deserialize)]
struct CodedAnswer {
    code: i64,
}

fn code(body: &[u8]) -> Result<i64, Failure> {
    http::parse_json(ServerKind::Nacos, body).map(|CodedAnswer { code }| code)
}

fn unexpected(body: &[u8]) -> Failure {
    Failure::new(FailureKind::Answer, format!("unexpected answer {:?}", excerpt(body)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::service::{Metadata, ServiceId};

    fn registrant(version: &str) -> Registrant {
        let metadata = r#"{"insecure":true,"protocol":"http"}"#;
        let metadata: BTreeMap<Box<str>, Value> = serde_json::from_str(metadata).unwrap();
        let address: std::net::IpAddr = [10, 9, 0, 5].into();
        Registrant {
            head: "service".to_owned(),
            id: ServiceId {
                deployment: "default".into(),
                namespace: "default".into(),
                name: "a/b".into(),
                version: version.into(),
            },
            endpoints: vec![Endpoint { host: address.into(), port: 9100 }],
            metadata: Metadata::new(metadata),
            ttl: Duration::from_secs(10),
        }
    }

    #[test]
    fn instances_have_goframes_fields() {
        let mut settings = Settings::new(Vec::new());
        settings.clusters = vec!["c2".to_owned()];
        let found = instances(&settings, &registrant("latest")).unwrap();
        let identity = "serviceName=a%2Fb&groupName=DEFAULT_GROUP&ip=10.9.0.5&port=9100\
                        &clusterName=c2&ephemeral=true";
        let metadata = "%7B%22insecure%22:%22true%22%2C%22protocol%22:%22http%22%7D";
        assert_eq!(found[0].identity, identity);
        let grouped = identity.replace("=a%2Fb", "=DEFAULT_GROUP%40%40a%2Fb");
        assert_eq!(found[0].heartbeat, grouped);
        assert_eq!(
            found[0].registration,
            format!("{identity}&weight=100&enabled=true&healthy=true&metadata={metadata}")
        );
        let refused = instances(&settings, &registrant("v2")).unwrap_err().to_string();
        assert!(refused.contains("version"), "{refused}");
    }
}
