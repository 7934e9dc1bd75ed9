//! Who is asked for which name.

use std::sync::Arc;

use hashbrown::HashMap;

use super::exchange::Upstream;
use super::special::{self, Answer, Special};
use crate::name::Name;
use crate::wire::ExtendedError;

/// Where a question goes.
#[derive(Clone, Debug)]
pub(super) enum Route {
    /// It is answered here.
    Here(Answer),
    /// To these upstreams, never none.
    Ask(Arc<[Arc<Upstream>]>),
    /// Nowhere, for this reason: SERVFAIL.
    Nobody(ExtendedError),
}

/// The upstreams in force. Never changed: new ones take its place as a whole.
#[derive(Debug)]
pub(super) struct Routes {
    /// Every domain that something is known of, by its octets.
    suffixes: HashMap<Box<[u8]>, Suffix, foldhash::quality::RandomState>,
    /// Who is asked for all other names.
    servers: Arc<[Arc<Upstream>]>,
    /// Those of them in private address space.
    private: Arc<[Arc<Upstream>]>,
    /// Whether programs of this machine ask us.
    asked_by_system: bool,
}

/// What is known of a domain.
#[derive(Debug, Default)]
struct Suffix {
    special: Option<Special>,
    upstreams: Option<Arc<[Arc<Upstream>]>>,
}

const NO_UPSTREAM: ExtendedError =
    ExtendedError { code: ExtendedError::NO_REACHABLE_AUTHORITY, text: "no upstream is known: see the log of svcdns" };
const LOOP: ExtendedError =
    ExtendedError { code: ExtendedError::NO_REACHABLE_AUTHORITY, text: "loop: every upstream leads back to svcdns" };

impl Routes {
    /// Routes to `servers`, and to those of `domains`. With `asked_by_system`, programs of this machine ask us.
    pub(super) fn new(servers: Vec<Arc<Upstream>>, domains: Vec<(Name, Vec<Arc<Upstream>>)>, asked_by_system: bool) -> Self {
        let mut suffixes = HashMap::<Box<[u8]>, Suffix, _>::default();
        for (zone, special) in special::all() {
            suffixes.entry(zone.as_wire().into()).or_default().special = Some(special);
        }
        for (domain, upstreams) in domains {
            suffixes.entry(domain.as_wire().into()).or_default().upstreams = Some(upstreams.into());
        }
        let private = servers.iter().filter(|upstream| upstream.is_private()).cloned().collect();
        Self { suffixes, servers: servers.into(), private, asked_by_system }
    }

    /// Where a question for `name` goes: the longest domain with upstreams of its own decides, by labels.
    pub(super) fn find(&self, name: &Name) -> Route {
        let octets = name.as_wire();
        let (mut special, mut domain) = (None, None);
        let mut front = 0;
        while octets[front] != 0 {
            if let Some(suffix) = self.suffixes.get(&octets[front..]) {
                special = special.or_else(|| suffix.special.map(|special| Answer { special, front }));
                domain = domain.or(suffix.upstreams.as_ref());
            }
            front += 1 + usize::from(octets[front]);
        }
        match (special, domain) {
            (Some(answer), _) if answer.special.is_fixed() => Route::Here(answer),
            (_, Some(upstreams)) => ask(upstreams),
            (Some(Answer { special: Special::Canary, .. }), None) if !self.asked_by_system => ask(&self.servers),
            (Some(Answer { special: Special::Private, .. }), None) if !self.private.is_empty() => ask(&self.private),
            (Some(answer), None) => Route::Here(answer),
            (None, None) => ask(&self.servers),
        }
    }

    /// Every upstream, each once.
    pub(super) fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let domains = self.suffixes.values().filter_map(|suffix| suffix.upstreams.as_ref());
        let mut upstreams = Vec::<Arc<Upstream>>::new();
        for upstream in [&self.servers].into_iter().chain(domains).flat_map(|upstreams| upstreams.iter()) {
            if !upstreams.iter().any(|known| Arc::ptr_eq(known, upstream)) {
                upstreams.push(Arc::clone(upstream));
            }
        }
        upstreams
    }

    /// Where a question for `name` goes, for people.
    pub(super) fn describe(&self, name: &Name) -> String {
        match self.find(name) {
            Route::Here(answer) => format!("answered here, as a name that no upstream in reach can know: {:?}", answer.special),
            Route::Nobody(error) => format!("nobody can be asked: {}", error.text),
            Route::Ask(upstreams) => {
                let upstreams: Vec<_> = upstreams.iter().map(|upstream| upstream.target().to_string()).collect();
                format!("asked elsewhere: {}", upstreams.join(", "))
            }
        }
    }
}

fn ask(upstreams: &Arc<[Arc<Upstream>]>) -> Route {
    if upstreams.is_empty() {
        Route::Nobody(NO_UPSTREAM)
    } else if upstreams.iter().all(|upstream| upstream.is_set_aside()) {
        Route::Nobody(LOOP)
    } else {
        Route::Ask(Arc::clone(upstreams))
    }
}
