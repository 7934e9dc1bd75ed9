//! What the port bridge has to survive: too many services, loops, silent ends, floods.
//!
//! `make bridge` also runs the long tests.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::bridge_server::{inside, web_address};
use support::etcd::Etcd;
use support::files::Files;
use support::process::Process;
use support::svcdns::Svcdns;
use support::{SOON, bridge_server, dns, eventually, netns, pages, seconds};

/// Descriptors of a server without connections, whatever it bridges.
const MAX_IDLE_DESCRIPTORS: usize = 300;

fn open_descriptors(server: &Svcdns) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count()
}

/// Returns the open connections of the bridge.
fn open_connections(server: &Svcdns) -> u64 {
    bridge_server::status(server)["open"].as_u64().unwrap()
}

/// Fills a pool with `services` services of the registry, of which it has room for `addresses`.
fn overfill(pool: &str, addresses: u64, services: usize) {
    let etcd = Etcd::start();
    let port = pages::serve_hosts((netns::ADDRESS, 0));
    let key = |n: usize| {
        let endpoint = format!("{}:{port}", netns::ADDRESS);
        format!("/service/default/default/s{n}/latest/{endpoint}")
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let entries = (0..services).map(|n| (key(n), bridge_server::HTTP.to_owned()));
    runtime.block_on(etcd.put_many(entries));
    let start = Instant::now();
    let server = bridge_server::start(&etcd.url(), &["--bridge-pool", pool]);
    eventually("the pool to be full", SOON, || {
        (bridge_server::status(&server)["names"] == addresses).then_some(())
    });
    eprintln!("{addresses} addresses of {services} services after {:?}", start.elapsed());
    let is_bridged = |n: &usize| {
        let found = dns::addresses(server.address, &format!("s{n}.svc")).unwrap();
        assert_eq!(found.len(), 1, "s{n}");
        found[0] != netns::ADDRESS.parse::<IpAddr>().unwrap()
    };
    // Of a sample, the same share gets an address as of all.
    let sample = (0..services).step_by((services / 2000).max(1));
    let expected = sample.len() * usize::try_from(addresses).unwrap() / services;
    let (bridged, direct) = eventually("the answers to agree", SOON, || {
        let (bridged, direct): (Vec<_>, Vec<_>) = sample.clone().partition(is_bridged);
        (bridged.len().abs_diff(expected) <= sample.len() / 20).then_some((bridged, direct))
    });
    eprintln!("they are in the answers after {:?}", start.elapsed());
    // Both kinds are served: the one at port 80, the other at its own.
    for n in bridged.iter().take(50) {
        let host = format!("s{n}.svc");
        assert_eq!(bridge_server::curl(&format!("http://{host}/")), format!("page of {host}\n"));
    }
    let host = format!("s{}.svc:{port}", direct[0]);
    assert_eq!(bridge_server::curl(&format!("http://{host}/")), format!("page of {host}\n"));
    let said = server.log().matches("no free address").count();
    assert_eq!(said, 1, "{}", server.log());
    assert!(open_descriptors(&server) < MAX_IDLE_DESCRIPTORS);
    // Room that a service leaves is not given to another one while clients remember its address.
    etcd.ctl(&["del", &key(bridged[0])]);
    server.wait_for_code(&format!("s{}.svc", bridged[0]), "NXDOMAIN");
    server.stop();
}

#[test]
fn services_for_which_the_pool_has_no_address_stay_direct() {
    let test = "services_for_which_the_pool_has_no_address_stay_direct";
    inside(test, || overfill("127.83.0.0/24", 254, 1000));
}

#[test]
#[ignore = "long: make bridge"]
fn a_hundred_thousand_services_fill_the_default_pool() {
    let test = "a_hundred_thousand_services_fill_the_default_pool";
    inside(test, || overfill("127.83.0.0/16", 65_534, 100_000));
}

#[test]
fn bound_ports_are_limited_by_the_open_files() {
    let test = "bound_ports_are_limited_by_the_open_files";
    netns::inside(test, "127.0.0.1", || {
        let endpoint = format!("{}:80", netns::ADDRESS);
        let keys: Vec<_> =
            (0..200).map(|n| format!("default/default/s{n}/latest/{endpoint}")).collect();
        let keys: Vec<_> = keys.iter().map(|key| (&**key, bridge_server::HTTP)).collect();
        let files = Files::new(&keys);
        let url = files.url();
        let flags = ["--bridge", "--bridge-bind", "true", "--registry", &url];
        let server = Svcdns::serve_with("127.0.0.1:53".parse().unwrap(), &flags, |command| {
            let mut limited = Command::new("prlimit");
            limited.args(["--nofile=1024:1024"]);
            limited.arg(command.get_program()).args(command.get_args());
            limited.stdout(Stdio::null()).stderr(Stdio::null());
            *command = limited;
        });
        // The names beyond the limit stay direct.
        let bridged = eventually("some bridged names", SOON, || {
            let status = bridge_server::status(&server);
            let names = usize::try_from(status["names"].as_u64()?).unwrap();
            (names > 0).then_some(names)
        });
        let count = |direct: bool| {
            let found = (0..200).filter_map(|n| {
                dns::addresses(server.address, &format!("s{n}.svc")).ok()?.first().copied()
            });
            found.filter(|found| (*found == IpAddr::from([10, 9, 0, 5])) == direct).count()
        };
        eventually("all names", SOON, || {
            (count(true) + count(false) == 200 && count(false) >= bridged).then_some(())
        });
        assert!(count(true) > 0, "all names are bound");
        assert!(open_descriptors(&server) < 512, "{}", open_descriptors(&server));
        server.stop();
    });
}

#[test]
fn endpoints_that_lead_back_to_the_bridge_are_refused_and_listed() {
    let test = "endpoints_that_lead_back_to_the_bridge_are_refused_and_listed";
    inside(test, || {
        let at = |name: &str, endpoint: &str| format!("default/default/{name}/latest/{endpoint}");
        let port = pages::serve_hosts((netns::ADDRESS, 0));
        let keys = [
            at("hello.svc", &format!("{}:{port}", netns::ADDRESS)),
            at("own-pool", "127.83.1.2:80"),
            at("mapped", "[::ffff:127.83.5.6]:80"),
            at("mixed", &format!("127.83.3.4:80,{}:{port}", netns::ADDRESS)),
        ];
        let keys: Vec<_> = keys.iter().map(|key| (&**key, bridge_server::HTTP)).collect();
        let files = Files::new(&keys);
        let server = bridge_server::start(&files.url(), &[]);
        let hello = web_address(&server, "hello.svc");
        bridge_server::address(&server, "mixed.svc");
        // The port of the bridge's own listener, and the address of another service.
        let listener = bridge_server::redirected_to();
        files.put(&at("own-port", &listener.to_string()), bridge_server::HTTP);
        files.put(&at("of-another", &hello.to_string()), bridge_server::HTTP);
        let (listener, hello) = (listener.to_string(), hello.to_string());
        for endpoint in ["127.83.1.2:80", "127.83.3.4:80", "127.83.5.6:80", &listener, &hello] {
            let is_listed = || {
                let output = server.run(&["ls", "--rejected"]);
                let rejected = String::from_utf8_lossy(&output.stdout).into_owned();
                let line = format!("{endpoint}: the address is in the pool of the port bridge");
                rejected.lines().any(|it| it.trim().starts_with(&line)).then_some(())
            };
            eventually(&format!("{endpoint} among the rejected"), SOON, is_listed);
        }
        for name in ["own-pool.svc", "own-port.svc", "of-another.svc"] {
            assert_eq!(dns::addresses(server.address, name), Ok(Vec::new()), "{name}");
        }
        for _ in 0..10 {
            assert_eq!(bridge_server::curl("http://mixed.svc/"), "page of mixed.svc\n");
        }
        assert_eq!(open_connections(&server), 0);
        server.stop();
    });
}

#[test]
fn silent_instances_and_silent_clients_hold_up_nobody_and_are_forgotten() {
    let test = "silent_instances_and_silent_clients_hold_up_nobody_and_are_forgotten";
    inside(test, || {
        // The kernel forgets the closed end of a client after this time; by default, it is 60 s.
        netns::set_sysctl("net.ipv4.tcp_fin_timeout", "1");
        // Waiting connections of a listener that nobody accepts, and a service that works.
        let silent = TcpListener::bind((netns::ADDRESS, 0)).unwrap();
        let endpoint = silent.local_addr().unwrap();
        let files = bridge_server::registered(&[pages::serve_hosts((netns::ADDRESS, 0))]);
        files.put(&format!("default/default/silent/latest/{endpoint}"), bridge_server::HTTP);
        let server = bridge_server::start(&files.url(), &[]);
        let (hello, silent_service) =
            (web_address(&server, "hello.svc"), web_address(&server, "silent.svc"));
        let clients: Vec<TcpStream> = (0..100)
            .map(|n| TcpStream::connect(if n % 2 == 0 { hello } else { silent_service }).unwrap())
            .collect();
        eventually("the silent connections", SOON, || {
            (open_connections(&server) >= 100).then_some(())
        });
        for client in clients.iter().skip(1).step_by(2) {
            client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let _ = (&*client).write_all(b"GET / HTTP/1.1\r\n\r\n");
            let error = (&*client).read(&mut [0]).unwrap_err().kind();
            assert!([ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error), "{error}");
        }
        let start = Instant::now();
        for _ in 0..100 {
            assert_eq!(bridge_server::curl("http://hello.svc/"), "page of hello.svc\n");
        }
        eprintln!("100 pages beside 100 silent connections in {:?}", start.elapsed());
        // The instances never end their side: the end of the clients is enough.
        drop(clients);
        eventually("the end of the silent connections", seconds(300), || {
            (open_connections(&server) == 0).then_some(())
        });
        drop(silent);
        server.stop();
    });
}

/// A client process that opens this many connections at once, and says how many were served.
///
/// Each connection sends a byte; it is served if it gets one back.
const FLOOD: &str = r"
import asyncio, sys
async def main():
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    held = []
    async def one():
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 100)
            held.append(writer)
            writer.write(b'x')
            return 'served' if await asyncio.wait_for(reader.read(1), 100) else 'ended'
        except ConnectionError:
            return 'reset'
        except asyncio.TimeoutError:
            return 'hung'
    results = await asyncio.gather(*(one() for _ in range(count)))
    print(*(f'{word} {results.count(word)}' for word in ('served', 'ended', 'reset', 'hung')))
asyncio.run(main())
";

/// An instance that sends back what it receives, and holds many connections.
const ECHO: &str = r"
import asyncio, sys
async def echo(reader, writer):
    try:
        while data := await reader.read(100):
            writer.write(data)
    except ConnectionError:
        pass
    writer.close()
async def main():
    server = await asyncio.start_server(echo, sys.argv[1], 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
";

/// Opens `total` connections at once, from several processes.
fn flood(total: usize) {
    const PROCESSES: usize = 4;
    let instances: Vec<(Process, u16)> = (0..PROCESSES)
        .map(|_| {
            let mut command = Command::new("python3");
            let process = Process::start(command.args(["-c", ECHO, netns::ADDRESS]));
            let port = eventually("the port of an instance", SOON, || {
                process.log().strip_suffix('\n')?.parse().ok()
            });
            (process, port)
        })
        .collect();
    let files = bridge_server::registered(&instances.iter().map(|one| one.1).collect::<Vec<_>>());
    files.put(
        &format!("default/default/page/latest/{}:{}", netns::ADDRESS, {
            pages::serve_hosts((netns::ADDRESS, 0))
        }),
        bridge_server::HTTP,
    );
    let server = bridge_server::start(&files.url(), &["--bridge-connections-per-service", "20000"]);
    let address = web_address(&server, "hello.svc");
    bridge_server::address(&server, "page.svc");
    let idle = open_descriptors(&server);
    let start = Instant::now();
    let clients: Vec<_> = (0..PROCESSES)
        .map(|_| {
            let mut command = Command::new("python3");
            command.args(["-c", FLOOD, &address.ip().to_string(), "80"]);
            command.arg((total / PROCESSES).to_string());
            command.stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    // The name server goes on meanwhile.
    let prober = dns::Prober::start(server.address, "page.svc");
    let mut counts = [0; 4];
    for client in clients {
        let output = client.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let words: Vec<_> = text.split_whitespace().collect();
        assert_eq!(words.len(), 8, "{text}");
        for (count, word) in counts.iter_mut().zip(words.iter().skip(1).step_by(2)) {
            *count += word.parse::<usize>().unwrap();
        }
    }
    prober.expect_no_loss();
    let [served, ended, reset, hung] = counts;
    let peak = server.resident_kib() / 1024;
    eprintln!(
        "{total} connections at once: {served} served, {ended} ended, {reset} reset, {hung} hung, \
         in {:?}; {peak} MiB",
        start.elapsed()
    );
    assert_eq!((served + ended + reset, hung), (total, 0));
    // The limit of the bridge depends on the open files that this machine allows.
    assert!(served >= total.min(1000), "{served} of {total} were served");
    eventually("the end of all connections", SOON, || {
        (open_connections(&server) == 0 && open_descriptors(&server) <= idle + 70).then_some(())
    });
    assert_eq!(bridge_server::curl("http://page.svc/"), "page of page.svc\n");
    server.stop();
}

#[test]
fn connections_that_are_opened_at_once_are_served_or_reset() {
    inside("connections_that_are_opened_at_once_are_served_or_reset", || flood(1000));
}

#[test]
#[ignore = "long: make bridge"]
fn ten_thousand_connections_that_are_opened_at_once_are_served_or_reset() {
    let test = "ten_thousand_connections_that_are_opened_at_once_are_served_or_reset";
    inside(test, || flood(10_000));
}
