//! `svcdns run` resolves names for one command and changes nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use nix::sys::signal::Signal;

use support::files::Files;
use support::process::Process;
use support::svcdns::{self, Svcdns};
use support::{SOON, eventually, machine, netns};

const HELLO: &str = "default/default/hello.svc/latest/10.9.0.5:80";

/// The address of the server under test.
const SERVER: &str = "127.0.0.55";

/// An address without a server.
const NOBODY: &str = "127.0.0.99";

fn serve(files: &Files) -> Svcdns {
    let server = Svcdns::serve_at(
        format!("{SERVER}:53").parse().unwrap(),
        &["--registry", &files.url(), "--upstream", "off"],
    );
    server.wait_for("hello.svc", &["10.9.0.5"]);
    server
}

/// Returns `svcdns run FLAGS -- WORDS`, for the server's state directory.
fn command(server: &Svcdns, flags: &[&str], words: &[&str]) -> Command {
    let mut command = svcdns::command();
    command
        .arg("--state-dir")
        .arg(server.state_dir())
        .arg("run")
        .args(flags)
        .arg("--")
        .args(words)
        .stdin(Stdio::null());
    command
}

fn run(server: &Svcdns, flags: &[&str], words: &[&str]) -> Output {
    command(server, flags, words).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command, which must succeed, and returns its output.
fn output_of(server: &Svcdns, flags: &[&str], words: &[&str]) -> String {
    let output = run(server, flags, words);
    assert!(
        output.status.success(),
        "{words:?}: {}{}{}",
        output.status,
        stdout(&output),
        stderr(&output)
    );
    stdout(&output)
}

/// Resolves a name outside `svcdns run`, and returns its first address.
fn resolve_outside(name: &str) -> Option<String> {
    let output = Command::new("getent").args(["hosts", name]).output().unwrap();
    output.status.success().then(|| stdout(&output).split_whitespace().next().unwrap().to_owned())
}

/// Returns the state outside that must not change: inodes, files and mounts.
fn machine_state() -> (Vec<(u64, Vec<u8>)>, String) {
    let file = |path: &str| (fs::metadata(path).unwrap().ino(), fs::read(path).unwrap());
    (
        vec![file("/etc/resolv.conf"), file("/etc/nsswitch.conf")],
        fs::read_to_string("/proc/self/mountinfo").unwrap(),
    )
}

#[test]
fn the_command_finds_services_and_the_machine_is_unchanged() {
    netns::inside("the_command_finds_services_and_the_machine_is_unchanged", NOBODY, || {
        let files = Files::new(&[(HELLO, "{}")]);
        let server = serve(&files);
        let before = machine_state();
        assert_eq!(resolve_outside("hello.svc"), None);

        let page = std::net::TcpListener::bind((netns::ADDRESS, 80)).unwrap();
        thread::spawn(move || {
            for stream in page.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n",
                );
            }
        });
        assert_eq!(output_of(&server, &[], &["curl", "-sS", "http://hello.svc/"]), "hello\n");
        assert!(
            output_of(&server, &[], &["getent", "ahosts", "hello.svc"]).starts_with("10.9.0.5")
        );
        let python = "import socket; print(socket.getaddrinfo('hello.svc', 80)[0][4][0])";
        assert_eq!(output_of(&server, &[], &["python3", "-c", python]), "10.9.0.5\n");

        // The server refuses other names, so the machine's own name server follows it.
        let conf = output_of(&server, &[], &["cat", "/etc/resolv.conf"]);
        let lines: Vec<&str> = conf.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                format!("nameserver {SERVER}"),
                format!("nameserver {NOBODY}"),
                "options timeout:6 attempts:3".to_owned()
            ]
        );
        // Short names resolve only with --search.
        assert!(!run(&server, &[], &["getent", "hosts", "hello"]).status.success());
        assert!(
            output_of(&server, &["--search"], &["getent", "hosts", "hello"])
                .starts_with("10.9.0.5")
        );
        // With the server's address instead of a state directory.
        let mut named = svcdns::command();
        named.args(["run", "--server", SERVER, "--", "cat", "/etc/resolv.conf"]);
        assert_eq!(stdout(&named.output().unwrap()), conf);
        let mut named = svcdns::command();
        named.args(["run", "--server", SERVER, "--search", "--", "getent", "hosts", "hello"]);
        assert!(stdout(&named.output().unwrap()).starts_with("10.9.0.5"));

        // Nothing changes outside while a command runs, nor after it.
        let mut sleeper = Process::start(&mut command(
            &server,
            &[],
            &["sh", "-c", "getent hosts hello.svc; exec sleep 1000"],
        ));
        eventually("the command to have found the service", SOON, || {
            sleeper.log().contains("10.9.0.5").then_some(())
        });
        assert_eq!(resolve_outside("hello.svc"), None);
        assert!(machine_state() == before, "something changed outside");
        assert_eq!(sleeper.terminate().signal(), Some(Signal::SIGTERM as i32));
        assert!(machine_state() == before, "something changed outside");
        server.stop();
    });
}

#[test]
fn names_that_svcdns_refuses_are_resolved_by_the_machines_name_server() {
    netns::inside(
        "names_that_svcdns_refuses_are_resolved_by_the_machines_name_server",
        NOBODY,
        || {
            let files = Files::new(&[
                (HELLO, "{}"),
                ("default/default/web.elsewhere/latest/10.9.0.6:80", "{}"),
            ]);
            let server = serve(&files);
            let other = Svcdns::serve_at(
                format!("{NOBODY}:53").parse().unwrap(),
                &["--registry", &files.url(), "--upstream", "off", "--zone", "elsewhere"],
            );
            other.wait_for("web.elsewhere", &["10.9.0.6"]);
            let found = output_of(
                &server,
                &[],
                &["sh", "-c", "getent hosts hello.svc && getent hosts web.elsewhere"],
            );
            assert!(found.contains("10.9.0.5") && found.contains("10.9.0.6"), "{found}");
        },
    );
}

#[test]
fn a_forwarding_server_is_the_only_name_server_even_if_its_upstream_refuses() {
    netns::inside(
        "a_forwarding_server_is_the_only_name_server_even_if_its_upstream_refuses",
        NOBODY,
        || {
            let files = Files::new(&[(HELLO, "{}")]);
            // This server refuses names outside its zone, with the EDE of a svcdns
            // that does not forward.
            let upstream = Svcdns::serve(&[
                "--registry",
                &files.url(),
                "--upstream",
                "off",
                "--zone",
                "elsewhere",
            ]);
            let at = format!("{SERVER}:53").parse().unwrap();
            let server = Svcdns::serve_at(
                at,
                &["--registry", &files.url(), "--upstream", &upstream.address.to_string()],
            );
            server.wait_for("hello.svc", &["10.9.0.5"]);
            let refusal = server.run(&["resolve", "www.example."]);
            assert!(stderr(&refusal).contains("not authoritative (20)"), "{}", stderr(&refusal));

            let servers = |text: &str| {
                text.lines()
                    .filter(|line| line.starts_with("nameserver "))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            let alone = [format!("nameserver {SERVER}")];
            assert_eq!(servers(&output_of(&server, &[], &["cat", "/etc/resolv.conf"])), alone);
            let named = svcdns::command()
                .args(["run", "--server", SERVER, "--", "cat", "/etc/resolv.conf"])
                .output()
                .unwrap();
            assert_eq!(servers(&stdout(&named)), alone, "{}", stderr(&named));
        },
    );
}

#[test]
fn run_ends_with_the_exit_code_or_signal_of_the_command() {
    netns::inside("run_ends_with_the_exit_code_or_signal_of_the_command", NOBODY, || {
        let files = Files::new(&[(HELLO, "{}")]);
        let server = serve(&files);
        assert_eq!(run(&server, &[], &["sh", "-c", "exit 7"]).status.code(), Some(7));
        assert_eq!(
            run(&server, &[], &["sh", "-c", "kill -KILL $$"]).status.signal(),
            Some(Signal::SIGKILL as i32)
        );
        let missing = run(&server, &[], &["/nonexistent/program"]);
        assert_eq!(missing.status.code(), Some(127), "{}", stderr(&missing));
        assert!(
            stderr(&missing).contains("cannot run /nonexistent/program"),
            "{}",
            stderr(&missing)
        );
        assert_eq!(run(&server, &[], &["/etc/passwd"]).status.code(), Some(126));
        // SIGPIPE is not ignored: writing to a closed pipe ends the command as usual.
        let piped = output_of(&server, &[], &["sh", "-c", "grep SigIgn /proc/self/status"]);
        let mask = u64::from_str_radix(piped.split_whitespace().nth(1).unwrap(), 16).unwrap();
        assert_eq!(mask & 1 << (Signal::SIGPIPE as i32 - 1), 0, "{piped}");

        // Signals reach the command: `svcdns run` replaced itself with it.
        for (signal, name) in [
            (Signal::SIGTERM, "TERM"),
            (Signal::SIGINT, "INT"),
            (Signal::SIGHUP, "HUP"),
            (Signal::SIGUSR1, "USR1"),
        ] {
            let script = format!(
                "trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.05; done"
            );
            let mut process = Process::start(&mut command(&server, &[], &["sh", "-c", &script]));
            eventually("the command to be ready", SOON, || {
                process.log().contains("ready").then_some(())
            });
            process.signal(signal);
            assert_eq!(process.wait(SOON).code(), Some(9), "{}", process.log());
            assert!(process.log().contains(&format!("got {name}")), "{}", process.log());
        }

        // The command has our standard input.
        let mut child = command(&server, &[], &["cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"through\n").unwrap();
        assert_eq!(stdout(&child.wait_with_output().unwrap()), "through\n");
    });
}

#[test]
fn the_command_has_the_terminal_and_receives_its_signals() {
    // Runs a shell on a new terminal: it must see the terminal's size, and Ctrl-C.
    const PYTHON: &str = r"
import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 33, 77, 0, 0))
    os.execvp(sys.argv[1], sys.argv[1:])
seen = b''
while b'ready' not in seen:
    seen += os.read(terminal, 1024)
os.write(terminal, b'\x03')
while True:
    try:
        data = os.read(terminal, 1024)
    except OSError:
        break
    if not data:
        break
    seen += data
print(seen.decode().replace('\r', ''), 'code', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    netns::inside("the_command_has_the_terminal_and_receives_its_signals", NOBODY, || {
        let files = Files::new(&[(HELLO, "{}")]);
        let server = serve(&files);
        let script = "trap 'echo interrupted; exit 5' INT; \
                      test -t 0 && test -t 1 && stty size && echo ready; \
                      while :; do sleep 0.05; done";
        let ran = command(&server, &[], &["sh", "-c", script]);
        let mut terminal = Command::new("timeout");
        terminal.args(["60", "python3", "-c", PYTHON]).arg(ran.get_program()).args(ran.get_args());
        let output = terminal.output().unwrap();
        let text = stdout(&output);
        assert!(
            text.contains("33 77") && text.contains("interrupted") && text.contains("code 5"),
            "{text}{}",
            stderr(&output)
        );
    });
}

#[test]
fn run_requires_no_privileges() {
    const TEST: &str = "run_requires_no_privileges";
    netns::inside(TEST, NOBODY, || {
        // A copy of the program that every user may read.
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = folder.path().join("svcdns");
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), &program).unwrap();
        let nobody = |words: &[&str]| {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .args(words)
                .env_remove("XDG_RUNTIME_DIR");
            command.current_dir("/").output().unwrap()
        };
        let probe = nobody(&["unshare", "--user", "--mount", "true"]);
        if !probe.status.success() {
            return support::skip(
                TEST,
                &format!("no user namespace for an ordinary user: {}", stderr(&probe).trim()),
            );
        }
        let files = Files::new(&[(HELLO, "{}")]);
        let server = serve(&files);
        fs::set_permissions(server.state_dir(), fs::Permissions::from_mode(0o755)).unwrap();
        let before = machine_state();
        let (program, state) = (program.to_str().unwrap(), server.state_dir().to_str().unwrap());
        let script = "getent hosts hello.svc; id -u; id -g; \
                      grep -E 'Cap(Prm|Eff|Inh|Amb)' /proc/self/status; exit 3";
        let output = nobody(&[program, "--state-dir", state, "run", "--", "sh", "-c", script]);
        let text = stdout(&output);
        assert_eq!(output.status.code(), Some(3), "{text}{}", stderr(&output));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("10.9.0.5"), "{text}");
        assert_eq!(lines[1..3], ["65534", "65534"]);
        assert_eq!(lines.len(), 7, "{text}");
        assert!(
            lines[3..].iter().all(|line| line.ends_with("0000000000000000")),
            "the command has capabilities: {text}"
        );
        assert!(machine_state() == before);

        // Only root may run a command as another user.
        let output =
            nobody(&[program, "--state-dir", state, "run", "--user", "root", "--", "true"]);
        assert_eq!(output.status.code(), Some(125));
        assert!(stderr(&output).contains("--user is for root"), "{}", stderr(&output));
        let text = output_of(
            &server,
            &["--user", "nobody"],
            &["sh", "-c", "id -u; id -G; echo $USER; getent hosts hello.svc"],
        );
        assert!(text.starts_with("65534\n65534\nnobody\n10.9.0.5"), "{text}");
        let unknown = run(&server, &["--user", "no-such-user"], &["true"]);
        assert_eq!(
            (unknown.status.code(), stderr(&unknown).contains("there is no user \"no-such-user\"")),
            (Some(125), true)
        );

        // A changed root allows no user namespace (user_namespaces(7)): the error suggests sudo.
        let root = netns::minimal_root();
        fs::copy(program, root.join("svcdns")).unwrap();
        let words = [
            "--userspec=65534:65534",
            root.to_str().unwrap(),
            "/svcdns",
            "run",
            "--server",
            SERVER,
            "--",
            "echo",
            "a b",
        ];
        let output = Command::new("chroot").args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{}", stdout(&output));
        let message = stderr(&output);
        assert!(
            message.contains("does not let an ordinary user create a mount namespace"),
            "{message}"
        );
        assert!(message.contains("sudo svcdns run --user nobody -- echo 'a b'"), "{message}");
    });
}

#[test]
fn root_without_cap_sys_admin_gets_an_explanation() {
    netns::inside("root_without_cap_sys_admin_gets_an_explanation", NOBODY, || {
        let files = Files::new(&[(HELLO, "{}")]);
        let server = serve(&files);
        let ran = command(&server, &[], &["true"]);
        let mut capped = Command::new("setpriv");
        capped
            .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"])
            .arg(ran.get_program())
            .args(ran.get_args());
        let output = capped.output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
        assert!(stderr(&output).contains("a container needs CAP_SYS_ADMIN"), "{}", stderr(&output));
    });
}

#[test]
fn run_works_with_every_kind_of_resolv_conf() {
    netns::inside("run_works_with_every_kind_of_resolv_conf", NOBODY, || {
        let files = Files::new(&[(HELLO, "{}")]);
        let server = serve(&files);
        netns::mount_etc_copy();
        netns::run("mount", &["-t", "tmpfs", "-o", "mode=755", "none", "/run"]);
        let conf = Path::new("/etc/resolv.conf");
        let found = |what: &str| {
            let entries = fs::read_dir("/etc").unwrap().count();
            let text = output_of(
                &server,
                &[],
                &[
                    "sh",
                    "-c",
                    "getent hosts hello.svc && cat /etc/resolv.conf && ls -a /etc | wc -l && \
                     cat /etc/passwd",
                ],
            );
            assert!(text.starts_with("10.9.0.5"), "{what}: {text}");
            assert!(
                text.contains(&format!("nameserver {SERVER}\n")) && text.contains("root:"),
                "{what}: {text}"
            );
            assert_eq!(fs::read_dir("/etc").unwrap().count(), entries, "{what}");
        };
        let link = |to: &str| {
            let _ = fs::remove_file(conf);
            symlink(to, conf).unwrap();
        };
        found("a file");

        fs::remove_file(conf).unwrap();
        fs::write("/etc/existing", "").unwrap();
        found("missing");
        assert!(!conf.exists());
        // Existing files can be changed; new ones cannot be added, because they would be lost.
        let script = "echo kept >> /etc/existing; touch /etc/new-file || echo refused";
        assert_eq!(output_of(&server, &[], &["sh", "-c", script]), "refused\n");
        assert!(fs::read_to_string("/etc/existing").unwrap() == "kept\n");

        link("../run/nowhere/resolv.conf");
        found("a dangling link");
        assert_eq!(fs::read_link(conf).unwrap(), Path::new("../run/nowhere/resolv.conf"));
        link("resolv.conf");
        found("a link to itself");
        link("/dev/null");
        found("a device");
        assert_eq!(output_of(&server, &[], &["cat", "/dev/null"]), "");
        fs::remove_file(conf).unwrap();
        fs::create_dir(conf).unwrap();
        found("a directory");
        fs::remove_dir(conf).unwrap();
        fs::write("/etc/nsswitch.conf", "hosts: files resolve\n").unwrap();
        found("missing, with another nsswitch.conf");
        fs::write("/etc/nsswitch.conf", "hosts: files dns\n").unwrap();

        // A container's resolv.conf after its engine replaced the file outside: still mounted here,
        // but removed there.
        let engines = tempfile::NamedTempFile::new().unwrap();
        fs::write(engines.path(), format!("nameserver {NOBODY}\nsearch b.example\n")).unwrap();
        fs::write(conf, "").unwrap();
        netns::run("mount", &["--bind", engines.path().to_str().unwrap(), "/etc/resolv.conf"]);
        drop(engines);
        found("a mount of a file that was removed");
        assert!(output_of(&server, &[], &["cat", "/etc/resolv.conf"]).contains("search b.example"));
        netns::run("umount", &["/etc/resolv.conf"]);

        fs::create_dir_all("/run/manager").unwrap();
        fs::write("/run/manager/resolv.conf", format!("nameserver {NOBODY}\nsearch a.example\n"))
            .unwrap();
        link("../run/manager/resolv.conf");
        found("a link");
        assert!(output_of(&server, &[], &["cat", "/etc/resolv.conf"]).contains("search a.example"));

        // systemd-resolved replaces its file at every change; the command must not notice.
        fs::create_dir_all("/run/systemd/resolve").unwrap();
        let stub = "/run/systemd/resolve/stub-resolv.conf";
        fs::write(stub, format!("nameserver {NOBODY}\n")).unwrap();
        link("../run/systemd/resolve/stub-resolv.conf");
        found("systemd-resolved's");
        let mut child = command(
            &server,
            &[],
            &["sh", "-c", "echo ready; read line; getent hosts hello.svc; ls /run/systemd/resolve"],
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        fs::write("/run/systemd/resolve/new", "nameserver 192.0.2.1\n").unwrap();
        fs::rename("/run/systemd/resolve/new", stub).unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(
            rest.starts_with("10.9.0.5") && rest.ends_with("resolv.conf\nstub-resolv.conf\n"),
            "{rest}"
        );
    });
}

/// Imitates a systemd-resolved that resolves every name to 192.0.2.66.
///
/// The protocol of nss-resolve is Varlink: JSON messages that end with a NUL byte.
fn serve_wrong_addresses(socket: &Path) {
    const NO_RECORD: &str =
        r#"{"error":"io.systemd.Resolve.NoSuchResourceRecord","parameters":{}}"#;
    const WRONG_ADDRESS: &str = r#"{"parameters":{
        "addresses":[{"ifindex":1,"family":2,"address":[192,0,2,66]}],
        "name":"hello.svc","flags":1}}"#;
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut request = Vec::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while reader.read_until(0, &mut request).is_ok_and(|length| length > 0) {
                    let ipv6 = String::from_utf8_lossy(&request).contains(r#""family":10"#);
                    let reply = if ipv6 { NO_RECORD } else { WRONG_ADDRESS };
                    let _ = stream.write_all(format!("{reply}\0").as_bytes());
                    request.clear();
                }
            });
        }
    });
}

#[test]
fn run_bypasses_nss_resolve() {
    const TEST: &str = "run_bypasses_nss_resolve";
    let Some(tree) = machine::unpacked(TEST, &["libnss-resolve"]) else { return };
    netns::inside(TEST, NOBODY, || {
        let files = Files::new(&[(HELLO, "{}")]);
        let server = serve(&files);
        netns::mount_tmpfs("/run");
        fs::create_dir_all("/run/systemd/resolve").unwrap();
        serve_wrong_addresses(Path::new("/run/systemd/resolve/io.systemd.Resolve"));
        let libraries = machine::libraries(&tree);
        let getent = |command: &mut Command| {
            let output = command.env("LD_LIBRARY_PATH", &libraries).output().unwrap();
            stdout(&output).split_whitespace().next().unwrap_or_default().to_owned()
        };
        for line in [
            "hosts: mymachines resolve [!UNAVAIL=return] files myhostname dns",
            "hosts: files resolve",
            "hosts: resolve",
        ] {
            netns::mount_file("/etc/nsswitch.conf", &format!("passwd: files\n{line}\n"));
            assert_eq!(
                getent(Command::new("getent").args(["hosts", "hello.svc"])),
                "192.0.2.66",
                "{line}: programs outside must get the wrong address"
            );
            assert_eq!(
                getent(&mut command(&server, &[], &["getent", "hosts", "hello.svc"])),
                "10.9.0.5",
                "{line}"
            );
            let switch = output_of(&server, &[], &["cat", "/etc/nsswitch.conf"]);
            assert!(
                switch.starts_with("passwd: files\n") && !switch.contains("resolve"),
                "{switch}"
            );
        }
        // For a system whose line stays unchanged, the socket is hidden, too.
        assert_eq!(output_of(&server, &[], &["ls", "/run/systemd/resolve"]), "");
    });
}

#[test]
fn run_bypasses_nscd() {
    const TEST: &str = "run_bypasses_nscd";
    let Some(tree) = machine::unpacked(TEST, &["nscd"]) else { return };
    netns::inside(TEST, NOBODY, || {
        let files = Files::new(&[(HELLO, "{}")]);
        let server = serve(&files);
        let wrong = Files::new(&[("default/default/hello.svc/latest/192.0.2.66:80", "{}")]);
        let other = Svcdns::serve_at(
            format!("{NOBODY}:53").parse().unwrap(),
            &["--registry", &wrong.url(), "--upstream", "off"],
        );
        other.wait_for("hello.svc", &["192.0.2.66"]);
        netns::mount_tmpfs("/run");
        netns::mount_tmpfs("/var/cache");
        fs::create_dir_all("/run/nscd").unwrap();
        fs::create_dir_all("/var/cache/nscd").unwrap();
        let conf = tempfile::NamedTempFile::new().unwrap();
        fs::write(conf.path(), "enable-cache hosts yes\npositive-time-to-live hosts 600\n")
            .unwrap();
        let nscd = Process::start(
            Command::new(tree.join("usr/sbin/nscd")).arg("--foreground").arg("-f").arg(conf.path()),
        );
        eventually("nscd to listen", SOON, || Path::new("/run/nscd/socket").exists().then_some(()));
        assert_eq!(resolve_outside("hello.svc").as_deref(), Some("192.0.2.66"), "{}", nscd.log());
        drop(other);
        eventually("nscd to answer from its cache, without a name server", SOON, || {
            (resolve_outside("hello.svc").as_deref() == Some("192.0.2.66")).then_some(())
        });
        assert!(output_of(&server, &[], &["getent", "hosts", "hello.svc"]).starts_with("10.9.0.5"));
        assert_eq!(
            resolve_outside("hello.svc").as_deref(),
            Some("192.0.2.66"),
            "nscd outside has changed"
        );
    });
}

#[test]
fn without_a_server_at_port_53_the_error_suggests_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let mut none = svcdns::command();
    let output =
        none.arg("--state-dir").arg(folder.path()).args(["run", "--", "true"]).output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(125), "{message}");
    assert!(
        message.contains("no running svcdns was found")
            && message.contains("sudo svcdns serve --listen 127.0.0."),
        "{message}"
    );

    let files = Files::new(&[(HELLO, "{}")]);
    let server = Svcdns::serve(&["--registry", &files.url()]);
    let output = run(&server, &[], &["true"]);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(125), "{message}");
    let only = format!("the running svcdns listens on {} only", server.address);
    assert!(
        message.contains(&only) && message.contains("sudo svcdns serve --listen 127.0.0."),
        "{message}"
    );

    // A server address where nothing listens.
    let output =
        svcdns::command().args(["run", "--server", "127.77.5.3", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("no DNS server answers at 127.77.5.3:53"),
        "{}",
        stderr(&output)
    );

    let usage = svcdns::command().args(["run"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(64), "{}", stderr(&usage));
}
