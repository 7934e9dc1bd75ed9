//! `svcdns register`.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::{Signal as Number, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::arguments::Register;
use super::output::complain;
use crate::config::Config;
use crate::name;
use crate::registry::{NamedSource, RegisterEvent, Registrant, gsvc};
use crate::service::{Metadata, Registration};

/// How long a registration may take to be taken back.
const FAREWELL: Duration = Duration::from_secs(15);

pub(super) async fn run(command: Register) -> anyhow::Result<ExitCode> {
    let config = super::configure(command.file.config.as_deref(), &command.flags.0)?;
    let Registration { id, endpoints, metadata, .. } = understand(&command, &config)?;
    let registrant = Registrant { head: command.head, id, endpoints, metadata: (*metadata).clone(), ttl: command.ttl };
    let signals = Signals::new()?;
    let child = match command.command.split_first() {
        None => None,
        Some((program, arguments)) => match Command::new(program).args(arguments).kill_on_drop(true).spawn() {
            Ok(child) => Some(child),
            Err(error) => {
                return Ok(super::not_run(program, &error));
            }
        },
    };

    let (stop, mut kept) = (CancellationToken::new(), JoinSet::new());
    for registry in config.registries {
        kept.spawn(keep(registry, registrant.clone(), stop.clone()));
    }
    let ended = attend(child, signals, &mut kept, &stop).await;
    stop.cancel();
    let mut failed = false;
    let farewell = async {
        while let Some(ended) = kept.join_next().await {
            if let Err(error) = ended.map_err(anyhow::Error::from).and_then(|ended| ended) {
                complain(&format!("{error:#}"));
                failed = true;
            }
        }
    };
    if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
        complain("the registration could not be taken back in time; it goes by itself when its time is up");
        failed = true;
    }
    match ended? {
        Some(status) => Ok(code(status).into()),
        None if failed => Ok(ExitCode::FAILURE),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The registration as its readers will read it.
fn understand(command: &Register, config: &Config) -> anyhow::Result<Registration> {
    let mut metadata = BTreeMap::new();
    for entry in &command.metadata {
        let (key, value) = entry.split_once('=').with_context(|| format!("--metadata {entry:?} is not KEY=VALUE"))?;
        metadata.insert(key.into(), value.into());
    }
    let (deployment, namespace) = (&config.deployment, &config.namespace);
    let (head, name, version) = (&command.head, &command.name, &command.version);
    let key = format!("/{head}/{deployment}/{namespace}/{name}/{version}/{}", command.endpoints.join(","));
    let value = gsvc::value(&Metadata::new(metadata));
    let registration = gsvc::parse(key.as_bytes(), value.as_bytes()).map_err(|why| anyhow!("{}: {}", why.found, why.reason))?;
    if let Some(why) = registration.rejected.first() {
        bail!("{}: {}", why.found, why.reason);
    }
    if registration.id.name.as_ref() != name || registration.id.version.as_ref() != version {
        bail!("{key:?} would be read as another service: no part may hold a '/'");
    }
    name::base_of(name, &config.zones).map_err(|_| {
        anyhow!("{name:?} cannot be a DNS name: labels of 1 to 63 of a-z, 0-9, '-' and '_' are needed, none beginning with '_'")
    })?;
    Ok(registration)
}

/// Keeps the registration in one registry until `stop`, and tells the person about it.
async fn keep(registry: NamedSource, registrant: Registrant, stop: CancellationToken) -> anyhow::Result<()> {
    let name = &registrant.id.name;
    // Every attempt fails for the same reason while a registry is away: said once.
    let said = Mutex::new(String::new());
    let tell = |event| {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            RegisterEvent::Registered => {
                said.clear();
                complain(&format!("{name} is registered in {registry}"));
            }
            RegisterEvent::Failed(error) if *said != error => {
                complain(&format!("{name} cannot be kept in {registry} now, and is tried again: {error}"));
                *said = error;
            }
            RegisterEvent::Left => complain(&format!("{name} stays in {}: another program keeps it, too", registry.name)),
            RegisterEvent::Failed(_) | RegisterEvent::Removed => {}
        }
    };
    let kept = registry.source.register(&registrant, stop, tell).await;
    kept.with_context(|| format!("registry {}", registry.name))
}

/// Waits until the command ends, or, without one, until a signal comes. A registration that fails for good ends both.
async fn attend(
    child: Option<Child>,
    mut signals: Signals,
    kept: &mut JoinSet<anyhow::Result<()>>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<ExitStatus>> {
    let mut failure = None;
    let Some(mut child) = child else {
        tokio::select! {
            _ = signals.next() => return Ok(None),
            Some(ended) = kept.join_next() => {
                ended??;
                return Ok(None);
            }
        }
    };
    loop {
        tokio::select! {
            status = child.wait() => {
                return match failure {
                    Some(error) => Err(error),
                    None => Ok(Some(status?)),
                };
            }
            number = signals.next() => {
                // Taken back at once: nobody is to be sent to a service that is about to end.
                stop.cancel();
                // A terminal sends Ctrl-C to the command, too; a second one might mean "at once" to it.
                if number != Number::SIGINT || !std::io::stdin().is_terminal() {
                    forward(&child, number);
                }
            }
            Some(ended) = kept.join_next(), if !stop.is_cancelled() => {
                if let Err(error) = ended.map_err(anyhow::Error::from).and_then(|ended| ended) {
                    failure.get_or_insert(error);
                    stop.cancel();
                    forward(&child, Number::SIGTERM);
                }
            }
        }
    }
}

fn forward(child: &Child, number: Number) {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // One that has just ended needs no signal.
        let _ = kill(Pid::from_raw(id), number);
    }
}

/// A status as shells put it: 128 and the signal for a process that was killed.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// The signals that are passed on; `None` is one that was ignored when we started.
///
/// `nohup` ignores SIGHUP, and `&` in a script SIGINT. Such a signal stays ignored, so that the
/// command inherits it as if it had been started directly.
#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Option<Signal>,
    hang_up: Option<Signal>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: unless_ignored(SignalKind::interrupt())?,
            hang_up: unless_ignored(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Number {
        let Self { terminate, interrupt, hang_up } = self;
        tokio::select! {
            _ = terminate.recv() => Number::SIGTERM,
            () = received(interrupt) => Number::SIGINT,
            () = received(hang_up) => Number::SIGHUP,
        }
    }
}

/// Listens for a signal unless this process ignores it, as the kernel's mask says (proc(5)).
fn unless_ignored(kind: SignalKind) -> std::io::Result<Option<Signal>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let ignored = mask.is_some_and(|mask| mask & 1 << (kind.as_raw_value() - 1) != 0);
    if ignored { Ok(None) } else { signal(kind).map(Some) }
}

/// Waits for a signal; forever if it is ignored.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
