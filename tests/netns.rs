//! A machine whose resolv.conf points here: programs that know nothing of svcdns find a service by its name.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use support::etcd::Etcd;
use support::svcdns::Svcdns;
use support::{SOON, netns};

/// Answers every connection with one page that says where it was reached and which Host was asked for.
fn serve_pages(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let local = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, &local.to_string());
        }
    });
    local.port()
}

fn answer(mut stream: TcpStream, at: &str) {
    let mut request = [0; 4096];
    let length = stream.read(&mut request).unwrap_or(0);
    let text = String::from_utf8_lossy(&request[..length]).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("Host: ")).unwrap_or("nobody");
    let page = format!("reached {at} as {host}\n");
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}", page.len());
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn programs_of_the_machine_reach_a_live_instance_by_name() {
    netns::inside("programs_of_the_machine_reach_a_live_instance_by_name", "127.0.0.53", || {
        let port = serve_pages(netns::ADDRESS);
        let port_v6 = serve_pages(netns::ADDRESS_V6);
        let etcd = Etcd::start();
        etcd.put(&format!("/service/default/default/hello.svc/latest/{}:{port}", netns::ADDRESS), r#"{"protocol":"http"}"#);
        etcd.put(&format!("/service/default/default/both.svc/latest/{}:{port},[{}]:{port}", netns::ADDRESS, netns::ADDRESS_V6), "{}");
        etcd.put(&format!("/service/default/default/six.svc/latest/[{}]:{port_v6}", netns::ADDRESS_V6), "{}");
        let server = Svcdns::serve_at("127.0.0.53:53".parse().unwrap(), &["--registry", &etcd.url()]);
        server.wait_for("hello.svc", &[netns::ADDRESS]);

        // curl, over IPv4 and IPv6
        assert_eq!(
            output("curl", &["-sS", &format!("http://hello.svc:{port}/")]),
            format!("reached 10.9.0.5:{port} as hello.svc:{port}\n")
        );
        let six = output("curl", &["-sS", &format!("http://six.svc:{port_v6}/")]);
        assert_eq!(six, format!("reached [fd00::5]:{port_v6} as six.svc:{port_v6}\n"));

        // The C library, asking for both families with AI_ADDRCONFIG
        assert!(output("getent", &["ahosts", "hello.svc"]).contains("10.9.0.5"));
        let both = output("getent", &["ahosts", "both.svc"]);
        assert!(both.contains("10.9.0.5") && both.contains("fd00::5"), "{both}");
        assert!(output("getent", &["hosts", netns::ADDRESS]).contains(".svc"), "a reverse name");
        let unknown = Command::new("getent").args(["ahosts", "nothing.svc"]).output().unwrap();
        assert!(!unknown.status.success(), "{}", String::from_utf8_lossy(&unknown.stdout));

        // And through another language's binding of it
        let python = "import socket; print(sorted({a[4][0] for a in socket.getaddrinfo('both.svc', 80)}))";
        assert_eq!(output("python3", &["-c", python]), "['10.9.0.5', 'fd00::5']\n");

        // The C library's second wish, TCP, for an answer that does not fit: all 100 addresses
        let many: Vec<String> = (1..=100).map(|last| format!("10.7.0.{last}:80")).collect();
        etcd.put(&format!("/service/default/default/many.svc/latest/{}", many.join(",")), "{}");
        let python = "import socket; print(len({a[4][0] for a in socket.getaddrinfo('many.svc', 80)}))";
        support::eventually("100 addresses by getaddrinfo", SOON, || {
            let found = Command::new("python3").args(["-c", python]).output().unwrap();
            (found.stdout == b"100\n").then_some(())
        });
        server.stop();
    });
}

#[test]
fn a_port_that_needs_no_root_serves_ipv6_loopback_too() {
    netns::inside("a_port_that_needs_no_root_serves_ipv6_loopback_too", "127.0.0.53", || {
        let etcd = Etcd::start();
        etcd.put("/service/default/default/hello.svc/latest/10.9.0.5:80", "{}");
        let server = Svcdns::serve_at("[::1]:5300".parse().unwrap(), &["--registry", &etcd.url(), "--listen", "127.0.0.54:5300"]);
        server.wait_for("hello.svc", &["10.9.0.5"]);
        assert_eq!(support::dns::addresses("127.0.0.54:5300".parse().unwrap(), "hello.svc"), Ok(vec!["10.9.0.5".parse().unwrap()]));
        let ns = support::dns::dig_short("[::1]:5300".parse().unwrap(), &["ns.svc", "A"]);
        assert_eq!(ns, ["127.0.0.54"]);
        let ns = support::dns::dig_short("[::1]:5300".parse().unwrap(), &["ns.svc", "AAAA"]);
        assert_eq!(ns, ["::1"]);
    });
}

#[test]
fn a_source_without_access_is_refused() {
    netns::inside("a_source_without_access_is_refused", "127.0.0.53", || {
        let etcd = Etcd::start();
        etcd.put("/service/default/default/hello.svc/latest/10.9.0.5:80", "{}");
        let listen = "10.9.0.5:53".parse().unwrap();
        // Asked at the address from this machine, the source is that address.
        let server = Svcdns::serve_at(listen, &["--registry", &etcd.url(), "--allow", "10.9.0.5/32"]);
        server.wait_for("hello.svc", &["10.9.0.5"]);
        drop(server);
        let server = Svcdns::serve_at(listen, &["--registry", &etcd.url(), "--allow", "192.0.2.0/24"]);
        assert_eq!(support::dns::code(server.address, "hello.svc", support::dns::A), "REFUSED");
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        support::dns::send_tcp(&mut stream, &support::dns::question(7, "hello.svc", support::dns::A));
        let over_tcp = support::dns::receive_tcp(&mut stream);
        assert!(over_tcp.is_none_or(|answer| support::dns::code_of(&answer) == "REFUSED"), "TCP is no way around");
    });
}
