//! Installed programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns a program's version: the word after `before` in its output.
pub(crate) fn version(program: &Path, flag: &str, before: &str) -> String {
    let output = Command::new(program).arg(flag).output().unwrap();
    let text = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    let line =
        text.lines().find_map(|line| line.split_once(before)).map_or("unknown", |(_, rest)| rest);
    line.split_whitespace().next().unwrap_or_default().to_owned()
}

/// Copies a program into a directory.
///
/// AppArmor may keep the installed program from reading our configuration.
pub(crate) fn copy(program: &Path, folder: &Path) -> PathBuf {
    let copy = folder.join(program.file_name().unwrap());
    fs::copy(program, &copy).unwrap();
    copy
}
