//! What is deployed: the chart, rendered and validated, and the real program started with what it renders; `compose.yaml`, and
//! the real program started with its commands.

use crate::harness::{Server, World, program, tool};
use crate::http::page;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Runs one of the scripts beside this file; `None` without the tools. What it printed.
fn script(name: &str, arguments: &[&str]) -> Option<String> {
    let (helm, python) = (tool("BLOBFERRY_HELM")?, tool("BLOBFERRY_PYTHON")?);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/deploy").join(name);
    let output = Command::new(python).arg(file).args(arguments).env("HELM", helm).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Runs the program with these variables.
fn run(arguments: &[String], variables: &BTreeMap<String, String>) -> Output {
    Command::new(program()).args(arguments).envs(variables).output().unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
}

fn variables(value: &Value) -> BTreeMap<String, String> {
    let all = value.as_object().unwrap().iter();
    all.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

/// Starts the program with these arguments and variables.
fn start(arguments: &[String], listen: usize, log: &Path, variables: &BTreeMap<String, String>) -> Server {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Server::start_in(program(), &arguments, listen, log, &variables)
}

/// Asks a server in the way that is configured for it, which must answer well.
fn answers(arguments: &[String], variables: &BTreeMap<String, String>, server: &Server) {
    let output = run(arguments, variables);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}: {said}\n{}", output.status, server.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chart_renders_what_kubernetes_takes_and_the_program_starts_with_it() {
    let world = World::new();
    let out = world.path("rendered");
    fs::create_dir(&out).unwrap();
    if script("chart.py", &["render", out.to_str().unwrap()]).is_none() {
        return;
    }
    // What the secrets of the chart are mounted as.
    let secrets = world.path("secrets");
    fs::create_dir_all(secrets.join("backup-ca")).unwrap();
    fs::write(secrets.join("backup-ca/ca.crt"), CA).unwrap();
    let mut seen = 0;
    for file in fs::read_dir(&out).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let rendered: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let config = rendered["config"].as_str().unwrap();
        let config = config.replace("/etc/blobferry/secrets", secrets.to_str().unwrap());
        let path = world.path(&format!("{name}.toml"));
        fs::write(&path, config).unwrap();
        // Its arguments word by word, but for where the file is; then free ports and a folder of ours.
        let mounted = "/etc/blobferry/config/blobferry.toml";
        let mut arguments = texts(&rendered["args"]);
        assert_eq!(arguments.iter().filter(|argument| *argument == mounted).count(), 1, "{name}: {arguments:?}");
        arguments.iter_mut().filter(|argument| *argument == mounted).for_each(|argument| {
            path.to_str().unwrap().clone_into(argument);
        });
        let mut environment = variables(&rendered["env"]);
        let checked = run(&[owned(&["config", "check"]), arguments[1..].to_vec()].concat(), &environment);
        assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stderr));
        let data = format!("server.data_dir={}", world.path(&format!("{name}-data")).display());
        let free = ["--set", &data, "--set", "server.http_listen=127.0.0.1:0", "--set", "server.listen={}"];
        arguments.extend(owned(&free));
        let listen = arguments.len() - 1;
        let log = world.path(&format!("{name}.log"));
        let mut server = start(&arguments, listen, &log, &environment);
        // As `kubectl exec … -- blobferry status`.
        environment.insert("BLOBFERRY_REPLICATOR".to_owned(), server.url());
        answers(&owned(&["status"]), &environment, &server);
        answers(&owned(&["health", "--service", "blobferry.v1.BlobReceiverService"]), &environment, &server);
        // What the probes ask.
        page(&server, "/livez").await;
        page(&server, "/readyz").await;
        server.signal(rustix::process::Signal::TERM);
        assert!(server.wait().success(), "{name}: {}", server.said());
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
}

#[test]
fn the_chart_refuses_nonsense_and_says_what_to_do() {
    script("chart.py", &["refused"]);
}

#[test]
fn the_chart_knows_every_setting() {
    let world = World::new();
    let file = world.path("printed.toml");
    let config = "[stores.a]\nendpoint = \"http://a:1\"\n[stores.b]\nendpoint = \"http://b:1\"\n\
                  [routes.r]\nfrom = \"a\"\nto = \"b\"\n";
    fs::write(&file, config).unwrap();
    let printed = run(&owned(&["config", "print", "--config", file.to_str().unwrap()]), &BTreeMap::new());
    assert!(printed.status.success());
    fs::write(&file, printed.stdout).unwrap();
    script("chart.py", &["settings", file.to_str().unwrap()]);
}

#[test]
fn the_chart_s_table_of_values_is_as_its_comments_say() {
    let Some(python) = tool("BLOBFERRY_HELM").and_then(|_| tool("BLOBFERRY_PYTHON")) else { return };
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/helm-values");
    let output = Command::new(python).args([file, "--check"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_the_chart_says_to_type_is_understood() {
    let Some(said) = script("chart.py", &["notes"]) else { return };
    let commands: Vec<&str> = said.lines().filter(|line| *line != "ok").collect();
    assert!(commands.len() > 6, "{said}");
    for command in commands {
        // Nobody is there: what counts is that it is not the words that are wrong.
        let arguments: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        let output = Command::new(program()).args(&arguments).arg("--help").output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_runbook_names_every_alert_and_only_commands_that_exist() {
    let read = |name: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let runbook = read("RUNBOOK.md");
    let commands: Vec<&str> =
        runbook.split('`').skip(1).step_by(2).filter_map(|code| code.strip_prefix("blobferry ")).collect();
    assert!(commands.len() > 15, "{commands:?}");
    for command in commands {
        let arguments = command.split_whitespace().chain(["--help"]);
        let output = Command::new(program()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let words = |text: &str, first: &str| -> BTreeSet<String> {
        let names = text.lines().filter_map(|line| line.trim().strip_prefix(first));
        names.flat_map(|line| line.split([',', '.', ' '])).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let alerts = words(&read("deploy/alerts.yaml"), "- alert:");
    assert!(alerts.len() > 10, "{alerts:?}");
    assert_eq!(words(&runbook, "Alerts:"), alerts);
}

#[test]
fn what_compose_starts_ferries_a_blob() {
    let world = World::new();
    let Some(said) = script("compose.py", &["commands"]) else { return };
    let services: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(services.as_object().unwrap().len(), 3, "{said}");
    // Every command and variable word by word, but for addresses and folders: no two machines here.
    let mut urls = BTreeMap::new();
    let mut stores = Vec::new();
    for name in ["primary", "backup"] {
        let data = format!("disk://{}", world.path(name).display());
        let mut arguments = texts(&services[name]["command"]);
        let data_of_image = "disk:///var/lib/blobferry";
        assert_eq!(
            arguments,
            ["store", "--listen", "[::]:7080", "--http-listen", "[::]:7071", "--data", data_of_image]
        );
        "{}".clone_into(&mut arguments[2]);
        "[::]:0".clone_into(&mut arguments[4]);
        data.clone_into(&mut arguments[6]);
        let environment = variables(&services[name]["environment"]);
        let log = world.path(&format!("{name}.log"));
        let server = start(&arguments, 2, &log, &environment);
        let check = texts(&services[name]["healthcheck"]);
        let check: Vec<_> = check.iter().map(|word| word.replace("http://127.0.0.1:7080", &server.url())).collect();
        assert!(check.contains(&server.url()), "{check:?}");
        answers(&check, &environment, &server);
        urls.insert(format!("http://{name}:7080"), server.url());
        stores.push(server);
    }
    let mut arguments = texts(&services["replicator"]["command"]);
    assert_eq!(arguments, ["serve", "--config", "/etc/blobferry/blobferry.toml"]);
    // The image's own configuration.
    concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/image/blobferry.toml").clone_into(&mut arguments[2]);
    let data = format!("server.data_dir={}", world.path("queue").display());
    arguments.extend(owned(&["--set", &data, "--set", "server.http_listen=127.0.0.1:0", "--set", "server.listen={}"]));
    let mut environment = variables(&services["replicator"]["environment"]);
    for value in environment.values_mut() {
        if let Some(url) = urls.get(value) {
            url.clone_into(value);
        }
    }
    let listen = arguments.len() - 1;
    let log = world.path("replicator.log");
    let replicator = start(&arguments, listen, &log, &environment);
    environment.insert("BLOBFERRY_REPLICATOR".to_owned(), replicator.url());
    answers(&texts(&services["replicator"]["healthcheck"]), &environment, &replicator);
    let file = world.path("file");
    fs::write(&file, "hello").unwrap();
    let (primary, backup) = (stores[0].url(), stores[1].url());
    let put = ["put", "--store", &primary, "--announce", &replicator.url(), file.to_str().unwrap()];
    answers(&owned(&put), &environment, &replicator);
    let hello = "sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    answers(&owned(&["wait", "--timeout", "60s", hello]), &environment, &replicator);
    let got = run(&owned(&["get", "--store", &backup, hello]), &environment);
    assert_eq!(String::from_utf8_lossy(&got.stdout), "hello", "{}", replicator.said());
}

/// `docker build` sees nothing else than what `.dockerignore` lets through.
#[test]
fn what_the_dockerfile_copies_is_not_ignored() {
    let read = |name: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let (dockerfile, ignored) = (read("Dockerfile"), read(".dockerignore"));
    assert!(ignored.lines().any(|line| line == "*"), "all is ignored that is not named");
    let named: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let copies =
        dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    let mut seen = 0;
    for copy in copies {
        let mut paths: Vec<&str> = copy.split_whitespace().collect();
        paths.pop();
        for path in paths {
            assert!(Path::new(path).ancestors().any(|parent| named.contains(parent.to_str().unwrap())), "{path}");
            seen += 1;
        }
    }
    assert!(seen > 5, "{seen}");
}

/// A certificate authority that nothing trusts but what is told to.
const CA: &str = include_str!("deploy/ca.crt");
