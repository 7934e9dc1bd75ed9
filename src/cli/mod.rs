//! The commands, one file each.
//!
//! Only this module prints to standard output.

mod arguments;
mod bridge_check;
mod check;
mod client;
mod demo;
mod diff;
mod doctor;
mod explain;
mod help;
mod install;
mod installed_server;
mod keep;
mod ls;
mod names;
mod output;
mod outside_names;
mod privilege;
mod register;
mod registries;
mod release;
mod reload;
mod resolve;
mod run;
mod serve;
mod status;
mod uninstall;
mod watch;

use std::ffi::OsString;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::FromArgMatches;
use clap::error::ErrorKind;

use crate::config::{Config, ConfigError, ConfigSource, Flags};
use crate::daemon::TakeOverError;
use crate::inherited::InheritedSockets;
use arguments::{Arguments, CliCommand, KeepArgs};
use client::NotRunning;

/// Exit code if the name, or a record of the type, does not exist.
const NOT_FOUND: u8 = 2;

/// Exit code if the response code is an error other than NXDOMAIN.
const FAILED_ANSWER: u8 = 3;

/// Exit code of `diff` if the registries differ, as of diff(1).
const DIFFERENT: u8 = 1;

/// Exit code of `diff` if the registries could not be compared, as of diff(1).
const DIFF_FAILED: u8 = 2;

/// Exit code if no server is running.
const NOT_REACHED: u8 = 4;

/// Exit code of an invalid command line (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

/// Exit code of `register` and `run` if their command does not exist, as in shells.
const COMMAND_NOT_FOUND: u8 = 127;

/// Exit code of `register` and `run` if their command cannot be run, as in shells.
const COMMAND_NOT_RUN: u8 = 126;

/// Number of threads of a command's runtime.
///
/// Two are enough, because the server answers UDP queries in separate threads.
const RUNTIME_THREADS: usize = 2;

/// Time limit for tasks after their command has ended.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(200);

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let arguments = match parse_arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            // If standard error cannot be written, the error cannot be reported.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(USAGE),
            };
        }
    };
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            output::complain(&format!("{error:#}"));
            ExitCode::from(if is_not_running(&error) { NOT_REACHED } else { 1 })
        }
    }
}

/// Returns whether the error is that no server is running.
fn is_not_running(error: &anyhow::Error) -> bool {
    error.is::<NotRunning>()
        || matches!(error.downcast_ref(), Some(TakeOverError::NotRunning { .. }))
}

fn parse_arguments() -> Result<Arguments, clap::Error> {
    let matches = help::command_line().try_get_matches()?;
    Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut help::command_line()))
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { runtime_dir, state_dir, command } = arguments;
    let location = ServerLocation { runtime_dir, state_dir };
    match command {
        CliCommand::Serve(command) => {
            // Before the process has threads.
            let inherited = InheritedSockets::from_environment()?;
            block_on(serve::run(&location, command, inherited))
        }
        CliCommand::Demo(command) => block_on(demo::run(&location, command)),
        CliCommand::Register(command) => block_on(register::run(command)),

        CliCommand::Resolve(command) => block_on(resolve::run(&location, command)),
        CliCommand::Explain(command) => block_on(explain::run(&location, command)),
        CliCommand::Ls(command) => block_on(ls::run(&location, command)),
        CliCommand::Diff(command) => block_on(async { Ok(diff::run(&location, command).await) }),
        CliCommand::Watch(command) => block_on(watch::run(&location, command)),

        CliCommand::Check(command) => block_on(check::run(&location, command)),
        CliCommand::Run(command) => Ok(run::run(&location, &command)),
        CliCommand::Install(command) => block_on(install::run(&location, command)),
        CliCommand::Uninstall(command) => uninstall::run(&command),
        CliCommand::Keep(KeepArgs {}) => block_on(keep::run()),

        CliCommand::Status(command) => block_on(status::run(&location, command)),
        CliCommand::Reload(command) => block_on(reload::run(&location, command)),
        CliCommand::Release(command) => block_on(release::run(&location, command)),
        CliCommand::Doctor(command) => block_on(doctor::run(&location, command)),
    }
}

/// The directories of the server, as given by flags.
#[derive(Debug)]
struct ServerLocation {
    runtime_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

impl ServerLocation {
    /// Returns the runtime directory that a flag or variable sets, if any.
    ///
    /// A state directory also sets the runtime directory.
    fn named(&self) -> Option<PathBuf> {
        let flags =
            [&self.runtime_dir, &self.state_dir].map(|path| path.clone().map(OsString::from));
        let variables = ["SVCDNS_RUNTIME_DIR", "SVCDNS_STATE_DIR"].map(std::env::var_os);
        let mut given = flags.into_iter().chain(variables).flatten();
        given.find(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// Returns the sources with these flags and the flags of the directories.
    fn source(&self, file: Option<&Path>, flags: Flags) -> ConfigSource {
        let given = [("runtime-dir", &self.runtime_dir), ("state-dir", &self.state_dir)];
        let flags = given.into_iter().fold(flags, |flags, (key, path)| match path {
            Some(path) => flags.with(key, path.to_string_lossy()),
            None => flags,
        });
        ConfigSource { file: file.map(Path::to_owned), flags }
    }

    /// Loads the configuration with these flags and the flags of the directories.
    fn configure(&self, file: Option<&Path>, flags: Flags) -> Result<Config, ConfigError> {
        self.source(file, flags).load()
    }
}

/// Replaces an unspecified address by loopback, which this machine can query.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Reports that a command cannot be run, and returns the exit code.
fn report_not_run(program: &str, error: &std::io::Error) -> ExitCode {
    output::complain(&format!("cannot run {program}: {error}"));
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    ExitCode::from(if missing { COMMAND_NOT_FOUND } else { COMMAND_NOT_RUN })
}

fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(command);
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
    ended
}
