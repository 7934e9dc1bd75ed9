//! The help of `svcdns` itself: its commands in groups, and all exit codes.

use std::fmt::Write;

use clap::builder::Styles;
use clap::{Command, CommandFactory};

use super::arguments::Arguments;

/// Groups of `svcdns --help` with their commands, in the order shown.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Serve", &["serve", "demo", "register"]),
    ("Ask", &["resolve", "explain", "ls", "watch", "diff"]),
    ("Set up", &["check", "run", "install", "uninstall", "keep"]),
    ("Look after", &["status", "reload", "release", "doctor"]),
];

/// Text at the end of `svcdns -h`.
const SHORT_ENDING: &str = "`svcdns COMMAND --help` shows the flags and exit codes of a command.";

/// Text at the end of `svcdns --help`.
const LONG_ENDING: &str = "\
Exit codes:
  0   success; resolve, explain: there is an answer
  1   an error; doctor: something is broken; diff: the registries differ;
      reload: the configuration does not hold, the server runs on unchanged
  2   resolve, explain, ls NAME: there is no such name, or no record of that type;
      diff: an error
  3   resolve, explain: the response is a failure (SERVFAIL, REFUSED, ...)
  4   no server is running, or it exited; install: start a server first
  64  the command line is invalid
`register` and `run` exit with the code of their command.

`svcdns COMMAND --help` shows the flags and exit codes of a command.";

/// Builds the command line with its help.
pub(super) fn command_line() -> Command {
    let command = Arguments::command();
    let (styles, groups) = (Styles::styled(), groups(&command));
    let header = styles.get_header();
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}\
         {header}Options:{header:#}\n{{options}}{{after-help}}"
    );
    command.help_template(template).after_help(SHORT_ENDING).after_long_help(LONG_ENDING)
}

/// Formats the commands in their groups, each with its description.
///
/// clap supports groups only for arguments.
fn groups(command: &Command) -> String {
    let styles = Styles::styled();
    let (header, literal) = (styles.get_header(), styles.get_literal());
    let names = GROUPS.iter().flat_map(|(_, names)| names.iter());
    let width = names.map(|name| name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (heading, names) in GROUPS {
        let _ = writeln!(text, "{header}{heading}:{header:#}");
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {literal}{name:width$}{literal:#}  {about}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_definitions_are_consistent() {
        command_line().debug_assert();
    }

    #[test]
    fn every_command_is_in_one_group() {
        let command = Arguments::command();
        let mut all: Vec<_> = command.get_subcommands().map(Command::get_name).collect();
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        all.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, all);
    }

    #[test]
    fn help_lists_each_command_on_a_line_under_72_columns() {
        let help = command_line().render_help().to_string();
        for command in Arguments::command().get_subcommands() {
            let start = format!("  {} ", command.get_name());
            let line = help.lines().find(|line| line.starts_with(&start));
            let line = line.unwrap_or_else(|| panic!("no line for{start}in\n{help}"));
            assert!(line.len() < 72, "{line}");
            let about = command.get_about().unwrap().to_string();
            let is_phrase = !about.contains([';', ':']) && !about.contains(". ");
            assert!(line.ends_with(&about) && is_phrase, "{line}");
        }
        for (heading, _) in GROUPS {
            assert!(help.contains(&format!("\n\n{heading}:\n")), "{help}");
        }
    }

    #[test]
    fn the_documentation_has_the_description_of_each_command() {
        let page = include_str!("../../docs/commands.md");
        for command in Arguments::command().get_subcommands() {
            let (name, about) = (command.get_name(), command.get_about().unwrap().to_string());
            let row = page.lines().find(|line| line.contains(&format!("| `svcdns {name}")));
            assert!(row.is_some_and(|row| row.contains(&format!("| {about}"))), "{name}: {about}");
        }
    }

    #[test]
    fn exit_codes_are_in_the_long_help_only() {
        let mut commands = vec![command_line()];
        commands.extend(Arguments::command().get_subcommands().cloned());
        for mut command in commands {
            let name = command.get_name().to_owned();
            assert!(command.render_long_help().to_string().contains("\nExit codes:\n"), "{name}");
            assert!(!command.render_help().to_string().contains("Exit code"), "{name}");
        }
    }
}
