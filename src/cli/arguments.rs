//! The command line.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{RegistryFlags, ServeFlags};

/// Serves the services of a GoFrame registry as DNS names.
#[derive(Debug, Parser)]
#[command(
    name = "svcdns",
    version,
    max_term_width = 120,
    after_help = "Exit codes: 0 done; 1 an error; 2 no such name or record (resolve, explain, ls NAME); 3 the answer is a failure (resolve, explain); 4 no running server; 64 the command line cannot be understood."
)]
pub(super) struct Arguments {
    /// The runtime directory of the server, which holds its socket [variable: SVCDNS_RUNTIME_DIR] [default: --state-dir, else the user's, then root's: $XDG_RUNTIME_DIR/svcdns or svcdns-UID in the temp directory, /run/svcdns].
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where the server is")]
    pub(super) runtime_dir: Option<PathBuf>,
    /// The state directory of the server, and its runtime directory unless that is named too [variable: SVCDNS_STATE_DIR] [default: /var/lib/svcdns for root, else $XDG_STATE_HOME/svcdns or ~/.local/state/svcdns].
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where the server is")]
    pub(super) state_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve DNS.
    Serve(Serve),
    /// Serve an example, and print what to try.
    Demo(Demo),
    /// List the services and instances that the running server knows.
    Ls(Ls),
    /// Ask the running server for a name, and print the records. Exit code: 0 found, 2 no such name or no such record, 3 the server failed.
    Resolve(Resolve),
    /// Say how a question is answered, and why. Exit code: 0 there is an answer, 2 there is none, 3 it is a failure.
    Explain(Explain),
    /// Print changes as they happen, until Ctrl-C.
    Watch(Watch),
    /// Register a service for a program that does not register itself, while this or its command runs. Exit code: that of the command, if there is one.
    Register(Register),
    /// Run a command whose names svcdns resolves; nothing else on this machine changes. Exit code: that of the command; 125 where this fails before it, 126 where it cannot be run, 127 where it is not found.
    Run(Run),
    /// Walk the way of a lookup on this machine, and say what is broken and what to type. Exit code: 0 nothing is broken, 1 something is.
    Doctor(Doctor),
    /// Check the configuration: print every value and where it comes from, or what is wrong. Exit code: 0 it is good, 1 it is not.
    Check(Check),
    /// Show the running server and its registries.
    Status(Status),
    /// Point this machine's name resolution at svcdns, prove that it works, or put everything back. Exit code: 0 done, 1 an error and nothing changed, 4 a server has to be started first.
    Install(Install),
    /// Put back what `install` changed.
    Uninstall(Uninstall),
}

/// The file of the configuration.
#[derive(Debug, Args)]
pub(super) struct File {
    /// The configuration file [variable: SVCDNS_CONFIG] [default: /etc/svcdns/svcdns.toml, where it exists].
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    pub(super) file: File,
    #[command(flatten)]
    pub(super) flags: ServeFlags,
}

#[derive(Debug, Args)]
pub(super) struct Demo {}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Only this service: its name, with or without the zone.
    #[arg(value_name = "NAME")]
    pub(super) name: Option<String>,
    /// What cannot be served, and why, instead.
    #[arg(long, conflicts_with_all = ["name", "conflicts"])]
    pub(super) rejected: bool,
    /// Names that two things claim, instead.
    #[arg(long, conflicts_with = "name")]
    pub(super) conflicts: bool,
    /// As JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Resolve {
    /// The name, with or without the zone, or an address.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// The type of record: A, AAAA, SRV, TXT … [default: A and AAAA; PTR for an address].
    #[arg(value_name = "TYPE")]
    pub(super) kind: Option<String>,
    /// Ask this server instead of the running one.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) server: Option<SocketAddr>,
    /// With --server: the zone of names that are written without one.
    #[arg(long, value_name = "NAME", default_value = "svc", requires = "server")]
    pub(super) zone: String,
    /// Only the data of the records, one a line.
    #[arg(long)]
    pub(super) short: bool,
}

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The name, with or without the zone, or an address.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// The type of record [default: A; PTR for an address].
    #[arg(value_name = "TYPE")]
    pub(super) kind: Option<String>,
    /// As JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// The octets that the client says it takes over UDP; 0 for one without EDNS.
    #[arg(long, value_name = "N", default_value_t = 1232)]
    pub(super) payload: u16,
    #[command(flatten)]
    pub(super) file: File,
    /// With --registry the registry is read anew, and no running server is asked; the other settings count only then.
    #[command(flatten)]
    pub(super) flags: ServeFlags,
}

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Only this service: its name, with or without the zone.
    #[arg(value_name = "NAME")]
    pub(super) name: Option<String>,
    /// As JSON, one object a line.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Register {
    /// The name to register under, as a GoFrame program would: `hello.svc` or `hello`.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Where the service is: HOST:PORT.
    #[arg(value_name = "ENDPOINT", required = true)]
    pub(super) endpoints: Vec<String>,
    /// What to say about it, e.g. weight=5 or protocol=http.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) metadata: Vec<String>,
    /// The version.
    #[arg(long, value_name = "VERSION", default_value = "latest")]
    pub(super) version: String,
    /// The first segment of the key.
    #[arg(long, value_name = "HEAD", default_value = "service")]
    pub(super) head: String,
    /// How long the registration outlives us when we are killed (etcd; GoFrame's file registry fixes its own).
    #[arg(long = "ttl", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(super) ttl: Duration,
    /// A command to run: the registration lasts as long as it does.
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
    #[command(flatten)]
    pub(super) file: File,
    #[command(flatten)]
    pub(super) flags: RegistryFlags,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Ask this server, at port 53, instead of the running one.
    #[arg(long, value_name = "ADDR")]
    pub(super) server: Option<IpAddr>,
    /// With --server: the zone it serves.
    #[arg(long, value_name = "NAME", default_value = "svc", requires = "server")]
    pub(super) zone: String,
    /// Let the command find short names, too: `hello` for `hello.svc`.
    #[arg(long)]
    pub(super) search: bool,
    /// As root: run the command as this user (name or number), with its groups, HOME, USER and LOGNAME.
    #[arg(long, value_name = "USER")]
    pub(super) user: Option<String>,
    /// The command.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// As JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    pub(super) file: File,
    #[command(flatten)]
    pub(super) flags: ServeFlags,
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// As JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(super) struct Install {
    /// Change nothing: only show what would be changed.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Put the served zones on the search list, so that `http://hello/` works.
    #[arg(long)]
    pub(super) search: bool,
    /// Where /etc/resolv.conf itself is changed: leave its name servers in it behind svcdns. glibc asks them when svcdns does not answer; musl asks all at once, so their "no such name" may win.
    #[arg(long)]
    pub(super) keep_nameservers: bool,
    /// Change /etc/resolv.conf although it is immutable (chattr +i), and make it so again.
    #[arg(long)]
    pub(super) lift_immutable: bool,
    #[command(flatten)]
    pub(super) file: File,
    #[command(flatten)]
    pub(super) flags: ServeFlags,
}

#[derive(Debug, Args)]
pub(super) struct Uninstall {
    /// Change nothing: only show what would be put back.
    #[arg(long)]
    pub(super) dry_run: bool,
}
