//! `svcdns run`: runs a command with svcdns as its resolver.

use std::ffi::{CString, OsString};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow, bail};
use hickory_proto::rr::RecordType;
use nix::unistd::{Uid, User, initgroups, setgid, setuid};

use super::arguments::RunArgs;
use super::client::{AdminClient, NotRunning};
use super::{ServerLocation, names, output, reachable, resolve};
use crate::admin::ServerStatus;
use crate::name::{Name, Zones};
use crate::system::{self, NamespaceError, PrivateResolvConf, Root, RuntimeState};

/// Exit code if `run` fails before the command starts (as with env(1)).
const NOT_STARTED: u8 = 125;

/// Port of every name server in resolv.conf, which cannot contain a port.
const DNS_PORT: u16 = 53;

/// Returns advice on starting a server that `run` can use.
fn advise_start() -> String {
    let address = system::free_loopback()
        .map_or_else(|| "127.0.0.1".to_owned(), |address| address.to_string());
    format!(
        "resolv.conf has no room for a port, so svcdns must listen on port 53 of a loopback \
         address, which needs root: `sudo svcdns serve --listen {address}:53`, with --registry"
    )
}

/// Replaces this process by the command; returns only if that fails.
///
/// The command therefore keeps its own exit code, signals, terminal and children.
pub(super) fn run(location: &ServerLocation, command: &RunArgs) -> ExitCode {
    match prepare(location, command) {
        Ok(mut prepared) => {
            let error = prepared.exec();
            super::report_not_run(&prepared.get_program().to_string_lossy(), &error)
        }
        Err(error) => {
            output::complain(&format!("{error:#}"));
            NOT_STARTED.into()
        }
    }
}

/// Enters the command's namespaces and builds the command.
fn prepare(location: &ServerLocation, command: &RunArgs) -> anyhow::Result<Command> {
    let (program, arguments) = command.command.split_first().context("no command")?;
    let mut prepared = Command::new(program);
    prepared.args(arguments);
    let user = command.user.as_deref().map(find_user).transpose()?;

    // A process with several threads cannot enter a user namespace (unshare(2)).
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = runtime.block_on(find_server(location, command))?;
    drop(runtime);

    let machine = system::detect(&Root::default(), &RuntimeState::default());
    let search: Vec<&str> =
        if command.search { vec![server.zones.first().relative_text()] } else { Vec::new() };
    let pointed = PrivateResolvConf {
        server: server.address,
        keep_others: server.refuses_others,
        search: &search,
    };
    system::enter_namespace(&pointed.to_text(&machine.file.conf()))
        .map_err(|error| add_advice(&error, &command.command))?;
    if let Some(user) = user {
        become_user(&user, &mut prepared)?;
    }
    Ok(prepared)
}

/// The server that the command queries.
struct RunServer {
    address: IpAddr,
    zones: Zones,
    /// Whether the server refuses names outside its zones.
    ///
    /// If it does, the machine's own name servers follow it in resolv.conf.
    refuses_others: bool,
}

/// Finds the server and checks that it responds on port 53.
async fn find_server(location: &ServerLocation, command: &RunArgs) -> anyhow::Result<RunServer> {
    let (address, zones, status) = if let Some(address) = command.server {
        (address, names::zones(std::slice::from_ref(&command.zone))?, None)
    } else {
        let client = AdminClient::find(location).await.map_err(|error| {
            if error.is::<NotRunning>() { anyhow!("{error}. {}", advise_start()) } else { error }
        })?;
        let status: ServerStatus = client.get("/v1/status").await?;
        (port_53_address(&status)?, names::zones(&status.zones)?, Some(status))
    };
    let server = SocketAddr::new(address, DNS_PORT);
    let own = Name::from_text(&format!("ns.{}", zones.first().text()))?;
    let response = resolve::query(server, &own, RecordType::A).await?;
    let refuses_others = match status {
        Some(status) => status.forwarding.is_none(),
        // RA (RFC 1035 section 4.1.1) must come from the server itself. A response for another
        // name, even a refusal with an EDE, may come from an upstream.
        None => !response.metadata.recursion_available,
    };
    Ok(RunServer { address, zones, refuses_others })
}

/// Returns the address of a server for resolv.conf, preferably a loopback one.
///
/// # Errors
/// If the server does not listen on port 53.
fn port_53_address(status: &ServerStatus) -> anyhow::Result<IpAddr> {
    let mut addresses: Vec<IpAddr> = status
        .listen
        .iter()
        .filter(|address| address.port() == DNS_PORT)
        .map(|address| reachable(*address).ip())
        .collect();
    addresses.sort_by_key(|address| (!address.is_loopback(), address.is_ipv6()));
    addresses.first().copied().ok_or_else(|| {
        let listen: Vec<String> = status.listen.iter().map(ToString::to_string).collect();
        anyhow!("the running svcdns listens on {} only. {}", listen.join(", "), advise_start())
    })
}

/// Adds the command that lets ordinary users create namespaces, if they may not.
fn add_advice(error: &NamespaceError, command: &[OsString]) -> anyhow::Error {
    let words: Vec<_> =
        command.iter().map(|word| output::quoted(&word.to_string_lossy())).collect();
    let user = User::from_uid(Uid::current())
        .ok()
        .flatten()
        .map_or_else(|| Uid::current().to_string(), |user| user.name);
    let advice = match error {
        NamespaceError::UserForbidden(_) => {
            format!(
                "; with root it works, and the command still runs as you: \
             sudo svcdns run --user {} -- {}",
                output::quoted(&user),
                words.join(" ")
            )
        }
        _ => String::new(),
    };
    anyhow!("{error}{advice}")
}

/// Looks up a user by name or number.
fn find_user(text: &str) -> anyhow::Result<User> {
    if !Uid::effective().is_root() {
        bail!("--user is for root only: the command of another user runs as that user");
    }
    let found = match text.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(text),
    };
    found.ok().flatten().with_context(|| format!("there is no user {text:?}"))
}

fn become_user(user: &User, command: &mut Command) -> anyhow::Result<()> {
    let name = CString::new(user.name.as_bytes())?;
    let changed =
        initgroups(&name, user.gid).and_then(|()| setgid(user.gid)).and_then(|()| setuid(user.uid));
    changed.with_context(|| format!("cannot become the user {}", user.name))?;
    command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
    Ok(())
}
