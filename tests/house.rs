//! Holds the arrows of the house: which room (folder under `src/`) may import which, who may print, how long a file may be.
//!
//! The plan is in `docs/design.md`. When a test here fails, the import is usually the mistake; when it is the plan that
//! was wrong, change both together.
#![allow(clippy::unwrap_used, reason = "a test that cannot read the source has nothing to say")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each room and the rooms it may import.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "admin", "answer", "config", "daemon", "name", "registry", "server", "service",
            "system", "wire",
        ],
    ),
    (
        "daemon",
        &[
            "admin", "answer", "config", "name", "registry", "server", "service", "system",
            "upstream", "wire",
        ],
    ),
    // Only their plain settings types.
    ("config", &["answer", "catalog", "name", "registry", "server", "service", "upstream"]),
    (
        "admin",
        &[
            "answer", "catalog", "metrics", "name", "registry", "server", "service", "upstream",
            "wire",
        ],
    ),
    ("system", &["resolv_conf", "wire"]),
    ("server", &["metrics", "wire"]),
    ("upstream", &["metrics", "name", "resolv_conf", "service", "wire"]),
    ("answer", &["catalog", "metrics", "name", "service", "wire"]),
    ("catalog", &["name", "service"]),
    ("registry", &["service"]),
    ("name", &[]),
    ("service", &[]),
    ("wire", &[]),
    ("metrics", &[]),
    ("resolv_conf", &[]),
];

/// Lines of a file, tests apart, above which there is a second idea inside.
const LONGEST: usize = 600;

#[test]
fn rooms_import_only_what_the_arrows_allow() {
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut faults = Vec::new();
    for source in sources() {
        let Some(room) = source.room() else { continue };
        let Some(allowed) = arrows.get(room) else {
            faults.push(format!("{}: the room `{room}` is not in the plan", source.path.display()));
            continue;
        };
        for (line, imported) in source.imports() {
            if imported != room
                && arrows.contains_key(imported.as_str())
                && !allowed.contains(&imported.as_str())
            {
                faults.push(format!(
                    "{}:{line}: `{room}` may not import `{imported}`",
                    source.path.display()
                ));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn every_room_of_the_plan_stands_and_no_arrow_leads_in_a_circle() {
    let rooms: BTreeSet<_> =
        sources().iter().filter_map(|source| source.room().map(str::to_owned)).collect();
    let planned: BTreeSet<_> = ARROWS.iter().map(|(room, _)| (*room).to_owned()).collect();
    assert_eq!(rooms, planned, "rooms under src/, and rooms in the plan");
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    while placed.len() < ARROWS.len() {
        let next = ARROWS.iter().find(|(room, below)| {
            !placed.contains(room) && below.iter().all(|room| placed.contains(room))
        });
        let Some((room, _)) = next else {
            panic!("the arrows lead in a circle; free of it are only {placed:?}")
        };
        placed.insert(room);
    }
}

#[test]
fn modules_of_a_room_import_one_another_one_way() {
    let sources = sources();
    let mut faults = Vec::new();
    for (room, _) in ARROWS {
        let arrows = arrows_inside(room, &sources);
        faults.extend(
            circles(&arrows)
                .iter()
                .map(|(from, to)| format!("{room}: {from} -> {to} lies on a circle")),
        );
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn codes_of_reasons_are_unique() {
    let mut codes = BTreeMap::new();
    for path in paths() {
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let maker =
            if path.ends_with("service/rejection.rs") { "Self::new(" } else { "Reason::new(" };
        for (at, _) in text.match_indices(maker) {
            let argument = text[at + maker.len()..].trim_start().strip_prefix('"');
            let Some(code) = argument.and_then(|rest| rest.split('"').next()) else { continue };
            let other = codes.insert(code.to_owned(), path.clone());
            assert!(
                other.is_none(),
                "the reason {code} is in {} and in {}",
                path.display(),
                other.unwrap().display()
            );
        }
    }
    assert!(codes.len() > 15, "{codes:?}");
}

#[test]
fn only_the_cli_prints() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| source.room() != Some("cli")) {
        for (line, text) in source.code.lines().enumerate() {
            if ["println!", "print!", "eprintln!", "eprint!", "dbg!"]
                .iter()
                .any(|printer| is_called(text, printer))
            {
                faults.push(format!("{}:{}: {}", source.path.display(), line + 1, text.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "only src/cli prints, the rest logs:\n{}\n", faults.join("\n"));
}

#[test]
fn no_file_holds_a_second_idea() {
    let long: Vec<_> = sources()
        .iter()
        .map(|source| (source.code.lines().count(), source.path.clone()))
        .filter(|(lines, _)| *lines > LONGEST)
        .map(|(lines, path)| format!("{}: {lines} lines without tests", path.display()))
        .collect();
    assert!(
        long.is_empty(),
        "files of more than {LONGEST} lines, tests apart:\n{}\n",
        long.join("\n")
    );
}

#[test]
fn the_reader_of_source_sees_what_it_must() {
    let source = |text: &str| Source::new(PathBuf::from("src/answer/full/mod.rs"), text);
    let rooms =
        |text: &str| source(text).imports().into_iter().map(|(_, room)| room).collect::<Vec<_>>();
    assert_eq!(rooms("use crate::catalog::Service;"), ["catalog"]);
    assert_eq!(
        rooms("use crate::{name::{Name, Zones}, wire, service::*};"),
        ["name", "wire", "service"]
    );
    assert_eq!(rooms("use crate::{\n    cli,\n    config::Config,\n};"), ["cli", "config"]);
    assert_eq!(
        rooms("fn f() -> crate::server::Settings { svcdns::admin::x() }"),
        ["server", "admin"]
    );
    assert_eq!(rooms("use super::super::registry::gsvc;"), ["registry"]);
    assert_eq!(rooms("use super::fit;"), [] as [&str; 0]);
    assert_eq!(
        rooms(
            "// use crate::cli;\n/* crate::cli */ let s = \"crate::cli\"; let c = '\"'; let r = r#\"crate::cli\"#;"
        ),
        [] as [&str; 0]
    );
    assert_eq!(
        rooms("pub(crate) fn f() {}\n#[cfg(test)]\nmod tests { use crate::cli; }"),
        [] as [&str; 0]
    );
    assert!(is_called("    println!(\"\")", "println!"));
    assert!(!is_called("    eprintln!(\"\")", "println!"));
}

#[test]
fn circles_of_modules_are_found() {
    let room = |files: &[(&str, &str)]| {
        let files = files
            .iter()
            .map(|(file, text)| Source::new(PathBuf::from("src/answer").join(file), text));
        let arrows = arrows_inside("answer", &files.collect::<Vec<_>>());
        circles(&arrows).into_iter().map(|(from, to)| format!("{from} -> {to}")).collect::<Vec<_>>()
    };
    let none = [] as [&str; 0];
    assert_eq!(
        room(&[("a.rs", "use super::b::B;"), ("b.rs", "use super::c;"), ("c.rs", "")]),
        none
    );
    assert_eq!(
        room(&[
            ("a.rs", "use super::{b::B, c};"),
            ("b.rs", "fn f() { crate::answer::a::f() }"),
            ("c.rs", "")
        ]),
        ["a -> b", "b -> a"]
    );
    // Modules in front of a circle and behind it are no part of it; a folder is one module.
    let folder = [
        ("front.rs", "use super::a;"),
        ("a.rs", "use super::b; use super::behind;"),
        ("b/mod.rs", "mod inner; use super::behind;"),
        ("b/inner.rs", "use super::super::a::A;"),
        ("behind.rs", ""),
    ];
    assert_eq!(room(&folder), ["a -> b", "b -> a"]);
    // What the room itself re-exports is imported from its module; the room's own items from none.
    let re_exports = [
        ("mod.rs", "mod a; mod b; pub use a::{A, Other}; pub struct Own;"),
        ("a.rs", "use super::b;"),
        ("b.rs", "use super::{A, Own};"),
    ];
    assert_eq!(room(&re_exports), ["a -> b", "b -> a"]);
    assert_eq!(room(&[re_exports[0], re_exports[1], ("b.rs", "use super::Own;")]), none);
    // The same word below another room, or a nested module of that name, is no import of a sibling.
    assert_eq!(
        room(&[
            ("a.rs", "use super::b;"),
            ("b.rs", "use crate::name::a; mod x { use super::super::super::a; }")
        ]),
        none
    );
}

/// A file under `src/`: where it is, and its code with tests cut off and comments and strings blanked.
struct Source {
    path: PathBuf,
    code: String,
}

impl Source {
    fn new(path: PathBuf, text: &str) -> Self {
        let code = blank(text);
        let end = code.match_indices("#[cfg(test)]").find(|(at, gate)| {
            let next = code[at + gate.len()..].trim_start();
            next.starts_with("mod ")
                && next[..next.find(';').unwrap_or(usize::MAX).min(next.len())].contains('{')
        });
        let code = end.map_or(code.as_str(), |(at, _)| &code[..at]).to_owned();
        Self { path, code }
    }

    /// The room it stands in; none for `lib.rs` and `main.rs`.
    fn room(&self) -> Option<&str> {
        let first =
            self.path.strip_prefix("src").unwrap().components().next()?.as_os_str().to_str()?;
        let room = first.strip_suffix(".rs").unwrap_or(first);
        (room != "lib" && room != "main").then_some(room)
    }

    /// How many modules deep its items lie: 1 in `src/name/mod.rs`, 2 in `src/name/zones.rs`.
    fn depth(&self) -> usize {
        self.path.strip_prefix("src").unwrap().components().count()
            - usize::from(self.path.ends_with("mod.rs"))
    }

    /// The first path segments below the crate's root that the code names, with their lines.
    fn imports(&self) -> Vec<(usize, String)> {
        self.named_below(&["crate::", "svcdns::", &"super::".repeat(self.depth())])
    }

    /// The module of its room that the file belongs to; none for the room's own `mod.rs`.
    fn module(&self) -> Option<&str> {
        let second =
            self.path.strip_prefix("src").unwrap().components().nth(1)?.as_os_str().to_str()?;
        let module = second.strip_suffix(".rs").unwrap_or(second);
        (module != "mod").then_some(module)
    }

    /// The first path segments below its room that the code names.
    fn siblings(&self) -> Vec<String> {
        let room = format!("crate::{}::", self.room().unwrap_or_default());
        let to_room = "super::".repeat(self.depth() - 1);
        self.named_below(&[&room, &to_room]).into_iter().map(|(_, module)| module).collect()
    }

    /// The first path segments below any of these paths that the code names, with their lines.
    fn named_below(&self, roots: &[&str]) -> Vec<(usize, String)> {
        let mut named = Vec::new();
        for root in roots {
            for (at, _) in self.code.match_indices(root) {
                let before = self.code[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue;
                }
                let line = self.code[..at].lines().count().max(1);
                named.extend(
                    first_segments(&self.code[at + root.len()..])
                        .into_iter()
                        .map(|segment| (line, segment)),
                );
            }
        }
        named
    }

    /// The names that the file re-exports, each with the module it takes them from.
    fn re_exports(&self) -> Vec<(String, String)> {
        let words = |path: &str| {
            path.split(|c: char| !c.is_alphanumeric() && c != '_')
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let uses = self.code.split(';').filter_map(|statement| {
            let (front, path) = statement.trim_start().split_once("use ")?;
            let (module, names) = path.split_once("::")?;
            front
                .starts_with("pub")
                .then(|| words(names).into_iter().map(move |name| (name, module.to_owned())))
        });
        uses.flatten().collect()
    }
}

/// Which module of a room imports which: an arrow for each pair.
///
/// The room's `mod.rs` joins its modules, so it is no part of a circle; an item that it re-exports
/// is imported from the module that defines it.
fn arrows_inside(room: &str, sources: &[Source]) -> BTreeSet<(String, String)> {
    let files: Vec<_> = sources.iter().filter(|source| source.room() == Some(room)).collect();
    let modules: BTreeSet<_> = files.iter().filter_map(|source| source.module()).collect();
    let front = files.iter().filter(|source| source.module().is_none());
    let re_exports: BTreeMap<_, _> = front.flat_map(|source| source.re_exports()).collect();
    let mut arrows = BTreeSet::new();
    for source in &files {
        let Some(module) = source.module() else { continue };
        for name in source.siblings() {
            let imported =
                if modules.contains(&*name) { Some(&name) } else { re_exports.get(&name) };
            if let Some(imported) = imported
                .filter(|imported| *imported != module && modules.contains(imported.as_str()))
            {
                arrows.insert((module.to_owned(), imported.clone()));
            }
        }
    }
    arrows
}

/// The arrows that lie on a circle, or between two circles: those left once modules that import none,
/// and those that none imports, are taken away until all others stay.
fn circles(arrows: &BTreeSet<(String, String)>) -> BTreeSet<(String, String)> {
    let mut left = arrows.clone();
    loop {
        let from: BTreeSet<_> = left.iter().map(|(from, _)| from.clone()).collect();
        let to: BTreeSet<_> = left.iter().map(|(_, to)| to.clone()).collect();
        let count = left.len();
        left.retain(|(one, other)| from.contains(other) && to.contains(one));
        if left.len() == count {
            return left;
        }
    }
}

/// `catalog` of `catalog::Service`; `name` and `wire` of `{name::{Name, Zones}, wire}`.
fn first_segments(path: &str) -> Vec<String> {
    let word = |text: &str| {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![word(path)] };
    let mut segments = vec![word(group.trim_start())];
    let mut depth = 1;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => segments.push(word(group[at + 1..].trim_start())),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    segments.retain(|segment| !segment.is_empty());
    segments
}

fn is_called(line: &str, printer: &str) -> bool {
    line.match_indices(printer)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Every Rust file under `src/` that is not a file of tests, as source.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = |path: PathBuf| {
        Source::new(
            path.strip_prefix(root).unwrap().to_owned(),
            &fs::read_to_string(&path).unwrap(),
        )
    };
    paths().into_iter().map(source).collect()
}

/// Every Rust file under `src/` that is not a file of tests.
fn paths() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut paths);
    paths.sort();
    assert!(paths.len() > 10, "src/ was not found where it should be");
    paths.retain(|path| {
        !path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
    });
    paths
}

/// The text with comments, strings and character literals replaced by spaces; lines stay where they are.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if let Some(length) =
            raw_string(rest).filter(|_| !code.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        {
            length
        } else if c == '"' {
            quoted(rest, '"')
        } else if c == '\'' && (rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'')) {
            quoted(rest, '\'')
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        code.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[skipped..];
    }
    code
}

/// Octets of the raw string that the text begins with.
fn raw_string(text: &str) -> Option<usize> {
    let start = text.strip_prefix('b').unwrap_or(text).strip_prefix('r')?;
    let hashes = start.len() - start.trim_start_matches('#').len();
    let body = start[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text.len() - body.len() + body.find(&end).map_or(body.len(), |at| at + end.len()))
}

/// Octets of the literal in these quotes that the text begins with.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}
