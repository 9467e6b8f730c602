//! Every file of `src/` keeps to its floor, as ARCHITECTURE.md draws it, and some folders have no import circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The floor of each listed module path, counted from the top.
fn floors(text: &str) -> BTreeMap<String, usize> {
    let block = text.split("```floors\n").nth(1).expect("ARCHITECTURE.md has a block of floors");
    let block = block.split("```").next().expect("the block ends");
    block
        .lines()
        .enumerate()
        .flat_map(|(floor, line)| line.split_whitespace().map(move |module| (module.to_owned(), floor)))
        .collect()
}

/// The longest listed module that this path lies in.
fn home<'a>(floors: &'a BTreeMap<String, usize>, path: &[&str]) -> Option<(&'a str, usize)> {
    (1..=path.len())
        .rev()
        .find_map(|len| floors.get_key_value(&path[..len].join("::")))
        .map(|(module, floor)| (module.as_str(), *floor))
}

fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

/// The module paths that a source file names, as `crate::…` or, in the binary, `blobferry::…`.
fn imports(source: &str, root: &str) -> Vec<Vec<String>> {
    let code: String = source.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        if code[..at]
            .chars()
            .next_back()
            .is_some_and(|before| before.is_alphanumeric() || before == '_' || before == ':')
        {
            continue;
        }
        let rest = &code[at + root.len()..];
        let path: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
        found.push(path.split("::").map(str::to_owned).filter(|part| !part.is_empty()).collect());
    }
    found
}

fn source_files(dir: &Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).expect("a source folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            source_files(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn every_file_keeps_to_its_floor() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let floors = floors(&fs::read_to_string(top.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md"));
    let src = top.join("src");
    let mut files = Vec::new();
    source_files(&src, &mut files);
    assert!(files.len() > 10, "found only {} files", files.len());

    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).expect("below src");
        let own = module_path(relative);
        if own == ["lib"] {
            continue;
        }
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let Some((own_home, own_floor)) = home(&floors, &own) else {
            wrong.push(format!("{}: stands on no floor; add it to ARCHITECTURE.md", relative.display()));
            continue;
        };
        let source = fs::read_to_string(&file).expect("a source file");
        // A module's tests may use what stands below it, as the program does.
        let source = if own.last() == Some(&"tests") || own.last() == Some(&"suite") {
            String::new()
        } else {
            source.split("#[cfg(test)]\nmod tests {").next().unwrap_or("").to_owned()
        };
        let root = if own == ["main"] { "blobferry::" } else { "crate::" };
        if source.contains(&format!("use {root}{{")) {
            wrong.push(format!("{}: one `use {root}…` for each module, so that its floor shows", relative.display()));
        }
        for path in imports(&source, root) {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match home(&floors, &path) {
                Some((target, floor)) if floor > own_floor => {
                    wrong.push(format!("{}: {own_home} imports {target}, which stands below it", relative.display()))
                }
                Some(_) => {}
                None => wrong.push(format!("{}: imports {} of no floor", relative.display(), path.join("::"))),
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Folders in which no file imports another that imports it in turn. A file that only names and re-exports its children
/// imports nothing.
const WITHOUT_CIRCLES: [&str; 2] = ["worker", "queue::rocks"];

/// The modules among these that a file imports.
fn imported(own: &str, source: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let code: String = source.lines().filter(is_code).collect::<Vec<_>>().join("\n");
    let statements = code.split(';').filter(|statement| {
        let statement = statement.trim_start();
        !(statement.starts_with("pub") && statement.contains(" use "))
    });
    let mut found = BTreeSet::new();
    for statement in statements {
        for root in ["super::", "crate::"] {
            for (at, _) in statement.match_indices(root) {
                let before = statement[..at].chars().next_back();
                if before.is_some_and(|before| before.is_alphanumeric() || before == '_' || before == ':') {
                    continue;
                }
                for path in expanded(&statement[at..]) {
                    found.extend(module_of(own, &path, modules));
                }
            }
        }
    }
    found.remove(own);
    found
}

/// The paths at the beginning of this text: one, or those of a group in braces.
fn expanded(text: &str) -> Vec<String> {
    let head: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
    let Some(group) = text[head.len()..].strip_prefix('{').filter(|_| head.ends_with("::")) else { return vec![head] };
    let (mut depth, mut items) = (0, vec![String::new()]);
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => items.push(String::new()),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                items.last_mut().expect("one at least").push(c);
            }
        }
    }
    items.iter().flat_map(|item| expanded(item.trim())).map(|item| format!("{head}{item}")).collect()
}

/// The longest of these modules in which a path of this module leads.
fn module_of(own: &str, path: &str, modules: &BTreeSet<String>) -> Option<String> {
    let mut parts: Vec<&str> = own.split("::").collect();
    let mut path = path.split("::").filter(|part| !part.is_empty()).peekable();
    if path.next_if_eq(&"crate").is_some() {
        parts.clear();
    }
    while path.next_if_eq(&"super").is_some() {
        parts.pop();
    }
    parts.extend(path);
    (1..=parts.len()).rev().map(|len| parts[..len].join("::")).find(|module| modules.contains(module))
}

/// Modules that import one another in a circle, or lead to those that do.
fn in_circles(mut imports: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let ends: BTreeSet<String> =
            imports.iter().filter(|(_, to)| to.is_empty()).map(|(module, _)| module.clone()).collect();
        if ends.is_empty() {
            return imports;
        }
        imports.retain(|module, _| !ends.contains(module));
        imports.values_mut().for_each(|to| to.retain(|module| !ends.contains(module)));
    }
}

#[test]
fn these_folders_have_no_import_circle() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&src, &mut files);
    for folder in WITHOUT_CIRCLES {
        let is_within = |module: &str| module == folder || module.starts_with(&format!("{folder}::"));
        let is_test = |module: &str| module.split("::").any(|part| part == "tests" || part == "simulation");
        let modules =
            files.iter().map(|file| (module_path(file.strip_prefix(&src).expect("below src")).join("::"), file));
        let modules: BTreeMap<String, _> =
            modules.filter(|(module, _)| is_within(module) && !is_test(module)).collect();
        assert!(modules.len() > 5, "{folder} has only {} files", modules.len());
        let names: BTreeSet<String> = modules.keys().cloned().collect();
        let imports = modules.into_iter().map(|(module, file)| {
            let source = fs::read_to_string(file).expect("a source file");
            let imported = imported(&module, source.split("#[cfg(test)]\nmod tests").next().unwrap_or(""), &names);
            (module, imported)
        });
        let circles = in_circles(imports.collect());
        assert!(circles.is_empty(), "{folder}: {circles:#?}");
    }
}

#[test]
fn a_circle_is_noticed() {
    let names = BTreeSet::from(["a".to_owned(), "a::b".to_owned(), "a::c".to_owned()]);
    let of = |own: &str, source: &str| imported(own, source, &names);
    let b = of("a::b", "use super::{c::{self, X}, Y};");
    assert_eq!(b, BTreeSet::from(["a".to_owned(), "a::c".to_owned()]));
    let c = of("a::c", "fn f() { crate::a::b::g() } // super::nothing");
    let root = of("a", "mod b;\npub use b::X;");
    let imports = BTreeMap::from([("a".to_owned(), root), ("a::b".to_owned(), b), ("a::c".to_owned(), c)]);
    assert_eq!(in_circles(imports).into_keys().collect::<Vec<_>>(), ["a::b", "a::c"]);
}

#[test]
fn an_import_from_below_is_noticed() {
    let floors = floors("```floors\nblob\nstore\nstore::disk\nworker\n```");
    let found =
        imports("use crate::worker::Worker; // use crate::nothing\nfn f() { crate::store::disk::open() }", "crate::");
    let homes: Vec<_> =
        found.iter().map(|path| home(&floors, &path.iter().map(String::as_str).collect::<Vec<_>>())).collect();
    assert_eq!(homes, [Some(("worker", 3)), Some(("store::disk", 2))]);
    assert_eq!(home(&floors, &["store", "remote"]), Some(("store", 1)));
}
