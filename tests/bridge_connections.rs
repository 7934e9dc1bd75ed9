//! Each connection of the port bridge where the kernel redirects it, in network namespaces.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use support::bridge_server::{self, inside};
use support::bridged::{self, Bridged, connect, listen, named, read_all};
use support::files::Files;
use support::svcdns::Svcdns;
use support::{SOON, eventually, netns};

/// Starts a bridge whose connections the kernel redirects, and which probes silent peers soon.
fn redirected() -> Bridged {
    Bridged::start_with(None, |settings| {
        settings.bind = false;
        settings.keepalive = Duration::from_secs(1);
    })
}

#[test]
fn redirected_connections_behave_as_direct_ones_do() {
    inside("redirected_connections_behave_as_direct_ones_do", || {
        let mut bridge = redirected();
        bridged::a_client_that_ends_its_side_gets_the_response(&mut bridge);
        bridged::resets_pass_in_both_directions(&mut bridge);
        bridged::a_slow_reader_stops_its_sender(&mut bridge);
        bridge.stop();
    });
}

#[test]
fn a_half_closed_connection_outlives_the_memory_of_connection_tracking() {
    inside("a_half_closed_connection_outlives_the_memory_of_connection_tracking", || {
        let mut bridge = redirected();
        // The time is 60 s by default, and that between two probes 10 s.
        netns::set_sysctl("net.netfilter.nf_conntrack_tcp_timeout_close_wait", "3");
        let thinking = listen(|mut stream| {
            let _ = stream.read_to_end(&mut Vec::new());
            thread::sleep(Duration::from_secs(8));
            let _ = stream.write_all(b"after a while");
        });
        let address = bridge.serve("thinking", &[thinking]);
        let client = connect(address);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(client).unwrap(), "after a while");
        bridge.stop();
    });
    // The test above lowers both times.
    let keepalive = svcdns::bridge::Settings::default().keepalive;
    assert!(keepalive * 4 / 3 < Duration::from_secs(60), "one probe may be lost");
}

#[test]
fn a_client_that_has_gone_is_noticed_while_its_instance_is_silent() {
    inside("a_client_that_has_gone_is_noticed_while_its_instance_is_silent", || {
        // The time after which the kernel forgets a closed connection whose peer stays open.
        netns::set_sysctl("net.ipv4.tcp_fin_timeout", "1");
        let mut bridge = redirected();
        let silent = listen(|_stream| thread::sleep(SOON * 2));
        let address = bridge.serve("silent", &[silent]);
        let mut clients = [(); 5].map(|()| connect(address));
        for client in &mut clients {
            client.write_all(b"hello").unwrap();
        }
        eventually("all requests to arrive", SOON, || {
            (bridge.request_bytes("silent") == 25).then_some(())
        });
        // As clients do that have waited for long enough.
        drop(clients);
        bridge.wait_for_the_end_of_all_connections();
        bridge.stop();
    });
}

/// Registers these endpoints of `hello.svc`, and starts svcdns with its bridge on.
fn serve(endpoints: &[SocketAddr]) -> (Svcdns, Files, SocketAddr) {
    let keys: Vec<_> = endpoints
        .iter()
        .map(|endpoint| format!("default/default/hello.svc/latest/{endpoint}"))
        .collect();
    let json = r#"{"protocol":"http"}"#;
    let files = Files::new(&keys.iter().map(|key| (&**key, json)).collect::<Vec<_>>());
    let server = bridge_server::start(&files.url(), &[]);
    let address = bridge_server::web_address(&server, "hello.svc");
    (server, files, address)
}

#[test]
fn an_endpoint_of_a_missing_address_family_costs_no_connection() {
    inside("an_endpoint_of_a_missing_address_family_costs_no_connection", || {
        netns::set_sysctl("net.ipv6.conf.all.disable_ipv6", "1");
        let (six, four) = ("[::1]:9000".parse().unwrap(), named("four"));
        let (server, _files, address) = serve(&[six, four]);
        for _ in 0..10 {
            let clients: Vec<_> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
            for client in clients {
                client.set_read_timeout(Some(SOON)).unwrap();
                assert_eq!(read_all(client).unwrap(), "four");
            }
        }
        server.stop();
    });
}

#[test]
fn stalled_receivers_take_little_memory() {
    const CLIENTS: usize = 600;
    /// Memory of a connection besides the bytes that its receiver has not taken, in KiB.
    const CONNECTION_KIB: u64 = 8;
    inside("stalled_receivers_take_little_memory", || {
        svcdns::descriptors::raise_limit();
        // Senders that never end, with small buffers of their own.
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.set_send_buffer_size(1 << 16).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(1024).unwrap();
        let listener = TcpListener::from(listener);
        let endpoint = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let counter = Arc::clone(&counter);
                let send = move || {
                    let block = vec![b'x'; 1 << 16];
                    while stream.write_all(&block).is_ok() {
                        counter.fetch_add(1 << 16, Ordering::Relaxed);
                    }
                };
                thread::Builder::new().stack_size(1 << 17).spawn(send).unwrap();
            }
        });
        let (server, _files, address) = serve(&[endpoint]);
        let before = server.resident_kib();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                client.set_recv_buffer_size(1 << 12).unwrap();
                client.connect(&address.into()).unwrap();
                let mut client = TcpStream::from(client);
                client.set_read_timeout(Some(SOON)).unwrap();
                // A fast start, after which the client stalls.
                client.read_exact(&mut vec![0; 1 << 18]).unwrap();
                client
            })
            .collect();
        let mut last = 0;
        eventually("all senders to be stopped", SOON, || {
            thread::sleep(Duration::from_secs(1));
            let now = sent.load(Ordering::Relaxed);
            (std::mem::replace(&mut last, now) == now).then_some(())
        });
        let used = server.resident_kib().saturating_sub(before);
        eprintln!("{used} KiB for {CLIENTS} stalled receivers");
        // 4 MiB for each thread, of which there are up to four, and one buffer each.
        let backlog = 4 * (4096 + 128);
        assert!(used < backlog + CLIENTS as u64 * CONNECTION_KIB, "{used} KiB");
        // The last ones are served all the same.
        for client in clients.iter().rev().take(10) {
            SockRef::from(client).set_recv_buffer_size(1 << 20).unwrap();
            (&*client).read_exact(&mut vec![0; 1 << 18]).unwrap();
        }
        drop(clients);
        server.stop();
    });
}
