//! Programs in many languages resolve names through svcdns.
//!
//! svcdns is the only name server of the machine. Each program looks up the same names, of a
//! service and of the Internet, fetches a page from each, and prints the results in the same form.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use support::files::Files;
use support::svcdns::Svcdns;
use support::upstream::{Record, Upstream};
use support::{netns, on_path, pages, skip};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// A service, an upstream's name, its alias, and two unknown names.
const NAMES: [&str; 5] =
    ["hello.svc", "www.example.test", "alias.example.test", "nothing.svc", "nothing.example.test"];

/// Lines that a program must print for [`NAMES`]; addresses are sorted.
const FOUND: [&str; 8] = [
    "hello.svc 10.9.0.5",
    "page of hello.svc",
    "www.example.test 10.9.0.5 fd00::5",
    "page of www.example.test",
    "alias.example.test 10.9.0.5 fd00::5",
    "page of alias.example.test",
    "nothing.svc none",
    "nothing.example.test none",
];

/// Runs `body` on such a machine, with web servers for all names.
fn on_a_machine(test: &str, body: impl FnOnce()) {
    netns::inside(test, "127.0.0.1", || {
        pages::serve_hosts((netns::ADDRESS, 80));
        pages::serve_hosts((netns::ADDRESS_V6, 80));
        let files = Files::new(&[(
            &format!("default/default/hello.svc/latest/{}:80", netns::ADDRESS),
            r#"{"protocol":"http"}"#,
        )]);
        let upstream = Upstream::start();
        upstream.put([
            Record::soa("example.test", 300, 30),
            Record::a("www.example.test", 300, netns::ADDRESS),
            Record::aaaa("www.example.test", 300, netns::ADDRESS_V6),
            Record::cname("alias.example.test", 300, "www.example.test"),
        ]);
        let flags = ["--registry", &files.url(), "--upstream", &upstream.flag()];
        let server = Svcdns::serve_at("127.0.0.1:53".parse().unwrap(), &flags);
        server.wait_for("hello.svc", &[netns::ADDRESS]);
        body();
        for name in upstream.names() {
            assert!(name.ends_with("example.test"), "{name} was forwarded");
        }
        server.stop();
    });
}

/// Runs a program, which must succeed, and returns its output.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Runs a program on [`NAMES`]; it must print [`FOUND`].
fn expect_right(command: &mut Command) {
    let text = output(command.args(NAMES));
    let found: Vec<String> = text.lines().map(sorted).collect();
    assert_eq!(found, FOUND, "{command:?}");
}

/// Returns a line with its addresses normalized, sorted, and without duplicates.
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
fn curl_resolves_served_and_forwarded_names() {
    on_a_machine("curl_resolves_served_and_forwarded_names", || {
        for name in &NAMES[..3] {
            assert_eq!(
                output(Command::new("curl").args([
                    "-sS",
                    "--max-time",
                    "20",
                    &format!("http://{name}/")
                ])),
                format!("page of {name}\n")
            );
        }
        for name in &NAMES[3..] {
            let output = Command::new("curl")
                .args(["-sS", "--max-time", "20", &format!("http://{name}/")])
                .output()
                .unwrap();
            assert_eq!(
                output.status.code(),
                Some(6),
                "could not resolve host: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    });
}

#[test]
fn getent_resolves_served_and_forwarded_names() {
    on_a_machine("getent_resolves_served_and_forwarded_names", || {
        for (name, found) in [(NAMES[0], FOUND[0]), (NAMES[1], FOUND[2]), (NAMES[2], FOUND[4])] {
            let text = output(Command::new("getent").args(["ahosts", name]));
            let addresses: Vec<&str> =
                text.lines().filter_map(|line| line.split_whitespace().next()).collect();
            assert_eq!(sorted(&format!("{name} {}", addresses.join(" "))), found);
        }
        for name in &NAMES[3..] {
            // 2: not found.
            assert_eq!(
                Command::new("getent").args(["ahosts", name]).output().unwrap().status.code(),
                Some(2),
                "{name}"
            );
        }
    });
}

#[test]
fn python_resolves_served_and_forwarded_names() {
    on_a_machine("python_resolves_served_and_forwarded_names", || {
        expect_right(Command::new("python3").arg(format!("{FOLDER}/lookup.py")));
    });
}

#[test]
fn node_resolves_served_and_forwarded_names() {
    on_a_machine("node_resolves_served_and_forwarded_names", || {
        expect_right(Command::new("node").arg(format!("{FOLDER}/lookup.js")));
    });
}

#[test]
fn java_resolves_served_and_forwarded_names() {
    const TEST: &str = "java_resolves_served_and_forwarded_names";
    if !on_path("java") || !on_path("javac") {
        return skip(TEST, "no java on PATH that runs a source file (a JDK)");
    }
    // -UsePerfData: no file in /tmp named by process id, which another namespace may have, too.
    on_a_machine(TEST, || {
        expect_right(
            Command::new("java").arg("-XX:-UsePerfData").arg(format!("{FOLDER}/Lookup.java")),
        );
    });
}

/// Go has a resolver of its own, and can use the C library's.
#[test]
fn go_resolves_served_and_forwarded_names_with_both_resolvers() {
    const TEST: &str = "go_resolves_served_and_forwarded_names_with_both_resolvers";
    if !on_path("go") {
        return skip(TEST, "no go on PATH, to build a program with");
    }
    on_a_machine(TEST, || {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("lookup");
        let source = format!("{FOLDER}/lookup.go");
        let mut build = Command::new("go");
        // A single file, outside any module.
        build
            .arg("build")
            .arg("-o")
            .arg(&program)
            .arg(source)
            .env("CGO_ENABLED", "1")
            .env("GOTOOLCHAIN", "local")
            .current_dir(&folder);
        output(&mut build);
        for resolver in ["go", "cgo"] {
            expect_right(Command::new(&program).env("GODEBUG", format!("netdns={resolver}")));
        }
    });
}

/// musl queries A and AAAA at once, and supports neither EDNS nor nsswitch.conf.
#[test]
fn musl_resolves_served_and_forwarded_names() {
    on_a_machine("musl_resolves_served_and_forwarded_names", || {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("lookup");
        output(
            Command::new("musl-gcc")
                .args(["-static", "-Wall", "-Werror", "-O1", "-o"])
                .arg(&program)
                .arg(format!("{FOLDER}/lookup.c")),
        );
        let binary = fs::read(&program).unwrap();
        assert!(!binary.windows(5).any(|bytes| bytes == b"GLIBC"), "not linked with musl");
        expect_right(&mut Command::new(&program));
    });
}
