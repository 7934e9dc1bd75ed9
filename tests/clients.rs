//! A machine whose only name server is svcdns: programs of many languages find a service.
//!
//! Each of them looks up the same names, fetches their pages and prints what it found, in the same form.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;
use std::{fs, thread};

use support::files::Files;
use support::svcdns::Svcdns;
use support::{netns, on_path, seconds, skip};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// A service, and a name that nobody has.
const NAMES: [&str; 2] = ["hello.svc", "nothing.svc"];

/// What a program must say of them; addresses sorted.
const FOUND: [&str; 3] = ["hello.svc 10.9.0.5", "page of hello.svc", "nothing.svc none"];

/// Answers every connection with one page that says which Host was asked for.
fn serve_pages(address: &str) {
    let listener = TcpListener::bind((address, 80)).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || answer(&mut stream));
        }
    });
}

fn answer(stream: &mut TcpStream) {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|octets| octets == b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(length @ 1..) => request.extend(&part[..length]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let host = text.lines().find_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("host")));
    let page = format!("page of {}\n", host.map_or("nobody", |(_, host)| host));
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}", page.len());
}

/// Runs `body` on such a machine.
fn on_a_machine(test: &str, body: impl FnOnce()) {
    netns::inside(test, "127.0.0.1", || {
        serve_pages(netns::ADDRESS);
        serve_pages(netns::ADDRESS_V6);
        let files = Files::new(&[(&format!("default/default/hello.svc/latest/{}:80", netns::ADDRESS), r#"{"protocol":"http"}"#)]);
        let flags = ["--registry", &files.url()];
        let server = Svcdns::serve_at("127.0.0.1:53".parse().unwrap(), &flags);
        server.wait_for("hello.svc", &[netns::ADDRESS], seconds(30));
        body();
        server.stop();
    });
}

/// What a program prints; it must end well.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?} ended with {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs a program on the names; what it found must be right.
fn expect_right(command: &mut Command) {
    let text = output(command.args(NAMES));
    let found: Vec<String> = text.lines().map(sorted).collect();
    assert_eq!(found, FOUND, "{command:?}");
}

/// A line with its addresses sorted, each once and in one form.
fn sorted(line: &str) -> String {
    let (mut words, mut addresses) = (Vec::new(), BTreeSet::new());
    for word in line.split(' ') {
        match word.parse::<IpAddr>() {
            Ok(address) => drop(addresses.insert(address)),
            Err(_) => words.push(word.to_owned()),
        }
    }
    words.extend(addresses.iter().map(ToString::to_string));
    words.join(" ")
}

#[test]
fn curl_finds_a_service() {
    on_a_machine("curl_finds_a_service", || {
        for name in &NAMES[..1] {
            assert_eq!(
                output(Command::new("curl").args(["-sS", "--max-time", "20", &format!("http://{name}/")])),
                format!("page of {name}\n")
            );
        }
        for name in &NAMES[1..] {
            let output = Command::new("curl").args(["-sS", "--max-time", "20", &format!("http://{name}/")]).output().unwrap();
            assert_eq!(output.status.code(), Some(6), "could not resolve host: {}", String::from_utf8_lossy(&output.stderr));
        }
    });
}

#[test]
fn getent_finds_a_service() {
    on_a_machine("getent_finds_a_service", || {
        for (name, found) in NAMES.into_iter().zip(FOUND).take(1) {
            let text = output(Command::new("getent").args(["ahosts", name]));
            let addresses: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
            assert_eq!(sorted(&format!("{name} {}", addresses.join(" "))), found);
        }
        for name in &NAMES[1..] {
            // 2: not found.
            assert_eq!(Command::new("getent").args(["ahosts", name]).output().unwrap().status.code(), Some(2), "{name}");
        }
    });
}

#[test]
fn python_finds_a_service() {
    on_a_machine("python_finds_a_service", || expect_right(Command::new("python3").arg(format!("{FOLDER}/lookup.py"))));
}

#[test]
fn node_finds_a_service() {
    on_a_machine("node_finds_a_service", || expect_right(Command::new("node").arg(format!("{FOLDER}/lookup.js"))));
}

#[test]
fn java_finds_a_service() {
    const TEST: &str = "java_finds_a_service";
    if !on_path("java") || !on_path("javac") {
        return skip(TEST, "no java on PATH that runs a source file (a JDK)");
    }
    on_a_machine(TEST, || expect_right(Command::new("java").arg(format!("{FOLDER}/Lookup.java"))));
}

/// Go has a resolver of its own, and can use the C library's.
#[test]
fn go_finds_a_service_by_both_resolvers() {
    const TEST: &str = "go_finds_a_service_by_both_resolvers";
    if !on_path("go") {
        return skip(TEST, "no go on PATH, to build a program with");
    }
    on_a_machine(TEST, || {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("lookup");
        let source = format!("{FOLDER}/lookup.go");
        let mut build = Command::new("go");
        // Of one file, outside any module.
        build.arg("build").arg("-o").arg(&program).arg(source).env("CGO_ENABLED", "1").env("GOTOOLCHAIN", "local").current_dir(&folder);
        output(&mut build);
        for resolver in ["go", "cgo"] {
            expect_right(Command::new(&program).env("GODEBUG", format!("netdns={resolver}")));
        }
    });
}

/// musl asks for both families at once and knows neither EDNS nor nsswitch.conf.
#[test]
fn a_program_on_musl_finds_a_service() {
    on_a_machine("a_program_on_musl_finds_a_service", || {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("lookup");
        output(Command::new("musl-gcc").args(["-static", "-Wall", "-Werror", "-O1", "-o"]).arg(&program).arg(format!("{FOLDER}/lookup.c")));
        let octets = fs::read(&program).unwrap();
        assert!(!octets.windows(5).any(|part| part == b"GLIBC"), "not linked with musl");
        expect_right(&mut Command::new(&program));
    });
}
