//! Arguments of the command line.
//!
//! The doc comments of commands and their arguments are the help texts: `-h` shows the first
//! paragraph, `--help` all of them.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{DiffFlags, RegistryFlags, ServeFlags};

/// Serve a GoFrame service registry over DNS.
#[derive(Debug, Parser)]
#[command(name = "svcdns", version, max_term_width = 100)]
pub(super) struct Arguments {
    /// Directory of the server's socket [SVCDNS_RUNTIME_DIR].
    ///
    /// Default: --state-dir, if given; else $RUNTIME_DIRECTORY; else /run/svcdns for root; else
    /// $XDG_RUNTIME_DIR/svcdns, or svcdns-UID in the temp directory. Without either flag, all
    /// commands except `serve` also look in /run/svcdns.
    #[arg(long, global = true, value_name = "DIR", help_heading = "Directories of the server")]
    pub(super) runtime_dir: Option<PathBuf>,
    /// Directory of the data that the server keeps across restarts [SVCDNS_STATE_DIR].
    ///
    /// Default: $STATE_DIRECTORY; else /var/lib/svcdns for root; else $XDG_STATE_HOME/svcdns, or
    /// ~/.local/state/svcdns.
    #[arg(long, global = true, value_name = "DIR", help_heading = "Directories of the server")]
    pub(super) state_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: CliCommand,
}

// The order of the variants does not matter: `help::GROUPS` orders the commands.
#[derive(Debug, Subcommand)]
pub(super) enum CliCommand {
    /// Serve the names of registered services over DNS.
    ///
    /// Read the configuration file, environment variables and flags, follow the registries, and
    /// answer queries until SIGTERM or SIGINT.
    #[command(after_long_help = "\
Exit codes:
  0  stopped by a signal, or succeeded by a server with --take-over
  1  an error
  4  --take-over, but no server is running")]
    Serve(ServeArgs),
    /// Serve an example service and print example commands.
    ///
    /// The demo runs in a temporary directory and reads no configuration. Ctrl-C ends it and
    /// removes the directory.
    #[command(after_long_help = "\
Exit codes:
  0  stopped by a signal
  1  an error")]
    Demo(DemoArgs),
    /// Register a service while a command runs.
    ///
    /// Use it for programs that do not register themselves. Without a command, keep the
    /// registration until SIGTERM, SIGINT or SIGHUP.
    #[command(after_long_help = "\
Exit codes:
  the command's own (128 plus the signal's number if a signal killed it)
  126  the command cannot be run
  127  there is no such command
Without a command:
  0  the registration was removed
  1  an error")]
    Register(RegisterArgs),

    /// Query the running server and print the records.
    #[command(after_long_help = "\
Exit codes:
  0  there is an answer
  1  an error
  2  there is no such name, or no record of that type
  3  the response is a failure (SERVFAIL, REFUSED, ...)
  4  no server is running")]
    Resolve(ResolveArgs),
    /// Explain step by step how a query is answered.
    ///
    /// Ask the running server. With --registry, read the registry directly and explain how a
    /// server following it would answer; the other configuration flags require --registry.
    #[command(after_long_help = "\
Exit codes:
  0  there is an answer
  1  an error
  2  there is no such name, or no record of that type
  3  the response is a failure (SERVFAIL, REFUSED, ...)
  4  no server is running")]
    Explain(ExplainArgs),
    /// List services and instances.
    ///
    /// For each instance that is not served, show the reason.
    #[command(after_long_help = "\
Exit codes:
  0  success
  1  an error
  2  NAME is not registered
  4  no server is running")]
    Ls(LsArgs),
    /// Compare the services of two registries.
    ///
    /// Read both once, without a running server. Compare services by registered name, deployment,
    /// namespace, version, endpoint and metadata.
    #[command(after_long_help = "\
Exit codes:
  0  the registries are equal
  1  they differ
  2  an error")]
    Diff(DiffArgs),
    /// Print changes to services as they happen.
    #[command(after_long_help = "\
Exit codes:
  1  an error
  4  no server is running, or it exited")]
    Watch(WatchArgs),

    /// Check the configuration and show the source of each value.
    ///
    /// If the configuration is invalid, print the error and its location. If a server is running,
    /// also print what `svcdns reload` would change.
    #[command(after_long_help = "\
Exit codes:
  0  the configuration is valid
  1  the configuration is invalid")]
    Check(CheckArgs),
    /// Run a command with svcdns as its resolver.
    ///
    /// Give the command its own /etc/resolv.conf, in a mount namespace. Change nothing else on
    /// this machine.
    #[command(after_long_help = "\
Exit codes:
  the command's own
  125  an error before the command started
  126  the command cannot be run
  127  there is no such command")]
    Run(RunArgs),
    /// Point this machine's name resolution at svcdns.
    ///
    /// Test with a lookup through the C library; revert all changes if the lookup fails.
    #[command(after_long_help = "\
Exit codes:
  0  done, or nothing to do
  1  an error (all changes were reverted)
  4  no server is running; the output shows the command that starts one")]
    Install(InstallArgs),
    /// Undo what `install` changed.
    #[command(after_long_help = "\
Exit codes:
  0  done, or nothing to do
  1  an error; the output names the files that could not be restored")]
    Uninstall(UninstallArgs),
    /// Put svcdns back when a program rewrites /etc/resolv.conf.
    ///
    /// Watch the file. When another program rewrites it, restore svcdns's `nameserver` line, and
    /// make the name servers of the new file the upstreams. If another program keeps rewriting the
    /// file, wait longer before each repair. With systemd, `install --keep` writes a unit that runs
    /// this command.
    #[command(after_long_help = "\
Exit codes:
  0  stopped by a signal, or svcdns is no longer installed
  1  an error, or `svcdns install --keep` was not run before")]
    Keep(KeepArgs),

    /// Show the running server, its registries and its upstreams.
    #[command(after_long_help = "\
Exit codes:
  0  success
  1  an error
  4  no server is running")]
    Status(StatusArgs),
    /// Make the running server read its configuration again.
    ///
    /// Read the file, the server's own flags and environment, and the files with secrets. Apply
    /// what has changed without losing a query, and print it. A key that needs a restart is named
    /// and keeps its value. If the configuration does not hold, nothing changes. Only root and the
    /// user that svcdns runs as may use it.
    #[command(after_long_help = "\
Exit codes:
  0  the changes were applied, or nothing has changed
  1  an error: the configuration does not hold, or no permission
  4  no server is running")]
    Reload(ReloadArgs),
    /// Apply held removals at once.
    ///
    /// When a registry loses many keys at once, svcdns keeps serving them for `removal-grace`, in
    /// case their programs are alive (`svcdns status` shows why). If they are gone for good,
    /// `release` removes them now. Only root and the user that svcdns runs as may use it.
    #[command(after_long_help = "\
Exit codes:
  0  the held removals were applied, or nothing was on hold
  1  an error: no registry of this name, or no permission
  4  no server is running")]
    Release(ReleaseArgs),
    /// Check every step of name resolution on this machine.
    ///
    /// Print each problem and the command that fixes it. Change nothing.
    #[command(after_long_help = "\
Exit codes:
  0  nothing is broken; there may be warnings
  1  something is broken, or an error")]
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
pub(super) struct ConfigFileArgs {
    /// Configuration file [SVCDNS_CONFIG] [default: /etc/svcdns/svcdns.toml, if it exists].
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Take over the sockets of the running server, without losing a query.
    ///
    /// The running server goes on until this one has read every registry; then it answers the
    /// queries that it has received, and ends. For servers without a service manager; a service is
    /// restarted by the manager.
    #[arg(long)]
    pub(super) take_over: bool,
    #[command(flatten)]
    pub(super) file: ConfigFileArgs,
    #[command(flatten)]
    pub(super) flags: ServeFlags,
}

#[derive(Debug, Args)]
pub(super) struct DemoArgs {}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Service to list; the zone suffix is optional.
    #[arg(value_name = "NAME")]
    pub(super) name: Option<String>,
    /// List the keys and endpoints that cannot be served, with the reason.
    #[arg(long, conflicts_with_all = ["name", "conflicts"])]
    pub(super) rejected: bool,
    /// List the names that several services claim.
    #[arg(long, conflicts_with = "name")]
    pub(super) conflicts: bool,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// First registry: the name of a configured one, or a URL.
    #[arg(value_name = "A")]
    pub(super) a: String,
    /// Second registry: the name of a configured one, or a URL.
    #[arg(value_name = "B")]
    pub(super) b: String,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) file: ConfigFileArgs,
    #[command(flatten)]
    pub(super) flags: DiffFlags,
}

#[derive(Debug, Args)]
pub(super) struct ResolveArgs {
    /// Name (the zone suffix is optional) or IP address.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Record type: A, AAAA, SRV, TXT, ... [default: A and AAAA; PTR for an address].
    #[arg(value_name = "TYPE")]
    pub(super) kind: Option<String>,
    /// Query this server instead of the running one.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) server: Option<SocketAddr>,
    /// Append this zone to relative names; with --server only.
    #[arg(long, value_name = "NAME", default_value = "svc", requires = "server")]
    pub(super) zone: String,
    /// Print only the RDATA of the records, one per line.
    #[arg(long)]
    pub(super) short: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Name (the zone suffix is optional) or IP address.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Record type [default: A; PTR for an address].
    #[arg(value_name = "TYPE")]
    pub(super) kind: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// UDP payload size of the client, in bytes; 0 for a client without EDNS.
    #[arg(long, value_name = "BYTES", default_value_t = 1232)]
    pub(super) payload: u16,
    #[command(flatten)]
    pub(super) file: ConfigFileArgs,
    #[command(flatten)]
    pub(super) flags: ServeFlags,
}

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// Service to watch; the zone suffix is optional.
    #[arg(value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Print JSON, one object per line.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RegisterArgs {
    /// Name to register, as a GoFrame program would: `hello.svc` or `hello`.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Endpoint of the service.
    #[arg(value_name = "HOST:PORT", required = true)]
    pub(super) endpoints: Vec<String>,
    /// Metadata of the instance, such as weight=5 or protocol=http; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) metadata: Vec<String>,
    /// Version of the service.
    #[arg(long, value_name = "VERSION", default_value = "latest")]
    pub(super) version: String,
    /// First segment of the registry key.
    #[arg(long, value_name = "HEAD", default_value = "service")]
    pub(super) head: String,
    /// Lease TTL: the registration expires this long after `register` is killed; etcd only.
    #[arg(
        long = "ttl",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    pub(super) ttl: Duration,
    /// Command to run; the registration ends with it.
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
    #[command(flatten)]
    pub(super) file: ConfigFileArgs,
    #[command(flatten)]
    pub(super) flags: RegistryFlags,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Query this server, at port 53, instead of the running one.
    #[arg(long, value_name = "ADDR")]
    pub(super) server: Option<IpAddr>,
    /// Zone that the server serves; with --server only.
    #[arg(long, value_name = "NAME", default_value = "svc", requires = "server")]
    pub(super) zone: String,
    /// Append the zone to the search list: `hello` finds `hello.svc`.
    #[arg(long)]
    pub(super) search: bool,
    /// Run the command as this user (name or number); for root only.
    ///
    /// Set the user's groups, HOME, USER and LOGNAME too.
    #[arg(long, value_name = "USER")]
    pub(super) user: Option<String>,
    /// Command to run, with its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub(super) file: ConfigFileArgs,
    #[command(flatten)]
    pub(super) flags: ServeFlags,
}

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// Registry whose holds end; default: every registry.
    #[arg(value_name = "REGISTRY")]
    pub(super) registry: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(super) struct InstallArgs {
    /// Show every change without making any.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Add the served zones to the search list, so that `http://hello/` works.
    #[arg(long)]
    pub(super) search: bool,
    /// Keep the existing name servers in /etc/resolv.conf, listed after svcdns.
    ///
    /// The flag takes effect only if `install` changes /etc/resolv.conf itself. glibc queries these
    /// servers if svcdns does not respond. musl queries all servers at once, so their NXDOMAIN may
    /// win.
    #[arg(long)]
    pub(super) keep_nameservers: bool,
    /// Change /etc/resolv.conf even if it is immutable (chattr +i).
    ///
    /// `install` makes the file immutable again afterwards.
    #[arg(long)]
    pub(super) lift_immutable: bool,
    /// Restore svcdns's `nameserver` line whenever another program rewrites /etc/resolv.conf.
    ///
    /// The flag takes effect only if `install` changes /etc/resolv.conf itself. The name servers
    /// that the other program writes become the upstreams (`upstream = system`).
    #[arg(long)]
    pub(super) keep: bool,
    #[command(flatten)]
    pub(super) file: ConfigFileArgs,
    #[command(flatten)]
    pub(super) flags: ServeFlags,
}

#[derive(Debug, Args)]
pub(super) struct KeepArgs {}

#[derive(Debug, Args)]
pub(super) struct UninstallArgs {
    /// Show every file that would be restored, and change nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
}
