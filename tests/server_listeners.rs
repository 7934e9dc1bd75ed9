//! Listeners and rules that change while the server runs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use svcdns::inherited::{Inherited, InheritedSockets, SocketGiver, SocketName};
use svcdns::server::{Bound, ServerHandle, Settings, StopOrder, bind, bind_or_inherit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{self, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use support::echo::Echo;

/// Time limit for everything that must happen; only a failing test reaches it.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

struct Server {
    handle: ServerHandle,
    addresses: Vec<SocketAddr>,
    stop: CancellationToken,
    last: CancellationToken,
    task: JoinHandle<()>,
}

fn serve(bound: Bound) -> Server {
    let (handle, addresses) = (bound.handle(), bound.addresses());
    let (stop, last) = (CancellationToken::new(), CancellationToken::new());
    let stops = StopOrder { stop: stop.clone(), last: last.clone() };
    let serving = bound.serve(Echo::default(), |_, error| panic!("{error}"), stops);
    let task = tokio::spawn(async move { serving.await.unwrap() });
    Server { handle, addresses, stop, last, task }
}

fn on(addresses: &[&str]) -> Settings {
    Settings {
        listen: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ..Settings::default()
    }
}

/// Returns settings for loopback addresses with the port of the server.
fn at_port(server: &Server, hosts: &[&str]) -> Settings {
    let port = server.addresses[0].port();
    let addresses: Vec<String> = hosts.iter().map(|host| format!("{host}:{port}")).collect();
    on(&addresses.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Asks over UDP once; `None` if the port is closed.
async fn ask_udp(server: SocketAddr, query: &str) -> Option<String> {
    let socket = net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(query.as_bytes()).await.unwrap();
    let mut response = [0; 64];
    let received = timeout(TEST_TIMEOUT, socket.recv(&mut response)).await.unwrap();
    received.ok().map(|length| String::from_utf8(response[..length].to_vec()).unwrap())
}

/// Asks on a connection once; `None` if it is closed.
async fn ask_on(stream: &mut TcpStream, query: &str) -> Option<String> {
    let length = u16::try_from(query.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, query.as_bytes()].concat()).await.ok()?;
    let read = async {
        let length = stream.read_u16().await.ok()?;
        let mut response = vec![0; length.into()];
        stream.read_exact(&mut response).await.ok()?;
        Some(String::from_utf8(response).unwrap())
    };
    timeout(TEST_TIMEOUT, read).await.unwrap()
}

async fn ask_tcp(server: SocketAddr, query: &str) -> Option<String> {
    ask_on(&mut TcpStream::connect(server).await.ok()?, query).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_come_and_go_while_others_answer() {
    let server = serve(bind(&on(&["127.77.20.1:0"])).unwrap());
    let first = server.addresses[0];
    assert_eq!(ask_udp(first, "a").await.unwrap(), "udp a");
    // The address with port 0 is the one that is open.
    let both = Settings {
        listen: vec![
            "127.77.20.1:0".parse().unwrap(),
            SocketAddr::new("127.77.20.2".parse().unwrap(), first.port()),
        ],
        ..Settings::default()
    };
    let prepared = server.handle.prepare(&both).unwrap();
    let added = prepared.addresses()[1];
    assert_eq!(prepared.addresses(), [first, added]);
    assert_eq!(server.handle.addresses(), [first], "nothing is in operation yet");
    let mut connection = TcpStream::connect(first).await.unwrap();
    assert_eq!(ask_on(&mut connection, "b").await.unwrap(), "tcp b");
    server.handle.commit(prepared).await;
    for address in [first, added] {
        assert_eq!(ask_udp(address, "c").await.unwrap(), "udp c");
        assert_eq!(ask_tcp(address, "c").await.unwrap(), "tcp c");
    }
    assert_eq!(ask_on(&mut connection, "d").await.unwrap(), "tcp d", "an open connection stays");
    assert_eq!(server.handle.listening().open, 2);

    server.handle.commit(server.handle.prepare(&at_port(&server, &["127.77.20.2"])).unwrap()).await;
    assert_eq!(server.handle.addresses(), [added]);
    assert_eq!(ask_udp(added, "e").await.unwrap(), "udp e");
    assert_eq!(ask_udp(first, "e").await, None);
    assert_eq!(ask_tcp(first, "e").await, None);
    // The port is free for others, and for this server again.
    drop(UdpSocket::bind(first).unwrap());
    server.handle.commit(server.handle.prepare(&at_port(&server, &["127.77.20.1"])).unwrap()).await;
    assert_eq!(ask_udp(first, "f").await.unwrap(), "udp f");
    assert_eq!(server.handle.addresses(), [first]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_bind_changes_no_listener() {
    let server = serve(bind(&on(&["127.77.21.1:0"])).unwrap());
    let first = server.addresses[0];
    let taken =
        std::net::TcpListener::bind(SocketAddr::new("127.77.21.3".parse().unwrap(), first.port()))
            .unwrap();
    let wanted = at_port(&server, &["127.77.21.2", "127.77.21.3"]);
    let error = server.handle.prepare(&wanted).unwrap_err().to_string();
    assert!(error.contains("127.77.21.3") && error.contains("in use"), "{error}");
    // The address before it is closed again.
    drop(UdpSocket::bind((wanted.listen[0].ip(), first.port())).unwrap());
    assert_eq!(server.handle.addresses(), [first]);
    assert_eq!(ask_udp(first, "a").await.unwrap(), "udp a");
    assert_eq!(ask_tcp(first, "a").await.unwrap(), "tcp a");
    drop(taken);
    server.handle.commit(server.handle.prepare(&wanted).unwrap()).await;
    assert_eq!(server.handle.addresses(), wanted.listen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_one_change_apply_to_every_transport() {
    let server = serve(bind(&on(&["127.77.22.1:0"])).unwrap());
    let address = server.addresses[0];
    let mut connection = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask_on(&mut connection, "a").await.unwrap(), "tcp a");
    let closed = Settings { allow_loopback: false, ..at_port(&server, &["127.77.22.1"]) };
    server.handle.commit(server.handle.prepare(&closed).unwrap()).await;
    assert_eq!(ask_udp(address, "b").await.unwrap(), "refused b");
    assert_eq!(ask_tcp(address, "b").await.unwrap(), "refused b");
    server.handle.commit(server.handle.prepare(&at_port(&server, &["127.77.22.1"])).unwrap()).await;
    assert_eq!(ask_udp(address, "c").await.unwrap(), "udp c");
    assert_eq!(ask_tcp(address, "c").await.unwrap(), "tcp c");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_is_answered_until_the_last_step_of_the_stop() {
    let server = serve(bind(&on(&["127.77.23.1:0"])).unwrap());
    let address = server.addresses[0];
    let mut connection = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask_on(&mut connection, "a").await.unwrap(), "tcp a");
    server.stop.cancel();
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"", "the connection ends without a reset");
    assert_eq!(ask_udp(address, "b").await.unwrap(), "udp b");
    // A change during the stop has no effect, and does not wait.
    server.handle.commit(server.handle.prepare(&on(&["127.77.23.2:0"])).unwrap()).await;
    assert_eq!(ask_udp(address, "c").await.unwrap(), "udp c");
    server.last.cancel();
    timeout(TEST_TIMEOUT, server.task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_the_service_manager_holds_stays() {
    let held = UdpSocket::bind("127.77.24.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let passed = Inherited::new(SocketName::Dns, held.try_clone().unwrap().into()).unwrap();
    let inherited = InheritedSockets { sockets: vec![passed], giver: SocketGiver::ServiceManager };
    let other = on(&["127.77.24.2:0"]);
    let server = serve(bind_or_inherit(&other, inherited).unwrap());
    assert_eq!(server.addresses[0], address);
    assert_eq!(ask_udp(address, "a").await.unwrap(), "udp a");
    // The unit has no ListenStream= for the address, so the server has opened its own.
    assert_eq!(ask_tcp(address, "a").await.unwrap(), "tcp a");
    server.handle.commit(server.handle.prepare(&other).unwrap()).await;
    assert!(server.handle.addresses().contains(&address));
    assert_eq!(ask_udp(address, "b").await.unwrap(), "udp b");
    server.stop.cancel();
    server.last.cancel();
    timeout(TEST_TIMEOUT, server.task).await.unwrap().unwrap();
    // The socket is as it was: the next server reads what arrives now.
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"next", address).unwrap();
    held.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    assert_eq!(held.recv(&mut [0; 16]).unwrap(), 4);
}
