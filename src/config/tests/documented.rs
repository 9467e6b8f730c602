//! The tables of `docs/configuration.md`: every key there is, with the default and the range that are in force.

use super::load;
use std::collections::BTreeMap;
use toml::{Table, Value};

const BASE: &str = "[stores.a]\nendpoint = 'http://a:1'\n[stores.b]\nendpoint = 'http://b:1'\n\
                    [routes.r]\nfrom = 'a'\nto = 'b'\n";
/// No key is called so, or nearly so.
const NO_KEY: &str = "zzzzzzzz";

/// What is wrong where these are set over [`BASE`]: key, problem, advice without the place.
fn wrong(base: &str, overrides: &[(&str, &str)]) -> Vec<(String, String, String)> {
    let problems = load(base, &[], overrides).err().map(|error| error.problems).unwrap_or_default();
    let advice = |advice: &str| advice.split("; ").next().unwrap().to_owned();
    problems.into_iter().map(|wrong| (wrong.key, wrong.problem, advice(&wrong.advice))).collect()
}

/// The keys of a section, as it lists them to who names one that is not there; `None` for what is no section.
fn known(section: &str) -> Option<Vec<String>> {
    let key = if section.is_empty() { NO_KEY.to_owned() } else { format!("{section}.{NO_KEY}") };
    let problems = wrong(BASE, &[(&key, "x")]);
    let (.., advice) = problems.into_iter().find(|(of, problem, _)| *of == key && problem == "unknown key")?;
    Some(advice.strip_prefix("known: ").unwrap().split(", ").map(str::to_owned).collect())
}

/// All keys below this one, or itself.
fn keys(key: &str) -> Vec<String> {
    match key {
        "stores" => return keys("stores.a"),
        "routes" => return keys("routes.r"),
        _ => {}
    }
    let Some(names) = known(key) else { return vec![key.to_owned()] };
    let inner = |name: String| keys(&if key.is_empty() { name } else { format!("{key}.{name}") });
    names.into_iter().flat_map(inner).collect()
}

/// What the program says of a value's range, or of the choices that there are.
fn range(key: &str) -> Option<String> {
    ["-1", "9999999h", "2000000TiB"].iter().find_map(|absurd| {
        let (.., advice) = wrong(BASE, &[(key, absurd)]).into_iter().find(|(of, ..)| of == key)?;
        let advice = advice.split(", such as").next().unwrap();
        let span = ["set a whole number from ", "set a number from ", "set "]
            .iter()
            .find_map(|words| advice.strip_prefix(words))
            .filter(|span| span.contains(" to "));
        span.or_else(|| advice.strip_prefix("write one of ")).map(str::to_owned)
    })
}

/// A number, a time, or a size, as a number.
fn amount(text: &str) -> f64 {
    let text = text.trim();
    let time = || humantime::parse_duration(text).ok().map(|time| time.as_secs_f64());
    let size = || text.parse::<bytesize::ByteSize>().ok().map(|size| format!("{}", size.as_u64()).parse().unwrap());
    text.parse().ok().or_else(time).or_else(size).unwrap_or_else(|| panic!("{text:?} is no amount"))
}

fn is_same_range(documented: &str, in_force: &str) -> bool {
    match in_force.split_once(" to ") {
        Some((least, most)) => {
            let Some((documented_least, documented_most)) = documented.split_once(" to ") else { return false };
            amount(documented_least) == amount(least) && amount(documented_most) == amount(most)
        }
        None => {
            let sorted = |text: &str| {
                let mut names: Vec<String> =
                    text.split(',').map(|name| name.trim().trim_matches('`').to_owned()).collect();
                names.sort();
                names
            };
            sorted(documented) == sorted(in_force)
        }
    }
}

fn printed(config: &Table, key: &str) -> Option<String> {
    let mut parts = key.split('.');
    let first = config.get(parts.next()?)?;
    Some(match parts.try_fold(first, |value, part| value.get(part))? {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    })
}

#[test]
fn the_documentation_has_every_key_with_its_default_and_its_range() {
    let text = include_str!("../../../docs/configuration.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeMap<String, [&str; 3]> = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [key, default, range, meaning] = cells[..] else { panic!("{row}") };
            (key.trim_matches('`').to_owned(), [default, range, meaning])
        })
        .collect();
    let keys = keys("");
    assert!(keys.len() > 30, "{keys:?}");
    let names =
        keys.iter().map(|key| key.replacen("stores.a.", "stores.NAME.", 1).replacen("routes.r.", "routes.NAME.", 1));
    let names: BTreeMap<String, &String> = names.zip(&keys).collect();
    assert!(documented.keys().eq(names.keys()), "{:#?} and {:#?}", documented.keys(), names.keys());
    let config: Table = load(BASE, &[], &[]).unwrap().to_toml().parse().unwrap();
    for (name, [default, documented_range, meaning]) in documented {
        let key = names[&name];
        assert!(!meaning.is_empty(), "{name}");
        if default == "required" {
            let line = format!("{} = ", key.rsplit('.').next().unwrap());
            let without: String = BASE
                .lines()
                .filter(|other| !other.starts_with(&line))
                .fold(String::new(), |all, line| all + line + "\n");
            let problems = wrong(&without, &[]);
            assert!(
                problems.iter().any(|(of, problem, _)| of == key && problem == "is missing"),
                "{name}: {problems:?}"
            );
        } else {
            // What is not set is told in words.
            let told = default.strip_prefix('`').and_then(|default| default.strip_suffix('`')).map(str::to_owned);
            assert_eq!(told, printed(&config, key), "the default of {name}");
            assert!(!default.is_empty(), "{name}");
        }
        match range(key) {
            Some(in_force) => assert!(
                documented_range.contains(" to ") == in_force.contains(" to ")
                    && is_same_range(documented_range, &in_force),
                "{name} may be {in_force}, and the documentation says {documented_range:?}"
            ),
            None => assert_eq!(documented_range, "", "{name}"),
        }
    }
}
