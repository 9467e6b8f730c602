//! Which routes a blob takes that is announced at a store: those that start there, and those that its chains follow. Pure.
//!
//! A chain never enters a store twice. So a route `X -> Y` is taken if `X` can be reached from the source without passing
//! through `Y`; and the route `W -> X` may bring the blob to it if `W` can be reached without passing through `X` or `Y`.

use super::StoryError;
use crate::announce::{Names, Route, RouteTable};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A route that the blob takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) route: Route,
    /// The hops any of which brings the blob to where this one starts; none: it starts at the source.
    pub(super) after: Vec<usize>,
    /// Whether it was asked for.
    pub(super) wanted: bool,
}

/// The routes that a blob takes from a store on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) hops: Vec<Hop>,
}

impl Plan {
    /// The plan for a source store, resolved as an announcement's is. `only`: the routes that are asked for; all if empty.
    pub(super) fn new(table: &RouteTable, source_store: &str, only: &[String]) -> Result<Self, StoryError> {
        let starts = table.resolve(source_store)?;
        let Some(source) = starts.first().map(|route| route.from.clone()) else { return Ok(Self { hops: Vec::new() }) };
        let enabled: Vec<&Route> = table.all().iter().filter(|route| route.enabled).collect();
        let reaches = |avoiding: &[&str]| reachable(&enabled, &source, avoiding);
        let taken: Vec<&Route> = enabled
            .iter()
            .copied()
            .filter(|route| route.to != source && reaches(&[&route.to]).contains(&route.from))
            .collect();
        let mut hops = Vec::with_capacity(taken.len());
        for route in &taken {
            let without = reaches(&[&route.from, &route.to]);
            let brings = |(at, before): (usize, &&Route)| {
                (route.from != source && before.to == route.from && without.contains(&before.from)).then_some(at)
            };
            let after = taken.iter().enumerate().filter_map(brings).collect();
            hops.push(Hop { route: (*route).clone(), after, wanted: only.is_empty() });
        }
        for name in only {
            let route = table.route(name)?;
            let known = || Names(taken.iter().map(|route| route.name.clone()).collect());
            let hop = hops.iter_mut().find(|hop| hop.route.id == route.id);
            let from = source.clone();
            hop.ok_or_else(|| StoryError::RouteNotTaken { route: route.name.clone(), from, known: known() })?.wanted =
                true;
        }
        Ok(Self { hops })
    }
}

/// The stores to which routes lead from here, itself included, none of them one to avoid.
fn reachable(routes: &[&Route], from: &Arc<str>, avoiding: &[&str]) -> BTreeSet<Arc<str>> {
    let mut found = BTreeSet::new();
    let mut open = vec![from.clone()];
    while let Some(store) = open.pop() {
        if avoiding.contains(&&*store) || !found.insert(store.clone()) {
            continue;
        }
        open.extend(routes.iter().filter(|route| route.from == store).map(|route| route.to.clone()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::Plan;
    use crate::announce::{Route, RouteTable};
    use crate::queue::RouteId;
    use crate::story::StoryError;
    use std::sync::Arc;

    fn table(routes: &[&str]) -> RouteTable {
        let all = routes.iter().enumerate().map(|(at, name)| {
            let (from, to) = name.trim_start_matches('-').split_once('_').unwrap();
            let id = RouteId(u32::try_from(at).unwrap());
            Route { name: (*name).into(), id, from: from.into(), to: to.into(), enabled: !name.starts_with('-') }
        });
        RouteTable::new(all.collect(), ["a", "b", "c", "d", "s"].map(Arc::from))
    }

    /// Each hop with those before it.
    fn plan(routes: &[&str], source: &str) -> Vec<String> {
        let plan = Plan::new(&table(routes), source, &[]).unwrap();
        let name = |at: &usize| plan.hops[*at].route.name.to_string();
        let hops = plan.hops.iter().map(|hop| {
            let before: Vec<String> = hop.after.iter().map(name).collect();
            format!("{}<{}", hop.route.name, before.join(","))
        });
        hops.collect()
    }

    #[test]
    fn chains_are_followed_and_no_store_is_entered_twice() {
        assert_eq!(plan(&["a_b"], ""), ["a_b<"]);
        assert_eq!(plan(&["a_b", "b_c", "c_d", "-c_a"], ""), ["a_b<", "b_c<a_b", "c_d<b_c"]);
        assert_eq!(plan(&["a_b", "b_c", "c_d"], "b"), ["b_c<", "c_d<b_c"]);
        assert_eq!(plan(&["a_b", "b_a"], "a"), ["a_b<"]);
        assert_eq!(plan(&["a_b", "b_c", "c_a"], "b"), ["b_c<", "c_a<b_c"], "a ring drains");
        // A fan that meets again: each side brings it to the other, too.
        assert_eq!(plan(&["a_b", "a_c", "b_c", "c_b"], "a"), ["a_b<", "a_c<", "b_c<a_b", "c_b<a_c"]);
        // Each of three is before the next.
        let round = plan(&["s_b", "s_c", "s_d", "b_c", "c_d", "d_b"], "s");
        assert_eq!(round, ["b_c<d_b,s_b", "c_d<b_c,s_c", "d_b<c_d,s_d", "s_b<", "s_c<", "s_d<"]);
    }

    #[test]
    fn asked_for_are_only_routes_that_are_taken() {
        let table = table(&["a_b", "b_c", "d_c"]);
        let plan = Plan::new(&table, "a", &["b_c".to_owned()]).unwrap();
        let wanted: Vec<(&str, bool)> = plan.hops.iter().map(|hop| (&*hop.route.name, hop.wanted)).collect();
        assert_eq!(wanted, [("a_b", false), ("b_c", true)]);
        let error = Plan::new(&table, "a", &["d_c".to_owned()]).unwrap_err();
        assert!(matches!(error, StoryError::RouteNotTaken { .. }), "{error}");
        assert!(error.to_string().contains("a_b, b_c"), "{error}");
        assert!(matches!(Plan::new(&table, "a", &["x".to_owned()]), Err(StoryError::Announce(_))));
        assert!(matches!(Plan::new(&table, "", &[]), Err(StoryError::Announce(_))));
    }
}
