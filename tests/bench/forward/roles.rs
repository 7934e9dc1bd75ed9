//! Other programs of the benchmark: the upstream, an echo and a relay.
//!
//! Each runs in its own process.

use std::collections::HashMap;
use std::env;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::common::batch::Batch;
use super::queries;
use super::support::process::Process;
use super::support::{eventually, seconds};

/// Datagrams per system call of the upstream.
const DATAGRAMS_PER_CALL: usize = 64;

/// Starts this program again in a role, in a process that ends with this one.
pub(crate) fn start(role: &[&str]) -> (Process, SocketAddr) {
    let mut process =
        Process::start(Command::new(env::current_exe().unwrap()).arg("--role").args(role));
    let address = eventually("the role to listen", seconds(20), || {
        assert!(process.ended().is_none(), "{role:?} ended:\n{}", process.log());
        process.log().lines().find_map(|line| line.strip_prefix("listening on ")?.parse().ok())
    });
    (process, address)
}

/// Plays a role until it is killed.
pub(crate) fn play(role: &[String]) {
    // Called on the main thread, whose end counts as the end of the process.
    prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    println!("listening on {}", socket.local_addr().unwrap());
    match &*role[0] {
        "upstream" => serve_batches(&socket),
        "echo" => serve_singly(&socket),
        "relay" => relay(&socket, role[1].parse().unwrap()),
        other => panic!("no role {other}"),
    }
}

/// Receives and sends up to [`DATAGRAMS_PER_CALL`] datagrams per call.
fn serve_batches(socket: &UdpSocket) {
    let mut batch = Batch::new(DATAGRAMS_PER_CALL);
    let mut responses = vec![Vec::new(); DATAGRAMS_PER_CALL];
    let mut to = Vec::with_capacity(DATAGRAMS_PER_CALL);
    loop {
        to.clear();
        for (query, from) in batch.receive(socket, true) {
            if queries::respond(query, &mut responses[to.len()]).is_some() {
                to.push(from);
            }
        }
        batch.send(socket, &responses[..to.len()], &to);
    }
}

/// Receives and sends one datagram per call.
fn serve_singly(socket: &UdpSocket) {
    let (mut buffer, mut response) = ([0; 1500], Vec::new());
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        if queries::respond(&buffer[..length], &mut response).is_some() {
            let _ = socket.send_to(&response, from);
        }
    }
}

/// Forwards queries with new ids, and responses with the original ones.
fn relay(socket: &UdpSocket, upstream: SocketAddr) {
    let out = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    out.connect(upstream).unwrap();
    socket.set_nonblocking(true).unwrap();
    out.set_nonblocking(true).unwrap();
    let (mut waiting, mut next, mut buffer) = (HashMap::new(), 0_u16, [0; 1500]);
    loop {
        let mut ready = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(out.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut ready, PollTimeout::NONE).unwrap();
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            next = next.wrapping_add(1);
            waiting.insert(next, (from, [buffer[0], buffer[1]]));
            buffer[..2].copy_from_slice(&next.to_be_bytes());
            let _ = out.send(&buffer[..length]);
        }
        while let Ok(length) = out.recv(&mut buffer) {
            if let Some((to, id)) = waiting.remove(&u16::from_be_bytes([buffer[0], buffer[1]])) {
                buffer[..2].copy_from_slice(&id);
                let _ = socket.send_to(&buffer[..length], to);
            }
        }
    }
}
