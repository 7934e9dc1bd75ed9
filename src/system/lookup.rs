//! A lookup through the machine's own C library.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::command;
use super::{Root, nscd};

/// Maximum wait for a lookup; longer than the C library waits for a dead server.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(15);

/// Looks up the addresses of a name as the machine's programs do.
///
/// Runs `getent hosts`, or uses this program's own C library if there is no `getent`.
///
/// # Errors
/// If the lookup fails, finds no address or times out; the error names the command.
pub fn look_up(root: &Root, name: &str) -> Result<Vec<IpAddr>, String> {
    let Some(getent) = root.program("getent") else { return look_up_in_process(name) };
    // A new process has not read an older resolv.conf. Unlike `ahosts`, `hosts` also works on a
    // machine that has only loopback addresses.
    let words = command::words(&[&getent.display().to_string(), "hosts", name]);
    let output =
        command::run_within(&words, LOOKUP_TIMEOUT).map_err(|failure| failure.to_string())?;
    let addresses = output
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect::<Vec<IpAddr>>();
    if addresses.is_empty() {
        return Err(format!("`{}` found no address", command::shell_quoted(&words)));
    }
    Ok(addresses)
}

/// Looks up the addresses of a name like [`look_up()`], after emptying nscd's cache.
///
/// Programs get the same result from then on. Emptying the cache requires root; if it fails, the
/// result may come from the cache.
///
/// # Errors
/// Those of [`look_up()`].
pub fn look_up_afresh(root: &Root, name: &str) -> Result<Vec<IpAddr>, String> {
    let _ = nscd::forget_hosts(root);
    look_up(root, name)
}

fn look_up_in_process(name: &str) -> Result<Vec<IpAddr>, String> {
    let (sender, receiver) = mpsc::channel();
    let target = (name.to_owned(), 0);
    // getaddrinfo has no timeout; the thread may run until the process ends.
    thread::spawn(move || {
        let found = target.to_socket_addrs();
        sender.send(found.map(|addresses| addresses.map(|address| address.ip()).collect()))
    });
    match receiver.recv_timeout(LOOKUP_TIMEOUT) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(format!("getaddrinfo for {name}: {error}")),
        Err(_) => Err(format!(
            "getaddrinfo for {name} did not return within {} s",
            LOOKUP_TIMEOUT.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_found_with_and_without_getent() {
        let loopback = |found: Result<Vec<IpAddr>, String>| {
            found.is_ok_and(|found| found.iter().all(IpAddr::is_loopback))
        };
        assert!(loopback(look_up(&Root::default(), "localhost")));
        assert!(loopback(look_up(&Root::at("/no/such/directory"), "localhost")));
    }
}
