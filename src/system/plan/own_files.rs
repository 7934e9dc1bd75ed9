//! Steps for svcdns's own files and units.

use std::fs;
use std::path::Path;

use super::super::Root;
use super::super::command::words;
use super::super::install_step::{CommandStep, FileStep, IfEdited, InstallStep};
use super::super::path_state::PathState;
use super::super::unit::{self, BridgeNeeds};
use super::PlanError;
use crate::directory::{ROOT_STATE_DIRECTORY, is_state_file};

/// Plans one of svcdns's own files, and the directories that it needs.
///
/// # Errors
/// If the current file cannot be read.
pub fn plan_file(root: &Root, path: &Path, text: &str) -> Result<Vec<InstallStep>, PlanError> {
    let mut steps = Vec::new();
    let folders: Vec<&Path> =
        path.ancestors().skip(1).take_while(|folder| !root.has(folder)).collect();
    steps.extend(folders.into_iter().rev().map(|folder| InstallStep::Folder(folder.to_owned())));
    let before = read_state(root, path)?;
    let is_configuration = path.starts_with("/etc/svcdns");
    steps.push(InstallStep::File(FileStep {
        path: path.to_owned(),
        after: before.with_content(text.as_bytes().to_vec()),
        before,
        if_edited: if is_configuration { IfEdited::Keep } else { IfEdited::SetAside },
        in_place: false,
    }));
    Ok(steps)
}

/// Plans one of svcdns's own units, started now and at every boot.
///
/// # Errors
/// If the current file of the unit cannot be read.
pub fn plan_unit(root: &Root, name: &str, text: &str) -> Result<Vec<InstallStep>, PlanError> {
    Ok(unit_steps(name, plan_file(root, &Path::new(unit::FOLDER).join(name), text)?))
}

/// Plans the unit of the server, started now and at every boot.
///
/// `bridge` tells what the unit needs for the port bridge, if that is on.
///
/// # Errors
/// If a current file of the unit cannot be read.
pub fn plan_server(
    root: &Root,
    text: &str,
    bridge: Option<&BridgeNeeds>,
) -> Result<Vec<InstallStep>, PlanError> {
    let mut files = plan_file(root, &unit::server_path(), text)?;
    let mut steps = Vec::new();
    if let Some(needs) = bridge {
        let text = unit::bridge_drop_in(needs);
        let drop_in = plan_file(root, Path::new(unit::BRIDGE_DROP_IN), &text)?;
        files.extend(drop_in.into_iter().filter(|step| !files.contains(step)).collect::<Vec<_>>());
        // Steps are undone in reverse order: by then, the server has stopped. It removes its table
        // itself, unless it was killed; the pool after which the table is named may have changed.
        let tables = format!(
            r"nft list tables ip | sed -n 's/^table ip \({}[0-9_]*\)$/\1/p'",
            needs.table_prefix
        );
        steps.push(InstallStep::Command(CommandStep {
            purpose: "let the port bridge redirect connections".to_owned(),
            run: Vec::new(),
            undo: vec![words(&[
                "sh",
                "-c",
                &format!("{tables} | xargs -r -n1 nft delete table ip"),
            ])],
            undo_if: words(&["sh", "-c", &format!("{tables} | grep -q .")]),
        }));
    }
    steps.extend(unit_steps(unit::SERVER, files));
    Ok(steps)
}

/// Returns the steps of a unit whose file `file` writes.
pub(in super::super) fn unit_steps(name: &str, file: Vec<InstallStep>) -> Vec<InstallStep> {
    let reload = words(&["systemctl", "daemon-reload"]);
    let step = |purpose: &str, run, undo, undo_if| {
        InstallStep::Command(CommandStep { purpose: purpose.to_owned(), run, undo, undo_if })
    };
    // Steps are undone in reverse order, so systemd reloads after the unit was removed. A unit that
    // was stopped during its start is listed as failed until then; the pattern may match no unit.
    let forget = vec![reload.clone(), words(&["systemctl", "reset-failed", &format!("{name}*")])];
    let mut steps = vec![step("make systemd forget the unit", Vec::new(), forget, Vec::new())];
    steps.extend(file);
    steps.push(step(
        &format!("start {name}, now and at every boot"),
        vec![reload, words(&["systemctl", "enable", name]), words(&["systemctl", "restart", name])],
        vec![words(&["systemctl", "disable", "--now", name])],
        words(&["systemctl", "cat", name]),
    ));
    steps
}

/// Checks that the state directory contains only the server's own files.
///
/// systemd gives all files in it to the service's user when a unit with `StateDirectory=` first
/// starts.
///
/// # Errors
/// If there are other files, with a remedy.
pub fn check_state_directory(root: &Root) -> Result<(), PlanError> {
    let path = root.path(ROOT_STATE_DIRECTORY);
    // A link means that systemd has already moved the directory.
    if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(());
    }
    let refuse = |problem| PlanError::File { path: ROOT_STATE_DIRECTORY.into(), problem };
    let entries =
        fs::read_dir(&path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let others: Vec<String> = names.filter(|name| !is_state_file(name)).collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(refuse(format!(
        "will be the state directory of the service, whose user would get all files in it: move \
         {} elsewhere, and run this command again",
        others.join(", ")
    )))
}

/// Reads the state of a path that a step will change.
pub(super) fn read_state(root: &Root, path: &Path) -> Result<PathState, PlanError> {
    PathState::read(&root.path(path)).map_err(|error| PlanError::File {
        path: path.into(),
        problem: format!(
            "cannot be read ({error}): repair or remove it, and run this command again"
        ),
    })
}
