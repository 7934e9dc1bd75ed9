//! Servers of the benchmark: the echo and the hickory-server handler.
//!
//! Each runs in its own process.

use std::env;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::common::batch::Batch;
use super::content::Content;
use super::support::process::Process;
use super::support::{SOON, eventually};
use super::{handler, queries};

/// Datagrams per system call of the echo: as svcdns.
const DATAGRAMS_PER_CALL: usize = 32;

/// Size of the echo's longest response.
const MAX_RESPONSE_BYTES: usize = 1232;

/// Returns the command that starts this program again in a role.
pub(crate) fn command(role: &str, content: Content) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([
        "--role",
        role,
        &content.services.to_string(),
        &content.instances.to_string(),
        &content.srv.to_string(),
    ]);
    command
}

/// Waits until a started role listens, and returns its address.
pub(crate) fn address(process: &mut Process) -> SocketAddr {
    eventually("the role to listen", SOON, || {
        assert!(process.ended().is_none(), "a role ended:\n{}", process.log());
        process.log().lines().find_map(|line| line.strip_prefix("listening on ")?.parse().ok())
    })
}

/// Plays a role until the process is killed, or its parent ends.
pub(crate) fn play(role: &[String]) {
    // Called on the main thread, whose end counts as the end of the process.
    prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    let content = Content {
        services: role[1].parse().unwrap(),
        instances: role[2].parse().unwrap(),
        srv: role[3].parse().unwrap(),
    };
    match &*role[0] {
        "echo" => echo(content),
        "handler" => handler::serve(content),
        other => panic!("no role {other}"),
    }
}

/// Returns each query, padded to the length of svcdns's response.
fn echo(content: Content) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    println!("listening on {}", socket.local_addr().unwrap());
    let mut batch = Batch::new(DATAGRAMS_PER_CALL);
    let mut responses = vec![[0; MAX_RESPONSE_BYTES]; DATAGRAMS_PER_CALL];
    let (mut sizes, mut to) =
        (Vec::with_capacity(DATAGRAMS_PER_CALL), Vec::with_capacity(DATAGRAMS_PER_CALL));
    loop {
        sizes.clear();
        to.clear();
        for (query, from) in batch.receive(&socket, true) {
            let response = &mut responses[to.len()];
            response[..query.len()].copy_from_slice(query);
            response[2] |= 0x80;
            sizes.push(queries::response_bytes_for(query, content));
            to.push(from);
        }
        let messages: Vec<&[u8]> =
            responses.iter().zip(&sizes).map(|(response, size)| &response[..*size]).collect();
        batch.send(&socket, &messages, &to);
    }
}
