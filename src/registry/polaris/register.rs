//! Registration of a service as GoFrame does it, the only code that writes to Polaris.

use std::borrow::Cow;
use std::convert::Infallible;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::client::{DiscoverAnswer, PolarisClient};
use super::failure::{EXISTS, MISSING};
use super::naming::ServiceNaming;
use super::parse::ListedInstance;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::http;
use crate::registry::polling::Revision;
use crate::registry::register::{RegistrationProgress, StoreRegistration, keep_registered};
use crate::registry::{RegisterError, RegisterEvent, Registrant};
use crate::service::{Endpoint, Metadata, ServiceId};

/// Interval of heartbeats, after three of which an instance is unhealthy.
///
/// The value of GoFrame's examples; Polaris accepts up to 60 s.
const TTL: Duration = Duration::from_secs(10);

/// Weight of every instance, as GoFrame writes it.
const WEIGHT: u32 = 100;

/// Interval at which the registration is looked for.
///
/// Polaris accepts the heartbeat of an instance that it does not know. A registration must be back
/// within the removal grace after the store was wiped.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// Time until the server's cache has a new instance.
const SETTLING: Duration = Duration::from_secs(5);

/// Time that Polaris may take to notice three missing heartbeats, in seconds.
const MAX_CHECK_DELAY_SECONDS: u64 = 40;

/// Registers a service until `stop` is cancelled, then deregisters it.
///
/// Each endpoint is an instance, as GoFrame registers it. The service is registered again if the
/// server has lost it.
///
/// # Errors
/// Returns an error if the service would be read back as another one, if the first attempt is
/// refused for good, or if the service could not be deregistered at the end.
pub async fn register(
    settings: &Settings,
    registrant: &Registrant,
    stop: CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let registration = PolarisRegistration::new(settings, registrant)?;
    keep_registered(registration, settings.attempts(), stop, events).await
}

/// The instances of a service, which are registered together.
struct PolarisRegistration<'a> {
    settings: &'a Settings,
    service: String,
    endpoints: &'a [Endpoint],
    /// The body of every request about an instance, for each endpoint.
    instances: Vec<Value>,
    /// When the instances were last registered.
    registered_at: Option<Instant>,
    /// Whether the server may have an instance.
    may_be_registered: bool,
}

impl<'a> PolarisRegistration<'a> {
    /// Checks that the service is read back as the same one.
    fn new(settings: &'a Settings, registrant: &'a Registrant) -> Result<Self, RegisterError> {
        let Registrant { head, id, endpoints, metadata, ttl: _ } = registrant;
        let service = ServiceNaming::join(head, id);
        let read_back = settings.naming.split(&service, &id.version);
        if read_back.as_ref() != Some(id) {
            return Err(RegisterError::NotWritable(describe_ambiguity(&service, id)));
        }
        let instance = |endpoint: &Endpoint| {
            json!({
                "namespace": settings.namespace,
                "service": service,
                "host": endpoint.host.to_string(),
                "port": endpoint.port,
                "version": id.version,
                "weight": WEIGHT,
                "enable_health_check": true,
                "health_check": { "type": "HEARTBEAT", "heartbeat": { "ttl": TTL.as_secs() } },
                "metadata": goframe_metadata(metadata, &id.version),
            })
        };
        let instances = endpoints.iter().map(instance).collect();
        Ok(Self {
            settings,
            service,
            endpoints,
            instances,
            registered_at: None,
            may_be_registered: false,
        })
    }

    /// Sends a request about each instance.
    async fn write(
        &self,
        client: &PolarisClient,
        verb: &str,
        path: &str,
        accepted: u32,
    ) -> Result<(), Failure> {
        for (instance, endpoint) in self.instances.iter().zip(self.endpoints) {
            let action = format!("{verb} {endpoint} as {}", self.service);
            client.write(&action, path, instance, accepted).await?;
        }
        Ok(())
    }

    /// Returns whether the server lists all instances; `known` is the last list that did.
    async fn is_listed(
        &self,
        client: &PolarisClient,
        known: &mut Option<Revision>,
    ) -> Result<bool, Failure> {
        let look = |answer: &DiscoverAnswer<'_>| {
            let all = self.endpoints.iter().all(|endpoint| lists(answer, endpoint));
            (all, answer.revision())
        };
        let found = match client.instances(&self.service, known.as_ref(), look).await {
            Ok(found) => found,
            Err(failure) if failure.kind == FailureKind::Missing => Some((false, None)),
            Err(failure) => return Err(failure),
        };
        let Some((all, revision)) = found else { return Ok(true) };
        *known = revision.filter(|_| all);
        Ok(all)
    }
}

impl StoreRegistration for PolarisRegistration<'_> {
    fn key(&self) -> &str {
        &self.service
    }

    fn expiry_seconds(&self) -> u64 {
        3 * TTL.as_secs() + MAX_CHECK_DELAY_SECONDS
    }

    async fn keep(
        &mut self,
        endpoint: &str,
        progress: &mut RegistrationProgress<impl Fn(RegisterEvent)>,
    ) -> Result<Infallible, Failure> {
        let client = PolarisClient::new(self.settings, endpoint).await?;
        let mut known = None;
        let mut next_heartbeat = Instant::now();
        loop {
            let is_settled = self.registered_at.is_none_or(|at| at.elapsed() >= SETTLING);
            let is_registered = match self.registered_at {
                Some(_) if is_settled => self.is_listed(&client, &mut known).await?,
                Some(_) => true,
                None => false,
            };
            if !is_registered {
                self.may_be_registered = true;
                self.write(&client, "register", "/v1/RegisterInstance", EXISTS).await?;
                let now = Instant::now();
                (self.registered_at, next_heartbeat) = (Some(now), now + TTL);
                progress.registered();
            } else if next_heartbeat <= Instant::now() {
                self.write(&client, "send a heartbeat of", "/v1/Heartbeat", MISSING).await?;
                next_heartbeat = (next_heartbeat + TTL).max(Instant::now());
            }
            progress.refreshed();
            progress.set_working();
            sleep_until((Instant::now() + LOOK_INTERVAL).min(next_heartbeat)).await;
        }
    }

    async fn remove(&mut self, endpoint: &str) -> Result<bool, Failure> {
        if !self.may_be_registered {
            return Ok(false);
        }
        let client = PolarisClient::new(self.settings, endpoint).await?;
        // The server has lost an instance, or an operator has removed it.
        self.write(&client, "deregister", "/v1/DeregisterInstance", MISSING).await?;
        Ok(true)
    }
}

/// Returns whether an answer lists an instance at this endpoint.
fn lists(answer: &DiscoverAnswer<'_>, endpoint: &Endpoint) -> bool {
    let instances = answer.instances.as_deref().unwrap_or_default();
    http::valid_entries(instances).any(|instance: ListedInstance<'_>| instance.is_at(endpoint))
}

/// Returns metadata as GoFrame writes it: all values are texts, with version and kind.
fn goframe_metadata(metadata: &Metadata, version: &str) -> Map<String, Value> {
    let text = |(key, value): (&str, Cow<'_, str>)| (key.to_owned(), value.into_owned().into());
    let mut texts: Map<String, Value> = metadata.iter().map(text).collect();
    let kind = texts.get("protocol").cloned().unwrap_or_else(|| "http".into());
    texts.entry("kind").or_insert(kind);
    texts.entry("version").or_insert_with(|| version.into());
    texts
}

/// Says why a service would be read back as another one.
fn describe_ambiguity(service: &str, id: &ServiceId) -> String {
    let setting = |segment: &str, key: &str| {
        segment.contains('-').then(|| format!("add {segment:?} to polaris.{key}"))
    };
    let remedies: Vec<_> =
        [setting(&id.deployment, "deployments"), setting(&id.namespace, "namespaces")]
            .into_iter()
            .flatten()
            .collect();
    let remedy = match &*remedies {
        [] => "use other names".to_owned(),
        remedies => remedies.join(" and "),
    };
    format!(
        "the name {service} in Polaris would be read back as another service, because hyphens \
         separate its parts: {remedy}"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn registrant(namespace: &str, version: &str, metadata: &str) -> Registrant {
        let metadata: BTreeMap<Box<str>, Value> = serde_json::from_str(metadata).unwrap();
        let address = IpAddr::from(Ipv4Addr::new(10, 9, 0, 5));
        Registrant {
            head: "service".to_owned(),
            id: ServiceId {
                deployment: "default".into(),
                namespace: namespace.into(),
                name: "byhttp".into(),
                version: version.into(),
            },
            endpoints: vec![Endpoint { host: address.into(), port: 9100 }],
            metadata: Metadata::new(metadata),
            ttl: Duration::from_secs(10),
        }
    }

    #[test]
    fn instances_have_the_recorded_form() {
        let settings = Settings::new(Vec::new());
        let registrant = registrant("default", "latest", r#"{"protocol":"http","insecure":true}"#);
        let registration = PolarisRegistration::new(&settings, &registrant).unwrap();
        let expected = json!({
            "namespace": "default", "service": "service-default-default-byhttp-latest",
            "host": "10.9.0.5", "port": 9100, "version": "latest", "weight": 100,
            "enable_health_check": true,
            "health_check": { "type": "HEARTBEAT", "heartbeat": { "ttl": 10 } },
            "metadata": {
                "kind": "http", "protocol": "http", "insecure": "true", "version": "latest",
            },
        });
        assert_eq!(registration.instances, [expected]);
        assert_eq!(registration.expiry_seconds(), 70);
    }

    #[test]
    fn a_service_that_would_be_read_back_as_another_is_refused() {
        let registrant = registrant("my-ns", "v1", "{}");
        let mut settings = Settings::new(Vec::new());
        let error = PolarisRegistration::new(&settings, &registrant).err().unwrap().to_string();
        assert!(error.contains("add \"my-ns\" to polaris.namespaces"), "{error}");
        settings.naming.namespaces = vec!["my-ns".to_owned()];
        assert!(PolarisRegistration::new(&settings, &registrant).is_ok());
    }
}
