//! HTTP clients that put load on a service, one connection per request.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{SOON, eventually};

/// A request on a connection of its own.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// Moment before its connection was opened.
    pub(crate) begun: Instant,
    /// The instance that answered, or what failed.
    pub(crate) instance: Result<String, String>,
}

/// Threads that send requests until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts as many clients, each of which sends one request after the other.
    pub(crate) fn start(address: SocketAddr, clients: usize) -> Self {
        let (stop, exchanges) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<_>>>::default());
        let client = |_| {
            let (stop, exchanges) = (Arc::clone(&stop), Arc::clone(&exchanges));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let instance = fetch(address).map_err(|error| error.to_string());
                    exchanges.lock().unwrap().push(Exchange { begun, instance });
                }
            })
        };
        let threads = (0..clients).map(client).collect();
        Self { stop, exchanges, threads }
    }

    /// Returns the exchanges that began after a moment and have ended.
    pub(crate) fn since(&self, moment: Instant) -> Vec<Exchange> {
        let exchanges = self.exchanges.lock().unwrap();
        exchanges.iter().filter(|exchange| exchange.begun >= moment).cloned().collect()
    }

    /// Waits until this many exchanges that began after a moment have ended, none of which failed.
    pub(crate) fn expect_success(&self, moment: Instant, count: usize) -> Vec<Exchange> {
        let since = eventually(&format!("{count} exchanges"), SOON, || {
            Some(self.since(moment)).filter(|since| since.len() >= count)
        });
        let failed: Vec<_> = since.iter().filter_map(|one| one.instance.as_ref().err()).collect();
        assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), since.len());
        since
    }

    /// Waits until an instance answers a request that began after a moment.
    pub(crate) fn expect_instance(&self, moment: Instant, instance: &str) {
        let start = Instant::now();
        loop {
            let since = self.since(moment);
            if since.iter().any(|one| one.instance.as_deref() == Ok(instance)) {
                return;
            }
            assert!(start.elapsed() < SOON, "no answer of {instance}: {:?}", since.last());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops the clients after their last requests.
    pub(crate) fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Gets a page on a new connection; returns the header `Instance` of its response.
pub(crate) fn fetch(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: hello.svc\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let invalid = || io::Error::new(ErrorKind::InvalidData, format!("response {response:?}"));
    let (head, page) = response.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let field = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    // Without a length, the last chunk ends the page.
    let is_complete = match field("Content-Length") {
        Some(length) => length == page.len().to_string(),
        None => page.ends_with("\r\n0\r\n\r\n"),
    };
    if !head.starts_with("HTTP/1.1 200") || !is_complete {
        return Err(invalid());
    }
    field("Instance").ok_or_else(invalid)
}
