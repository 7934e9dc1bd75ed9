//! The configuration and commands on the pages of docs/registries, run as they are written.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::etcd::Etcd;
use support::svcdns::{self, Svcdns};
#[cfg(feature = "zookeeper")]
use support::zookeeper::{ROOT, ZooKeeper, put_leaf};
use support::{SOON, eventually};

const ETCD_PAGE: &str = include_str!("../docs/registries/etcd.md");
#[cfg(feature = "zookeeper")]
const ZOOKEEPER_PAGE: &str = include_str!("../docs/registries/zookeeper.md");

/// Returns path and text of every page.
fn pages() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/registries");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Returns the blocks of code in this language, `""` for none.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut parts = page.split("```");
    parts.next();
    while let Some(block) = parts.next() {
        let (first, text) = block.split_once('\n').unwrap_or_default();
        if first == language {
            found.push(text);
        }
        parts.next();
    }
    found
}

#[test]
fn every_configuration_of_the_pages_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("svcdns.toml");
    let mut found = 0;
    for (path, page) in pages() {
        for text in blocks(&page, "toml") {
            fs::write(&file, text).unwrap();
            let output =
                svcdns::command().arg("check").arg("--config").arg(&file).output().unwrap();
            assert!(output.status.success(), "{}:\n{text}\n{output:?}", path.display());
            found += 1;
        }
        for line in blocks(&page, "").into_iter().flat_map(str::lines) {
            let Some(flags) = line.strip_prefix("svcdns serve ") else { continue };
            let flags = flags.trim_end_matches(" &").split_whitespace();
            let output = svcdns::command().arg("check").args(flags).output().unwrap();
            assert!(output.status.success(), "{}: {line}\n{output:?}", path.display());
            found += 1;
        }
    }
    assert!(found >= 4, "only {found} configurations were found in the pages");
}

#[test]
fn the_rights_of_the_page_suffice_for_etcd() {
    let mut etcd = Etcd::start();
    let commands = blocks(ETCD_PAGE, "")
        .into_iter()
        .find(|block| block.contains("etcdctl user add svcdns"))
        .expect("the commands that create a user");
    for line in commands.lines() {
        // etcdctl asks for the password in a terminal.
        let line = line.replace("user add svcdns", "user add svcdns:of-the-page");
        let arguments: Vec<_> = line.strip_prefix("etcdctl ").unwrap().split(' ').collect();
        etcd.ctl(&arguments);
    }
    etcd.enable_auth();
    for (head, address) in [("service", "10.0.0.1"), ("services", "10.0.0.2")] {
        etcd.put(&format!("/{head}/default/default/hello.svc/latest/{address}:80"), "{}");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    fs::write(&file, "of-the-page").unwrap();
    let login = ["--etcd-username", "svcdns", "--etcd-password-file", file.to_str().unwrap()];
    let url = etcd.url();
    let flags = [&["--registry", url.as_str()], &login[..]].concat();
    let server = Svcdns::serve(&flags);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    // No more than that: these rights do not suffice for `register`.
    let mut register = svcdns::command();
    register.arg("register").args(&flags).args(["legacy", "10.0.0.9:80"]);
    let output = register.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("permission denied"), "{error}");

    // The message that the page names, and what is answered meanwhile.
    etcd.ctl(&["role", "revoke-permission", "svcdns", "--prefix=true", "/services/"]);
    etcd.kill();
    etcd.start_all();
    let message = "cannot read /services/: permission denied";
    assert!(ETCD_PAGE.contains(message));
    eventually(message, SOON, || {
        let output = server.run(&["status"]);
        String::from_utf8_lossy(&output.stdout).contains(message).then_some(())
    });
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    server.stop();
}

#[test]
fn the_commands_of_the_page_change_the_password_of_etcd() {
    let rotation = blocks(ETCD_PAGE, "")
        .into_iter()
        .find(|block| block.contains("etcdctl user passwd svcdns"))
        .expect("the commands that change the password");
    let mut etcd = Etcd::start();
    etcd.add_reader("svcdns", "old", "/service");
    etcd.enable_auth();
    etcd.put("/service/default/default/hello.svc/latest/10.0.0.1:80", "{}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("etcd-password");
    fs::write(&file, "old").unwrap();
    let login = ["--etcd-username", "svcdns", "--etcd-password-file", file.to_str().unwrap()];
    let server = Svcdns::serve(&[&["--registry", etcd.url().as_str()], &login[..]].concat());
    server.wait_for("hello.svc", &["10.0.0.1"]);

    fs::write(directory.path().join("password.new"), "new").unwrap();
    let folder = directory.path().to_str().unwrap();
    for line in rotation.lines() {
        if line == "etcdctl user passwd svcdns" {
            etcd.set_password("svcdns", "new");
        } else {
            let line = line.replace("/etc/svcdns", folder);
            let shell = Command::new("sh").current_dir(folder).args(["-c", &line]).status();
            assert!(shell.unwrap().success(), "{line}");
        }
    }
    etcd.kill();
    etcd.start_all();
    etcd.put("/service/default/default/later.svc/latest/10.0.0.2:80", "{}");
    server.wait_for("later.svc", &["10.0.0.2"]);
    server.stop();
}

#[test]
#[cfg(feature = "zookeeper")]
fn the_rights_of_the_page_suffice_for_zookeeper() {
    let test = "the_rights_of_the_page_suffice_for_zookeeper";
    let Some((mut zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    let block = |text: &str| {
        let mut found = blocks(ZOOKEEPER_PAGE, "").into_iter();
        found.find(|block| block.contains(text)).unwrap_or_else(|| panic!("a block with {text}"))
    };
    let hashing = block("DigestAuthenticationProvider").replace("PASSWORD", "of-the-page");
    let output = Command::new("sh").args(["-c", &hashing]).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let hash = output.trim().strip_prefix("svcdns:of-the-page->svcdns:").expect(&output);
    zookeeper.cli(&block("setAcl -R").replace("HASH", hash));

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    fs::write(&file, "of-the-page").unwrap();
    let url = zookeeper.url();
    let file = file.to_str().unwrap();
    let login = ["--zookeeper-username", "svcdns", "--zookeeper-password-file", file];
    let flags = [&["--registry", url.as_str()], &login[..]].concat();
    let server = Svcdns::serve(&flags);
    server.wait_for("hello.svc", &["10.0.0.1"]);
    // No more than that: these rights do not suffice for `register`, and nobody else may read.
    let mut register = svcdns::command();
    register.arg("register").args(&flags).args(["legacy", "10.0.0.9:80"]);
    let output = register.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("permission denied"), "{error}");
    assert!(client.children(ROOT).is_err());

    // The password that is changed in the file first, and then in ZooKeeper.
    fs::write(file, "changed").unwrap();
    zookeeper.kill();
    zookeeper.start_all();
    let message = "permission denied";
    assert!(ZOOKEEPER_PAGE.contains(message));
    eventually(message, SOON, || {
        let output = server.run(&["status"]);
        String::from_utf8_lossy(&output.stdout).contains(message).then_some(())
    });
    server.wait_for("hello.svc", &["10.0.0.1"]);
    fs::write(file, "of-the-page").unwrap();
    eventually("the end of the refusal", SOON, || {
        let output = server.run(&["status"]);
        (!String::from_utf8_lossy(&output.stdout).contains(message)).then_some(())
    });
    server.stop();
}
