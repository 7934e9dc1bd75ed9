//! The documentation made from the table of keys: the table in docs/configuration.md, and the template file.

use std::fmt::Write;

use super::key::Key;
use super::registry::{KINDS, URL, kind_of};
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

/// The keys that a registry's own section can have, and the variables for its secrets, in Markdown.
pub fn registry_markdown() -> String {
    let mut text = String::from("| key in `[registry.NAME]` | registries | form | if left out |\n|---|---|---|---|\n");
    let mut keys = Vec::<&Key>::new();
    for key in KINDS.iter().flat_map(|kind| kind.section_keys()) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    // Its URL first, then what is for one kind, then what any other registry has, too.
    keys.sort_by_key(|key| key.section.is_empty());
    for key in keys {
        let registries = kind_of(key).map_or("all", |kind| kind.name);
        let otherwise = if key == URL { "an error".to_owned() } else { format!("`{}`", key.path()) };
        let _ = writeln!(text, "| `{}` | {registries} | {} | {otherwise} |", key.name, form(key).replace('|', "\\|"));
    }
    text.push_str("\n| variable | registries | in place of |\n|---|---|---|\n");
    for (kind, secret) in KINDS.iter().flat_map(|kind| kind.secrets.iter().map(|secret| (kind.name, secret))) {
        let _ = writeln!(text, "| `{}` | {kind} | `{}` |", secret.variable_of("<NAME>"), secret.file.name);
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
    for (at, kind) in KINDS.iter().enumerate() {
        text.push('\n');
        let name = if at == 0 { "main" } else { kind.name };
        wrap(&mut text, &format!("A registry of kind {} with a name and keys of its own, in place of the list `registry`.", kind.name));
        wrap(
            &mut text,
            "The name: 1 to 16 characters of a-z and 0-9. Only `url` is needed; the other keys are as above where they are left out.",
        );
        let _ = writeln!(text, "#[registry.{name}]");
        for key in kind.section_keys() {
            let example = if key == URL { format!("\"{}\"", kind.example) } else { key.default.to_owned() };
            let _ = writeln!(text, "#{} = {example}", key.name);
        }
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
