//! Two etcd registries with different users, whose passwords change while the server runs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use support::dns::Prober;
use support::etcd::Etcd;
use support::process::Process;
use support::svcdns::Svcdns;
use support::{SOON, dns, eventually, seconds, svcdns};
use tempfile::TempDir;

const HTTP: &str = r#"{"insecure":true,"protocol":"http"}"#;

/// Longest wait for new registrations once etcd runs and has the right password.
///
/// The server waits at most 5 s between two attempts.
const RECONNECT_TIMEOUT: Duration = seconds(15);

/// Returns the key of a service with this endpoint.
fn key(name: &str, endpoint: &str) -> String {
    format!("/service/default/default/{name}/latest/{endpoint}")
}

/// A configured registry, whose user and first service have the same name.
struct Store {
    name: &'static str,
    etcd: Etcd,
    directory: TempDir,
}

impl Store {
    /// Starts an etcd whose user has the first password, there and in the file.
    fn start(name: &'static str) -> Self {
        let etcd = Etcd::start();
        etcd.put(&key(name, "10.0.0.1:80"), HTTP);
        let mut store = Self { name, etcd, directory: tempfile::tempdir().unwrap() };
        store.etcd.add_writer(name, &store.password("first"), "/service");
        store.etcd.enable_auth();
        store.write_password("first");
        store
    }

    fn password(&self, which: &str) -> String {
        format!("{which}-s3cret-of-{}", self.name)
    }

    fn password_file(&self) -> PathBuf {
        self.directory.path().join("password")
    }

    /// Replaces the password file.
    fn write_password(&self, which: &str) {
        let new = self.directory.path().join("new");
        fs::write(&new, format!("{}\n", self.password(which))).unwrap();
        fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
        fs::rename(new, self.password_file()).unwrap();
    }

    fn set_password(&self, which: &str) {
        self.etcd.set_password(self.name, &self.password(which));
    }

    /// Restarts etcd, which ends all connections.
    fn restart(&mut self) {
        self.etcd.kill();
        self.etcd.start_all();
    }

    /// Returns the section of the configuration, with the password file.
    fn section(&self) -> String {
        let file = self.password_file();
        self.section_with(&format!("password-file = \"{}\"", file.display()))
    }

    fn section_with(&self, password: &str) -> String {
        let (name, url) = (self.name, self.etcd.url());
        format!("[registry.{name}]\nurl = \"{url}\"\nusername = \"{name}\"\n{password}\n")
    }

    /// Registers a service and waits until the server answers it.
    fn register(&self, server: &Svcdns, service: &str) {
        self.etcd.put(&key(service, "10.0.0.2:80"), HTTP);
        let name = format!("{service}.svc");
        let expected = vec!["10.0.0.2".parse().unwrap()];
        eventually(&name, RECONNECT_TIMEOUT, || {
            (dns::addresses(server.address, &name) == Ok(expected.clone())).then_some(())
        });
    }
}

/// Writes a configuration file with these sections.
fn write_config(sections: &[String]) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("svcdns.toml");
    fs::write(&file, sections.concat()).unwrap();
    let file = file.to_str().unwrap().to_owned();
    (directory, file)
}

/// Returns whether a registry is connected, and its error, according to `status`.
fn registry_status(server: &Svcdns, store: &Store) -> (bool, Option<String>) {
    let output = server.run(&["status", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let registries = status["registries"].as_array().unwrap();
    let registry = registries.iter().find(|registry| registry["name"] == store.name).unwrap();
    assert_eq!(registry["url"], store.etcd.url());
    (registry["connected"].as_bool().unwrap(), registry["error"].as_str().map(str::to_owned))
}

fn wait_until_connected(server: &Svcdns, store: &Store) {
    let what = format!("{}: connected, no error", store.name);
    eventually(&what, SOON, || (registry_status(server, store) == (true, None)).then_some(()));
}

#[test]
fn no_query_is_lost_while_the_passwords_of_two_registries_change() {
    let mut stores = [Store::start("one"), Store::start("two")];
    let (_directory, file) = write_config(&stores.each_ref().map(Store::section));
    let server = Svcdns::serve(&["--config", &file, "--log", "trace"]);
    for store in &stores {
        server.wait_for(&format!("{}.svc", store.name), &["10.0.0.1"]);
    }
    let probers = stores
        .each_ref()
        .map(|store| Prober::start(server.address, &format!("{}.svc", store.name)));

    for store in &mut stores {
        let name = store.name;
        // The watch logs in after the first list; only an event shows that it works.
        store.register(&server, &format!("{name}-first"));
        // Changed in etcd first: connections survive. Then they are lost, too.
        store.set_password("second");
        store.register(&server, &format!("{name}-meanwhile"));
        store.write_password("second");
        store.register(&server, &format!("{name}-second"));
        store.restart();
        store.register(&server, &format!("{name}-second-login"));

        // Changed in the file first: the connections are lost before etcd has the password.
        store.write_password("third");
        store.register(&server, &format!("{name}-early"));
        store.restart();
        eventually(&format!("the refusal of {name}"), SOON, || {
            registry_status(&server, store)
                .1
                .filter(|error| error.contains("authentication failed"))
        });
        store.set_password("third");
        store.register(&server, &format!("{name}-third"));
        wait_until_connected(&server, store);
    }
    for prober in probers {
        prober.expect_no_loss();
    }
    assert!(!server.log().contains("s3cret"), "a password is in the log");
    server.stop();
}

#[test]
fn a_wrong_password_affects_only_its_registry() {
    let mut stores = [Store::start("one"), Store::start("two")];
    let (_directory, file) = write_config(&stores.each_ref().map(Store::section));
    let server = Svcdns::serve(&["--config", &file]);
    for store in &stores {
        server.wait_for(&format!("{}.svc", store.name), &["10.0.0.1"]);
    }
    let probers = stores
        .each_ref()
        .map(|store| Prober::start(server.address, &format!("{}.svc", store.name)));
    stores[0].write_password("wrong");
    stores[0].restart();
    let refused = "cannot log in: etcdserver: authentication failed, invalid user ID or password";
    // The keys that hold for this registry, whatever `etcd.*` says.
    let keys = "registry.one.username and registry.one.password-file";
    let expected = format!("etcd at {}: {refused}: check {keys}", stores[0].etcd.endpoint(0));
    eventually("the refusal of one", SOON, || {
        let status = registry_status(&server, &stores[0]);
        (status == (false, Some(expected.clone()))).then_some(())
    });
    stores[1].register(&server, "two-later");
    assert_eq!(registry_status(&server, &stores[1]), (true, None));
    // In the text form, the block of a registry begins with its name.
    let output = server.run(&["status"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let block = |name: &str| {
        let block = text.split("\n\n").find(|block| block.starts_with(name));
        block.unwrap_or_else(|| panic!("{text}"))
    };
    assert!(block("one").contains("authentication failed"), "{text}");
    assert!(!block("two").contains("authentication failed"), "{text}");

    stores[0].write_password("first");
    stores[0].register(&server, "one-later");
    wait_until_connected(&server, &stores[0]);
    for prober in probers {
        prober.expect_no_loss();
    }
    server.stop();
}

#[test]
fn a_refused_login_reports_the_settings_in_effect() {
    let store = Store::start("one");
    let url = store.etcd.url();
    let wrong = tempfile::tempdir().unwrap();
    let file = wrong.path().join("password");
    fs::write(&file, "wrong").unwrap();
    let shared = format!("username = \"one\"\npassword-file = \"{}\"\n", file.display());
    let of_section = format!("[registry.one]\nurl = \"{url}\"\n[etcd]\n{shared}");
    let of_list = format!("registry = [\"{url}\"]\n[etcd]\n{shared}");
    let variable = "SVCDNS_REGISTRY_ETCD_PASSWORD";
    for (config, variables, expected) in [
        (&of_section, &[][..], "check etcd.username and etcd.password-file"),
        (&of_list, &[], "check etcd.username and etcd.password-file"),
        (
            &of_list,
            &[(variable, "wrong")],
            "check etcd.username and the environment variable SVCDNS_REGISTRY_ETCD_PASSWORD",
        ),
    ] {
        let (_directory, file) = write_config(std::slice::from_ref(config));
        let listen = "127.0.0.1:0".parse().unwrap();
        let server = Svcdns::serve_with(listen, &["--config", &file], |command| {
            command.envs(variables.iter().copied());
        });
        eventually(expected, SOON, || server.log().contains(expected).then_some(()));
        server.stop();
    }
}

#[test]
fn a_variable_sets_the_password_of_one_registry() {
    let stores = [Store::start("one"), Store::start("two")];
    let (_directory, file) = write_config(&[stores[0].section_with(""), stores[1].section()]);
    let listen = "127.0.0.1:0".parse().unwrap();
    let server = Svcdns::serve_with(listen, &["--config", &file, "--log", "trace"], |command| {
        command.env("SVCDNS_REGISTRY_ONE_PASSWORD", stores[0].password("first"));
    });
    for store in &stores {
        server.wait_for(&format!("{}.svc", store.name), &["10.0.0.1"]);
        wait_until_connected(&server, store);
        assert!(!server.log().contains("s3cret"), "the password is in the log");
    }
    server.stop();
}

#[test]
fn the_register_command_keeps_its_keys_while_passwords_change() {
    let mut stores = [Store::start("one"), Store::start("two")];
    let (_directory, file) = write_config(&stores.each_ref().map(Store::section));
    let mut command = svcdns::command();
    command.args(["register", "--config", &file, "--ttl", "9s", "legacy", "10.0.0.9:80"]);
    let mut registering = Process::start(&mut command);
    let legacy = key("legacy", "10.0.0.9:80");
    let lease = |store: &Store| store.etcd.lease(&legacy);
    let leases = stores.each_ref().map(|store| eventually("the key", SOON, || lease(store)));

    for store in &stores {
        store.set_password("second");
    }
    eventually("the refusals", SOON, || {
        let refusals = registering.log().matches("authentication failed").count();
        (refusals >= 2).then_some(())
    });
    std::thread::sleep(seconds(11));
    assert_eq!(stores.each_ref().map(lease), leases.map(Some), "longer than a lease lives");
    for store in &stores {
        store.write_password("second");
    }
    // A restart ends connections and logins, but not leases: etcd restarts their time.
    for store in &mut stores {
        store.restart();
    }
    std::thread::sleep(seconds(11));
    assert_eq!(stores.each_ref().map(lease), leases.map(Some));
    for store in &stores {
        let recovered = format!("legacy is still registered in {} (", store.name);
        eventually(&recovered, SOON, || registering.log().contains(&recovered).then_some(()));
        store.etcd.delete(&legacy);
        eventually("the key again", SOON, || lease(store));
    }
    assert!(registering.terminate().success(), "{}", registering.log());
    assert_eq!(stores.each_ref().map(lease), [None, None]);
    assert!(!registering.log().contains("s3cret"), "{}", registering.log());
}
