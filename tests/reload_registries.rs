//! Other registries, zones and limits while the server answers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::{fs, thread};

use serde_json::Value;
use support::dns::Prober;
use support::etcd::Etcd;
use support::files::Files;
use support::svcdns::Svcdns;
use support::{SOON, dns, eventually};
use tempfile::TempDir;

const HTTP: &str = r#"{"protocol":"http"}"#;

/// Returns the key of a service at an address of 10.0.0.0/16.
fn key(name: &str, last: usize) -> String {
    format!("/service/default/default/{name}/latest/10.0.{}.{}:80", last / 256, last % 256)
}

/// A server whose configuration a test replaces.
struct Reloaded {
    server: Svcdns,
    /// The directory of the configuration file.
    directory: TempDir,
    address: SocketAddr,
}

impl Reloaded {
    /// Starts a server with this configuration, without forwarding.
    fn start(text: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), text)
    }

    /// Starts a server in the state directory of an earlier one.
    fn start_in(state: TempDir, text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("svcdns.toml");
        fs::write(&file, text).unwrap();
        let server = Svcdns::serve_again(state, &["--config", file.to_str().unwrap()]);
        Self { address: server.address, server, directory }
    }

    /// Applies another configuration.
    fn reload(&self, text: &str) {
        fs::write(self.directory.path().join("svcdns.toml"), text).unwrap();
        let output = self.server.run(&["reload"]);
        assert!(output.status.success(), "{output:?}");
    }

    /// Stops the server and returns its state directory.
    fn stop(self) -> TempDir {
        self.server.stop_and_keep()
    }

    fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, &'static str> {
        dns::addresses(self.address, name)
    }

    /// Waits until a name has these addresses, which are sorted.
    fn wait_for(&self, name: &str, addresses: &[&str]) {
        let wanted: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        eventually(&format!("{name} at {wanted:?}"), SOON, || {
            (self.addresses(name).as_ref() == Ok(&wanted)).then_some(())
        });
    }

    fn status(&self) -> Value {
        let output = self.server.run(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// Returns the status of a registry, if the server follows it.
    fn registry(&self, name: &str) -> Option<Value> {
        let status = self.status();
        let mut registries = status["registries"].as_array().unwrap().iter();
        registries.find(|registry| registry["name"] == name).cloned()
    }

    fn wait_until_connected(&self, name: &str) {
        eventually(&format!("a connection to {name}"), SOON, || {
            (self.registry(name)?["connected"] == true).then_some(())
        });
    }

    /// Starts to read the stream of changes.
    fn watch(&self) -> mpsc::Receiver<Value> {
        let mut stream = UnixStream::connect(self.server.state_dir().join("svcdns.sock")).unwrap();
        let request = "GET /v1/watch HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while stream.read_line(&mut head).unwrap() > 2 {}
        let (sender, changes) = mpsc::channel();
        thread::spawn(move || {
            // The lengths of chunks are no JSON objects.
            let lines = stream.lines().map_while(Result::ok);
            for line in lines.filter(|line| line.starts_with('{')) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        changes
    }
}

/// Returns the sections of these registries.
fn sections(registries: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, url) in registries {
        writeln!(text, "[registry.{name}]\nurl = '{url}'").unwrap();
    }
    text
}

/// Starts an etcd with `hello.svc` at 10.0.0.1.
fn hello() -> Etcd {
    let etcd = Etcd::start();
    etcd.put(&key("hello.svc", 1), HTTP);
    etcd
}

#[test]
fn a_registry_is_added_and_removed_under_load() {
    let etcd = hello();
    let files = Files::new(&[("default/default/web.svc/latest/10.0.0.9:80", HTTP)]);
    let (main, other) = (("main", &*etcd.url()), ("other", &*files.url()));
    let server = Reloaded::start(&sections(&[main]));
    server.wait_for("hello.svc", &["10.0.0.1"]);
    let prober = Prober::start(server.address, "hello.svc");
    let mut lists = 0;
    for _ in 0..3 {
        // In front, so that the number of the other registry changes.
        server.reload(&sections(&[other, main]));
        server.wait_for("web.svc", &["10.0.0.9"]);
        server.wait_until_connected("main");
        etcd.put(&key("hello.svc", 2), HTTP);
        server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
        server.reload(&sections(&[main]));
        assert_eq!(server.addresses("web.svc"), Err("NXDOMAIN"));
        assert!(server.registry("other").is_none());
        server.wait_until_connected("main");
        etcd.delete(&key("hello.svc", 2));
        server.wait_for("hello.svc", &["10.0.0.1"]);
        let now = server.registry("main").unwrap()["lists"].as_u64().unwrap();
        assert!(now > lists, "counters of a kept registry go on");
        lists = now;
    }
    // Under another name, it is still the same registry.
    server.reload(&sections(&[("renamed", main.1)]));
    server.wait_until_connected("renamed");
    assert!(server.registry("renamed").unwrap()["lists"].as_u64().unwrap() > lists);
    prober.expect_no_loss();
}

#[test]
fn a_registry_that_is_away_keeps_its_names_through_a_reload() {
    let mut etcd = hello();
    let url = etcd.url();
    let server = Reloaded::start(&sections(&[("main", &url)]));
    server.wait_for("hello.svc", &["10.0.0.1"]);
    let prober = Prober::start(server.address, "hello.svc");
    etcd.kill();
    for zones in ["zone = ['svc', 'corp']\n", "zone = 'svc'\nmerge = 'first'\n"] {
        server.reload(&format!("{zones}{}", sections(&[("main", &url)])));
        assert_eq!(server.addresses("hello.svc").map(|found| found.len()), Ok(1));
    }
    let text = dns::dig(server.address, &["hello.svc"]);
    assert!(text.contains("EDE: 3 "), "{text}");
    etcd.start_all();
    etcd.put(&key("hello.svc", 2), HTTP);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    prober.expect_no_loss();
}

#[test]
fn a_hold_survives_a_reload() {
    let mut etcd = hello();
    let url = etcd.url();
    let text = |ttl: &str, merge: &str| {
        let registry = sections(&[("main", &url)]);
        format!("ttl = '{ttl}'\nmerge = '{merge}'\nremoval-grace = '1h'\n{registry}")
    };
    let server = Reloaded::start(&text("5s", "union"));
    server.wait_for("hello.svc", &["10.0.0.1"]);
    etcd.wipe();
    etcd.start_all();
    let is_held = || {
        let holds = server.registry("main")?["holds"].clone();
        (holds[0]["keys"] == 1).then_some(())
    };
    eventually("a hold", SOON, is_held);
    // Another TTL changes no data; another merge does.
    server.reload(&text("6s", "union"));
    is_held().expect("a hold right after the reload");
    server.reload(&text("6s", "first"));
    assert_eq!(server.addresses("hello.svc").map(|found| found.len()), Ok(1));
    eventually("a hold after the reload", SOON, is_held);
    assert_eq!(server.addresses("hello.svc").map(|found| found.len()), Ok(1));
}

#[test]
fn a_changed_zone_renames_every_service() {
    let etcd = hello();
    for last in 2..200 {
        etcd.put(&key(&format!("s{last}"), last), HTTP);
    }
    let registries = sections(&[("main", &etcd.url())]);
    let server = Reloaded::start(&registries);
    server.wait_for("s199.svc", &["10.0.0.199"]);
    let prober = Prober::start(server.address, "hello.svc");
    server.reload(&format!("zone = ['corp', 'svc']\n{registries}"));
    for name in ["hello.svc", "hello.corp", "s2.svc", "s199.corp"] {
        assert_eq!(server.addresses(name).map(|found| found.len()), Ok(1), "{name}");
    }
    let srv = dns::dig_short(server.address, &["s9.svc", "SRV"]);
    assert_eq!(srv, ["0 1 80 10-0-0-9.s9.corp."]);
    for _ in 0..5 {
        server.reload(&format!("zone = ['svc', 'corp']\n{registries}"));
        server.wait_until_connected("main");
        server.reload(&format!("zone = ['corp', 'svc']\n{registries}"));
        server.wait_until_connected("main");
    }
    prober.expect_no_loss();
    // Without the zone in their names, they are names in front of another one.
    server.reload(&format!("zone = 'corp'\n{registries}"));
    assert_eq!(server.addresses("s2.svc"), Err("REFUSED"));
    server.wait_for("hello.svc.corp", &["10.0.0.1"]);
    server.reload(&registries);
    assert_eq!(server.addresses("s2.corp"), Err("REFUSED"));
    server.wait_for("hello.svc", &["10.0.0.1"]);
}

#[test]
fn a_raised_limit_admits_what_was_rejected() {
    let etcd = hello();
    etcd.put(&key("many", 2), HTTP);
    etcd.put(&key("many", 3), HTTP);
    let registries = sections(&[("main", &etcd.url())]);
    let server = Reloaded::start(&format!("max-instances-per-service = 1\n{registries}"));
    server.wait_for("many.svc", &["10.0.0.2"]);
    assert_eq!(server.status()["rejected"], 1);
    server.reload(&registries);
    server.wait_for("many.svc", &["10.0.0.2", "10.0.0.3"]);
    assert_eq!(server.status()["rejected"], 0);
}

#[test]
fn static_services_follow_the_file() {
    let etcd = hello();
    let registries = sections(&[("main", &etcd.url())]);
    let with = |name: &str, last: u8| {
        format!("{registries}[[static]]\nname = '{name}'\nendpoints = ['10.1.0.{last}:80']\n")
    };
    let server = Reloaded::start(&registries);
    server.wait_for("hello.svc", &["10.0.0.1"]);
    let prober = Prober::start(server.address, "hello.svc");
    for last in 1..=5 {
        server.reload(&with("legacy", last));
        server.wait_for("legacy.svc", &[&format!("10.1.0.{last}")]);
        server.wait_until_connected("main");
    }
    server.reload(&with("other", 3));
    server.wait_for("other.svc", &["10.1.0.3"]);
    eventually("the end of a name", SOON, || {
        (server.addresses("legacy.svc") == Err("NXDOMAIN")).then_some(())
    });
    server.reload(&registries);
    assert_eq!(server.addresses("other.svc"), Err("NXDOMAIN"));
    prober.expect_no_loss();
}

#[test]
fn watchers_see_only_what_changed() {
    let etcd = hello();
    let files = Files::new(&[("default/default/web.svc/latest/10.0.0.9:80", HTTP)]);
    let main = ("main", &*etcd.url());
    let server = Reloaded::start(&sections(&[main]));
    server.wait_for("hello.svc", &["10.0.0.1"]);
    let changes = server.watch();
    server.reload(&format!("zone = ['corp', 'svc']\nttl = '9s'\n{}", sections(&[main])));
    server.reload(&sections(&[("other", &files.url()), main]));
    let change = changes.recv_timeout(SOON).unwrap();
    assert_eq!((&change["service"], &change["gone"]), (&"web".into(), &Value::Null), "{change}");
    server.reload(&sections(&[main]));
    let change = changes.recv_timeout(SOON).unwrap();
    assert_eq!((&change["service"], &change["gone"]), (&"web".into(), &true.into()), "{change}");
    server.wait_until_connected("main");
    etcd.put(&key("hello.svc", 2), HTTP);
    let change = changes.recv_timeout(SOON).unwrap();
    assert_eq!(change["service"], "hello", "{change}");
    assert_eq!(change["added"].as_array().map(Vec::len), Some(1), "{change}");
}

#[test]
fn snapshots_follow_the_registries() {
    let (mut one, mut two) = (hello(), Etcd::start());
    two.put(&key("second.svc", 2), HTTP);
    let urls = [one.url(), two.url()];
    let (first, second) = (("one", &*urls[0]), ("two", &*urls[1]));
    let server = Reloaded::start(&sections(&[first]));
    server.wait_for("hello.svc", &["10.0.0.1"]);
    server.reload(&sections(&[second, first]));
    server.wait_for("second.svc", &["10.0.0.2"]);
    server.wait_until_connected("one");
    // The file of a registry that is removed stays as it is, whatever number it had.
    server.reload(&sections(&[second]));
    server.wait_until_connected("two");
    server.reload(&sections(&[second, first]));
    server.wait_for("hello.svc", &["10.0.0.1"]);
    server.wait_until_connected("two");
    let state = server.stop();
    one.kill();
    two.kill();
    let server = Reloaded::start_in(state, &sections(&[first, second]));
    assert_eq!(server.addresses("hello.svc"), Ok(vec!["10.0.0.1".parse().unwrap()]));
    assert_eq!(server.addresses("second.svc"), Ok(vec!["10.0.0.2".parse().unwrap()]));
    let age = |name: &str| server.registry(name).unwrap()["snapshot-age"].clone();
    assert!(age("one").is_u64() && age("two").is_u64());
    server.reload(&format!("snapshot = false\n{}", sections(&[first, second])));
    eventually("no more snapshot", SOON, || age("one").is_null().then_some(()));
    server.reload(&format!("snapshot = true\n{}", sections(&[first, second])));
    assert_eq!(server.addresses("hello.svc").map(|found| found.len()), Ok(1));
}
