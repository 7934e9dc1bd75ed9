//! etcd: a key on a lease for each instance.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::{Client, Error, PutOptions, WatchOptions};
use tempfile::TempDir;
use tokio::runtime::{self, Runtime};
use tokio::time::timeout;

use super::kind::{
    Facts, Instance, Login, Program, Programs, Secret, ServedKind, Store, login_keys,
};
use super::support::etcd::Etcd;
use super::support::seconds;

/// Time to live of a program's lease in seconds, as GoFrame grants it.
const LEASE_TTL: i64 = 10;

/// Time between renewals of a lease: about a third of its time to live, as in etcd's Go client.
const RENEWAL_INTERVAL: Duration = seconds(3);

/// Longest wait of a program for etcd.
const RENEWAL_TIMEOUT: Duration = seconds(2);

/// The user of svcdns, where the store requires a login.
const USER: &str = "svcdns";

/// An etcd, and the programs that are registered there.
pub(crate) struct EtcdKind {
    etcd: Etcd,
    runtime: Arc<Runtime>,
    client: Client,
    programs: BTreeMap<String, Program>,
    has_login: bool,
    /// Has the file `password`.
    directory: TempDir,
}

impl EtcdKind {
    pub(crate) fn start() -> Self {
        let etcd = Etcd::start();
        let runtime =
            runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(etcd.client());
        Self {
            etcd,
            runtime: Arc::new(runtime),
            client,
            programs: BTreeMap::new(),
            has_login: false,
            directory: tempfile::tempdir().unwrap(),
        }
    }
}

/// Returns the key of an instance.
fn key(instance: &Instance) -> String {
    format!("/service/default/default/{}/latest/{}:80", instance.name, instance.address)
}

/// Puts a key on a new lease.
async fn register(client: &Client, key: &str, value: &str) -> Result<i64, Error> {
    let lease = client.lease_client().grant(LEASE_TTL, None).await?.id();
    client.kv_client().put(key, value, Some(PutOptions::new().with_lease(lease))).await?;
    Ok(lease)
}

/// Renews a lease; returns `true` if etcd says that the lease does not exist.
async fn is_gone(client: &Client, lease: i64) -> bool {
    // Opening the stream renews the lease for the first time.
    let renewed = timeout(RENEWAL_TIMEOUT, client.lease_client().keep_alive(lease)).await;
    matches!(renewed, Ok(Err(Error::LeaseKeepAliveError(text))) if text.contains("not found"))
}

impl ServedKind for EtcdKind {
    fn section(&self) -> String {
        let login = if self.has_login { login_keys(USER, &self.file()) } else { String::new() };
        format!("[registry.store]\nurl = \"{}\"\n{login}", self.etcd.url())
    }

    fn put(&mut self, instance: &Instance) -> Instant {
        let (key, value) = (key(instance), instance.metadata());
        // A program has one lease, and writes its key once.
        self.programs.remove(&key);
        let start = Instant::now();
        let mut lease =
            self.runtime.block_on(register(&self.client, &key, &value)).expect("register");
        let (runtime, client) = (Arc::clone(&self.runtime), self.client.clone());
        let program_key = key.clone();
        let program = Program::start(RENEWAL_INTERVAL, move || {
            runtime.block_on(async {
                // Registers again once the lease is gone, as GoFrame does since v2.8.3.
                if is_gone(&client, lease).await {
                    let again = register(&client, &program_key, &value);
                    if let Ok(Ok(new)) = timeout(RENEWAL_TIMEOUT, again).await {
                        lease = new;
                    }
                }
            });
        });
        self.programs.insert(key, program);
        start
    }

    fn put_many(&mut self, instances: &[Instance]) {
        let entries = instances.iter().map(|instance| (key(instance), instance.metadata()));
        self.runtime.block_on(self.etcd.put_many(entries));
    }
}

impl Programs for EtcdKind {
    fn remove(&mut self, instance: &Instance) -> Instant {
        let key = key(instance);
        self.programs.remove(&key);
        let start = Instant::now();
        let mut client = self.client.kv_client();
        self.runtime.block_on(client.delete(key, None)).expect("delete");
        start
    }

    fn let_die(&mut self, instance: &Instance) {
        self.programs.remove(&key(instance)).expect("a program");
    }

    fn remove_many(&mut self, _instances: &[Instance]) {
        self.etcd.ctl(&["del", "--prefix", "/service/"]);
    }

    fn put_invalid(&mut self) -> Vec<String> {
        let entries = invalid();
        let mut client = self.client.kv_client();
        self.runtime.block_on(async {
            for (key, value, _) in &entries {
                client.put(key.as_slice(), value.as_slice(), None).await.expect("put");
            }
        });
        entries.into_iter().map(|(.., shown)| shown.to_owned()).collect()
    }

    fn notifications(&self, name: &str) -> Option<Receiver<Instant>> {
        let (sender, receiver) = mpsc::channel();
        let mut client = self.client.watch_client();
        let runtime = Arc::clone(&self.runtime);
        let options = WatchOptions::new().with_prefix();
        let prefix = format!("/service/default/default/{name}/");
        let mut stream = runtime.block_on(client.watch(prefix, Some(options))).expect("watch");
        thread::spawn(move || {
            while let Ok(Some(response)) = runtime.block_on(stream.message()) {
                let is_event = !response.events().is_empty();
                if is_event && sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Some(receiver)
    }
}

impl Store for EtcdKind {
    fn facts(&self) -> Facts {
        Facts {
            expiry: Duration::from_secs(LEASE_TTL.unsigned_abs()),
            // Silence on a watch: 10 s until svcdns asks, and 20 s for the response.
            longest_timeout: seconds(30),
            programs_return_after_a_wipe: true,
        }
    }

    fn address(&self) -> String {
        self.etcd.endpoint(0)
    }

    fn pid(&self) -> Option<u32> {
        Some(self.etcd.pid(0))
    }

    fn kill(&mut self) {
        self.etcd.kill();
    }

    fn wipe(&mut self) {
        self.etcd.wipe();
    }

    fn start(&mut self) {
        self.etcd.start_all();
        // etcd forgets the logins of its clients when it ends.
        self.client = self.runtime.block_on(self.etcd.client());
    }

    fn stall(&mut self) {
        self.etcd.stall(0);
    }

    fn resume(&mut self) {
        self.etcd.resume(0);
    }
}

impl Login for EtcdKind {
    fn require(&mut self, secret: Secret) {
        if self.has_login {
            return self.etcd.set_password(USER, secret.text());
        }
        self.etcd.add_reader(USER, secret.text(), "/service");
        self.etcd.enable_auth();
        self.has_login = true;
        self.client = self.runtime.block_on(self.etcd.client());
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("password")
    }

    fn refusal(&self) -> &'static str {
        "authentication failed, invalid user ID or password: check registry.store.username and \
         registry.store.password-file"
    }
}

/// Returns keys and values that are not registrations, and a text by which each is listed.
fn invalid() -> Vec<(Vec<u8>, Vec<u8>, &'static str)> {
    let service = |rest: &str| format!("/service/default/default/{rest}").into_bytes();
    let mut entries: Vec<(Vec<u8>, Vec<u8>, &str)> = [
        ("few/latest", "/few/"),
        ("v6broken/latest/[:0", "[:0"),
        ("nohost/latest/:80", "/nohost/"),
        ("port0/latest/10.0.0.2:0", "10.0.0.2:0"),
        ("port70000/latest/10.0.0.2:70000", "10.0.0.2:70000"),
        ("octal/latest/010.0.0.1:80", "010.0.0.1:80"),
        ("unspecified/latest/0.0.0.0:80", "0.0.0.0:80"),
        ("multicast/latest/224.0.0.1:80", "224.0.0.1:80"),
        ("own/latest/good.svc:80", "good.svc:80"),
        ("slash/es/latest/10.0.0.2:80", "slash/es"),
        ("bell\u{7}name/latest/10.0.0.2:80", "bell\\u{7}name"),
        ("..svc/latest/10.0.0.2:80", "/..svc/"),
        ("svc/latest/10.0.0.2:0", "/svc/"),
    ]
    .map(|(rest, shown)| (service(rest), b"{}".to_vec(), shown))
    .to_vec();
    let nested = format!("{}1{}", r#"{"a":"#.repeat(5000), "}".repeat(5000));
    let huge = format!(r#"{{"a":"{}"}}"#, "h".repeat(1 << 20));
    for (name, value) in [
        ("notjson", "not json"),
        ("array", "[1]"),
        ("brackets", &"[".repeat(20_000)),
        ("nested", &nested),
        ("huge", &huge),
    ] {
        entries.push((service(&format!("{name}/latest/10.0.0.2:80")), value.into(), name));
    }
    let long_name = vec!["y".repeat(60); 5].join(".");
    entries.push((service(&format!("{long_name}/latest/10.0.0.2:80")), b"{}".to_vec(), "yyyyyyyy"));
    entries.push((b"/service/few2".to_vec(), b"{}".to_vec(), "few2"));
    entries.push((
        b"/service/default/default/\xff\xfe/latest/10.0.0.2:80".to_vec(),
        b"{}".to_vec(),
        "\\xff\\xfe",
    ));
    entries.push((b"/service/\x00".to_vec(), b"{}".to_vec(), "/service/\\u{0}"));
    entries
}
