//! The real program: servers and commands.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::process::{self, Process};
use super::{SOON, dns, eventually, free_address};

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_svcdns");

/// A running `svcdns serve` with its own state directory.
pub(crate) struct Svcdns {
    process: Process,
    /// The address of its UDP and TCP listeners.
    pub(crate) address: SocketAddr,
    state: TempDir,
}

impl Svcdns {
    /// Starts `svcdns serve` on a free port of 127.0.0.1 and waits until it listens.
    ///
    /// Without `--upstream` in `flags`, forwarding is off: no test may depend on the machine's
    /// resolver.
    pub(crate) fn serve<S: AsRef<str>>(flags: &[S]) -> Self {
        Self::serve_at((Ipv4Addr::LOCALHOST, 0).into(), flags)
    }

    /// Starts a server on this address.
    pub(crate) fn serve_at<S: AsRef<str>>(listen: SocketAddr, flags: &[S]) -> Self {
        Self::serve_with(listen, flags, |_| {})
    }

    /// Starts a server after a change to its command, such as another output.
    pub(crate) fn serve_with<S: AsRef<str>>(
        listen: SocketAddr,
        flags: &[S],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        Self::serve_in(tempfile::tempdir().unwrap(), listen, flags, change)
    }

    /// Starts a server in the state directory of an earlier one.
    pub(crate) fn serve_again<S: AsRef<str>>(state: TempDir, flags: &[S]) -> Self {
        Self::serve_in(state, (Ipv4Addr::LOCALHOST, 0).into(), flags, |_| {})
    }

    /// Starts a server like [`Self::serve_again`] that may open a file only if its mode allows it.
    ///
    /// Root could otherwise open any file.
    pub(crate) fn serve_unprivileged<S: AsRef<str>>(state: TempDir, flags: &[S]) -> Self {
        let mut command = command();
        if nix::unistd::geteuid().is_root() {
            command = wrapped("setpriv");
            command.args(["--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search"]);
            command.arg(PROGRAM);
        }
        Self::serve_by(command, state, (Ipv4Addr::LOCALHOST, 0).into(), flags, |_| {})
    }

    /// Starts a server in this state directory, after a change to its command.
    pub(crate) fn serve_in<S: AsRef<str>>(
        state: TempDir,
        listen: SocketAddr,
        flags: &[S],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        Self::serve_by(command(), state, listen, flags, change)
    }

    fn serve_by<S: AsRef<str>>(
        mut command: Command,
        state: TempDir,
        listen: SocketAddr,
        flags: &[S],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        // The kernel could give a port that it chooses to a client, too: svcdns shares its UDP port
        // among its sockets (SO_REUSEPORT), and dig allows sharing. Such a dig gets its own query.
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listen = if listen == any { free_address() } else { listen };
        command
            .arg("serve")
            .args(["--listen", &listen.to_string(), "--admin-listen", "off", "--state-dir"])
            .arg(state.path());
        if !flags.iter().any(|flag| flag.as_ref().starts_with("--upstream")) {
            command.args(["--upstream", "off"]);
        }
        command.args(flags.iter().map(AsRef::as_ref));
        let mut process = Process::start_with(&mut command, change);
        let port = eventually("svcdns serve to listen on UDP and TCP", SOON, || {
            assert!(process.ended().is_none(), "svcdns serve ended at once:\n{}", process.log());
            listening_port(process.pid(), listen.ip())
        });
        Self { process, address: SocketAddr::new(listen.ip(), port), state }
    }

    /// Returns the state directory, for commands.
    pub(crate) fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// Runs a command against this server.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        command().args(arguments).arg("--state-dir").arg(self.state.path()).output().unwrap()
    }

    /// Returns the log so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Sends a signal to the server.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Returns whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Kills the server; returns its state directory.
    pub(crate) fn kill(mut self) -> TempDir {
        self.process.kill();
        self.state
    }

    /// Stops the server with SIGTERM; fails the test unless it exits with 0.
    pub(crate) fn stop(self) {
        drop(self.stop_and_keep());
    }

    /// Stops the server like [`Self::stop`]; returns its state directory.
    pub(crate) fn stop_and_keep(mut self) -> TempDir {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait(SOON);
        assert!(
            status.success(),
            "svcdns serve ended with {status} on SIGTERM:\n{}",
            self.process.log()
        );
        self.state
    }

    /// Waits until the name has exactly these addresses, which must be sorted.
    pub(crate) fn wait_for(&self, name: &str, addresses: &[&str]) {
        let mut last = None;
        let wanted: Vec<IpAddr> =
            addresses.iter().map(|address| address.parse().unwrap()).collect();
        let what = format!("{name} to be {addresses:?}");
        eventually(&what, SOON, || {
            let answer = dns::addresses(self.address, name);
            if last.as_ref() != Some(&answer) {
                eprintln!("{name}: {answer:?}");
                last = Some(answer.clone());
            }
            (answer == Ok(wanted.clone())).then_some(())
        });
    }

    /// Waits until the response for the name has this code.
    pub(crate) fn wait_for_code(&self, name: &str, code: &str) {
        let what = format!("{name} to be {code}");
        eventually(&what, SOON, || (dns::code(self.address, name, dns::A) == code).then_some(()));
    }
}

/// Variables of systemd for a service, such as one that runs the tests.
const OF_A_SERVICE: [&str; 10] = [
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "NOTIFY_SOCKET",
    "INVOCATION_ID",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// Returns a command for the program that does not depend on the environment of the tests.
///
/// The command has no `SVCDNS_` variables, variables of a service, or ignored signals.
pub(crate) fn command() -> Command {
    wrapped(PROGRAM)
}

/// Returns such a command for another program, which runs svcdns.
fn wrapped(program: &str) -> Command {
    process::stop_ignoring_signals();
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("SVCDNS_") || OF_A_SERVICE.contains(&&*name_text) {
            command.env_remove(name);
        }
    }
    command
}

/// Returns the port on which a process has both a UDP and a listening TCP socket.
fn listening_port(pid: u32, address: IpAddr) -> Option<u16> {
    let inodes: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| {
            link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned)
        })
        .collect();
    let six = if address.is_ipv6() { "6" } else { "" };
    let ports = |protocol: &str, wanted: &str| -> Vec<u16> {
        let table = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/net/{protocol}{six}")))
            .unwrap_or_default();
        let rows = table.lines().skip(1).filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (host, port) = fields.get(1)?.split_once(':')?;
            let ours = *fields.get(3)? == wanted
                && host == kernel_form(address)
                && inodes.iter().any(|inode| inode == fields[9]);
            ours.then(|| u16::from_str_radix(port, 16).unwrap())
        });
        rows.collect()
    };
    // Socket states in these tables: 07 is an unconnected UDP socket, 0A a listening TCP socket.
    let udp = ports("udp", "07");
    ports("tcp", "0A").into_iter().find(|port| udp.contains(port))
}

/// Formats an address like `/proc/net/udp`: words in the machine's byte order.
fn kernel_form(address: IpAddr) -> String {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let words = bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
    words.fold(String::new(), |text, word| format!("{text}{word:08X}"))
}
