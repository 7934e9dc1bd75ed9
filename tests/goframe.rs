//! Real GoFrame programs register services, and others find them by name.
//!
//! The Go module is in `tests/goframe`. A GoFrame client without discovery reaches the servers
//! through the machine's resolver. GoFrame registers the addresses of the machine's interfaces, so
//! each test runs in a network namespace with a single address, 10.9.0.5.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::time::Instant;

use nix::sys::signal::Signal;
use support::etcd::Etcd;
use support::goframe::{GoFrame, last_line};
use support::process::Process;
use support::svcdns::Svcdns;
use support::{SOON, dns, eventually, netns, seconds, svcdns, throughout};

/// Returns all keys of services in etcd.
fn keys(etcd: &Etcd) -> String {
    etcd.ctl(&["get", "--prefix", "--keys-only", "/service/"])
}

/// Waits until a name has this many SRV records, and returns their ports.
fn ports(server: &Svcdns, name: &str, wanted: usize) -> Vec<String> {
    eventually(&format!("{wanted} SRV records of {name}"), SOON, || {
        let lines = dns::dig_short(server.address, &[name, "SRV"]);
        (lines.len() == wanted)
            .then(|| lines.iter().map(|line| line.split(' ').nth(2).unwrap().to_owned()).collect())
    })
}

#[test]
fn goframe_servers_in_etcd_resolve_until_they_exit() {
    let test = "goframe_servers_in_etcd_resolve_until_they_exit";
    let Some(goframe) = GoFrame::new(test) else { return };
    netns::inside(test, "127.0.0.53", || {
        let etcd = Etcd::start();
        let registry = format!("etcd {}", etcd.endpoint(0));
        let server =
            Svcdns::serve_at("127.0.0.53:53".parse().unwrap(), &["--registry", &etcd.url()]);
        server.wait_for_code("hello.svc", "NXDOMAIN");

        // A server on a random port: A gives its address, SRV its port, and a GoFrame client
        // without discovery reaches it.
        let mut first = goframe.start(&registry, &["http", "hello.svc", ":0"]);
        server.wait_for("hello.svc", &[netns::ADDRESS]);
        let port = ports(&server, "hello.svc", 1).remove(0);
        assert_eq!(
            dns::dig_short(server.address, &["_http._tcp.hello.svc", "SRV"]),
            [format!("0 1 {port} 10-9-0-5.hello.svc.")]
        );
        assert_eq!(
            dns::dig_short(server.address, &["hello.svc", "TXT"]),
            [r#""insecure=true" "protocol=http""#]
        );
        let url = format!("http://hello.svc:{port}/");
        let expected = format!("page of hello.svc, Host hello.svc:{port}");
        assert_eq!(goframe.run_client(&["get", &url]), expected);

        // gRPC, found and reached the same way
        let mut grpc = goframe.start(&registry, &["grpc", "demo", ":18001"]);
        server.wait_for("demo.svc", &[netns::ADDRESS]);
        assert_eq!(
            dns::dig_short(server.address, &["_grpc._tcp.demo.svc", "SRV"]),
            ["0 1 18001 10-9-0-5.demo.svc."]
        );
        assert_eq!(goframe.run_client(&["check", "demo.svc:18001"]), "SERVING");
        assert!(grpc.terminate().code().is_some());
        assert!(!keys(&etcd).contains("/demo/"), "the key remains until its lease expires");
        server.wait_for_code("demo.svc", "NXDOMAIN");

        // A second instance, and a canary that the short name does not include
        let mut second = goframe.start(&registry, &["http", "hello.svc", ":0"]);
        ports(&server, "hello.svc", 2);
        let mut canary = goframe.role(&registry, &["http", "hello.svc", ":18003"]);
        let canary = Process::start(canary.env("GF_GSVC_VERSION", "latest-canary"));
        assert_eq!(ports(&server, "latest-canary.hello.svc", 1), ["18003"]);
        assert!(!ports(&server, "hello.svc", 2).contains(&"18003".to_owned()));
        drop(canary);

        // SIGTERM: gone at once
        first.terminate();
        assert!(!keys(&etcd).contains(&format!(":{port}")), "the key remains until it expires");
        let left = eventually("one SRV record of hello.svc", SOON, || {
            let lines = dns::dig_short(server.address, &["hello.svc", "SRV"]);
            (lines.len() == 1).then_some(lines)
        });
        assert!(!left[0].contains(&format!(" {port} ")), "{left:?}");

        // SIGKILL: found until its lease of 10 s expires
        let begun = Instant::now();
        second.kill();
        throughout("hello.svc resolves while its lease lives", begun, seconds(4), || {
            dns::addresses(server.address, "hello.svc").is_ok()
        });
        server.wait_for_code("10-9-0-5.hello.svc", "NXDOMAIN");
    });
}

#[test]
fn goframe_servers_in_the_file_registry_resolve_until_they_exit() {
    let test = "goframe_servers_in_the_file_registry_resolve_until_they_exit";
    let Some(goframe) = GoFrame::new(test) else { return };
    netns::inside(test, "127.0.0.53", || {
        let folder = goframe.temp.path().join("gsvc");
        // No registry is configured: svcdns and the gRPC server both default to <temp dir>/gsvc,
        // which the gRPC server creates after svcdns has started.
        let none: [&str; 0] = [];
        let server = Svcdns::serve_with("127.0.0.53:53".parse().unwrap(), &none, |command| {
            command.env("TMPDIR", goframe.temp.path());
        });
        let mut grpc = goframe.start("", &["grpc", "demo", ":18001"]);
        server.wait_for("demo.svc", &[netns::ADDRESS]);
        assert!(folder.is_dir());
        assert_eq!(
            dns::dig_short(server.address, &["demo.svc", "SRV"]),
            ["0 1 18001 10-9-0-5.demo.svc."]
        );
        assert_eq!(goframe.run_client(&["check", "demo.svc:18001"]), "SERVING");

        // A name with a hyphen, which GoFrame's own client of the file registry cannot find
        let registry = format!("file {}", folder.display());
        let mut http = goframe.start(&registry, &["http", "user-svc.svc", ":18002"]);
        server.wait_for("user-svc.svc", &[netns::ADDRESS]);
        assert_eq!(
            goframe.run_client(&["get", "http://user-svc.svc:18002/"]),
            "page of user-svc.svc, Host user-svc.svc:18002"
        );

        // SIGTERM: gone at once
        http.terminate();
        let left = || {
            folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
        };
        assert!(
            left().iter().all(|name| !name.to_string_lossy().contains("user-svc")),
            "the file remains until it expires: {:?}",
            left()
        );
        server.wait_for_code("user-svc.svc", "NXDOMAIN");

        // SIGKILL: its file stays, and expires 20 s after its last refresh
        let begun = Instant::now();
        grpc.kill();
        throughout("demo.svc resolves while its file is fresh", begun, seconds(5), || {
            dns::addresses(server.address, "demo.svc").is_ok()
        });
        eventually("demo.svc to be gone", SOON, || {
            dns::addresses(server.address, "demo.svc")
                .map_or(Some(()), |found| found.is_empty().then_some(()))
        });
        assert_eq!(left().len(), 1, "svcdns deleted a file that another program registered");
    });
}

#[test]
fn a_goframe_server_with_tls_passes_an_http_check_until_it_hangs() {
    let test = "a_goframe_server_with_tls_passes_an_http_check_until_it_hangs";
    let Some(goframe) = GoFrame::new(test) else { return };
    netns::inside(test, "127.0.0.53", || {
        let etcd = Etcd::start();
        let registry = format!("etcd {}", etcd.endpoint(0));
        let own = rcgen::generate_simple_self_signed(["other.example".to_owned()]).unwrap();
        let [certificate, key] = ["tls.pem", "tls.key"].map(|name| goframe.temp.path().join(name));
        fs::write(&certificate, own.cert.pem()).unwrap();
        fs::write(&key, own.signing_key.serialize_pem()).unwrap();
        let mut secure = goframe.role(&registry, &["http", "hello.svc", ":18443"]);
        let secure = Process::start(secure.env("CERTIFICATE", certificate).env("KEY", key));
        let _plain = goframe.start(&registry, &["http", "hello.svc", ":18080"]);
        let url = etcd.url();
        let flags = ["--checks", "--checks-path", "/", "--checks-interval", "1s"];
        let flags = [&flags[..], &["--checks-timeout", "1s", "--registry", &url]].concat();
        let server = Svcdns::serve_at("127.0.0.53:53".parse().unwrap(), &flags);
        ports(&server, "hello.svc", 2);
        // GoFrame does not tell that the server uses TLS.
        let metadata = dns::dig_short(server.address, &["hello.svc", "TXT"]);
        assert_eq!(metadata, [r#""insecure=true" "protocol=http""#]);
        secure.signal(Signal::SIGSTOP);
        assert_eq!(ports(&server, "hello.svc", 1), ["18080"]);
        let listed = String::from_utf8(server.run(&["ls", "hello"]).stdout).unwrap();
        assert!(listed.contains("check: no response within the timeout"), "{listed}");
        secure.signal(Signal::SIGCONT);
        ports(&server, "hello.svc", 2);
    });
}

#[test]
fn goframe_discovery_finds_services_of_the_register_command() {
    let test = "goframe_discovery_finds_services_of_the_register_command";
    let Some(goframe) = GoFrame::new(test) else { return };
    netns::inside(test, "127.0.0.53", || {
        let etcd = Etcd::start();
        // A server without a registry, registered by svcdns.
        let _legacy = goframe.start("", &["http", "legacy", ":18004"]);
        let endpoint = format!("{}:18004", netns::ADDRESS);
        let mut register = svcdns::command();
        register.args([
            "register",
            "legacy.svc",
            &endpoint,
            "--metadata",
            "protocol=http",
            "--registry",
            &etcd.url(),
        ]);
        let mut register = Process::start(&mut register);
        let key = format!("/service/default/default/legacy.svc/latest/{endpoint}");
        eventually("the key in etcd", SOON, || etcd.value(&key));
        let registry = format!("etcd {}", etcd.endpoint(0));
        let found = eventually("a page through GoFrame's discovery", SOON, || {
            let output =
                goframe.role(&registry, &["discover", "http://legacy.svc/"]).output().unwrap();
            output.status.success().then(|| last_line(&output.stdout))
        });
        assert_eq!(found, format!("page of legacy, Host {endpoint}"));
        register.signal(Signal::SIGTERM);
        register.wait(SOON);
        assert_eq!(etcd.value(&key), None);
    });
}
