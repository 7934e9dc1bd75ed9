//! Which clients get an address of the port bridge: those on this machine, and no others.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::process::{Command, Output};

use support::bridge_server::inside;
use support::process::Process;
use support::svcdns::Svcdns;
use support::{SOON, bridge_server, eventually, netns, pages};

/// The address of the container's end of the link.
const CONTAINER_ADDRESS: &str = "10.9.0.6";

/// Another network namespace, linked to the test's own, like that of a container.
struct Container {
    process: Process,
}

impl Container {
    fn start() -> Self {
        let process = Process::start(Command::new("unshare").args(["--net", "sleep", "1000"]));
        let container = Self { process };
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        eventually("the namespace of the container", SOON, || {
            let path = format!("/proc/{}/ns/net", container.process.pid());
            (fs::read_link(path).is_ok_and(|other| other != own)).then_some(())
        });
        let pid = container.process.pid().to_string();
        netns::run("ip", &["link", "set", "veth1", "netns", &pid]);
        for line in [
            &["ip", "link", "set", "lo", "up"][..],
            &["ip", "address", "add", &format!("{CONTAINER_ADDRESS}/24"), "dev", "veth1"],
            &["ip", "link", "set", "veth1", "up"],
        ] {
            let output = container.run(line);
            assert!(output.status.success(), "{line:?}: {output:?}");
        }
        container
    }

    /// Runs a program in the container.
    fn run(&self, line: &[&str]) -> Output {
        let pid = self.process.pid().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &pid]).args(line).output().unwrap()
    }

    /// Returns the addresses that dig in the container gets from a server.
    fn dig(&self, server: &str, name: &str) -> String {
        let line = ["dig", "+short", "+tries=3", "+time=10", &format!("@{server}"), name];
        String::from_utf8(self.run(&line).stdout).unwrap()
    }
}

/// Returns the addresses that dig gets from a server on this machine.
fn dig(server: &str, name: &str) -> String {
    let line = ["+short", "+tries=3", "+time=10", &format!("@{server}"), name];
    bridge_server::output("dig", &line)
}

/// Starts svcdns at these addresses beside 127.0.0.1:53, for the container too.
fn start(registry: &str, listen: &str, flags: &[&str]) -> Svcdns {
    let flags = [&["--listen", listen, "--allow", "10.9.0.0/24"], flags].concat();
    let server = bridge_server::start(registry, &flags);
    bridge_server::address(&server, "hello.svc");
    server
}

#[test]
fn containers_get_the_addresses_of_instances() {
    inside("containers_get_the_addresses_of_instances", || {
        let port = pages::serve_hosts((netns::ADDRESS, 0));
        let files = bridge_server::registered(&[port]);
        let server = start(&files.url(), &format!("{}:53", netns::ADDRESS), &[]);
        let address = bridge_server::address(&server, "hello.svc");
        let container = Container::start();
        let instance = format!("{}\n", netns::ADDRESS);
        for name in ["hello.svc", "direct._via.hello.svc", "bridge._via.hello.svc"] {
            assert_eq!(container.dig(netns::ADDRESS, name), instance, "{name}");
        }
        let url = format!("http://hello.svc:{port}/");
        let resolved = format!("hello.svc:{port}:{}", netns::ADDRESS);
        let page = container.run(&["curl", "-sS", "--resolve", &resolved, &url]);
        assert_eq!(page.stdout, format!("page of hello.svc:{port}\n").as_bytes(), "{page:?}");
        // This machine asks both listeners. Only a query over loopback comes from it for certain.
        assert_eq!(dig("127.0.0.1", "hello.svc"), format!("{address}\n"));
        assert_eq!(dig(netns::ADDRESS, "hello.svc"), instance);
        // The port of the bridge's listener is open to nobody else either.
        let port = bridge_server::redirected_to().port();
        let from_outside = format!("http://{}:{port}/", netns::ADDRESS);
        assert!(!container.run(&["curl", "-sS", &from_outside]).status.success());
        server.stop();
    });
}

#[test]
fn loopback_addresses_in_ipv6_form_count_as_this_machine() {
    inside("loopback_addresses_in_ipv6_form_count_as_this_machine", || {
        let files = bridge_server::registered(&[pages::serve_hosts((netns::ADDRESS, 0))]);
        let mapped = ["--listen", "[::ffff:127.0.0.1]:5353", "--listen", "[::1]:53"];
        let server = start(&files.url(), "0.0.0.0:53", &mapped);
        let address = format!("{}\n", bridge_server::address(&server, "hello.svc"));
        // The socket is of IPv6: the address of an IPv4 client looks like ::ffff:127.0.0.1.
        let port = ["+short", "-p", "5353", "@127.0.0.1", "hello.svc"];
        assert_eq!(bridge_server::output("dig", &port), address);
        assert_eq!(bridge_server::output("dig", &[&["+tcp"], &port[..]].concat()), address);
        assert_eq!(dig("::1", "hello.svc"), address);
        let container = Container::start();
        assert_eq!(container.dig(netns::ADDRESS, "hello.svc"), format!("{}\n", netns::ADDRESS));
        server.stop();
    });
}

#[test]
fn queries_over_tls_and_aliases_get_the_address_too() {
    inside("queries_over_tls_and_aliases_get_the_address_too", || {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (certificate, key, configuration) = (file("cert"), file("key"), file("svcdns.toml"));
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&certificate, signed.cert.pem()).unwrap();
        fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
        fs::write(&configuration, "[alias]\nweb = \"hello.svc\"\n").unwrap();
        let files = bridge_server::registered(&[pages::serve_hosts((netns::ADDRESS, 0))]);
        let tls = ["--tls-listen", "127.0.0.1:853", "--tls-listen", "10.9.0.5:853"];
        let pair = ["--tls-cert-file", &certificate, "--tls-key-file", &key];
        let flags = [&tls[..], &pair, &["--config", &configuration]].concat();
        let server = start(&files.url(), &format!("{}:53", netns::ADDRESS), &flags);
        let address = bridge_server::address(&server, "hello.svc");
        let instance = format!("{}\n", netns::ADDRESS);
        let container = Container::start();
        let over_tls = |at: &str| {
            let trust = format!("+tls-ca={certificate}");
            let line = ["kdig", "+short", "+tls", "+tls-hostname=localhost", &trust];
            [&line[..], &[&format!("@{at}"), "hello.svc", "A"]].concat().join(" ")
        };
        let local = bridge_server::output("sh", &["-c", &over_tls("127.0.0.1")]);
        assert_eq!(local, format!("{address}\n"));
        let remote = container.run(&["sh", "-c", &over_tls(netns::ADDRESS)]);
        assert_eq!(String::from_utf8_lossy(&remote.stdout), instance);

        // An alias is another name of the service, with an address of its own.
        let alias = bridge_server::address(&server, "web.svc");
        assert_ne!(alias, address);
        assert_eq!(bridge_server::curl("http://web.svc/"), "page of web.svc\n");
        assert!(container.dig(netns::ADDRESS, "web.svc").ends_with(&instance));
        server.stop();
    });
}

#[test]
fn a_forwarder_on_this_machine_gives_containers_addresses_that_lead_to_themselves() {
    let test = "a_forwarder_on_this_machine_gives_containers_addresses_that_lead_to_themselves";
    inside(test, || {
        let port = pages::serve_hosts((netns::ADDRESS, 0));
        let files = bridge_server::registered(&[port]);
        netns::add_address("10.9.0.7/32");
        let server = start(&files.url(), &format!("{}:53", netns::ADDRESS), &[]);
        let address = bridge_server::address(&server, "hello.svc");
        let container = Container::start();
        let mut dnsmasq = Command::new("dnsmasq");
        dnsmasq.args(["--keep-in-foreground", "--no-resolv", "--server=127.0.0.1", "--no-hosts"]);
        dnsmasq.args(["--bind-interfaces", "--listen-address=10.9.0.7", "--user=root"]);
        dnsmasq.args(["--pid-file=", "--conf-file=/dev/null", "--cache-size=0"]);
        let _dnsmasq = Process::start(&mut dnsmasq);
        let route = ["ip", "route", "add", "10.9.0.7/32", "dev", "veth1"];
        assert!(container.run(&route).status.success());
        // As docs/bridge.md says: the forwarder's own query comes from this machine.
        let found = eventually("an answer of dnsmasq", SOON, || {
            Some(container.dig("10.9.0.7", "hello.svc")).filter(|found| found.starts_with('1'))
        });
        assert_eq!(found, format!("{address}\n"));
        let page = container.run(&["curl", "-sS", &format!("http://{address}/")]);
        assert!(!page.status.success(), "{page:?}");
        // The remedies: the container queries svcdns itself, or asks for the instances.
        let instance = format!("{}\n", netns::ADDRESS);
        assert_eq!(container.dig(netns::ADDRESS, "hello.svc"), instance);
        assert_eq!(container.dig("10.9.0.7", "direct._via.hello.svc"), instance);
        server.stop();
    });
}
