//! Rules for the source: imports between directories, names of types, printing, size of files.
//!
//! `docs/design.md` explains the imports. When a test fails, the import is usually wrong; if the
//! design is, change both together.
#![allow(clippy::unwrap_used, reason = "a test that cannot read the source must fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each directory of `src/` with the directories it may import.
const ALLOWED_IMPORTS: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "admin",
            "answer",
            "bridge",
            "catalog",
            "config",
            "daemon",
            "directory",
            "inherited",
            "name",
            "path_watch",
            "percent",
            "registry",
            "resolv_conf",
            "server",
            "service",
            "system",
            "wire",
        ],
    ),
    (
        "daemon",
        &[
            "admin",
            "answer",
            "bridge",
            "catalog",
            "checks",
            "config",
            "descriptors",
            "directory",
            "handover",
            "inherited",
            "name",
            "path_watch",
            "registry",
            "resolv_conf",
            "server",
            "service",
            "state_file",
            "system",
            "upstream",
            "wire",
        ],
    ),
    // Only their settings types.
    (
        "config",
        &[
            "answer",
            "bridge",
            "catalog",
            "checks",
            "directory",
            "name",
            "registry",
            "regular_file",
            "server",
            "service",
            "upstream",
        ],
    ),
    (
        "admin",
        &[
            "answer",
            "bridge",
            "catalog",
            "checks",
            "directory",
            "metrics",
            "name",
            "registry",
            "server",
            "service",
            "upstream",
            "wire",
        ],
    ),
    ("system", &["directory", "regular_file", "resolv_conf", "socket_table", "wire"]),
    ("server", &["descriptors", "inherited", "metrics", "regular_file", "wire"]),
    (
        "upstream",
        &[
            "descriptors",
            "metrics",
            "name",
            "path_watch",
            "regular_file",
            "resolv_conf",
            "service",
            "tls_error",
            "wire",
        ],
    ),
    ("answer", &["catalog", "metrics", "name", "service", "wire"]),
    ("bridge", &["descriptors", "directory", "metrics", "service", "socket_table", "state_file"]),
    ("catalog", &["name", "service"]),
    ("checks", &["descriptors", "metrics", "service", "tls_error"]),
    ("registry", &["percent", "regular_file", "service", "tls_error"]),
    ("name", &[]),
    ("service", &[]),
    ("wire", &[]),
    ("metrics", &[]),
    ("descriptors", &[]),
    ("directory", &[]),
    ("handover", &[]),
    ("inherited", &[]),
    ("regular_file", &[]),
    ("path_watch", &[]),
    ("percent", &[]),
    ("resolv_conf", &[]),
    ("socket_table", &[]),
    ("state_file", &["regular_file"]),
    ("tls_error", &[]),
];

/// Limit for the lines of a file without its tests.
///
/// A longer file has more than one purpose.
const MAX_FILE_LINES: usize = 600;

/// Limit for the characters of a line, comments included.
const MAX_COLUMNS: usize = 100;

/// Files with lines that cannot be broken, each with the reason.
const FILES_WITH_LONGER_LINES: &[(&str, &str)] = &[];

/// Type names that every folder may declare once; other code qualifies them by the folder.
const NAMES_OF_EVERY_FOLDER: [&str; 3] = ["Settings", "Counters", "Error"];

#[test]
fn directories_import_only_listed_directories() {
    let allowed_imports: BTreeMap<_, _> = ALLOWED_IMPORTS.iter().copied().collect();
    let mut faults = Vec::new();
    for source in sources() {
        let Some(folder) = source.folder() else { continue };
        let Some(allowed) = allowed_imports.get(folder) else {
            faults.push(format!("{}: `{folder}` is not listed here", source.path.display()));
            continue;
        };
        for (line, imported) in source.imports() {
            if imported != folder
                && allowed_imports.contains_key(imported.as_str())
                && !allowed.contains(&imported.as_str())
            {
                faults.push(format!(
                    "{}:{line}: `{folder}` may not import `{imported}`",
                    source.path.display()
                ));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn allowed_imports_list_every_directory_and_form_no_cycle() {
    let folders: BTreeSet<_> =
        sources().iter().filter_map(|source| source.folder().map(str::to_owned)).collect();
    let listed: BTreeSet<_> =
        ALLOWED_IMPORTS.iter().map(|(folder, _)| (*folder).to_owned()).collect();
    assert_eq!(folders, listed, "left: directories of src/, right: directories listed here");
    // A topological sort: a directory is sorted once all that it may import are.
    let mut sorted: BTreeSet<&str> = BTreeSet::new();
    while sorted.len() < ALLOWED_IMPORTS.len() {
        let next = ALLOWED_IMPORTS.iter().find(|(folder, imported)| {
            !sorted.contains(folder) && imported.iter().all(|folder| sorted.contains(folder))
        });
        let Some((folder, _)) = next else {
            panic!("the allowed imports form a cycle; only {sorted:?} are not part of it")
        };
        sorted.insert(folder);
    }
}

#[test]
fn modules_of_a_directory_form_no_import_cycle() {
    let sources = sources();
    let mut faults = Vec::new();
    for (folder, _) in ALLOWED_IMPORTS {
        let imports = imports_between_modules(folder, &sources);
        faults.extend(
            cycles(&imports)
                .iter()
                .map(|(from, to)| format!("{folder}: {from} -> {to} is part of a cycle")),
        );
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn reason_codes_are_unique() {
    let mut codes = BTreeMap::new();
    for path in paths() {
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let constructor =
            if path.ends_with("service/rejection.rs") { "Self::new(" } else { "Reason::new(" };
        for (at, _) in text.match_indices(constructor) {
            let argument = text[at + constructor.len()..].trim_start().strip_prefix('"');
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
    for source in sources().iter().filter(|source| source.folder() != Some("cli")) {
        for (line, text) in source.code.lines().enumerate() {
            if ["println!", "print!", "eprintln!", "eprint!", "dbg!"]
                .iter()
                .any(|printer| is_called(text, printer))
            {
                faults.push(format!("{}:{}: {}", source.path.display(), line + 1, text.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "only src/cli may print:\n{}\n", faults.join("\n"));
}

#[test]
fn no_file_exceeds_the_limit_of_lines() {
    let long: Vec<_> = sources()
        .iter()
        .map(|source| (source.code.lines().count(), source.path.clone()))
        .filter(|(lines, _)| *lines > MAX_FILE_LINES)
        .map(|(lines, path)| format!("{}: {lines} lines without tests", path.display()))
        .collect();
    assert!(
        long.is_empty(),
        "files of more than {MAX_FILE_LINES} lines without tests:\n{}\n",
        long.join("\n")
    );
}

#[test]
fn no_line_exceeds_the_limit_of_columns() {
    let exceptions: BTreeMap<_, _> = FILES_WITH_LONGER_LINES.iter().copied().collect();
    let (mut faults, mut used) = (Vec::new(), BTreeSet::new());
    for (path, text) in ["src", "tests"].iter().flat_map(|folder| rust_files(folder)) {
        let file = path.to_str().unwrap();
        for (line, columns) in lines_above(MAX_COLUMNS, &text) {
            if let Some((exception, _)) = exceptions.get_key_value(file) {
                used.insert(*exception);
            } else {
                faults.push(format!("{file}:{line}: {columns} columns"));
            }
        }
    }
    faults.extend(
        exceptions
            .iter()
            .filter(|(file, _)| !used.contains(**file))
            .map(|(file, reason)| format!("{file}: listed, but has no long line ({reason})")),
    );
    assert!(
        faults.is_empty(),
        "lines of more than {MAX_COLUMNS} columns: {}\n{}\n",
        faults.len(),
        faults.join("\n")
    );
}

#[test]
fn lines_are_measured_in_characters() {
    let found = |text: &str| lines_above(4, text).collect::<Vec<_>>();
    assert_eq!(found("four\nfive5\n\n// six\n"), [(2, 5), (4, 6)]);
    assert_eq!(found("µµµµ\r\nµµµµµ"), [(2, 5)]);
}

#[test]
fn type_names_are_unique_in_the_crate() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in rust_files("src") {
        for (line, name) in declared_types(&blank(&text)) {
            let qualified = if NAMES_OF_EVERY_FOLDER.contains(&&*name) {
                format!("{name} of {}", path.parent().unwrap().display())
            } else {
                name
            };
            places.entry(qualified).or_default().push(format!("{}:{line}", path.display()));
        }
    }
    assert!(places.len() > 100, "only {} types were found", places.len());
    places.retain(|_, places| places.len() > 1);
    let faults: Vec<_> =
        places.iter().map(|(name, places)| format!("{name}: {}", places.join(", "))).collect();
    assert!(
        faults.is_empty(),
        "type names that are declared more than once: {}\n{}\n",
        faults.len(),
        faults.join("\n")
    );
}

#[test]
fn type_declarations_are_found_in_source() {
    let found = |text: &str| declared_types(&blank(text));
    let names = |text: &str| found(text).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(
        found(
            "pub struct A;\n\npub(crate) enum B<T> {\n    C(T),\n}\n#[derive(Debug)]\nunion D {}\n"
        ),
        [(1, "A".to_owned()), (3, "B".to_owned()), (7, "D".to_owned())]
    );
    assert_eq!(names("pub(super) unsafe trait A: B { type C; } type D<'a> = &'a A;"), ["A", "D"]);
    // Associated types are no declarations, but types of a function inside an `impl` are.
    let implementation = "impl Iterator for [A; 4] {
        type Item = B;
        fn next(&mut self) -> Option<impl C> { struct D; call(|| { type E = D; }); None }
        type Other = F;
    }
    struct G;";
    assert_eq!(names(implementation), ["D", "E", "G"]);
    assert_eq!(names("fn f() -> impl A { enum B {} } mod tests { struct C(u8); }"), ["B", "C"]);
    // Words in comments and strings, methods, and names of macros are none.
    let other = "// struct A\n/* enum B */ let c = \"struct C\"; one.union(&other); fn union() {}
        macro_rules! m { ($name:ident) => { struct $name; } } let structure = my_struct;";
    assert_eq!(names(other), [] as [&str; 0]);
}

#[test]
fn imports_are_found_in_source() {
    let source = |text: &str| Source::new(PathBuf::from("src/answer/full/mod.rs"), text);
    let imported = |text: &str| {
        source(text).imports().into_iter().map(|(_, folder)| folder).collect::<Vec<_>>()
    };
    assert_eq!(imported("use crate::catalog::Service;"), ["catalog"]);
    assert_eq!(
        imported("use crate::{name::{Name, Zones}, wire, service::*};"),
        ["name", "wire", "service"]
    );
    assert_eq!(imported("use crate::{\n    cli,\n    config::Config,\n};"), ["cli", "config"]);
    assert_eq!(
        imported("fn f() -> crate::server::Settings { svcdns::admin::x() }"),
        ["server", "admin"]
    );
    assert_eq!(imported("use super::super::registry::gsvc;"), ["registry"]);
    assert_eq!(imported("use super::fit;"), [] as [&str; 0]);
    assert_eq!(
        imported(
            "// use crate::cli;\n/* crate::cli */ let s = \"crate::cli\"; let c = '\"'; \
             let r = r#\"crate::cli\"#;"
        ),
        [] as [&str; 0]
    );
    assert_eq!(
        imported("pub(crate) fn f() {}\n#[cfg(test)]\nmod tests { use crate::cli; }"),
        [] as [&str; 0]
    );
    assert!(is_called("    println!(\"\")", "println!"));
    assert!(!is_called("    eprintln!(\"\")", "println!"));
}

#[test]
fn import_cycles_of_modules_are_found() {
    let cycles_in = |files: &[(&str, &str)]| {
        let files = files
            .iter()
            .map(|(file, text)| Source::new(PathBuf::from("src/answer").join(file), text));
        let imports = imports_between_modules("answer", &files.collect::<Vec<_>>());
        cycles(&imports).into_iter().map(|(from, to)| format!("{from} -> {to}")).collect::<Vec<_>>()
    };
    let none = [] as [&str; 0];
    assert_eq!(
        cycles_in(&[("a.rs", "use super::b::B;"), ("b.rs", "use super::c;"), ("c.rs", "")]),
        none
    );
    assert_eq!(
        cycles_in(&[
            ("a.rs", "use super::{b::B, c};"),
            ("b.rs", "fn f() { crate::answer::a::f() }"),
            ("c.rs", "")
        ]),
        ["a -> b", "b -> a"]
    );
    // Modules that import a cycle, or that it imports, are not part of it; a directory is one
    // module.
    let files = [
        ("front.rs", "use super::a;"),
        ("a.rs", "use super::b; use super::behind;"),
        ("b/mod.rs", "mod inner; use super::behind;"),
        ("b/inner.rs", "use super::super::a::A;"),
        ("behind.rs", ""),
    ];
    assert_eq!(cycles_in(&files), ["a -> b", "b -> a"]);
    // A re-exported item is imported from the module that defines it; `mod.rs` is no module here.
    let re_exports = [
        ("mod.rs", "mod a; mod b; pub use a::{A, Other}; pub struct Own;"),
        ("a.rs", "use super::b;"),
        ("b.rs", "use super::{A, Own};"),
    ];
    assert_eq!(cycles_in(&re_exports), ["a -> b", "b -> a"]);
    assert_eq!(cycles_in(&[re_exports[0], re_exports[1], ("b.rs", "use super::Own;")]), none);
    // A module of the same name in another directory is no sibling.
    assert_eq!(
        cycles_in(&[
            ("a.rs", "use super::b;"),
            ("b.rs", "use crate::name::a; mod x { use super::super::super::a; }")
        ]),
        none
    );
}

/// A file of `src/` with its code.
///
/// The code is without tests, and with comments and strings blanked.
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

    /// Returns the top directory of the file; `None` for `lib.rs` and `main.rs`.
    fn folder(&self) -> Option<&str> {
        let first =
            self.path.strip_prefix("src").unwrap().components().next()?.as_os_str().to_str()?;
        let folder = first.strip_suffix(".rs").unwrap_or(first);
        (folder != "lib" && folder != "main").then_some(folder)
    }

    /// Returns the depth of the file's module.
    ///
    /// 1 for `src/name/mod.rs`, 2 for `src/name/zones.rs`.
    fn depth(&self) -> usize {
        self.path.strip_prefix("src").unwrap().components().count()
            - usize::from(self.path.ends_with("mod.rs"))
    }

    /// Returns the first segment of each path below the crate root, with its line.
    fn imports(&self) -> Vec<(usize, String)> {
        self.segments_below(&["crate::", "svcdns::", &"super::".repeat(self.depth())])
    }

    /// Returns the file's module in its directory; `None` for the directory's `mod.rs`.
    fn module(&self) -> Option<&str> {
        let second =
            self.path.strip_prefix("src").unwrap().components().nth(1)?.as_os_str().to_str()?;
        let module = second.strip_suffix(".rs").unwrap_or(second);
        (module != "mod").then_some(module)
    }

    /// Returns the first segment of each path below the file's directory.
    fn siblings(&self) -> Vec<String> {
        let folder = format!("crate::{}::", self.folder().unwrap_or_default());
        let to_folder = "super::".repeat(self.depth() - 1);
        self.segments_below(&[&folder, &to_folder]).into_iter().map(|(_, module)| module).collect()
    }

    /// Returns the first segment of each path below any of these roots, with its line.
    fn segments_below(&self, roots: &[&str]) -> Vec<(usize, String)> {
        let mut segments = Vec::new();
        for root in roots {
            for (at, _) in self.code.match_indices(root) {
                let before = self.code[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue;
                }
                let line = self.code[..at].lines().count().max(1);
                segments.extend(
                    first_segments(&self.code[at + root.len()..])
                        .into_iter()
                        .map(|segment| (line, segment)),
                );
            }
        }
        segments
    }

    /// Returns the names that the file re-exports, each with its module.
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

/// Returns which module of a directory imports which, as pairs.
///
/// `mod.rs` is not part of a cycle, because it declares the modules. An item that it re-exports
/// counts as imported from the module that defines it.
fn imports_between_modules(folder: &str, sources: &[Source]) -> BTreeSet<(String, String)> {
    let files: Vec<_> = sources.iter().filter(|source| source.folder() == Some(folder)).collect();
    let modules: BTreeSet<_> = files.iter().filter_map(|source| source.module()).collect();
    let mod_rs = files.iter().filter(|source| source.module().is_none());
    let re_exports: BTreeMap<_, _> = mod_rs.flat_map(|source| source.re_exports()).collect();
    let mut imports = BTreeSet::new();
    for source in &files {
        let Some(module) = source.module() else { continue };
        for name in source.siblings() {
            let imported =
                if modules.contains(&*name) { Some(&name) } else { re_exports.get(&name) };
            if let Some(imported) = imported
                .filter(|imported| *imported != module && modules.contains(imported.as_str()))
            {
                imports.insert((module.to_owned(), imported.clone()));
            }
        }
    }
    imports
}

/// Returns the imports that are part of a cycle, or between two cycles.
///
/// Modules that import none, or that none imports, are removed until no such module is left.
fn cycles(imports: &BTreeSet<(String, String)>) -> BTreeSet<(String, String)> {
    let mut left = imports.clone();
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

/// Returns the first segments of a path, which may be a group.
///
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

/// Returns every Rust file of `src/` except files of tests.
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

/// Returns the path of every Rust file of `src/` except files of tests.
fn paths() -> Vec<PathBuf> {
    let mut paths = paths_below("src");
    paths.retain(|path| {
        !path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
    });
    paths
}

/// Returns the path of every Rust file in a folder of the project, sorted.
fn paths_below(folder: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut paths);
    paths.sort();
    assert!(paths.len() > 10, "{folder}/ was not found");
    paths
}

/// Returns path and text of every Rust file in a folder of the project, tests included.
fn rust_files(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: PathBuf| {
        (path.strip_prefix(root).unwrap().to_owned(), fs::read_to_string(&path).unwrap())
    };
    paths_below(folder).into_iter().map(read).collect()
}

/// Returns number and columns of each line that has more characters than `limit`.
fn lines_above(limit: usize, text: &str) -> impl Iterator<Item = (usize, usize)> {
    let columns = text.lines().map(|line| line.chars().count());
    (1..).zip(columns).filter(move |(_, columns)| *columns > limit)
}

/// Returns the types that blanked code declares, with their lines.
///
/// Associated types, which are in a block of an `impl` or a trait, are left out.
fn declared_types(code: &str) -> Vec<(usize, String)> {
    /// A block in braces, with the depth of brackets around it.
    struct Block {
        has_associated_types: bool,
        brackets: usize,
    }

    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut declared, mut blocks) = (Vec::new(), Vec::<Block>::new());
    // Words since the last item or statement outside brackets, and the depth of brackets.
    let (mut statement, mut brackets): (Vec<&str>, usize) = (Vec::new(), 0);
    let (mut rest, mut line) = (code, 1);
    while let Some(c) = rest.chars().next() {
        let length = if is_word(c) { rest.find(|c| !is_word(c)).unwrap_or(rest.len()) } else { 0 };
        if length > 0 {
            let (word, after) = rest.split_at(length);
            let name: String = after.trim_start().chars().take_while(|c| is_word(*c)).collect();
            let is_associated =
                word == "type" && blocks.last().is_some_and(|block| block.has_associated_types);
            if ["struct", "enum", "trait", "union", "type"].contains(&word)
                && name.starts_with(char::is_uppercase)
                && after.starts_with(char::is_whitespace)
                && !is_associated
            {
                declared.push((line, name));
            }
            if brackets == 0 {
                statement.push(word);
            }
            rest = after;
            continue;
        }
        match c {
            '\n' => line += 1,
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets = brackets.saturating_sub(1),
            ';' if brackets == 0 => statement.clear(),
            '{' => {
                let mut words = statement.iter().filter(|word| !["pub", "unsafe"].contains(word));
                let has_associated_types = matches!(words.next(), Some(&("impl" | "trait")));
                blocks.push(Block { has_associated_types, brackets });
                (brackets, statement) = (0, Vec::new());
            }
            '}' => {
                brackets = blocks.pop().map_or(0, |block| block.brackets);
                statement.clear();
            }
            _ => {}
        }
        rest = &rest[c.len_utf8()..];
    }
    declared
}

/// Blanks comments, strings and character literals; keeps line breaks.
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

/// Returns the bytes of the raw string at the start of the text, if any.
fn raw_string(text: &str) -> Option<usize> {
    let start = text.strip_prefix('b').unwrap_or(text).strip_prefix('r')?;
    let hashes = start.len() - start.trim_start_matches('#').len();
    let body = start[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text.len() - body.len() + body.find(&end).map_or(body.len(), |at| at + end.len()))
}

/// Returns the length in bytes of the quoted literal at the start of the text.
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
