//! Response times while the metrics page is read: `--scrape`.
//!
//! The real program answers at half of its maximum. Seconds with and without a reader of the page
//! take turns, so that both see the same machine.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::common::cores;
use super::content::Shape;
use super::figures::{self, Spread};
use super::load::{self, Load};
use super::reading::{self, Aim, Reading};
use super::support::svcdns::Svcdns;

/// The extent of a run.
pub(crate) struct ScrapeScale {
    /// Pairs of a period with and one without a reader.
    pairs: usize,
    period: Duration,
}

pub(crate) const FULL: ScrapeScale = ScrapeScale { pairs: 40, period: Duration::from_secs(1) };
pub(crate) const SHORT: ScrapeScale = ScrapeScale { pairs: 2, period: Duration::from_millis(200) };

/// Registered services and instances of each.
const SHAPE: Shape = Shape { services: 1_000, instances: 3 };

/// Time between two readings of the page: far less than any Prometheus waits.
const SCRAPE_INTERVAL: Duration = Duration::from_millis(100);

/// Response times of the bursts of all periods of one state, and the pages that were read.
#[derive(Default)]
struct Seen {
    times: Vec<Duration>,
    pages: usize,
}

pub(crate) fn run(scale: &ScrapeScale) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("svcdns.toml");
    fs::write(&config, static_services()).unwrap();
    // The server may use all cores; the load and the reader share one.
    let flags = ["--config", config.to_str().unwrap(), "--admin-listen", "127.0.0.1:0"];
    let server = Svcdns::serve(&flags);
    server.wait_for(&Shape::name(0), &addresses(0).each_ref().map(|text| &**text));
    let status = String::from_utf8(server.run(&["status", "--json"]).stdout).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let page = status["admin"].as_str().unwrap();
    cores::pin(cores::SELF, cores::cores().1);
    println!("{}", figures::machine());

    let unlimited = Load { lanes: 2, rate: None };
    let found = load::run(unlimited, server.address, SHAPE, scale.period * 2);
    let maximum = u128::from(found.right) * 1_000_000 / found.elapsed.as_micros();
    let half = u32::try_from(maximum / 2).unwrap();
    let load = Load { lanes: 1, rate: Some(half) };
    println!(
        "{} static services of {} instances, A queries over UDP in bursts of 64: {maximum} \
         responses per second at most, {half} asked",
        SHAPE.services, SHAPE.instances
    );
    let (mut quiet, mut scraped, mut ratios) = (Seen::default(), Seen::default(), Vec::new());
    for pair in 0..scale.pairs {
        // The two states take turns in being first.
        let scraped_first = pair % 2 == 1;
        let mut tails = [scraped_first, !scraped_first].map(|is_scraped| {
            let seen = if is_scraped { &mut scraped } else { &mut quiet };
            measure(&server, page, load, scale.period, is_scraped, seen)
        });
        if scraped_first {
            tails.swap(0, 1);
        }
        ratios.push(Reading::exact(tails[1] / tails[0]));
    }
    println!("\nResponse time of a burst, from when it was due, ms     p50     p99   p99.9");
    for (name, Seen { times, pages }) in [("not read", quiet), ("page read", scraped)] {
        let (bursts, spread) = (times.len(), Spread::of(times));
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| spread.percentile(share));
        let what = format!("{name} ({bursts} bursts, {pages} pages)");
        println!("{what:<52} {p50:>7.3} {p99:>7.3} {p999:>7.3}");
    }
    println!(
        "{}",
        Aim::AtMost(1.1).line(
            "p99 with the page read over that without, median of the pairs",
            Reading::median(&ratios)
        )
    );
    println!("{}", reading::note());
    server.stop();
}

/// Runs a load for a period; returns the 99th percentile of its response times, in milliseconds.
fn measure(
    server: &Svcdns,
    page: &str,
    load: Load,
    period: Duration,
    is_scraped: bool,
    seen: &mut Seen,
) -> f64 {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = is_scraped.then(|| scope.spawn(|| read_pages(page, &stop)));
        let found = load::run(load, server.address, SHAPE, period);
        stop.store(true, Ordering::Relaxed);
        seen.pages += reader.map_or(0, |reader| reader.join().unwrap());
        let (right, failed) = (found.right, found.failed);
        assert!(right > 0 && failed == 0, "{right} right responses, {failed} wrong or missing");
        seen.times.extend(&found.times);
        Spread::of(found.times).percentile(0.99)
    })
}

/// Reads the page again and again, and returns how often.
fn read_pages(address: &str, stop: &AtomicBool) -> usize {
    let (mut pages, mut due) = (0, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        assert!(page.starts_with("HTTP/1.1 200 ") && page.contains("svcdns_questions_total{"));
        pages += 1;
        due += SCRAPE_INTERVAL;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    pages
}

/// Returns a configuration with the services of the shape.
fn static_services() -> String {
    let service = |service| {
        let endpoints = addresses(service).map(|address| format!("'{address}:8000'")).join(", ");
        format!("[[static]]\nname = '{}'\nendpoints = [{endpoints}]\n", Shape::name(service))
    };
    (0..SHAPE.services).map(service).collect()
}

fn addresses(service: usize) -> [String; SHAPE.instances] {
    std::array::from_fn(|instance| SHAPE.address(service, instance).to_string())
}
