//! The routes of systemd-resolved: which servers it queries for which domain.

use std::time::Duration;

use super::Root;
use super::command;

/// Directories of negative trust anchors (dnssec-trust-anchors.d(5)).
const TRUST_ANCHOR_FOLDERS: [&str; 3] = [
    "/etc/dnssec-trust-anchors.d",
    "/run/dnssec-trust-anchors.d",
    "/usr/lib/dnssec-trust-anchors.d",
];

/// Maximum run time of `resolvectl`.
const RESOLVECTL_TIMEOUT: Duration = Duration::from_secs(10);

/// The routes of systemd-resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedRoutes {
    /// The global settings, then the settings of each link.
    pub scopes: Vec<ResolvedScope>,
}

/// The global settings of systemd-resolved, or the settings of one link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedScope {
    /// `Global`, or a link such as `Link 2 (eth0)`.
    pub name: String,
    /// The servers.
    pub servers: Vec<String>,
    /// The domains: `~svc` is only routed, `svc` is also on the search list.
    pub domains: Vec<String>,
    /// The DNSSEC mode: `yes`, `no` or `allow-downgrade`; empty if unknown.
    pub dnssec: String,
}

impl ResolvedRoutes {
    /// Reads the routes with `resolvectl`; returns none if it is missing or fails.
    pub fn now() -> Self {
        let output = |verb: &str| {
            let command = command::words(&["resolvectl", "--no-pager", verb]);
            command::run_within(&command, RESOLVECTL_TIMEOUT).unwrap_or_default()
        };
        Self::parse(&output("dns"), &output("domain"), &output("dnssec"))
    }

    /// Parses the output of `resolvectl` with `dns`, `domain` and `dnssec`.
    fn parse(dns: &str, domain: &str, dnssec: &str) -> Self {
        let mut routes = Self::default();
        for (name, values) in rows(dns) {
            routes.scope(name).servers.extend(values.split_whitespace().map(str::to_owned));
        }
        for (name, values) in rows(domain) {
            routes.scope(name).domains.extend(values.split_whitespace().map(str::to_owned));
        }
        for (name, value) in rows(dnssec) {
            value.clone_into(&mut routes.scope(name).dnssec);
        }
        routes
    }

    /// Returns the scope with this name; adds it if there is none.
    fn scope(&mut self, name: &str) -> &mut ResolvedScope {
        let at = self.scopes.iter().position(|scope| scope.name == name).unwrap_or_else(|| {
            self.scopes.push(ResolvedScope { name: name.to_owned(), ..ResolvedScope::default() });
            self.scopes.len() - 1
        });
        &mut self.scopes[at]
    }

    /// Returns the scopes that receive queries for a zone.
    ///
    /// Such scopes have the longest matching domain; the root (`~.`) matches every zone.
    pub fn for_zone(&self, zone: &str) -> Vec<&ResolvedScope> {
        let longest = self.scopes.iter().filter_map(|scope| scope.longest_match(zone)).max();
        self.scopes
            .iter()
            .filter(|scope| longest.is_some() && scope.longest_match(zone) == longest)
            .collect()
    }
}

impl ResolvedScope {
    /// Returns the length in bytes of the longest domain that contains the zone.
    fn longest_match(&self, zone: &str) -> Option<usize> {
        let zone = zone.trim_end_matches('.').to_ascii_lowercase();
        let domains = self.domains.iter().map(|domain| {
            domain.trim_start_matches('~').trim_end_matches('.').to_ascii_lowercase()
        });
        let matching = domains.filter(|domain| {
            domain.is_empty() || zone == *domain || zone.ends_with(&format!(".{domain}"))
        });
        matching.map(|domain| domain.len()).max()
    }

    /// Returns whether a domain other than the root contains the zone.
    pub fn names(&self, zone: &str) -> bool {
        self.longest_match(zone).is_some_and(|bytes| bytes > 0)
    }
}

/// Returns whether a file of the machine exempts a zone from validation.
pub(super) fn is_exempt(root: &Root, zone: &str) -> bool {
    let files = TRUST_ANCHOR_FOLDERS.iter().flat_map(|folder| root.files(folder, ".negative"));
    let texts: Vec<String> = files.filter_map(|file| root.text(file)).collect();
    let anchors = texts
        .iter()
        .flat_map(|text| text.lines())
        .flat_map(|line| line.split([';', '#']).next().unwrap_or_default().split_whitespace());
    let zone = zone.trim_end_matches('.').to_ascii_lowercase();
    anchors
        .map(|anchor| anchor.trim_end_matches('.').to_ascii_lowercase())
        .any(|anchor| zone == anchor || zone.ends_with(&format!(".{anchor}")))
}

/// Splits output of `resolvectl` into the scope's name and the values of each line.
///
/// A line such as `Link 2 (eth0): 192.0.2.1 2001:db8::1` names the scope; one without a name
/// continues the scope above it.
fn rows(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut current = None;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        match line
            .split_once(':')
            .filter(|(name, _)| *name == "Global" || name.starts_with("Link "))
        {
            Some((name, values)) => {
                current = Some(name);
                Some((name, values.trim()))
            }
            None => Some((current?, line)),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_output_of_resolvectl_is_parsed() {
        let routes = ResolvedRoutes::parse(
            "Global: 127.0.0.54\nLink 2 (eth0): 192.0.2.1\n               2001:db8::1\n\
             Link 3 (tun0):\n",
            "Global: ~svc\nLink 2 (eth0): ~. corp.example\nLink 3 (tun0):\n",
            "Global: yes\nLink 2 (eth0): allow-downgrade\nLink 3 (tun0): no\n",
        );
        assert_eq!(routes.scopes.len(), 3);
        assert_eq!(routes.scopes[1].servers, ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(routes.scopes[1].dnssec, "allow-downgrade");
        let names = |zone: &str| {
            routes.for_zone(zone).iter().map(|scope| scope.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(names("svc."), ["Global"]);
        assert_eq!(names("a.SVC"), ["Global"]);
        assert_eq!(names("xsvc"), ["Link 2 (eth0)"]);
        assert!(
            routes.scopes[0].names("svc")
                && !routes.scopes[1].names("svc")
                && !routes.scopes[2].names("svc")
        );
        let junk = ResolvedRoutes::parse("", "junk\n: :\n", "");
        assert!(junk.for_zone("svc").is_empty());
    }

    #[test]
    fn negative_trust_anchors_exempt_zones_from_validation() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        assert!(!is_exempt(&root, "svc"));
        let anchors = root.path(TRUST_ANCHOR_FOLDERS[0]);
        fs::create_dir_all(&anchors).unwrap();
        fs::write(anchors.join("x.positive"), "svc").unwrap();
        assert!(!is_exempt(&root, "svc"));
        fs::write(anchors.join("x.negative"), "; ours\nexample SVC. ; here\n").unwrap();
        assert!(is_exempt(&root, "svc") && is_exempt(&root, "a.svc.") && !is_exempt(&root, "xsvc"));
    }
}
