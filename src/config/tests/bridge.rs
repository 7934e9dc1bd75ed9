//! The section `[bridge]`.

use clap::{Args, FromArgMatches};

use super::*;
use crate::bridge::Settings;
use crate::service::NamePattern;

fn settings(text: &str) -> Option<Settings> {
    read(text, &[]).bridge
}

/// Loads the flags of a command line.
fn from_flags(words: &[&str]) -> Result<Option<Settings>, String> {
    let command = ServeFlags::augment_args(clap::Command::new("serve"));
    let matches = command.try_get_matches_from([&["serve"], words].concat());
    let flags = matches.and_then(|matches| ServeFlags::from_arg_matches(&matches));
    let ServeFlags(flags) = flags.map_err(|error| error.to_string())?;
    load("", &[], &flags).map(|config| config.bridge)
}

#[test]
fn the_bridge_is_off_unless_one_key_flag_or_variable_turns_it_on() {
    assert_eq!(settings(""), None);
    assert_eq!(settings("[bridge]\nports = [8080]"), None);
    let on = Some(Settings::default());
    assert_eq!(settings("[bridge]\nenabled = true"), on);
    assert_eq!(settings("bridge.enabled = true"), on);
    assert_eq!(read("", &[("SVCDNS_BRIDGE", "true")]).bridge, on);
    assert_eq!(from_flags(&["--bridge"]), Ok(on.clone()));
    assert_eq!(from_flags(&["--bridge=true"]), Ok(on));
    assert_eq!(from_flags(&["--bridge=false"]), Ok(None));
    let written = Flags::default().with("bridge.enabled", "true").written();
    assert_eq!(written, ["--bridge=true"]);
}

#[test]
fn every_key_of_the_bridge_takes_effect() {
    let text = "[bridge]\nenabled = true\npool = '127.9.1.2/24'\nports = [80, 8080]\n\
                protocols = ['GRPC', 'tcp']\ninclude = ['web-*']\nexclude = ['*.test']\n\
                namespaces = ['Prod']\nbind = true\nproxy-protocol = true\nconnections = 7\n\
                connections-per-service = 5\nidle-timeout = '1m'\ndrain = '0s'\n";
    let found = settings(text).unwrap();
    assert_eq!(found.pool, "127.9.1.0/24".parse().unwrap());
    assert_eq!(found.ports, [80, 8080]);
    assert_eq!(found.policy.protocols, ["grpc".into(), "tcp".into()]);
    assert_eq!(found.policy.include, [NamePattern::new("web-*")]);
    assert_eq!(found.policy.exclude, [NamePattern::new("*.test")]);
    assert_eq!(found.policy.namespaces, ["prod".into()]);
    assert!(found.bind && found.proxy_protocol);
    assert_eq!((found.connections, found.connections_per_service), (7, 5));
    assert_eq!((found.idle_timeout, found.drain), {
        (Some(Duration::from_secs(60)), Duration::ZERO)
    });
    let ports = read("", &[("SVCDNS_BRIDGE", "true"), ("SVCDNS_BRIDGE_PORTS", "80,9000")]);
    assert_eq!(ports.bridge.unwrap().ports, [80, 9000]);
}

#[test]
fn invalid_settings_of_the_bridge_are_rejected_even_if_it_is_off() {
    assert_errors_after(
        "[bridge]\n",
        &[
            ("ports = [0]", "2:10: bridge.ports: \"0\" is not a port from 1 to 65535"),
            (
                "ports = ['80']",
                "2:10: bridge.ports: expected a list of integers, found a value of type \
          string",
            ),
            (
                "pool = '10.0.0.0/16'",
                "2:8: bridge.pool: 10.0.0.0/16 is no pool for the bridge: use a \
          network within 127.0.0.0/8, at most /28, without 127.0.0.0/24 and 127.255.255.255",
            ),
            (
                "pool = 'x'",
                "2:8: bridge.pool: \"x\" is not a network of IPv4 addresses, such as \
          127.83.0.0/16",
            ),
            (
                "include = ['hello', 'Hello.svc']",
                "2:21: bridge.include: \"Hello.svc\" never matches: write names without the zone, \
                 such as \"hello\"",
            ),
            (
                "exclude = ['']",
                "2:12: bridge.exclude: \"\" is not the name of a service, or a pattern such as \
                 hello*",
            ),
            (
                "ports = []\nbind = true",
                "3:8: bridge.bind: bridge.bind needs at least one port to \
          bind",
            ),
        ],
    );
}
