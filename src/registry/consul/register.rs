//! Registration of a service as GoFrame does it, the only code that writes to Consul.

use std::convert::Infallible;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::client::{ConsulClient, encode};
use super::failure::{ConsulFailure, ConsulFailureKind};
use crate::registry::backoff::Backoff;
use crate::registry::members::Members;
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

/// Maximum attempts to deregister; together they take one request timeout.
const REMOVAL_ATTEMPTS: u32 = 3;

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
    let mut keeper = ServiceKeeper {
        settings,
        services: services(registrant)?,
        key: registrant.id.name.to_string(),
        registered_at: None,
        agents: Members::new(&settings.endpoints),
        events,
        failing: false,
    };
    let tuning = &settings.tuning;
    let mut backoff = Backoff::new(tuning.backoff_min, tuning.backoff_max);
    loop {
        let mut working_since = None;
        let ended = tokio::select! {
            () = stop.cancelled() => None,
            Err(failure) = keeper.keep(&mut working_since) => Some(failure),
        };
        let Some(failure) = ended else { return keeper.remove().await };
        if keeper.registered_at.is_none() && failure.kind.is_refusal() {
            return Err(RegisterError::Refused { key: keeper.key, reason: failure.text });
        }
        keeper.report(RegisterEvent::Failed(failure.text));
        if working_since.is_some_and(|since: Instant| since.elapsed() >= tuning.healthy_after) {
            backoff.reset();
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(backoff.next()) => {}
        }
    }
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

/// Keeps services registered with one agent at a time.
struct ServiceKeeper<'a, F> {
    settings: &'a Settings,
    services: Vec<AgentService>,
    /// The name of the service, for messages.
    key: String,
    /// The agent that has the services.
    registered_at: Option<String>,
    agents: Members,
    events: F,
    /// Whether the last event was a failure.
    failing: bool,
}

impl<F: Fn(RegisterEvent)> ServiceKeeper<'_, F> {
    fn report(&mut self, event: RegisterEvent) {
        self.failing = matches!(event, RegisterEvent::Failed(_));
        (self.events)(event);
    }

    /// Keeps the services registered until something fails.
    async fn keep(
        &mut self,
        working_since: &mut Option<Instant>,
    ) -> Result<Infallible, ConsulFailure> {
        let no_agent = || ConsulFailure::new(ConsulFailureKind::Settings, "no agent is configured");
        let endpoint = self.agents.choose().ok_or_else(no_agent)?;
        let Err(failure) = self.keep_at(&endpoint, working_since).await;
        self.agents.set_failed(&endpoint, Some(Instant::now()));
        Err(failure.at(&endpoint))
    }

    async fn keep_at(
        &mut self,
        endpoint: &str,
        working_since: &mut Option<Instant>,
    ) -> Result<Infallible, ConsulFailure> {
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
                    registered = true;
                    pass(&client, service).await?;
                }
            }
            if registered {
                self.report(RegisterEvent::Registered);
            } else if self.failing {
                self.report(RegisterEvent::Recovered);
            }
            working_since.get_or_insert_with(Instant::now);
            self.agents.set_failed(endpoint, None);
            sleep(PASS_INTERVAL).await;
        }
    }

    /// Deregisters the services from the agent that has them.
    async fn remove(&mut self) -> Result<(), RegisterError> {
        let Some(endpoint) = self.registered_at.take() else { return Ok(()) };
        let limit = self.settings.tuning.request_timeout / REMOVAL_ATTEMPTS;
        let mut reason = String::new();
        for _ in 0..REMOVAL_ATTEMPTS {
            let removed = timeout(limit, self.remove_at(&endpoint)).await;
            match removed.unwrap_or_else(|_| Err(ConsulFailure::timeout(limit))) {
                Ok(()) => {
                    self.report(RegisterEvent::Removed);
                    return Ok(());
                }
                Err(failure) => reason = failure.at(&endpoint).text,
            }
            sleep(self.settings.tuning.backoff_min).await;
        }
        Err(RegisterError::NotRemoved { key: self.key.clone(), reason, seconds: EXPIRY_SECONDS })
    }

    async fn remove_at(&self, endpoint: &str) -> Result<(), ConsulFailure> {
        let client = ConsulClient::new(self.settings, endpoint).await?;
        for service in &self.services {
            let path = format!("/v1/agent/service/deregister/{}", encode(&service.id));
            let action = format!("deregister {}", service.id);
            match client.write(&action, &path, String::new()).await {
                // The agent has lost the service, or its operator has deregistered it.
                Err(failure) if failure.kind == ConsulFailureKind::Missing => {}
                result => result?,
            }
        }
        Ok(())
    }
}

/// Passes the check of a service.
async fn pass(client: &ConsulClient, service: &AgentService) -> Result<(), ConsulFailure> {
    let path = format!("/v1/agent/check/pass/{}", encode(&format!("service:{}", service.id)));
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
