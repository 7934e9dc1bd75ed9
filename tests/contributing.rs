//! The make targets, scripts and test programs named in the contributors' pages exist.
#![allow(clippy::unwrap_used, reason = "a test that cannot read the pages must fail")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const PAGE: &str = include_str!("../docs/contributing.md");
const MAKEFILE: &str = include_str!("../Makefile");

/// Returns the targets that `make help` lists.
fn make_targets() -> BTreeSet<&'static str> {
    MAKEFILE
        .lines()
        .filter(|line| line.contains(": ") && line.contains("## "))
        .filter_map(|line| line.split(':').next())
        .collect()
}

/// Returns path and text of README.md and of all pages below docs/.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Returns the code of a page: lines of blocks, and spans in backticks.
fn code(page: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut in_block = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.push(line);
        } else {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found
}

fn is_script(word: &str) -> bool {
    Path::new(word).extension().is_some_and(|extension| extension == "sh")
}

/// Returns the target of a command that runs `make`.
///
/// The command may run `make` through fresh-machine.sh.
fn target_of(code: &str) -> Option<&str> {
    let mut words = code
        .split_whitespace()
        .skip_while(|word| *word == "sudo" || word.starts_with("--") || is_script(word));
    (words.next()? == "make").then(|| words.next()).flatten()
}

#[test]
fn the_page_lists_every_make_target_and_no_page_uses_another() {
    let listed = make_targets();
    assert!(listed.len() > 10, "{listed:?}");
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `make ")?.split('`').next());
    let documented: BTreeSet<&str> = rows.chain(["help"]).collect();
    assert_eq!(documented, listed, "left: docs/contributing.md, right: `make help`");
    let mut found = 0;
    for (path, page) in pages() {
        for target in code(&page).into_iter().filter_map(target_of) {
            assert!(listed.contains(target), "{}: there is no make {target}", path.display());
            found += 1;
        }
    }
    assert!(found > listed.len(), "only {found} uses of make were found in the pages");
}

#[test]
fn scripts_and_test_programs_on_the_page_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code = code(PAGE);
    let scripts: BTreeSet<&str> = code
        .iter()
        .flat_map(|line| line.split_whitespace())
        .filter(|word| is_script(word))
        .collect();
    assert_eq!(
        scripts.iter().copied().collect::<Vec<_>>(),
        ["tests/all.sh", "tests/debian.sh", "tests/fresh-machine.sh", "tests/setup.sh"]
    );
    for script in scripts {
        let mode = fs::metadata(root.join(script)).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} is not executable");
    }
    let mut programs = 0;
    for arguments in code.iter().filter_map(|line| line.strip_prefix("cargo test --locked --test "))
    {
        let (program, test) = arguments.split_once(' ').unwrap_or((arguments, ""));
        let source =
            fs::read_to_string(root.join("tests").join(program).with_extension("rs")).unwrap();
        assert!(
            test.is_empty() || source.contains(&format!("fn {test}(")),
            "{program} has no test {test}"
        );
        programs += 1;
    }
    assert_eq!(programs, 2);
}

#[test]
fn the_script_builds_the_machine_that_the_page_describes() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fresh-machine.sh");
    let output = Command::new(&script).output().unwrap();
    let usage = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{usage}");
    assert!(
        usage.contains("tests/fresh-machine.sh make test")
            && usage.ends_with("Exit code: the command's.\n"),
        "{usage}"
    );
    let script = fs::read_to_string(script).unwrap();
    let debian = code(PAGE).into_iter().find(|code| code.starts_with("tests/debian.sh ")).unwrap();
    assert!(script.contains(&format!("\n{debian}\n")), "{debian}");
    for part in ["/src", "/opt/rust", "pivot_root"] {
        assert!(PAGE.contains(part) && script.contains(part), "{part}");
    }
    assert!(MAKEFILE.contains("\ttests/fresh-machine.sh make test\n"));
}
