//! The installation of an older version, made from the journal that it wrote.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::machine::NOBODY;

/// The journal of an older version on a private machine with systemd.
///
/// It is that of `svcdns install --keep-nameservers --upstream off --registry
/// file:///run/registry`.
const JOURNAL: &str = include_str!("../former/install.json");

/// The path of the journal.
const FORMER_JOURNAL: &str = "/var/lib/svcdns/install.json";

/// The folder of the registry.
const REGISTRY: &str = "/run/registry";

/// Writes /etc/resolv.conf as it was before that installation.
pub(crate) fn furnish() {
    fs::create_dir_all(REGISTRY).unwrap();
    let text = format!("# by hand\nnameserver {NOBODY}\noptions timeout:1 attempts:1\n");
    fs::write("/etc/resolv.conf", text).unwrap();
    let file = fs::File::options().write(true).open("/etc/resolv.conf").unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789)).unwrap();
}

/// Writes the journal and all its files, but runs no command.
///
/// Without systemd there is no unit and no command.
pub(crate) fn install(systemd: bool) {
    let mut journal: Value = serde_json::from_str(JOURNAL).unwrap();
    let steps = journal["steps"].as_array_mut().unwrap();
    let units =
        |step: &Value| step["file"]["path"].as_str().is_some_and(|path| path.ends_with(".service"));
    steps.retain(|step| systemd || (step.get("command").is_none() && !units(step)));
    fs::create_dir_all("/var/lib/svcdns").unwrap();
    for step in &*steps {
        if let Some(folder) = step["folder"].as_str() {
            fs::create_dir_all(folder).unwrap();
        }
        if let Some(path) = step["file"]["path"].as_str() {
            let content = step["file"]["after"]["file"]["octets"].as_str().unwrap();
            fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }
    fs::write(FORMER_JOURNAL, serde_json::to_string_pretty(&journal).unwrap()).unwrap();
}
