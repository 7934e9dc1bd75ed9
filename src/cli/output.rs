//! Output to the terminal.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use comfy_table::{ContentArrangement, Table, presets};

/// Writes to standard output and flushes it.
///
/// # Errors
/// If the write fails, unless the reader has closed the pipe (`| head`).
pub(super) fn print(text: &str) -> io::Result<StdoutState> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(StdoutState::Open),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(StdoutState::Closed),
        Err(error) => Err(error),
    }
}

/// Whether standard output can still be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StdoutState {
    /// Standard output can be written.
    Open,
    /// The reader has closed the pipe.
    Closed,
}

/// Writes a line to standard error, with the name of the program.
pub(super) fn complain(text: &str) {
    // If standard error cannot be written, the error cannot be reported.
    let _ = writeln!(io::stderr().lock(), "svcdns: {text}");
}

/// Formats rows under headings, in aligned columns without borders.
pub(super) fn columns<const N: usize, R: Display>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [R; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headings);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Formats a number with its noun: `1 key`, `2 keys`.
pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Escapes control characters, which a terminal might interpret.
pub(super) fn escape_controls(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// Quotes a word for a shell if necessary.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:=@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell_if_needed() {
        assert_eq!(quoted("/usr/bin/svcdns"), "/usr/bin/svcdns");
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
