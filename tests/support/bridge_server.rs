//! svcdns with its port bridge, as the name server of a test's namespace.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::process::{Command, Output};

use super::files::Files;
use super::svcdns::Svcdns;
use super::{SOON, dns, eventually, netns, on_path, skip};

/// Runs `body` in new namespaces with svcdns as the name server; skips the test without nft.
pub(crate) fn inside(test: &str, body: impl FnOnce()) {
    if !Path::new("/usr/sbin/nft").exists() && !on_path("nft") {
        return skip(test, "no nft");
    }
    netns::inside(test, "127.0.0.1", body);
}

/// Returns the key of an instance of `hello.svc` at the namespace's address.
pub(crate) fn key(port: u16) -> String {
    format!("default/default/hello.svc/latest/{}:{port}", netns::ADDRESS)
}

/// The metadata of services that are bridged by default.
pub(crate) const HTTP: &str = r#"{"protocol":"http"}"#;

/// Registers instances of `hello.svc` on these ports.
pub(crate) fn registered(ports: &[u16]) -> Files {
    let keys: Vec<_> = ports.iter().map(|port| key(*port)).collect();
    Files::new(&keys.iter().map(|key| (&**key, HTTP)).collect::<Vec<_>>())
}

/// Starts svcdns at 127.0.0.1:53 with its bridge on.
pub(crate) fn start(registry: &str, flags: &[&str]) -> Svcdns {
    let flags = [&["--bridge", "--registry", registry], flags].concat();
    Svcdns::serve_at("127.0.0.1:53".parse().unwrap(), &flags)
}

/// Waits until the name has an address of the bridge; returns it.
pub(crate) fn address(server: &Svcdns, name: &str) -> String {
    eventually("an address of the bridge", SOON, || {
        let found = dns::addresses(server.address, name).ok()?;
        found.first().map(ToString::to_string).filter(|one| one.starts_with("127.83."))
    })
}

/// Waits until the name has an address of the bridge; returns it with port 80.
pub(crate) fn web_address(server: &Svcdns, name: &str) -> SocketAddr {
    SocketAddr::new(address(server, name).parse::<IpAddr>().unwrap(), 80)
}

/// Runs a program.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Runs a program and returns its output; fails the test unless it succeeds.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{errors}");
    text
}

/// Returns the page of a URL.
pub(crate) fn curl(url: &str) -> String {
    output("curl", &["-sS", "--max-time", "20", url])
}

/// Returns the names of the kernel's tables.
pub(crate) fn tables() -> String {
    output("nft", &["list", "tables"])
}

/// Returns where the rules of the bridge redirect connections to.
pub(crate) fn redirected_to() -> SocketAddrV4 {
    let rules = output("nft", &["list", "ruleset"]);
    let at = rules.split_once("dnat to ").unwrap_or_else(|| panic!("{rules}")).1;
    at.split_whitespace().next().unwrap().parse().unwrap()
}

/// Returns the state of the bridge, as `svcdns status --json` has it.
pub(crate) fn status(server: &Svcdns) -> serde_json::Value {
    let output = server.run(&["status", "--json"]);
    let mut status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    status["bridge"].take()
}
