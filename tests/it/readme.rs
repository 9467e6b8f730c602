//! The commands of README and of the chapters after it, and the examples in the proto's comments, typed into one shell as they
//! stand there, in order.

use crate::harness::{World, program, tool};
use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The text from this heading to that one.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let start = text.find(from).unwrap_or_else(|| panic!("there is no {from}"));
    let length = text[start..].find(to).unwrap_or_else(|| panic!("there is no {to}"));
    &text[start..start + length]
}

/// The blocks of code in this language.
pub(crate) fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// The commands in the comments of the proto files.
fn proto_examples() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/blobferry/v1");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let comments: String = text
            .lines()
            .map(|line| line.trim_start().strip_prefix("//").map_or("", |comment| comment.trim_start_matches(' ')))
            .fold(String::new(), |all, line| all + line + "\n");
        found.extend(
            comments.split("```").skip(1).step_by(2).map(|block| block.trim().trim_start_matches("sh\n").to_owned()),
        );
    }
    found.retain(|example| example.contains("grpcurl"));
    found
}

/// Ports that are free now, and that the system gives to nobody who takes any: another test could have one before its server.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let random = RandomState::new();
    let ports = (0_u32..1000).map(|number| 10_000 + u16::try_from(random.hash_one(number) % 20_000).unwrap());
    let listeners: Vec<_> = ports.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).take(N).collect();
    std::array::from_fn(|index| listeners[index].local_addr().unwrap().port())
}

#[test]
fn every_command_works_as_it_stands_there() {
    let Some(grpcurl) = tool("BLOBFERRY_GRPCURL") else { return };
    let Some(buf) = tool("BLOBFERRY_BUF") else { return };
    let world = World::new();
    let ports = free_ports::<3>();
    let ferry = world.path("ferry").display().to_string();
    let here = |text: &str| {
        let moved = text.replace("7070", &ports[0].to_string()).replace("7081", &ports[2].to_string());
        // The store that is somebody's own is this one.
        let moved = ["7080", "7090"].iter().fold(moved, |text, port| text.replace(port, &ports[1].to_string()));
        moved.replace("/tmp/ferry", &ferry).replace("target/release/blobferry", program())
    };
    let readme = read("README.md");
    let run_it = between(&readme, "## Run it\n", "## Where to go on");
    let chapters = ["getting-started", "api", "stores", "traces"].map(|name| read(&format!("docs/{name}.md")));
    let [config] = blocks(run_it, "toml")[..] else { panic!("Run it has one configuration") };
    fs::write(world.path("blobferry.toml"), here(config)).unwrap();
    fs::create_dir(world.path("src")).unwrap();
    for number in 0..20 {
        fs::write(world.path("src").join(format!("{number}")), number.to_string().repeat(1000)).unwrap();
    }
    // The tools by their own names.
    let bin = world.path("bin");
    fs::create_dir(&bin).unwrap();
    for (name, to) in [("blobferry", program()), ("grpcurl", &grpcurl)] {
        std::os::unix::fs::symlink(to, bin.join(name)).unwrap();
    }
    // `npx buf …`, without a registry.
    fs::write(bin.join("npx"), format!("#!/bin/sh\nshift\nexec {buf} \"$@\"\n")).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(bin.join("npx"), executable).unwrap();

    let mut script = "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n\
                      grpcurl() { command grpcurl \"$@\" | tee last; }\n\
                      token() { sed -n 's/.*\"waitToken\": \"\\([^\"]*\\)\".*/\\1/p' last; }\n"
        .to_owned();
    for chapter in &chapters {
        assert!(!blocks(chapter, "sh").is_empty(), "nothing to type: {chapter}");
    }
    let texts = std::iter::once(run_it).chain(chapters.iter().map(String::as_str));
    let typed: Vec<&str> = texts.flat_map(|text| blocks(text, "sh")).collect();
    assert!(typed.len() >= 13, "{typed:?}");
    for block in &typed {
        // What stands for an answer to the command before.
        let block = here(block).replace("TOKEN", "'\"$(token)\"'");
        writeln!(script, "echo '@@' {}\n{block}", shell_words(block.lines().next().unwrap_or_default())).unwrap();
    }
    let examples = proto_examples();
    assert!(examples.len() > 20, "{}", examples.len());
    for example in &examples {
        // An id or a name that is not there, and a state that does not allow it, are answers, too; a stream without an end
        // is cut.
        writeln!(
            script,
            "echo '@@' {}\ncode=0; said=$(timeout 5 bash -c {} 2>&1) || code=$?; echo \"$said\"\n\
             case $code in 0|124|69|73) ;; *) case $said in *UNKNOWN_*|*'known are'*) ;; *) exit $code ;; esac ;; esac",
            shell_words(example.lines().next().unwrap_or_default()),
            shell_words(&here(example))
        )
        .unwrap();
    }
    fs::write(world.path("script"), &script).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("timeout")
        .args(["300", "bash", "-eu", "-o", "pipefail", "script"])
        .current_dir(world.path("src").parent().unwrap())
        .env("PATH", path)
        // A port that the examples do not name.
        .env("BLOBFERRY__SERVER__HTTP_LISTEN", "127.0.0.1:0")
        .env("BLOBFERRY_REPLICATOR", format!("http://127.0.0.1:{}", ports[0]))
        .env("BLOBFERRY_STORE", format!("http://127.0.0.1:{}", ports[1]))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}: {}\n{}",
        output.status,
        said.rsplit("@@").next().unwrap_or_default(),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("\"state\": \"FULL_SYNC_STATE_COMPLETED\""), "{said}");
    assert!(said.contains("ROUTE_STATE_"), "{said}");
}

/// A line without its numbers and their units.
fn shape(line: &str) -> String {
    let mut shape: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let (bare, end) = word.strip_suffix(',').map_or((word, ""), |bare| (bare, ","));
        let is_unit = ["B", "KiB", "MiB", "GiB", "B/s", "KiB/s", "MiB/s", "ms", "s", "min"].contains(&bare);
        match shape.last_mut().filter(|last| is_unit && *last == "#") {
            Some(last) => last.push_str(end),
            None if bare.replace(',', "").parse::<f64>().is_ok() => shape.push(format!("#{end}")),
            None => shape.push(word.to_owned()),
        }
    }
    shape.join(" ")
}

#[test]
fn the_demo_ends_with_the_summary_that_stands_there() {
    let world = World::new();
    let folder = world.path("files");
    fs::create_dir(&folder).unwrap();
    for number in 0..400 {
        fs::write(folder.join(format!("{number}")), number.to_string().repeat(100)).unwrap();
    }
    let output = Command::new(program()).args(["demo", "--exit"]).arg(&folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let readme = read("README.md");
    let summary =
        blocks(between(&readme, "## Try it", "## Run it"), "").into_iter().find(|block| block.starts_with("1. "));
    let summary = summary.expect("it has a summary");
    let said = String::from_utf8_lossy(&output.stdout);
    let mut lines = said.lines();
    for shown in summary.lines() {
        // Of a few files it tells more.
        assert!(lines.any(|line| shape(line).starts_with(&shape(shown))), "{shown}\n{said}");
    }
}

/// A text as one word of the shell.
fn shell_words(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
