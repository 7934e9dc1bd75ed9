//! `svcdns demo` and `svcdns doctor` with the port bridge.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::TcpListener;
use std::process::Command;

use nix::sys::signal::Signal;
use support::bridge_server::inside;
use support::process::Process;
use support::svcdns::{self, Svcdns};
use support::{SOON, bridge_server, eventually, netns, pages};

/// Starts the demo, as `change` makes it, and waits for its commands; returns its output.
fn demo(change: impl FnOnce(Command) -> Command) -> (Process, String) {
    let mut command = svcdns::command();
    command.arg("demo");
    let mut demo = Process::start(&mut change(command));
    let text = eventually("the commands of the demo", SOON, || {
        assert!(demo.ended().is_none(), "{}", demo.log());
        Some(demo.log()).filter(|log| log.contains("Ctrl-C ends the demo"))
    });
    (demo, text)
}

/// Makes a command run without a capability.
fn without(capability: &str, command: &Command) -> Command {
    let dropped = format!("-{capability}");
    let mut limited = Command::new("setpriv");
    limited.args(["--bounding-set", &dropped, "--inh-caps", &dropped]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

/// Returns the pages of all commands of the demo that fetch one.
fn pages_of(text: &str) -> Vec<String> {
    let commands = text.lines().filter_map(|line| line.strip_prefix("  "));
    let fetching = commands.filter(|line| line.starts_with("curl") && !line.contains("metrics"));
    fetching.map(|line| bridge_server::output("sh", &["-c", line])).collect()
}

#[test]
fn demo_bridges_its_service_where_it_may_bind_port_80() {
    netns::inside("demo_bridges_its_service_where_it_may_bind_port_80", "127.0.0.1", || {
        let (mut first, text) = demo(|command| command);
        assert!(text.contains("The port bridge is on: http://hello.svc/ leads there"), "{text}");
        assert!(text.contains("no other program can start to listen on 0.0.0.0:80"), "{text}");
        let pages = pages_of(&text);
        assert_eq!(pages.len(), 4, "{text}");
        assert!(pages.iter().all(|page| page.starts_with("Hello from hello.svc!")), "{pages:?}");
        assert_eq!(pages[1], "Hello from hello.svc! You asked for hello.svc.\n");
        // A second demo has other addresses.
        let (mut second, other) = demo(|command| command);
        assert!(other.contains("The port bridge is on"), "{other}");
        assert_eq!(pages_of(&other).len(), 4);
        second.terminate();
        // Nothing of it is in the kernel, even after a kill.
        assert_eq!(bridge_server::tables(), "");
        assert!(TcpListener::bind("0.0.0.0:80").is_err());
        first.signal(Signal::SIGKILL);
        first.wait(SOON);
        TcpListener::bind("0.0.0.0:80").unwrap();
    });
}

#[test]
fn demo_says_why_it_bridges_nothing() {
    netns::inside("demo_says_why_it_bridges_nothing", "127.0.0.1", || {
        let (mut limited, text) = demo(|command| without("net_bind_service", &command));
        assert!(text.contains("The port bridge is off"), "{text}");
        assert!(text.contains("only root may listen on port 80"), "{text}");
        assert_eq!(pages_of(&text).len(), 2, "{text}");
        assert!(limited.terminate().success());

        let _web_server = TcpListener::bind("0.0.0.0:80").unwrap();
        let (mut beside, text) = demo(|command| command);
        assert!(text.contains("another program uses port 80"), "{text}");
        assert_eq!(pages_of(&text).len(), 2, "{text}");
        assert!(beside.terminate().success());
        assert!(!text.contains("bridge stays off"), "the bridge was not tried: {text}");
    });
}

/// Returns what `svcdns doctor` says about the bridge: level, text and commands of each finding.
fn findings(server: &Svcdns) -> Vec<(String, String, String)> {
    let output = server.run(&["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = json["findings"].as_array().unwrap().iter();
    let of_bridge = findings.filter(|finding| finding["check"] == "port bridge");
    let text = |finding: &serde_json::Value, key: &str| match &finding[key] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    of_bridge.map(|one| (text(one, "level"), text(one, "says"), text(one, "type"))).collect()
}

#[test]
fn doctor_checks_that_connections_reach_the_bridge() {
    let test = "doctor_checks_that_connections_reach_the_bridge";
    inside(test, || {
        let files = bridge_server::registered(&[pages::serve_hosts((netns::ADDRESS, 0))]);
        let server = bridge_server::start(&files.url(), &[]);
        bridge_server::address(&server, "hello.svc");
        let [(level, says, _)] = &findings(&server)[..] else { panic!("one finding") };
        assert_eq!(level, "ok", "{says}");
        assert!(says.contains("redirects connections to 127.83.0.0/16"), "{says}");

        // Another program in the pool no longer gets connections.
        let taken = TcpListener::bind("127.83.9.9:9999").unwrap();
        let found = findings(&server);
        let (level, says, _) = &found[1];
        assert_eq!((found.len(), &**level), (2, "warning"), "{found:?}");
        assert!(says.contains("127.83.9.9:9999") && says.contains("bridge_commands"), "{says}");
        drop(taken);

        // Nothing is listening, and then a program that listens on all addresses.
        let lost = |what: &str| {
            eventually(what, SOON, || {
                // The server may have noticed, and installed it again.
                bridge_server::run("nft", &["flush", "ruleset"]);
                let found = findings(&server);
                let (level, says, commands) = found.first()?;
                (level != "ok").then(|| (says.clone(), commands.clone()))
            })
        };
        let (says, _) = lost("the finding of a lost table");
        assert!(says.contains("nft flush ruleset") || says.contains("off"), "{says}");
        let _web_server = TcpListener::bind("0.0.0.0:1").unwrap();
        lost("the finding of another program");
    });
}

#[test]
fn doctor_says_why_the_bridge_is_off_and_what_to_do() {
    let test = "doctor_says_why_the_bridge_is_off_and_what_to_do";
    inside(test, || {
        let files = bridge_server::registered(&[80]);
        let url = files.url();
        let flags = ["--bridge", "--registry", &url];
        let server = Svcdns::serve_with("127.0.0.1:53".parse().unwrap(), &flags, |command| {
            *command = without("net_admin", command);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        });
        let [(level, says, commands)] = &findings(&server)[..] else { panic!("one finding") };
        assert_eq!((&**level, &**commands), ("warning", r#"["sudo svcdns install --bridge"]"#));
        assert!(says.contains("CAP_NET_ADMIN"), "{says}");
        server.stop();

        // Without the program nft.
        netns::mount_tmpfs("/usr/sbin");
        let server = bridge_server::start(&url, &[]);
        let [(level, says, commands)] = &findings(&server)[..] else { panic!("one finding") };
        assert_eq!(level, "warning");
        assert!(says.contains("nftables"), "{says}");
        assert!(commands.contains("sudo apt-get install nftables"), "{commands}");
        server.stop();

        // The bridge is off by default, which is no finding.
        let server = Svcdns::serve(&["--registry", &url]);
        assert_eq!(findings(&server), []);
        // Bound ports need no rule of the kernel.
        server.stop();
        let server = bridge_server::start(&url, &["--bridge-bind", "true"]);
        bridge_server::address(&server, "hello.svc");
        let [(level, says, _)] = &findings(&server)[..] else { panic!("one finding") };
        assert_eq!(level, "ok");
        assert!(says.contains("of 1 name"), "{says}");
        server.stop();
    });
}
