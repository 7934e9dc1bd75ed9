//! Consul, with the services in its catalog.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::content::Content;
use super::support::process::Process;
use super::support::{SOON, eventually, free_address};

/// Operations of one transaction: the most that Consul takes.
const OPERATIONS: usize = 64;

/// Starts an agent that holds the content and answers at this address.
pub(crate) fn start(program: &Path, dns: SocketAddr, content: Content, folder: &Path) -> Process {
    let http = free_address();
    let ports: Vec<u16> = (0..3).map(|_| free_address().port()).collect();
    let configuration = serde_json::json!({
        "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "domain": "svc", "log_level": "WARN",
        "disable_update_check": true, "enable_debug": false,
        "dns_config": { "service_ttl": { "*": "5s" } },
        "ports": { "dns": dns.port(), "http": http.port(), "grpc": -1, "grpc_tls": -1, "server": ports[0], "serf_lan": ports[1], "serf_wan": ports[2] },
    });
    let file = folder.join("consul.json");
    fs::write(&file, configuration.to_string()).unwrap();
    let mut command = Command::new(program);
    command.args(["agent", "-dev", "-config-file"]).arg(file);
    let mut process = Process::start(&mut command);
    eventually("Consul to have a leader", SOON, || {
        assert!(process.ended().is_none(), "Consul ended:\n{}", process.log());
        let (status, text) = request(http, "GET", "/v1/status/leader", "")?;
        (status == 200 && text.len() > 4).then_some(())
    });
    fill(http, content);
    process
}

/// Puts all instances into the catalog, each a service of one node.
fn fill(http: SocketAddr, content: Content) {
    if content.services == 0 {
        return;
    }
    let node = serde_json::json!([{ "Node": { "Verb": "set", "Node": { "Node": "bench", "Address": "127.0.0.1" } } }]);
    put(http, &node);
    let services: Vec<_> = content
        .all()
        .map(|(service, address, port)| {
            let name = content.label(service);
            let instance =
                serde_json::json!({ "ID": format!("{name}-{address}"), "Service": name, "Address": address.to_string(), "Port": port });
            serde_json::json!({ "Service": { "Verb": "set", "Node": "bench", "Service": instance } })
        })
        .collect();
    services.chunks(OPERATIONS).for_each(|operations| put(http, &operations.into()));
}

fn put(http: SocketAddr, operations: &serde_json::Value) {
    let (status, text) = request(http, "PUT", "/v1/txn", &operations.to_string()).unwrap();
    assert!(status == 200, "Consul refused a transaction: {text}");
}

/// The status and the text of an answer.
fn request(http: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(http).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, text) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, text.to_owned()))
}
