//! Arbitrary resolv.conf and nsswitch.conf files, names, and URLs.

use std::path::Path;

use svcdns::config::{Config, Flags};
use svcdns::name::{Name, Zones, instance_address, instance_label, reverse_address, reverse_name};
use svcdns::resolv_conf::{MAX_NAME_SERVERS, ResolvConf};
use svcdns::system::{HostsLine, HostsLookup};
use svcdns::upstream::Target;

/// Fuzz target. Input: a text that is parsed as each of these.
pub fn files(input: &[u8]) {
    let conf = ResolvConf::parse(input);
    assert!(conf.lines.iter().flat_map(|line| line.bytes).eq(input), "a byte is lost");
    assert!((1..=MAX_NAME_SERVERS).contains(&conf.effective_servers().len()));
    assert!(conf.name_servers().all(|server| server.socket_address(|_| Some(1)).is_some()));
    let _ = (conf.search(), conf.options().count());
    assert!(
        conf.faults()
            .all(|(line, fault)| line <= conf.lines.len() && !fault.to_string().is_empty())
    );

    let text = String::from_utf8_lossy(input);
    if let Some(hosts) = HostsLine::find(&text) {
        assert_eq!(hosts.with_dns().lookup(), HostsLookup::Dns, "{hosts:?}");
        assert!(HostsLine::find(&hosts.to_line()).is_some());
    }
    for line in text.lines().take(16) {
        parse_line(line);
    }
}

/// Parses a line as a name, an instance label, zones, a registry and an upstream.
fn parse_line(line: &str) {
    if let Ok(name) = Name::from_text(line) {
        assert_eq!(Name::from_text(&name.to_string()), Ok(name));
        assert_eq!(Name::from_wire(name.as_wire()), Ok((name, name.as_wire().len())));
        if let Some(address) = reverse_address(&name) {
            assert_eq!(reverse_name(address), name);
        }
    }
    if let Some(address) = instance_address(line.as_bytes()) {
        assert_eq!(instance_address(instance_label(address).as_bytes()), Some(address));
    }
    let _ = Zones::new(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let flags = Flags::default().with("registry", line);
    if let Ok(config) = Config::load(Some(Path::new("/dev/null")), [], &flags) {
        assert!(config.registries.iter().all(|registry| !registry.source.to_string().is_empty()));
    }
    if let Ok(target) = line.parse::<Target>() {
        assert_eq!(
            target.to_string().parse::<Target>().as_ref(),
            Ok(&target),
            "{line:?} does not parse as the same target again"
        );
    }
}
