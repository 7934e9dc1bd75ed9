//! Our lines in a resolv.conf that others wrote: put in, and taken out again.
//!
//! What we put in stands between two marks, and what it replaces stays in the file behind [`KEPT`]. So the file alone is
//! enough to undo it, whatever somebody has changed around it since.

use std::fmt::Write;
use std::net::IpAddr;

use crate::resolv_conf::{Line, ResolvConf, Directive};

/// The line in front of ours.
const BEGIN: &str = "# svcdns: `svcdns uninstall` removes the lines up to \"svcdns end\" and uncomments those behind #svcdns#\n";

/// The line behind ours.
const END: &str = "# svcdns end\n";

/// What a line of the file stands behind while ours count instead.
const KEPT: &[u8] = b"#svcdns# ";

/// What the file should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted<'a> {
    /// Our address.
    pub(super) server: IpAddr,
    /// Zones to put in front of the search list.
    pub(super) search: &'a [String],
    /// Whether the other name servers go on counting, behind ours.
    pub(super) keep_others: bool,
}

/// The file with our lines in it; the same octets where it says all that already. Lines of ours that it has are replaced.
pub(super) fn put_in(file: &[u8], wanted: &Wanted) -> Vec<u8> {
    let clean = take_out(file);
    let conf = ResolvConf::parse(&clean);
    if says_all(&conf, wanted) {
        return clean;
    }
    let replaced = |line: &Line| match &line.directive {
        Directive::NameServer(server) => !wanted.keep_others || server.address == wanted.server,
        Directive::Search(_) => !wanted.search.is_empty(),
        _ => false,
    };
    let ours = ours(&conf, wanted);
    // In front of the first line that is replaced or comes behind ours, so that comments above keep their place.
    let place = conf.lines.iter().position(|line| matches!(line.directive, Directive::NameServer(_)) || replaced(line));
    let mut octets = Vec::with_capacity(clean.len() + ours.len() + 64);
    for (at, line) in conf.lines.iter().enumerate() {
        if Some(at) == place {
            octets.extend_from_slice(ours.as_bytes());
        }
        if replaced(line) {
            octets.extend_from_slice(KEPT);
        }
        octets.extend_from_slice(line.bytes);
    }
    if place.is_none() {
        if octets.last().is_some_and(|octet| *octet != b'\n') {
            octets.push(b'\n');
        }
        octets.extend_from_slice(ours.as_bytes());
    }
    octets
}

fn says_all(conf: &ResolvConf, wanted: &Wanted) -> bool {
    let mut servers = conf.name_servers();
    let servers_do = servers.next().is_some_and(|first| first.address == wanted.server) && (wanted.keep_others || servers.next().is_none());
    servers_do && wanted.search.iter().all(|zone| conf.search().iter().any(|domain| domain.trim_end_matches('.') == zone))
}

fn ours(conf: &ResolvConf, wanted: &Wanted) -> String {
    let mut ours = format!("{BEGIN}nameserver {}\n", wanted.server);
    if !wanted.search.is_empty() {
        let own = |domain: &&&str| !wanted.search.iter().any(|zone| zone == domain.trim_end_matches('.'));
        let rest: Vec<&str> = conf.search().iter().filter(own).copied().collect();
        let list: Vec<&str> = wanted.search.iter().map(String::as_str).chain(rest).collect();
        let _ = writeln!(ours, "search {}", list.join(" "));
    }
    ours.push_str(END);
    ours
}

/// Whether the file holds anything of ours.
pub(super) fn has_ours(file: &[u8]) -> bool {
    file.split_inclusive(|octet| *octet == b'\n').any(|line| line == BEGIN.as_bytes() || line.starts_with(KEPT))
}

/// The file without our lines, and with those that stood behind [`KEPT`]. What others wrote between our marks stays.
pub(super) fn take_out(file: &[u8]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(file.len());
    let mut inside = false;
    for line in file.split_inclusive(|octet| *octet == b'\n') {
        if line == BEGIN.as_bytes() {
            inside = true;
        } else if line.trim_ascii_end() == END.trim_ascii_end().as_bytes() {
            inside = false;
        } else if let Some(kept) = line.strip_prefix(KEPT) {
            // Behind the last line that counts: without its end mark, somebody has removed that.
            inside = false;
            octets.extend_from_slice(kept);
        } else if !(inside && (line.starts_with(b"nameserver 127.") || line.starts_with(b"nameserver ::1") || line.starts_with(b"search ")))
        {
            octets.extend_from_slice(line);
        }
    }
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn put(text: &str, search: &[&str], keep_others: bool) -> String {
        let search: Vec<String> = search.iter().map(|&zone| zone.to_owned()).collect();
        let octets = put_in(text.as_bytes(), &Wanted { server: OURS, search: &search, keep_others });
        assert_eq!(take_out(&octets), text.as_bytes(), "{octets:?}");
        String::from_utf8(octets).unwrap()
    }

    /// The lines that count.
    fn counting(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn one_line_and_the_rest_kept_aside() {
        let text = put("# by hand\nsearch corp.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions edns0\n", &[], false);
        assert_eq!(counting(&text), ["search corp.example", "nameserver 127.0.0.1", "options edns0"]);
        assert!(
            text.starts_with("# by hand\nsearch corp.example\n# svcdns: ") && text.contains("#svcdns# nameserver 192.0.2.2\n"),
            "{text}"
        );
    }

    #[test]
    fn ours_first_and_the_others_behind() {
        let text = put("nameserver 192.0.2.1\nnameserver fe80::1%eth0", &[], true);
        assert_eq!(counting(&text), ["nameserver 127.0.0.1", "nameserver 192.0.2.1", "nameserver fe80::1%eth0"]);
    }

    #[test]
    fn zones_in_front_of_the_search_list() {
        let text = put("domain old.example\nsearch corp.example svc.\nnameserver 192.0.2.1\n", &["svc", "test"], false);
        assert_eq!(counting(&text), ["nameserver 127.0.0.1", "search svc test corp.example"]);
        assert_eq!(counting(&put("", &["svc"], false)), ["nameserver 127.0.0.1", "search svc"]);
    }

    #[test]
    fn odd_files() {
        assert_eq!(counting(&put("", &[], false)), ["nameserver 127.0.0.1"]);
        assert_eq!(counting(&put("# only a comment\n", &[], false)), ["nameserver 127.0.0.1"]);
        // Our own address, alone: nothing to do. With others: ours alone.
        assert_eq!(put("nameserver 127.0.0.1\n", &[], false), "nameserver 127.0.0.1\n");
        assert_eq!(counting(&put("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", &[], false)), ["nameserver 127.0.0.1"]);
        let twenty: String = (1..=20).fold(String::new(), |text, n| format!("{text}nameserver 192.0.2.{n}\n"));
        assert_eq!(counting(&put(&twenty, &[], false)), ["nameserver 127.0.0.1"]);
        // Text that is no text stays.
        let raw = put_in(b"\xFF\xFE\nnameserver 192.0.2.1\r\n", &Wanted { server: OURS, search: &[], keep_others: false });
        assert_eq!(take_out(&raw), b"\xFF\xFE\nnameserver 192.0.2.1\r\n");
        // A second time changes nothing.
        let once = put("nameserver 192.0.2.1\n", &["svc"], false);
        let wanted = Wanted { server: OURS, search: &["svc".to_owned()], keep_others: false };
        assert_eq!(put_in(once.as_bytes(), &wanted), once.as_bytes());
    }

    #[test]
    fn edits_by_others_stay() {
        let text = put("nameserver 192.0.2.1\nsearch a.example\n", &["svc"], false);
        let edited = format!("# mine\n{}options rotate\n", text.replace("# svcdns end\n", "nameserver 192.0.2.9\n# svcdns end\n"));
        assert!(has_ours(edited.as_bytes()));
        let out = take_out(edited.as_bytes());
        assert_eq!(out, b"# mine\nnameserver 192.0.2.9\nnameserver 192.0.2.1\nsearch a.example\noptions rotate\n");
        assert!(!has_ours(&out));
        // The end mark is gone.
        let edited = text.replace("# svcdns end\n", "");
        assert_eq!(take_out(edited.as_bytes()), b"nameserver 192.0.2.1\nsearch a.example\n");
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_file_it_comes_back(
            lines in proptest::collection::vec("(nameserver (192\\.0\\.2\\.[1-9]|127\\.0\\.0\\.1|fe80::1%eth0|x)|search [a-c. ]{0,9}|domain b|options x|#[a-z ]{0,5}|[ -~]{0,9})", 0..12),
            end in proptest::bool::ANY, search in proptest::bool::ANY, keep_others in proptest::bool::ANY,
        ) {
            let mut text = lines.join("\n");
            // A last line that is not ended gets an end where ours comes behind it.
            if end || !text.contains("nameserver") { text.push('\n'); }
            let zones = if search { vec!["svc".to_owned()] } else { Vec::new() };
            let wanted = Wanted { server: OURS, search: &zones, keep_others };
            let put = put_in(text.as_bytes(), &wanted);
            let conf = ResolvConf::parse(&put);
            proptest::prop_assert_eq!(conf.name_servers().next().map(|server| server.address), Some(OURS));
            let back = take_out(&put);
            proptest::prop_assert_eq!(back.trim_ascii_end(), text.as_bytes().trim_ascii_end());
        }
    }
}
