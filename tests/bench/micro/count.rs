//! Instructions of each step, counted by valgrind's callgrind around one function: the same in every run of the same program,
//! however busy the machine is.

use std::env;
use std::fs;
use std::process::Command;

use super::content::Shape;
use super::step::Step;
use super::{growth, one_name, steps};

/// Goes before the counted ones, so that what is done once is not counted.
const WARM: usize = 64;

/// Instructions of one go of each step that `of` names (see [`play`]), less those of doing nothing.
pub(crate) fn of(of: &str, times: usize) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("counts");
    let mut command = Command::new("valgrind");
    // Its whole name: patterns do for the first of the two only (valgrind 3.19).
    let function = concat!(module_path!(), "::count_these");
    command.args([
        "--tool=callgrind",
        &format!("--toggle-collect={function}"),
        &format!("--dump-after={function}"),
    ]);
    command.arg(format!("--callgrind-out-file={}", out.display())).arg(env::current_exe().unwrap());
    let output = command.args(["--count", of, &times.to_string()]).output().unwrap();
    assert!(
        output.status.success(),
        "valgrind ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let totals = |number: usize| -> f64 {
        // One file for each time that the function ended.
        let text = fs::read_to_string(folder.path().join(format!("counts.{number}"))).unwrap();
        text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok()).unwrap()
    };
    let steps: usize = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let nothing = totals(1);
    (2..=steps + 1).map(|number| (totals(number) - nothing) / times as f64).collect()
}

/// The child, in valgrind: does every step so often, the first one being nothing, and prints how many steps there are.
/// `of` is what to do and what is known: `steps:SERVICES:INSTANCES`, `growth:SERVICES:INSTANCES` or
/// `name:SERVICES:INSTANCES:INSTANCES-OF-THE-NAME`.
pub(crate) fn play(of: &str, times: usize) {
    let (kind, numbers) = of.split_once(':').unwrap();
    let numbers: Vec<usize> = numbers.split(':').map(|number| number.parse().unwrap()).collect();
    let shape = Shape { services: numbers[0], instances: numbers[1] };
    let mut all = match kind {
        "steps" => steps::of(shape),
        "growth" => growth::of(shape),
        "name" => one_name::of(shape, numbers[2]),
        other => panic!("nothing to count: {other}"),
    };
    count_these(&mut Step::new("nothing", || {}), times);
    for step in &mut all {
        step.repeat(WARM.min(times));
        count_these(step, times);
    }
    println!("{}", all.len());
}

/// What is counted, from its beginning to its end.
#[inline(never)]
fn count_these(step: &mut Step, times: usize) {
    step.repeat(times);
}

/// What counts.
pub(crate) fn version() -> String {
    let Ok(output) = Command::new("valgrind").arg("--version").output() else {
        panic!("valgrind is needed: apt-get install valgrind")
    };
    format!("{}'s callgrind", String::from_utf8_lossy(&output.stdout).trim())
}
