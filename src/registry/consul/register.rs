//! Registration of a service as GoFrame does it, the only code that writes to Consul.

use std::convert::Infallible;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::client::ConsulClient;
use crate::percent;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::register::{RegistrationProgress, StoreRegistration, keep_registered};
use crate::registry::{RegisterError, RegisterEvent, Registrant, gsvc};
use crate::service::Endpoint;

/// Time after which the check is critical unless it was passed (GoFrame's value).
const TTL: Duration = Duration::from_secs(20);

/// Interval at which the check is passed (GoFrame's value).
const PASS_INTERVAL: Duration = Duration::from_secs(10);

/// Time after which Consul deregisters a service with a critical check (GoFrame's).
const DEREGISTER_AFTER: &str = "1m";

/// Longest time until Consul deregisters a service whose check is not passed, in seconds.
///
/// Consul looks for such services every 30 s.
const EXPIRY_SECONDS: u64 = TTL.as_secs() + 60 + 30;

/// Registers a service until `stop` is cancelled, then deregisters it.
///
/// Each endpoint is a service of its own in Consul, as GoFrame registers its first one. The
/// service is registered again if the agent has lost it.
///
/// # Errors
/// Returns an error if Consul's layout cannot hold the registration, if the first attempt is
/// refused for good, or if the service could not be deregistered at the end.
pub async fn register(
    settings: &Settings,
    registrant: &Registrant,
    stop: CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let registration = ConsulRegistration {
        settings,
        services: services(registrant)?,
        name: registrant.id.name.to_string(),
        registered_at: None,
    };
    keep_registered(registration, settings.attempts(), stop, events).await
}

/// A service as one agent registers it.
#[derive(Debug)]
struct AgentService {
    id: String,
    /// The body of the registration.
    registration: String,
}

/// Returns the services to register, one for each endpoint.
fn services(registrant: &Registrant) -> Result<Vec<AgentService>, RegisterError> {
    let Registrant { head: _, id, endpoints, metadata, ttl: _ } = registrant;
    if (&*id.deployment, &*id.namespace) != ("default", "default") {
        return Err(RegisterError::NotWritable(
            "Consul has no place for GoFrame's deployment and namespace: both must be `default`"
                .to_owned(),
        ));
    }
    // GoFrame registers its default version as an empty text.
    let version = if &*id.version == "latest" { "" } else { &*id.version };
    let service = |endpoint: &Endpoint| {
        let Endpoint { host, port } = endpoint;
        let service_id = format!("{}-{version}-{host}:{port}", id.name);
        let mut meta = json!({ "version": version });
        if !metadata.is_empty() {
            meta["metadata"] = gsvc::value(metadata).into();
        }
        let registration = json!({
            "ID": service_id,
            "Name": id.name,
            "Tags": [version],
            "Address": host.to_string(),
            "Port": port,
            "Meta": meta,
            "Check": {
                "CheckID": format!("service:{service_id}"),
                "TTL": format!("{}s", TTL.as_secs()),
                "DeregisterCriticalServiceAfter": DEREGISTER_AFTER,
            },
        });
        AgentService { id: service_id, registration: registration.to_string() }
    };
    Ok(endpoints.iter().map(service).collect())
}

/// Services that are registered with one agent at a time.
struct ConsulRegistration<'a> {
    settings: &'a Settings,
    services: Vec<AgentService>,
    /// The name of the service, for messages.
    name: String,
    /// The agent that has the services.
    registered_at: Option<String>,
}

impl StoreRegistration for ConsulRegistration<'_> {
    fn key(&self) -> &str {
        &self.name
    }

    fn expiry_seconds(&self) -> u64 {
        EXPIRY_SECONDS
    }

    fn holder(&self) -> Option<&str> {
        self.registered_at.as_deref()
    }

    async fn keep(
        &mut self,
        endpoint: &str,
        progress: &mut RegistrationProgress<impl Fn(RegisterEvent)>,
    ) -> Result<Infallible, Failure> {
        let client = ConsulClient::new(self.settings, endpoint).await?;
        loop {
            let is_new = self.registered_at.as_deref() != Some(endpoint);
            let mut registered = false;
            for service in &self.services {
                if is_new || pass(&client, service).await.is_err() {
                    client
                        .write(
                            &format!("register {}", service.id),
                            "/v1/agent/service/register",
                            service.registration.clone(),
                        )
                        .await?;
                    self.registered_at = Some(endpoint.to_owned());
                    progress.set_written();
                    registered = true;
                    pass(&client, service).await?;
                }
            }
            if registered {
                progress.registered();
            } else {
                progress.refreshed();
            }
            progress.set_working();
            sleep(PASS_INTERVAL).await;
        }
    }

    /// Deregisters the services from the agent that has them.
    async fn remove(&mut self, endpoint: &str) -> Result<bool, Failure> {
        if self.registered_at.is_none() {
            return Ok(false);
        }
        let client = ConsulClient::new(self.settings, endpoint).await?;
        for service in &self.services {
            let path = format!("/v1/agent/service/deregister/{}", percent::encode(&service.id));
            let action = format!("deregister {}", service.id);
            match client.write(&action, &path, String::new()).await {
                // The agent has lost the service, or its operator has deregistered it.
                Err(failure) if failure.kind == FailureKind::Missing => {}
                result => result?,
            }
        }
        Ok(true)
    }
}

/// Passes the check of a service.
async fn pass(client: &ConsulClient, service: &AgentService) -> Result<(), Failure> {
    let path =
        format!("/v1/agent/check/pass/{}", percent::encode(&format!("service:{}", service.id)));
    client.write(&format!("pass the check of {}", service.id), &path, String::new()).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use serde_json::Value;

    use super::*;
    use crate::service::{Metadata, ServiceId};

    fn registrant(namespace: &str, version: &str, metadata: &str) -> Registrant {
        let metadata: BTreeMap<Box<str>, Value> = serde_json::from_str(metadata).unwrap();
        let at = |last, port| Endpoint { host: Ipv4Addr::new(10, 9, 0, last).into_host(), port };
        Registrant {
            head: "service".to_owned(),
            id: ServiceId {
                deployment: "default".into(),
                namespace: namespace.into(),
                name: "hello.svc".into(),
                version: version.into(),
            },
            endpoints: vec![at(5, 42947), at(6, 80)],
            metadata: Metadata::new(metadata),
            ttl: Duration::from_secs(10),
        }
    }

    trait IntoHost {
        fn into_host(self) -> crate::service::Host;
    }

    impl IntoHost for Ipv4Addr {
        fn into_host(self) -> crate::service::Host {
            std::net::IpAddr::from(self).into()
        }
    }

    #[test]
    fn services_have_goframes_form() {
        let latest = registrant("default", "latest", r#"{"protocol":"http","insecure":true}"#);
        let found = services(&latest).unwrap();
        assert_eq!(found.len(), 2);
        let body: Value = serde_json::from_str(&found[0].registration).unwrap();
        let expected = json!({
            "ID": "hello.svc--10.9.0.5:42947", "Name": "hello.svc", "Tags": [""],
            "Address": "10.9.0.5", "Port": 42947,
            "Meta": { "metadata": r#"{"insecure":true,"protocol":"http"}"#, "version": "" },
            "Check": {
                "CheckID": "service:hello.svc--10.9.0.5:42947", "TTL": "20s",
                "DeregisterCriticalServiceAfter": "1m",
            },
        });
        assert_eq!(body, expected);
        let body = services(&registrant("default", "v1.2.0", "{}")).unwrap().pop().unwrap();
        let body: Value = serde_json::from_str(&body.registration).unwrap();
        assert_eq!(body["ID"], "hello.svc-v1.2.0-10.9.0.6:80");
        assert_eq!(body["Meta"], json!({ "version": "v1.2.0" }));
        let refused = services(&registrant("shop", "latest", "{}")).unwrap_err().to_string();
        assert!(refused.contains("namespace"), "{refused}");
    }
}
