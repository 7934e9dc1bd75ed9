//! DNS queries beside the bridge: its rule makes the kernel track every connection, UDP included.

use std::thread;
use std::time::{Duration, Instant};

use crate::carriers;
use crate::figures::Spread;
use crate::support::files::Files;
use crate::support::svcdns::Svcdns;
use crate::udp_client::{UdpClient, query};

/// Clients that send queries at the same time, each on a socket of its own.
const CLIENTS: usize = 4;

/// Prints how many queries a server answers each second, without and with the rule.
pub(crate) fn print_rates(rounds: usize, time: Duration) {
    let files = Files::new(&[("default/default/plain.svc/latest/10.0.0.1:80", "{}")]);
    let server = Svcdns::serve(&["--registry", &files.url()]);
    server.wait_for("plain.svc", &["10.0.0.1"]);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        without.push(rate(&server, time));
        // Another server redirects; the kernel's tracking concerns the whole namespace.
        let _redirecting = carriers::redirecting(server.address);
        with.push(rate(&server, time));
    }
    let [without, with] = [without, with].map(|rates| Spread::new(rates).median());
    println!(
        "\nDNS queries a second, {CLIENTS} clients: {without:.0} without the bridge's table, \
         {with:.0} with it ({:+.1} %)",
        (with / without - 1.0) * 100.0
    );
}

/// Returns the queries that a server answers each second.
fn rate(server: &Svcdns, time: Duration) -> f64 {
    let address = server.address;
    let start = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            thread::spawn(move || {
                let (mut client, query) = (UdpClient::new(address), query("plain.svc"));
                let mut count = 0_u32;
                while start.elapsed() < time {
                    client.exchange(&query);
                    count += 1;
                }
                count
            })
        })
        .collect();
    let count: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    f64::from(count) / start.elapsed().as_secs_f64()
}
