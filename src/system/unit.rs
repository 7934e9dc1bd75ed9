//! The units that systemd runs for us.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::command::written;

/// The server's unit.
pub const SERVER: &str = "svcdns.service";

/// The unit that tells another resolver of us, again after each of its restarts.
pub(super) const HOOK: &str = "svcdns-resolver.service";

/// Where our units are.
pub(super) const FOLDER: &str = "/etc/systemd/system";

/// What stands at the top of each file that is ours alone.
pub(super) const HEADING: &str = "# Written by `svcdns install`; `svcdns uninstall` removes it.\n";

/// The unit as it is shipped, for those who install by hand.
const SHIPPED: &str = include_str!("../../deploy/svcdns.service");

/// The line of [`SHIPPED`] that is made anew.
const SHIPPED_START: &str = "ExecStart=/usr/local/bin/svcdns serve\n";

/// The server's unit: this program, with this configuration file where it is not the one that is read anyway.
pub fn server(program: &Path, config: Option<&Path>) -> String {
    let start = SHIPPED.find("[Unit]").unwrap_or(0);
    let mut line = format!("ExecStart={} serve", quoted(&program.to_string_lossy()));
    if let Some(config) = config {
        let _ = write!(line, " --config {}", quoted(&config.to_string_lossy()));
    }
    line.push('\n');
    format!("{HEADING}\n{}", SHIPPED[start..].replacen(SHIPPED_START, &line, 1))
}

/// Where the server's unit is.
pub(super) fn server_path() -> PathBuf {
    Path::new(FOLDER).join(SERVER)
}

/// Whether a unit of the server is as this version writes it, whatever program it starts.
pub(super) fn is_current(unit: &[u8]) -> bool {
    let rest = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("ExecStart="));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    std::str::from_utf8(unit).is_ok_and(|unit| rest(unit) == rest(&server(Path::new("/"), None)))
}

/// A word of a command line in a unit (systemd.service(5), systemd.syntax(7)).
fn quoted(word: &str) -> String {
    let word = word.replace('%', "%%");
    if word.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_./:=@%+,~".contains(&octet)) {
        return word;
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "$$"))
}

/// What is done while a unit runs, and undone when it stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// What it is for.
    pub(super) description: String,
    /// The unit it belongs to: started after it and with it, stopped and restarted with it.
    pub(super) of: &'static str,
    /// What is run, in order.
    pub(super) up: Vec<Vec<String>>,
    /// What undoes that; it must do no harm where nothing was done.
    pub(super) down: Vec<Vec<String>>,
}

impl Hook {
    /// The unit. A restart of the unit it belongs to, a crash's included, restarts it (`PartOf=` of systemd.unit(5)).
    pub(super) fn unit(&self) -> String {
        let mut text = format!(
            "{HEADING}\n[Unit]\nDescription={}\nPartOf={of}\nAfter={of} dbus.service\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\n",
            self.description,
            of = self.of
        );
        for line in &self.down {
            let _ = writeln!(text, "ExecStartPre=-{}", words(line));
        }
        for line in &self.up {
            let _ = writeln!(text, "ExecStart={}", words(line));
        }
        for line in &self.down {
            let _ = writeln!(text, "ExecStop={}", words(line));
        }
        let _ = write!(text, "\n[Install]\nWantedBy={}\n", self.of);
        text
    }

    /// What a person runs by hand.
    pub(super) fn by_hand(&self) -> String {
        self.up.iter().map(|line| written(line)).collect::<Vec<_>>().join("\n")
    }
}

fn words(line: &[String]) -> String {
    line.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_unit_runs_this_program() {
        assert!(SHIPPED.contains(SHIPPED_START), "the line in deploy/svcdns.service that is made anew");
        let unit = server(Path::new("/opt/a b/svcdns"), Some(Path::new("/etc/svcdns/100%.toml")));
        assert!(unit.starts_with("# Written by `svcdns install`"));
        let start = "ExecStart=\"/opt/a b/svcdns\" serve --config /etc/svcdns/100%%.toml\n";
        assert!(unit.contains(start), "{unit}");
        assert!(!unit.contains("/usr/local/bin") && unit.contains("\n[Install]\n"));
        // systemd makes both directories and tells where they are.
        for said in ["RuntimeDirectory=svcdns\n", "StateDirectory=svcdns\n"] {
            assert!(unit.contains(said), "{said}: {unit}");
        }
        assert!(is_current(unit.as_bytes()) && is_current(server(Path::new("/x"), None).as_bytes()));
        assert!(!is_current(unit.replace("StateDirectory=svcdns\n", "").as_bytes()));
        // getifaddrs(3), for a server that listens on all addresses.
        let families = unit.lines().find_map(|line| line.strip_prefix("RestrictAddressFamilies=")).unwrap();
        assert!(families.split(' ').any(|family| family == "AF_NETLINK"), "{families}");
    }

    #[test]
    fn a_hook_comes_and_goes_with_its_unit() {
        let line = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let hook = Hook {
            description: "x".to_owned(),
            of: "systemd-resolved.service",
            up: vec![line(&["/bin/sh", "-c", "echo '$1' \"%\""])],
            down: vec![line(&["/sbin/ip", "link", "del", "svcdns0"])],
        };
        let unit = hook.unit();
        for said in [
            "PartOf=systemd-resolved.service\n",
            "WantedBy=systemd-resolved.service\n",
            "ExecStart=/bin/sh -c \"echo '$$1' \\\"%%\\\"\"\n",
            "ExecStartPre=-/sbin/ip link del svcdns0\n",
            "ExecStop=/sbin/ip link del svcdns0\n",
        ] {
            assert!(unit.contains(said), "{said}: {unit}");
        }
    }
}
