//! A network namespace for the benchmark, so that the kernel can redirect its connections.

use std::env;
use std::path::Path;
use std::process::{Command, ExitStatus};

use crate::support::on_path;

/// Environment variable that is set inside the namespace.
const INSIDE: &str = "BRIDGE_BENCHMARK_NAMESPACE";

/// Runs this program again in a network namespace of its own; `None` if that is not possible.
pub(crate) fn enter() -> Option<ExitStatus> {
    if is_inside() || !nix::unistd::geteuid().is_root() || !has_nft() {
        return None;
    }
    let possible = Command::new("unshare").args(["--net", "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--fork", "--kill-child"]).arg(env::current_exe().unwrap());
    Some(command.args(env::args_os().skip(1)).env(INSIDE, "1").status().unwrap())
}

/// Prepares the namespace, if this process runs in one; returns whether it does.
pub(crate) fn set_up() -> bool {
    if is_inside() {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success(), "the namespace has no loopback");
    }
    is_inside()
}

fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

fn has_nft() -> bool {
    Path::new("/usr/sbin/nft").exists() || on_path("nft")
}
