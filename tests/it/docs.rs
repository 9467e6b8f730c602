//! The documentation: every link leads somewhere, every chapter is in the book, and what is told of the protocol is what its
//! comments say.
//!
//! `src/config` and `src/cli` hold the tables of settings and commands to the code, `metrics` those of metrics, and
//! `status::tests` the states.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files of the repository that a person wrote, by their paths from its top.
fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_made = ["target", "node_modules", "__pycache__", ".git", ".venv"].contains(&name.as_str());
        if path.is_dir() && !is_made && !path.join("CACHEDIR.TAG").exists() {
            files(&path, into);
        } else if path.is_file() {
            into.push(path.strip_prefix(top()).unwrap().to_owned());
        }
    }
}

/// A text without what is code in it. Its lines stay.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let lines = text.lines().map(|line| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        if is_fence || fenced { "" } else { line }
    });
    let text: String = lines.collect::<Vec<_>>().join("\n");
    // Code in a line may go on in the next, but not in the next paragraph.
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.split('`').step_by(2).collect::<String>());
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

/// Where the links of this text lead.
fn links(text: &str) -> Vec<String> {
    let text = prose(text);
    text.split("](").skip(1).map(|rest| rest.split([')', ' ']).next().unwrap().to_owned()).collect()
}

/// The names of a text's headings in links, by GitHub's rules, which are mdBook's too.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        let heading = line.trim_start_matches('#');
        if fenced || heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let name: String = kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect();
        let others = (1..).map(|number| format!("{name}-{number}"));
        let free = std::iter::once(name.clone()).chain(others).find(|name| !anchors.contains(name));
        anchors.insert(free.unwrap());
    }
    anchors
}

/// What is wrong with a link of the file at this path.
fn broken(from: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let mut to = if path.is_empty() { from.to_owned() } else { from.parent().unwrap().to_owned() };
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => to.push(name),
            Component::CurDir => {}
            Component::ParentDir if to.pop() => {}
            _ => return Some(format!("{}: {link} leads out of the repository", from.display())),
        }
    }
    if !top().join(&to).exists() {
        return Some(format!("{}: {link} is not there", from.display()));
    }
    let anchor = anchor?;
    let is_there = to.extension().is_some_and(|ending| ending == "md") && anchors(&read(to.to_str()?)).contains(anchor);
    (!is_there).then(|| format!("{}: {link} names no heading", from.display()))
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut all = Vec::new();
    files(top(), &mut all);
    all.retain(|file| file.extension().is_some_and(|ending| ending == "md"));
    for name in ["README.md", "CONTRIBUTING.md", "docs/api.md", "docs/SUMMARY.md", "helm/README.md"] {
        assert!(all.contains(&PathBuf::from(name)), "{name}: {all:?}");
    }
    let (mut seen, mut wrong) = (0, Vec::new());
    for file in &all {
        let links = links(&read(file.to_str().unwrap()));
        seen += links.len();
        wrong.extend(links.iter().filter_map(|link| broken(file, link)));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(seen > 80, "{seen}");
}

#[test]
fn a_broken_link_is_noticed() {
    let from = Path::new("docs/api.md");
    for (link, said) in [
        ("../RUNBOOK.md#a-store-is-down", None),
        ("https://nowhere.example", None),
        ("#the-producers-contract", None),
        ("../RUNBOOK.md#a-store-is-up", Some("names no heading")),
        ("#nothing", Some("names no heading")),
        ("../compose.yaml#services", Some("names no heading")),
        ("nothing.md", Some("is not there")),
        ("../../etc", Some("leads out")),
    ] {
        let found = broken(from, link);
        assert_eq!(found.is_some(), said.is_some(), "{link}: {found:?}");
        assert!(found.unwrap_or_default().contains(said.unwrap_or_default()), "{link}");
    }
    let text = "[a](b.md) `[no](no.md)` [`c`](d.md#e)\n```\n[no](no.md)\n```\n![f](g.svg)";
    assert_eq!(links(text), ["b.md", "d.md#e", "g.svg"]);
    let text = "# The `a`: it's *b*\n## c_d-e\n```\n# no\n```\n## c_d-e\n#no";
    let names = ["the-a-its-b", "c_d-e", "c_d-e-1"].map(str::to_owned);
    assert_eq!(anchors(text), BTreeSet::from(names));
}

/// In comments, help texts, charts and scripts.
#[test]
fn whatever_names_a_chapter_names_one_that_is_there() {
    let mut all = Vec::new();
    files(top(), &mut all);
    let (mut seen, mut wrong) = (0, Vec::new());
    for file in all {
        let Ok(text) = fs::read_to_string(top().join(&file)) else { continue };
        for (at, _) in text.match_indices("docs/") {
            let is_longer = text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '/' || c == '-');
            let name: String = text[at..].chars().take_while(|c| c.is_alphanumeric() || "_./-".contains(*c)).collect();
            if !is_longer && [".md", ".svg", ".toml"].iter().any(|ending| name.ends_with(ending)) {
                seen += 1;
                wrong.extend((!top().join(&name).exists()).then(|| format!("{}: {name}", file.display())));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(seen > 20, "{seen}");
}

#[test]
fn every_chapter_is_in_the_book_once() {
    let listed = links(&read("docs/SUMMARY.md"));
    let unique: BTreeSet<&String> = listed.iter().collect();
    assert_eq!(unique.len(), listed.len(), "{listed:?}");
    let documents = |folder: &str, before: &str| -> Vec<String> {
        let names = fs::read_dir(top().join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        names
            .filter(|name| name.ends_with(".md") && name != "SUMMARY.md")
            .map(|name| before.to_owned() + &name)
            .collect()
    };
    for document in documents("docs", "").iter().chain(&documents("", "../")) {
        assert!(unique.contains(document), "docs/SUMMARY.md has no {document}");
    }
    let lower = documents("docs", "").into_iter().filter(|name| name.chars().any(|c| c.is_ascii_uppercase()));
    assert_eq!(lower.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn the_front_page_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 180, "README.md has {lines} lines: what it tells further belongs into docs/");
}

/// The values of an enum of the protocol without this prefix, each with its comment in one line. The first, which is never
/// sent, is left out.
fn values(proto: &str, prefix: &str) -> Vec<(String, String)> {
    let (mut comment, mut values) = (Vec::new(), Vec::new());
    for line in read(proto).lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("//") {
            comment.push(words.trim().to_owned());
            continue;
        }
        if let Some((name, _)) = line.strip_prefix(prefix).and_then(|rest| rest.split_once(" = ")) {
            values.push((name.to_owned(), comment.join(" ")));
        }
        comment.clear();
    }
    assert!(values.len() > 15, "{proto}: {values:?}");
    values.remove(0);
    values
}

/// Holds the part of a chapter that is made of this file to what it should be, or writes it.
fn hold(chapter: &str, proto: &str, table: &str) {
    let text = read(chapter);
    let begin = format!("<!-- made of {proto}: tests/it/docs.rs -->\n");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{chapter} has no {begin}"));
    let (_, after) = rest.split_once("<!-- end -->").expect("its end");
    let made = format!("{before}{begin}{table}<!-- end -->{after}");
    if std::env::var_os("BLOBFERRY_WRITE_DOCS").is_some() {
        fs::write(top().join(chapter), made).unwrap();
        return;
    }
    assert!(text == made, "{chapter} does not tell of {proto} as it is: run this with BLOBFERRY_WRITE_DOCS=1");
}

#[test]
fn the_api_chapter_has_every_reason_of_an_error() {
    let mut table = "| Reason | Code | Meaning |\n|---|---|---|\n".to_owned();
    for (name, comment) in values("proto/blobferry/v1/errors.proto", "ERROR_REASON_") {
        let (code, meaning) = comment.split_once(": ").unwrap_or_else(|| panic!("{name} has no code: {comment}"));
        assert!(code.chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{name}: {code}");
        table += &format!("| `{name}` | {code} | {} |\n", sentence(meaning));
    }
    hold("docs/api.md", "proto/blobferry/v1/errors.proto", &table);
}

#[test]
fn the_operations_chapter_has_every_kind_of_fault() {
    let mut table = "| Kind | Meaning |\n|---|---|\n".to_owned();
    for (name, comment) in values("proto/blobferry/v1/fault.proto", "FAULT_KIND_") {
        table += &format!("| `{}` | {} |\n", name.to_lowercase(), sentence(&comment));
    }
    hold("docs/operations.md", "proto/blobferry/v1/fault.proto", &table);
}

/// Begins with a capital, and holds nothing that would end a cell.
fn sentence(text: &str) -> String {
    assert!(!text.contains('|'), "{text}");
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
