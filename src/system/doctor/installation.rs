//! The check for leftovers of an installation.

use super::{DoctorInput, Finding, ProbeResult};
use crate::system::Leftovers;
use crate::system::resolv_conf_edit::has_our_lines;

/// The check of this file.
const INSTALLATION: &str = "installation";

/// Returns a finding if there are lines or files of svcdns without an installation.
pub(super) fn examine(input: &DoctorInput<'_>) -> Option<Finding> {
    if Leftovers::are_recorded(input.root) {
        return None;
    }
    // The checks of resolv.conf report a file that cannot be read.
    let found = Leftovers::find(input.root, input.machine).ok()??;
    let says = format!(
        "No installation of svcdns is recorded, but it left this behind: {found}. A program may \
         have restored an old copy."
    );
    let first = input.name_servers().first().copied();
    let answers =
        first.and_then(|address| input.probe(address)).is_some_and(|it| *it == ProbeResult::Svcdns);
    let finding = if answers || !has_our_lines(input.machine.file.bytes()) {
        Finding::warning(INSTALLATION, says)
    } else {
        Finding::broken(INSTALLATION, says)
    };
    Some(finding.typing("sudo svcdns uninstall"))
}
