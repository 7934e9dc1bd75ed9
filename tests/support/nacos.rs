//! A Nacos server of the tests, in the forms and with the times of recordings.
//!
//! No package has Nacos's server. This one answers with the fields of `tests/recordings/nacos`, and
//! does what the recorded server (2.4.3) did over time: programs that vanish when their connection
//! closes and return after a restart, instances that live by heartbeats over HTTP, names that stay
//! listed, a login that fails for some seconds after a start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::replay::{HttpServer, Reaction, Recordings, Request, response};
use super::seconds;

/// Time until a removal or an edit shows in lists (recorded: 0.55 to 0.6 s).
pub(crate) const EFFECT_DELAY: Duration = Duration::from_millis(550);

/// Time until the server gives up a connection whose other end is silent (recorded: 25 s).
const LOSS_DELAY: Duration = seconds(25);

/// Time since the last heartbeat after which an instance is unhealthy, and then removed.
const UNHEALTHY_AFTER: Duration = seconds(21);
const REMOVED_AFTER: Duration = seconds(36);

/// Longest time until the programs have registered again after a restart (recorded: 2 s).
const RETURN_TIME: Duration = seconds(2);

/// Time for which a service without instances stays listed.
const LINGER: Duration = seconds(72);

/// Interval at which the server looks for instances and names whose time is over.
const LOOK_INTERVAL: Duration = seconds(1);

/// Time after a start in which the server knows no user.
const USERS_UNKNOWN: Duration = seconds(2);

/// The user of [`Nacos::require_password`].
pub(crate) const USER: &str = "svcdns";

/// Largest page of names, as in v2 of the real server's interface.
const MAX_PAGE_SIZE: usize = 500;

/// A server and the programs that register there.
pub(crate) struct Nacos {
    server: HttpServer,
    state: Arc<Mutex<State>>,
}

/// An instance of a service: its name, address and port.
type InstanceKey = (String, String, u16);

#[derive(Default)]
struct State {
    /// What the server lists, unless it is due to change.
    listed: BTreeMap<InstanceKey, Listed>,
    /// Changes of the list that show later; `None` removes.
    pending: Vec<(Instant, InstanceKey, Option<Listed>)>,
    /// The running programs that hold a connection to the server, with their metadata.
    programs: BTreeMap<InstanceKey, Value>,
    /// Services without instances, since when.
    emptied: BTreeMap<String, Instant>,
    /// When to look for instances and names whose time is over.
    next_look: Option<Instant>,
    started: Option<Instant>,
    password: Option<String>,
    /// Number of logins that the server refuses since it does not know its users yet.
    early_logins: usize,
    tokens: BTreeMap<String, Instant>,
    token_life: Duration,
}

#[derive(Clone)]
struct Listed {
    metadata: Value,
    /// Time of the last heartbeat; `None` for a program with a connection.
    beat: Option<Instant>,
    is_enabled: bool,
}

impl Nacos {
    /// Starts a server without instances.
    pub(crate) fn start() -> Self {
        let state = State { token_life: seconds(18_000), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let forms = Arc::new(Forms::load());
        let (shared, started) = (Arc::clone(&state), Instant::now());
        // A server that has run for a while.
        state.lock().unwrap().started = started.checked_sub(USERS_UNKNOWN);
        let server = HttpServer::start(move |request| {
            let mut state = shared.lock().unwrap();
            state.advance(Instant::now());
            Reaction::Answer(state.answer(request, &forms))
        });
        Self { server, state }
    }

    /// Returns the server, to look at requests and to make it misbehave.
    pub(crate) fn server(&self) -> &HttpServer {
        &self.server
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Returns the registry's URL.
    pub(crate) fn url(&self) -> String {
        format!("nacos://{}", self.address())
    }

    fn state<T>(&self, run: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap();
        state.advance(now);
        run(&mut state, now)
    }

    /// Starts a GoFrame program with this instance, or gives it new metadata.
    pub(crate) fn put(&self, name: &str, ip: &str, port: u16, metadata: &Value) {
        let key = (name.to_owned(), ip.to_owned(), port);
        self.state(|state, now| {
            let listed = Listed { metadata: metadata.clone(), beat: None, is_enabled: true };
            if state.listed.contains_key(&key) {
                state.pending.push((now + EFFECT_DELAY, key.clone(), Some(listed)));
            } else if state.started.is_some() {
                state.listed.insert(key.clone(), listed);
            }
            state.programs.insert(key, metadata.clone());
        });
    }

    /// Ends a program, which deregisters or closes its connection.
    pub(crate) fn end(&self, name: &str, ip: &str, port: u16) {
        let key = (name.to_owned(), ip.to_owned(), port);
        self.state(|state, now| {
            state.programs.remove(&key).expect("a program");
            state.pending.push((now + EFFECT_DELAY, key, None));
        });
    }

    /// Loses the machine of a program, whose connection the server gives up later.
    pub(crate) fn lose(&self, name: &str, ip: &str, port: u16) {
        let key = (name.to_owned(), ip.to_owned(), port);
        self.state(|state, now| {
            state.programs.remove(&key).expect("a program");
            state.pending.push((now + LOSS_DELAY, key, None));
        });
    }

    /// Does what an operator does: takes an instance out of service.
    pub(crate) fn disable(&self, name: &str, ip: &str, port: u16) {
        let key = (name.to_owned(), ip.to_owned(), port);
        self.state(|state, now| {
            let listed = Listed { is_enabled: false, ..state.listed[&key].clone() };
            state.pending.push((now + EFFECT_DELAY, key, Some(listed)));
        });
    }

    /// Forgets all instances without anybody noticing, as a member of a cluster that has restarted.
    ///
    /// The programs register again within two seconds after this time.
    pub(crate) fn forget(&self, absence: Duration) {
        self.state(|state, now| state.forget(now + absence));
    }

    /// Ends the server: it forgets all instances, which it has in memory only.
    pub(crate) fn kill(&mut self) {
        self.server.kill();
        self.state(|state, _| {
            state.started = None;
            state.listed.clear();
            state.pending.clear();
            state.emptied.clear();
        });
    }

    /// Starts the killed server; the running programs register again within two seconds.
    pub(crate) fn restart(&mut self) {
        self.state(|state, now| {
            state.started = Some(now);
            state.forget(now);
        });
        self.server.restart();
    }

    /// Requires a login with this password from now on; earlier tokens stay valid.
    pub(crate) fn require_password(&self, password: &str) {
        self.state(|state, _| state.password = Some(password.to_owned()));
    }

    /// Refuses this many logins, as a server that does not know its users yet.
    pub(crate) fn refuse_early_logins(&self, count: usize) {
        self.state(|state, _| state.early_logins = count);
    }

    /// Gives new access tokens this life.
    pub(crate) fn set_token_life(&self, life: Duration) {
        self.state(|state, _| state.token_life = life);
    }

    /// Makes all access tokens invalid, as another key of the server does.
    pub(crate) fn invalidate_tokens(&self) {
        self.state(|state, _| state.tokens.clear());
    }

    /// Returns the instances that the server lists for a service, as `ip:port`.
    pub(crate) fn instances(&self, name: &str) -> BTreeSet<String> {
        self.state(|state, _| {
            let of_name = state.listed.keys().filter(|(found, ..)| found == name);
            of_name.map(|(_, ip, port)| format!("{ip}:{port}")).collect()
        })
    }

    /// Returns the metadata of a listed instance.
    pub(crate) fn metadata(&self, name: &str, ip: &str, port: u16) -> Option<Value> {
        let key = (name.to_owned(), ip.to_owned(), port);
        self.state(|state, _| Some(state.listed.get(&key)?.metadata.clone()))
    }

    /// Suspends the server with its connections open.
    pub(crate) fn stall(&self) {
        self.server.stall();
    }

    /// Continues the suspended server.
    pub(crate) fn resume(&self) {
        self.server.resume();
    }
}

impl State {
    /// Forgets all instances; the running programs register again within two seconds after `end`.
    fn forget(&mut self, end: Instant) {
        self.listed.clear();
        self.pending.clear();
        self.emptied.clear();
        for (key, metadata) in &self.programs {
            let listed = Listed { metadata: metadata.clone(), beat: None, is_enabled: true };
            let delay = RETURN_TIME.mul_f64(0.2 + 0.8 * fastrand::f64());
            self.pending.push((end + delay, key.clone(), Some(listed)));
        }
    }

    /// Applies what is due.
    fn advance(&mut self, now: Instant) {
        let (due, later) =
            std::mem::take(&mut self.pending).into_iter().partition(|(at, ..)| *at <= now);
        self.pending = later;
        let due: Vec<(Instant, InstanceKey, Option<Listed>)> = due;
        for (_, key, change) in due {
            match change {
                // A program that has ended meanwhile does not return.
                Some(listed) if listed.beat.is_some() || self.programs.contains_key(&key) => {
                    self.listed.insert(key, listed);
                }
                Some(_) => {}
                None => self.remove(&key, now),
            }
        }
        // The real server looks for both from time to time, too.
        if self.next_look.is_some_and(|next| now < next) {
            return;
        }
        self.next_look = Some(now + LOOK_INTERVAL);
        let is_expired = |listed: &Listed| {
            listed.beat.is_some_and(|beat| now.duration_since(beat) >= REMOVED_AFTER)
        };
        let expired = self.listed.iter().filter(|(_, listed)| is_expired(listed));
        let expired: Vec<_> = expired.map(|(key, _)| key.clone()).collect();
        for key in expired {
            self.remove(&key, now);
        }
        self.emptied.retain(|_, since| now.duration_since(*since) < LINGER);
    }

    fn remove(&mut self, key: &InstanceKey, now: Instant) {
        if self.listed.remove(key).is_some() && !self.has_instances(&key.0) {
            self.emptied.insert(key.0.clone(), now);
        }
    }

    fn has_instances(&self, name: &str) -> bool {
        self.of_service(name).next().is_some()
    }

    fn of_service(&self, name: &str) -> impl Iterator<Item = (&InstanceKey, &Listed)> {
        let first = (name.to_owned(), String::new(), 0);
        let name = name.to_owned();
        self.listed.range(first..).take_while(move |((found, ..), _)| *found == name)
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.listed.keys().map(|(name, ..)| &**name).collect();
        names.dedup();
        names.extend(
            self.emptied.keys().map(|name| &**name).filter(|name| !self.has_instances(name)),
        );
        names
    }

    fn answer(&mut self, request: &Request, forms: &Forms) -> Vec<u8> {
        let now = Instant::now();
        let fields = match &*request.method {
            "POST" | "PUT" => request.form(),
            _ => request.parameters.clone(),
        };
        let field = |name: &str| fields.get(name).map_or("", String::as_str);
        if (&*request.method, &*request.path) == ("POST", "/nacos/v1/auth/login") {
            return self.log_in(field("username"), field("password"), now);
        }
        if self.password.is_some() && !self.has_token(request, now) {
            return forbidden(&request.path, "token invalid!");
        }
        let name = field("serviceName").rsplit("@@").next().unwrap_or_default().to_owned();
        let instance = || (name.clone(), field("ip").to_owned(), field("port").parse().unwrap());
        match (&*request.method, &*request.path) {
            ("GET", "/nacos/v1/ns/operator/metrics") => chunked(200, &json!({ "status": "UP" })),
            ("GET", "/nacos/v1/ns/service/list") => {
                let [page, size] =
                    ["pageNo", "pageSize"].map(|name| field(name).parse::<usize>().unwrap());
                let (names, size) = (self.names(), size.min(MAX_PAGE_SIZE));
                let of_page = names.iter().skip((page - 1) * size).take(size);
                let doms: Vec<_> = of_page.collect();
                chunked(200, &json!({ "count": names.len(), "doms": doms }))
            }
            ("GET", "/nacos/v1/ns/instance/list") => {
                let hosts = self.of_service(&name);
                let hosts = hosts.filter(|(_, listed)| listed.is_enabled);
                let mut hosts: Vec<_> =
                    hosts.map(|(key, listed)| forms.host(key, listed, now)).collect();
                fastrand::shuffle(&mut hosts);
                chunked(200, &forms.list(&name, hosts))
            }
            ("POST", "/nacos/v1/ns/instance") => {
                let metadata = serde_json::from_str(field("metadata")).unwrap_or_default();
                let listed = Listed { metadata, beat: Some(now), is_enabled: true };
                self.listed.insert(instance(), listed);
                text(200, "ok")
            }
            ("PUT", "/nacos/v1/ns/instance/beat") => {
                let known = self.listed.get_mut(&instance()).filter(|listed| listed.beat.is_some());
                let code = if known.is_some() { 10_200 } else { 20_404 };
                if let Some(listed) = known {
                    listed.beat = Some(now);
                }
                chunked(200, &forms.beat(code))
            }
            ("DELETE", "/nacos/v1/ns/instance") => {
                self.pending.push((now + EFFECT_DELAY, instance(), None));
                text(200, "ok")
            }
            (_, path) if !path.starts_with("/nacos/") => {
                let page = "<!doctype html><title>HTTP Status 404 – Not Found</title>";
                response("404 ", "text/html;charset=utf-8", page)
            }
            (_, path) if path.starts_with("/nacos/v3/") => {
                let message = "No message available";
                let body = json!({
                    "status": 404, "error": "Not Found", "message": message, "path": path,
                });
                chunked(404, &body)
            }
            _ => {
                let message = format!("no such api:{}:{}", request.method, request.path);
                let body = json!({
                    "status": 501, "error": "Not Implemented", "message": message,
                    "path": request.path,
                });
                chunked(501, &body)
            }
        }
    }

    fn log_in(&mut self, user: &str, password: &str, now: Instant) -> Vec<u8> {
        let is_known = self.started.is_some_and(|started| now - started >= USERS_UNKNOWN);
        let is_early = self.early_logins > 0;
        self.early_logins = self.early_logins.saturating_sub(1);
        if user != USER || !is_known || is_early {
            return text(500, &format!("caused: User {user} not found;"));
        }
        if self.password.as_deref() != Some(password) {
            return text(403, "user not found!");
        }
        let token = format!("token-{}", fastrand::u64(..));
        self.tokens.insert(token.clone(), now + self.token_life);
        let life = self.token_life.as_secs();
        let body = json!({
            "accessToken": token, "tokenTtl": life, "globalAdmin": false, "username": user,
        });
        chunked(200, &body)
    }

    fn has_token(&self, request: &Request, now: Instant) -> bool {
        let token = request.header("authorization").strip_prefix("Bearer ");
        token.and_then(|token| self.tokens.get(token)).is_some_and(|end| now < *end)
    }
}

/// Recorded answers, in whose form this server answers.
struct Forms {
    list: Value,
    beat: Value,
}

impl Forms {
    fn load() -> Self {
        let recordings = Recordings::open("nacos/2.4.3");
        let [list, beat] =
            ["32-v1-instances-demo", "83-v1-beat-light"].map(|name| recordings.body(name));
        Self { list, beat }
    }

    /// Returns an instance of a list.
    fn host(&self, (name, ip, port): &InstanceKey, listed: &Listed, now: Instant) -> Value {
        let mut host = self.list["hosts"][0].clone();
        let name = format!("DEFAULT_GROUP@@{name}");
        host["instanceId"] = format!("{ip}#{port}#DEFAULT#{name}").into();
        (host["ip"], host["port"]) = (ip.clone().into(), (*port).into());
        host["serviceName"] = name.into();
        host["metadata"] = listed.metadata.clone();
        let is_healthy = |beat| now.duration_since(beat) < UNHEALTHY_AFTER;
        host["healthy"] = listed.beat.is_none_or(is_healthy).into();
        host
    }

    /// Returns a list of instances.
    fn list(&self, name: &str, hosts: Vec<Value>) -> Value {
        let mut list = self.list.clone();
        list["name"] = format!("DEFAULT_GROUP@@{name}").into();
        list["hosts"] = hosts.into();
        list["lastRefTime"] = fastrand::u64(1_795_000_000_000..1_796_000_000_000).into();
        list
    }

    /// Returns the answer to a heartbeat.
    fn beat(&self, code: u16) -> Value {
        let mut beat = self.beat.clone();
        beat["code"] = code.into();
        beat
    }
}

/// Returns a response in the form of the real server: no reason phrase, and chunked.
pub(crate) fn chunked(status: u16, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} \r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes()
}

fn text(status: u16, body: &str) -> Vec<u8> {
    response(&format!("{status} "), "text/plain;charset=UTF-8", body)
}

fn forbidden(path: &str, message: &str) -> Vec<u8> {
    let body = json!({
        "timestamp": "2026-11-29T19:57:40.361+00:00", "status": 403, "error": "Forbidden",
        "message": message, "path": path,
    });
    chunked(403, &body)
}
