//! The server that an installation leads to: the one that runs, or one that systemd is told to run.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::Place;
use super::client::{Client, NotRunning};
use crate::admin::Status;
use crate::config::{Config, DEFAULT_FILE, Effective, Flags, GivenSecret, Origin, SecretPlace};
use crate::daemon::ListenError;
use crate::system::{self, Root, SERVER_UNIT, InstallStep};
use crate::{config, server};

/// Loopback addresses that are tried in order where nobody has named one and port 53 is needed.
const CANDIDATES: [Ipv4Addr; 2] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];

/// What the unit of the server cannot see: it has no home folders and a temporary folder of its own.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// The server that is led to.
#[derive(Debug)]
pub(super) struct Arranged {
    /// Where it answers.
    pub(super) address: SocketAddr,
    /// What has to be done for it to run; nothing where it does.
    pub(super) steps: Vec<InstallStep>,
    /// Its settings: an installation that finds the same ones has nothing to do.
    pub(super) settings: String,
    /// What a person should know.
    pub(super) notes: Vec<String>,
    /// The command that somebody has to run and supervise first, where neither a server runs nor systemd.
    pub(super) to_start: Option<String>,
}

/// What is to be arranged.
pub(super) struct Wanted<'a> {
    pub(super) root: &'a Root,
    pub(super) place: &'a Place,
    pub(super) file: Option<&'a Path>,
    pub(super) flags: &'a Flags,
    pub(super) config: &'a Config,
    pub(super) systemd: bool,
    pub(super) port_53: bool,
}

/// The running server; none where none runs.
pub(super) async fn running(place: &Place) -> anyhow::Result<Option<Status>> {
    match Client::find(place).await {
        Ok(client) => Ok(Some(client.get("/v1/status").await?)),
        Err(error) if error.is::<NotRunning>() => Ok(None),
        Err(error) => Err(error),
    }
}

impl Wanted<'_> {
    /// Finds the server, or what has to be done for it.
    pub(super) async fn arrange(&self) -> anyhow::Result<Arranged> {
        let running = running(self.place).await?;
        let mut held: &[SocketAddr] = &[];
        if let Some(status) = &running {
            let mut differences = differences(self.config, status);
            let usable = usable(&status.listen, self.port_53);
            if usable.is_none() {
                differences.push("it does not answer on port 53 of an address of this machine, which is needed here".to_owned());
            }
            if let (Some(address), true) = (usable, differences.is_empty()) {
                let notes = vec![format!("The server that runs (process {}) has these settings, and is left alone.", status.pid)];
                return Ok(Arranged { address, steps: Vec::new(), settings: settings(self.config), notes, to_start: None });
            }
            if !(self.systemd && main_process() == Some(status.pid)) {
                bail!(
                    "a server with other settings runs (process {}): {}. Stop it, or give install its settings",
                    status.pid,
                    differences.join("; ")
                );
            }
            held = &status.listen;
        }
        let (address, listen, notes) = self.address(held)?;
        let flags = match listen {
            Some(listen) => self.flags.clone().with("listen", listen.to_string()),
            None => self.flags.clone(),
        };
        if !self.systemd {
            let to_start = Some(serve_command(self.file, &flags));
            return Ok(Arranged { address, steps: Vec::new(), settings: settings(self.config), notes, to_start });
        }
        let config = self.place.configure(self.file, flags)?;
        let steps = self.unit(&config)?;
        Ok(Arranged { address, steps, settings: settings(&config), notes, to_start: None })
    }

    /// Where the server answers, and the address to listen on that nobody has named. `held` is what our own server holds.
    fn address(&self, held: &[SocketAddr]) -> anyhow::Result<(SocketAddr, Option<SocketAddr>, Vec<String>)> {
        let named = origin(self.config, "listen") != Origin::Default;
        let address = usable(&self.config.listen, self.port_53);
        if named || !self.port_53 {
            let Some(address) = address else {
                bail!("the server has to answer on port 53 of a loopback address here, and `listen` names none: add 127.0.0.1:53 to it");
            };
            if address.port() == 0 {
                bail!("`listen` names port 0, which is another one at each start: name a port");
            }
            if !held.contains(&address) {
                can_listen(self.config, address)?;
            }
            return Ok((address, None, Vec::new()));
        }
        let mut notes = Vec::new();
        let mut first = None;
        for candidate in CANDIDATES {
            let address = SocketAddr::from((candidate, 53));
            if held.contains(&address) {
                return Ok((address, Some(address), notes));
            }
            match can_listen(self.config, address) {
                Ok(()) => return Ok((address, Some(address), notes)),
                Err(error) => {
                    notes.push(format!("{error:#}"));
                    first = first.or(Some(error));
                }
            }
        }
        Err(first.context("no address to listen on")?)
    }

    /// The steps that make systemd run the server with this configuration.
    fn unit(&self, config: &Config) -> anyhow::Result<Vec<InstallStep>> {
        let program = std::env::current_exe().context("cannot find the path of this program")?;
        let program = program.canonicalize().unwrap_or(program);
        if let Some(folder) = hidden(&program) {
            bail!(
                "this program lies in {folder}, where a service cannot run it: `sudo install -m 755 {} /usr/local/bin/svcdns`, then run that one",
                program.display()
            );
        }
        can_be_read_by_service(config)?;
        for Effective { path, origin, .. } in config.effective().iter().filter(|effective| counts_not(effective)) {
            if let Origin::File { .. } = origin {
                bail!("{origin} names `{path}`, and the service has directories of its own: take that line out");
            }
        }
        system::check_state_directory(self.root)?;
        let mut steps = Vec::new();
        let file = self.named_file();
        let alone = Config::load(Some(&file), [], &Flags::default()).ok();
        let same = alone.is_some_and(|alone| values(&alone).eq(values(config)));
        let named = if same {
            if let Some(folder) = hidden(&file) {
                bail!("{} lies in {folder}, which the service does not see: move it to {DEFAULT_FILE}", file.display());
            }
            Some(file).filter(|file| file != Path::new(DEFAULT_FILE))
        } else {
            steps.extend(system::plan_file(self.root, Path::new(DEFAULT_FILE), &settings(config))?);
            None
        };
        steps.extend(system::plan_unit(self.root, SERVER_UNIT, &system::server_unit(&program, named.as_deref()))?);
        Ok(steps)
    }

    fn named_file(&self) -> PathBuf {
        let variable = || std::env::var_os(config::CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let named = self.file.map(Path::to_owned).or_else(variable);
        let path = named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        std::path::absolute(&path).unwrap_or(path)
    }
}

/// Refuses what a service would not see: secrets in our environment, and files in folders that are hidden from it.
fn can_be_read_by_service(config: &Config) -> anyhow::Result<()> {
    for GivenSecret { key, file_key, place, .. } in &config.secrets {
        let SecretPlace::Variable(variable) = place else { continue };
        let named =
            if variable == key.variable { format!("--{}", key.file.flag()) } else { format!("{file_key} in the configuration file") };
        bail!("{variable} does not reach a service: write the {} into a file and name it with {named}", key.name);
    }
    for path in config.registries.iter().filter_map(|registry| registry.source.folder()) {
        if let Some(folder) = hidden(path) {
            bail!("the registry {} lies in {folder}, which the service does not see: choose a folder elsewhere", path.display());
        }
    }
    for Effective { path, value, .. } in config.effective().iter().filter(|effective| effective.key.name.ends_with("-file")) {
        if let Some(folder) = hidden(Path::new(value.trim_matches('"'))) {
            bail!("{path} lies in {folder}, which the service does not see: put it into /etc/svcdns");
        }
    }
    Ok(())
}

/// The directories are the unit's own.
fn counts_not(effective: &Effective) -> bool {
    ["runtime-dir", "state-dir"].contains(&&*effective.path)
}

/// Lists the values of a configuration, wherever they were written.
fn values(config: &Config) -> impl Iterator<Item = (&str, &str)> {
    let counted = config.effective().iter().filter(|effective| !counts_not(effective));
    counted.map(|effective| (&*effective.path, &*effective.value))
}

/// What differs between the settings and a server that runs; what it does not tell counts as the same.
fn differences(config: &Config, status: &Status) -> Vec<String> {
    let mut found = Vec::new();
    let zones: Vec<&str> = config.zones.iter().map(crate::name::Zone::text).collect();
    if status.zones != zones {
        found.push(format!("it serves {}, not {}", status.zones.join(" "), zones.join(" ")));
    }
    let mut registries: Vec<String> = config.registries.iter().map(|registry| registry.source.to_string()).collect();
    let mut followed: Vec<String> = status.registries.iter().map(|registry| registry.url.clone()).collect();
    registries.sort();
    followed.sort();
    if registries != followed {
        found.push(format!("it follows {}, not {}", followed.join(" "), registries.join(" ")));
    }
    if origin(config, "listen") != Origin::Default {
        let missing = |address: &&SocketAddr| !address.ip().is_unspecified() && address.port() != 0 && !status.listen.contains(address);
        if let Some(address) = config.listen.iter().find(missing) {
            found.push(format!("it does not listen on {address}"));
        }
    }
    found
}

/// The first address at which this machine reaches a server that listens so, a loopback one if there is any.
fn usable(listen: &[SocketAddr], port_53: bool) -> Option<SocketAddr> {
    let reached = listen.iter().map(|address| match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port())),
        _ => *address,
    });
    let fit: Vec<SocketAddr> = reached.filter(|address| !port_53 || address.port() == 53).collect();
    fit.iter().find(|address| address.ip().is_loopback()).or_else(|| fit.first()).copied()
}

/// Whether the port is free; who holds it where it is not.
fn can_listen(config: &Config, address: SocketAddr) -> anyhow::Result<()> {
    let settings = server::Settings { listen: vec![address], ..config.server() };
    Ok(server::bind(&settings).map(drop).map_err(ListenError::with_holder)?)
}

fn hidden(path: &Path) -> Option<&'static str> {
    HIDDEN.into_iter().find(|folder| path.starts_with(folder))
}

fn origin(config: &Config, key: &str) -> Origin {
    let found = config.effective().iter().find(|effective| effective.path == key);
    found.map_or(Origin::Default, |effective| effective.origin.clone())
}

/// A configuration file that says what was said, defaults apart.
pub(super) fn settings(config: &Config) -> String {
    use std::fmt::Write;
    let mut text = String::from("# Written by `svcdns install` from its flags, variables and file.\n");
    let mut section = "";
    for effective in config.effective().iter().filter(|effective| effective.written && !counts_not(effective)) {
        let (above, name) = effective.path.rsplit_once('.').unwrap_or(("", &effective.path));
        if above != section {
            section = above;
            let _ = write!(text, "\n[{section}]\n");
        }
        let _ = writeln!(text, "{name} = {}", effective.value);
    }
    text
}

/// The command that a person has to run and supervise.
fn serve_command(file: Option<&Path>, flags: &Flags) -> String {
    let mut line = vec!["svcdns".to_owned(), "serve".to_owned()];
    if let Some(file) = file {
        line.extend(["--config".to_owned(), file.display().to_string()]);
    }
    line.extend(flags.written());
    system::shell_quoted(&line)
}

/// The main process of our unit, as systemd tells.
fn main_process() -> Option<u32> {
    let line = ["systemctl", "show", "--property=MainPID", "--value", SERVER_UNIT].map(str::to_owned);
    system::run(&line).ok()?.trim().parse().ok().filter(|process| *process != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_is_led_to() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let at = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        assert_eq!(usable(&addresses(&["127.0.0.1:5300"]), false), at("127.0.0.1:5300"));
        assert_eq!(usable(&addresses(&["127.0.0.1:5300"]), true), None);
        assert_eq!(usable(&addresses(&["192.0.2.1:53", "127.0.0.1:5300", "[::1]:53"]), true), at("[::1]:53"));
        assert_eq!(usable(&addresses(&["192.0.2.1:53"]), true), at("192.0.2.1:53"));
        assert_eq!(usable(&addresses(&["0.0.0.0:53"]), true), at("127.0.0.1:53"));
    }

    #[test]
    fn the_settings_are_written_as_they_were_said() {
        let flags = Flags::default().with("registry", "etcd://10.0.0.1:2379").with("etcd.tls", "true").with("ttl", "9s");
        let config = Config::load(None, [], &flags.with("state-dir", "/x")).unwrap();
        let text = settings(&config);
        assert!(text.ends_with("registry = [\"etcd://10.0.0.1:2379\"]\nttl = \"9s\"\n\n[etcd]\ntls = true\n"), "{text}");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("c"), &text).unwrap();
        let read = Config::load(Some(&folder.path().join("c")), [], &Flags::default()).unwrap();
        assert_eq!(settings(&read), text);
    }

    /// Loads the configuration of a file with this text, and shows the settings that it is written again with.
    fn written_again(text: &str, environment: &[(&str, &str)]) -> (Config, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c");
        std::fs::write(&file, text).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let config = Config::load(Some(&file), environment, &Flags::default()).unwrap();
        let text = settings(&config);
        (config, text)
    }

    #[test]
    fn sections_of_registries_are_written_as_sections() {
        let said = "ttl = \"9s\"\n\n[etcd]\nusername = \"u\"\n\n\
            [registry.main]\nurl = \"etcd://a,b\"\npassword-file = \"/etc/svcdns/it's\"\nheads = [\"x\", \"y\"]\n\n\
            [registry.10]\nurl = \"etcd://c:1\"\nusername = \"\"\npassword-file = \"\"\ntls = true\nremoval-grace = \"0s\"\n\n\
            [registry.dev]\nurl = \"file:///srv/gsvc\"\n";
        let (config, text) = written_again(said, &[]);
        assert!(text.ends_with(said), "{text}");
        let (again, same) = written_again(&text, &[]);
        assert_eq!((same, again.registries), (text, config.registries.clone()));
        // What a variable adds goes to the section of the kind; a list replaces the sections.
        let (added, text) = written_again(said, &[("SVCDNS_ETCD_CA_FILE", "/etc/svcdns/ca.pem")]);
        assert!(text.contains("[etcd]\nusername = \"u\"\nca-file = \"/etc/svcdns/ca.pem\"\n\n[registry.main]"), "{text}");
        assert!(!values(&added).eq(values(&config)));
        let (_, text) = written_again("[registry.main]\nurl = 'etcd://a'", &[("SVCDNS_REGISTRY", "file:///x")]);
        assert!(text.ends_with("registry = [\"file:///x\"]\n"), "{text}");
    }

    #[test]
    fn configurations_are_the_same_when_each_registry_is() {
        let main = "[registry.main]\nurl = 'file:///x'\n";
        let (one, _) = written_again(main, &[]);
        for (text, same) in [
            ("registry.main.url = \"file:///x\"", true),
            ("heads = ['service', 'services']\n[registry.main]\nurl = 'file:///x'", true),
            ("[registry.main]\nurl = 'file:///x'\nremoval-grace = '1s'", false),
            ("[registry.other]\nurl = 'file:///x'", false),
            ("[registry.main]\nurl = 'file:///x'\n[registry.other]\nurl = 'file:///y'", false),
            ("registry = 'file:///x'", false),
        ] {
            let (other, _) = written_again(text, &[]);
            assert_eq!(values(&one).eq(values(&other)), same, "{text}");
            assert_eq!(values(&other).eq(values(&one)), same, "{text}");
        }
    }

    #[test]
    fn a_service_is_not_given_what_it_cannot_read() {
        let login = "username = 'u'\n";
        let main = format!("[registry.main]\nurl = 'etcd://a'\n{login}");
        let refused = |text: &str, environment: &[(&str, &str)]| {
            let (config, _) = written_again(text, environment);
            can_be_read_by_service(&config).unwrap_err().to_string()
        };
        assert_eq!(
            refused(&main, &[("SVCDNS_REGISTRY_MAIN_PASSWORD", "p")]),
            "SVCDNS_REGISTRY_MAIN_PASSWORD does not reach a service: write the password into a file and name it with \
             registry.main.password-file in the configuration file"
        );
        let listed = format!("registry = 'etcd://a'\n[etcd]\n{login}");
        assert_eq!(
            refused(&listed, &[("SVCDNS_ETCD_PASSWORD", "p")]),
            "SVCDNS_ETCD_PASSWORD does not reach a service: write the password into a file and name it with --etcd-password-file"
        );
        assert_eq!(
            refused(&format!("{main}password-file = '/home/u/p'"), &[]),
            "registry.main.password-file lies in /home, which the service does not see: put it into /etc/svcdns"
        );
        assert_eq!(
            refused("[registry.dev]\nurl = 'file:///tmp/gsvc'", &[]),
            "the registry /tmp/gsvc lies in /tmp, which the service does not see: choose a folder elsewhere"
        );
        // One that a registry's own file replaces is not needed.
        let (own, _) = written_again(&format!("{main}password-file = '/etc/svcdns/p'"), &[("SVCDNS_ETCD_PASSWORD", "p")]);
        can_be_read_by_service(&own).unwrap();
    }

    #[test]
    fn the_command_to_supervise() {
        let flags = Flags::default().with("registry", "file:///var/lib/a b").with("listen", "127.0.0.1:53");
        let line = serve_command(Some(Path::new("/etc/x.toml")), &flags);
        assert_eq!(line, "svcdns serve --config /etc/x.toml --registry 'file:///var/lib/a b' --listen 127.0.0.1:53");
    }
}
