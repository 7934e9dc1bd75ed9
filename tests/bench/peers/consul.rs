//! Starts Consul and puts the services into its catalog.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::{Value, json};

use super::content::Content;
use super::interrupt;
use super::support::consul::request;
use super::support::process::Process;
use super::support::{SOON, free_address};

/// Operations per transaction: Consul's limit.
const OPERATIONS_PER_TRANSACTION: usize = 64;

/// Starts an agent with the content that answers at this address.
///
/// # Errors
/// The reason why the agent does not start, or refuses the content.
pub(crate) fn start(
    program: &Path,
    dns: SocketAddr,
    content: Content,
    folder: &Path,
) -> Result<Process, String> {
    let http = free_address();
    let ports: Vec<u16> = (0..3).map(|_| free_address().port()).collect();
    let configuration = json!({
        "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "domain": "svc", "log_level": "WARN",
        "disable_update_check": true, "enable_debug": false,
        "dns_config": { "service_ttl": { "*": "5s" } },
        "ports": {
            "dns": dns.port(), "http": http.port(), "grpc": -1, "grpc_tls": -1,
            "server": ports[0], "serf_lan": ports[1], "serf_wan": ports[2],
        },
    });
    let file = folder.join("consul.json");
    fs::write(&file, configuration.to_string()).unwrap();
    let mut command = Command::new(program);
    command.args(["agent", "-dev", "-config-file"]).arg(file);
    let mut process = Process::start(&mut command);
    let begun = Instant::now();
    while !request(http, "GET", "/v1/status/leader", None, "").is_ok_and(|leader| leader.len() > 4)
    {
        if process.ended().is_some() || begun.elapsed() > SOON {
            return Err(format!("the agent has no leader:\n{}", process.log()));
        }
        thread::sleep(Duration::from_millis(50));
    }
    fill(http, content)?;
    Ok(process)
}

/// Puts all instances into the catalog, as services of one node.
fn fill(http: SocketAddr, content: Content) -> Result<(), String> {
    let put = |operations: &[Value]| {
        request(http, "PUT", "/v1/txn", None, &Value::from(operations).to_string())
    };
    put(&[
        json!({ "Node": { "Verb": "set", "Node": { "Node": "bench", "Address": "127.0.0.1" } } }),
    ])?;
    let service = |(service, address, port): (usize, Ipv4Addr, u16)| {
        let name = content.label(service);
        let instance = json!({
            "ID": format!("{name}-{address}"), "Service": name,
            "Address": address.to_string(), "Port": port,
        });
        json!({ "Service": { "Verb": "set", "Node": "bench", "Service": instance } })
    };
    let services: Vec<_> = content.all().map(service).collect();
    services.chunks(OPERATIONS_PER_TRANSACTION).try_for_each(|operations| {
        interrupt::check();
        put(operations).map(drop)
    })
}
