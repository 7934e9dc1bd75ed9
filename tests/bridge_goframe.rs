//! Programs reach real GoFrame servers by their names alone, through the port bridge.
//!
//! The servers listen on random ports and register in etcd. Clients use the machine's resolver.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::fs;
use std::process::Command;
use std::time::Instant;

use support::etcd::Etcd;
use support::goframe::GoFrame;
use support::load::Load;
use support::process::Process;
use support::{SOON, bridge_server, eventually};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// Runs `body` in a namespace with an etcd; skips the test without Go or nft.
fn with_etcd(test: &str, body: impl FnOnce(&GoFrame, &Etcd)) {
    let Some(goframe) = GoFrame::new(test) else { return };
    bridge_server::inside(test, || body(&goframe, &Etcd::start()));
}

/// Starts a GoFrame server that registers as hello.svc.
fn serve(goframe: &GoFrame, etcd: &Etcd, address: &str) -> Process {
    goframe.start(&format!("etcd {}", etcd.endpoint(0)), &["http", "hello.svc", address])
}

#[test]
fn every_client_gets_the_page_of_a_goframe_server_on_a_random_port() {
    let test = "every_client_gets_the_page_of_a_goframe_server_on_a_random_port";
    with_etcd(test, |goframe, etcd| {
        let server = bridge_server::start(&etcd.url(), &[]);
        let _instance = serve(goframe, etcd, ":0");
        let address = bridge_server::address(&server, "hello.svc");
        let page = "page of hello.svc, Host hello.svc\n";
        assert_eq!(bridge_server::curl("http://hello.svc/"), page);
        let looked_up = format!("hello.svc {address}\n{page}");
        for (program, file) in
            [("python3", "lookup.py"), ("node", "lookup.js"), ("java", "Lookup.java")]
        {
            let file = format!("{CLIENTS}/{file}");
            assert_eq!(
                bridge_server::output(program, &[&file, "hello.svc"]),
                looked_up,
                "{program}"
            );
        }
        // Go's own client, and GoFrame's without discovery.
        for role in ["fetch", "get"] {
            assert_eq!(goframe.run_client(&[role, "http://hello.svc/"]), page.trim_end(), "{role}");
        }
        server.stop();
    });
}

#[test]
fn https_passes_through_to_a_goframe_server() {
    with_etcd("https_passes_through_to_a_goframe_server", |goframe, etcd| {
        let file = |name: &str| goframe.temp.path().join(name).to_str().unwrap().to_owned();
        let (certificate, key) = (file("cert.pem"), file("key.pem"));
        let signed = rcgen::generate_simple_self_signed(["hello.svc".to_owned()]).unwrap();
        fs::write(&certificate, signed.cert.pem()).unwrap();
        fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
        let registry = format!("etcd {}", etcd.endpoint(0));
        let mut command = goframe.role(&registry, &["http", "hello.svc", ":0"]);
        let _instance = Process::start(command.env("CERTIFICATE", &certificate).env("KEY", &key));
        let server = bridge_server::start(&etcd.url(), &[]);
        bridge_server::address(&server, "hello.svc");
        // GoFrame registers such a server as `http`.
        let keys = etcd.ctl(&["get", "--prefix", "/service/"]);
        assert!(keys.contains(r#""protocol":"http""#), "{keys}");
        let url = "https://hello.svc/";
        let page = bridge_server::output("curl", &["-sS", "--cacert", &certificate, url]);
        assert_eq!(page, "page of hello.svc, Host hello.svc\n");
        let fetch = Command::new("python3")
            .args(["-c", "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read())"])
            .arg(url)
            .env("SSL_CERT_FILE", &certificate)
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&fetch.stdout).contains("page of hello.svc"), "{fetch:?}");
        server.stop();
    });
}

#[test]
fn no_new_connection_fails_after_a_goframe_server_is_killed_and_traffic_returns_to_it() {
    let test = "no_new_connection_fails_after_a_goframe_server_is_killed_and_traffic_returns_to_it";
    with_etcd(test, |goframe, etcd| {
        let server = bridge_server::start(&etcd.url(), &[]);
        let instances = [":18010", ":18011"].map(|port| serve(goframe, etcd, port));
        let [stable, mut mortal] = instances;
        let load = Load::start(bridge_server::web_address(&server, "hello.svc"), 8);
        let start = Instant::now();
        for instance in [&stable, &mortal] {
            load.expect_instance(start, &instance.pid().to_string());
        }
        mortal.kill();
        // Its key lives on until its lease expires after 10 s; the load goes on until then.
        let killed = Instant::now();
        eventually("the end of its lease", SOON, || {
            let keys = etcd.ctl(&["get", "--prefix", "--keys-only", "/service/"]);
            (!keys.contains(":18011")).then_some(())
        });
        let exchanges = load.expect_success(killed, 200);
        eprintln!("{} exchanges after the kill, none failed", exchanges.len());
        let back = Instant::now();
        let again = serve(goframe, etcd, ":18011");
        load.expect_instance(back, &again.pid().to_string());
        load.expect_success(back, 100);
        load.stop();
        drop(server);
    });
}
