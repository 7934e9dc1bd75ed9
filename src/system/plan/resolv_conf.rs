//! Steps that put svcdns into `/etc/resolv.conf`.

use std::path::{Path, PathBuf};

use super::super::Root;
use super::super::detect::{
    Container, ResolvConfContent, ResolvConfFile, ResolverManager, WSL_CONF, WSL_FOLDER,
};
use super::super::install_step::{FileStep, IfEdited, InstallStep};
use super::super::journal_folder::find_unsafe_path;
use super::super::path_state::PathState;
use super::super::resolv_conf_edit::{self, ResolvConfEdit};
use super::own_files::read_state;
use super::{PlanBuilder, PlanError};
use crate::resolv_conf::{
    Fault, MAX_RESOLV_CONF_BYTES, RESOLV_CONF, RESOLV_CONF_BACKUP, ResolvConf,
};

/// Plans the steps that add our lines to resolv.conf, and save the file as it is.
///
/// The saved copy also tells the server that its line belongs in the file. If the file already has
/// the effect of the edit, only a missing copy is planned.
///
/// # Errors
/// If a file cannot be read, has changed since it was read as `file`, or is reached through a link
/// that another user can change.
pub(in crate::system) fn resolv_conf_steps(
    root: &Root,
    file: &ResolvConfFile,
    edit: &ResolvConfEdit<'_>,
    in_place: bool,
) -> Result<Vec<InstallStep>, PlanError> {
    let is_replaced_link = file.is_link && is_replaced(root, file);
    if file.is_link {
        check_link(root, file, is_replaced_link)?;
    }
    let path = if is_replaced_link { PathBuf::from(RESOLV_CONF) } else { file.target.clone() };
    // A write in place would follow the link that it has to replace.
    let in_place = in_place && !is_replaced_link;
    let edited = resolv_conf_edit::add_lines(file.bytes(), edit);
    let is_in_effect = edited == file.bytes() && path == file.target;
    let original = resolv_conf_edit::remove_lines(file.bytes());
    let saved = read_state(root, Path::new(RESOLV_CONF_BACKUP))?;
    let mut steps = Vec::new();
    // A copy without another name server would replace one that has the upstreams.
    let original_conf = ResolvConf::parse(&original);
    let has_upstream = original_conf.name_servers().any(|server| server.address != edit.server);
    let is_useful = !is_in_effect && has_upstream;
    if is_useful || saved == PathState::Absent {
        steps.push(InstallStep::File(FileStep {
            path: RESOLV_CONF_BACKUP.into(),
            before: saved,
            after: PathState::new_file(original),
            if_edited: IfEdited::Keep,
            in_place: false,
        }));
    }
    if !is_in_effect {
        let before = read_state(root, &path)?;
        if before.content().is_some_and(|content| content != file.bytes()) {
            return Err(PlanError::File {
                path,
                problem: "is being changed by another program: wait, and run this command again"
                    .to_owned(),
            });
        }
        let after = before.with_content(edited);
        let if_edited = IfEdited::OwnLines;
        steps.push(InstallStep::File(FileStep { path, before, after, if_edited, in_place }));
    }
    Ok(steps)
}

/// Returns whether a link is replaced; otherwise it is kept, and its target edited.
///
/// A link into a manager's directory is replaced, and so is a dangling one.
fn is_replaced(root: &Root, file: &ResolvConfFile) -> bool {
    let is_managed = |path: &Path| path.starts_with("/run") || path.starts_with(WSL_FOLDER);
    matches!(file.content, ResolvConfContent::Missing)
        || is_managed(&file.target)
        || root.link_target(RESOLV_CONF).is_some_and(|first| is_managed(&first))
}

/// Checks that no other user controls which file is read as resolv.conf or changed.
///
/// A file that is only read, because the link to it is replaced, may belong to its manager.
fn check_link(root: &Root, file: &ResolvConfFile, is_replaced: bool) -> Result<(), PlanError> {
    let refuse = |problem: String| Err(PlanError::File { path: RESOLV_CONF.into(), problem });
    match find_unsafe_path(root, Path::new(RESOLV_CONF)) {
        Ok(None) => Ok(()),
        Ok(Some(cause)) if is_replaced && file.target.starts_with(&cause.path) => Ok(()),
        Ok(Some(cause)) => refuse(format!(
            "is a link to {}, which a user other than root may have chosen because {cause}: make \
             that path root's alone, or replace the link with a file, and run this command again",
            file.target.display()
        )),
        Err(error) => refuse(format!("is a link that cannot be followed: {error}")),
    }
}

impl PlanBuilder<'_> {
    /// Adds svcdns's lines to the file, and saves a copy of the unchanged file.
    pub(super) fn edit_resolv_conf(&mut self, in_place: bool) -> Result<(), PlanError> {
        self.check_resolv_conf()?;
        let file = &self.machine.file;
        let server = self.options.server.ip();
        let search = if self.options.search { self.options.zones.as_slice() } else { &[] };
        let edit = ResolvConfEdit { server, search, keep_others: self.options.keep_others };
        let steps = resolv_conf_steps(self.root, file, &edit, in_place)?;
        let edited_in_place = steps.iter().find_map(|step| match step {
            InstallStep::File(step) => {
                (step.if_edited == IfEdited::OwnLines).then_some(step.in_place)
            }
            InstallStep::Folder(_) | InstallStep::Command(_) => None,
        });
        self.steps.extend(steps);
        let Some(in_place) = edited_in_place else {
            self.notes.push(format!("{RESOLV_CONF} already names {server}"));
            return Ok(());
        };
        if in_place {
            self.note_container_settings();
        }
        if self.machine.manager == ResolverManager::Wsl {
            self.notes.push(format!(
                "WSL writes {RESOLV_CONF} again when it starts: set `generateResolvConf = false` \
                 in the section [network] of {WSL_CONF}"
            ));
        }
        if let (ResolverManager::Nothing, Some(client)) =
            (self.machine.manager, self.machine.dhcp_client)
        {
            self.notes.push(format!(
                "{client} rewrites {RESOLV_CONF} when it renews its lease: turn that off, or \
                 install resolvconf or systemd-resolved and run this command again"
            ));
        }
        Ok(())
    }

    /// Checks that the file can be edited, and notes its ignored lines.
    fn check_resolv_conf(&mut self) -> Result<(), PlanError> {
        let file = &self.machine.file;
        let refuse = |problem: String| Err(PlanError::File { path: RESOLV_CONF.into(), problem });
        match &file.content {
            ResolvConfContent::File(_) | ResolvConfContent::Missing => {}
            ResolvConfContent::Unreadable(error) => {
                return refuse(format!(
                    "cannot be read ({error}): repair or remove it, and run this command again"
                ));
            }
            ResolvConfContent::NotAFile => {
                return refuse("is not a file: remove it, and run this command again".to_owned());
            }
            ResolvConfContent::TooLong => {
                return refuse(format!(
                    "has more than {MAX_RESOLV_CONF_BYTES} bytes (a fixed limit), too many for a \
                     resolv.conf: repair it, and run this command again"
                ));
            }
        }
        let faults: Vec<_> = file.conf().faults().collect();
        if let Some((number, Fault::Incomplete)) = faults.last() {
            return refuse(format!(
                "has an incomplete line {number}, as if a program were writing the file now: \
                 complete or remove the line, or wait, and run this command again"
            ));
        }
        for (number, fault) in faults {
            self.notes.push(format!("{RESOLV_CONF}: line {number} is ignored ({fault}); it stays"));
        }
        if file.immutable && !self.options.lift_immutable {
            return refuse(format!(
                "is immutable (`chattr +i`): allow changes with `chattr -i {}`, or use \
                 --lift-immutable, which makes the file immutable again afterwards",
                file.target.display()
            ));
        }
        Ok(())
    }

    /// Adds a note that names the permanent setting of the container's name servers.
    fn note_container_settings(&mut self) {
        let settings = match self.machine.container {
            Some(Container::Docker | Container::Podman) => {
                "`docker run --dns ADDRESS` or `podman run --dns ADDRESS`"
            }
            Some(Container::Kubernetes) => "the pod's `dnsPolicy: None` with `dnsConfig`",
            _ => "the settings of the program that mounted it",
        };
        self.notes.push(format!(
            "{RESOLV_CONF} is a mount point, so it is written in place, and the container engine \
             rewrites it at the next start of the container. For a lasting change, use {settings}"
        ));
    }
}
