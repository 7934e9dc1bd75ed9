//! `svcdns run`.

use std::ffi::{CString, OsString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow, bail};
use hickory_proto::rr::RecordType;
use nix::unistd::{Uid, User, initgroups, setgid, setuid};

use super::arguments::Run;
use super::client::{Client, NotRunning};
use super::{Place, names, output, resolve};
use crate::admin::Status;
use crate::name::{Name, Zones};
use crate::system::{self, NamespaceError, PrivateResolvConf, Root, RuntimeState};

/// What commands that run others (env(1), timeout(1)) say when they fail before the other one runs.
const NOT_BEGUN: u8 = 125;

/// The port of every name server in resolv.conf, which has no place for another.
const PORT: u16 = 53;

/// What lets a server answer where `run` needs it.
fn start() -> String {
    let address = system::free_loopback().map_or_else(|| "127.0.0.1".to_owned(), |address| address.to_string());
    format!(
        "resolv.conf has no place for a port, so svcdns has to answer at port 53 of a loopback address, for which it needs root: \
         `sudo svcdns serve --listen {address}:53` with the registry's --registry"
    )
}

/// Ends in the command itself, in place of this process: its exit code, signals, terminal and children are its own.
pub(super) fn run(place: &Place, command: &Run) -> ExitCode {
    match prepare(place, command) {
        Ok(mut prepared) => {
            let error = prepared.exec();
            super::not_run(&prepared.get_program().to_string_lossy(), &error)
        }
        Err(error) => {
            output::complain(&format!("{error:#}"));
            NOT_BEGUN.into()
        }
    }
}

fn prepare(place: &Place, command: &Run) -> anyhow::Result<Command> {
    let (program, arguments) = command.command.split_first().context("no command")?;
    let mut prepared = Command::new(program);
    prepared.args(arguments);
    let user = command.user.as_deref().map(user).transpose()?;

    // One thread, since a process of several cannot enter a user namespace (unshare(2)); it ends here.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = runtime.block_on(find(place, command))?;
    drop(runtime);

    let machine = system::detect(&Root::default(), &RuntimeState::default());
    let search: Vec<&str> = if command.search { vec![server.zones.first().relative_text()] } else { Vec::new() };
    let pointed = PrivateResolvConf { server: server.address, keep_others: server.refuses_others, search: &search };
    system::enter_namespace(&pointed.to_text(&machine.file.conf())).map_err(|error| advise(&error, &command.command))?;
    if let Some(user) = user {
        become_user(&user, &mut prepared)?;
    }
    Ok(prepared)
}

/// The server that the command is to ask.
struct Server {
    address: IpAddr,
    zones: Zones,
    /// Whether it passes no other names on, so that the machine's own name servers are needed.
    refuses_others: bool,
}

async fn find(place: &Place, command: &Run) -> anyhow::Result<Server> {
    let (address, zones, status) = if let Some(address) = command.server {
        (address, names::zones(std::slice::from_ref(&command.zone))?, None)
    } else {
        let client =
            Client::find(place).await.map_err(|error| if error.is::<NotRunning>() { anyhow!("{error}. {}", start()) } else { error })?;
        let status: Status = client.get("/v1/status").await?;
        (at_port_53(&status)?, names::zones(&status.zones)?, Some(status))
    };
    let at = SocketAddr::new(address, PORT);
    let own = Name::from_text(&format!("ns.{}", zones.first().text()))?;
    let answer = resolve::ask(at, &own, RecordType::A).await?;
    let refuses_others = match status {
        Some(status) => status.forwarding.is_none(),
        // RA (RFC 1035 section 4.1.1) in an answer of its own. What comes back for another name may be an upstream's: its
        // refusal too, with its extended error.
        None => !answer.metadata.recursion_available,
    };
    Ok(Server { address, zones, refuses_others })
}

/// An address of the running server that can stand in resolv.conf: of loopback, where there is one.
fn at_port_53(status: &Status) -> anyhow::Result<IpAddr> {
    let mut addresses: Vec<IpAddr> =
        status.listen.iter().filter(|address| address.port() == PORT).map(|address| reachable(address.ip())).collect();
    addresses.sort_by_key(|address| (!address.is_loopback(), address.is_ipv6()));
    addresses.first().copied().ok_or_else(|| {
        let listen: Vec<String> = status.listen.iter().map(ToString::to_string).collect();
        anyhow!("the running svcdns answers on {} only. {}", listen.join(", "), start())
    })
}

/// The address at which this machine reaches a server that listens on all.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

/// What to type where there may be no namespace.
fn advise(error: &NamespaceError, command: &[OsString]) -> anyhow::Error {
    let words: Vec<_> = command.iter().map(|word| output::quoted(&word.to_string_lossy())).collect();
    let user = User::from_uid(Uid::current()).ok().flatten().map_or_else(|| Uid::current().to_string(), |user| user.name);
    let advice = match error {
        NamespaceError::UserForbidden(_) => {
            format!(
                "; as root it may, and the command runs as you: sudo svcdns run --user {} -- {}",
                output::quoted(&user),
                words.join(" ")
            )
        }
        _ => String::new(),
    };
    anyhow!("{error}{advice}")
}

/// The user of this name or number.
fn user(text: &str) -> anyhow::Result<User> {
    if !Uid::effective().is_root() {
        bail!("--user is for root: any other user's command runs as that user");
    }
    let found = match text.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(text),
    };
    found.ok().flatten().with_context(|| format!("there is no user {text:?}"))
}

fn become_user(user: &User, command: &mut Command) -> anyhow::Result<()> {
    let name = CString::new(user.name.as_bytes())?;
    let become_it = initgroups(&name, user.gid).and_then(|()| setgid(user.gid)).and_then(|()| setuid(user.uid));
    become_it.with_context(|| format!("cannot become the user {}", user.name))?;
    command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
    Ok(())
}
