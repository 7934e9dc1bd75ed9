//! Files of svcdns that other programs read.

use super::super::command::words;
use super::super::install_step::{CommandStep, InstallStep};

/// A file of svcdns that another program reads.
#[derive(Debug)]
pub(in super::super) struct DropIn {
    /// The path of the file.
    pub(in super::super) path: &'static str,
    /// Effect of the file, as a headline for the user.
    pub(super) purpose: &'static str,
    /// The command that makes the program read the file.
    pub(super) reload: &'static [&'static str],
    /// A command that succeeds if the program runs.
    is_running: &'static [&'static str],
}

/// The zones, for the dnsmasq that NetworkManager runs.
pub(super) const DNSMASQ: DropIn = DropIn {
    path: "/etc/NetworkManager/dnsmasq.d/svcdns.conf",
    purpose: "restart NetworkManager's dnsmasq",
    reload: &["nmcli", "general", "reload", "dns-full"],
    is_running: NETWORK_MANAGER_RUNS,
};

/// The file that keeps NetworkManager from writing `/etc/resolv.conf`.
pub(super) const NETWORK_MANAGER: DropIn = DropIn {
    path: "/etc/NetworkManager/conf.d/90-svcdns.conf",
    purpose: "make NetworkManager stop managing /etc/resolv.conf",
    reload: &["nmcli", "general", "reload", "conf"],
    is_running: NETWORK_MANAGER_RUNS,
};

/// The file that makes NetworkManager ignore svcdns's link.
pub(super) const NETWORK_MANAGER_LINK: DropIn =
    DropIn { purpose: "make NetworkManager ignore the link", ..NETWORK_MANAGER };

/// The zones, for systemd-resolved.
pub(super) const DELEGATE: DropIn = DropIn {
    path: "/etc/systemd/dns-delegate.d/svcdns.dns-delegate",
    purpose: "make systemd-resolved read the delegate",
    reload: &["systemctl", "reload-or-restart", "systemd-resolved.service"],
    is_running: &["systemctl", "is-active", "systemd-resolved.service"],
};

/// The file that makes systemd-networkd ignore svcdns's link.
pub(super) const NETWORKD_LINK: DropIn = DropIn {
    path: "/etc/systemd/network/00-svcdns.network",
    purpose: "make systemd-networkd ignore the link",
    reload: &["networkctl", "reload"],
    is_running: &["systemctl", "is-active", "systemd-networkd.service"],
};

/// The drop-in files, each path once.
pub(in super::super) const DROP_INS: [&DropIn; 4] =
    [&DNSMASQ, &NETWORK_MANAGER, &DELEGATE, &NETWORKD_LINK];

/// A command that succeeds if NetworkManager runs.
const NETWORK_MANAGER_RUNS: &[&str] = &["nmcli", "general", "status"];

impl DropIn {
    /// Returns the step whose undo makes the program notice that the file is gone.
    ///
    /// The program may have been stopped or started since the installation.
    pub(in super::super) fn undo_step(&self) -> InstallStep {
        InstallStep::Command(CommandStep {
            purpose: self.purpose.to_owned(),
            run: Vec::new(),
            undo: vec![words(self.reload)],
            undo_if: words(self.is_running),
        })
    }
}
