//! Names outside the served zones: what resolved before `install` must resolve after it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use hickory_proto::rr::RecordType;
use tokio::task::JoinSet;

use super::resolve::{self, extended_error};
use crate::config::Config;
use crate::name::Name;
use crate::system::{self, Integration, Machine, Root};
use crate::wire::rcode_name;

/// Names that every name server of the Internet finds, of three operators.
const PUBLIC_NAMES: [&str; 3] = ["a.root-servers.net", "www.iana.org", "www.ietf.org"];

/// Limit on the names that are tried; the machine's own come first.
const MAX_TRIED_NAMES: usize = 8;

/// Pause between two lookups of a name.
const LOOKUP_PAUSE: Duration = Duration::from_millis(200);

/// Names outside the served zones that were looked up through the C library.
#[derive(Debug)]
pub(super) struct OutsideNames {
    /// The names that were looked up.
    tried: Vec<String>,
    /// Those that have addresses.
    found: Vec<String>,
}

impl OutsideNames {
    /// Looks up several names: hosts of registries, search domains, and public names.
    ///
    /// Each is looked up once; if none is found, all are looked up again until `patience` is over.
    pub(super) async fn look_up(
        root: &Root,
        config: &Config,
        machine: &Machine,
        patience: Duration,
    ) -> Self {
        let tried = candidates(root, config, machine);
        let mut found = found_of(root, &tried, Duration::ZERO).await;
        if found.is_empty() && !patience.is_zero() {
            found = found_of(root, &tried, patience).await;
        }
        Self { tried, found }
    }

    /// Returns a note for the user if none of the names was found.
    pub(super) fn note(&self) -> Option<String> {
        self.found.is_empty().then(|| {
            format!(
                "Warning: the names of svcdns resolve, but none of these names outside its zones \
                 does: {}. If this machine has a network, `svcdns doctor` finds the cause; `sudo \
                 svcdns uninstall` restores the former name servers.",
                self.tried.join(", ")
            )
        })
    }

    /// Repeats the lookups of the names that were found, for at most this long.
    ///
    /// # Errors
    /// If a name is not found; the error contains the lookup and the server's response.
    pub(super) async fn check(
        &self,
        root: &Root,
        integration: Integration,
        server: SocketAddr,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let mut lost = Vec::new();
        for (name, result) in look_up_each(root, &self.found, patience).await {
            if let Err(error) = result {
                let response = response(server, &name).await;
                lost.push(format!("{name} ({error}; svcdns at {server} {response})"));
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        bail!(
            "the C library found these names before, and does not find them through {integration}: \
             {}. Check that the upstreams of svcdns answer (`upstream`)",
            lost.join(", ")
        )
    }
}

impl fmt::Display for OutsideNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.found.is_empty() {
            write!(
                f,
                "Other names could not be tested, because none of these resolved before: {}. Is \
                 this machine without a network?",
                self.tried.join(", ")
            )
        } else {
            write!(f, "Other names still resolve: {}.", self.found.join(", "))
        }
    }
}

/// Returns the names to try, the machine's own first.
///
/// Names in /etc/hosts are left out: they are found without a name server.
fn candidates(root: &Root, config: &Config, machine: &Machine) -> Vec<String> {
    let hosts_file = root.text("/etc/hosts").unwrap_or_default().to_ascii_lowercase();
    let in_hosts_file = |name: &str| hosts_file.split_ascii_whitespace().any(|word| word == name);
    let conf = machine.file.conf();
    let hosts = config.registries.iter().flat_map(|registry| registry.source.hosts());
    let names = hosts.chain(conf.search().iter().copied()).chain(PUBLIC_NAMES);
    let mut candidates: Vec<String> = Vec::new();
    for name in names {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let is_served = |parsed: &Name| config.zones.find(parsed).is_some();
        let is_outside = Name::from_text(&name).is_ok_and(|parsed| !is_served(&parsed));
        let needs_no_server = name.is_empty()
            || name == "localhost"
            || name.parse::<IpAddr>().is_ok()
            || in_hosts_file(&name);
        if is_outside && !needs_no_server && !candidates.contains(&name) {
            candidates.push(name);
        }
    }
    candidates.truncate(MAX_TRIED_NAMES);
    candidates
}

/// Looks up names, and returns those that have addresses, in the same order.
async fn found_of(root: &Root, names: &[String], patience: Duration) -> Vec<String> {
    let results = look_up_each(root, names, patience).await;
    let is_found =
        |name: &&String| results.iter().any(|(other, result)| other == *name && result.is_ok());
    names.iter().filter(is_found).cloned().collect()
}

/// Looks up names at the same time, each until it is found or `patience` is over.
async fn look_up_each(
    root: &Root,
    names: &[String],
    patience: Duration,
) -> Vec<(String, Result<(), String>)> {
    let mut lookups = JoinSet::new();
    for name in names {
        let (root, name) = (root.clone(), name.clone());
        // The C library blocks its thread.
        lookups.spawn_blocking(move || {
            let start = Instant::now();
            loop {
                match system::look_up_afresh(&root, &name) {
                    Err(_) if start.elapsed() < patience => thread::sleep(LOOKUP_PAUSE),
                    result => return (name, result.map(drop)),
                }
            }
        });
    }
    lookups.join_all().await
}

/// Describes the server's own response to a query for the addresses of a name.
async fn response(server: SocketAddr, name: &str) -> String {
    let Ok(name) = Name::from_text(name) else { return "cannot be queried".to_owned() };
    match resolve::query(server, &name, RecordType::A).await {
        Err(error) => format!("does not respond: {error:#}"),
        Ok(response) => {
            let code = rcode_name(response.metadata.response_code.into());
            let reason = extended_error(&response).map(|reason| format!(", {reason}"));
            format!("responds {code}{}", reason.unwrap_or_default())
        }
    }
}
