//! Steps that put svcdns into `/etc/resolv.conf`.

use std::path::{Path, PathBuf};

use super::super::detect::{Container, ResolvConfContent, ResolverManager};
use super::super::journal::{FileStep, IfEdited, InstallStep};
use super::super::path_state::PathState;
use super::super::resolv_conf_edit::{self, ResolvConfEdit};
use super::own_files::read_state;
use super::{PlanBuilder, PlanError};
use crate::resolv_conf::{Fault, MAX_RESOLV_CONF_BYTES, RESOLV_CONF, RESOLV_CONF_BACKUP};

impl PlanBuilder<'_> {
    /// Adds svcdns's lines to the file, and saves a copy of the unchanged file.
    pub(super) fn edit_resolv_conf(&mut self, in_place: bool) -> Result<(), PlanError> {
        self.check_resolv_conf()?;
        let file = &self.machine.file;
        // A link to a manager's directory is replaced, and so is a dangling one. Any other link is
        // kept, and its target edited.
        let is_replaced_link = file.is_link
            && (file.target.starts_with("/run")
                || matches!(file.content, ResolvConfContent::Missing));
        let path = if is_replaced_link { PathBuf::from(RESOLV_CONF) } else { file.target.clone() };
        let server = self.options.server.ip();
        let search = if self.options.search { self.options.zones.as_slice() } else { &[] };
        let edit = ResolvConfEdit { server, search, keep_others: self.options.keep_others };
        let edited = resolv_conf_edit::add_lines(file.bytes(), &edit);
        if edited == file.bytes() && path == file.target {
            self.notes.push(format!("{RESOLV_CONF} already names {server}"));
            return Ok(());
        }
        let before = read_state(self.root, &path)?;
        if !file.bytes().is_empty() {
            let original = resolv_conf_edit::remove_lines(file.bytes());
            self.steps.push(InstallStep::File(FileStep {
                path: RESOLV_CONF_BACKUP.into(),
                before: read_state(self.root, Path::new(RESOLV_CONF_BACKUP))?,
                after: PathState::new_file(original),
                if_edited: IfEdited::Keep,
                in_place: false,
            }));
        }
        let after = before.with_content(edited);
        self.steps.push(InstallStep::File(FileStep {
            path,
            before,
            after,
            if_edited: IfEdited::OwnLines,
            in_place,
        }));
        if in_place {
            self.note_container_settings();
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
