//! The units that `install` writes for systemd.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::shell_quoted;

/// The name of the server's unit.
pub const SERVER: &str = "svcdns.service";

/// The name of the unit that adds svcdns to another resolver, after each restart.
pub(super) const HOOK: &str = "svcdns-resolver.service";

/// The name of the unit that restores the `nameserver` line in resolv.conf.
pub const KEEP: &str = "svcdns-keep.service";

/// The directory of our units.
pub(super) const FOLDER: &str = "/etc/systemd/system";

/// The first line of files of svcdns alone; installed machines have this text.
pub(super) const HEADING: &str = "# Written by `svcdns install`; `svcdns uninstall` removes it.\n";

/// The server's unit as distributed, for manual installation.
const DISTRIBUTED: &str = include_str!("../../deploy/svcdns.service");

/// The additional rights of the port bridge as distributed, for manual installation.
const DISTRIBUTED_BRIDGE: &str = include_str!("../../deploy/svcdns-bridge.conf");

/// The drop-in file of the server's unit with the rights of the port bridge.
pub(super) const BRIDGE_DROP_IN: &str = "/etc/systemd/system/svcdns.service.d/svcdns-bridge.conf";

/// The line of [`DISTRIBUTED`] that starts the server, which `install` replaces.
const DISTRIBUTED_START: &str = "ExecStart=/usr/local/bin/svcdns serve\n";

/// The line of [`DISTRIBUTED`] that reloads the configuration, which `install` replaces.
const DISTRIBUTED_RELOAD: &str = "ExecReload=/usr/local/bin/svcdns reload\n";

/// Returns the server's unit, which starts `program`.
///
/// `config` is the configuration file, if it is not the default one.
pub fn server(program: &Path, config: Option<&Path>) -> String {
    let start = DISTRIBUTED.find("[Unit]").unwrap_or(0);
    let program = quoted(&program.to_string_lossy());
    let mut line = format!("ExecStart={program} serve");
    if let Some(config) = config {
        let _ = write!(line, " --config {}", quoted(&config.to_string_lossy()));
    }
    line.push('\n');
    let reload = format!("ExecReload={program} reload\n");
    let unit = DISTRIBUTED[start..].replacen(DISTRIBUTED_START, &line, 1);
    format!("{HEADING}\n{}", unit.replacen(DISTRIBUTED_RELOAD, &reload, 1))
}

/// What the server's unit needs for the port bridge.
#[derive(Clone, Copy, Debug)]
pub struct BridgeNeeds {
    /// Beginning of the names of its tables in the kernel.
    pub table_prefix: &'static str,
    /// Whether it changes the kernel's rules.
    pub redirects: bool,
    /// Time for open connections to finish at shutdown.
    pub drain: Duration,
}

/// Time that the server has to stop beside the drain of the port bridge.
const TIME_TO_STOP: Duration = Duration::from_secs(20);

/// Returns the drop-in file with what the port bridge needs.
pub(super) fn bridge_drop_in(needs: &BridgeNeeds) -> String {
    let start = DISTRIBUTED_BRIDGE.find("[Service]").unwrap_or(0);
    let stop = format!("TimeoutStopSec={}s\n", (needs.drain + TIME_TO_STOP).as_secs());
    let mut text = format!("{HEADING}\n");
    let mut comment = String::new();
    for line in DISTRIBUTED_BRIDGE[start..].split_inclusive('\n') {
        if line.starts_with('#') {
            comment.push_str(line);
            continue;
        }
        let comment = std::mem::take(&mut comment);
        if line.contains("CAP_NET_ADMIN") && !needs.redirects {
            continue;
        }
        text.push_str(&comment);
        text.push_str(if line.starts_with("TimeoutStopSec=") { &stop } else { line });
    }
    text
}

/// Returns the unit that runs `svcdns keep` of `program`.
///
/// The command changes files of root, with their owners and modes, and queries the server.
pub fn keep(program: &Path) -> String {
    format!(
        "{HEADING}\n\
         [Unit]\nDescription=Line of svcdns in /etc/resolv.conf\nAfter={SERVER}\n\
         StartLimitIntervalSec=0\n\n\
         [Service]\nExecStart={} keep\nRestart=always\nRestartSec=1s\n\
         CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER\n\
         NoNewPrivileges=yes\nRestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX\n\
         RestrictNamespaces=yes\nRestrictRealtime=yes\nLockPersonality=yes\n\
         MemoryDenyWriteExecute=yes\nSystemCallArchitectures=native\nMemoryMax=64M\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        quoted(&program.to_string_lossy())
    )
}

/// Returns the path of the server's unit.
pub(super) fn server_path() -> PathBuf {
    Path::new(FOLDER).join(SERVER)
}

/// Returns whether this version writes the same unit, machine details aside.
///
/// Files other than our units count as current.
pub(super) fn is_current(path: &Path, unit: &[u8]) -> bool {
    let (current, of_machine): (_, &[&str]) = if path == server_path() {
        (vec![server(Path::new("/"), None)], &["ExecStart=", "ExecReload="])
    } else if path == Path::new(FOLDER).join(KEEP) {
        (vec![keep(Path::new("/"))], &["ExecStart="])
    } else if path == Path::new(FOLDER).join(HOOK) {
        let of_machine = &["After=", "Description=", "Exec", "PartOf=", "WantedBy="];
        let hook = |repeats| HookUnit { repeats, ..HookUnit::default() }.to_unit();
        (vec![hook(true), hook(false)], of_machine)
    } else {
        return true;
    };
    let other_lines = |text: &str| {
        let is_of_machine = |line: &str| of_machine.iter().any(|start| line.starts_with(start));
        let lines = text.lines().filter(|line| !is_of_machine(line));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let is_same = |unit| current.iter().any(|current| other_lines(unit) == other_lines(current));
    std::str::from_utf8(unit).is_ok_and(is_same)
}

/// Quotes a word for a command line in a unit (systemd.service(5)).
fn quoted(word: &str) -> String {
    let word = word.replace('%', "%%");
    if word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:=@%+,~".contains(&byte)) {
        return word;
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "$$"))
}

/// Quotes a command line for a unit.
fn command_line(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A unit whose commands run when another unit starts and stops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HookUnit {
    /// Description of the unit for systemd.
    pub(super) description: String,
    /// The unit after which, and with which, this one starts, stops and restarts.
    pub(super) bound_to: &'static str,
    /// Commands of `ExecStart=`, in order.
    pub(super) start: Vec<Vec<String>>,
    /// The commands of `ExecStop=`, in order; harmless if the start was not done.
    pub(super) stop: Vec<Vec<String>>,
    /// Whether a failed start is repeated, which needs systemd 244 or later.
    pub(super) repeats: bool,
}

impl HookUnit {
    /// Returns the text of the unit.
    ///
    /// `PartOf=` makes every restart of the other unit, even after a crash, restart this one
    /// (systemd.unit(5)). Without a start limit, it also follows many restarts in a row.
    ///
    /// If the other unit ends while this one starts, the start fails. The next start of the other
    /// unit then counts as done if it comes before the failed one has ended, so `Restart=` repeats
    /// it.
    pub(super) fn to_unit(&self) -> String {
        let mut text = format!(
            "{HEADING}\n\
             [Unit]\nDescription={}\nPartOf={unit}\nAfter={unit} dbus.service\n\
             StartLimitIntervalSec=0\n\n\
             [Service]\nType=oneshot\nRemainAfterExit=yes\n{repeat}",
            self.description,
            unit = self.bound_to,
            repeat = if self.repeats {
                "Restart=on-failure\nRestartSec=1s\n"
            } else {
                "# Restart=on-failure needs systemd 244.\n"
            }
        );
        for words in &self.stop {
            let _ = writeln!(text, "ExecStartPre=-{}", command_line(words));
        }
        for words in &self.start {
            let _ = writeln!(text, "ExecStart={}", command_line(words));
        }
        // Unlike ExecStop=, this also follows a start that failed or was interrupted.
        for words in &self.stop {
            let _ = writeln!(text, "ExecStopPost=-{}", command_line(words));
        }
        let _ = write!(text, "\n[Install]\nWantedBy={}\n", self.bound_to);
        text
    }

    /// Returns the commands of `ExecStart=` as lines for a shell.
    pub(super) fn to_shell(&self) -> String {
        self.start.iter().map(|words| shell_quoted(words)).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_of_the_server_starts_this_program() {
        for line in [DISTRIBUTED_START, DISTRIBUTED_RELOAD] {
            assert!(DISTRIBUTED.contains(line), "deploy/svcdns.service lacks {line}");
        }
        let unit = server(Path::new("/opt/a b/svcdns"), Some(Path::new("/etc/svcdns/100%.toml")));
        assert!(unit.starts_with("# Written by `svcdns install`"));
        let start = "ExecStart=\"/opt/a b/svcdns\" serve --config /etc/svcdns/100%%.toml\n";
        assert!(unit.contains(start), "{unit}");
        assert!(unit.contains("\nExecReload=\"/opt/a b/svcdns\" reload\n"), "{unit}");
        assert!(!unit.contains("/usr/local/bin") && unit.contains("\n[Install]\n"));
        // systemd creates both directories and passes their paths.
        for expected in ["RuntimeDirectory=svcdns\n", "StateDirectory=svcdns\n"] {
            assert!(unit.contains(expected), "{expected}: {unit}");
        }
        let is_current = |unit: &str| is_current(&server_path(), unit.as_bytes());
        assert!(is_current(&unit) && is_current(&server(Path::new("/x"), None)));
        assert!(!is_current(&unit.replace("StateDirectory=svcdns\n", "")));
        // getifaddrs(3), for a server that listens on all addresses.
        let families =
            unit.lines().find_map(|line| line.strip_prefix("RestrictAddressFamilies=")).unwrap();
        assert!(families.split(' ').any(|family| family == "AF_NETLINK"), "{families}");
    }

    #[test]
    fn the_keep_unit_of_an_older_version_is_outdated() {
        let path = Path::new(FOLDER).join(KEEP);
        let unit = keep(Path::new("/opt/a b/svcdns"));
        assert!(is_current(&path, unit.as_bytes()));
        let older = unit.replace("NoNewPrivileges=yes\n", "");
        assert!(!is_current(&path, older.as_bytes()));
    }

    #[test]
    fn a_hook_unit_starts_and_stops_with_the_unit_it_is_bound_to() {
        let line = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let hook = HookUnit {
            description: "x".to_owned(),
            bound_to: "systemd-resolved.service",
            start: vec![line(&["/bin/sh", "-c", "echo '$1' \"%\""])],
            stop: vec![line(&["/sbin/ip", "link", "del", "svcdns0"])],
            repeats: true,
        };
        let unit = hook.to_unit();
        for expected in [
            "PartOf=systemd-resolved.service\n",
            "WantedBy=systemd-resolved.service\n",
            "StartLimitIntervalSec=0\n",
            "\nRestart=on-failure\n",
            "ExecStart=/bin/sh -c \"echo '$$1' \\\"%%\\\"\"\n",
            "ExecStartPre=-/sbin/ip link del svcdns0\n",
            "ExecStopPost=-/sbin/ip link del svcdns0\n",
        ] {
            assert!(unit.contains(expected), "{expected}: {unit}");
        }
        let path = Path::new(FOLDER).join(HOOK);
        assert!(is_current(&path, unit.as_bytes()));
        let without_restart = HookUnit { repeats: false, ..hook }.to_unit();
        assert!(!without_restart.contains("\nRestart="));
        assert!(is_current(&path, without_restart.as_bytes()));
        for line in ["StartLimitIntervalSec=0\n", "Restart=on-failure\n"] {
            assert!(!is_current(&path, unit.replace(line, "").as_bytes()), "{line}");
        }
    }
}
