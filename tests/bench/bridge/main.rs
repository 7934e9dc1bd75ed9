//! Benchmark of the port bridge, beside a direct connection, HAProxy in TCP mode and socat.
//!
//! Client, carrier and backend are processes of their own. As root, all of them run in a network
//! namespace, so that the kernel can redirect connections to svcdns, as it does for users. Prints
//! for each carrier its rates, the latency that it adds, its processor time and its memory. The
//! program asserts nothing about the figures, except that every byte is right.
//! `cargo bench --bench bridge` measures; `-- --short` only shows that the program works.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a program that prints its results and ends at the first error"
)]

mod backend;
mod carriers;
#[path = "../figures.rs"]
mod figures;
mod namespace;
mod queries;
#[path = "../../support/mod.rs"]
mod support;
#[path = "../udp_client.rs"]
mod udp_client;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use std::{env, thread};

use backend::{Backend, DOWNLOAD, ECHO, MESSAGE_BYTES};
use carriers::Carrier;
use figures::Spread;
use svcdns::descriptors;

/// The extent of a run.
struct Scale {
    /// Connections with one request each, one after the other.
    connections: usize,
    /// Requests on one connection, one after the other.
    requests: usize,
    /// Time for each rate.
    rate: Duration,
    /// Bytes of a download.
    download: u64,
    /// Idle connections: as many as a bridge with 20,000 descriptors has by its share.
    idle: usize,
    /// Rounds, of which the median counts.
    rounds: usize,
}

const FULL: Scale = Scale {
    connections: 3000,
    requests: 20_000,
    rate: Duration::from_secs(1),
    download: 2 << 30,
    idle: 1800,
    rounds: 3,
};
const SHORT: Scale = Scale {
    connections: 50,
    requests: 200,
    rate: Duration::from_millis(50),
    download: 16 << 20,
    idle: 50,
    rounds: 1,
};

/// Clients at the same time, for the rates.
const CLIENTS: usize = 16;

/// The medians of a carrier; latencies in µs.
#[derive(Clone, Copy)]
struct Figures {
    new_rate: f64,
    kept_rate: f64,
    /// 50th and 99th percentile of a request on a connection of its own.
    new: [f64; 2],
    /// 50th and 99th percentile of a request on an open connection.
    kept: [f64; 2],
    /// Processor time of the carrier, in µs, for a new connection and for a kept request.
    cpu: [f64; 2],
    /// Download, in GiB/s.
    download: f64,
    /// Processor time of the carrier, in seconds per GiB.
    download_cpu: f64,
    /// Memory of the carrier, in MB per 10,000 connections.
    idle: f64,
}

fn main() {
    if backend::is_backend() {
        return backend::serve();
    }
    if let Some(status) = namespace::enter() {
        std::process::exit(status.code().unwrap_or(1));
    }
    let short = env::args().any(|argument| argument == "--short");
    let scale = if short { &SHORT } else { &FULL };
    let is_redirecting = namespace::set_up();
    descriptors::raise_limit();
    let backend = Backend::start();
    println!("{}\n", figures::machine());
    println!(
        "| | requests/s, new / kept | added p50, p99 µs, new | kept | CPU µs, new / kept | GiB/s \
         | CPU s/GiB | MB per 10,000 idle |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut direct = None;
    for carrier in carriers::all(backend.address, is_redirecting) {
        match carrier {
            Ok(carrier) => {
                let figures = figures_of(&carrier, scale);
                print_row(carrier.name, &figures, direct.as_ref());
                direct.get_or_insert(figures);
            }
            Err(reason) => println!("| {reason} |"),
        }
    }
    if is_redirecting {
        queries::print_rates(scale.rounds, scale.rate);
    }
}

/// Prints the figures of a carrier; latencies are those beyond the direct connection's.
fn print_row(name: &str, figures: &Figures, direct: Option<&Figures>) {
    let Figures { new_rate, kept_rate, download, download_cpu, cpu, idle, .. } = figures;
    let added = |of: fn(&Figures) -> [f64; 2]| {
        let [before_50, before_99] = direct.map_or([0.0; 2], of);
        let [at_50, at_99] = of(figures);
        format!("{:.0}, {:.0}", at_50 - before_50, at_99 - before_99)
    };
    let (new, kept) = (added(|figures| figures.new), added(|figures| figures.kept));
    print!("| {name} | {new_rate:.0} / {kept_rate:.0} | {new} | {kept} |");
    if direct.is_some() {
        let [new, kept] = cpu;
        println!(" {new:.0} / {kept:.1} | {download:.2} | {download_cpu:.2} | {idle:.0} |");
    } else {
        println!(" | {download:.2} | | |");
    }
}

/// Measures a carrier.
fn figures_of(carrier: &Carrier, scale: &Scale) -> Figures {
    let mut rounds: Vec<Figures> = Vec::new();
    for _ in 0..scale.rounds {
        let address = carrier.address;
        let (new_cpu, new) = measure(carrier, scale.connections, || request(&mut connect(address)));
        let mut kept_open = connect(address);
        let (kept_cpu, kept) = measure(carrier, scale.requests, || request(&mut kept_open));
        let (download, download_cpu) = download(carrier, scale.download);
        let latencies = |times: Spread| [0.5, 0.99].map(|share| times.percentile(share) * 1e3);
        rounds.push(Figures {
            new_rate: rate(scale.rate, || move || request(&mut connect(address))),
            kept_rate: rate(scale.rate, || {
                let mut stream = connect(address);
                move || request(&mut stream)
            }),
            new: latencies(new),
            kept: latencies(kept),
            cpu: [new_cpu, kept_cpu],
            download,
            download_cpu,
            idle: 0.0,
        });
    }
    let median = |of: fn(&Figures) -> f64| Spread::new(rounds.iter().map(of).collect()).median();
    Figures {
        new_rate: median(|one| one.new_rate),
        kept_rate: median(|one| one.kept_rate),
        new: [median(|one| one.new[0]), median(|one| one.new[1])],
        kept: [median(|one| one.kept[0]), median(|one| one.kept[1])],
        cpu: [median(|one| one.cpu[0]), median(|one| one.cpu[1])],
        download: median(|one| one.download),
        download_cpu: median(|one| one.download_cpu),
        idle: idle_megabytes(carrier, scale.idle),
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends a request and checks its response.
fn request(stream: &mut TcpStream) {
    let sent = [ECHO; MESSAGE_BYTES];
    stream.write_all(&sent).unwrap();
    let mut received = [0; MESSAGE_BYTES];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(received, sent);
}

/// Repeats an action; returns the carrier's processor time each, in µs, and the latencies in ms.
fn measure(carrier: &Carrier, count: usize, mut act: impl FnMut()) -> (f64, Spread) {
    let before = carrier.cpu_time();
    let time = |()| {
        let start = Instant::now();
        act();
        start.elapsed()
    };
    let times: Vec<Duration> = std::iter::repeat_n((), count).map(time).collect();
    (spent_since(carrier, before).as_secs_f64() * 1e6 / count as f64, Spread::of(times))
}

/// Returns the processor time of the carrier since an earlier moment.
fn spent_since(carrier: &Carrier, before: Option<Duration>) -> Duration {
    carrier.cpu_time().unwrap_or_default().saturating_sub(before.unwrap_or_default())
}

/// Repeats an action of each client for a while; returns how often it was done each second.
fn rate<F: FnMut() + Send + 'static>(time: Duration, client: impl Fn() -> F) -> f64 {
    let start = Instant::now();
    let run = move |mut act: F| {
        let mut count = 0_u32;
        while start.elapsed() < time {
            act();
            count += 1;
        }
        count
    };
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| client()).map(|act| thread::spawn(move || run(act))).collect();
    let count: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    f64::from(count) / start.elapsed().as_secs_f64()
}

/// Downloads bytes; returns GiB per second, and the carrier's processor time per GiB in seconds.
fn download(carrier: &Carrier, bytes: u64) -> (f64, f64) {
    let mut stream = connect(carrier.address);
    let mut message = [DOWNLOAD; MESSAGE_BYTES];
    message[1..9].copy_from_slice(&bytes.to_be_bytes());
    let (before, start) = (carrier.cpu_time(), Instant::now());
    stream.write_all(&message).unwrap();
    let mut block = vec![0; 256 * 1024];
    let mut received = 0;
    while received < bytes {
        let count = stream.read(&mut block).unwrap();
        assert_ne!(count, 0, "the end after {received} bytes");
        received += count as u64;
    }
    let gibibytes = bytes as f64 / f64::from(1 << 30);
    let rate = gibibytes / start.elapsed().as_secs_f64();
    (rate, spent_since(carrier, before).as_secs_f64() / gibibytes)
}

/// Returns the memory of the carrier for idle connections, in MB per 10,000.
fn idle_megabytes(carrier: &Carrier, count: usize) -> f64 {
    let before = carrier.memory_kib();
    let held: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = connect(carrier.address);
            request(&mut stream);
            stream
        })
        .collect();
    let after = carrier.memory_kib();
    drop(held);
    after.saturating_sub(before) as f64 / 1024.0 * 10_000.0 / count as f64
}
