//! ZooKeeper: an ephemeral node of a program's own session for each instance.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use tempfile::TempDir;

use super::kind::{Facts, Instance, Login, Programs, Secret, ServedKind, Store, login_keys};
use super::support::seconds;
use super::support::zookeeper::client::{Acl, Client, Lifetime};
use super::support::zookeeper::{EXPIRY, ROOT, Registered, Release, ZooKeeper, folder, leaf_data};

/// The name by which a run without ZooKeeper is listed as skipped.
const TEST: &str = "the_battery_with_zookeeper";

/// The user of svcdns, where the nodes have access control lists.
const USER: &str = "svcdns";

/// Credentials of the programs there.
const PROGRAMS: &str = "programs:of-the-battery";

/// A server, and the programs that are registered there.
pub(crate) struct ZooKeeperKind {
    zookeeper: ZooKeeper,
    /// Writes what no program keeps alive.
    client: Client,
    /// The programs by their instances; the first of a service has GoFrame's leaf.
    programs: BTreeMap<(String, String), Registered>,
    /// Holds the nodes of [`Kind::put_many`].
    crowd: Option<Client>,
    acl: Vec<Acl>,
    /// Has the file `password`, if the nodes have access control lists.
    directory: TempDir,
    has_login: bool,
}

impl ZooKeeperKind {
    /// Starts a server; `None` if this machine cannot run the release.
    pub(crate) fn start(release: Release) -> Option<Self> {
        let zookeeper = ZooKeeper::start_release(TEST, release, 1, "")?;
        let acl = vec![Acl::world(Acl::ALL)];
        let client = zookeeper.client();
        client.ensure(ROOT, &acl);
        Some(Self {
            zookeeper,
            client,
            programs: BTreeMap::new(),
            crowd: None,
            acl,
            directory: tempfile::tempdir().unwrap(),
            has_login: false,
        })
    }

    fn session(&self) -> Client {
        Client::connect_as(&self.zookeeper.addresses(), &[PROGRAMS])
    }
}

fn endpoint(instance: &Instance) -> String {
    format!("{}:80", instance.address)
}

fn key(instance: &Instance) -> (String, String) {
    (instance.name.clone(), instance.address.clone())
}

fn data(instance: &Instance) -> Vec<u8> {
    leaf_data(&instance.name, &endpoint(instance), &instance.metadata())
}

impl ServedKind for ZooKeeperKind {
    fn section(&self) -> String {
        let login = if self.has_login { login_keys(USER, &self.file()) } else { String::new() };
        format!("[registry.store]\nurl = \"{}\"\n{login}", self.zookeeper.url())
    }

    fn put(&mut self, instance: &Instance) -> Instant {
        // GoFrame names every leaf by its service, which has room for one instance. Other leaves
        // are named by their endpoints.
        let others = self.programs.keys().filter(|(name, _)| *name == instance.name);
        let is_first = others.clone().all(|(_, address)| *address == instance.address);
        let leaf = if is_first { instance.name.clone() } else { endpoint(instance) };
        let session = self.session();
        self.programs.remove(&key(instance));
        let start = Instant::now();
        let program =
            Registered::with_leaf(session, &instance.name, &leaf, &data(instance), &self.acl);
        self.programs.insert(key(instance), program);
        start
    }

    fn put_many(&mut self, instances: &[Instance]) {
        let names = instances.iter().map(|instance| instance.name.as_str());
        let mut folders: Vec<_> = names.map(folder).collect();
        folders.dedup();
        let folders = folders.into_iter().map(|path| (path, Vec::new(), Lifetime::Persistent));
        let leaves = instances.iter().map(|instance| {
            let path = format!("{}/{}", folder(&instance.name), endpoint(instance));
            (path, data(instance), Lifetime::Ephemeral)
        });
        let session = self.session();
        session.create_many(folders.chain(leaves), &self.acl);
        self.crowd = Some(session);
    }
}

impl Programs for ZooKeeperKind {
    fn remove(&mut self, instance: &Instance) -> Instant {
        let program = self.programs.remove(&key(instance)).expect("a program");
        let start = Instant::now();
        program.stop();
        start
    }

    fn let_die(&mut self, instance: &Instance) {
        self.programs.remove(&key(instance)).expect("a program");
    }

    fn remove_many(&mut self, _instances: &[Instance]) {
        // The end of the session deletes all its nodes in one transaction.
        self.crowd.take().expect("a crowd").close();
    }

    fn put_invalid(&mut self) -> Vec<String> {
        let mut shown = Vec::new();
        for (name, data) in invalid() {
            let folder = folder(name);
            self.client.ensure(&folder, &self.acl);
            let path = format!("{folder}/{name}");
            self.client.create(&path, &data, Lifetime::Persistent).expect("create a junk leaf");
            shown.push(name.to_owned());
        }
        shown
    }

    fn notifications(&self, name: &str) -> Option<Receiver<Instant>> {
        self.zookeeper.has_recursive_watches().then(|| self.client.watch(&folder(name)))
    }
}

impl Store for ZooKeeperKind {
    fn facts(&self) -> Facts {
        Facts {
            expiry: EXPIRY,
            // The longest session: after two thirds of it, svcdns gives up a silent server.
            longest_timeout: EXPIRY.max(seconds(10)),
            programs_return_after_a_wipe: false,
        }
    }

    fn address(&self) -> String {
        self.zookeeper.address(0).to_string()
    }

    fn pid(&self) -> Option<u32> {
        Some(self.zookeeper.process(0).pid())
    }

    fn kill(&mut self) {
        self.zookeeper.kill();
    }

    fn wipe(&mut self) {
        self.zookeeper.wipe();
    }

    fn start(&mut self) {
        self.zookeeper.start_all();
        // An empty server refuses every client that has seen a later transaction.
        self.client = self.session();
        self.client.ensure(ROOT, &self.acl);
    }

    fn stall(&mut self) {
        self.zookeeper.stall(0);
    }

    fn resume(&mut self) {
        self.zookeeper.resume(0);
    }
}

impl Login for ZooKeeperKind {
    fn require(&mut self, secret: Secret) {
        self.has_login = true;
        let programs = Acl::digest(PROGRAMS, Acl::ALL);
        let reader = Acl::digest(&format!("{USER}:{}", secret.text()), Acl::READ);
        self.acl = vec![programs, reader];
        // The nodes that exist: those of the root, the services and the leaves.
        self.client = self.session();
        let mut paths = vec![ROOT.to_owned()];
        while let Some(path) = paths.pop() {
            let children = self.client.children(&path).expect("read a node");
            paths.extend(children.iter().map(|name| format!("{path}/{name}")));
            self.client.set_acl(&path, &self.acl).expect("set the rights");
        }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("password")
    }

    fn refusal(&self) -> &'static str {
        "check registry.store.username and registry.store.password-file"
    }
}

/// Returns leaves that are not registrations, by the name of their service.
fn invalid() -> Vec<(&'static str, Vec<u8>)> {
    let key = |key: &str| format!(r#"{{"Key":"{key}","Value":"{{}}"}}"#).into_bytes();
    let service = |rest: &str| key(&format!("/service/default/default/{rest}"));
    let nested = format!("{}1{}", r#"{"a":"#.repeat(5000), "}".repeat(5000));
    vec![
        ("notjson", b"not json".to_vec()),
        ("empty", Vec::new()),
        ("array", b"[1]".to_vec()),
        ("nokey", b"{}".to_vec()),
        ("numberkey", br#"{"Key":1,"Value":"{}"}"#.to_vec()),
        (
            "badvalue",
            br#"{"Key":"/service/default/default/badvalue/latest/10.0.0.2:80","Value":"x"}"#
                .to_vec(),
        ),
        ("binary", (0..=255).collect()),
        ("brackets", "[".repeat(20_000).into_bytes()),
        ("nested", nested.into_bytes()),
        ("huge", vec![b'h'; 900_000]),
        ("few", key("/service/few")),
        ("v6broken", service("v6broken/latest/[:0")),
        ("port0", service("port0/latest/10.0.0.2:0")),
        ("port70000", service("port70000/latest/10.0.0.2:70000")),
        ("octal", service("octal/latest/010.0.0.1:80")),
        ("multicast", service("multicast/latest/224.0.0.1:80")),
        ("own", service("own/latest/good.svc:80")),
        ("slash", service("slash/es/latest/10.0.0.2:80")),
    ]
}
