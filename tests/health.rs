//! The health of a server whose worker hangs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::files::Files;
use support::strace::can_trace;
use support::svcdns::Svcdns;
use support::{SOON, eventually};

/// Stops one thread of the server at its next receive call, until it is dropped.
struct Hang(Child);

impl Hang {
    /// Finds the thread of the first UDP worker, and attaches to it alone.
    fn of_first_worker(process: u32) -> Self {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let is_worker = |task: &fs::DirEntry| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "udp-0\n")
        };
        let worker = tasks.flatten().find(is_worker).unwrap().file_name();
        let mut strace = Command::new("strace");
        strace.args(["-e", "inject=recvfrom,recvmmsg:delay_enter=3600s"]);
        strace.arg("-p").arg(worker).args(["-o", "/dev/null"]);
        Self(strace.stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_worker_that_hangs_is_named_until_it_moves_again() {
    if !can_trace() {
        return support::skip(
            "a_worker_that_hangs_is_named_until_it_moves_again",
            "strace cannot trace",
        );
    }
    let files = Files::new(&[("default/default/hello.svc/latest/10.0.0.1:80", "{}")]);
    let server = Svcdns::serve(&["--registry", &files.url(), "--admin-listen", "127.0.0.1:0"]);
    server.wait_for("hello.svc", &["10.0.0.1"]);
    let output =
        |arguments: &[&str]| String::from_utf8_lossy(&server.run(arguments).stdout).into_owned();
    let status: Value = serde_json::from_str(&output(&["status", "--json"])).unwrap();
    let page = |path: &str| {
        let url = format!("http://{}{path}", status["admin"].as_str().unwrap());
        let curl = Command::new("curl").args(["-sS", "-w", "%{http_code}", &url]).output();
        String::from_utf8(curl.unwrap().stdout).unwrap()
    };
    assert_eq!(page("/livez"), "serving\n200");

    let hang = Hang::of_first_worker(server.pid());
    let sentence = format!("UDP worker 0 on {} has not moved for ", server.address);
    let found = eventually("a worker that hangs", SOON, || {
        Some(page("/livez")).filter(|page| page.ends_with("503"))
    });
    assert!(found.starts_with(&sentence) && found.lines().count() == 2, "{found}");
    let text = output(&["status"]);
    assert!(text.contains(&format!("\nnot serving: {sentence}")), "{text}");
    assert!(text.contains("; ready\n"), "its data and sockets are there: {text}");
    assert_eq!(page("/readyz"), "ready\n200");
    assert!(page("/metrics").contains("\nsvcdns_hanging_workers 1.0\n"));

    drop(hang);
    eventually("the worker to move", SOON, || (page("/livez") == "serving\n200").then_some(()));
    server.stop();
}
