//! Commands of the machine, run with a timeout.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Maximum run time of a command, after which it is killed.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum wait for the output of a command that has exited.
///
/// A child that it left behind may hold the pipe open.
const OUTPUT_WAIT: Duration = Duration::from_secs(1);

/// Maximum bytes kept of each output stream.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;

/// Error: a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{command}` {cause}")]
pub struct CommandError {
    /// The command line, quoted for a shell.
    pub command: String,
    /// Reason for the failure.
    pub cause: RunError,
}

/// Reason for the failure of a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The program is missing, or this user may not run it.
    #[error("cannot be started: {0}")]
    NotStarted(String),
    /// The command was killed at this timeout.
    #[error("did not end within {} s and was killed", .0.as_secs())]
    TimedOut(Duration),
    /// The system reported no exit status.
    #[error("cannot be waited for: {0}")]
    StatusUnknown(String),
    /// The command failed: its exit code or signal, and its output.
    #[error("failed with {0}")]
    Failed(String),
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// If the command cannot be started, fails, or takes longer than a minute.
pub fn run(words: &[String]) -> Result<String, CommandError> {
    run_within(words, COMMAND_TIMEOUT)
}

/// Runs a command like [`run()`], with another timeout.
pub(super) fn run_within(words: &[String], timeout: Duration) -> Result<String, CommandError> {
    let failed = |cause| CommandError { command: shell_quoted(words), cause };
    let [program, arguments @ ..] = words else { return Ok(String::new()) };
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The command has a process group of its own, so that a timeout also ends the programs that it
    // has started.
    command.process_group(0);
    let mut child =
        command.spawn().map_err(|error| failed(RunError::NotStarted(error.to_string())))?;
    // Threads read the pipes, so that a full pipe never blocks the command.
    let (output, errors) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() > timeout => {
                kill_group(&child);
                let _ = child.wait();
                return Err(failed(RunError::TimedOut(timeout)));
            }
            Ok(None) => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(failed(RunError::StatusUnknown(error.to_string()))),
        }
    };
    let output = output.recv_timeout(OUTPUT_WAIT).unwrap_or_default();
    if status.success() {
        return Ok(output);
    }
    let message = errors.recv_timeout(OUTPUT_WAIT).unwrap_or_default();
    let message = if message.trim().is_empty() { output } else { message };
    let code = status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"));
    let message = message.trim().replace('\n', "; ");
    Err(failed(RunError::Failed(if message.is_empty() {
        code
    } else {
        format!("{code}: {message}")
    })))
}

/// Kills a command with all programs that it has started.
fn kill_group(child: &Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// Starts a thread that reads a pipe to its end and sends the bytes.
fn read_all(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            let _ = pipe.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// Returns a command line as typed in a shell.
pub fn shell_quoted(words: &[String]) -> String {
    let is_plain = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte))
    };
    let quoted: Vec<String> = words
        .iter()
        .map(|word| {
            if is_plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) }
        })
        .collect();
    quoted.join(" ")
}

/// Returns the words of a command line as owned strings.
pub(super) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_return_their_output_or_their_failure() {
        assert_eq!(run(&words(&["echo", "a b"])).unwrap(), "a b\n");
        let failure = run(&words(&["sh", "-c", "echo no >&2; exit 3"])).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "`sh -c 'echo no >&2; exit 3'` failed with exit code 3: no"
        );
        assert_eq!(
            run(&words(&["sh", "-c", "exit 2"])).unwrap_err().cause,
            RunError::Failed("exit code 2".to_owned())
        );
        assert!(matches!(
            run(&words(&["/no/such/program"])).unwrap_err().cause,
            RunError::NotStarted(_)
        ));
        let timeout = Duration::from_millis(50);
        assert_eq!(
            run_within(&words(&["sleep", "60"]), timeout).unwrap_err().cause,
            RunError::TimedOut(timeout)
        );
        assert_eq!(run(&[]).unwrap(), "");
    }

    #[test]
    fn a_timeout_ends_all_programs_of_a_command() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("sleep 600 & echo $! > {}; wait", file.path().display());
        let mut timeout = Duration::from_millis(50);
        let child = loop {
            let failure = run_within(&words(&["sh", "-c", &script]), timeout).unwrap_err();
            assert_eq!(failure.cause, RunError::TimedOut(timeout));
            let written = std::fs::read_to_string(&file).unwrap();
            if written.ends_with('\n') {
                break written.trim().to_owned();
            }
            timeout *= 2;
        };
        // Nothing may wait for the killed child here, so it may stay as a zombie.
        let has_ended = || {
            std::fs::read_to_string(format!("/proc/{child}/stat"))
                .map_or(true, |stat| stat.contains(") Z "))
        };
        let start = Instant::now();
        while !has_ended() {
            assert!(start.elapsed() < Duration::from_secs(60), "process {child} still runs");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn command_lines_are_quoted_for_a_shell() {
        assert_eq!(
            shell_quoted(&words(&["resolvectl", "domain", "svcdns0", "~svc", "it's"])),
            r"resolvectl domain svcdns0 '~svc' 'it'\''s'"
        );
    }
}
