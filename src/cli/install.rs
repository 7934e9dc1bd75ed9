//! `svcdns install`: points this machine's name resolution at svcdns.

use std::fmt::Write;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::arguments::InstallArgs;
use super::installed_server::{
    ArrangedServer, ServerRequirements, running, settings, this_program,
};
use super::outside_names::OutsideNames;
use super::privilege::{lock_machine, require_root};
use super::{NOT_REACHED, ServerLocation, output, resolve, uninstall};
use crate::config::Config;
use crate::name::{Name, Zone};
use crate::system::{
    self, InstallOptions, InstallStep, Integration, Journal, KEEP_UNIT, KeptLine, Machine, Plan,
    Root, RuntimeState,
};
use crate::wire::rcode_name;

/// Maximum wait for the server to start, and for resolvers to notice the changes.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Maximum wait for the first name outside the zones, if svcdns is installed already.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn run(
    location: &ServerLocation,
    command: InstallArgs,
) -> anyhow::Result<ExitCode> {
    if !command.dry_run {
        require_root("install")?;
    }
    let config = location.configure(command.file.config.as_deref(), command.flags.0.clone())?;
    if !config.names_registries() {
        bail!(
            "name the registry, such as --registry etcd://10.0.0.1:2379: the default file \
             registry is for trials only"
        );
    }
    let root = Root::default();
    let lock = if command.dry_run { None } else { Some(lock_machine(&root)?) };
    // Load under the lock, or the journal of a concurrent `install` would be overwritten.
    let earlier = if command.dry_run {
        Journal::load(&root)?.or(uninstall::leftovers(&root)?.map(|found| found.journal))
    } else {
        uninstall::load(&root)?
    };
    if let Some(journal) = earlier {
        if command.dry_run {
            output::print(
                "An earlier installation would be undone first; the plan below assumes the \
                 machine as it is now.\n\n",
            )?;
        } else if journal.complete
            && journal.is_up_to_date()
            && journal.purpose == purpose(&command, &settings(&config))
            && journal.is_intact(&root)
            && test_lookups(&root, location, &config).await.is_ok()
        {
            let machine = system::detect(&root, &RuntimeState::now());
            let outside = OutsideNames::look_up(&root, &config, &machine, RECHECK_TIMEOUT).await;
            let found = outside.note().unwrap_or_else(|| "All test lookups succeed.".to_owned());
            output::print(&format!("Already installed: nothing was changed. {found}\n"))?;
            return Ok(ExitCode::SUCCESS);
        } else {
            let installation = if journal.complete {
                "An earlier installation"
            } else {
                "An interrupted installation"
            };
            output::print(&format!("{installation} is undone first.\n"))?;
            uninstall::undo(&root, &journal)?;
            // Keep the state of the server: the next installation uses it.
            Journal::remove(&root)?;
        }
    } else if lock.is_some() {
        // An older version, interrupted at the very end of `uninstall`, may have left files behind.
        Journal::remove(&root)?;
    }
    // Load again: undoing may have removed a file that the earlier installation wrote.
    let config = location.configure(command.file.config.as_deref(), command.flags.0.clone())?;
    install(&root, location, &command, &config).await
}

/// Returns the flags and settings as text.
///
/// With the same text, a second installation does nothing.
fn purpose(command: &InstallArgs, settings: &str) -> String {
    let InstallArgs { search, keep_nameservers, lift_immutable, keep, .. } = command;
    // Installations of older versions have no text for this flag.
    let keep = if *keep { " keep=true" } else { "" };
    format!(
        "search={search} keep-nameservers={keep_nameservers} \
         lift-immutable={lift_immutable}{keep}\n{settings}"
    )
}

async fn install(
    root: &Root,
    location: &ServerLocation,
    command: &InstallArgs,
    config: &Config,
) -> anyhow::Result<ExitCode> {
    let machine = system::detect(root, &RuntimeState::now());
    let way = Integration::for_machine(&machine);
    let requirements = ServerRequirements {
        root,
        location,
        file: command.file.config.as_deref(),
        flags: &command.flags.0,
        config,
        systemd: machine.systemd,
        port_53: way.needs_port_53(&machine),
    };
    let server = requirements.arrange().await?;
    let wish = InstallOptions {
        zones: config
            .zones
            .iter()
            .map(|zone| zone.text().trim_end_matches('.').to_owned())
            .collect(),
        server: server.address,
        search: command.search,
        keep_others: command.keep_nameservers,
        lift_immutable: command.lift_immutable,
    };
    let mut plan = system::plan(root, &machine, way, &wish)?;
    let keep = plan_keep(root, command, way, &wish, machine.systemd, &mut plan)?;
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    let notes: Vec<&String> = server.notes.iter().chain(&plan.notes).chain(&warnings).collect();
    output::print(&announce(&machine, way, &wish, &server, &plan.steps, &notes))?;
    if let Some(line) = server.to_start {
        output::complain(&format!(
            "no server is running, and there is no systemd to run one. Let the service manager of \
             this machine run this as root, and restart it when it exits:\n\n    {line}\n\nThen \
             run {}",
            if command.dry_run {
                "`svcdns install`. Nothing was changed (--dry-run)."
            } else {
                "`svcdns install` again."
            }
        ));
        return Ok(ExitCode::from(NOT_REACHED));
    }
    if command.dry_run {
        output::print("\nNothing was changed (--dry-run).\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Err(error) = system::forget_hosts(root) {
        output::print(&format!(
            "\nNote: nscd answers programs from its cache and cannot be told to forget host names \
             ({error}): the tests may see old entries. Run `sudo nscd --invalidate=hosts` and \
             this command again.\n"
        ))?;
    }
    let outside = OutsideNames::look_up(root, config, &machine, Duration::ZERO).await;
    let server_steps = server.steps.len();
    let mut journal = Journal::new(
        purpose(command, &server.settings),
        server.steps.into_iter().chain(plan.steps).collect(),
    );
    journal.keep = keep;
    journal.save(root)?;
    let applied = async {
        apply(root, location, config, &journal, server_steps, way, &wish).await?;
        outside.check(root, way, wish.server, SETTLE_TIMEOUT).await
    };
    let applied = applied.await;
    if let Err(error) = applied {
        output::print("\nThe installation failed; all changes are reverted.\n")?;
        uninstall::remove(root, &journal).with_context(|| format!("{error:#}; and then"))?;
        return Err(error.context("nothing is installed"));
    }
    journal.complete = true;
    journal.save(root)?;
    output::print(&format!(
        "\nDone, and tested by lookups through the C library. `sudo svcdns uninstall` undoes \
         everything.\n{outside}\n\
         If the server dies: {}.\n",
        way.without_server(wish.keep_others, machine.systemd)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Plans that `svcdns keep` restores the `nameserver` line, if the user wants that.
///
/// Returns the line, for the journal.
fn plan_keep(
    root: &Root,
    command: &InstallArgs,
    way: Integration,
    wish: &InstallOptions,
    systemd: bool,
    plan: &mut Plan,
) -> anyhow::Result<Option<KeptLine>> {
    if !command.keep {
        return Ok(None);
    }
    if !way.edits_resolv_conf() {
        plan.notes.push("--keep has no effect: /etc/resolv.conf is not changed here".to_owned());
        return Ok(None);
    }
    if systemd {
        let program = this_program()?;
        plan.steps.extend(system::plan_unit(root, KEEP_UNIT, &system::keep_unit(&program))?);
    } else {
        plan.notes.push(
            "there is no systemd to restore the nameserver line in /etc/resolv.conf: let the \
             service manager of this machine run `svcdns keep` as root, and restart it when it \
             exits"
                .to_owned(),
        );
    }
    let search = if wish.search { wish.zones.clone() } else { Vec::new() };
    let (server, keep_nameservers) = (wish.server.ip(), wish.keep_others);
    Ok(Some(KeptLine { server, search, keep_nameservers }))
}

/// Applies the steps of the journal, and tests the result.
///
/// The first `server_steps` steps start the server; the rest follow once it responds.
async fn apply(
    root: &Root,
    location: &ServerLocation,
    config: &Config,
    journal: &Journal,
    server_steps: usize,
    way: Integration,
    wish: &InstallOptions,
) -> anyhow::Result<()> {
    journal.apply(root, 0..server_steps)?;
    wait_for_server(config, wish).await?;
    if way.takes_all(wish.keep_others) {
        check_forwarding(location).await?;
    }
    journal.apply(root, server_steps..journal.steps.len())?;
    test_lookups(root, location, config).await?;
    if wish.search {
        // This name can be found only through the search list.
        if let Err(error) = retry(|| system::look_up_afresh(root, "ns")).await {
            output::print(&format!("Note: names without the zone are not found yet: {error}\n"))?;
        }
    }
    Ok(())
}

/// Waits until the server answers in its first zone.
async fn wait_for_server(config: &Config, wish: &InstallOptions) -> anyhow::Result<()> {
    let name = own_name(config.zones.first())?;
    let start = Instant::now();
    loop {
        let response = resolve::query(wish.server, &name, RecordType::A).await;
        match response {
            Ok(response) if response.metadata.response_code == ResponseCode::NoError => {
                return Ok(());
            }
            Ok(response) if start.elapsed() > SETTLE_TIMEOUT => {
                bail!(
                    "the server at {} responds to {name} with {}: it is another server, or serves \
                     other zones",
                    wish.server,
                    rcode_name(response.metadata.response_code.into())
                )
            }
            Err(error) if start.elapsed() > SETTLE_TIMEOUT => {
                return Err(error.context(
                    "the server does not respond (if systemd runs it, see `journalctl -u svcdns`)",
                ));
            }
            _ => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }
}

/// Checks that the server forwards: it becomes the only name server of the machine.
///
/// The upstreams of the server may be unreachable now.
async fn check_forwarding(location: &ServerLocation) -> anyhow::Result<()> {
    let status = running(location).await?.context("the server exited")?;
    if status.forwarding.is_none() {
        bail!(
            "the server would become this machine's only name server, but refuses names outside \
             its zones: set `upstream`, or keep the other name servers with --keep-nameservers"
        );
    }
    Ok(())
}

/// Looks up a name of each zone as programs do: through the C library.
///
/// # Errors
/// If a name does not have the server's own addresses.
async fn test_lookups(
    root: &Root,
    location: &ServerLocation,
    config: &Config,
) -> anyhow::Result<()> {
    let status = running(location).await?.context("the server exited")?;
    let own: Vec<IpAddr> = status.listen.iter().map(std::net::SocketAddr::ip).collect();
    for zone in &config.zones {
        let name = own_name(zone)?.to_string();
        let name = name.trim_end_matches('.');
        retry(|| {
            let found = system::look_up_afresh(root, name)?;
            let ours = found.iter().all(|address| own.contains(address));
            if ours {
                return Ok(());
            }
            Err(format!(
                "{name} is {found:?}, which is not this server: another name server answers for \
                 the zone"
            ))
        })
        .await
        .map_err(|error| anyhow::anyhow!("the C library does not find {name}: {error}"))?;
    }
    Ok(())
}

/// Retries for [`SETTLE_TIMEOUT`]: caches need time to notice a change.
async fn retry<T>(mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(_) if start.elapsed() < SETTLE_TIMEOUT => tokio::time::sleep(RETRY_PAUSE).await,
            result => return result,
        }
    }
}

/// Returns the server's own name in a zone; every zone has it.
fn own_name(zone: &Zone) -> anyhow::Result<Name> {
    Name::from_text(&format!("ns.{}", zone.text())).context("the zone has no room for the name ns")
}

/// Formats the planned changes and their reasons.
fn announce(
    machine: &Machine,
    way: Integration,
    wish: &InstallOptions,
    server: &ArrangedServer,
    steps: &[InstallStep],
    notes: &[&String],
) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "Name resolution is managed by: {}", machine.manager);
    let _ =
        writeln!(text, "Chosen change: {way}, for {}, to {}", wish.zones.join(" "), wish.server);
    let _ = writeln!(
        text,
        "If the server dies: {}",
        way.without_server(wish.keep_others, machine.systemd)
    );
    for note in notes {
        let _ = writeln!(text, "Note: {note}");
    }
    let steps: Vec<String> = server
        .steps
        .iter()
        .chain(steps)
        .map(system::describe)
        .filter(|step| !step.is_empty())
        .collect();
    if steps.is_empty() {
        text.push_str("\nNothing to change.\n");
    }
    for step in steps {
        let _ = write!(text, "\n- {}", step.trim_end());
    }
    text.push('\n');
    text
}
