//! Cases that other proxies of connections got wrong, through redirection and the real program.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use support::bridge_server::{inside, web_address};
use support::svcdns::Svcdns;
use support::{SOON, bridge_server, eventually, netns, pages};

/// Starts svcdns with an instance that serves each connection in a thread.
fn bridge(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> (Svcdns, SocketAddr) {
    let listener = TcpListener::bind((netns::ADDRESS, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    // The registrations are refreshed until the end of the test's process.
    let files = Box::leak(Box::new(bridge_server::registered(&[port])));
    let server = bridge_server::start(&files.url(), &[]);
    let address = web_address(&server, "hello.svc");
    (server, address)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn read_all(mut stream: &TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Waits until the bridge has no open connection.
fn expect_no_connection(server: &Svcdns) {
    eventually("the end of all connections", SOON, || {
        (bridge_server::status(server)["open"] == 0).then_some(())
    });
}

#[test]
fn an_instance_may_speak_first() {
    inside("an_instance_may_speak_first", || {
        let (server, address) = bridge(|mut stream| {
            let _ = stream.write_all(b"220 hello.svc ready\n");
        });
        assert_eq!(read_all(&connect(address)), "220 hello.svc ready\n");
        expect_no_connection(&server);
        server.stop();
    });
}

#[test]
fn connections_from_one_port_to_two_services_do_not_collide() {
    inside("connections_from_one_port_to_two_services_do_not_collide", || {
        let port = pages::serve_hosts((netns::ADDRESS, 0));
        let files = bridge_server::registered(&[port]);
        let key = format!("default/default/other/latest/{}:{port}", netns::ADDRESS);
        files.put(&key, bridge_server::HTTP);
        let server = bridge_server::start(&files.url(), &[]);
        let [hello, other] = ["hello.svc", "other.svc"].map(|name| web_address(&server, name));
        let mut same = hello;
        same.set_port(port);
        for round in 0..5 {
            // The kernel may give the same port to connections with different destinations, and the
            // bridge's listener is the destination of all.
            let source = SocketAddr::from(([127, 0, 0, 1], 40_000 + round));
            let connections = [hello, other, same].map(|destination| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_reuse_address(true).unwrap();
                socket.bind(&source.into()).unwrap();
                socket.set_read_timeout(Some(SOON)).unwrap();
                let start = Instant::now();
                socket.connect(&destination.into()).unwrap();
                (TcpStream::from(socket), start.elapsed())
            });
            for ((mut stream, took), host) in connections.into_iter().zip(["one", "two", "three"]) {
                write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
                let page = read_all(&stream);
                assert!(page.ends_with(&format!("page of {host}\n")), "{page}");
                assert_eq!(stream.local_addr().unwrap(), source, "after {took:?}");
            }
        }
        expect_no_connection(&server);
        server.stop();
    });
}

#[test]
fn clients_that_vanish_at_once_or_in_the_middle_of_a_download_do_no_harm() {
    let test = "clients_that_vanish_at_once_or_in_the_middle_of_a_download_do_no_harm";
    inside(test, || {
        let (server, address) = bridge(|mut stream| {
            let mut request = [0];
            if !stream.read_exact(&mut request).is_ok_and(|()| request == *b"d") {
                let _ = stream.write_all(b"short");
                return;
            }
            // More than all buffers hold: the instance still sends when its client vanishes.
            let block = vec![7; 1 << 20];
            while stream.write_all(&block).is_ok() {}
        });
        for round in 0..300 {
            let mut client = connect(address);
            match round % 3 {
                0 => SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap(),
                1 => {}
                _ if round > 60 => {}
                _ => {
                    client.write_all(b"d").unwrap();
                    client.read_exact(&mut vec![0; 1 << 18]).unwrap();
                    if round % 2 == 0 {
                        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
                    }
                }
            }
        }
        expect_no_connection(&server);
        let mut client = connect(address);
        client.write_all(b"s").unwrap();
        assert_eq!(read_all(&client), "short");
        server.stop();
    });
}

#[test]
fn a_slow_reader_holds_back_its_sender_and_nobody_else() {
    inside("a_slow_reader_holds_back_its_sender_and_nobody_else", || {
        const BYTES: usize = 64 << 20;
        let (sender, sent) = mpsc::channel();
        let (server, address) = bridge(move |mut stream| {
            let mut request = [0];
            stream.read_exact(&mut request).unwrap();
            if request == *b"s" {
                let _ = stream.write_all(b"short");
                return;
            }
            let block: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 16).collect();
            for _ in 0..BYTES >> 16 {
                stream.write_all(&block).unwrap();
            }
            let _ = sender.send(());
        });
        let mut slow = connect(address);
        slow.write_all(b"l").unwrap();
        slow.read_exact(&mut vec![0; 1 << 16]).unwrap();
        for _ in 0..50 {
            let mut client = connect(address);
            client.write_all(b"s").unwrap();
            assert_eq!(read_all(&client), "short");
        }
        // Buffers of the kernel and of the bridge hold much less than the download.
        assert_eq!(sent.try_recv(), Err(mpsc::TryRecvError::Empty));
        let resident = server.resident_kib() / 1024;
        assert!(resident < 200, "{resident} MiB");
        let mut rest = vec![0; BYTES - (1 << 16)];
        slow.read_exact(&mut rest).unwrap();
        let expected: Vec<u8> = (0..=u8::MAX).cycle().take(rest.len()).collect();
        assert!(rest == expected, "the bytes differ");
        sent.recv_timeout(SOON).unwrap();
        drop(slow);
        expect_no_connection(&server);
        server.stop();
    });
}
