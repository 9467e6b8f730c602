//! Every file of `src/` keeps to its layer, as ARCHITECTURE.md draws it, some folders have no import circle, and nothing above
//! `app` asks the machine for the time or for a random number.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The layer of each listed module path, counted from the top.
fn layers(text: &str) -> BTreeMap<String, usize> {
    let block = text.split("```layers\n").nth(1).expect("ARCHITECTURE.md has a block of layers");
    let block = block.split("```").next().expect("the block ends");
    block
        .lines()
        .enumerate()
        .flat_map(|(layer, line)| line.split_whitespace().map(move |module| (module.to_owned(), layer)))
        .collect()
}

/// The longest listed module that this path lies in.
fn home<'a>(layers: &'a BTreeMap<String, usize>, path: &[&str]) -> Option<(&'a str, usize)> {
    (1..=path.len())
        .rev()
        .find_map(|len| layers.get_key_value(&path[..len].join("::")))
        .map(|(module, layer)| (module.as_str(), *layer))
}

fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

/// A file without its comments and its tests. What is `#[cfg(test)]` ends, as rustfmt leaves it, with the next line that is
/// indented as little.
fn code_of(source: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut code = String::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            lines.find(|last| indent(last) == indent(line) && last.ends_with([';', '}']));
            continue;
        }
        code.push_str(line.split("//").next().unwrap_or(""));
        code.push('\n');
    }
    code
}

/// What follows each of these names, where they are not the end of longer ones.
fn after<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let is_name = |before: char| before.is_alphanumeric() || before == '_';
    let whole = move |at: &usize| !code[..*at].chars().next_back().is_some_and(is_name);
    code.match_indices(name).map(|(at, _)| at).filter(whole).map(|at| &code[at + name.len()..])
}

/// The module paths that code names, as `crate::…` or, in the binary, `blobferry::…`.
fn imports(code: &str, root: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for rest in after(code, root) {
        let path: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
        found.push(path.split("::").map(str::to_owned).filter(|part| !part.is_empty()).collect());
    }
    found
}

/// What in this code asks the machine for the time, or for something random. Tokio's time is another.
fn asks(code: &str) -> Vec<&'static str> {
    let is_instant = |rest: &str| match rest.strip_prefix('{') {
        Some(list) => list.split('}').next().unwrap_or("").split(',').any(|name| name.trim() == "Instant"),
        None => rest.starts_with("Instant"),
    };
    let mut found: Vec<_> = ["SystemTime::now", "SystemClock::new", "Entropy::from_os", "rand::"].into();
    found.retain(|name| after(code, name).next().is_some());
    found.extend(after(code, "std::time::").any(is_instant).then_some("std::time::Instant"));
    found
}

/// Files of modules that are compiled for tests alone.
fn is_test(path: &[&str]) -> bool {
    path.iter().any(|module| ["tests", "suite", "simulation"].contains(module))
}

fn source_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a source folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            source_files(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
}

/// A file's module path, and its source.
type File = (Vec<String>, String);

/// The layers, and every file but `lib.rs`.
fn project() -> (BTreeMap<String, usize>, Vec<File>) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let layers = layers(&fs::read_to_string(top.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md"));
    let src = top.join("src");
    let mut files = Vec::new();
    source_files(&src, &mut files);
    assert!(files.len() > 10, "found only {} files", files.len());
    let read = |file: &PathBuf| {
        let path = module_path(file.strip_prefix(&src).expect("below src"));
        (path, fs::read_to_string(file).expect("a source file"))
    };
    (layers, files.iter().map(read).filter(|(path, _)| path != &["lib"]).collect())
}

#[test]
fn every_file_keeps_to_its_layer() {
    let (layers, files) = project();
    let mut wrong = Vec::new();
    for (own, source) in files {
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let name = own.join("::");
        let Some((own_home, own_layer)) = home(&layers, &own) else {
            wrong.push(format!("{name}: stands in no layer; add it to ARCHITECTURE.md"));
            continue;
        };
        // A module's tests may use what stands below it, as the program does.
        let code = if is_test(&own) { String::new() } else { code_of(&source) };
        let root = if own == ["main"] { "blobferry::" } else { "crate::" };
        if code.contains(&format!("use {root}{{")) {
            wrong.push(format!("{name}: one `use {root}…` for each module, so that its layer shows"));
        }
        for path in imports(&code, root) {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match home(&layers, &path) {
                Some((target, layer)) if layer > own_layer => {
                    wrong.push(format!("{name}: {own_home} imports {target}, which stands below it"))
                }
                Some(_) => {}
                None => wrong.push(format!("{name}: imports {} of no layer", path.join("::"))),
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The rows of ARCHITECTURE.md's table: a layer's name, and where in the list it begins and ends.
fn named_layers(text: &str, layers: &BTreeMap<String, usize>) -> BTreeMap<String, (usize, usize)> {
    let rows = text.split("| Layer | What it is for |").nth(1).expect("a table of the layers").lines().skip(2);
    let named = rows.take_while(|row| row.starts_with('|')).map(|row| {
        let (name, modules) = row.trim_matches('|').split('|').next().unwrap().split_once(':').expect("modules");
        let places: Vec<usize> = modules.split('`').skip(1).step_by(2).map(|module| layers[module]).collect();
        (name.trim().to_owned(), (*places.iter().min().unwrap(), *places.iter().max().unwrap()))
    });
    named.collect()
}

#[test]
fn lib_rs_has_the_layers_that_are_drawn() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(top.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (layers, named) = (layers(&text), named_layers(&text, &layers(&text)));
    let source = fs::read_to_string(top.join("src/lib.rs")).expect("src/lib.rs");
    let (mut current, mut seen) = (String::new(), BTreeSet::new());
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("// Layer: ") {
            name.clone_into(&mut current);
        } else if let Some(module) = line.trim_start_matches("pub ").strip_prefix("mod ") {
            let module = module.trim_end_matches(';');
            let (first, last) = named[&current];
            assert!((first..=last).contains(&layers[module]), "{module} is not of the {current}");
            seen.insert(module.to_owned());
            assert!(
                source.contains(&format!("//! - **{}{}**", current[..1].to_uppercase(), &current[1..])),
                "{current}"
            );
        }
    }
    let drawn = layers.keys().filter(|module| !module.contains("::") && *module != "main").cloned();
    assert_eq!(seen, drawn.collect());
}

/// What modules that are called pure have no use for.
const IMPURE: [&str; 10] = [
    "tokio",
    "tonic",
    "rustix",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
];

#[test]
fn what_is_called_pure_has_no_input_no_output_and_no_runtime() {
    let (layers, files) = project();
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let sentence = text.split("Of the foundations, ").nth(1).and_then(|rest| rest.split(" are pure").next());
    let pure: BTreeSet<&str> = sentence.expect("what is pure").split('`').skip(1).step_by(2).collect();
    assert!(pure.len() > 5 && pure.iter().all(|module| layers.contains_key(*module)), "{pure:?}");
    for (own, source) in files.iter().filter(|(own, _)| pure.contains(own[0].as_str())) {
        let path: Vec<&str> = own.iter().map(String::as_str).collect();
        let code = if is_test(&path) { String::new() } else { code_of(source) };
        let found: Vec<_> = IMPURE.iter().filter(|name| after(&code, name).next().is_some()).collect();
        assert!(found.is_empty() && asks(&code).is_empty(), "{}: {found:?} {:?}", path.join("::"), asks(&code));
    }
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

/// Names that mirror one of the generated code.
const GENERATED: [&str; 1] = ["ReceiveBlobsStream"];

#[test]
fn no_two_types_have_the_same_name() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&src, &mut files);
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        let module = module_path(file.strip_prefix(&src).expect("below src")).join("::");
        if module.split("::").any(|part| ["tests", "simulation", "suite"].contains(&part)) {
            continue;
        }
        let source = fs::read_to_string(&file).expect("a source file");
        for line in source.split("#[cfg(test)]\nmod tests").next().unwrap_or("").lines() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
            let is_item = line.starts_with(|c: char| c.is_alphabetic());
            if is_item && words.any(|word| ["struct", "enum", "trait", "type"].contains(&word)) {
                types.entry(words.next().unwrap_or("").to_owned()).or_default().push(module.clone());
            }
        }
    }
    assert!(types.len() > 100, "found only {} types", types.len());
    types.retain(|name, modules| modules.len() > 1 && !GENERATED.contains(&name.as_str()));
    assert!(types.is_empty(), "one word for one thing: {types:#?}");
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
    let layers = layers("```layers\nblob\nstore\nstore::disk\nworker\n```");
    let code = code_of("use crate::worker::Worker; // use crate::nothing\nfn f() { crate::store::disk::open() }");
    let found = imports(&code, "crate::");
    let homes: Vec<_> =
        found.iter().map(|path| home(&layers, &path.iter().map(String::as_str).collect::<Vec<_>>())).collect();
    assert_eq!(homes, [Some(("worker", 3)), Some(("store::disk", 2))]);
    assert_eq!(home(&layers, &["store", "remote"]), Some(("store", 1)));
}

#[test]
fn nothing_above_app_asks_for_the_time_or_for_randomness() {
    let (layers, files) = project();
    let mut wrong = Vec::new();
    for (own, source) in files {
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let is_above = home(&layers, &own).is_some_and(|(_, layer)| layer < layers["app"]);
        // The clock asks for all others.
        if is_above && own != ["clock"] && !is_test(&own) {
            wrong.extend(asks(&code_of(&source)).iter().map(|what| format!("{}: {what}", own.join("::"))));
        }
    }
    assert!(wrong.is_empty(), "take a Clock, an Entropy, or tokio's time instead\n{}", wrong.join("\n"));
}

#[test]
fn who_asks_for_the_time_or_for_randomness_is_noticed() {
    for (code, expected) in [
        ("use std::time::{Duration, Instant};", &["std::time::Instant"][..]),
        ("fn f() { std::time::Instant::now() }", &["std::time::Instant"]),
        ("let (now, id) = (std::time::SystemTime::now(), rand::random());", &["SystemTime::now", "rand::"]),
        ("use std::time::{Duration, SystemTime};\nuse tokio::time::Instant;\noperand::of()", &[]),
        ("// rand::random()\n#[cfg(test)]\nmod tests {\n    use rand::Rng;\n}\n", &[]),
        ("#[cfg(test)]\nmod tests;\nuse rand::Rng;", &["rand::"]),
    ] {
        assert_eq!(asks(&code_of(code)), expected, "{code}");
    }
}
