//! The commands: one file each. The only room that prints.

mod arguments;
mod check;
mod client;
mod demo;
mod doctor;
mod explain;
mod install;
mod installed_server;
mod ls;
mod names;
mod output;
mod privilege;
mod register;
mod resolve;
mod run;
mod serve;
mod status;
mod uninstall;
mod watch;

use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::config::{Config, ConfigError, Flags};
use arguments::{Arguments, Command};
use client::NotRunning;

/// What was looked for is not there: no such name, or no record of that type.
const NOT_FOUND: u8 = 2;

/// The server answered with a failure.
const FAILED_ANSWER: u8 = 3;

/// There is no running server to ask.
const NOT_REACHED: u8 = 4;

/// The command line cannot be understood (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

/// What shells, and commands that run others, say of a command that is not there, and of one that cannot be run.
const COMMAND_NOT_FOUND: u8 = 127;
const COMMAND_NOT_RUN: u8 = 126;

/// Threads of the runtime that a command runs on. Queries over UDP have threads of their own (`server`), so a few do.
const THREADS: usize = 2;

/// Runs the program with the arguments of the process, to its end.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing is left to be done where even this cannot be said.
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
            ExitCode::from(if error.is::<NotRunning>() { NOT_REACHED } else { 1 })
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { runtime_dir, state_dir, command } = arguments;
    let place = Place { runtime_dir, state_dir };
    match command {
        Command::Serve(command) => block_on(serve::run(&place, command)),
        Command::Demo(command) => block_on(demo::run(&place, command)),
        Command::Register(command) => block_on(register::run(command)),
        Command::Run(command) => Ok(run::run(&place, &command)),

        Command::Doctor(command) => block_on(doctor::run(&place, command)),
        Command::Check(command) => check::run(&place, command),
        Command::Status(command) => block_on(status::run(&place, command)),
        Command::Ls(command) => block_on(ls::run(&place, command)),
        Command::Resolve(command) => block_on(resolve::run(&place, command)),
        Command::Explain(command) => block_on(explain::run(&place, command)),
        Command::Watch(command) => block_on(watch::run(&place, command)),

        Command::Install(command) => block_on(install::run(&place, command)),
        Command::Uninstall(command) => uninstall::run(&command),
    }
}

/// What every command is told about where the server is.
#[derive(Debug)]
struct Place {
    runtime_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

impl Place {
    /// The runtime directory named by a flag or a variable: the state directory's name it, too.
    fn named(&self) -> Option<PathBuf> {
        let flags = [&self.runtime_dir, &self.state_dir].map(|path| path.clone().map(OsString::from));
        let variables = ["SVCDNS_RUNTIME_DIR", "SVCDNS_STATE_DIR"].map(std::env::var_os);
        let mut given = flags.into_iter().chain(variables).flatten();
        given.find(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// The configuration from file, environment and these flags.
    fn configure(&self, file: Option<&Path>, flags: Flags) -> Result<Config, ConfigError> {
        let given = [("runtime-dir", &self.runtime_dir), ("state-dir", &self.state_dir)];
        let flags = given.into_iter().fold(flags, |flags, (key, path)| match path {
            Some(path) => flags.with(key, path.to_string_lossy()),
            None => flags,
        });
        configure(file, &flags)
    }
}

/// The configuration from file, environment and flags.
fn configure(file: Option<&Path>, flags: &Flags) -> Result<Config, ConfigError> {
    let environment = std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    Config::load(file, environment, flags)
}

/// Says that a command cannot be run.
fn not_run(program: &str, error: &std::io::Error) -> ExitCode {
    output::complain(&format!("cannot run {program}: {error}"));
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { COMMAND_NOT_FOUND } else { COMMAND_NOT_RUN })
}

fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let ended = runtime.block_on(command);
    // What is still running has had its time.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    ended
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
