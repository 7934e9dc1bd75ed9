//! Peers that are written in Go, built once from pinned versions where there is a Go toolchain.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::ending;
use super::support::on_path;
use super::support::process::Process;

/// Longest time for a build, downloads included.
const LONGEST: Duration = Duration::from_secs(600);

/// Where a peer's program is built.
pub(crate) fn program(name: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    target.join("peers").join(name)
}

/// Builds a peer where that has not been done; its version, which its `go.mod` pins.
pub(crate) fn built(name: &str, module: &str) -> Result<String, String> {
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
        return Err("no go on PATH to build it with".to_owned());
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
    while build.ended().is_none() && begun.elapsed() < LONGEST {
        ending::go_on();
        std::thread::sleep(Duration::from_millis(100));
    }
    match build.ended() {
        Some(status) if status.success() => {
            fs::write(pinned, &version).unwrap();
            Ok(version)
        }
        Some(_) => {
            Err(format!("it does not build: {}", build.log().lines().last().unwrap_or_default()))
        }
        None => Err(format!("its build took more than {} s", LONGEST.as_secs())),
    }
}
