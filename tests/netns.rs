//! Unmodified programs resolve services by name where resolv.conf points to svcdns.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use support::etcd::Etcd;
use support::svcdns::Svcdns;
use support::{SOON, netns, pages};

/// Serves a page with the address that was reached and the Host header.
fn serve_pages(address: &str) -> u16 {
    pages::serve((address, 0), |at, host| format!("reached {at} as {host}\n"))
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn local_programs_reach_a_live_instance_by_name() {
    netns::inside("local_programs_reach_a_live_instance_by_name", "127.0.0.53", || {
        let port = serve_pages(netns::ADDRESS);
        let port_v6 = serve_pages(netns::ADDRESS_V6);
        let etcd = Etcd::start();
        etcd.put(
            &format!("/service/default/default/hello.svc/latest/{}:{port}", netns::ADDRESS),
            r#"{"protocol":"http"}"#,
        );
        etcd.put(
            &format!(
                "/service/default/default/both.svc/latest/{}:{port},[{}]:{port}",
                netns::ADDRESS,
                netns::ADDRESS_V6
            ),
            "{}",
        );
        etcd.put(
            &format!("/service/default/default/six.svc/latest/[{}]:{port_v6}", netns::ADDRESS_V6),
            "{}",
        );
        let server =
            Svcdns::serve_at("127.0.0.53:53".parse().unwrap(), &["--registry", &etcd.url()]);
        server.wait_for("hello.svc", &[netns::ADDRESS]);

        // curl over IPv4 and IPv6.
        assert_eq!(
            output("curl", &["-sS", &format!("http://hello.svc:{port}/")]),
            format!("reached 10.9.0.5:{port} as hello.svc:{port}\n")
        );
        let six = output("curl", &["-sS", &format!("http://six.svc:{port_v6}/")]);
        assert_eq!(six, format!("reached [fd00::5]:{port_v6} as six.svc:{port_v6}\n"));

        // The C library, for both families with AI_ADDRCONFIG.
        assert!(output("getent", &["ahosts", "hello.svc"]).contains("10.9.0.5"));
        let both = output("getent", &["ahosts", "both.svc"]);
        assert!(both.contains("10.9.0.5") && both.contains("fd00::5"), "{both}");
        assert!(output("getent", &["hosts", netns::ADDRESS]).contains(".svc"), "a reverse name");
        let unknown = Command::new("getent").args(["ahosts", "nothing.svc"]).output().unwrap();
        assert!(!unknown.status.success(), "{}", String::from_utf8_lossy(&unknown.stdout));

        // Python's binding of the C library.
        let python =
            "import socket; print(sorted({a[4][0] for a in socket.getaddrinfo('both.svc', 80)}))";
        assert_eq!(output("python3", &["-c", python]), "['10.9.0.5', 'fd00::5']\n");

        // The C library retries a truncated response over TCP: all 100 addresses.
        let many: Vec<String> = (1..=100).map(|last| format!("10.7.0.{last}:80")).collect();
        etcd.put(&format!("/service/default/default/many.svc/latest/{}", many.join(",")), "{}");
        let python =
            "import socket; print(len({a[4][0] for a in socket.getaddrinfo('many.svc', 80)}))";
        support::eventually("100 addresses by getaddrinfo", SOON, || {
            let found = Command::new("python3").args(["-c", python]).output().unwrap();
            (found.stdout == b"100\n").then_some(())
        });
        server.stop();
    });
}

#[test]
fn an_unprivileged_port_serves_ipv6_loopback_too() {
    netns::inside("an_unprivileged_port_serves_ipv6_loopback_too", "127.0.0.53", || {
        let etcd = Etcd::start();
        etcd.put("/service/default/default/hello.svc/latest/10.9.0.5:80", "{}");
        let server = Svcdns::serve_at(
            "[::1]:5300".parse().unwrap(),
            &["--registry", &etcd.url(), "--listen", "127.0.0.54:5300"],
        );
        server.wait_for("hello.svc", &["10.9.0.5"]);
        assert_eq!(
            support::dns::addresses("127.0.0.54:5300".parse().unwrap(), "hello.svc"),
            Ok(vec!["10.9.0.5".parse().unwrap()])
        );
        let ns = support::dns::dig_short("[::1]:5300".parse().unwrap(), &["ns.svc", "A"]);
        assert_eq!(ns, ["127.0.0.54"]);
        let ns = support::dns::dig_short("[::1]:5300".parse().unwrap(), &["ns.svc", "AAAA"]);
        assert_eq!(ns, ["::1"]);
    });
}

#[test]
fn sources_without_access_are_refused() {
    netns::inside("sources_without_access_are_refused", "127.0.0.53", || {
        let etcd = Etcd::start();
        etcd.put("/service/default/default/hello.svc/latest/10.9.0.5:80", "{}");
        let listen = "10.9.0.5:53".parse().unwrap();
        // A query from this machine to the address has that address as its source.
        let server =
            Svcdns::serve_at(listen, &["--registry", &etcd.url(), "--allow", "10.9.0.5/32"]);
        server.wait_for("hello.svc", &["10.9.0.5"]);
        drop(server);
        let server =
            Svcdns::serve_at(listen, &["--registry", &etcd.url(), "--allow", "192.0.2.0/24"]);
        assert_eq!(support::dns::code(server.address, "hello.svc", support::dns::A), "REFUSED");
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        support::dns::send_tcp(&mut stream, &support::dns::query(7, "hello.svc", support::dns::A));
        let over_tcp = support::dns::receive_tcp(&mut stream);
        assert!(
            over_tcp.is_none_or(|response| support::dns::code_of(&response) == "REFUSED"),
            "TCP is no way around"
        );
    });
}

/// Returns the addresses over UDP and the response code over TCP.
///
/// Returns `None` without a response over either.
fn query_at(address: &str) -> Option<(Vec<IpAddr>, &'static str)> {
    let server: SocketAddr = address.parse().unwrap();
    let query = support::dns::query(fastrand::u16(..), "hello.svc", support::dns::A);
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    // A connected socket rejects a response from another address.
    socket.connect(server).ok()?;
    socket.set_read_timeout(Some(QUERY_TIMEOUT)).unwrap();
    socket.send(&query).ok()?;
    let mut response = [0; 512];
    let length = socket.recv(&mut response).ok()?;
    let message = hickory_proto::op::Message::from_vec(&response[..length]).unwrap();
    let over_udp = message.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
    let mut stream = TcpStream::connect_timeout(&server, QUERY_TIMEOUT).ok()?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    support::dns::send_tcp(&mut stream, &query);
    Some((over_udp, support::dns::code_of(&support::dns::receive_tcp(&mut stream)?)))
}

/// Time limit for one attempt at an address that may not answer yet.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

fn wait_for_answer_at(address: &str) {
    let right = (vec!["10.9.0.5".parse().unwrap()], "NOERROR");
    support::eventually(&format!("answers from {address}"), SOON, || {
        (query_at(address).as_ref() == Some(&right)).then_some(())
    });
}

/// Returns whether the namespace has a UDP or listening TCP socket at `address`.
fn is_listened_on(address: &str) -> bool {
    !output("ss", &["-Hlnut", "src", address]).is_empty()
}

#[test]
fn wildcard_listeners_follow_address_changes() {
    netns::inside("wildcard_listeners_follow_address_changes", "127.0.0.53", || {
        let etcd = Etcd::start();
        etcd.put("/service/default/default/hello.svc/latest/10.9.0.5:80", "{}");
        let flags = [
            "--listen",
            "0.0.0.0:53",
            "--listen",
            "[::]:53",
            "--allow",
            "10.0.0.0/8",
            "--allow",
            "fd00::/8",
        ];
        let url = etcd.url();
        let flags = [&["--registry", &*url], &flags[..]].concat();
        let mut server = Svcdns::serve_at("127.0.0.1:53".parse().unwrap(), &flags);
        server.wait_for("hello.svc", &["10.9.0.5"]);
        for address in ["10.9.0.5:53", "[fd00::5]:53", "[::1]:53"] {
            wait_for_answer_at(address);
        }

        // The server answers at added addresses; at IPv6 ones after duplicate address detection.
        netns::run("ip", &["address", "add", "10.9.1.7/24", "dev", "veth0"]);
        netns::run("ip", &["address", "add", "fd00:1::7/64", "dev", "veth1"]);
        for address in ["10.9.1.7:53", "[fd00:1::7]:53"] {
            wait_for_answer_at(address);
        }

        // Removed addresses are closed with their connections; others are not affected.
        let mut lost = TcpStream::connect("10.9.1.7:53").unwrap();
        let mut kept = TcpStream::connect("10.9.0.5:53").unwrap();
        for stream in [&mut lost, &mut kept] {
            stream.set_read_timeout(Some(SOON)).unwrap();
            support::dns::send_tcp(stream, &support::dns::query(1, "hello.svc", support::dns::A));
            assert!(support::dns::receive_tcp(stream).is_some());
        }
        netns::run("ip", &["address", "del", "10.9.1.7/24", "dev", "veth0"]);
        netns::run("ip", &["address", "del", "fd00:1::7/64", "dev", "veth1"]);
        for address in ["10.9.1.7", "[fd00:1::7]"] {
            support::eventually(&format!("no socket at {address}"), SOON, || {
                (!is_listened_on(address)).then_some(())
            });
        }
        // The client had the removed address, too, so no packet can reach it.
        let lost_is_open =
            || !output("ss", &["-Hnt", "state", "established", "src", "10.9.1.7:53"]).is_empty();
        support::eventually("no connection at 10.9.1.7", SOON, || (!lost_is_open()).then_some(()));
        support::dns::send_tcp(&mut kept, &support::dns::query(2, "hello.svc", support::dns::A));
        assert!(support::dns::receive_tcp(&mut kept).is_some());
        for address in ["127.0.0.1:53", "10.9.0.5:53", "[fd00::5]:53", "[::1]:53"] {
            wait_for_answer_at(address);
        }

        // A port in use at an added address is bound once it is free.
        netns::run("ip", &["address", "add", "10.9.2.1/32", "dev", "lo"]);
        wait_for_answer_at("10.9.2.1:53");
        netns::run("ip", &["address", "del", "10.9.2.1/32", "dev", "lo"]);
        support::eventually("no socket at 10.9.2.1", SOON, || {
            (!is_listened_on("10.9.2.1")).then_some(())
        });
        let (reserved, freed) = (reserve("10.9.2.1:53"), "10.9.2.1:53");
        netns::run("ip", &["address", "add", "10.9.2.1/32", "dev", "lo"]);
        let holder = format!(
            "(process {}); stop it, or choose another port with --listen",
            std::process::id()
        );
        support::eventually("a warning about the port in use", SOON, || {
            server.log().contains(&holder).then_some(())
        });
        drop(reserved);
        wait_for_answer_at(freed);
        assert_eq!(
            server.log().matches("in use by").count(),
            1,
            "reported once:\n{}",
            server.log()
        );

        // Many addresses are added, removed and added again at once.
        let batch = |verb: &str, last: u32| {
            let lines: Vec<_> =
                (1..=last).map(|host| format!("address {verb} 10.10.0.{host}/32 dev lo")).collect();
            let lines = lines.join("\n");
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), lines).unwrap();
            netns::run("ip", &["-batch", file.path().to_str().unwrap()]);
        };
        batch("add", 60);
        batch("del", 60);
        batch("add", 40);
        for host in [1, 17, 40] {
            wait_for_answer_at(&format!("10.10.0.{host}:53"));
        }
        support::eventually("no socket at 10.10.0.41", SOON, || {
            (!is_listened_on("10.10.0.41")).then_some(())
        });
        batch("del", 40);
        support::eventually("no socket in 10.10.0.0/24", SOON, || {
            (!is_listened_on("10.10.0.0/24")).then_some(())
        });
        wait_for_answer_at("127.0.0.1:53");
        assert!(server.is_running());
        server.stop();
    });
}

/// Binds a port of an address that the machine may get later.
fn reserve(address: &str) -> socket2::Socket {
    let address: SocketAddr = address.parse().unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpFreebind, &true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}
