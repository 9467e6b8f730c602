#![allow(clippy::unwrap_used, reason = "tests")]

use super::{AnnounceError, Route, RouteTable};
use crate::queue::RouteId;

fn table(routes: &[(&str, &str, bool)]) -> RouteTable {
    let routes = routes.iter().zip(0..).map(|(&(from, to, enabled), id)| Route {
        name: format!("{from}_to_{to}").into(),
        id: RouteId(id),
        from: from.into(),
        to: to.into(),
        enabled,
    });
    RouteTable::new(routes.collect(), ["a", "b", "c", "lonely"].map(Into::into))
}

fn resolved(table: &RouteTable, store: &str) -> Vec<String> {
    table.resolve(store).unwrap().iter().map(|route| route.name.to_string()).collect()
}

#[test]
fn a_named_store_means_every_enabled_route_from_it() {
    let table = table(&[("a", "b", true), ("a", "c", true), ("b", "c", true), ("c", "a", false)]);
    assert_eq!(resolved(&table, "a"), ["a_to_b", "a_to_c"]);
    assert_eq!(resolved(&table, "b"), ["b_to_c"]);
    for store in ["c", "lonely"] {
        let error = table.resolve(store).unwrap_err();
        assert!(matches!(&error, AnnounceError::NoEnabledRoute { store: named } if &**named == store), "{error}");
    }
    let error = table.resolve("d").unwrap_err().to_string();
    assert!(error.contains("\"d\"") && error.contains("a, b, c, lonely"), "{error}");
}

#[test]
fn no_name_means_the_one_head_of_the_chain() {
    assert_eq!(resolved(&table(&[("a", "b", true), ("b", "c", true)]), ""), ["a_to_b"]);
    // A disabled route makes nobody a destination.
    assert_eq!(resolved(&table(&[("a", "b", true), ("b", "a", false)]), ""), ["a_to_b"]);
    for ambiguous in [
        &[("a", "b", true), ("b", "a", true)][..],
        &[("a", "c", true), ("b", "c", true)],
        &[("a", "b", true), ("b", "c", true), ("c", "a", true)],
    ] {
        let error = table(ambiguous).resolve("").unwrap_err();
        assert!(matches!(error, AnnounceError::AmbiguousStore { .. }), "{error}");
        assert!(error.to_string().contains("a, b"), "{error}");
    }
    let error = table(&[("a", "b", false)]).resolve("").unwrap_err();
    assert!(matches!(&error, AnnounceError::AmbiguousStore { known } if known.0.is_empty()), "{error}");
}

#[test]
fn no_route_name_means_the_only_route() {
    assert_eq!(&*table(&[("a", "b", false)]).route("").unwrap().name, "a_to_b");
    let two = table(&[("a", "b", true), ("b", "c", false)]);
    assert_eq!(&*two.route("b_to_c").unwrap().name, "b_to_c");
    let error = two.route("").unwrap_err();
    assert!(matches!(error, AnnounceError::AmbiguousRoute { .. }), "{error}");
    let error = two.route(&"x".repeat(1_000_000)).unwrap_err().to_string();
    assert!(error.contains("a_to_b, b_to_c") && error.len() < 200, "{error}");
}
