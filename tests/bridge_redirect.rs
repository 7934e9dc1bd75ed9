//! `http://hello.svc/` works for unmodified programs, whatever the port of the instances.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::sys::signal::Signal;
use support::bridge_server::{
    self, address as bridge_address, curl, inside, output, redirected_to, registered, run, tables,
};
use support::files::Files;
use support::process::Process;
use support::svcdns::{self, Svcdns};
use support::{SOON, eventually, netns, on_path, pages, skip};
use tempfile::TempDir;

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// Serves a page with the request's Host on a free port; returns the port.
fn serve_pages() -> u16 {
    pages::serve_hosts((netns::ADDRESS, 0))
}

/// Starts svcdns as the machine's name server, with its bridge on.
fn bridged(files: &Files, flags: &[&str]) -> Svcdns {
    bridge_server::start(&files.url(), flags)
}

/// Starts svcdns with a bridge that stays off; returns it, and what it has logged until then.
fn stays_off(mut command: Command, files: &Files, flags: &[&str]) -> (Process, TempDir, String) {
    let state = tempfile::tempdir().unwrap();
    command.args(["serve", "--bridge", "--registry", &files.url(), "--listen", "127.0.0.1:53"]);
    command.args(["--upstream", "off"]).args(flags).arg("--state-dir").arg(state.path());
    let server = Process::start(&mut command);
    let text = eventually("the reason in the log", SOON, || {
        let text = server.log();
        text.contains("the port bridge stays off").then_some(text)
    });
    (server, state, text)
}

#[test]
fn programs_reach_services_by_name_alone() {
    inside("programs_reach_services_by_name_alone", || {
        let ports = [serve_pages(), serve_pages()];
        let files = registered(&ports);
        files.put("default/default/elsewhere/latest/10.9.0.77:61000", r#"{"protocol":"http"}"#);
        // A web server of the machine has port 80 already.
        let _nginx = TcpListener::bind("0.0.0.0:80").unwrap();
        let server = bridged(&files, &[]);
        let address = bridge_address(&server, "hello.svc");
        let page = "page of hello.svc\n";
        assert_eq!(curl("http://hello.svc/"), page);
        for port in ports {
            let host = format!("hello.svc:{port}");
            assert_eq!(curl(&format!("http://{host}/")), format!("page of {host}\n"));
        }
        // A port that only instances on other machines have can still be bound here.
        bridge_address(&server, "elsewhere.svc");
        TcpListener::bind("0.0.0.0:61000").unwrap();

        let lookup = |program: &str, file: &str| output(program, &[file, "hello.svc"]);
        let expected = format!("hello.svc {address}\n{page}");
        assert_eq!(lookup("python3", &format!("{CLIENTS}/lookup.py")), expected);
        assert_eq!(lookup("node", &format!("{CLIENTS}/lookup.js")), expected);
        assert_eq!(lookup("java", &format!("{CLIENTS}/Lookup.java")), expected);
        assert!(output("getent", &["hosts", &address]).contains("hello.svc"), "a reverse name");

        // No instance has this port: the connection ends at once.
        let refused = run("curl", &["-sS", "--max-time", "20", "http://hello.svc:1/"]);
        assert!(!refused.status.success() && refused.status.code() != Some(28), "{refused:?}");
        // SRV-aware programs go straight to an instance.
        let direct = support::dns::addresses(server.address, "direct._via.hello.svc");
        assert_eq!(direct, Ok(vec![netns::ADDRESS.parse().unwrap()]));
        server.stop();
        assert!(!tables().contains("svcdns"), "{}", tables());
    });
}

#[test]
fn go_programs_reach_services_by_name_alone() {
    let test = "go_programs_reach_services_by_name_alone";
    if !on_path("go") {
        return skip(test, "no go on PATH, to build a program with");
    }
    inside(test, || {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("lookup");
        let mut build = Command::new("go");
        // A single file, outside any module.
        build.args(["build", "-o"]).arg(&program).arg(format!("{CLIENTS}/lookup.go"));
        build.env("CGO_ENABLED", "1").env("GOTOOLCHAIN", "local").current_dir(&folder);
        assert!(build.status().unwrap().success());
        let files = registered(&[serve_pages()]);
        let server = bridged(&files, &[]);
        let address = bridge_address(&server, "hello.svc");
        let expected = format!("hello.svc {address}\npage of hello.svc\n");
        assert_eq!(output(program.to_str().unwrap(), &["hello.svc"]), expected);
        server.stop();
    });
}

#[test]
fn https_passes_through_unchanged() {
    inside("https_passes_through_unchanged", || {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (certificate, key) = (file("cert.pem"), file("key.pem"));
        let signed = rcgen::generate_simple_self_signed(["hello.svc".to_owned()]).unwrap();
        fs::write(&certificate, signed.cert.pem()).unwrap();
        fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
        let mut command = Command::new("openssl");
        command.args(["s_server", "-www", "-accept", "10.9.0.5:8443"]);
        command.args(["-cert", &certificate, "-key", &key]);
        let _server = Process::start_with(&mut command, |_| {});
        let files = registered(&[8443]);
        let server = bridged(&files, &[]);
        bridge_address(&server, "hello.svc");
        let page = eventually("a page over TLS", SOON, || {
            let url = "https://hello.svc/";
            let output = run("curl", &["-sS", "--max-time", "20", "--cacert", &certificate, url]);
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        });
        assert!(page.contains("s_server"), "{page}");
        server.stop();
    });
}

#[test]
fn a_killed_server_leaves_a_table_that_the_next_one_replaces() {
    inside("a_killed_server_leaves_a_table_that_the_next_one_replaces", || {
        let files = registered(&[serve_pages()]);
        let mut server = bridged(&files, &[]);
        let address = bridge_address(&server, "hello.svc");
        server.signal(Signal::SIGKILL);
        eventually("the end of the server", SOON, || (!server.is_running()).then_some(()));
        assert!(tables().contains("svcdns_bridge_127_83_0_0_16"), "{}", tables());
        // Nothing hangs meanwhile, and no other user gets the connections.
        assert!(TcpStream::connect((&*address, 80)).is_err());
        let listener = redirected_to();
        assert!(listener.port() < 1024, "{listener}");
        let can_bind = |port: u16| {
            let code =
                format!("import socket; socket.socket().bind(('{}', {port}))", listener.ip());
            let nobody = ["--reuid", "65534", "--clear-groups", "python3", "-c", &code];
            run("setpriv", &nobody).status.success()
        };
        // A user namespace may have no other user.
        assert!(!can_bind(listener.port()) || !can_bind(0));
        // Nor can one keep the next server from redirecting, with a socket in the pool.
        let own = TcpListener::bind("127.83.9.9:9999").unwrap();
        let next = bridged(&files, &[]);
        assert_eq!(bridge_address(&next, "hello.svc"), address);
        assert_eq!(curl("http://hello.svc/"), "page of hello.svc\n");
        assert_eq!(tables().lines().count(), 1, "{}", tables());
        // That socket is left alone.
        TcpStream::connect("127.83.9.9:9999").unwrap();
        own.accept().unwrap();
        assert!(next.log().contains("127.83.9.9"), "{}", next.log());
        next.kill();

        // A table of another pool is removed as well.
        let other = bridged(&files, &["--bridge-pool", "127.84.0.0/16"]);
        eventually("the table of the other pool", SOON, || {
            (tables().trim() == "table ip svcdns_bridge_127_84_0_0_16").then_some(())
        });
        // That of a running server is not, and nobody else gets its pool.
        let second = Svcdns::serve_at(
            "127.0.0.2:53".parse().unwrap(),
            &["--bridge", "--bridge-pool", "127.84.7.0/24", "--registry", &files.url()],
        );
        eventually("the reason in the log", SOON, || {
            second.log().contains("another svcdns on this machine").then_some(())
        });
        second.stop();
        assert_eq!(tables().trim(), "table ip svcdns_bridge_127_84_0_0_16");
        other.stop();
    });
}

#[test]
fn a_socket_at_the_address_of_a_service_takes_nothing_from_it() {
    inside("a_socket_at_the_address_of_a_service_takes_nothing_from_it", || {
        let files = registered(&[serve_pages()]);
        let server = bridged(&files, &[]);
        let address = bridge_address(&server, "hello.svc");
        let state = server.stop_and_keep();
        let own = TcpListener::bind((&*address, 60700)).unwrap();
        own.set_nonblocking(true).unwrap();
        let flags = ["--bridge", "--registry", &files.url()];
        let server = Svcdns::serve_in(state, "127.0.0.1:53".parse().unwrap(), &flags, |_| {});
        assert_eq!(bridge_address(&server, "hello.svc"), address);
        assert_eq!(curl("http://hello.svc/"), "page of hello.svc\n");
        // The bridge has the connection, and resets it: no instance has this port.
        let reset =
            TcpStream::connect((&*address, 60700)).and_then(|mut stream| stream.read(&mut [0]));
        assert!(reset.is_err(), "{reset:?}");
        assert!(own.accept().is_err());
        server.stop();
    });
}

#[test]
fn clients_get_the_instances_while_a_firewall_drops_redirected_connections() {
    inside("clients_get_the_instances_while_a_firewall_drops_redirected_connections", || {
        let files = registered(&[serve_pages()]);
        let server = bridged(&files, &[]);
        let address = bridge_address(&server, "hello.svc");
        let port = redirected_to().port();
        netns::run("nft", &["add table ip other"]);
        netns::run("nft", &["add chain ip other in { type filter hook input priority 0; }"]);
        netns::run("nft", &[&format!("add rule ip other in tcp dport {port} drop")]);
        server.wait_for("hello.svc", &[netns::ADDRESS]);
        let status = server.run(&["status"]);
        let status = String::from_utf8_lossy(&status.stdout);
        assert!(status.contains("may drop them"), "{status}");
        netns::run("nft", &["delete table ip other"]);
        assert_eq!(bridge_address(&server, "hello.svc"), address);
        assert_eq!(curl("http://hello.svc/"), "page of hello.svc\n");
        server.stop();
    });
}

#[test]
fn rules_that_another_program_removes_are_restored() {
    inside("rules_that_another_program_removes_are_restored", || {
        let files = registered(&[serve_pages()]);
        // A program in front of nft that fails on demand.
        let folder = tempfile::tempdir().unwrap();
        let broken = folder.path().join("broken");
        let nft = folder.path().join("nft");
        let path = std::env::var("PATH").unwrap();
        let script = format!(
            "#!/bin/sh\nPATH={path}:/usr/sbin\n[ -e {} ] && exit 1\nexec nft \"$@\"\n",
            broken.display()
        );
        fs::write(&nft, script).unwrap();
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
        let url = files.url();
        let front = format!("{}:{path}", folder.path().display());
        let server = Svcdns::serve_with(
            "127.0.0.1:53".parse().unwrap(),
            &["--bridge", "--registry", &url],
            |command| {
                command.env("PATH", &front);
            },
        );
        let address = bridge_address(&server, "hello.svc");
        assert_eq!(curl("http://hello.svc/"), "page of hello.svc\n");
        // As Debian's nftables service does when it reloads its configuration.
        netns::run("nft", &["flush", "ruleset"]);
        eventually("the page", SOON, || {
            let got = run("curl", &["-sS", "--max-time", "20", "http://hello.svc/"]);
            (got.stdout == b"page of hello.svc\n").then_some(())
        });
        assert!(tables().contains("svcdns_bridge"), "{}", tables());
        eventually("the reason in the log", SOON, || {
            server.log().contains("another program removed the bridge's table").then_some(())
        });

        // What cannot be restored is withdrawn: clients get the addresses of the instances.
        fs::write(&broken, "").unwrap();
        netns::run("nft", &["flush", "ruleset"]);
        server.wait_for("hello.svc", &[netns::ADDRESS]);
        let status = server.run(&["status"]);
        let status = String::from_utf8_lossy(&status.stdout);
        assert!(status.contains("port bridge off: nft failed"), "{status}");
        fs::remove_file(&broken).unwrap();
        assert_eq!(bridge_address(&server, "hello.svc"), address);
        assert_eq!(curl("http://hello.svc/"), "page of hello.svc\n");
        server.stop();
        assert!(!tables().contains("svcdns"), "{}", tables());
    });
}

#[test]
fn only_tcp_connections_are_carried_and_everything_else_is_rejected() {
    inside("only_tcp_connections_are_carried_and_everything_else_is_rejected", || {
        let files = registered(&[serve_pages()]);
        let server = bridged(&files, &[]);
        let address = bridge_address(&server, "hello.svc");
        // A program that receives at all addresses of this machine, such as another resolver.
        let everywhere = UdpSocket::bind("0.0.0.0:5353").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(client.send_to(b"hello", (&*address, 5353)).is_err());
        client.send_to(b"hello", "127.0.0.1:5353").unwrap();
        let (_, from) = everywhere.recv_from(&mut [0; 5]).unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        server.stop();
    });
}

#[test]
fn open_connections_finish_at_a_stop_and_new_ones_are_refused() {
    inside("open_connections_finish_at_a_stop_and_new_ones_are_refused", || {
        let echo = TcpListener::bind((netns::ADDRESS, 0)).unwrap();
        let files = registered(&[echo.local_addr().unwrap().port()]);
        let mut server = bridged(&files, &["--bridge-drain", "1h"]);
        let address = bridge_address(&server, "hello.svc");
        let mut client = TcpStream::connect((&*address, 80)).unwrap();
        let (mut instance, _) = echo.accept().unwrap();
        server.signal(Signal::SIGTERM);
        eventually("new connections to be refused", SOON, || {
            TcpStream::connect((&*address, 80)).is_err().then_some(())
        });
        // The rules stay for the open connections, and lead to a port that is still the bridge's.
        assert!(redirected_to().port() < 1024);
        client.write_all(b"ping").unwrap();
        let mut received = [0; 4];
        instance.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"ping");
        assert!(server.is_running());
        // With the listener end the connections that were never accepted.
        drop((client, instance, echo));
        eventually("the end of the server", SOON, || (!server.is_running()).then_some(()));
        assert!(!tables().contains("svcdns"), "{}", tables());
    });
}

#[test]
fn without_the_permission_the_bridge_stays_off_and_says_what_to_do() {
    inside("without_the_permission_the_bridge_stays_off_and_says_what_to_do", || {
        let files = registered(&[serve_pages()]);
        // Without a bridge, its pool is like any other network.
        files.put("default/default/inside/latest/127.83.1.2:80", r#"{"protocol":"http"}"#);
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]);
        command.arg(svcdns::command().get_program());
        let (_server, _state, text) = stays_off(command, &files, &["--admin-listen", "off"]);
        assert!(text.contains("CAP_NET_ADMIN") && text.contains("bridge.bind"), "{text}");
        eventually("the address of the instance", SOON, || {
            let found = support::dns::addresses("127.0.0.1:53".parse().unwrap(), "hello.svc");
            (found == Ok(vec![netns::ADDRESS.parse().unwrap()])).then_some(())
        });
        let inside = support::dns::addresses("127.0.0.1:53".parse().unwrap(), "inside.svc");
        assert_eq!(inside, Ok(vec!["127.83.1.2".parse().unwrap()]));
    });
}

#[test]
fn the_pool_must_not_contain_an_address_of_the_server_itself() {
    let test = "the_pool_must_not_contain_an_address_of_the_server_itself";
    netns::inside(test, "127.0.0.1", || {
        let files = registered(&[serve_pages()]);
        let flags = ["--bridge-bind", "true", "--admin-listen", "127.83.0.9:8080"];
        let (_server, _state, text) = stays_off(svcdns::command(), &files, &flags);
        assert!(text.contains("contains 127.83.0.9:8080, which is in use"), "{text}");
    });
}

#[test]
fn without_redirection_the_ports_of_each_service_are_bound() {
    let test = "without_redirection_the_ports_of_each_service_are_bound";
    netns::inside(test, "127.0.0.1", || {
        let files = registered(&[serve_pages()]);
        let server = bridged(&files, &["--bridge-bind", "true"]);
        let address = bridge_address(&server, "hello.svc");
        assert_eq!(curl("http://hello.svc/"), "page of hello.svc\n");
        // The price: the port can no longer be bound for all addresses.
        assert!(TcpListener::bind("0.0.0.0:80").is_err());
        // Any other port is that of this machine: a program may listen on it.
        assert!(TcpStream::connect((&*address, 8080)).is_err());
        let own = TcpListener::bind("0.0.0.0:8080").unwrap();
        TcpStream::connect((&*address, 8080)).unwrap();
        own.accept().unwrap();
        server.stop();
        TcpListener::bind("0.0.0.0:80").unwrap();

        // A web server has the port already: the service stays direct, and the log says why once.
        let nginx = TcpListener::bind("0.0.0.0:80").unwrap();
        let server = bridged(&files, &["--bridge-bind", "true"]);
        eventually("the reason in the log", SOON, || {
            let log = server.log();
            (log.matches("cannot bind 127.83.").count() == 1).then_some(())
        });
        server.wait_for("hello.svc", &[netns::ADDRESS]);
        drop(nginx);
        bridge_address(&server, "hello.svc");
        assert_eq!(server.log().matches("cannot bind 127.83.").count(), 1);
        server.stop();
    });
}

#[test]
fn commands_show_what_the_bridge_does() {
    let test = "commands_show_what_the_bridge_does";
    netns::inside(test, "127.0.0.1", || {
        let http = r#"{"protocol":"http"}"#;
        let at = |name: &str, endpoint: &str| format!("default/default/{name}/latest/{endpoint}");
        let port = serve_pages();
        let keys = [
            (at("hello.svc", &format!("{}:{port}", netns::ADDRESS)), http),
            (at("rpc", "10.0.0.9:9000"), r#"{"protocol":"grpc"}"#),
            // A program that registers what it found in DNS would make a loop.
            (at("loop", "127.83.1.2:80,[::ffff:127.83.1.3]:80"), http),
        ];
        let keys: Vec<_> = keys.iter().map(|(key, value)| (&**key, *value)).collect();
        let files = Files::new(&keys);
        let server = bridged(&files, &["--bridge-bind", "true"]);
        let address = bridge_address(&server, "hello.svc");
        assert_eq!(curl("http://hello.svc/"), "page of hello.svc\n");
        let shown = |arguments: &[&str]| {
            let output = server.run(arguments);
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert!(shown(&["ls"]).contains(&address), "{}", shown(&["ls"]));
        let status = shown(&["status"]);
        assert!(status.contains("port bridge: 1 name in 127.83.0.0/16 (bound)"), "{status}");
        let explained = shown(&["explain", "hello.svc"]);
        let expected = format!(
            "clients on this machine get {address}, because bridge.protocols has http; port 80 \
             leads to {}:{port} (0 open)",
            netns::ADDRESS
        );
        assert!(explained.contains(&expected), "{explained}");
        let explained = shown(&["explain", "rpc.svc"]);
        assert!(explained.contains("not bridged: no registration has a protocol"), "{explained}");
        // The service with loop endpoints only is known, but has no address.
        let rejected = shown(&["ls", "--rejected"]);
        assert!(rejected.contains("2  endpoint-of-bridge"), "{rejected}");
        assert_eq!(support::dns::addresses(server.address, "loop.svc"), Ok(Vec::new()));
        let json: serde_json::Value = serde_json::from_str(&shown(&["ls", "--json"])).unwrap();
        assert_eq!(json[0]["bridged"][0]["address"], *address);
        server.stop();
    });
}
