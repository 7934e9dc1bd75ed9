//! A Polaris server of the tests, whose answers are recorded ones.
//!
//! It answers for a service with the bytes of a recording, with a recorded timeline, or with a
//! recorded answer whose instances are those that were registered there. What happens to these over
//! time is what the recordings show: an instance is listed after a second; deregistered, one that
//! is older than [`FRESH`] stays listed for [`LATE_REMOVAL`]; without heartbeats it turns unhealthy
//! after three times its TTL, and stays listed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::replay::{HttpServer, Reaction, Recordings, Request, Timeline, body_of, json_response};
use super::seconds;

/// Age up to which a deregistered instance vanishes at once.
pub(crate) const FRESH: Duration = seconds(5);

/// Time for which an older deregistered instance stays listed, the shortest recorded one.
pub(crate) const LATE_REMOVAL: Duration = seconds(11);

/// Time until a change shows in lists: that of the server's cache.
const CACHE_TIME: Duration = seconds(1);

/// The revision of an emptied service.
const EMPTIED: &str = "da39a3ee5e6b4b0d3255bfef95601890afd80709";

/// The server.
pub(crate) struct PolarisServer {
    pub(crate) http: HttpServer,
    state: Arc<Mutex<State>>,
}

struct State {
    recordings: Recordings,
    services: BTreeMap<String, Service>,
    /// The bytes of the list of names, if it is a recorded one.
    names: Option<Vec<u8>>,
    /// The only token that is accepted; `None` if any is.
    token: Option<String>,
}

/// What the server answers for a service.
enum Service {
    /// These bytes.
    Recorded(Vec<u8>),
    /// A timeline since this time, which passes as many times faster.
    Timeline { timeline: Timeline, start: Instant, speed: u32 },
    /// The instances that were registered, by host and port.
    Registered(BTreeMap<(String, u64), Registered>),
}

/// An instance that was registered over HTTP.
struct Registered {
    body: Value,
    /// The body before the last registration, and the time of that.
    earlier: Option<(Value, Instant)>,
    since: Instant,
    heartbeat: Instant,
    /// When it stops being listed, once it was deregistered.
    until: Option<Instant>,
}

impl Registered {
    fn is_listed(&self, now: Instant) -> bool {
        self.since + CACHE_TIME <= now && self.until.is_none_or(|until| now < until)
    }

    /// Returns the body as the server's cache has it.
    fn content(&self, now: Instant) -> &Value {
        match &self.earlier {
            Some((earlier, changed)) if now < *changed + CACHE_TIME => earlier,
            _ => &self.body,
        }
    }

    fn is_healthy(&self, now: Instant) -> bool {
        let ttl = self.body["health_check"]["heartbeat"]["ttl"].as_u64().unwrap();
        now < self.heartbeat + seconds(3 * ttl)
    }
}

impl PolarisServer {
    /// Starts a server without services.
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State {
            recordings: Recordings::open("polaris"),
            services: BTreeMap::new(),
            names: None,
            token: None,
        }));
        let http = HttpServer::start(respond(&state));
        Self { http, state }
    }

    /// Returns the address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.http.address()
    }

    /// Returns the registry's URL.
    pub(crate) fn url(&self) -> String {
        format!("polaris://{}", self.address())
    }

    /// Answers as a Polaris again, after [`HttpServer::set`].
    pub(crate) fn recover(&self) {
        let respond = respond(&self.state);
        self.http.set(respond);
    }

    /// Answers otherwise to requests for which `respond` returns something.
    pub(crate) fn misbehave(
        &self,
        misbehave: impl Fn(&Request) -> Option<Reaction> + Send + Sync + 'static,
    ) {
        let respond = respond(&self.state);
        self.http.set(move |request| misbehave(request).unwrap_or_else(|| respond(request)));
    }

    /// Answers for a service as in a recording, whose request names the service.
    pub(crate) fn replay(&self, recording: &str) {
        let mut state = self.state.lock().unwrap();
        let service = recorded_service(&state.recordings, recording);
        let answer = Service::Recorded(state.recordings.response(recording));
        state.services.insert(service, answer);
    }

    /// Answers for a service as in a recorded timeline, from now on and this many times faster.
    pub(crate) fn replay_timeline(&self, recording: &str, speed: u32) {
        let mut state = self.state.lock().unwrap();
        let service = recorded_service(&state.recordings, recording);
        let timeline = state.recordings.timeline(recording);
        let answer = Service::Timeline { timeline, start: Instant::now(), speed };
        state.services.insert(service, answer);
    }

    /// Answers with the list of names of a recording; `None` for the services that are there.
    pub(crate) fn replay_names(&self, recording: Option<&str>) {
        let mut state = self.state.lock().unwrap();
        state.names = recording.map(|recording| state.recordings.response(recording));
    }

    /// Accepts only this token from now on.
    pub(crate) fn require(&self, token: &str) {
        self.state.lock().unwrap().token = Some(token.to_owned());
    }

    /// Loses all data.
    pub(crate) fn wipe(&self) {
        let mut state = self.state.lock().unwrap();
        state.services.clear();
        state.names = None;
    }

    /// Registers an instance and returns the request's body, as the recorded registration has it.
    pub(crate) fn put(&self, service: &str, endpoint: SocketAddr, metadata: &Value) -> Value {
        let mut state = self.state.lock().unwrap();
        let mut body = state.recordings.request("70-register-http").json().unwrap();
        body["service"] = service.into();
        body["host"] = endpoint.ip().to_string().into();
        body["port"] = endpoint.port().into();
        body["metadata"] = metadata.clone();
        body["version"] = metadata["version"].clone();
        state.register(&body);
        body
    }

    /// Sends a heartbeat of an instance.
    pub(crate) fn heartbeat(&self, body: &Value) {
        self.state.lock().unwrap().heartbeat(body);
    }

    /// Deregisters an instance.
    pub(crate) fn deregister(&self, body: &Value) {
        self.state.lock().unwrap().deregister(body);
    }

    /// Registers instances that are listed at once and need no heartbeat.
    pub(crate) fn fill(&self, bodies: impl Iterator<Item = Value>) {
        let mut state = self.state.lock().unwrap();
        let now = Instant::now();
        let past = now.checked_sub(CACHE_TIME).expect("a time after the machine's start");
        let future = now + seconds(36_000);
        for body in bodies {
            let key = (text(&body["host"]), body["port"].as_u64().unwrap());
            let instance =
                Registered { body, earlier: None, since: past, heartbeat: future, until: None };
            state.registered(&text(&instance.body["service"])).insert(key, instance);
        }
    }

    /// Removes services with all their instances, as one change.
    pub(crate) fn empty(&self, is_emptied: impl Fn(&str) -> bool) {
        let mut state = self.state.lock().unwrap();
        for (name, service) in &mut state.services {
            if is_emptied(name) {
                *service = Service::Registered(BTreeMap::new());
            }
        }
    }

    /// Returns the heartbeats and registrations so far: path and body.
    pub(crate) fn writes(&self) -> Vec<(String, Value)> {
        let requests = self.http.requests().into_iter().map(|(_, request)| request);
        let writes = requests.filter(|request| request.path != "/v1/Discover");
        writes.map(|request| (request.path.clone(), request.json().unwrap())).collect()
    }
}

/// Returns the service that a recorded request asks for.
fn recorded_service(recordings: &Recordings, recording: &str) -> String {
    text(&recordings.request(recording).json().unwrap()["service"]["name"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Returns the revision in a recorded response.
fn revision_of(response: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(&body_of(response)).ok()?;
    body["service"]["revision"].as_str().map(str::to_owned)
}

/// Returns what the server does.
fn respond(state: &Arc<Mutex<State>>) -> impl Fn(&Request) -> Reaction + Send + Sync + 'static {
    let state = Arc::clone(state);
    move |request| state.lock().unwrap().respond(request)
}

impl State {
    fn respond(&mut self, request: &Request) -> Reaction {
        let response = |state: &Self, name: &str| Reaction::Answer(state.recordings.response(name));
        if request.method != "POST" && request.path == "/v1/Discover" {
            let text =
                b"HTTP/1.1 405 Method Not Allowed\r\nAllow: POST\r\nContent-Type: text/plain; \
                         charset=utf-8\r\nContent-Length: 23\r\n\r\n405: Method Not Allowed";
            return Reaction::Answer(text.to_vec());
        }
        if !request.header("content-type").starts_with("application/json") {
            return response(self, "16-no-content-type");
        }
        let Some(body) = request.json() else { return response(self, "13-no-service-object") };
        if self.token.as_deref().is_some_and(|token| request.header("x-polaris-token") != token) {
            let is_write = request.path != "/v1/Discover";
            let name = match request.header("x-polaris-token") {
                _ if is_write => "A9-auth-register-no-token",
                "" => "A2-auth-instance-no-token",
                _ => "A3-auth-instance-bad-token",
            };
            return response(self, name);
        }
        match (&*request.path, &*text(&body["type"])) {
            ("/v1/Discover", "SERVICES") if body["service"].is_null() => {
                response(self, "13-no-service-object")
            }
            ("/v1/Discover", "SERVICES") => self.names(&body),
            ("/v1/Discover", "INSTANCE") => self.instances(&body),
            ("/v1/RegisterInstance", _) => {
                self.register(&body);
                response(self, "70-register-http")
            }
            ("/v1/Heartbeat", _) => {
                self.heartbeat(&body);
                response(self, "75-heartbeat-unknown")
            }
            ("/v1/DeregisterInstance", _) => {
                self.deregister(&body);
                response(self, "74-deregister-http")
            }
            _ => Reaction::Answer(
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n404: Page Not Found".to_vec(),
            ),
        }
    }

    fn names(&self, query: &Value) -> Reaction {
        let known = query["service"]["revision"].as_str();
        let (response, revision) = if let Some(recorded) = &self.names {
            (recorded.clone(), revision_of(recorded))
        } else {
            let mut body = self.recordings.body("02-services");
            let entry = body["services"][0].take();
            let names = self.services.keys();
            let entries: Vec<_> = names
                .clone()
                .map(|name| {
                    let mut entry = entry.clone();
                    entry["name"] = name.as_str().into();
                    entry
                })
                .collect();
            let revision = hash(&names.collect::<Vec<_>>());
            body["services"] = entries.into();
            body["service"]["revision"] = revision.clone().into();
            (json_response("200 OK", &body), Some(revision))
        };
        if known.is_some() && known == revision.as_deref() {
            return Reaction::Answer(self.recordings.response("07-services-unchanged"));
        }
        Reaction::Answer(response)
    }

    fn instances(&self, query: &Value) -> Reaction {
        let name = text(&query["service"]["name"]);
        let known = query["service"]["revision"].as_str();
        let missing = || self.recordings.response("09-unknown-service");
        let response = match self.services.get(&name) {
            None => missing(),
            Some(Service::Recorded(response)) => response.clone(),
            Some(Service::Timeline { timeline, start, speed }) => {
                match timeline.at(start.elapsed() * *speed) {
                    Some(response) => response.to_vec(),
                    None => return Reaction::Close(Vec::new()),
                }
            }
            Some(Service::Registered(instances)) => self.list(&name, instances),
        };
        if known.is_some() && revision_of(&response).as_deref() == known {
            return Reaction::Answer(self.recordings.response("06-instance-hello-unchanged"));
        }
        Reaction::Answer(response)
    }

    /// Returns the list of registered instances, in the form of a recorded one.
    fn list(&self, name: &str, instances: &BTreeMap<(String, u64), Registered>) -> Vec<u8> {
        let now = Instant::now();
        let mut body = self.recordings.body("71-instance-http");
        let template = body["instances"][0].take();
        let listed = instances.values().filter(|instance| instance.is_listed(now));
        let entries: Vec<Value> = listed
            .map(|instance| {
                let (registered, mut entry) = (instance.content(now), template.clone());
                for field in ["host", "port", "version", "metadata", "weight"] {
                    entry[field] = registered[field].clone();
                }
                entry["service"] = name.into();
                let endpoint = (text(&registered["host"]), registered["port"].to_string());
                entry["id"] = hash(&endpoint).into();
                entry["healthy"] = instance.is_healthy(now).into();
                entry
            })
            .collect();
        let revision = match &*entries {
            [] => EMPTIED.to_owned(),
            entries => hash(&entries.iter().map(Value::to_string).collect::<Vec<_>>()),
        };
        body["service"]["name"] = name.into();
        body["service"]["revision"] = revision.into();
        body["instances"] = entries.into();
        json_response("200 OK", &body)
    }

    fn registered(&mut self, service: &str) -> &mut BTreeMap<(String, u64), Registered> {
        let entry = self.services.entry(service.to_owned());
        let entry = entry.or_insert_with(|| Service::Registered(BTreeMap::new()));
        if !matches!(entry, Service::Registered(_)) {
            *entry = Service::Registered(BTreeMap::new());
        }
        let Service::Registered(instances) = entry else { unreachable!() };
        instances
    }

    fn register(&mut self, body: &Value) {
        let now = Instant::now();
        let key = (text(&body["host"]), body["port"].as_u64().unwrap());
        let instances = self.registered(&text(&body["service"]));
        let before = instances.get(&key).filter(|instance| instance.until.is_none());
        let since = before.map_or(now, |instance| instance.since);
        let earlier = before.map(|instance| (instance.body.clone(), now));
        let body = body.clone();
        let instance = Registered { body, earlier, since, heartbeat: now, until: None };
        instances.insert(key, instance);
    }

    /// Takes a heartbeat; that of an unknown instance has no effect.
    fn heartbeat(&mut self, body: &Value) {
        let key = (text(&body["host"]), body["port"].as_u64().unwrap());
        if let Some(Service::Registered(instances)) = self.services.get_mut(&text(&body["service"]))
            && let Some(instance) = instances.get_mut(&key)
        {
            instance.heartbeat = Instant::now();
        }
    }

    fn deregister(&mut self, body: &Value) {
        let now = Instant::now();
        let key = (text(&body["host"]), body["port"].as_u64().unwrap());
        if let Some(Service::Registered(instances)) = self.services.get_mut(&text(&body["service"]))
            && let Some(instance) = instances.get_mut(&key)
        {
            let is_fresh = now.duration_since(instance.since) < FRESH;
            instance.until = Some(now + if is_fresh { CACHE_TIME } else { LATE_REMOVAL });
        }
    }
}

/// Returns a hash as 40 hexadecimal digits, like the server's.
fn hash(value: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:040x}", hasher.finish())
}

/// Returns metadata as a GoFrame program sends it.
pub(crate) fn goframe_metadata(version: &str) -> Value {
    json!({
        "campus": "", "insecure": "true", "kind": "http", "protocol": "http", "region": "",
        "version": version, "zone": "",
    })
}
