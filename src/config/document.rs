//! The documentation made from the table of keys: the table in docs/configuration.md, and the template file.

use std::fmt::Write;

use super::key::Key;
use super::table::KEYS;

/// Longest line of a comment in the template, in characters.
const WIDTH: usize = 100;

/// The table of all keys in Markdown.
pub fn markdown() -> String {
    let mut text = String::from("| key | form | default | variable | meaning |\n|---|---|---|---|---|\n");
    for key in KEYS.iter() {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | `{}` | {} |",
            key.path(),
            form(key).replace('|', "\\|"),
            default(key),
            key.variable(),
            key.meaning
        );
    }
    text
}

/// A configuration file that names every key, each commented out (`#key = default`) below its meaning (`# …`).
pub fn template() -> String {
    let mut text = String::from(
        "# Configuration of svcdns: every key with its default, commented out.\n\
         # Read from /etc/svcdns/svcdns.toml, or from the file named by --config or SVCDNS_CONFIG.\n\
         # Variables of the environment (SVCDNS_LISTEN …) beat this file, flags beat both; `svcdns check` shows the result.\n",
    );
    let mut section = "";
    for key in KEYS.iter() {
        if key.section != section {
            section = key.section;
            let _ = write!(text, "\n#[{section}]\n");
        }
        text.push('\n');
        wrap(&mut text, &format!("{} ({})", key.meaning, form(key)));
        let _ = writeln!(text, "#{} = {}", key.name, key.default);
    }
    text
}

/// The form and the unit, in words.
fn form(key: &Key) -> String {
    let words = key.kind.words();
    if key.unit.is_empty() { words.to_owned() } else { format!("{words}: {}", key.unit) }
}

fn default(key: &Key) -> String {
    match key.default {
        "\"\"" | "[]" => "none".to_owned(),
        default => format!("`{default}`"),
    }
}

fn wrap(text: &mut String, comment: &str) {
    let mut line = String::from("#");
    for word in comment.split(' ') {
        if line.len() > 1 && line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line.truncate(1);
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}
