//! Tables as plain text and as Markdown.

use std::fmt::Write as _;

/// A table whose first column is text and whose other columns are figures.
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) head: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
    /// Lines below the table.
    pub(crate) notes: Vec<String>,
}

impl Table {
    /// Formats the table with aligned columns.
    pub(crate) fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.head[column].chars().count()]).max().unwrap_or(0)
        };
        let line = |cells: &[&str]| {
            let cells = cells.iter().enumerate().map(|(column, cell)| {
                let width = width(column);
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
        };
        let mut text = format!("{}\n{}\n", self.title, line(&self.head));
        for row in &self.rows {
            let cells: Vec<&str> = row.iter().map(String::as_str).collect();
            writeln!(text, "{}", line(&cells)).unwrap();
        }
        for note in &self.notes {
            writeln!(text, "{note}").unwrap();
        }
        text
    }

    /// Formats the table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "**{}**\n\n| {} |\n|---|{}\n",
            self.title,
            self.head.join(" | "),
            "--:|".repeat(self.head.len() - 1)
        );
        for row in &self.rows {
            writeln!(text, "| {} |", row.join(" | ")).unwrap();
        }
        for note in &self.notes {
            write!(text, "\n{note}\n").unwrap();
        }
        text
    }
}
