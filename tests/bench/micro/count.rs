//! Instructions of each step, counted by valgrind's callgrind around one function.
//!
//! The counts do not depend on how busy the machine is.

use std::env;
use std::fs;
use std::process::Command;

use super::content::Shape;
use super::step::Step;
use super::{growth, one_name, steps};

/// Uncounted repetitions first, so that one-time work is not counted.
const WARM_UP_REPETITIONS: usize = 64;

/// Returns the instructions per repetition of each step of `of` (see [`count`]).
///
/// The instructions of an empty step are subtracted.
pub(crate) fn of(of: &str, times: usize) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("counts");
    let mut command = Command::new("valgrind");
    // The full name: only --toggle-collect accepts patterns, --dump-after does not (valgrind 3.19).
    let function = concat!(module_path!(), "::repeat_counted");
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
        // One file for each call of the function.
        let text = fs::read_to_string(folder.path().join(format!("counts.{number}"))).unwrap();
        text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok()).unwrap()
    };
    let steps: usize = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let nothing = totals(1);
    (2..=steps + 1).map(|number| (totals(number) - nothing) / times as f64).collect()
}

/// Repeats an empty step and every step of `of`, and prints their number.
///
/// Runs in the child process under valgrind. `of` names the steps and the registered services:
/// `steps:SERVICES:INSTANCES`, `growth:SERVICES:INSTANCES` or
/// `name:SERVICES:INSTANCES:INSTANCES-OF-THE-NAME`.
pub(crate) fn count(of: &str, times: usize) {
    let (kind, numbers) = of.split_once(':').unwrap();
    let numbers: Vec<usize> = numbers.split(':').map(|number| number.parse().unwrap()).collect();
    let shape = Shape { services: numbers[0], instances: numbers[1] };
    let mut all = match kind {
        "steps" => steps::of(shape),
        "growth" => growth::of(shape),
        "name" => one_name::of(shape, numbers[2]),
        other => panic!("nothing to count: {other}"),
    };
    repeat_counted(&mut Step::new("nothing", || {}), times);
    for step in &mut all {
        step.repeat(WARM_UP_REPETITIONS.min(times));
        repeat_counted(step, times);
    }
    println!("{}", all.len());
}

/// Repeats a step; callgrind counts the instructions of this function.
#[inline(never)]
fn repeat_counted(step: &mut Step, times: usize) {
    step.repeat(times);
}

/// Returns the name and version of the counting program.
pub(crate) fn version() -> String {
    let Ok(output) = Command::new("valgrind").arg("--version").output() else {
        panic!("valgrind is needed: apt-get install valgrind")
    };
    format!("{}'s callgrind", String::from_utf8_lossy(&output.stdout).trim())
}
