//! A bare watcher: the lower bound for the time from a change to its answer.
//!
//! The process watches the same keys with the same client library, keeps only the address in the
//! key that was put last, and answers every query with it.

use std::env;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use etcd_client::{Client, EventType, WatchOptions};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::keys;
use super::support::etcd::Etcd;
use super::support::process::Process;
use super::support::{SOON, eventually};

/// The watcher's process, which runs this program again.
pub(crate) struct Watcher {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl Watcher {
    /// Starts the watcher, and waits until etcd has confirmed its watch.
    pub(crate) fn start(etcd: &Etcd) -> Self {
        let mut process = Process::start(
            Command::new(env::current_exe().unwrap()).args(["--watcher", &etcd.endpoint(0)]),
        );
        let address = eventually("the watcher to watch", SOON, || {
            assert!(process.ended().is_none(), "the watcher ended:\n{}", process.log());
            process.log().lines().find_map(|line| line.strip_prefix("listening on ")?.parse().ok())
        });
        Self { process, address }
    }
}

/// Watches and answers queries until the process is killed.
pub(crate) fn watch(endpoint: &str) {
    // Called on the main thread, whose end counts as the end of the process.
    prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    let last = Arc::new(AtomicU32::new(0));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn({
        let last = Arc::clone(&last);
        move || answer(&socket, &last)
    });
    keys::runtime().block_on(async {
        let client = Client::connect([endpoint], None).await.unwrap();
        let mut stream = client
            .watch_client()
            .watch("/service/", Some(WatchOptions::new().with_prefix()))
            .await
            .unwrap();
        println!("listening on {address}");
        while let Ok(Some(message)) = stream.message().await {
            for event in
                message.events().iter().filter(|event| event.event_type() == EventType::Put)
            {
                if let Some(address) = address_in(event.kv().unwrap().key()) {
                    last.store(address.to_bits(), Ordering::Release);
                }
            }
        }
    });
}

/// Returns the address at the end of a key.
fn address_in(key: &[u8]) -> Option<Ipv4Addr> {
    let endpoint = key.rsplit(|byte| *byte == b'/').next()?;
    let address = endpoint.split(|byte| *byte == b':').next()?;
    std::str::from_utf8(address).ok()?.parse().ok()
}

/// Answers every query with an A record of the last address.
fn answer(socket: &UdpSocket, last: &AtomicU32) {
    let mut message = [0; 512];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut message[..480]) else { continue };
        message[2] |= 0x80;
        message[7] = 1;
        message[length..length + 12].copy_from_slice(&[0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        message[length + 12..length + 16]
            .copy_from_slice(&last.load(Ordering::Acquire).to_be_bytes());
        let _ = socket.send_to(&message[..length + 16], from);
    }
}
