//! Registries whose URL leads to another kind of server, to wrong TLS settings, or to nothing.
//!
//! The messages say what is there and what to do.

#![cfg(feature = "zookeeper")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use support::consul::Consul;
use support::etcd::Etcd;
use support::followed::Followed;
use support::nacos::Nacos;
use support::polaris::PolarisServer;
use support::process::Process;
use support::replay::{HttpServer, Reaction, Recordings};
use support::zookeeper::ZooKeeper;
use support::{SOON, eventually, free_address, seconds};
use svcdns::registry::consul::{self, ConsulRegistry};
use svcdns::registry::etcd::{self, EtcdRegistry};
use svcdns::registry::nacos::{self, NacosRegistry};
use svcdns::registry::polaris::{self, PolarisRegistry};
use svcdns::registry::zookeeper::{self, ZooKeeperRegistry};
use svcdns::registry::{Credential, Secret, Tls};

/// Longer than any test: what happens earlier has another reason.
const LONG: Duration = seconds(3600);

/// A password that no message may contain.
const PASSWORD: &str = "hunter2-of-the-test";

/// Follows an etcd at an endpoint until a message contains the text; returns the message.
fn etcd_error(endpoint: &str, tls: Option<Tls>, expected: &str) -> String {
    let mut settings = etcd::Settings::new(vec![endpoint.to_owned()]);
    settings.tuning.connection.backoff_max = Duration::from_millis(400);
    settings.tls = tls;
    let url = settings.to_string();
    error_of(Followed::start(EtcdRegistry::new(settings), &url, LONG), endpoint, expected)
}

/// Follows a Consul at an endpoint until a message contains the text; returns the message.
fn consul_error(endpoint: &str, tls: Option<Tls>, expected: &str) -> String {
    let mut settings = consul::Settings::new(vec![endpoint.to_owned()]);
    settings.tuning.connection.backoff_max = Duration::from_millis(400);
    settings.tls = tls;
    let url = settings.to_string();
    error_of(Followed::start(ConsulRegistry::new(settings), &url, LONG), endpoint, expected)
}

/// Follows a ZooKeeper at an endpoint until a message contains the text; returns the message.
fn zookeeper_error(endpoint: &str, tls: Option<Tls>, expected: &str) -> String {
    let mut settings = zookeeper::Settings::new(vec![endpoint.to_owned()]);
    settings.tuning.connection.backoff_max = Duration::from_millis(400);
    settings.tls = tls;
    let url = settings.to_string();
    error_of(Followed::start(ZooKeeperRegistry::new(settings), &url, LONG), endpoint, expected)
}

/// Follows a Nacos at an endpoint until a message contains the text; returns the message.
fn nacos_error(endpoint: &str, tls: Option<Tls>, expected: &str) -> String {
    let mut settings = nacos::Settings::new(vec![endpoint.to_owned()]);
    settings.tuning.connection.backoff_max = Duration::from_millis(400);
    settings.tls = tls;
    let url = settings.to_string();
    error_of(Followed::start(NacosRegistry::new(settings), &url, LONG), endpoint, expected)
}

/// Follows a Polaris at an endpoint until a message contains the text; returns the message.
fn polaris_error(endpoint: &str, tls: Option<Tls>, expected: &str) -> String {
    let mut settings = polaris::Settings::new(vec![endpoint.to_owned()]);
    settings.tuning.connection.backoff_max = Duration::from_millis(400);
    settings.tls = tls;
    let url = settings.to_string();
    error_of(Followed::start(PolarisRegistry::new(settings), &url, LONG), endpoint, expected)
}

fn error_of(followed: Followed, endpoint: &str, expected: &str) -> String {
    let error = followed.wait_for_error(expected);
    assert!(error.contains(endpoint), "{error}");
    // The library's own text for its data, such as `Other(OtherError(…))`.
    assert!(!error.contains("Error(") && !error.contains("Name("), "{error}");
    assert!(!followed.state.report().synced);
    followed.stop();
    error
}

/// Starts a web server that answers every request alike until the test ends.
fn web_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let answer = |mut stream: &TcpStream| -> Option<()> {
        let mut lines = BufReader::new(stream).lines();
        while !lines.next()?.ok()?.is_empty() {}
        let page = "HTTP/1.1 404 Not Found\r\nServer: nginx/1.22.1\r\nContent-Type: text/html\r\n\
                    Content-Length: 18\r\nConnection: close\r\n\r\n<html>lost</html>\n";
        stream.write_all(page.as_bytes()).ok()
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(&stream));
        }
    });
    address
}

/// A TLS server with one certificate; `openssl s_server` answers HTTP requests with a page.
struct TlsServer {
    endpoint: String,
    certificate: PathBuf,
    _process: Process,
}

impl TlsServer {
    /// Starts a server with a self-signed certificate.
    fn start(folder: &Path, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Self {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let (certificate, key_file) = (folder.join("server.pem"), folder.join("server.key"));
        fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        let endpoint = free_address().to_string();
        let mut command = Command::new("openssl");
        command.args(["s_server", "-www", "-accept", &endpoint]);
        command.arg("-cert").arg(&certificate).arg("-key").arg(&key_file);
        let process = Process::start(&mut command);
        eventually("the TLS server", SOON, || TcpStream::connect(&endpoint).ok());
        Self { endpoint, certificate, _process: process }
    }

    fn trusted(&self) -> Tls {
        Tls { ca_file: Some(self.certificate.clone()), ..Tls::default() }
    }
}

/// Checks that a certificate is explained alike for every kind of registry.
fn expect_certificate_fault(
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
    expected: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let server = TlsServer::start(folder.path(), names, change);
    for error in [
        etcd_error(&server.endpoint, Some(server.trusted()), expected),
        consul_error(&server.endpoint, Some(server.trusted()), expected),
        zookeeper_error(&server.endpoint, Some(server.trusted()), expected),
        nacos_error(&server.endpoint, Some(server.trusted()), expected),
        polaris_error(&server.endpoint, Some(server.trusted()), expected),
    ] {
        assert!(error.contains("TLS: its certificate"), "{error}");
    }
}

#[test]
fn a_web_server_at_an_etcd_url_is_named_and_the_password_is_hidden() {
    let endpoint = web_server().to_string();
    let expected = "it is not etcd but a web server (nginx/1.22.1)";
    let error = etcd_error(&endpoint, None, expected);
    assert!(error.contains("the default port of etcd is 2379"), "{error}");
    let mut settings = etcd::Settings::new(vec![endpoint.clone()]);
    settings.username = Some("reader".to_owned());
    settings.password = Some(Credential::Given(Secret::from(PASSWORD)));
    let url = settings.to_string();
    let error =
        error_of(Followed::start(EtcdRegistry::new(settings), &url, LONG), &endpoint, expected);
    assert!(!error.contains(PASSWORD), "{error}");
}

#[test]
fn a_consul_at_an_etcd_url_is_named() {
    let Some(consul) = Consul::start("a_consul_at_an_etcd_url_is_named") else { return };
    let endpoint = consul.address().to_string();
    let error = etcd_error(&endpoint, None, "it is not etcd but a Consul");
    assert!(error.contains(&format!("use consul://{endpoint}")), "{error}");
}

#[test]
fn another_server_at_a_zookeeper_url_is_named() {
    let web = web_server().to_string();
    let error = zookeeper_error(&web, None, "it is not ZooKeeper but a web server (nginx/1.22.1)");
    assert!(error.contains("the default port of ZooKeeper is 2181"), "{error}");
    let etcd = Etcd::start();
    let endpoint = etcd.endpoint(0);
    let error = zookeeper_error(&endpoint, None, "it is not ZooKeeper but an etcd");
    assert!(error.contains(&format!("use etcd://{endpoint}")), "{error}");
}

#[test]
fn a_consul_at_a_zookeeper_url_is_named() {
    let Some(consul) = Consul::start("a_consul_at_a_zookeeper_url_is_named") else { return };
    let endpoint = consul.address().to_string();
    let error = zookeeper_error(&endpoint, None, "it is not ZooKeeper but a Consul");
    assert!(error.contains(&format!("use consul://{endpoint}")), "{error}");
}

#[test]
fn a_zookeeper_at_the_url_of_another_kind_is_named() {
    let test = "a_zookeeper_at_the_url_of_another_kind_is_named";
    let Some(zookeeper) = ZooKeeper::start(test) else { return };
    let endpoint = zookeeper.address(0).to_string();
    for error in [
        etcd_error(&endpoint, None, "it is not etcd but a ZooKeeper"),
        consul_error(&endpoint, None, "it is not Consul but a ZooKeeper"),
    ] {
        assert!(error.contains(&format!("use zookeeper://{endpoint}")), "{error}");
    }
}

#[test]
fn a_nacos_at_the_url_of_another_kind_is_named() {
    let nacos = Nacos::start();
    let endpoint = nacos.address().to_string();
    let error = etcd_error(&endpoint, None, "it is not etcd but a Nacos");
    assert!(error.contains(&format!("use nacos://{endpoint}")), "{error}");
    consul_error(&endpoint, None, "it is not Consul but a Nacos");
    // Version 3 says which it is.
    let state = Recordings::open("nacos/3.0.3").response("03-v3-state");
    let nacos = HttpServer::start(move |request| {
        Reaction::Answer(match &*request.path {
            "/nacos/v3/admin/core/state" => state.clone(),
            _ => b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n".to_vec(),
        })
    });
    let expected = "it is not etcd but a Nacos, version 3.0.3: use nacos://";
    etcd_error(&nacos.address().to_string(), None, expected);
}

#[test]
fn another_server_at_a_nacos_url_is_named() {
    let error = nacos_error(
        &web_server().to_string(),
        None,
        "it is not Nacos but a web server (nginx/1.22.1)",
    );
    assert!(error.contains("the default port of Nacos's HTTP interface is 8848"), "{error}");
    let etcd = Etcd::start();
    nacos_error(&etcd.endpoint(0), None, "it is not Nacos but an etcd");
    let Some(consul) = Consul::start("another_server_at_a_nacos_url_is_named") else { return };
    nacos_error(&consul.address().to_string(), None, "it is not Nacos but a Consul");
}

#[test]
fn a_polaris_at_the_url_of_another_kind_is_named() {
    let polaris = PolarisServer::start();
    polaris.require(PASSWORD);
    let endpoint = polaris.address().to_string();
    let error = etcd_error(&endpoint, None, "it is not etcd but a Polaris");
    assert!(error.contains(&format!("use polaris://{endpoint}")), "{error}");
    consul_error(&endpoint, None, "it is not Consul but a Polaris");
    nacos_error(&endpoint, None, "it is not Nacos but a Polaris");
}

#[test]
fn another_server_at_a_polaris_url_is_named() {
    let web = web_server().to_string();
    let expected = "it is not Polaris but a web server (nginx/1.22.1)";
    let error = polaris_error(&web, None, expected);
    assert!(error.contains("the default port of Polaris's HTTP interface is 8090"), "{error}");
    let etcd = Etcd::start();
    polaris_error(&etcd.endpoint(0), None, "it is not Polaris but an etcd");
    let nacos = Nacos::start();
    polaris_error(&nacos.address().to_string(), None, "it is not Polaris but a Nacos");
    let Some(consul) = Consul::start("another_server_at_a_polaris_url_is_named") else { return };
    polaris_error(&consul.address().to_string(), None, "it is not Polaris but a Consul");
}

#[test]
fn the_grpc_interface_at_a_polaris_url_is_named() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        // gRPC begins with a SETTINGS frame (RFC 9113 section 6.5).
        for mut stream in listener.incoming().flatten() {
            let _ =
                stream.write_all(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00");
        }
    });
    let error = polaris_error(&endpoint, None, "it is not Polaris but an HTTP/2 or gRPC server");
    assert!(error.contains("8091 is its gRPC interface"), "{error}");
}

#[test]
fn a_tls_server_at_a_url_without_tls_is_recognized() {
    let folder = tempfile::tempdir().unwrap();
    let server = TlsServer::start(folder.path(), &["127.0.0.1"], |_| {});
    etcd_error(&server.endpoint, None, "it expects TLS: set tls = true");
    consul_error(&server.endpoint, None, "it expects TLS: use consul+https://");
    zookeeper_error(&server.endpoint, None, "it expects TLS: set tls = true");
    nacos_error(&server.endpoint, None, "it expects TLS: use nacos+https://");
    polaris_error(&server.endpoint, None, "it expects TLS: use polaris+https://");
    let etcd = Etcd::builder().tls().start();
    etcd_error(&etcd.endpoint(0), None, "it expects TLS: set tls = true");
}

#[test]
fn a_server_without_tls_at_a_url_with_tls_is_recognized() {
    let etcd = Etcd::start();
    let endpoint = etcd.endpoint(0);
    let folder = tempfile::tempdir().unwrap();
    let tls = TlsServer::start(folder.path(), &["127.0.0.1"], |_| {}).trusted();
    etcd_error(&endpoint, Some(tls.clone()), "it does not speak TLS: remove tls");
    let error = consul_error(&endpoint, Some(tls.clone()), "it is not Consul but an etcd");
    assert!(error.contains(&format!("use etcd://{endpoint}")), "{error}");
    let web = web_server().to_string();
    etcd_error(&web, Some(tls.clone()), "it is not etcd but a web server");
    let nacos = Nacos::start();
    let expected = "it does not speak TLS: use nacos://";
    nacos_error(&nacos.address().to_string(), Some(tls.clone()), expected);
    let polaris = PolarisServer::start();
    let expected = "it does not speak TLS: use polaris://";
    polaris_error(&polaris.address().to_string(), Some(tls), expected);
}

#[test]
fn another_server_behind_tls_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = TlsServer::start(folder.path(), &["127.0.0.1"], |_| {});
    etcd_error(&server.endpoint, Some(server.trusted()), "it is not etcd but a web server");
}

#[test]
fn the_certificate_of_a_ca_as_server_certificate_is_explained() {
    let ca = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    expect_certificate_fault(&["127.0.0.1"], ca, "issue a server certificate from that CA");
}

#[test]
fn a_certificate_with_another_name_is_explained() {
    let expected = "is for registry.example, not for 127.0.0.1: set server-name";
    expect_certificate_fault(&["registry.example"], |_| {}, expected);
}

#[test]
fn certificates_out_of_their_dates_are_explained() {
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    };
    expect_certificate_fault(&["127.0.0.1"], expired, "has expired");
    let future = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2900, 1, 1);
        params.not_after = date_time_ymd(2901, 1, 1);
    };
    expect_certificate_fault(&["127.0.0.1"], future, "is not valid yet");
}

#[test]
fn a_certificate_of_an_unknown_issuer_is_explained() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = TlsServer::start(folder.path(), &["127.0.0.1"], |_| {});
    let trusted = TlsServer::start(other.path(), &["127.0.0.1"], |_| {}).trusted();
    let expected = "TLS: its certificate is not signed by a trusted CA (set ca-file)";
    etcd_error(&server.endpoint, Some(trusted.clone()), expected);
    consul_error(&server.endpoint, Some(trusted.clone()), expected);
    zookeeper_error(&server.endpoint, Some(trusted), expected);
}

#[test]
fn a_missing_client_certificate_is_explained() {
    let etcd = Etcd::builder().tls().start();
    let tls = Tls {
        ca_file: Some(etcd.certificates().ca()),
        server_name: Some("etcd.test".to_owned()),
        ..Tls::default()
    };
    etcd_error(&etcd.endpoint(0), Some(tls), "it requires a client certificate");
}

#[test]
fn a_port_without_a_server_has_a_remedy() {
    let endpoint = free_address().to_string();
    let expected = "Connection refused: nothing listens there: start the server, or correct";
    etcd_error(&endpoint, None, expected);
    consul_error(&endpoint, None, expected);
    zookeeper_error(&endpoint, None, expected);
    nacos_error(&endpoint, None, expected);
    polaris_error(&endpoint, None, expected);
    etcd_error(&endpoint, Some(Tls::default()), expected);
}
