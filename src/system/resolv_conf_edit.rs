//! Adds svcdns's lines to a resolv.conf that another program or person wrote, and removes them.
//!
//! Our lines are between two marker lines. The lines that they replace stay in the file as
//! comments with the prefix [`REPLACED_LINE_MARK`]. The file alone is therefore enough to undo the
//! edit, even after other changes to it.

use std::fmt::Write;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::path_state::PathState;
use crate::resolv_conf::{Directive, Line, REPLACED_LINE_MARK, ResolvConf};

/// The marker line before svcdns's lines; installed machines have this text.
const BEGIN: &str = "# svcdns: `svcdns uninstall` removes the lines up to \"svcdns end\" \
                     and uncomments those behind #svcdns#\n";

/// The marker line after svcdns's lines; installed machines have this text.
const END: &str = "# svcdns end\n";

/// Additions to a resolv.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConfEdit<'a> {
    /// The address of svcdns.
    pub(super) server: IpAddr,
    /// The zones to put first in the search list.
    pub(super) search: &'a [String],
    /// Whether to keep the existing name servers, listed after svcdns.
    pub(super) keep_others: bool,
}

/// The `nameserver` line of an installation with `--keep`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct KeptLine {
    /// The address of svcdns.
    pub server: IpAddr,
    /// The zones in the search list; empty without `--search`.
    pub search: Vec<String>,
    /// Whether the existing name servers are kept, listed after svcdns.
    pub keep_nameservers: bool,
}

impl KeptLine {
    /// Returns the edit that adds the line.
    pub(super) fn edit(&self) -> ResolvConfEdit<'_> {
        ResolvConfEdit {
            server: self.server,
            search: &self.search,
            keep_others: self.keep_nameservers,
        }
    }
}

/// Returns the file with our lines.
///
/// The lines of an earlier edit are replaced. A file that has this effect without svcdns's lines is
/// returned unchanged.
pub(super) fn add_lines(file: &[u8], edit: &ResolvConfEdit) -> Vec<u8> {
    let clean = remove_lines(file);
    let conf = ResolvConf::parse(&clean);
    if is_in_effect(&conf, edit) {
        return clean;
    }
    let is_replaced = |line: &Line| match &line.directive {
        Directive::NameServer(server) => !edit.keep_others || server.address == edit.server,
        Directive::Search(_) => !edit.search.is_empty(),
        _ => false,
    };
    let ours = our_lines(&conf, edit);
    // The lines go directly before the first affected line, so that comments above it stay there.
    let position = conf
        .lines
        .iter()
        .position(|line| matches!(line.directive, Directive::NameServer(_)) || is_replaced(line));
    let mut bytes = Vec::with_capacity(clean.len() + ours.len() + 64);
    for (at, line) in conf.lines.iter().enumerate() {
        if Some(at) == position {
            bytes.extend_from_slice(ours.as_bytes());
        }
        if is_replaced(line) {
            bytes.extend_from_slice(REPLACED_LINE_MARK);
        }
        bytes.extend_from_slice(line.bytes);
    }
    if position.is_none() {
        if bytes.last().is_some_and(|byte| *byte != b'\n') {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(ours.as_bytes());
    }
    bytes
}

/// Returns whether a resolv.conf already has the effect of the edit.
pub(super) fn is_in_effect(conf: &ResolvConf, edit: &ResolvConfEdit) -> bool {
    let mut servers = conf.name_servers();
    let is_queried = servers.next().is_some_and(|first| first.address == edit.server)
        && (edit.keep_others || servers.next().is_none());
    is_queried
        && edit
            .search
            .iter()
            .all(|zone| conf.search().iter().any(|domain| domain.trim_end_matches('.') == zone))
}

/// Returns svcdns's lines with their markers.
fn our_lines(conf: &ResolvConf, edit: &ResolvConfEdit) -> String {
    let mut ours = format!("{BEGIN}nameserver {}\n", edit.server);
    if !edit.search.is_empty() {
        let is_other =
            |domain: &&&str| !edit.search.iter().any(|zone| zone == domain.trim_end_matches('.'));
        let others: Vec<&str> = conf.search().iter().filter(is_other).copied().collect();
        let list: Vec<&str> = edit.search.iter().map(String::as_str).chain(others).collect();
        let _ = writeln!(ours, "search {}", list.join(" "));
    }
    ours.push_str(END);
    ours
}

/// Returns whether the file has a marker line or a line commented out by svcdns.
pub(super) fn has_our_lines(file: &[u8]) -> bool {
    file.split_inclusive(|byte| *byte == b'\n')
        .any(|line| line == BEGIN.as_bytes() || line.starts_with(REPLACED_LINE_MARK))
}

/// Returns the state of a file before our edit, if it has our lines; otherwise the same state.
pub(super) fn original(state: &PathState) -> PathState {
    match state.content() {
        Some(content) if has_our_lines(content) => state.with_content(remove_lines(content)),
        _ => state.clone(),
    }
}

/// Returns the file without svcdns's lines, and with the lines that they replaced.
///
/// Keeps lines between the markers that svcdns did not write.
pub(super) fn remove_lines(file: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(file.len());
    let mut between_markers = false;
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        if line == BEGIN.as_bytes() {
            between_markers = true;
        } else if line.trim_ascii_end() == END.trim_ascii_end().as_bytes() {
            between_markers = false;
        } else if let Some(kept) = line.strip_prefix(REPLACED_LINE_MARK) {
            // A replaced line follows our lines; an edit has removed the end marker.
            between_markers = false;
            bytes.extend_from_slice(kept);
        } else if !(between_markers
            && (line.starts_with(b"nameserver 127.")
                || line.starts_with(b"nameserver ::1")
                || line.starts_with(b"search ")))
        {
            bytes.extend_from_slice(line);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn add(text: &str, search: &[&str], keep_others: bool) -> String {
        let search: Vec<String> = search.iter().map(|&zone| zone.to_owned()).collect();
        let bytes = add_lines(
            text.as_bytes(),
            &ResolvConfEdit { server: OURS, search: &search, keep_others },
        );
        assert_eq!(remove_lines(&bytes), text.as_bytes(), "{bytes:?}");
        String::from_utf8(bytes).unwrap()
    }

    /// Returns the lines that are not comments.
    fn effective(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn existing_name_servers_are_commented_out() {
        let text = add(
            "# by hand\nsearch corp.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n\
             options edns0\n",
            &[],
            false,
        );
        assert_eq!(
            effective(&text),
            ["search corp.example", "nameserver 127.0.0.1", "options edns0"]
        );
        assert!(
            text.starts_with("# by hand\nsearch corp.example\n# svcdns: ")
                && text.contains("#svcdns# nameserver 192.0.2.2\n"),
            "{text}"
        );
    }

    #[test]
    fn existing_name_servers_can_be_kept_below_svcdns() {
        let text = add("nameserver 192.0.2.1\nnameserver fe80::1%eth0", &[], true);
        assert_eq!(
            effective(&text),
            ["nameserver 127.0.0.1", "nameserver 192.0.2.1", "nameserver fe80::1%eth0"]
        );
    }

    #[test]
    fn zones_are_placed_first_in_the_search_list() {
        let text = add(
            "domain old.example\nsearch corp.example svc.\nnameserver 192.0.2.1\n",
            &["svc", "test"],
            false,
        );
        assert_eq!(effective(&text), ["nameserver 127.0.0.1", "search svc test corp.example"]);
        assert_eq!(effective(&add("", &["svc"], false)), ["nameserver 127.0.0.1", "search svc"]);
    }

    #[test]
    fn unusual_files_are_edited_and_restored() {
        assert_eq!(effective(&add("", &[], false)), ["nameserver 127.0.0.1"]);
        assert_eq!(effective(&add("# only a comment\n", &[], false)), ["nameserver 127.0.0.1"]);
        // Our address alone needs no edit; with others, they are commented out.
        assert_eq!(add("nameserver 127.0.0.1\n", &[], false), "nameserver 127.0.0.1\n");
        assert_eq!(
            effective(&add("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", &[], false)),
            ["nameserver 127.0.0.1"]
        );
        let twenty: String =
            (1..=20).fold(String::new(), |text, n| format!("{text}nameserver 192.0.2.{n}\n"));
        assert_eq!(effective(&add(&twenty, &[], false)), ["nameserver 127.0.0.1"]);
        // Invalid UTF-8 is preserved.
        let raw = add_lines(
            b"\xFF\xFE\nnameserver 192.0.2.1\r\n",
            &ResolvConfEdit { server: OURS, search: &[], keep_others: false },
        );
        assert_eq!(remove_lines(&raw), b"\xFF\xFE\nnameserver 192.0.2.1\r\n");
        // A second edit changes nothing.
        let once = add("nameserver 192.0.2.1\n", &["svc"], false);
        let edit = ResolvConfEdit { server: OURS, search: &["svc".to_owned()], keep_others: false };
        assert_eq!(add_lines(once.as_bytes(), &edit), once.as_bytes());
    }

    #[test]
    fn removing_our_lines_keeps_edits_by_others() {
        let text = add("nameserver 192.0.2.1\nsearch a.example\n", &["svc"], false);
        let edited = format!(
            "# mine\n{}options rotate\n",
            text.replace("# svcdns end\n", "nameserver 192.0.2.9\n# svcdns end\n")
        );
        assert!(has_our_lines(edited.as_bytes()));
        let out = remove_lines(edited.as_bytes());
        assert_eq!(
            out,
            b"# mine\nnameserver 192.0.2.9\nnameserver 192.0.2.1\nsearch a.example\n\
              options rotate\n"
        );
        assert!(!has_our_lines(&out));
        // The end marker is missing.
        let edited = text.replace("# svcdns end\n", "");
        assert_eq!(remove_lines(edited.as_bytes()), b"nameserver 192.0.2.1\nsearch a.example\n");
    }

    proptest::proptest! {
        #[test]
        fn removing_our_lines_restores_any_file(
            lines in proptest::collection::vec(
                "(nameserver (192\\.0\\.2\\.[1-9]|127\\.0\\.0\\.1|fe80::1%eth0|x)|\
                  search [a-c. ]{0,9}|domain b|options x|#[a-z ]{0,5}|[ -~]{0,9})",
                0..12,
            ),
            ends_with_newline in proptest::bool::ANY,
            search in proptest::bool::ANY,
            keep_others in proptest::bool::ANY,
        ) {
            let mut text = lines.join("\n");
            // A last line without a line break gets one if svcdns's lines follow it.
            if ends_with_newline || !text.contains("nameserver") {
                text.push('\n');
            }
            let zones = if search { vec!["svc".to_owned()] } else { Vec::new() };
            let edit = ResolvConfEdit { server: OURS, search: &zones, keep_others };
            let edited = add_lines(text.as_bytes(), &edit);
            let first = ResolvConf::parse(&edited).name_servers().next().map(|it| it.address);
            proptest::prop_assert_eq!(first, Some(OURS));
            let restored = remove_lines(&edited);
            proptest::prop_assert_eq!(restored.trim_ascii_end(), text.as_bytes().trim_ascii_end());
        }
    }
}
