//! The `hosts` line of nsswitch.conf (nsswitch.conf(5)).
//!
//! The line tells glibc which services look up a name. musl, and programs with a resolver of their
//! own, do not read the file.

use std::fmt::Write;

/// The path of the file.
pub(super) const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";

/// The services that look up host names, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostsLine {
    /// The services.
    pub services: Vec<NssService>,
}

/// A service, such as `dns`, with its actions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NssService {
    /// The name of the service.
    pub name: String,
    /// The actions in brackets after the name: `[!UNAVAIL=return]`.
    pub actions: Vec<NssAction>,
}

/// The action for a status that a service returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NssAction {
    /// Whether the action applies to every status except this one.
    pub not: bool,
    /// The status in capitals: `SUCCESS`, `NOTFOUND`, `UNAVAIL` or `TRYAGAIN`.
    pub status: String,
    /// `return`, `continue` or `merge`.
    pub act: String,
}

/// Destination of a `hosts` line for a name that the machine's files do not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostsLookup {
    /// The line leads to the name servers of resolv.conf.
    Dns,
    /// The line leads to systemd-resolved, through its own socket.
    Resolve {
        /// Whether the line also names `dns`, for when systemd-resolved does not run.
        dns: bool,
    },
    /// The lookup ends at this service, before it reaches `dns` or `resolve`.
    EndsAt(String),
    /// The line names neither `dns` nor `resolve`.
    NoDns,
}

impl HostsLine {
    /// Finds the `hosts` line in the text of nsswitch.conf; the last one counts.
    ///
    /// Without one, the C library uses `files` and `dns`.
    #[must_use]
    pub fn find(text: &str) -> Option<Self> {
        text.lines().filter_map(hosts_value).next_back().map(Self::parse)
    }

    fn parse(value: &str) -> Self {
        let mut services: Vec<NssService> = Vec::new();
        let mut rest = value.trim_start();
        while !rest.is_empty() {
            if let Some(inside) = rest.strip_prefix('[') {
                let (actions, after) = inside.split_once(']').unwrap_or((inside, ""));
                if let Some(service) = services.last_mut() {
                    service
                        .actions
                        .extend(actions.split_ascii_whitespace().filter_map(NssAction::parse));
                }
                rest = after.trim_start();
            } else {
                let end =
                    rest.find(|c: char| c.is_ascii_whitespace() || c == '[').unwrap_or(rest.len());
                services.push(NssService { name: rest[..end].to_owned(), actions: Vec::new() });
                rest = rest[end..].trim_start();
            }
        }
        Self { services }
    }

    /// Returns where the line leads for a name that the machine's files do not have.
    #[must_use]
    pub fn lookup(&self) -> HostsLookup {
        let dns = self.services.iter().any(|service| service.name == "dns");
        for service in &self.services {
            match service.name.as_str() {
                "dns" => return HostsLookup::Dns,
                "resolve" => return HostsLookup::Resolve { dns },
                _ if service.ends_lookup() => return HostsLookup::EndsAt(service.name.clone()),
                _ => {}
            }
        }
        HostsLookup::NoDns
    }

    /// Returns this line changed to lead to the name servers of resolv.conf.
    ///
    /// The new line has `dns` and no `resolve`, and no action ends the lookup before `dns`.
    #[must_use]
    pub fn with_dns(&self) -> Self {
        let mut services: Vec<NssService> =
            self.services.iter().filter(|service| service.name != "resolve").cloned().collect();
        let dns = services.iter().position(|service| service.name == "dns").unwrap_or_else(|| {
            services.push(NssService { name: "dns".to_owned(), actions: Vec::new() });
            services.len() - 1
        });
        for service in services[..dns].iter_mut().filter(|service| service.ends_lookup()) {
            service.actions.clear();
        }
        Self { services }
    }

    /// Returns the line as text, without a line break.
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut line = "hosts:".to_owned();
        for service in &self.services {
            line.push(' ');
            line.push_str(&service.name);
            if !service.actions.is_empty() {
                let actions = service.actions.iter().map(|action| {
                    let not = if action.not { "!" } else { "" };
                    format!("{not}{}={}", action.status, action.act)
                });
                let _ = write!(line, " [{}]", actions.collect::<Vec<_>>().join(" "));
            }
        }
        line
    }
}

impl NssService {
    /// Returns whether the lookup of a name that this service does not know ends here.
    fn ends_lookup(&self) -> bool {
        // mDNS has only names in `.local`; for others it returns UNAVAIL.
        let unknown = if self.name.starts_with("mdns") { "UNAVAIL" } else { "NOTFOUND" };
        // A later action replaces an earlier one.
        let action =
            self.actions.iter().rev().find(|action| (action.status == unknown) != action.not);
        action.is_some_and(|action| action.act == "return")
    }
}

impl NssAction {
    fn parse(text: &str) -> Option<Self> {
        let (status, act) = text.split_once('=')?;
        let (not, status) =
            status.strip_prefix('!').map_or((false, status), |status| (true, status));
        Some(Self { not, status: status.to_ascii_uppercase(), act: act.to_ascii_lowercase() })
    }
}

/// Changes the `hosts` line of the file's text by [`HostsLine::with_dns`].
///
/// Returns `None` if the text needs no change.
pub(super) fn with_dns(text: &str) -> Option<String> {
    let hosts = HostsLine::find(text)?;
    if hosts.lookup() == HostsLookup::Dns {
        return None;
    }
    let lines = text.lines().map(|line| {
        if hosts_value(line).is_some() { hosts.with_dns().to_line() } else { line.to_owned() }
    });
    Some(lines.map(|line| line + "\n").collect())
}

/// Returns the value of a `hosts:` line, without its comment.
fn hosts_value(line: &str) -> Option<&str> {
    let line = line.split('#').next().unwrap_or_default();
    let (database, value) = line.split_once(':')?;
    (database.trim() == "hosts").then(|| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(value: &str) -> HostsLookup {
        HostsLine::find(&format!("passwd: files\nhosts: {value}\n")).unwrap().lookup()
    }

    #[test]
    fn the_hosts_line_selects_dns_or_nss_resolve_or_neither() {
        assert_eq!(lookup("files dns"), HostsLookup::Dns);
        assert_eq!(lookup("dns [!UNAVAIL=return] files"), HostsLookup::Dns);
        assert_eq!(
            lookup("files mdns4_minimal [NOTFOUND=return] dns myhostname # resolve"),
            HostsLookup::Dns
        );
        assert_eq!(
            lookup("mymachines resolve [!UNAVAIL=return] files myhostname dns"),
            HostsLookup::Resolve { dns: true }
        );
        assert_eq!(lookup("files resolve"), HostsLookup::Resolve { dns: false });
        assert_eq!(lookup("files [NOTFOUND=return] dns"), HostsLookup::EndsAt("files".to_owned()));
        assert_eq!(lookup("files [!SUCCESS=return] dns"), HostsLookup::EndsAt("files".to_owned()));
        assert_eq!(lookup("files[success=return notfound=continue]dns"), HostsLookup::Dns);
        assert_eq!(lookup("mdns4 [UNAVAIL=return] dns"), HostsLookup::EndsAt("mdns4".to_owned()));
        assert_eq!(lookup("files myhostname"), HostsLookup::NoDns);
        assert_eq!(lookup(""), HostsLookup::NoDns);
        assert_eq!(HostsLine::find("passwd: files\n# hosts: dns\n"), None);
    }

    #[test]
    fn a_hosts_line_is_edited_so_that_lookups_reach_dns() {
        let changed = |value: &str| {
            with_dns(&format!("passwd: files # x\nhosts:\t{value}\nnetworks: files")).map(|text| {
                let line = text.lines().nth(1).unwrap().to_owned();
                assert_eq!(text, format!("passwd: files # x\n{line}\nnetworks: files\n"));
                assert_eq!(HostsLine::find(&text).unwrap().lookup(), HostsLookup::Dns, "{line}");
                line
            })
        };
        assert_eq!(changed("files dns"), None);
        let arch = changed("mymachines resolve [!UNAVAIL=return] files myhostname dns").unwrap();
        assert_eq!(arch, "hosts: mymachines files myhostname dns");
        assert_eq!(
            changed("files mdns4_minimal [NOTFOUND=return] resolve").unwrap(),
            "hosts: files mdns4_minimal [NOTFOUND=return] dns"
        );
        assert_eq!(
            changed("files [NOTFOUND=return] dns [!UNAVAIL=return]").unwrap(),
            "hosts: files dns [!UNAVAIL=return]"
        );
        assert_eq!(changed("").unwrap(), "hosts: dns");
        assert_eq!(with_dns("passwd: files\n"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_hosts_line_can_be_edited_to_reach_dns(value in "[ \\[\\]a-z=!#:A-Z]{0,60}") {
            let text = format!("hosts: {value}\n");
            let changed = with_dns(&text).unwrap_or(text);
            let hosts = HostsLine::find(&changed).unwrap();
            proptest::prop_assert_eq!(hosts.lookup(), HostsLookup::Dns);
        }
    }
}
