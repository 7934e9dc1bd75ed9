//! A real question through the machine's own C library.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::Root;
use super::command;

/// How long one lookup may take: longer than the C library gives name servers that do not answer.
const LOOKUP: Duration = Duration::from_secs(15);

/// The addresses of a name as any program of this machine finds them: by `getent` (in a process of its own, so with no
/// memory of an older resolv.conf; `hosts`, which unlike `ahosts` also asks on a machine that has only loopback addresses),
/// or else by the C library that this program is linked with.
///
/// # Errors
/// What was asked, and what came instead of addresses.
pub fn look_up(root: &Root, name: &str) -> Result<Vec<IpAddr>, String> {
    let Some(getent) = root.program("getent") else { return by_own_library(name) };
    let line = command::line([&getent.display().to_string(), "hosts", name]);
    let found = command::run_within(&line, LOOKUP).map_err(|failure| failure.to_string())?;
    let addresses = found.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect::<Vec<IpAddr>>();
    if addresses.is_empty() { Err(format!("`{}` found nothing", command::written(&line))) } else { Ok(addresses) }
}

fn by_own_library(name: &str) -> Result<Vec<IpAddr>, String> {
    let (sender, receiver) = mpsc::channel();
    let asked = (name.to_owned(), 0);
    // There is no deadline in getaddrinfo; the thread ends with the process.
    thread::spawn(move || sender.send(asked.to_socket_addrs().map(|found| found.map(|address| address.ip()).collect())));
    match receiver.recv_timeout(LOOKUP) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(format!("getaddrinfo for {name}: {error}")),
        Err(_) => Err(format!("getaddrinfo for {name} has not ended after {} s", LOOKUP.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_localhost() {
        let loopback = |found: Result<Vec<IpAddr>, String>| found.is_ok_and(|found| found.iter().all(IpAddr::is_loopback));
        assert!(loopback(look_up(&Root::default(), "localhost")));
        assert!(loopback(look_up(&Root::at("/no/such/folder"), "localhost")));
    }
}
