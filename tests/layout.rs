//! The layout of `src/` is the one that `docs/design.md` draws: no module imports from a floor above its own,
//! and no files import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module by its path, such as `["store", "memory", "slots"]`; the crate's root is empty.
type Module = Vec<String>;

/// A source file, and the paths that it names.
struct Source {
    module: Module,
    /// Paths from the crate's root, without those of the file's own re-exports.
    imports: BTreeSet<Vec<String>>,
    /// What `pub use` hands on: the name, and the path it comes from.
    hands_on: BTreeMap<String, Vec<String>>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The code without comments, texts and what follows the tests' `cfg`.
fn code_of(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    let lines = text[..end].lines();
    let lines: Vec<_> = lines.filter(|line| !line.trim_start().starts_with("//")).collect();
    let text = lines
        .join("\n")
        .replace("'\"'", "")
        .replace("\\\\", "")
        .replace("\\\"", "");
    // What is between quotation marks is each second piece.
    let pieces = text.split('"').step_by(2);
    let code = pieces.collect::<Vec<_>>().join("\"\"");
    let lines = code.lines().map(|line| line.split(" // ").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// `a::{b, c::{d, e as f}}` as the paths `a::b`, `a::c::d` and `a::c::e`, each with the name it gets.
fn paths_of(tree: &str, before: &[String], found: &mut Vec<(Vec<String>, String)>) {
    let tree = tree.trim();
    if let Some((prefix, group)) = tree.split_once('{') {
        let mut path = before.to_vec();
        path.extend(
            prefix
                .split("::")
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(str::to_owned),
        );
        let group = group.strip_suffix('}').expect("a closed group");
        let (mut depth, mut start) = (0, 0);
        for (at, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    paths_of(&group[start..at], &path, found);
                    start = at + 1;
                }
                _ => {}
            }
        }
        paths_of(&group[start..], &path, found);
    } else if !tree.is_empty() {
        let (path, name) = tree.split_once(" as ").unwrap_or((tree, ""));
        let mut whole = before.to_vec();
        whole.extend(path.split("::").map(|part| part.trim().to_owned()));
        if whole.last().is_some_and(|last| last == "self") {
            whole.pop();
        }
        let last = whole.last().cloned().unwrap_or_default();
        found.push((whole, if name.is_empty() { last } else { name.trim().to_owned() }));
    }
}

/// A path as it is written, from the crate's root. `None`: of another crate.
fn from_root(path: &[String], module: &Module, modules: &BTreeSet<Module>) -> Option<Vec<String>> {
    let mut base = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "self" => module.clone(),
        "super" => module[..module.len() - 1].to_vec(),
        first => {
            let child = [module.as_slice(), &[first.to_owned()]].concat();
            return modules.contains(&child).then(|| [module.as_slice(), path].concat());
        }
    };
    for part in &path[1..] {
        match part.as_str() {
            "super" => drop(base.pop()),
            part => base.push(part.to_owned()),
        }
    }
    Some(base)
}

fn sources() -> Vec<Source> {
    let folder = root().join("src");
    let mut files = Vec::new();
    rust_files(&folder, &mut files);
    let module_of = |file: &Path| {
        let path = file.strip_prefix(&folder).unwrap().with_extension("");
        let mut module: Module = path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        module
    };
    let modules: BTreeSet<_> = files.iter().map(|file| module_of(file)).collect();
    files
        .iter()
        .map(|file| {
            let module = module_of(file);
            let code = code_of(&fs::read_to_string(file).unwrap());
            let mut source = Source {
                module: module.clone(),
                imports: BTreeSet::new(),
                hands_on: BTreeMap::new(),
            };
            let mut rest = String::new();
            for statement in code.split_inclusive(';') {
                let Some(at) = statement.find("use ").filter(|at| is_item(&statement[..*at])) else {
                    rest.push_str(statement);
                    continue;
                };
                let is_public =
                    statement[..at].trim_end().ends_with("pub") || statement[..at].trim_end().ends_with(')');
                let tree = statement[at + 4..].trim_end_matches(';').replace('\n', " ");
                let mut paths = Vec::new();
                paths_of(&tree, &[], &mut paths);
                for (path, name) in paths {
                    let Some(path) = from_root(&path, &module, &modules) else {
                        continue;
                    };
                    if is_public && path.len() > module.len() && path[..module.len()] == module[..] {
                        source.hands_on.insert(name, path);
                    } else {
                        source.imports.insert(path);
                    }
                }
            }
            // Paths that are written out where they are used.
            for (at, _) in rest.match_indices("crate::") {
                let written = rest[at..]
                    .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
                    .next();
                let path: Vec<_> = written.unwrap_or_default().split("::").map(str::to_owned).collect();
                source.imports.extend(from_root(&path, &module, &modules));
            }
            source
        })
        .collect()
}

/// Whether `use` after this text begins an item, and is no word in the code.
fn is_item(before: &str) -> bool {
    let before = before.trim_end();
    before.is_empty() || before.ends_with([';', '}', '{', ']', ')']) || before.ends_with("pub")
}

/// The file that defines what a path names, through the files that only hand it on.
fn defining<'s>(path: &[String], sources: &'s [Source]) -> Option<&'s Source> {
    let mut path = path.to_vec();
    for _ in 0..8 {
        let source = (0..=path.len())
            .rev()
            .find_map(|length| sources.iter().find(|source| source.module[..] == path[..length]))?;
        let Some(name) = path.get(source.module.len()) else {
            return Some(source);
        };
        match source.hands_on.get(name) {
            Some(from) => path = [from.as_slice(), &path[source.module.len() + 1..]].concat(),
            None => return Some(source),
        }
    }
    None
}

/// The floors of `docs/design.md`: the height of each module right below `src/`.
fn floors() -> BTreeMap<String, usize> {
    let page = fs::read_to_string(root().join("docs/design.md")).unwrap();
    let drawing = page
        .split("## What are the floors?")
        .nth(1)
        .and_then(|rest| rest.split("```").nth(1))
        .expect("docs/design.md draws the floors");
    let mut floors = BTreeMap::new();
    for line in drawing
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
    {
        let (floor, modules) = line.split_once(' ').unwrap();
        let modules = modules.trim_start().split("  ").next().unwrap();
        for module in modules.split(' ') {
            floors.insert(module.to_owned(), floor.parse().unwrap());
        }
    }
    floors
}

#[test]
fn no_module_imports_from_a_floor_above_its_own() {
    let (sources, floors) = (sources(), floors());
    let mut drawn: BTreeSet<_> = floors.keys().cloned().collect();
    let mut checked = 0;
    for source in &sources {
        let Some(top) = source.module.first() else { continue };
        let own = *floors
            .get(top)
            .unwrap_or_else(|| panic!("docs/design.md does not draw `{top}`"));
        drawn.remove(top);
        for path in &source.imports {
            let Some(other) = defining(path, &sources).and_then(|other| other.module.first()) else {
                continue;
            };
            checked += 1;
            assert!(
                other == top || floors[other] < own,
                "{} imports {}: floor {} is not below floor {own}",
                source.module.join("::"),
                path.join("::"),
                floors[other],
            );
        }
    }
    assert!(drawn.is_empty(), "docs/design.md draws what is not there: {drawn:?}");
    assert!(checked > 300, "only {checked} imports were found");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources();
    let mut imports: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
    for source in &sources {
        let others = source.imports.iter().filter_map(|path| defining(path, &sources));
        let others = others
            .map(|other| &other.module)
            .filter(|other| **other != source.module);
        imports.insert(&source.module, others.collect());
    }
    // Taken away are files that import nothing that is left; what remains is in a circle or above one.
    loop {
        let free: Vec<_> = imports
            .keys()
            .copied()
            .filter(|module| imports[module].is_empty())
            .collect();
        if free.is_empty() {
            break;
        }
        for module in free {
            imports.remove(module);
            imports.values_mut().for_each(|others| {
                others.remove(module);
            });
        }
    }
    let left: Vec<_> = imports
        .iter()
        .map(|(module, others)| {
            let others: Vec<_> = others.iter().map(|other| other.join("::")).collect();
            format!("{} imports {}", module.join("::"), others.join(", "))
        })
        .collect();
    assert!(left.is_empty(), "a circle, or above one:\n{}", left.join("\n"));
}

#[test]
fn what_is_written_in_braces_is_read_as_the_paths_it_stands_for() {
    let mut found = Vec::new();
    paths_of("crate::{a::{B, c::D as E}, f::{self, G}}", &[], &mut found);
    let read: Vec<_> = found
        .iter()
        .map(|(path, name)| (path.join("::"), name.as_str()))
        .collect();
    let expected = [
        ("crate::a::B", "B"),
        ("crate::a::c::D", "E"),
        ("crate::f", "f"),
        ("crate::f::G", "G"),
    ];
    assert_eq!(read, expected.map(|(path, name)| (path.to_owned(), name)));
}
