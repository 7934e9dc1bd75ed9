//! The server behind all carriers, in a process of its own.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;

use svcdns::descriptors;

/// Size of a request and of its response, in bytes.
pub(crate) const MESSAGE_BYTES: usize = 128;
/// First byte of a request that is sent back.
pub(crate) const ECHO: u8 = b'E';
/// First byte of a request for a download, with its size in the next eight.
pub(crate) const DOWNLOAD: u8 = b'D';

/// Environment variable that makes this program the backend.
const ROLE: &str = "BRIDGE_BENCHMARK_BACKEND";

/// A running backend; it ends with this value.
pub(crate) struct Backend {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Backend {
    /// Starts this program as the backend.
    pub(crate) fn start() -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        let mut child = command.env(ROLE, "1").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().parse().unwrap() }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns whether this process is the backend.
pub(crate) fn is_backend() -> bool {
    env::var_os(ROLE).is_some()
}

/// Serves connections until this process is killed.
pub(crate) fn serve() {
    descriptors::raise_limit();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    for stream in listener.incoming().flatten() {
        stream.set_nodelay(true).unwrap();
        // Many idle connections need little stack.
        thread::Builder::new().stack_size(64 * 1024).spawn(move || answer(stream)).unwrap();
    }
}

/// Serves a connection: sends back requests, and sends downloads.
fn answer(mut stream: TcpStream) {
    let mut message = [0; MESSAGE_BYTES];
    while stream.read_exact(&mut message).is_ok() {
        if message[0] == ECHO {
            if stream.write_all(&message).is_err() {
                return;
            }
            continue;
        }
        let block = vec![b'x'; 256 * 1024];
        let mut left = u64::from_be_bytes(message[1..9].try_into().unwrap());
        while left > 0 {
            let bytes = usize::try_from(left.min(block.len() as u64)).unwrap();
            if stream.write_all(&block[..bytes]).is_err() {
                return;
            }
            left -= bytes as u64;
        }
    }
}
