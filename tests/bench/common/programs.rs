//! Programs that are installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a program says of itself: the word after `before`, on whichever of its outputs.
pub(crate) fn version(program: &Path, flag: &str, before: &str) -> String {
    let output = Command::new(program).arg(flag).output().unwrap();
    let text = [output.stdout, output.stderr]
        .map(|octets| String::from_utf8_lossy(&octets).into_owned())
        .concat();
    let line = text
        .lines()
        .find_map(|line| line.split_once(before))
        .map_or("of an unknown version", |(_, rest)| rest);
    line.split_whitespace().next().unwrap_or_default().to_owned()
}

/// A copy of a program: AppArmor, where it is, lets one at its own place read no configuration of ours.
pub(crate) fn copied(program: &Path, folder: &Path) -> PathBuf {
    let copy = folder.join(program.file_name().unwrap());
    fs::copy(program, &copy).unwrap();
    copy
}
