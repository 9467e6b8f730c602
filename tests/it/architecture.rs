//! Every file of `src/` keeps to its floor, as ARCHITECTURE.md draws it.

use std::collections::BTreeMap;
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
