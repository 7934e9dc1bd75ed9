//! Generated documentation: tables of docs/configuration.md, and the template.

use std::fmt::Write;

use super::aliases::ALIAS;
use super::key::Key;
use super::registry::{KINDS, URL, kind_of};
use super::static_services::{REQUIRED, STATIC_KEYS};
use super::table::KEYS;

/// Maximum length of a comment line in the template, in characters.
const MAX_TEMPLATE_COLUMNS: usize = 100;

/// Returns the table of all keys in Markdown.
pub fn markdown() -> String {
    let mut text = String::from("| key | form | default | variable | meaning |\n");
    text.push_str("|---|---|---|---|---|\n");
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

/// Returns the tables of keys and variables of a single registry in Markdown.
pub fn registry_markdown() -> String {
    let mut text = String::from("| key in `[registry.NAME]` | registries | form | if omitted |\n");
    text.push_str("|---|---|---|---|\n");
    let mut keys = Vec::<&Key>::new();
    for key in KINDS.iter().flat_map(|kind| kind.section_keys()) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    // The keys that all kinds have come last, except the URL, which has a section.
    keys.sort_by_key(|key| key.section.is_empty());
    for key in keys {
        let registries = kind_of(key).map_or("all", |kind| kind.name);
        let omitted = if key == URL { "an error".to_owned() } else { format!("`{}`", key.path()) };
        let form = form(key).replace('|', "\\|");
        let _ = writeln!(text, "| `{}` | {registries} | {form} | {omitted} |", key.name);
    }
    text.push_str("\n| variable | registries | instead of |\n|---|---|---|\n");
    for kind in KINDS {
        for secret in kind.secrets {
            let (variable, file) = (secret.variable_of("<NAME>"), secret.file.name);
            let _ = writeln!(text, "| `{variable}` | {} | `{file}` |", kind.name);
        }
    }
    text
}

/// Returns the table of the keys of a static service in Markdown.
pub fn static_markdown() -> String {
    let mut text = String::from("| key in `[[static]]` | form | if omitted | meaning |\n");
    text.push_str("|---|---|---|---|\n");
    for key in STATIC_KEYS {
        let omitted = match key {
            key if REQUIRED.contains(key) => "an error".to_owned(),
            key if key.if_empty.is_empty() => format!("`{}`", key.default),
            key => key.if_empty.to_owned(),
        };
        let (name, meaning) = (key.name, key.meaning);
        let _ = writeln!(text, "| `{name}` | {} | {omitted} | {meaning} |", form(key));
    }
    text
}

/// Returns the keys that a reload does not change, as a Markdown list.
pub fn restart_markdown() -> String {
    let mut text = String::new();
    for key in KEYS.iter().filter(|key| key.needs_restart()) {
        let _ = writeln!(text, "- `{}`", key.path());
    }
    text
}

/// Returns a configuration file with every key.
///
/// Each key is commented out with its default (`#key = default`), below its meaning (`# …`).
pub fn template() -> String {
    let mut text = String::from(
        "# Configuration of svcdns: every key with its default, commented out.\n\
         # svcdns reads /etc/svcdns/svcdns.toml, or the file named by --config or SVCDNS_CONFIG.\n\
         # Environment variables (SVCDNS_LISTEN …) override this file, and flags override both;\n\
         # `svcdns check` shows the result.\n",
    );
    let mut section = "";
    for key in KEYS.iter() {
        if key.section != section {
            section = key.section;
            let _ = write!(text, "\n#[{section}]\n");
        }
        text.push('\n');
        let mut notes = form(key);
        if !key.if_empty.is_empty() {
            let _ = write!(notes, "; if empty, {}", key.if_empty);
        }
        wrap(&mut text, &format!("{} ({notes})", key.meaning));
        let _ = writeln!(text, "#{} = {}", key.name, key.default);
    }
    text.push('\n');
    wrap(
        &mut text,
        "Further names of services, and names of hosts outside the zones; see \
         docs/registries/aliases.md.",
    );
    let _ = writeln!(text, "#[{ALIAS}]\n#\"www\" = \"hello\"\n#\"db\" = \"db.example.com\"");
    for (at, kind) in KINDS.iter().enumerate() {
        text.push('\n');
        let name = if at == 0 { "main" } else { kind.name };
        let heading = format!(
            "A registry of kind {} with keys of its own, instead of an entry in `registry`. Its \
             name has 1 to 16 characters of a-z and 0-9. Only `url` is required; an omitted key \
             has the value from above.",
            kind.name
        );
        wrap(&mut text, &heading);
        let _ = writeln!(text, "#[registry.{name}]");
        for key in kind.section_keys() {
            let example = format!("\"{}\"", kind.example);
            let value = if key == URL { &example } else { key.default };
            let _ = writeln!(text, "#{} = {value}", key.name);
        }
    }
    text.push('\n');
    let heading = "A static service, for a program that cannot register; a table for each. `name` \
                   and `endpoints` are required; an omitted key has the value shown, or that of \
                   the key of the same name from above.";
    wrap(&mut text, heading);
    text.push_str("#[[static]]\n");
    for key in STATIC_KEYS {
        let value = match key.name {
            "namespace" | "deployment" => "\"default\"",
            _ => key.default,
        };
        let _ = writeln!(text, "#{} = {value}", key.name);
    }
    text
}

/// Returns the form of a key's value with its constraint.
fn form(key: &Key) -> String {
    let name = key.form.name();
    if key.constraint.is_empty() { name.to_owned() } else { format!("{name}: {}", key.constraint) }
}

/// Returns the default of a key in Markdown.
fn default(key: &Key) -> String {
    key.default_in_words().map_or_else(|| format!("`{}`", key.default), ToOwned::to_owned)
}

/// Appends a comment in lines of limited length.
fn wrap(text: &mut String, comment: &str) {
    let mut line = String::from("#");
    for word in comment.split(' ') {
        let columns = line.chars().count() + 1 + word.chars().count();
        if line.len() > 1 && columns > MAX_TEMPLATE_COLUMNS {
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
