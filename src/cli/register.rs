//! `svcdns register`: keeps a service registered while a command runs.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::{Signal as SignalNumber, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::arguments::RegisterArgs;
use super::output::complain;
use crate::config::{Config, ConfigSource};
use crate::name;
use crate::registry::{NamedSource, RegisterEvent, Registrant, gsvc};
use crate::service::{Metadata, Registration};

/// Maximum wait until the registration is removed.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) async fn run(command: RegisterArgs) -> anyhow::Result<ExitCode> {
    let source = ConfigSource { file: command.file.config.clone(), flags: command.flags.0.clone() };
    let config = source.load()?;
    let Registration { id, endpoints, metadata, .. } = parse_registration(&command, &config)?;
    let registrant = Registrant {
        head: command.head,
        id,
        endpoints,
        metadata: (*metadata).clone(),
        ttl: command.ttl,
    };
    let signals = ForwardedSignals::new()?;
    let child = match command.command.split_first() {
        None => None,
        Some((program, arguments)) => {
            match Command::new(program).args(arguments).kill_on_drop(true).spawn() {
                Ok(child) => Some(child),
                Err(error) => {
                    return Ok(super::report_not_run(program, &error));
                }
            }
        }
    };

    let (stop, mut registrations) = (CancellationToken::new(), JoinSet::new());
    for registry in config.registries.into_iter().filter(|registry| registry.source.is_writable()) {
        registrations.spawn(keep_registered(registry, registrant.clone(), stop.clone()));
    }
    let ended = wait_for_end(child, signals, &mut registrations, &stop).await;
    stop.cancel();
    let mut failed = false;
    let removal = async {
        while let Some(ended) = registrations.join_next().await {
            if let Err(error) = ended.map_err(anyhow::Error::from).and_then(|ended| ended) {
                complain(&format!("{error:#}"));
                failed = true;
            }
        }
    };
    if tokio::time::timeout(REMOVAL_TIMEOUT, removal).await.is_err() {
        complain("the registration could not be removed in time; it expires by itself");
        failed = true;
    }
    match ended? {
        Some(status) => Ok(exit_code(status).into()),
        None if failed => Ok(ExitCode::FAILURE),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Parses the arguments with the parser of servers for keys and values.
///
/// # Errors
/// If a server would reject any part of them.
fn parse_registration(command: &RegisterArgs, config: &Config) -> anyhow::Result<Registration> {
    let mut metadata = BTreeMap::new();
    for entry in &command.metadata {
        let (key, value) = entry
            .split_once('=')
            .with_context(|| format!("--metadata {entry:?} is not KEY=VALUE"))?;
        metadata.insert(key.into(), value.into());
    }
    let (deployment, namespace) = (&config.deployment, &config.namespace);
    let (head, name, version) = (&command.head, &command.name, &command.version);
    let key = format!(
        "/{head}/{deployment}/{namespace}/{name}/{version}/{}",
        command.endpoints.join(",")
    );
    let value = gsvc::value(&Metadata::new(metadata));
    let registration = gsvc::parse(key.as_bytes(), value.as_bytes())
        .map_err(|rejected| anyhow!("{}: {}", rejected.found, rejected.reason))?;
    if let Some(rejected) = registration.rejected.first() {
        bail!("{}: {}", rejected.found, rejected.reason);
    }
    if registration.id.name.as_ref() != name || registration.id.version.as_ref() != version {
        bail!("{key:?} would be parsed as another service: no part may contain '/'");
    }
    name::base_of(name, &config.zones).map_err(|_| {
        anyhow!(
            "{name:?} cannot be a DNS name: a label has 1 to 63 characters of a-z, \
             0-9, '-' and '_', and does not start with '_'"
        )
    })?;
    Ok(registration)
}

/// Maintains the registration in one registry until `stop`; reports every change.
async fn keep_registered(
    registry: NamedSource,
    registrant: Registrant,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let name = &registrant.id.name;
    // While a registry is unreachable, every attempt fails with the same error: report it once.
    let reported = Mutex::new(String::new());
    let report = |event| {
        let mut reported = reported.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            RegisterEvent::Registered => {
                reported.clear();
                complain(&format!("{name} is registered in {registry}"));
            }
            RegisterEvent::Recovered => {
                reported.clear();
                complain(&format!("{name} is still registered in {registry}"));
            }
            RegisterEvent::Failed(error) if *reported != error => {
                complain(&format!(
                    "{name} cannot be registered in {registry} now, trying again: {error}"
                ));
                *reported = error;
            }
            RegisterEvent::Left => complain(&format!(
                "{name} remains in {}: another program registers it too",
                registry.name
            )),
            RegisterEvent::Failed(_) | RegisterEvent::Removed => {}
        }
    };
    let ended = registry.source.register(&registrant, stop, report).await;
    ended.with_context(|| format!("registry {}", registry.name))
}

/// Waits until the command ends; without a command, until a signal arrives.
///
/// Returns the exit status of the command. A registration that fails for good ends the command.
async fn wait_for_end(
    child: Option<Child>,
    mut signals: ForwardedSignals,
    registrations: &mut JoinSet<anyhow::Result<()>>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<ExitStatus>> {
    let mut failure = None;
    let Some(mut child) = child else {
        tokio::select! {
            _ = signals.next() => return Ok(None),
            Some(ended) = registrations.join_next() => {
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
            signal = signals.next() => {
                // The registration is removed first, so that no client is sent to a service that
                // exits.
                stop.cancel();
                // A terminal also sends Ctrl-C to the command; a second SIGINT may end it at once.
                if signal != SignalNumber::SIGINT || !std::io::stdin().is_terminal() {
                    forward(&child, signal);
                }
            }
            Some(ended) = registrations.join_next(), if !stop.is_cancelled() => {
                if let Err(error) = ended.map_err(anyhow::Error::from).and_then(|ended| ended) {
                    failure.get_or_insert(error);
                    stop.cancel();
                    forward(&child, SignalNumber::SIGTERM);
                }
            }
        }
    }
}

fn forward(child: &Child, signal: SignalNumber) {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // Fails only if the command has just ended.
        let _ = kill(Pid::from_raw(id), signal);
    }
}

/// Converts an exit status to an exit code as shells do.
///
/// The code is 128 plus the signal number if a signal killed the command.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// The signals that are forwarded to the command.
///
/// `None` is a signal that was ignored at startup. `nohup` ignores SIGHUP, and `&` in a script
/// ignores SIGINT. Such a signal stays ignored, also in the command, as if the command had been
/// started directly.
#[derive(Debug)]
struct ForwardedSignals {
    terminate: Signal,
    interrupt: Option<Signal>,
    hang_up: Option<Signal>,
}

impl ForwardedSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: unless_ignored(SignalKind::interrupt())?,
            hang_up: unless_ignored(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> SignalNumber {
        let Self { terminate, interrupt, hang_up } = self;
        tokio::select! {
            _ = terminate.recv() => SignalNumber::SIGTERM,
            () = received(interrupt) => SignalNumber::SIGINT,
            () = received(hang_up) => SignalNumber::SIGHUP,
        }
    }
}

/// Listens for a signal unless this process ignores it (`SigIgn` of proc(5)).
fn unless_ignored(kind: SignalKind) -> std::io::Result<Option<Signal>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let ignored = mask.is_some_and(|mask| mask & 1 << (kind.as_raw_value() - 1) != 0);
    if ignored { Ok(None) } else { signal(kind).map(Some) }
}

/// Waits for a signal; waits forever if the signal is ignored.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
