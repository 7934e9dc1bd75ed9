//! What goes to the terminal.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use comfy_table::{ContentArrangement, Table, presets};

/// Writes to standard output. Whoever reads it may have seen enough (`| head`): that is no error.
///
/// # Errors
/// When it cannot be written for another reason.
pub(super) fn print(text: &str) -> io::Result<Reader> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(Reader::Listening),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error),
    }
}

/// Whether anybody still reads standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Somebody may.
    Listening,
    /// Nobody does.
    Gone,
}

/// Writes one line for a person to standard error.
pub(super) fn complain(text: &str) {
    // Nothing is left to be done where even this cannot be said.
    let _ = writeln!(io::stderr().lock(), "svcdns: {text}");
}

/// Columns under these headings, without lines around them, each row on one line.
pub(super) fn columns<const N: usize, R: Display>(headings: [&str; N], rows: impl IntoIterator<Item = [R; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(headings);
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

/// A number and what is counted: `one` of them, or else `many`.
pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A word for a shell.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:=@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("/usr/bin/svcdns"), "/usr/bin/svcdns");
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
