//! Nacos: an instance of a service for each program, as GoFrame's SDK registers it.
//!
//! No package has Nacos's server: a server of the tests answers in the forms of recordings.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::kind::{Facts, Instance, Login, Programs, Secret, ServedKind, Store};
use super::support::nacos::{self, Nacos};
use super::support::seconds;

/// The server, and the programs that are registered there.
pub(crate) struct NacosKind {
    nacos: Nacos,
    has_login: bool,
    /// Has the file `password`.
    directory: TempDir,
}

impl NacosKind {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { nacos: Nacos::start(), has_login: false, directory }
    }
}

/// Returns the metadata as Nacos stores it: all values are strings.
fn metadata(instance: &Instance) -> Value {
    json!({ "insecure": "true", "protocol": "http", "weight": instance.weight.to_string() })
}

impl ServedKind for NacosKind {
    fn section(&self) -> String {
        let login = if self.has_login {
            let file = self.file();
            format!("username = {:?}\npassword-file = \"{}\"\n", nacos::USER, file.display())
        } else {
            String::new()
        };
        format!("[registry.store]\nurl = \"{}\"\n{login}", self.nacos.url())
    }

    fn put(&mut self, instance: &Instance) -> Instant {
        let start = Instant::now();
        self.nacos.put(&instance.name, &instance.address, 80, &metadata(instance));
        start
    }

    fn put_many(&mut self, instances: &[Instance]) {
        for instance in instances {
            self.put(instance);
        }
    }
}

impl Programs for NacosKind {
    fn remove(&mut self, instance: &Instance) -> Instant {
        let start = Instant::now();
        self.nacos.end(&instance.name, &instance.address, 80);
        start
    }

    fn let_die(&mut self, instance: &Instance) {
        // The server sees the connection of a killed program close, as at its regular end.
        self.nacos.lose(&instance.name, &instance.address, 80);
    }

    fn remove_many(&mut self, instances: &[Instance]) {
        for instance in instances {
            self.remove(instance);
        }
    }

    fn put_invalid(&mut self) -> Vec<String> {
        // What GoFrame registers for a server on [::], addresses that are none, and names.
        for (name, address, port) in [
            ("bell\u{7}name", "10.0.0.2", 80),
            ("slash/es", "10.0.0.2", 80),
            ("..svc", "10.0.0.2", 80),
            ("v6broken", "[", 0),
            ("port0", "10.0.0.2", 0),
            ("octal", "010.0.0.1", 80),
            ("multicast", "224.0.0.1", 80),
            ("own", "good.svc", 80),
        ] {
            self.nacos.put(name, address, port, &json!({}));
        }
        let shown = ["name", "slash", "..svc", "v6broken", "port0"];
        let others = ["010.0.0.1", "224.0.0.1", "good.svc"];
        shown.into_iter().chain(others).map(str::to_owned).collect()
    }
}

impl Store for NacosKind {
    fn facts(&self) -> Facts {
        Facts {
            // Of an instance that `svcdns register` has registered, after its last heartbeat.
            expiry: seconds(36),
            // Reading the list of names: 5 s for a connection and 5 s for the answer.
            longest_timeout: seconds(10),
            programs_return_after_a_wipe: true,
        }
    }

    fn address(&self) -> String {
        self.nacos.address().to_string()
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn kill(&mut self) {
        self.nacos.kill();
    }

    fn wipe(&mut self) {
        self.nacos.kill();
    }

    fn start(&mut self) {
        self.nacos.restart();
    }

    fn stall(&mut self) {
        self.nacos.stall();
    }

    fn resume(&mut self) {
        self.nacos.resume();
    }
}

impl Login for NacosKind {
    fn require(&mut self, secret: Secret) {
        self.has_login = true;
        self.nacos.require_password(secret.text());
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("password")
    }

    fn refusal(&self) -> &'static str {
        "cannot log in: check registry.store.username and registry.store.password-file"
    }
}
