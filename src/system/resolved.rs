//! Where systemd-resolved sends questions, as its own client tells it.

use std::time::Duration;

use super::Root;
use super::command;

/// Where files are in which an administrator names zones that are not to be validated (dnssec-trust-anchors.d(5)).
const TRUST_ANCHORS: [&str; 3] = ["/etc/dnssec-trust-anchors.d", "/run/dnssec-trust-anchors.d", "/usr/lib/dnssec-trust-anchors.d"];

/// How long its client may take.
const CLIENT: Duration = Duration::from_secs(10);

/// Where systemd-resolved sends questions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Its settings: first for the whole machine, then for each link.
    pub scopes: Vec<Scope>,
}

/// The settings of the whole machine or of one link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// `Global`, `Link 2 (eth0)`.
    pub name: String,
    /// The servers that are asked.
    pub servers: Vec<String>,
    /// Domains: `~svc` sends that domain here, `svc` does and is searched for short names, too.
    pub domains: Vec<String>,
    /// Whether answers are validated: `yes`, `no`, `allow-downgrade`; empty where it does not say.
    pub dnssec: String,
}

impl Routes {
    /// Asks systemd-resolved by its client; empty where that is not there or gets no answer.
    pub fn now() -> Self {
        let said = |what: &str| command::run_within(&command::line(["resolvectl", "--no-pager", what]), CLIENT).unwrap_or_default();
        Self::read(&said("dns"), &said("domain"), &said("dnssec"))
    }

    /// Reads what `resolvectl dns`, `resolvectl domain` and `resolvectl dnssec` print.
    fn read(dns: &str, domain: &str, dnssec: &str) -> Self {
        let mut routes = Self::default();
        for (name, rest) in rows(dns) {
            routes.scope(name).servers.extend(rest.split_whitespace().map(str::to_owned));
        }
        for (name, rest) in rows(domain) {
            routes.scope(name).domains.extend(rest.split_whitespace().map(str::to_owned));
        }
        for (name, rest) in rows(dnssec) {
            rest.clone_into(&mut routes.scope(name).dnssec);
        }
        routes
    }

    fn scope(&mut self, name: &str) -> &mut Scope {
        let at = self.scopes.iter().position(|scope| scope.name == name).unwrap_or_else(|| {
            self.scopes.push(Scope { name: name.to_owned(), ..Scope::default() });
            self.scopes.len() - 1
        });
        &mut self.scopes[at]
    }

    /// The scopes to which questions for a zone go: those with the longest matching domain, the root's (`~.`) included.
    pub fn of(&self, zone: &str) -> Vec<&Scope> {
        let longest = self.scopes.iter().filter_map(|scope| scope.matches(zone)).max();
        self.scopes.iter().filter(|scope| longest.is_some() && scope.matches(zone) == longest).collect()
    }
}

impl Scope {
    /// How many octets of the zone's name the longest domain has that it lies in.
    fn matches(&self, zone: &str) -> Option<usize> {
        let zone = zone.trim_end_matches('.').to_ascii_lowercase();
        let domains = self.domains.iter().map(|domain| domain.trim_start_matches('~').trim_end_matches('.').to_ascii_lowercase());
        let matching = domains.filter(|domain| domain.is_empty() || zone == *domain || zone.ends_with(&format!(".{domain}")));
        matching.map(|domain| domain.len()).max()
    }

    /// Whether this scope was given that very zone, and not merely everything.
    pub fn names(&self, zone: &str) -> bool {
        self.matches(zone).is_some_and(|octets| octets > 0)
    }
}

/// The files that name zones which are not validated, below a root: whether this zone is among them.
pub(super) fn is_exempt(root: &Root, zone: &str) -> bool {
    let files = TRUST_ANCHORS.iter().flat_map(|folder| root.files(folder, ".negative"));
    let texts: Vec<String> = files.filter_map(|file| root.text(file)).collect();
    let words =
        texts.iter().flat_map(|text| text.lines()).flat_map(|line| line.split([';', '#']).next().unwrap_or_default().split_whitespace());
    let zone = zone.trim_end_matches('.').to_ascii_lowercase();
    words.map(|word| word.trim_end_matches('.').to_ascii_lowercase()).any(|anchor| zone == anchor || zone.ends_with(&format!(".{anchor}")))
}

/// `Link 2 (eth0): 192.0.2.1 2001:db8::1` by its scope; lines without one go on with the scope before.
fn rows(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut current = None;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        match line.split_once(':').filter(|(name, _)| *name == "Global" || name.starts_with("Link ")) {
            Some((name, rest)) => {
                current = Some(name);
                Some((name, rest.trim()))
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
    fn what_resolvectl_prints() {
        let routes = Routes::read(
            "Global: 127.0.0.54\nLink 2 (eth0): 192.0.2.1\n               2001:db8::1\nLink 3 (tun0):\n",
            "Global: ~svc\nLink 2 (eth0): ~. corp.example\nLink 3 (tun0):\n",
            "Global: yes\nLink 2 (eth0): allow-downgrade\nLink 3 (tun0): no\n",
        );
        assert_eq!(routes.scopes.len(), 3);
        assert_eq!(routes.scopes[1].servers, ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(routes.scopes[1].dnssec, "allow-downgrade");
        let names = |zone: &str| routes.of(zone).iter().map(|scope| scope.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names("svc."), ["Global"]);
        assert_eq!(names("a.SVC"), ["Global"]);
        assert_eq!(names("xsvc"), ["Link 2 (eth0)"]);
        assert!(routes.scopes[0].names("svc") && !routes.scopes[1].names("svc") && !routes.scopes[2].names("svc"));
        assert_eq!(Routes::read("", "junk\n: :\n", "").of("svc"), [] as [&Scope; 0]);
    }

    #[test]
    fn zones_that_are_not_validated() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        assert!(!is_exempt(&root, "svc"));
        let anchors = root.path(TRUST_ANCHORS[0]);
        fs::create_dir_all(&anchors).unwrap();
        fs::write(anchors.join("x.positive"), "svc").unwrap();
        assert!(!is_exempt(&root, "svc"));
        fs::write(anchors.join("x.negative"), "; ours\nexample SVC. ; here\n").unwrap();
        assert!(is_exempt(&root, "svc") && is_exempt(&root, "a.svc.") && !is_exempt(&root, "xsvc"));
    }
}
