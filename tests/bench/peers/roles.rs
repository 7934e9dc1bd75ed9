//! What the benchmark runs of its own, each in a process: the ceiling, and the least that a server on hickory-server does.

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

/// Datagrams that the echo moves in one call: as svcdns.
const BATCH: usize = 32;

/// Longest answer of the echo.
const LONGEST: usize = 1232;

/// The command that starts this program again in a role.
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

/// Where a started role listens.
pub(crate) fn address(process: &mut Process) -> SocketAddr {
    eventually("the role to listen", SOON, || {
        assert!(process.ended().is_none(), "a role ended:\n{}", process.log());
        process.log().lines().find_map(|line| line.strip_prefix("listening on ")?.parse().ok())
    })
}

/// Plays a role until it is killed; it ends with who started it.
pub(crate) fn play(role: &[String]) {
    // From the main thread, which lives as long as the process.
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

/// Looks nothing up: the query goes back with as many bytes behind it as svcdns's answer has.
fn echo(content: Content) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    println!("listening on {}", socket.local_addr().unwrap());
    let mut batch = Batch::new(BATCH);
    let mut answers = vec![[0; LONGEST]; BATCH];
    let (mut sizes, mut to) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
    loop {
        sizes.clear();
        to.clear();
        for (query, from) in batch.receive(&socket, true) {
            let answer = &mut answers[to.len()];
            answer[..query.len()].copy_from_slice(query);
            answer[2] |= 0x80;
            sizes.push(queries::size_of_answer_to(query, content));
            to.push(from);
        }
        let messages: Vec<&[u8]> =
            answers.iter().zip(&sizes).map(|(answer, size)| &answer[..*size]).collect();
        batch.send(&socket, &messages, &to);
    }
}
