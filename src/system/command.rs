//! Programs of the machine that are run, with a deadline.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why a program did not do what it was run for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{line}` {why}")]
pub struct Failure {
    /// The program with its arguments.
    pub line: String,
    /// What happened to it.
    pub why: RunError,
}

/// What happened to a program that was run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// It never started: there is no such program, or this user may not run it.
    #[error("cannot be run: {0}")]
    NotRun(String),
    /// It ran past its deadline and was killed.
    #[error("has not ended after {} s and was stopped", .0.as_secs())]
    TooLong(Duration),
    /// Its end could not be learned.
    #[error("cannot be waited for: {0}")]
    Lost(String),
    /// It reported failure: its exit code or signal, and what it wrote.
    #[error("ended with {0}")]
    Failed(String),
}

/// Runs a program to its end; gives what it wrote to standard output.
///
/// # Errors
/// When it cannot be run, fails, or takes longer than a minute (it is killed then).
pub fn run(line: &[String]) -> Result<String, Failure> {
    run_within(line, DEADLINE)
}

pub(super) fn run_within(line: &[String], deadline: Duration) -> Result<String, Failure> {
    let failure = |why| Failure { line: written(line), why };
    let [program, arguments @ ..] = line else { return Ok(String::new()) };
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failure(RunError::NotRun(error.to_string())))?;
    // Read beside, so that a full pipe never holds it up.
    let (output, errors) = (read(child.stdout.take()), read(child.stderr.take()));
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failure(RunError::TooLong(deadline)));
            }
            Ok(None) => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(failure(RunError::Lost(error.to_string()))),
        }
    };
    // A program that it left behind may hold the pipes open; what has come by now is what it said.
    let output = output.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
    if status.success() {
        return Ok(output);
    }
    let said = errors.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
    let said = if said.trim().is_empty() { output } else { said };
    let code = status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"));
    let said = said.trim().replace('\n', "; ");
    Err(failure(RunError::Failed(if said.is_empty() { code } else { format!("{code}: {said}") })))
}

fn read(pipe: Option<impl Read + Send + 'static>) -> std::sync::mpsc::Receiver<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut octets = Vec::new();
        if let Some(pipe) = pipe {
            let _ = pipe.take(1 << 20).read_to_end(&mut octets);
        }
        let _ = sender.send(String::from_utf8_lossy(&octets).into_owned());
    });
    receiver
}

/// A command line as a person would type it.
pub(super) fn written(line: &[String]) -> String {
    let plain = |word: &str| !word.is_empty() && word.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&octet));
    let words: Vec<String> =
        line.iter().map(|word| if plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) }).collect();
    words.join(" ")
}

/// The words of a command line.
pub(super) fn line<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_and_its_failures() {
        assert_eq!(run(&line(["echo", "a b"])).unwrap(), "a b\n");
        let failure = run(&line(["sh", "-c", "echo no >&2; exit 3"])).unwrap_err();
        assert_eq!(failure.to_string(), "`sh -c 'echo no >&2; exit 3'` ended with exit code 3: no");
        assert_eq!(run(&line(["sh", "-c", "exit 2"])).unwrap_err().why, RunError::Failed("exit code 2".to_owned()));
        assert!(matches!(run(&line(["/no/such/program"])).unwrap_err().why, RunError::NotRun(_)));
        let deadline = Duration::from_millis(50);
        assert_eq!(run_within(&line(["sleep", "60"]), deadline).unwrap_err().why, RunError::TooLong(deadline));
        assert_eq!(run(&[]).unwrap(), "");
    }

    #[test]
    fn lines_are_written_for_a_shell() {
        assert_eq!(written(&line(["resolvectl", "domain", "svcdns0", "~svc", "it's"])), r"resolvectl domain svcdns0 '~svc' 'it'\''s'");
    }
}
