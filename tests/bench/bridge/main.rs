//! Benchmark of the port bridge, beside a direct connection, HAProxy in TCP mode and socat.
//!
//! Prints for each of them the processor time of the carrier, the latency that it adds, and its
//! memory. The program asserts nothing about the figures, except that every byte is right.
//! `cargo bench --bench bridge` measures; `-- --short` only shows that the program works.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a program that prints its results and ends at the first error"
)]

mod carriers;
#[path = "../figures.rs"]
mod figures;
#[path = "../../support/mod.rs"]
mod support;

use std::env;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use carriers::Carrier;
use figures::Spread;
use svcdns::descriptors;

/// The extent of a run.
struct Scale {
    /// Connections with one request each.
    connections: usize,
    /// Requests on one connection.
    requests: usize,
    /// Bytes of a download.
    download: u64,
    /// Idle connections.
    idle: usize,
    /// Rounds, of which the median counts.
    rounds: usize,
}

const FULL: Scale =
    Scale { connections: 5_000, requests: 50_000, download: 8 << 30, idle: 10_000, rounds: 5 };
const SHORT: Scale =
    Scale { connections: 50, requests: 200, download: 16 << 20, idle: 50, rounds: 1 };

/// Size of a request and of its response, in bytes.
const MESSAGE_BYTES: usize = 128;
/// First byte of a request for a download, with its size in the next eight.
const DOWNLOAD: u8 = b'D';
/// First byte of a request that is sent back.
const ECHO: u8 = b'E';

fn main() {
    let short = env::args().any(|argument| argument == "--short");
    let scale = if short { &SHORT } else { &FULL };
    descriptors::raise_limit();
    println!(
        "| | CPU µs, new connection / kept request | p50 and p99 µs, new | kept | GiB/s \
              | CPU s/GiB | MB per {} idle |",
        scale.idle
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    let backend = carriers::start_backend(answer);
    for carrier in carriers::all(backend) {
        match carrier {
            Ok(carrier) => print_row(&carrier, scale),
            Err(reason) => println!("| {reason} |"),
        }
    }
}

/// Serves a connection: sends back requests, and sends downloads.
fn answer(mut stream: TcpStream) {
    let mut message = [0; MESSAGE_BYTES];
    let block = vec![b'x'; 256 * 1024];
    while stream.read_exact(&mut message).is_ok() {
        if message[0] == ECHO {
            if stream.write_all(&message).is_err() {
                return;
            }
            continue;
        }
        let mut left = u64::from_be_bytes(message[1..9].try_into().unwrap());
        while left > 0 {
            let bytes = usize::try_from(left.min(block.len() as u64)).unwrap();
            if stream.write_all(&block[..bytes]).is_err() {
                return;
            }
            left -= bytes as u64;
        }
    }
}

fn print_row(carrier: &Carrier, scale: &Scale) {
    let mut rows: Vec<[f64; 8]> = Vec::new();
    for _ in 0..scale.rounds {
        let (new_cpu, new) = measure(carrier, scale.connections, || {
            request(&mut connect(carrier.address));
        });
        let mut kept_open = connect(carrier.address);
        let (kept_cpu, kept) = measure(carrier, scale.requests, || request(&mut kept_open));
        let (rate, download_cpu) = download(carrier, scale.download);
        rows.push([
            new_cpu,
            kept_cpu,
            new.percentile(0.5) * 1e3,
            new.percentile(0.99) * 1e3,
            kept.percentile(0.5) * 1e3,
            kept.percentile(0.99) * 1e3,
            rate,
            download_cpu,
        ]);
    }
    let [new_cpu, kept_cpu, new_50, new_99, kept_50, kept_99, rate, download_cpu] =
        std::array::from_fn(|at| Spread::new(rows.iter().map(|row| row[at]).collect()).median());
    let idle = idle_megabytes(carrier, scale.idle);
    println!(
        "| {} | {new_cpu:.1} / {kept_cpu:.1} | {new_50:.0}, {new_99:.0} | {kept_50:.0}, \
         {kept_99:.0} | {rate:.2} | {download_cpu:.2} | {idle:.0} |",
        carrier.name
    );
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
    let spent = carrier.cpu_time().saturating_sub(before);
    (spent.as_secs_f64() * 1e6 / count as f64, Spread::of(times))
}

/// Downloads bytes; returns GiB per second, and the carrier's processor time per GiB in seconds.
fn download(carrier: &Carrier, bytes: u64) -> (f64, f64) {
    let mut stream = connect(carrier.address);
    let mut message = [DOWNLOAD; MESSAGE_BYTES];
    message[1..9].copy_from_slice(&bytes.to_be_bytes());
    let (before, start) = (carrier.cpu_time(), Instant::now());
    stream.write_all(&message).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut block = vec![0; 256 * 1024];
    let mut received = 0;
    loop {
        match stream.read(&mut block).unwrap() {
            0 => break,
            count => received += count as u64,
        }
    }
    assert_eq!(received, bytes);
    let gibibytes = bytes as f64 / f64::from(1 << 30);
    let spent = carrier.cpu_time().saturating_sub(before);
    (gibibytes / start.elapsed().as_secs_f64(), spent.as_secs_f64() / gibibytes)
}

/// Returns the memory of the carrier for idle connections, in MB.
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
    after.saturating_sub(before) as f64 / 1024.0
}
