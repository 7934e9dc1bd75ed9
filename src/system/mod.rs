//! The machine's own resolver: its detection, and the installation and removal of svcdns.
//!
//! [`detect()`] finds the manager of name resolution, [`plan()`] plans the steps of `install`, the
//! [`Journal`] undoes them, and [`examine`] runs the checks of `doctor`. All files are below a
//! [`Root`], which tests choose. Only [`enter_namespace`] always works on the running machine.

mod command;
mod detect;
mod doctor;
mod install_step;
mod integration;
mod journal;
mod journal_error;
mod journal_folder;
mod keep;
mod leftovers;
mod lookup;
mod lost_line;
mod nscd;
mod nsswitch;
mod path_state;
mod plan;
mod port_owner;
mod private_namespace;
mod private_resolv_conf;
mod processes;
mod resolv_conf_edit;
mod resolved_routes;
mod root;
mod runtime_state;
mod unit;

pub use command::{CommandError, RunError, run, shell_quoted};
pub use detect::{
    Container, Machine, NetworkManager, ResolvConfContent, ResolvConfFile, Resolvconf, Resolved,
    ResolvedAccess, ResolverManager, detect,
};
pub use doctor::{DoctorInput, Finding, Level, ProbeResult, RunningServer, examine};
pub use install_step::{CommandStep, FileStep, IfEdited, InstallStep};
pub use integration::Integration;
pub use journal::{Journal, UndoReport};
pub use journal_error::{JournalError, UnsafePath, listed};
pub use journal_folder::{InstallLock, JOURNAL_FOLDER};
pub use keep::{LineCheck, RemovedLine, RestoreError, check_line, restore_line};
pub use leftovers::Leftovers;
pub use lookup::{look_up, look_up_afresh};
pub use lost_line::{LineLoss, LineState, LostLine};
pub use nscd::forget_hosts;
pub use nsswitch::{HostsLine, HostsLookup, NssAction, NssService};
pub use path_state::{FileBytes, FileState, PathState};
pub use plan::{
    InstallOptions, Plan, PlanError, check_state_directory, describe, plan, plan_file, plan_server,
    plan_unit,
};
pub use port_owner::{
    BoundSocket, PortOwner, find_bound_sockets, find_open_sockets, find_port_owner, free_loopback,
};
pub use private_namespace::{NamespaceError, enter_namespace};
pub use private_resolv_conf::PrivateResolvConf;
pub use resolv_conf_edit::KeptLine;
pub use resolved_routes::{ResolvedRoutes, ResolvedScope};
pub use root::Root;
pub use runtime_state::{Mount, RuntimeState};
pub use unit::{
    BridgeNeeds, KEEP as KEEP_UNIT, SERVER as SERVER_UNIT, keep as keep_unit, server as server_unit,
};
