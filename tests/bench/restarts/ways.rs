//! The ways in which a server changes under load.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use super::Way;
use super::support::process::Process;
use super::support::reloading::Reloading;
use super::support::{SOON, dns, eventually, free_address, svcdns};
use super::world::{Variant, World};

/// Descriptors for UDP that the program of the socket unit holds.
const UDP_SOCKETS: &str = "4";

/// Restarts of a server whose sockets another program holds, as systemd does.
pub(crate) struct Restarts {
    address: SocketAddr,
    program: Child,
    commands: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    _folder: TempDir,
}

/// Take-overs of one server by the next.
pub(crate) struct TakeOvers {
    address: SocketAddr,
    server: Process,
    folder: TempDir,
}

/// Reloads of one server.
pub(crate) struct Reloads {
    server: Reloading,
    variant: Variant,
}

/// Returns the command of a server with this file in its folder.
fn serve(folder: &TempDir, text: &str) -> Command {
    let file = folder.path().join("svcdns.toml");
    fs::write(&file, text).unwrap();
    let mut command = svcdns::command();
    command.args(["serve", "--config"]).arg(file);
    command.arg("--state-dir").arg(folder.path().join("state"));
    command
}

/// Waits until the server has read its registry.
fn wait_for_answers(address: SocketAddr) {
    eventually("the server to answer", SOON, || dns::addresses(address, "s0.svc").ok());
}

impl Way for Restarts {
    const EVENTS: &'static str = "restarts";

    fn start(world: &World) -> Self {
        let (address, folder) = (free_address(), tempfile::tempdir().unwrap());
        let server = serve(&folder, &world.configuration(address, Variant::default()));
        let mut program = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/activator.py"))
            .args([&address.to_string(), UDP_SOCKETS, "dns"])
            .arg(server.get_program())
            .args(server.get_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let replies = BufReader::new(program.stdout.take().unwrap());
        let commands = program.stdin.take();
        let mut way = Self { address, program, commands, replies, _folder: folder };
        way.tell("start");
        wait_for_answers(address);
        way
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn act(&mut self, _: &World, _: u32) {
        self.tell("terminate");
        self.tell("start");
    }
}

impl Restarts {
    /// Tells the program what to do, and waits until it is done.
    fn tell(&mut self, command: &str) {
        writeln!(self.commands.as_mut().unwrap(), "{command}").unwrap();
        let mut reply = String::new();
        self.replies.read_line(&mut reply).unwrap();
        assert!(!reply.is_empty(), "the program has ended");
    }
}

impl Drop for Restarts {
    fn drop(&mut self) {
        // The end of its input ends the program, and with it the server.
        self.commands = None;
        let _ = self.program.wait();
    }
}

impl Way for TakeOvers {
    const EVENTS: &'static str = "take-overs";

    fn start(world: &World) -> Self {
        let (address, folder) = (free_address(), tempfile::tempdir().unwrap());
        let text = world.configuration(address, Variant::default());
        let server = Process::start(&mut serve(&folder, &text));
        wait_for_answers(address);
        Self { address, server, folder }
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn act(&mut self, world: &World, _: u32) {
        let text = world.configuration(self.address, Variant::default());
        let mut successor = Process::start(serve(&self.folder, &text).arg("--take-over"));
        let status = eventually("the end of the old server", SOON, || {
            assert!(successor.ended().is_none(), "{}", successor.log());
            self.server.ended()
        });
        assert!(status.success(), "{}", self.server.log());
        self.server = successor;
    }
}

impl Way for Reloads {
    const EVENTS: &'static str = "reloads";

    fn start(world: &World) -> Self {
        let (address, variant) = (free_address(), Variant::default());
        let server = Reloading::start(address, &world.configuration(address, variant));
        wait_for_answers(address);
        Self { server, variant }
    }

    fn address(&self) -> SocketAddr {
        self.server.address
    }

    fn act(&mut self, world: &World, number: u32) {
        let variant = &mut self.variant;
        match number % 10 {
            0 => variant.ttl = "7s",
            1 => variant.has_second_registry = true,
            2 => variant.has_second_address = true,
            3 => {
                let broken = world.configuration(self.server.address, *variant) + "broken";
                let output = self.server.reload(&broken);
                assert_eq!(output.status.code(), Some(1), "{output:?}");
                return;
            }
            4 => variant.zones = "'svc', 'internal'",
            5 => variant.has_second_registry = false,
            6 => variant.has_second_address = false,
            7 => variant.zones = "'svc'",
            8 => variant.order = "fastest",
            _ => variant.log = "debug",
        }
        let text = world.configuration(self.server.address, *variant);
        assert!(!self.server.reload_lines(&text).is_empty());
    }
}
