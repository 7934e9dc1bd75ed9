//! The battery's results: a row for each case, a column for each kind.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Mutex;
use std::time::Duration;

use super::kind::Inapplicable;

/// Result of a case with one kind.
pub(crate) enum Cell {
    /// Passed; the text says what was measured, such as a time.
    Passed(String),
    Inapplicable(Inapplicable),
    Failed,
}

/// Results of all scenarios, which run in several threads.
#[derive(Default)]
pub(crate) struct Table(Mutex<BTreeMap<(&'static str, &'static str), Cell>>);

impl Table {
    pub(crate) fn set(&self, case: &'static str, kind: &'static str, cell: Cell) {
        self.0.lock().unwrap().insert((case, kind), cell);
    }

    /// Returns the cases that failed, as `KIND: CASE`.
    pub(crate) fn failures(&self) -> Vec<String> {
        let cells = self.0.lock().unwrap();
        let failed = cells.iter().filter(|(_, cell)| matches!(cell, Cell::Failed));
        failed.map(|((case, kind), _)| format!("{kind}: {case}")).collect()
    }

    /// Formats the table in Markdown; the reasons of inapplicable cases are in notes below it.
    pub(crate) fn markdown(&self, cases: &[&'static str], kinds: &[&'static str]) -> String {
        let cells = self.0.lock().unwrap();
        let mut text =
            format!("| case | {} |\n|---|{}\n", kinds.join(" | "), "---|".repeat(kinds.len()));
        let mut notes: Vec<String> = Vec::new();
        for case in cases {
            let _ = write!(text, "| {case} |");
            for kind in kinds {
                let shown = match cells.get(&(case, kind)) {
                    None => String::new(),
                    Some(Cell::Inapplicable(reason)) => {
                        let note = format!("{kind}: {reason}");
                        let seen = notes.iter().position(|seen| *seen == note);
                        let number = seen.unwrap_or_else(|| {
                            notes.push(note);
                            notes.len() - 1
                        });
                        format!("– ({})", number + 1)
                    }
                    Some(Cell::Passed(measured)) => measured.clone(),
                    Some(Cell::Failed) => "**failed**".to_owned(),
                };
                let _ = write!(text, " {shown} |");
            }
            text.push('\n');
        }
        for (number, note) in (1..).zip(notes) {
            let _ = write!(text, "\n({number}) {note}\n");
        }
        text
    }
}

/// Times from a change to its answer.
#[derive(Default)]
pub(crate) struct Times {
    answers: Vec<Duration>,
    /// Times from the same changes to the notification of a bare client.
    notifications: Vec<Duration>,
}

impl Times {
    pub(crate) fn add(&mut self, answer: Duration, notification: Option<Duration>) {
        self.answers.push(answer);
        self.notifications.extend(notification);
    }
}

impl fmt::Display for Times {
    /// Formats the median and the longest time, and those of the notifications.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&spread(&self.answers))?;
        if !self.notifications.is_empty() {
            write!(f, " (notified {})", spread(&self.notifications))?;
        }
        Ok(())
    }
}

/// Formats the median, and the longest time if there are several.
fn spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let median = shown(sorted[sorted.len() / 2]);
    if sorted.len() > 1 {
        format!("{median}, max {}", shown(sorted[sorted.len() - 1]))
    } else {
        median
    }
}

/// Formats a time with a unit and precision for people.
pub(crate) fn shown(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}
