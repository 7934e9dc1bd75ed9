//! `svcdns install`.

use std::fmt::Write;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::arguments::Install;
use super::installed_server::{Arranged, Wanted, running, settings};
use super::privilege::need_root;
use super::{NOT_REACHED, Place, output, resolve, uninstall};
use crate::config::Config;
use crate::name::{Name, Zone};
use crate::system::{self, InstallLock, InstallOptions, InstallStep, Integration, Journal, Machine, Root, RuntimeState};
use crate::wire::rcode_name;

/// How long the server may take to answer after its start, and the resolver to have taken notice.
const PATIENCE: Duration = Duration::from_secs(20);

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn run(place: &Place, command: Install) -> anyhow::Result<ExitCode> {
    if !command.dry_run {
        need_root("install")?;
    }
    let config = place.configure(command.file.config.as_deref(), command.flags.0.clone())?;
    if !config.names_registries() {
        bail!(
            "name the registry, such as --registry etcd://10.0.0.1:2379: the file registry that is followed without one is for trying things out"
        );
    }
    let root = Root::default();
    let lock = if command.dry_run { None } else { Some(InstallLock::take(&root)?) };
    // Under the lock: what another install has just done would be overlooked, and its journal overwritten.
    let before = Journal::load(&root)?;
    if let Some(journal) = before {
        if command.dry_run {
            output::print("An earlier installation would be undone first; what follows is from the machine as it is now.\n\n")?;
        } else if journal.complete
            && journal.is_up_to_date()
            && journal.purpose == purpose(&command, &settings(&config))
            && journal.is_intact(&root)
            && prove(&root, place, &config).await.is_ok()
        {
            output::print("This is installed already, and works: nothing was changed.\n")?;
            return Ok(ExitCode::SUCCESS);
        } else {
            let what = if journal.complete { "An earlier installation" } else { "An installation that did not come to its end" };
            output::print(&format!("{what} is undone first.\n"))?;
            uninstall::undo(&root, &journal)?;
            // What the server kept stays: another one follows.
            Journal::remove(&root)?;
        }
    } else if lock.is_some() {
        // One of a version before that was cut off at its very end may have left files behind.
        Journal::remove(&root)?;
    }
    // Read again: a file that an earlier installation wrote may have gone.
    let config = place.configure(command.file.config.as_deref(), command.flags.0.clone())?;
    install(&root, place, &command, &config).await
}

/// What an installation is for: one for the same finds nothing to do.
fn purpose(command: &Install, settings: &str) -> String {
    let Install { search, keep_nameservers, lift_immutable, .. } = command;
    format!("search={search} keep-nameservers={keep_nameservers} lift-immutable={lift_immutable}\n{settings}")
}

async fn install(root: &Root, place: &Place, command: &Install, config: &Config) -> anyhow::Result<ExitCode> {
    let machine = system::detect(root, &RuntimeState::now());
    let way = Integration::for_machine(&machine);
    let wanted = Wanted {
        root,
        place,
        file: command.file.config.as_deref(),
        flags: &command.flags.0,
        config,
        systemd: machine.systemd,
        port_53: way.needs_port_53(&machine),
    };
    let arranged = wanted.arrange().await?;
    let wish = InstallOptions {
        zones: config.zones.iter().map(|zone| zone.text().trim_end_matches('.').to_owned()).collect(),
        server: arranged.address,
        search: command.search,
        keep_others: command.keep_nameservers,
        lift_immutable: command.lift_immutable,
    };
    let plan = system::plan(root, &machine, way, &wish)?;
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    let notes: Vec<&String> = arranged.notes.iter().chain(&plan.notes).chain(&warnings).collect();
    output::print(&told(&machine, way, &wish, &arranged, &plan.steps, &notes))?;
    if let Some(line) = arranged.to_start {
        output::complain(&format!(
            "no server runs, and there is no systemd to run one. Have this run as root, and again when it ends, by whatever starts services here:\n\n    {line}\n\nThen run {}",
            if command.dry_run { "`svcdns install`. Nothing was changed (--dry-run)." } else { "`svcdns install` again." }
        ));
        return Ok(ExitCode::from(NOT_REACHED));
    }
    if command.dry_run {
        output::print("\nNothing was changed (--dry-run).\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let servers = arranged.steps.len();
    let mut journal = Journal::new(purpose(command, &arranged.settings), arranged.steps.into_iter().chain(plan.steps).collect());
    journal.save(root)?;
    let done = follow(root, place, config, &journal, servers, way, &wish).await;
    if let Err(error) = done {
        output::print("\nThat did not work; everything is put back.\n")?;
        uninstall::remove(root, &journal).with_context(|| format!("{error:#}; and then"))?;
        return Err(error.context("nothing is installed"));
    }
    journal.complete = true;
    journal.save(root)?;
    output::print(&format!(
        "\nDone, and proven by a lookup through the C library. `sudo svcdns uninstall` puts everything back.\nIf the server dies: {}.\n",
        way.without_server(wish.keep_others, machine.systemd)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Does the steps, the first of which make the server run.
async fn follow(
    root: &Root,
    place: &Place,
    config: &Config,
    journal: &Journal,
    servers: usize,
    way: Integration,
    wish: &InstallOptions,
) -> anyhow::Result<()> {
    journal.apply(root, 0..servers)?;
    wait_for_server(config, wish).await?;
    if way.takes_all(wish.keep_others) {
        forwards(place).await?;
    }
    journal.apply(root, servers..journal.steps.len())?;
    prove(root, place, config).await?;
    if wish.search {
        // What only a search list finds.
        if let Err(error) = patiently(|| system::look_up(root, "ns")).await {
            output::print(&format!("Note: a name without the zone is not found yet: {error}\n"))?;
        }
    }
    Ok(())
}

/// Waits until the server answers for its first zone.
async fn wait_for_server(config: &Config, wish: &InstallOptions) -> anyhow::Result<()> {
    let name = own_name(config.zones.first())?;
    let start = Instant::now();
    loop {
        let answer = resolve::ask(wish.server, &name, RecordType::A).await;
        match answer {
            Ok(answer) if answer.metadata.response_code == ResponseCode::NoError => return Ok(()),
            Ok(answer) if start.elapsed() > PATIENCE => {
                bail!(
                    "the server at {} answers {} for {name}: it is another server, or serves other zones",
                    wish.server,
                    rcode_name(answer.metadata.response_code.into())
                )
            }
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error.context("the server does not answer (`journalctl -u svcdns` tells why, where systemd runs it)"));
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// The only name server of the machine must forward, too. That it reaches nobody just now is no matter.
async fn forwards(place: &Place) -> anyhow::Result<()> {
    let status = running(place).await?.context("the server has gone")?;
    if status.forwarding.is_none() {
        bail!(
            "the server would become this machine's only name server, and refuses names outside its zones: set `upstream`, or keep the others \
             behind it with --keep-nameservers"
        );
    }
    Ok(())
}

/// Looks up a name of each zone as any program would. What comes back must be the server's own addresses.
async fn prove(root: &Root, place: &Place, config: &Config) -> anyhow::Result<()> {
    let status = running(place).await?.context("the server has gone")?;
    let own: Vec<IpAddr> = status.listen.iter().map(std::net::SocketAddr::ip).collect();
    for zone in &config.zones {
        let name = own_name(zone)?.to_string();
        let name = name.trim_end_matches('.');
        patiently(|| {
            let found = system::look_up(root, name)?;
            let ours = found.iter().all(|address| own.contains(address));
            if ours { Ok(()) } else { Err(format!("{name} is {found:?}, which is not this server: somebody else answers for the zone")) }
        })
        .await
        .map_err(|error| anyhow::anyhow!("the C library does not find {name}: {error}"))?;
    }
    Ok(())
}

/// Again and again for a while: caches take a moment to notice.
async fn patiently<T>(mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(_) if start.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
            result => return result,
        }
    }
}

/// The name that every zone has: the server's own.
fn own_name(zone: &Zone) -> anyhow::Result<Name> {
    Name::from_text(&format!("ns.{}", zone.text())).context("a name of the zone")
}

fn told(machine: &Machine, way: Integration, wish: &InstallOptions, arranged: &Arranged, steps: &[InstallStep], notes: &[&String]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "Name resolution here belongs to: {}", machine.manager);
    let _ = writeln!(text, "The way in: {way}, for {}, to {}", wish.zones.join(" "), wish.server);
    let _ = writeln!(text, "If the server dies: {}", way.without_server(wish.keep_others, machine.systemd));
    for note in notes {
        let _ = writeln!(text, "Note: {note}");
    }
    let done: Vec<String> = arranged.steps.iter().chain(steps).map(system::describe).filter(|step| !step.is_empty()).collect();
    if done.is_empty() {
        text.push_str("\nThere is nothing to change.\n");
    }
    for step in done {
        let _ = write!(text, "\n- {}", step.trim_end());
    }
    text.push('\n');
    text
}
