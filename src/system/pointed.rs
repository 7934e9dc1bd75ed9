//! A resolv.conf that points at svcdns, made from the machine's own.

use std::fmt::Write;
use std::net::IpAddr;

use crate::resolv_conf::{MAX_NAME_SERVERS, ResolvConf, Directive};

/// What a resolv.conf is to say.
#[derive(Clone, Debug)]
pub struct Pointed<'a> {
    /// The address at which svcdns answers on port 53.
    pub server: IpAddr,
    /// Whether the machine's own name servers stand behind it: for a server that refuses other names.
    pub others: bool,
    /// Domains that the search list gets, behind those it has.
    pub search: &'a [&'a str],
}

impl Pointed<'_> {
    /// The text. Options and sort list stay; `rotate` goes where there is more than one name server, since every second
    /// question would pass svcdns by.
    #[must_use]
    pub fn text(&self, machine: &ResolvConf<'_>) -> String {
        let mut text = "# Made by `svcdns run` for one program; the machine's own file is as it was.\n".to_owned();
        let mut line = |keyword: &str, words: &[&str]| {
            if !words.is_empty() {
                let _ = writeln!(text, "{keyword} {}", words.join(" "));
            }
        };
        line("nameserver", &[&self.server.to_string()]);
        let others: Vec<String> = machine
            .name_servers()
            .filter(|server| self.others && server.address != self.server)
            .map(|server| server.scope.map_or_else(|| server.address.to_string(), |scope| format!("{}%{scope}", server.address)))
            .take(MAX_NAME_SERVERS - 1)
            .collect();
        for other in &others {
            line("nameserver", &[other]);
        }
        let mut search = machine.search().to_vec();
        for domain in self.search {
            if !search.iter().any(|known| known.trim_end_matches('.').eq_ignore_ascii_case(domain)) {
                search.push(domain);
            }
        }
        line("search", &search);
        line("options", &machine.options().filter(|option| others.is_empty() || *option != "rotate").collect::<Vec<_>>());
        for other in machine.lines.iter().filter(|line| matches!(line.directive, Directive::Other(_))) {
            // What is kept was text once: it has been read as text.
            line(String::from_utf8_lossy(other.bytes).trim(), &[""]);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "# by hand\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver 192.0.2.3\nnameserver x\n\
                           search corp.example\noptions rotate ndots:2\noptions edns0\nsortlist 10.0.0.0\n";

    fn lines(pointed: &Pointed<'_>, machine: &str) -> Vec<String> {
        let text = pointed.text(&ResolvConf::parse(machine.as_bytes()));
        assert!(text.starts_with("# Made by"));
        assert_eq!(ResolvConf::parse(text.as_bytes()).faults().count(), 0);
        text.lines().skip(1).map(|line| line.trim_end().to_owned()).collect()
    }

    #[test]
    fn one_name_server_or_three() {
        let server = IpAddr::from([127, 0, 0, 54]);
        let alone = Pointed { server, others: false, search: &[] };
        let kept = ["search corp.example", "options rotate ndots:2 edns0", "sortlist 10.0.0.0"];
        assert_eq!(lines(&alone, MACHINE), [&["nameserver 127.0.0.54"][..], &kept].concat());
        let first = Pointed { others: true, search: &["svc"], ..alone };
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
    fn a_machine_without_one_and_one_that_points_here() {
        let pointed = Pointed { server: IpAddr::from([127, 0, 0, 54]), others: true, search: &["svc"] };
        assert_eq!(lines(&pointed, ""), ["nameserver 127.0.0.54", "search svc"]);
        let machine = "nameserver 127.0.0.54\nsearch SVC. a\noptions rotate";
        assert_eq!(lines(&pointed, machine), ["nameserver 127.0.0.54", "search SVC. a", "options rotate"]);
    }
}
