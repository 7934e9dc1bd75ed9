//! From what was found out and what is wanted to the steps that do it.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Root;
use super::command::{line, written};
use super::detect::{Container, Kind, Machine, Owner, Reach};
use super::edit::{self, Wanted};
use super::entry::Entry;
use super::journal::{CommandStep, Edited, FileStep, Step};
use super::unit::{self, HEADING, HOOK, Hook};
use super::way::{Way, misses_programs};
use crate::directory::{FILES, ROOTS_STATE};
use crate::resolv_conf::{Fault, MAX_RESOLV_CONF_BYTES, RESOLV_CONF, RESOLV_CONF_BACKUP};

/// The link that systemd-resolved routes the zones to.
const LINK: &str = "svcdns0";

/// Its other end, where it is a pair.
const LINK_END: &str = "svcdns1";

/// Its address: systemd-resolved uses no link without one beyond link scope. Of 169.254.0.0/16 (RFC 3927), which nobody
/// routes and no GoFrame program registers, and marked `scope site`, so that nothing takes it for a source.
const LINK_ADDRESS: &str = "169.254.53.53/32";

/// The record of `resolvconf`: both kinds put those of `lo` first.
const RECORD: &str = "lo.svcdns";

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The served zones, without final dots.
    pub zones: Vec<String>,
    /// Where the server answers.
    pub server: SocketAddr,
    /// Whether names without a dot are searched for in the zones.
    pub search: bool,
    /// Whether the name servers of `/etc/resolv.conf` go on counting behind ours.
    pub keep_others: bool,
    /// Whether a file that nobody may change (`chattr +i`) may be changed all the same.
    pub lift_immutable: bool,
}

/// How it is done.
#[derive(Debug)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Why it cannot be done, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Obstacle {
    /// A file that cannot be worked with.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Something else that is missing.
    #[error("{0}")]
    Missing(String),
}

/// The steps that bring questions for the wished zones to the server, on this machine, by this way.
///
/// # Errors
/// When something stands in the way that a person has to decide about; nothing was changed.
pub fn plan(root: &Root, machine: &Machine, way: Way, wish: &Wish) -> Result<Plan, Obstacle> {
    let mut planning = Planning { root, machine, wish, steps: Vec::new(), notes: Vec::new() };
    planning.look_at_hosts()?;
    match way {
        Way::Delegate => planning.delegate()?,
        Way::Link => planning.link()?,
        Way::Dnsmasq => planning.dnsmasq()?,
        Way::NetworkManager => planning.network_manager()?,
        Way::Resolvconf => planning.resolvconf()?,
        Way::Plain => planning.resolv_conf(false)?,
        Way::InPlace => planning.resolv_conf(true)?,
    }
    Ok(Plan { steps: planning.steps, notes: planning.notes })
}

struct Planning<'a> {
    root: &'a Root,
    machine: &'a Machine,
    wish: &'a Wish,
    steps: Vec<Step>,
    notes: Vec<String>,
}

impl Planning<'_> {
    fn look_at_hosts(&self) -> Result<(), Obstacle> {
        let hosts = &self.machine.hosts;
        if hosts.is_empty() || hosts.iter().any(|source| source == "dns" || source == "resolve") {
            return Ok(());
        }
        Err(Obstacle::File {
            path: "/etc/nsswitch.conf".into(),
            why: format!("the line `hosts: {}` asks no DNS server: add `dns` at its end", hosts.join(" ")),
        })
    }

    fn delegate(&mut self) -> Result<(), Obstacle> {
        let text = format!("[Delegate]\nDNS={}\nDomains={}\n", self.server(), self.domains().join(" "));
        let reload = line(["systemctl", "reload-or-restart", "systemd-resolved.service"]);
        self.drop_in("let systemd-resolved read its delegates", reload, "/etc/systemd/dns-delegate.d/svcdns.dns-delegate", &text)?;
        self.notes_of_resolved();
        self.stub_instead_of_uplink()
    }

    fn link(&mut self) -> Result<(), Obstacle> {
        let version = self.machine.resolved.as_ref().and_then(|resolved| resolved.version);
        if let Some(version) = version.filter(|version| *version < 240) {
            return Err(Obstacle::Missing(format!(
                "systemd-resolved {version} cannot route single domains to a link (240 can): let /etc/resolv.conf be an ordinary file with \
                 the name servers of /run/systemd/resolve/resolv.conf, and start again"
            )));
        }
        let (ip, resolvectl) = (self.program("ip", "iproute2")?, self.program("resolvectl", "systemd-resolved")?);
        // Others that look after links leave this one alone.
        if self.machine.networkd {
            let text = format!("[Match]\nName={LINK} {LINK_END}\n\n[Link]\nUnmanaged=yes\n");
            let reload = line(["networkctl", "reload"]);
            self.drop_in("let systemd-networkd leave our link alone", reload, "/etc/systemd/network/00-svcdns.network", &text)?;
        }
        if self.machine.network_manager.as_ref().is_some_and(|manager| manager.running) {
            let text = format!("[keyfile]\nunmanaged-devices+=interface-name:{LINK};interface-name:{LINK_END}\n");
            let reload = line(["nmcli", "general", "reload", "conf"]);
            self.drop_in("let NetworkManager leave our link alone", reload, "/etc/NetworkManager/conf.d/90-svcdns.conf", &text)?;
        }
        let ip = |words: &[&str]| [&[ip.as_str()], words].concat().iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let resolvectl = |verb: &str, words: &[String]| {
            [resolvectl.as_str(), verb, LINK].into_iter().map(str::to_owned).chain(words.iter().cloned()).collect::<Vec<_>>()
        };
        let no = ["no".to_owned()];
        let make = format!(
            "{0} link add {LINK} type dummy || {{ {0} link add {LINK} type veth peer name {LINK_END} && {0} link set {LINK_END} up; }}",
            ip(&[])[0]
        );
        let up = vec![
            line(["/bin/sh", "-c", &make]),
            ip(&["address", "add", LINK_ADDRESS, "dev", LINK, "scope", "site"]),
            ip(&["link", "set", LINK, "up"]),
            // What must not be, first: no moment in which others' names come here, or ours are refused for want of a signature.
            resolvectl("default-route", &no),
            resolvectl("dnssec", &no),
            resolvectl("dnsovertls", &no),
            resolvectl("llmnr", &no),
            resolvectl("mdns", &no),
            resolvectl("domain", &self.domains()),
            resolvectl("dns", &[self.server()]),
        ];
        let zones = self.wish.zones.join(" ");
        let hook = Hook {
            description: format!("Route of systemd-resolved to svcdns for {zones}"),
            of: "systemd-resolved.service",
            up,
            down: vec![ip(&["link", "del", LINK])],
        };
        let there = ip(&["link", "show", LINK]);
        self.hook(&hook, there, "a restart of systemd-resolved")?;
        self.notes_of_resolved();
        self.stub_instead_of_uplink()
    }

    fn dnsmasq(&mut self) -> Result<(), Obstacle> {
        let mut text = String::new();
        for zone in &self.wish.zones {
            let _ = writeln!(text, "server=/{zone}/{}#{}", self.wish.server.ip(), self.wish.server.port());
        }
        let reload = line(["nmcli", "general", "reload", "dns-full"]);
        self.drop_in("restart NetworkManager's dnsmasq", reload, "/etc/NetworkManager/dnsmasq.d/svcdns.conf", &text)?;
        if self.wish.search {
            self.notes.push(
                "dnsmasq has no search list: add the zone to that of the connection (nmcli connection modify NAME +ipv4.dns-search svc)"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn network_manager(&mut self) -> Result<(), Obstacle> {
        let running = self.machine.network_manager.as_ref().is_some_and(|manager| manager.running);
        let reload = if running { line(["nmcli", "general", "reload", "conf"]) } else { Vec::new() };
        let path = "/etc/NetworkManager/conf.d/90-svcdns.conf";
        self.drop_in("let NetworkManager leave /etc/resolv.conf alone", reload, path, "[main]\nrc-manager=unmanaged\n")?;
        self.resolv_conf(false)
    }

    fn resolvconf(&mut self) -> Result<(), Obstacle> {
        let resolvconf = self.program("resolvconf", "resolvconf")?;
        let mut record = format!("nameserver {}\\n", self.wish.server.ip());
        if self.wish.search {
            let _ = write!(record, "search {}\\n", self.wish.zones.join(" "));
        }
        let hook = Hook {
            description: "Record of resolvconf for svcdns".to_owned(),
            of: unit::SERVER,
            up: vec![line(["/bin/sh", "-c", &format!("printf '{record}' | {resolvconf} -a {RECORD}")])],
            down: vec![line([&resolvconf, "-d", RECORD])],
        };
        let there = line([
            "/bin/sh",
            "-c",
            &format!(
                "test -e /run/resolvconf/interface/{RECORD} || test -e /run/resolvconf/interfaces/{RECORD} || test -e /run/resolvconf/keys/{RECORD}"
            ),
        ]);
        self.hook(&hook, there, "a reboot")
    }

    /// Our lines in the file.
    fn resolv_conf(&mut self, in_place: bool) -> Result<(), Obstacle> {
        let file = &self.machine.file;
        let obstacle = |why: String| Err(Obstacle::File { path: RESOLV_CONF.into(), why });
        match &file.kind {
            Kind::Ordinary(_) | Kind::Missing => {}
            Kind::Unreadable(error) => return obstacle(format!("it cannot be read ({error}): repair it or remove it, and start again")),
            Kind::NoFile => return obstacle("it is not a file: remove it, and start again".to_owned()),
            Kind::TooLong => {
                return obstacle(format!(
                    "it has more than {MAX_RESOLV_CONF_BYTES} bytes (a fixed limit), so it is no resolv.conf: repair it, and start again"
                ));
            }
        }
        let faults: Vec<_> = file.conf().faults().collect();
        if let Some((number, Fault::Incomplete)) = faults.last() {
            return obstacle(format!(
                "line {number} breaks off, as if somebody were just writing it: start again, or complete or remove that line"
            ));
        }
        for (number, fault) in faults {
            self.notes.push(format!("{RESOLV_CONF}: line {number} is ignored ({fault}); it stays as it is"));
        }
        if file.immutable && !self.wish.lift_immutable {
            return obstacle(format!(
                "nobody may change it (it is immutable). Whoever set that meant it: lift it with `chattr -i {}`, or let svcdns do so with \
                 --lift-immutable, which sets it again afterwards",
                file.target.display()
            ));
        }
        // A link into a manager's folder is replaced, and so is one to nowhere; any other is kept, and the file behind it changed.
        let path = if file.is_link && (file.target.starts_with("/run") || matches!(file.kind, Kind::Missing)) {
            PathBuf::from(RESOLV_CONF)
        } else {
            file.target.clone()
        };
        let server = self.wish.server.ip();
        let search = if self.wish.search { self.wish.zones.as_slice() } else { &[] };
        let wanted = Wanted { server, search, keep_others: self.wish.keep_others };
        let octets = edit::put_in(file.octets(), &wanted);
        if octets == file.octets() && path == file.target {
            self.notes.push(format!("{RESOLV_CONF} names {server} already"));
            return Ok(());
        }
        let before = self.read(&path)?;
        if !file.octets().is_empty() {
            let kept = self.read(Path::new(RESOLV_CONF_BACKUP))?;
            let after = Entry::new(edit::take_out(file.octets()));
            self.steps.push(Step::File(FileStep { path: RESOLV_CONF_BACKUP.into(), before: kept, after, edited: Edited::Keep, in_place: false }));
        }
        let after = before.with(octets);
        self.steps.push(Step::File(FileStep { path, before, after, edited: Edited::OwnLines, in_place }));
        if in_place {
            let advice = match self.machine.container {
                Some(Container::Docker | Container::Podman) => "`docker run --dns ADDRESS` (or `podman run --dns ADDRESS`)",
                Some(Container::Kubernetes) => "the pod's `dnsPolicy: None` with `dnsConfig`",
                _ => "the settings of whoever mounted it",
            };
            self.notes.push(format!(
                "{RESOLV_CONF} is a mount of its own and cannot be replaced, so it is written in place; the engine writes it anew when \
                 the container starts again. {advice} lasts"
            ));
        }
        if let (Owner::Nobody, Some(client)) = (self.machine.owner, self.machine.dhcp_client) {
            self.notes.push(format!(
                "{client} writes {RESOLV_CONF} anew when its lease is renewed: tell it not to, or install resolvconf or systemd-resolved and start again"
            ));
        }
        Ok(())
    }

    /// Where `/etc/resolv.conf` leads past systemd-resolved, it is made to lead to its stub.
    fn stub_instead_of_uplink(&mut self) -> Result<(), Obstacle> {
        if self.machine.resolved.as_ref().is_none_or(|resolved| resolved.reach != Reach::Uplink) {
            return Ok(());
        }
        if !self.root.has("/run/systemd/resolve/stub-resolv.conf") {
            return Err(Obstacle::File {
                path: RESOLV_CONF.into(),
                why: "it leads past systemd-resolved, which has no stub to lead to: set DNSStubListener=yes in resolved.conf, restart it, and start again".to_owned(),
            });
        }
        let before = self.read(Path::new(RESOLV_CONF))?;
        let after = Entry::Link { target: "../run/systemd/resolve/stub-resolv.conf".into(), owner: (0, 0) };
        self.steps.push(Step::File(FileStep { path: RESOLV_CONF.into(), before, after, edited: Edited::OwnLines, in_place: false }));
        Ok(())
    }

    fn notes_of_resolved(&mut self) {
        if misses_programs(self.machine) {
            self.notes.push(format!(
                "only programs that ask through glibc reach systemd-resolved here ({RESOLV_CONF} names other servers): dig, Go and musl programs \
                 do not find the zones. `ln -sf ../run/systemd/resolve/stub-resolv.conf {RESOLV_CONF}` changes that"
            ));
        }
    }

    /// A file in a folder of the owner's, and the program that makes it read the folder: also when the file has gone again.
    fn drop_in(&mut self, purpose: &str, reload: Vec<String>, path: &str, text: &str) -> Result<(), Obstacle> {
        let lines = if reload.is_empty() { Vec::new() } else { vec![reload] };
        let command = |run, undo| Step::Command(CommandStep { purpose: purpose.to_owned(), run, undo, undo_if: Vec::new() });
        // Undone last, when the file has gone.
        self.steps.push(command(Vec::new(), lines.clone()));
        self.steps.extend(own_file(self.root, Path::new(path), &format!("{HEADING}{text}"))?);
        self.steps.push(command(lines, Vec::new()));
        self.steps.retain(|step| !matches!(step, Step::Command(command) if command.run.is_empty() && command.undo.is_empty()));
        Ok(())
    }

    /// With systemd a unit that comes and goes with its owner; without, the lines themselves, until `lost`.
    fn hook(&mut self, hook: &Hook, there: Vec<String>, lost: &str) -> Result<(), Obstacle> {
        if self.machine.systemd {
            self.steps.extend(enabled_unit(self.root, HOOK, &hook.unit())?);
            return Ok(());
        }
        self.steps.push(Step::Command(CommandStep {
            purpose: hook.description.clone(),
            run: hook.up.clone(),
            undo: hook.down.clone(),
            undo_if: there,
        }));
        self.notes.push(format!(
            "there is no systemd to do this again after {lost}: have it done by whatever starts the server\n{}",
            hook.by_hand()
        ));
        Ok(())
    }

    fn read(&self, path: &Path) -> Result<Entry, Obstacle> {
        read(self.root, path)
    }

    fn program(&self, name: &str, package: &str) -> Result<String, Obstacle> {
        let found = self.root.program(name).map(|path| path.display().to_string());
        found.ok_or_else(|| Obstacle::Missing(format!("the program `{name}` is needed and not there: install {package}")))
    }

    /// Without the port where it is 53: systemd-resolved before 247 knows none.
    fn server(&self) -> String {
        let server = self.wish.server;
        if server.port() == 53 { server.ip().to_string() } else { server.to_string() }
    }

    /// A domain behind `~` is routed; without, it is searched as well.
    fn domains(&self) -> Vec<String> {
        let mark = if self.wish.search { "" } else { "~" };
        self.wish.zones.iter().map(|zone| format!("{mark}{zone}")).collect()
    }
}

fn read(root: &Root, path: &Path) -> Result<Entry, Obstacle> {
    Entry::read(&root.path(path))
        .map_err(|error| Obstacle::File { path: path.into(), why: format!("{error}: repair it or remove it, and start again") })
}

/// A file of our own, with the folders it needs.
///
/// # Errors
/// When what stands there cannot be read.
pub fn own_file(root: &Root, path: &Path, text: &str) -> Result<Vec<Step>, Obstacle> {
    let mut steps = Vec::new();
    let folders: Vec<&Path> = path.ancestors().skip(1).take_while(|folder| !root.has(folder)).collect();
    steps.extend(folders.into_iter().rev().map(|folder| Step::Folder(folder.to_owned())));
    let before = read(root, path)?;
    let edited = if path.starts_with("/etc/svcdns") { Edited::Keep } else { Edited::SetAside };
    steps.push(Step::File(FileStep {
        path: path.to_owned(),
        after: before.with(text.as_bytes().to_vec()),
        before,
        edited,
        in_place: false,
    }));
    Ok(steps)
}

/// A unit of ours, started now and at each boot.
///
/// # Errors
/// When what stands there cannot be read.
pub fn enabled_unit(root: &Root, name: &str, text: &str) -> Result<Vec<Step>, Obstacle> {
    let systemctl = |words: &[&str]| ["systemctl"].iter().chain(words).map(|&word| word.to_owned()).collect::<Vec<_>>();
    let reload = systemctl(&["daemon-reload"]);
    let step = |purpose: &str, run, undo, undo_if| Step::Command(CommandStep { purpose: purpose.to_owned(), run, undo, undo_if });
    let mut steps = vec![step("let systemd forget the unit", Vec::new(), vec![reload.clone()], Vec::new())];
    steps.extend(own_file(root, &Path::new(unit::FOLDER).join(name), text)?);
    steps.push(step(
        &format!("start {name}, now and at each boot"),
        vec![reload, systemctl(&["enable", name]), systemctl(&["restart", name])],
        vec![systemctl(&["disable", "--now", name])],
        systemctl(&["cat", name]),
    ));
    Ok(steps)
}

/// Checks that the state directory holds nothing but the server's own files: the first start of
/// a unit with `StateDirectory=` gives all that is in there to the service's user.
///
/// # Errors
/// When there is something else, with what to do about it.
pub fn check_state_directory(root: &Root) -> Result<(), Obstacle> {
    let path = root.path(ROOTS_STATE);
    // A link is systemd's work: it has moved the directory already.
    if !fs::symlink_metadata(&path).is_ok_and(|about| about.is_dir()) {
        return Ok(());
    }
    let obstacle = |why| Obstacle::File { path: ROOTS_STATE.into(), why };
    let entries = fs::read_dir(&path).map_err(|error| obstacle(error.to_string()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let others: Vec<String> = names.filter(|name| !FILES.contains(&name.as_str())).collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(obstacle(format!(
        "it is the state directory of the service, whose user would get all that is in it: move \
         {} elsewhere, and start again",
        others.join(", ")
    )))
}

/// What a step does, in words, and the difference it makes to a file.
pub fn told(step: &Step) -> String {
    match step {
        Step::Folder(path) => format!("make the folder {}", path.display()),
        Step::File(file) => {
            let verb = match (&file.before, file.in_place) {
                (Entry::Absent, _) => "write",
                (_, true) => "change, in place,",
                (_, false) => "change",
            };
            format!("{verb} {}\n{}", file.path.display(), difference(file))
        }
        Step::Command(command) if command.run.is_empty() => String::new(),
        Step::Command(command) => {
            let lines: Vec<String> = command.run.iter().map(|line| format!("    {}\n", written(line))).collect();
            format!("{}\n{}", command.purpose, lines.concat())
        }
    }
}

fn difference(file: &FileStep) -> String {
    let text = |entry: &Entry| match entry {
        Entry::Absent => String::new(),
        Entry::File(file) => String::from_utf8_lossy(&file.octets).into_owned(),
        Entry::Link { target, .. } => format!("-> {}\n", target.display()),
    };
    let (before, after) = (text(&file.before), text(&file.after));
    let difference = similar::TextDiff::from_lines(&before, &after);
    let mut lines = String::new();
    for group in difference.grouped_ops(3) {
        for change in group.iter().flat_map(|operation| difference.iter_changes(operation)) {
            let shown =
                |letter: char| if letter.is_control() && letter != '\t' { letter.escape_default().collect() } else { letter.to_string() };
            let line: String = change.value().trim_end_matches('\n').chars().map(shown).collect();
            let _ = writeln!(lines, "    {}{line}", change.tag());
        }
    }
    lines
}

/// A command line as a person would type it, for messages.
pub fn command_line(line: &[String]) -> String {
    written(line)
}

#[cfg(test)]
mod tests {
    use super::super::detect::{File, NetworkManager, Resolvconf, Resolved};
    use super::*;

    /// A machine of this owner, on an empty root with the programs that are needed.
    fn machine(owner: Owner) -> (tempfile::TempDir, Root, Machine) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for path in ["/etc", "/var/lib/svcdns", "/usr/sbin"] {
            fs::create_dir_all(root.path(path)).unwrap();
        }
        for program in ["ip", "resolvectl", "resolvconf"] {
            fs::write(root.path(Path::new("/usr/sbin").join(program)), "").unwrap();
        }
        let resolved = Resolved { version: Some(258), dnssec: Some("no".to_owned()), reach: Reach::Stub };
        let machine = Machine {
            owner,
            file: File { target: RESOLV_CONF.into(), is_link: false, kind: Kind::Missing, mounted: false, immutable: false },
            resolved: (owner == Owner::Resolved).then_some(resolved),
            network_manager: None,
            resolvconf: None,
            dhcp_client: None,
            networkd: false,
            systemd: true,
            container: None,
            hosts: vec!["files".to_owned(), "dns".to_owned()],
        };
        (folder, root, machine)
    }

    fn wish() -> Wish {
        let zones = vec!["svc".to_owned(), "corp.test".to_owned()];
        Wish { zones, server: "127.0.0.1:5300".parse().unwrap(), search: false, keep_others: false, lift_immutable: false }
    }

    fn steps(root: &Root, machine: &Machine, wish: &Wish) -> String {
        let plan = plan(root, machine, Way::of(machine), wish).unwrap();
        plan.steps.iter().map(told).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_delegate_where_there_are_some_and_nothing_validates() {
        let (_folder, root, mut machine) = machine(Owner::Resolved);
        let text = steps(&root, &machine, &wish());
        for said in [
            "write /etc/systemd/dns-delegate.d/svcdns.dns-delegate",
            "+[Delegate]",
            "+DNS=127.0.0.1:5300",
            "+Domains=~svc ~corp.test",
            "systemctl reload-or-restart systemd-resolved.service",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        assert!(steps(&root, &machine, &Wish { search: true, ..wish() }).contains("+Domains=svc corp.test"));
        // Where it validates, or may, a link that does not is needed.
        for dnssec in [Some("yes"), Some("allow-downgrade"), None] {
            machine.resolved.as_mut().unwrap().dnssec = dnssec.map(str::to_owned);
            assert_eq!(Way::of(&machine), Way::Link);
        }
    }

    #[test]
    fn a_link_that_comes_and_goes_with_systemd_resolved() {
        let (_folder, root, mut machine) = machine(Owner::Resolved);
        machine.resolved.as_mut().unwrap().version = Some(252);
        machine.networkd = true;
        machine.network_manager = Some(NetworkManager { running: true, dns: "systemd-resolved".to_owned(), rc_manager: "auto".to_owned() });
        let text = steps(&root, &machine, &wish());
        for said in [
            "write /etc/systemd/network/00-svcdns.network",
            "+Unmanaged=yes",
            "+unmanaged-devices+=interface-name:svcdns0;interface-name:svcdns1",
            "write /etc/systemd/system/svcdns-resolver.service",
            "+PartOf=systemd-resolved.service",
            "+ExecStart=/usr/sbin/resolvectl dnssec svcdns0 no",
            "+ExecStart=/usr/sbin/resolvectl domain svcdns0 ~svc ~corp.test",
            "+ExecStart=/usr/sbin/resolvectl dns svcdns0 127.0.0.1:5300",
            "systemctl enable svcdns-resolver.service",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        assert!(!Way::Link.needs_port_53(&machine));
        machine.resolved.as_mut().unwrap().version = Some(245);
        assert!(Way::Link.needs_port_53(&machine));
        let on_53 = Wish { server: "127.0.0.1:53".parse().unwrap(), ..wish() };
        assert!(steps(&root, &machine, &on_53).contains("resolvectl dns svcdns0 127.0.0.1\n"));
        machine.resolved.as_mut().unwrap().version = Some(237);
        assert!(plan(&root, &machine, Way::of(&machine), &wish()).unwrap_err().to_string().contains("systemd-resolved 237"));
    }

    #[test]
    fn a_drop_in_for_networkmanagers_dnsmasq() {
        let (_folder, root, mut machine) = machine(Owner::NetworkManager);
        machine.network_manager = Some(NetworkManager { running: true, dns: "dnsmasq".to_owned(), rc_manager: "auto".to_owned() });
        let text = steps(&root, &machine, &wish());
        for said in ["+server=/svc/127.0.0.1#5300", "+server=/corp.test/127.0.0.1#5300", "nmcli general reload dns-full"] {
            assert!(text.contains(said), "{said}: {text}");
        }
        assert!(!Way::of(&machine).takes_all(false) && !Way::of(&machine).needs_port_53(&machine));
    }

    #[test]
    fn a_record_that_comes_and_goes_with_the_server() {
        let (_folder, root, machine) = machine(Owner::Resolvconf(Resolvconf::Debian));
        let wish = Wish { server: "127.0.0.1:53".parse().unwrap(), ..wish() };
        let text = steps(&root, &machine, &wish);
        assert!(text.contains("+PartOf=svcdns.service") && text.contains("resolvconf -d lo.svcdns"), "{text}");
        assert!(text.contains(r"printf 'nameserver 127.0.0.1\\n' | /usr/sbin/resolvconf -a lo.svcdns"), "{text}");
    }

    #[test]
    fn the_servers_unit_is_enabled_and_forgotten_again() {
        let (_folder, root, _) = machine(Owner::Nobody);
        let steps = enabled_unit(&root, unit::SERVER, "[Unit]\n").unwrap();
        let Some(Step::Command(last)) = steps.last() else { panic!("{steps:?}") };
        assert_eq!(last.undo, [line(["systemctl", "disable", "--now", "svcdns.service"])]);
        let Some(Step::Command(first)) = steps.first() else { panic!("{steps:?}") };
        assert_eq!((first.run.len(), &first.undo), (0, &vec![line(["systemctl", "daemon-reload"])]));
        assert!(steps.contains(&Step::Folder("/etc/systemd/system".into())));
    }

    #[test]
    fn a_dhcp_client_and_missing_programs_are_told() {
        let (_folder, root, mut machine) = machine(Owner::Nobody);
        machine.dhcp_client = Some("dhclient");
        let plan_of = |machine: &Machine| plan(&root, machine, Way::of(machine), &wish());
        assert!(plan_of(&machine).unwrap().notes.join("\n").contains("dhclient writes /etc/resolv.conf anew"));
        fs::remove_file(root.path("/usr/sbin/resolvconf")).unwrap();
        machine.owner = Owner::Resolvconf(Resolvconf::Openresolv);
        assert!(plan_of(&machine).unwrap_err().to_string().contains("`resolvconf` is needed"));
    }
}
