//! The `hosts` line of nsswitch.conf: whom programs that use the C library ask for a name (nsswitch.conf(5)).
//!
//! musl has no such file, nor have programs that resolve by themselves.

use std::fmt::Write;

/// Where the file is.
pub(super) const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";

/// The services asked for host names, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    /// The services.
    pub services: Vec<Service>,
}

/// One service, such as `dns`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// What follows from its results, as written: `[!UNAVAIL=return]`.
    pub actions: Vec<Action>,
}

/// What follows from one result of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Whether it is for every result but the one named.
    pub not: bool,
    /// The result in capitals: `SUCCESS`, `NOTFOUND`, `UNAVAIL`, `TRYAGAIN`.
    pub status: String,
    /// `return`, `continue` or `merge`.
    pub act: String,
}

/// Who answers for a name of a zone that the machine's files do not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The name servers of resolv.conf.
    Dns,
    /// systemd-resolved, through its own socket; `dns` says whether the name servers are asked where it does not run.
    Resolve {
        /// Whether `dns` follows.
        dns: bool,
    },
    /// Nobody: this service's answer, that it does not know the name, is the last.
    Stopped(String),
    /// Nobody: neither `dns` nor `resolve` is in the line.
    Nobody,
}

impl Hosts {
    /// The `hosts` line of the file; none where it has none, and the C library asks `files` and `dns`.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        text.lines().filter_map(rest_of_line).next_back().map(Self::parse)
    }

    fn parse(rest: &str) -> Self {
        let mut services: Vec<Service> = Vec::new();
        let mut rest = rest.trim_start();
        while !rest.is_empty() {
            if let Some(inside) = rest.strip_prefix('[') {
                let (actions, after) = inside.split_once(']').unwrap_or((inside, ""));
                if let Some(service) = services.last_mut() {
                    service.actions.extend(actions.split_ascii_whitespace().filter_map(Action::parse));
                }
                rest = after.trim_start();
            } else {
                let end = rest.find(|c: char| c.is_ascii_whitespace() || c == '[').unwrap_or(rest.len());
                services.push(Service { name: rest[..end].to_owned(), actions: Vec::new() });
                rest = rest[end..].trim_start();
            }
        }
        Self { services }
    }

    /// Who answers for a name that the machine's own files do not hold.
    #[must_use]
    pub fn asked(&self) -> Asked {
        let dns = self.services.iter().any(|service| service.name == "dns");
        for service in &self.services {
            match service.name.as_str() {
                "dns" => return Asked::Dns,
                "resolve" => return Asked::Resolve { dns },
                _ if service.stops() => return Asked::Stopped(service.name.clone()),
                _ => {}
            }
        }
        Asked::Nobody
    }

    /// The same line for a program that is to ask the name servers of resolv.conf: without `resolve`, with `dns`, and
    /// without what would end the search in front of it.
    #[must_use]
    pub fn by_dns(&self) -> Self {
        let mut services: Vec<Service> = self.services.iter().filter(|service| service.name != "resolve").cloned().collect();
        let at = services.iter().position(|service| service.name == "dns").unwrap_or_else(|| {
            services.push(Service { name: "dns".to_owned(), actions: Vec::new() });
            services.len() - 1
        });
        for service in services[..at].iter_mut().filter(|service| service.stops()) {
            service.actions.clear();
        }
        Self { services }
    }

    /// As it stands in the file.
    #[must_use]
    pub fn line(&self) -> String {
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

impl Service {
    /// Whether it ends the search for a name it does not know. mDNS knows only names in `.local`; for others it counts as
    /// not there, and not as one that does not know.
    fn stops(&self) -> bool {
        let unknown = if self.name.starts_with("mdns") { "UNAVAIL" } else { "NOTFOUND" };
        // Later actions replace earlier ones.
        let action = self.actions.iter().rev().find(|action| (action.status == unknown) != action.not);
        action.is_some_and(|action| action.act == "return")
    }
}

impl Action {
    fn parse(text: &str) -> Option<Self> {
        let (status, act) = text.split_once('=')?;
        let (not, status) = status.strip_prefix('!').map_or((false, status), |status| (true, status));
        Some(Self { not, status: status.to_ascii_uppercase(), act: act.to_ascii_lowercase() })
    }
}

/// The whole file, its `hosts` line made [`Hosts::by_dns`]; none where nothing is to be changed.
pub(super) fn by_dns(text: &str) -> Option<String> {
    let hosts = Hosts::of(text)?;
    if hosts.asked() == Asked::Dns {
        return None;
    }
    let lines = text.lines().map(|line| if rest_of_line(line).is_some() { hosts.by_dns().line() } else { line.to_owned() });
    Some(lines.map(|line| line + "\n").collect())
}

/// What follows `hosts:` in a line, comments apart.
fn rest_of_line(line: &str) -> Option<&str> {
    let line = line.split('#').next().unwrap_or_default();
    let (database, rest) = line.split_once(':')?;
    (database.trim() == "hosts").then(|| rest.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(rest: &str) -> Asked {
        Hosts::of(&format!("passwd: files\nhosts: {rest}\n")).unwrap().asked()
    }

    #[test]
    fn who_is_asked() {
        assert_eq!(asked("files dns"), Asked::Dns);
        assert_eq!(asked("dns [!UNAVAIL=return] files"), Asked::Dns);
        assert_eq!(asked("files mdns4_minimal [NOTFOUND=return] dns myhostname # resolve"), Asked::Dns);
        assert_eq!(asked("mymachines resolve [!UNAVAIL=return] files myhostname dns"), Asked::Resolve { dns: true });
        assert_eq!(asked("files resolve"), Asked::Resolve { dns: false });
        assert_eq!(asked("files [NOTFOUND=return] dns"), Asked::Stopped("files".to_owned()));
        assert_eq!(asked("files [!SUCCESS=return] dns"), Asked::Stopped("files".to_owned()));
        assert_eq!(asked("files[success=return notfound=continue]dns"), Asked::Dns);
        assert_eq!(asked("mdns4 [UNAVAIL=return] dns"), Asked::Stopped("mdns4".to_owned()));
        assert_eq!(asked("files myhostname"), Asked::Nobody);
        assert_eq!(asked(""), Asked::Nobody);
        assert_eq!(Hosts::of("passwd: files\n# hosts: dns\n"), None);
    }

    #[test]
    fn a_line_that_leads_to_the_name_servers() {
        let made = |rest: &str| {
            by_dns(&format!("passwd: files # x\nhosts:\t{rest}\nnetworks: files")).map(|text| {
                let line = text.lines().nth(1).unwrap().to_owned();
                assert_eq!(text, format!("passwd: files # x\n{line}\nnetworks: files\n"));
                assert_eq!(Hosts::of(&text).unwrap().asked(), Asked::Dns, "{line}");
                line
            })
        };
        assert_eq!(made("files dns"), None);
        let arch = made("mymachines resolve [!UNAVAIL=return] files myhostname dns").unwrap();
        assert_eq!(arch, "hosts: mymachines files myhostname dns");
        assert_eq!(made("files mdns4_minimal [NOTFOUND=return] resolve").unwrap(), "hosts: files mdns4_minimal [NOTFOUND=return] dns");
        assert_eq!(made("files [NOTFOUND=return] dns [!UNAVAIL=return]").unwrap(), "hosts: files dns [!UNAVAIL=return]");
        assert_eq!(made("").unwrap(), "hosts: dns");
        assert_eq!(by_dns("passwd: files\n"), None);
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_there_a_line_is_made(rest in "[ \\[\\]a-z=!#:A-Z]{0,60}") {
            let text = format!("hosts: {rest}\n");
            let made = by_dns(&text).unwrap_or(text);
            proptest::prop_assert_eq!(Hosts::of(&made).unwrap().asked(), Asked::Dns);
        }
    }
}
