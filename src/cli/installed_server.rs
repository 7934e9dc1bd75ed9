//! The server of an installation: the running one, or a new service of systemd.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::client::{AdminClient, NotRunning};
use super::{ServerLocation, reachable};
use crate::admin::ServerStatus;
use crate::config::{
    Config, ConfiguredSecret, DEFAULT_FILE, EffectiveValue, Flags, Origin, SecretPlace,
};
use crate::daemon::ListenError;
use crate::system::{self, BridgeNeeds, InstallStep, Root, SERVER_UNIT};
use crate::{bridge, config, server};

/// Loopback addresses to try, in order, if `listen` is not configured.
///
/// Used only if port 53 is needed.
const DEFAULT_ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];

/// Directories hidden from the service: its unit hides homes and has its own /tmp.
const HIDDEN_FOLDERS: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// The server that name resolution will use.
#[derive(Debug)]
pub(super) struct ArrangedServer {
    /// An address that this machine can query.
    pub(super) address: SocketAddr,
    /// Steps that start the server; empty if it is running.
    pub(super) steps: Vec<InstallStep>,
    /// The server's settings, as a configuration file.
    ///
    /// With the same settings, a second installation does nothing.
    pub(super) settings: String,
    /// Notes for the user.
    pub(super) notes: Vec<String>,
    /// The command to run first if there is neither a server nor systemd.
    pub(super) to_start: Option<String>,
}

/// Requirements for the server of an installation.
pub(super) struct ServerRequirements<'a> {
    pub(super) root: &'a Root,
    pub(super) location: &'a ServerLocation,
    pub(super) file: Option<&'a Path>,
    pub(super) flags: &'a Flags,
    pub(super) config: &'a Config,
    /// Whether systemd runs.
    pub(super) systemd: bool,
    /// Whether the server must listen on port 53.
    pub(super) port_53: bool,
}

/// Returns the status of the running server, if one is running.
pub(super) async fn running(location: &ServerLocation) -> anyhow::Result<Option<ServerStatus>> {
    match AdminClient::find(location).await {
        Ok(client) => Ok(Some(client.get("/v1/status").await?)),
        Err(error) if error.is::<NotRunning>() => Ok(None),
        Err(error) => Err(error),
    }
}

impl ServerRequirements<'_> {
    /// Finds a running server with these settings, or plans a new one.
    ///
    /// # Errors
    /// If a running server that svcdns does not manage has other settings, or no server can run.
    pub(super) async fn arrange(&self) -> anyhow::Result<ArrangedServer> {
        let running = running(self.location).await?;
        let mut own_addresses: &[SocketAddr] = &[];
        if let Some(status) = &running {
            let mut differences = differences(self.config, status);
            let usable = usable(&status.listen, self.port_53);
            if usable.is_none() {
                let missing = "it does not listen on port 53 of an address of this machine, which \
                               is needed here";
                differences.push(missing.to_owned());
            }
            if let (Some(address), true) = (usable, differences.is_empty()) {
                let notes = vec![format!(
                    "The running server (process {}) has these settings, and is left alone.",
                    status.pid
                )];
                return Ok(ArrangedServer {
                    address,
                    steps: Vec::new(),
                    settings: settings(self.config),
                    notes,
                    to_start: None,
                });
            }
            if !(self.systemd && main_process() == Some(status.pid)) {
                bail!(
                    "a server with other settings is running (process {}): {}. Stop it, or give \
                     `install` its settings",
                    status.pid,
                    differences.join("; ")
                );
            }
            own_addresses = &status.listen;
        }
        let (address, listen, notes) = self.address(own_addresses)?;
        let flags = match listen {
            Some(listen) => self.flags.clone().with("listen", listen.to_string()),
            None => self.flags.clone(),
        };
        if !self.systemd {
            let to_start = Some(serve_command(self.file, &flags));
            return Ok(ArrangedServer {
                address,
                steps: Vec::new(),
                settings: settings(self.config),
                notes,
                to_start,
            });
        }
        let config = self.location.configure(self.file, flags)?;
        let steps = self.plan_service(&config)?;
        Ok(ArrangedServer { address, steps, settings: settings(&config), notes, to_start: None })
    }

    /// Chooses the address to query and, if `listen` is not configured, to listen on.
    ///
    /// Also returns notes for the user. `own` are the addresses on which svcdns's own server
    /// listens.
    fn address(
        &self,
        own: &[SocketAddr],
    ) -> anyhow::Result<(SocketAddr, Option<SocketAddr>, Vec<String>)> {
        let configured = origin(self.config, "listen") != Origin::Default;
        let address = usable(&self.config.listen, self.port_53);
        if configured || !self.port_53 {
            let Some(address) = address else {
                bail!(
                    "the server must listen on port 53 of a loopback address here, and `listen` \
                     has none: add 127.0.0.1:53 to it"
                );
            };
            if address.port() == 0 {
                bail!("`listen` has port 0, which is another port at each start: choose a port");
            }
            if !own.contains(&address) {
                check_free(self.config, address)?;
            }
            return Ok((address, None, Vec::new()));
        }
        let mut notes = Vec::new();
        let mut first = None;
        for candidate in DEFAULT_ADDRESSES {
            let address = SocketAddr::from((candidate, 53));
            if own.contains(&address) {
                return Ok((address, Some(address), notes));
            }
            match check_free(self.config, address) {
                Ok(()) => return Ok((address, Some(address), notes)),
                Err(error) => {
                    notes.push(format!("{error:#}"));
                    first = first.or(Some(error));
                }
            }
        }
        Err(first.context("no address to listen on")?)
    }

    /// Plans the steps that make systemd run the server with this configuration.
    fn plan_service(&self, config: &Config) -> anyhow::Result<Vec<InstallStep>> {
        let program = this_program()?;
        if let Some(folder) = hidden_folder(&program) {
            bail!(
                "this program is in {folder}, which the service cannot see: `sudo install -m 755 \
                 {} /usr/local/bin/svcdns`, then run that one",
                program.display()
            );
        }
        check_service_can_read(config)?;
        for EffectiveValue { path, origin, .. } in
            config.effective().iter().filter(|effective| effective.key.is_directory())
        {
            if let Origin::File { .. } = origin {
                bail!(
                    "{origin} sets `{path}`, but the service has its own directories: remove that \
                     line"
                );
            }
        }
        system::check_state_directory(self.root)?;
        let mut steps = Vec::new();
        let file = self.configuration_file();
        let alone = Config::load(Some(&file), [], &Flags::default()).ok();
        let same = alone.is_some_and(|alone| values(&alone).eq(values(config)));
        let named = if same {
            if let Some(folder) = hidden_folder(&file) {
                bail!(
                    "{} is in {folder}, which the service cannot see: move it to {DEFAULT_FILE}",
                    file.display()
                );
            }
            Some(file).filter(|file| file != Path::new(DEFAULT_FILE))
        } else {
            steps.extend(system::plan_file(self.root, Path::new(DEFAULT_FILE), &settings(config))?);
            None
        };
        let unit = system::server_unit(&program, named.as_deref());
        let bridge = config.bridge.as_ref().map(|settings| BridgeNeeds {
            table_prefix: bridge::TABLE_PREFIX,
            redirects: !settings.bind,
            drain: settings.drain,
        });
        steps.extend(system::plan_server(self.root, &unit, bridge.as_ref())?);
        Ok(steps)
    }

    /// Returns the path of the configuration file, whether it exists or not.
    fn configuration_file(&self) -> PathBuf {
        let variable = || {
            std::env::var_os(config::CONFIG_VARIABLE)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        };
        let named = self.file.map(Path::to_owned).or_else(variable);
        let path = named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        std::path::absolute(&path).unwrap_or(path)
    }
}

/// Returns the path of this program, without symbolic links.
pub(super) fn this_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    Ok(program.canonicalize().unwrap_or(program))
}

/// Checks that the service could read the secrets and files of a configuration.
///
/// # Errors
/// If a secret is in the environment, or a file in a directory that the service cannot see.
fn check_service_can_read(config: &Config) -> anyhow::Result<()> {
    for ConfiguredSecret { key, file_key, place, .. } in &config.secrets {
        let SecretPlace::Variable(variable) = place else { continue };
        let named = if variable == key.variable {
            format!("--{}", key.file.flag())
        } else {
            format!("{file_key} in the configuration file")
        };
        bail!(
            "{variable} does not reach the service: write the {} into a file, and set {named} to \
             its path",
            key.name
        );
    }
    for path in config.registries.iter().filter_map(|registry| registry.source.directory()) {
        if let Some(folder) = hidden_folder(path) {
            bail!(
                "the registry {} is in {folder}, which the service cannot see: choose another \
                 directory",
                path.display()
            );
        }
    }
    for EffectiveValue { path, value, .. } in
        config.effective().iter().filter(|effective| effective.key.name.ends_with("-file"))
    {
        if let Some(folder) = hidden_folder(Path::new(value.trim_matches('"'))) {
            bail!("{path} is in {folder}, which the service cannot see: put it into /etc/svcdns");
        }
    }
    Ok(())
}

/// Returns the values of a configuration, without their sources.
///
/// Directories are left out, because a service has its own.
fn values(config: &Config) -> impl Iterator<Item = (&str, &str)> {
    let compared = config.effective().iter().filter(|effective| !effective.key.is_directory());
    compared.map(|effective| (&*effective.path, &*effective.value))
}

/// Describes how a running server differs from the configuration.
///
/// Settings that the status does not contain count as equal.
fn differences(config: &Config, status: &ServerStatus) -> Vec<String> {
    let mut found = Vec::new();
    let zones: Vec<&str> = config.zones.iter().map(crate::name::Zone::text).collect();
    if status.zones != zones {
        found.push(format!("it serves {}, not {}", status.zones.join(" "), zones.join(" ")));
    }
    let mut registries: Vec<String> =
        config.registries.iter().map(|registry| registry.source.to_string()).collect();
    let mut followed: Vec<String> =
        status.registries.iter().map(|registry| registry.url.clone()).collect();
    registries.sort();
    followed.sort();
    if registries != followed {
        found.push(format!("it follows {}, not {}", followed.join(" "), registries.join(" ")));
    }
    let aliases = config.answer(&[]).aliases;
    let configured = aliases.iter().map(|(base, target)| (base, target.to_string()));
    let served = status
        .aliases
        .iter()
        .map(|alias| (&*alias.base, alias.service.clone().unwrap_or_else(|| alias.target.clone())));
    if !configured.eq(served) {
        found.push("it has other aliases".to_owned());
    }
    if origin(config, "listen") != Origin::Default {
        let missing = |address: &&SocketAddr| {
            !address.ip().is_unspecified()
                && address.port() != 0
                && !status.listen.contains(address)
        };
        if let Some(address) = config.listen.iter().find(missing) {
            found.push(format!("it does not listen on {address}"));
        }
    }
    found
}

/// Returns an address that this machine can query, preferably a loopback one.
///
/// With `port_53`, only addresses with port 53 count.
fn usable(listen: &[SocketAddr], port_53: bool) -> Option<SocketAddr> {
    let reached = listen.iter().copied().map(reachable);
    let fit: Vec<SocketAddr> = reached.filter(|address| !port_53 || address.port() == 53).collect();
    fit.iter().find(|address| address.ip().is_loopback()).or_else(|| fit.first()).copied()
}

/// Checks that the port is free at the address.
///
/// # Errors
/// If the port is in use; the error names the process that uses it, if known.
fn check_free(config: &Config, address: SocketAddr) -> anyhow::Result<()> {
    let settings = server::Settings { listen: vec![address], ..config.server() };
    Ok(server::bind(&settings).map(drop).map_err(ListenError::with_holder)?)
}

/// Returns the hidden directory that contains `path`, if any.
fn hidden_folder(path: &Path) -> Option<&'static str> {
    HIDDEN_FOLDERS.into_iter().find(|folder| path.starts_with(folder))
}

/// Returns the origin of a key's value.
fn origin(config: &Config, key: &str) -> Origin {
    let found = config.effective().iter().find(|effective| effective.path == key);
    found.map_or(Origin::Default, |effective| effective.origin.clone())
}

/// Formats the settings that differ from their defaults as a configuration file.
pub(super) fn settings(config: &Config) -> String {
    use std::fmt::Write;
    let mut text =
        String::from("# Written by `svcdns install` from its flags, variables and file.\n");
    let mut section = "";
    for effective in config
        .effective()
        .iter()
        .filter(|effective| effective.written && !effective.key.is_directory())
    {
        let (above, name) = effective.path.rsplit_once('.').unwrap_or(("", &effective.path));
        if above != section {
            section = above;
            let _ = write!(text, "\n[{section}]\n");
        }
        let _ = writeln!(text, "{name} = {}", effective.value);
    }
    if !config.aliases.is_empty() {
        let lines: String = config.aliases.iter().map(|alias| alias.line() + "\n").collect();
        let _ = write!(text, "\n[alias]\n{lines}");
    }
    text
}

/// Returns the command line of a server with these settings.
fn serve_command(file: Option<&Path>, flags: &Flags) -> String {
    let mut line = vec!["svcdns".to_owned(), "serve".to_owned()];
    if let Some(file) = file {
        line.extend(["--config".to_owned(), file.display().to_string()]);
    }
    line.extend(flags.written());
    system::shell_quoted(&line)
}

/// Returns the main process of svcdns's unit, if systemd runs it.
fn main_process() -> Option<u32> {
    let line =
        ["systemctl", "show", "--property=MainPID", "--value", SERVER_UNIT].map(str::to_owned);
    system::run(&line).ok()?.trim().parse().ok().filter(|process| *process != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_address_is_preferred_as_name_server() {
        let addresses = |texts: &[&str]| {
            texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>()
        };
        let at = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        assert_eq!(usable(&addresses(&["127.0.0.1:5300"]), false), at("127.0.0.1:5300"));
        assert_eq!(usable(&addresses(&["127.0.0.1:5300"]), true), None);
        assert_eq!(
            usable(&addresses(&["192.0.2.1:53", "127.0.0.1:5300", "[::1]:53"]), true),
            at("[::1]:53")
        );
        assert_eq!(usable(&addresses(&["192.0.2.1:53"]), true), at("192.0.2.1:53"));
        assert_eq!(usable(&addresses(&["0.0.0.0:53"]), true), at("127.0.0.1:53"));
    }

    #[test]
    fn written_settings_are_read_back_unchanged() {
        let flags = Flags::default()
            .with("registry", "etcd://10.0.0.1:2379")
            .with("etcd.tls", "true")
            .with("ttl", "9s");
        let config = Config::load(None, [], &flags.with("state-dir", "/x")).unwrap();
        let text = settings(&config);
        assert!(
            text.ends_with(
                "registry = [\"etcd://10.0.0.1:2379\"]\nttl = \"9s\"\n\n[etcd]\ntls = true\n"
            ),
            "{text}"
        );
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("c"), &text).unwrap();
        let read = Config::load(Some(&folder.path().join("c")), [], &Flags::default()).unwrap();
        assert_eq!(settings(&read), text);
    }

    /// Loads a file with this text; returns the configuration and its settings as text.
    fn reload(text: &str, environment: &[(&str, &str)]) -> (Config, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c");
        std::fs::write(&file, text).unwrap();
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let config = Config::load(Some(&file), environment, &Flags::default()).unwrap();
        let text = settings(&config);
        (config, text)
    }

    #[test]
    fn aliases_are_written_as_they_were() {
        let written = "ttl = \"9s\"\n\n[alias]\nwww = 'Hello'\n\"db.svc\" = \"db.example.com.\"\n";
        let (_, text) = reload(written, &[]);
        let section = "\n\n[alias]\n\"www\" = \"Hello\"\n\"db.svc\" = \"db.example.com.\"\n";
        assert!(text.ends_with(section), "{text}");
        assert_eq!(reload(&text, &[]).1, text);
    }

    #[test]
    fn registry_sections_stay_sections_in_the_written_configuration() {
        let written = "ttl = \"9s\"\n\n[etcd]\nusername = \"u\"\n\n\
            [registry.main]\nurl = \"etcd://a,b\"\npassword-file = \"/etc/svcdns/it's\"\n\
            heads = [\"x\", \"y\"]\n\n\
            [registry.10]\nurl = \"etcd://c:1\"\n\
            username = \"\"\npassword-file = \"\"\ntls = true\n\
            removal-grace = \"0s\"\n\n\
            [registry.dev]\nurl = \"file:///srv/gsvc\"\n";
        let (config, text) = reload(written, &[]);
        assert!(text.ends_with(written), "{text}");
        let (again, same) = reload(&text, &[]);
        assert_eq!((same, again.registries), (text, config.registries.clone()));
        // A variable is added to the section of its kind; a list replaces the sections.
        let (added, text) = reload(written, &[("SVCDNS_ETCD_CA_FILE", "/etc/svcdns/ca.pem")]);
        assert!(
            text.contains(
                "[etcd]\nusername = \"u\"\nca-file = \"/etc/svcdns/ca.pem\"\n\n[registry.main]"
            ),
            "{text}"
        );
        assert!(!values(&added).eq(values(&config)));
        let (_, text) =
            reload("[registry.main]\nurl = 'etcd://a'", &[("SVCDNS_REGISTRY", "file:///x")]);
        assert!(text.ends_with("registry = [\"file:///x\"]\n"), "{text}");
    }

    #[test]
    fn configurations_are_equal_if_their_registries_are() {
        let main = "[registry.main]\nurl = 'file:///x'\n";
        let (first, _) = reload(main, &[]);
        for (text, same) in [
            ("registry.main.url = \"file:///x\"", true),
            ("heads = ['service', 'services']\n[registry.main]\nurl = 'file:///x'", true),
            ("[registry.main]\nurl = 'file:///x'\nremoval-grace = '1s'", false),
            ("[registry.other]\nurl = 'file:///x'", false),
            ("[registry.main]\nurl = 'file:///x'\n[registry.other]\nurl = 'file:///y'", false),
            ("registry = 'file:///x'", false),
        ] {
            let (other, _) = reload(text, &[]);
            assert_eq!(values(&first).eq(values(&other)), same, "{text}");
            assert_eq!(values(&other).eq(values(&first)), same, "{text}");
        }
    }

    #[test]
    fn secrets_and_directories_the_service_cannot_read_are_refused() {
        let login = "username = 'u'\n";
        let main = format!("[registry.main]\nurl = 'etcd://a'\n{login}");
        let refused = |text: &str, environment: &[(&str, &str)]| {
            let (config, _) = reload(text, environment);
            check_service_can_read(&config).unwrap_err().to_string()
        };
        assert_eq!(
            refused(&main, &[("SVCDNS_REGISTRY_MAIN_PASSWORD", "p")]),
            "SVCDNS_REGISTRY_MAIN_PASSWORD does not reach the service: write the password into a \
             file, and \
             set registry.main.password-file in the configuration file to its path"
        );
        let listed = format!("registry = 'etcd://a'\n[etcd]\n{login}");
        assert_eq!(
            refused(&listed, &[("SVCDNS_ETCD_PASSWORD", "p")]),
            "SVCDNS_ETCD_PASSWORD does not reach the service: write the password into a file, and \
             set \
             --etcd-password-file to its path"
        );
        assert_eq!(
            refused(&format!("{main}password-file = '/home/u/p'"), &[]),
            "registry.main.password-file is in /home, which the service cannot see: put it into \
             /etc/svcdns"
        );
        assert_eq!(
            refused("[registry.dev]\nurl = 'file:///tmp/gsvc'", &[]),
            "the registry /tmp/gsvc is in /tmp, which the service cannot see: choose another \
             directory"
        );
        // A variable has no effect if the registry's own file replaces it.
        let (own, _) = reload(
            &format!("{main}password-file = '/etc/svcdns/p'"),
            &[("SVCDNS_ETCD_PASSWORD", "p")],
        );
        check_service_can_read(&own).unwrap();
    }

    #[test]
    fn the_suggested_serve_command_contains_every_flag() {
        let flags =
            Flags::default().with("registry", "file:///var/lib/a b").with("listen", "127.0.0.1:53");
        let line = serve_command(Some(Path::new("/etc/x.toml")), &flags);
        assert_eq!(
            line,
            "svcdns serve --config /etc/x.toml --registry 'file:///var/lib/a b' --listen \
             127.0.0.1:53"
        );
    }
}
