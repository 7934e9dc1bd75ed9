//! The resolv.conf that `run` shows to one program.

use std::fmt::Write;
use std::net::IpAddr;

use crate::resolv_conf::{Directive, MAX_NAME_SERVERS, ResolvConf};

/// A resolv.conf that names svcdns, derived from the machine's own.
#[derive(Clone, Debug)]
pub struct PrivateResolvConf<'a> {
    /// The address at which svcdns answers on port 53.
    pub server: IpAddr,
    /// Whether the machine's name servers follow, because this one refuses other names.
    pub keep_others: bool,
    /// The domains to append to the search list.
    pub search: &'a [&'a str],
}

impl PrivateResolvConf<'_> {
    /// Returns the text, with the machine's options and sort list.
    ///
    /// The option `rotate` is left out if other name servers follow: with it, every second query
    /// would bypass svcdns.
    #[must_use]
    pub fn to_text(&self, machine: &ResolvConf<'_>) -> String {
        let mut text = "# Made by `svcdns run` for one program; the machine's own file is \
                        unchanged.\n"
            .to_owned();
        let mut add_line = |keyword: &str, words: &[&str]| {
            if !words.is_empty() {
                let _ = writeln!(text, "{keyword} {}", words.join(" "));
            }
        };
        add_line("nameserver", &[&self.server.to_string()]);
        let others: Vec<String> = machine
            .name_servers()
            .filter(|server| self.keep_others && server.address != self.server)
            .map(|server| match server.scope {
                None => server.address.to_string(),
                Some(scope) => format!("{}%{scope}", server.address),
            })
            .take(MAX_NAME_SERVERS - 1)
            .collect();
        for other in &others {
            add_line("nameserver", &[other]);
        }
        let mut search = machine.search().to_vec();
        for domain in self.search {
            if !search.iter().any(|known| known.trim_end_matches('.').eq_ignore_ascii_case(domain))
            {
                search.push(domain);
            }
        }
        add_line("search", &search);
        let options: Vec<&str> =
            machine.options().filter(|option| others.is_empty() || *option != "rotate").collect();
        add_line("options", &options);
        for line in machine.lines.iter().filter(|it| matches!(it.directive, Directive::Other(_))) {
            // These lines were parsed as text, so nothing is lost.
            add_line(String::from_utf8_lossy(line.bytes).trim(), &[""]);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "# by hand\n\
        nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver 192.0.2.3\nnameserver x\n\
        search corp.example\noptions rotate ndots:2\noptions edns0\nsortlist 10.0.0.0\n";

    fn lines(private: &PrivateResolvConf<'_>, machine: &str) -> Vec<String> {
        let text = private.to_text(&ResolvConf::parse(machine.as_bytes()));
        assert!(text.starts_with("# Made by"));
        assert_eq!(ResolvConf::parse(text.as_bytes()).faults().count(), 0);
        text.lines().skip(1).map(|line| line.trim_end().to_owned()).collect()
    }

    #[test]
    fn other_name_servers_are_dropped_or_kept_below_svcdns() {
        let server = IpAddr::from([127, 0, 0, 54]);
        let alone = PrivateResolvConf { server, keep_others: false, search: &[] };
        let kept = ["search corp.example", "options rotate ndots:2 edns0", "sortlist 10.0.0.0"];
        assert_eq!(lines(&alone, MACHINE), [&["nameserver 127.0.0.54"][..], &kept].concat());
        let first = PrivateResolvConf { keep_others: true, search: &["svc"], ..alone };
        assert_eq!(
            lines(&first, MACHINE),
            [
                "nameserver 127.0.0.54",
                "nameserver 192.0.2.1",
                "nameserver fe80::1%eth0",
                "search corp.example svc",
                "options ndots:2 edns0",
                "sortlist 10.0.0.0"
            ]
        );
    }

    #[test]
    fn no_name_server_is_added_twice() {
        let private = PrivateResolvConf {
            server: IpAddr::from([127, 0, 0, 54]),
            keep_others: true,
            search: &["svc"],
        };
        assert_eq!(lines(&private, ""), ["nameserver 127.0.0.54", "search svc"]);
        let machine = "nameserver 127.0.0.54\nsearch SVC. a\noptions rotate";
        assert_eq!(
            lines(&private, machine),
            ["nameserver 127.0.0.54", "search SVC. a", "options rotate"]
        );
    }
}
