//! Servers written in Go, built once from pinned versions.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::interrupt;
use super::support::on_path;
use super::support::process::Process;

/// Longest time for a build, downloads included.
const BUILD_TIMEOUT: Duration = Duration::from_secs(600);

/// Returns the path of a server's program.
pub(crate) fn program(name: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    target.join("peers").join(name)
}

/// Builds a server unless it was built before, and returns its version.
///
/// `go.mod` pins the version.
pub(crate) fn build(name: &str, module: &str) -> Result<String, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/peers/go").join(name);
    let pins = fs::read_to_string(source.join("go.mod")).unwrap();
    let version = pins
        .lines()
        .find_map(|line| {
            line.trim_start_matches("require").trim().strip_prefix(module)?.strip_prefix(" v")
        })
        .unwrap();
    let version = version.split(' ').next().unwrap().to_owned();
    let (program, pinned) = (program(name), program(&format!("{name}.version")));
    if program.is_file() && fs::read_to_string(&pinned).is_ok_and(|built| built == version) {
        return Ok(version);
    }
    if !on_path("go") {
        return Err("no go on PATH to build this server".to_owned());
    }
    println!("Building {name} {version} …");
    let mut command = Command::new("nice");
    command
        .args(["-n", "19", "go", "build", "-trimpath", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(source);
    let mut build = Process::start(&mut command);
    let begun = std::time::Instant::now();
    while build.ended().is_none() && begun.elapsed() < BUILD_TIMEOUT {
        interrupt::check();
        std::thread::sleep(Duration::from_millis(100));
    }
    match build.ended() {
        Some(status) if status.success() => {
            fs::write(pinned, &version).unwrap();
            Ok(version)
        }
        Some(_) => {
            Err(format!("the build failed: {}", build.log().lines().last().unwrap_or_default()))
        }
        None => Err(format!("the build took more than {} s", BUILD_TIMEOUT.as_secs())),
    }
}
