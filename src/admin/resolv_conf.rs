//! The state of the machine's resolv.conf, as JSON.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Whether the machine's resolv.conf still names this server, after `install`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ResolvConfView {
    /// Whether svcdns is the first name server in the file.
    pub in_effect: bool,
    /// The name servers that programs query instead; empty if svcdns is the first.
    pub name_servers: Vec<IpAddr>,
    /// What happened, as a clause; `None` if svcdns is the first name server.
    pub problem: Option<String>,
    /// Time since svcdns noticed that, in seconds.
    pub noticed_ago: Option<u64>,
}

/// The latest known state of resolv.conf; empty unless `install` changed the file.
#[derive(Debug, Default)]
pub struct ResolvConfState {
    known: Mutex<Option<KnownResolvConf>>,
}

/// A state, and the time at which it was first seen.
#[derive(Debug)]
struct KnownResolvConf {
    /// The name servers that replaced svcdns, and a description; `None` if svcdns is the first.
    lost: Option<(Vec<IpAddr>, String)>,
    since: Instant,
}

impl ResolvConfState {
    /// Records that `install` did not change the file, or changed it for another server.
    pub fn clear(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Sets the name servers that programs query instead of svcdns, with a description.
    ///
    /// `None` means that svcdns is the first name server.
    pub fn set(&self, lost: Option<(Vec<IpAddr>, String)>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |before: &KnownResolvConf| before.lost.is_some() == lost.is_some();
        let since = known.as_ref().filter(|before| is_known(before)).map(|before| before.since);
        *known = Some(KnownResolvConf { lost, since: since.unwrap_or_else(Instant::now) });
    }

    /// Returns the view of the current state, if it is known.
    pub(super) fn view(&self) -> Option<ResolvConfView> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let KnownResolvConf { lost, since } = known.as_ref()?;
        let (name_servers, problem) = lost.clone().unzip();
        Some(ResolvConfView {
            in_effect: problem.is_none(),
            name_servers: name_servers.unwrap_or_default(),
            noticed_ago: problem.is_some().then(|| since.elapsed().as_secs()),
            problem,
        })
    }
}
