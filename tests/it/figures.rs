//! What the benchmarks' report says of ratios and targets.

use crate::support::report::{Comparison, Expense, Target, spread, summary};

#[test]
fn a_ratio_is_that_of_the_same_round() {
    // The machine was nine times as fast in the last round, for both.
    let mut comparison = Comparison::new("figure", "blobs/s", &["floor"]);
    comparison.blobferry = vec![10.0, 20.0, 90.0];
    comparison.floors[0].values = vec![20.0, 40.0, 90.0];
    assert_eq!(comparison.floors[0].ratios(&comparison.blobferry), [0.5, 0.5, 1.0]);
    assert_eq!(summary(&comparison.floors[0].ratios(&comparison.blobferry)), Some([0.5, 0.5, 1.0]));
}

#[test]
fn the_median_of_an_even_number_lies_between_the_middle_two() {
    assert_eq!(summary(&[4.0, 1.0, 3.0, 2.0]), Some([2.5, 1.0, 4.0]));
    assert_eq!(spread(&[]), "-");
    assert_eq!(spread(&[2.0]), "2.00");
    assert_eq!(spread(&[3.0, 1.0]), "2.00 (1.00 to 3.00)");
}

#[test]
fn a_target_is_missed_on_its_own_side_only() {
    assert!(Target::AtLeast(0.5).is_met(0.5) && !Target::AtLeast(0.5).is_met(0.49));
    assert!(Target::AtMost(2.0).is_met(2.0) && !Target::AtMost(2.0).is_met(2.1));
}

#[test]
fn what_is_used_up_is_told_per_gb_and_per_thousand_where_that_says_something() {
    let mut expense = Expense::of("replicator", true);
    expense.add(2, 2_000_000_000, 3.0, 5 << 20);
    expense.add(2_000, 0, 3.0, 5 << 20);
    assert_eq!((expense.cpu_seconds_per_gb, expense.cpu_seconds_per_1000), (vec![1.5], vec![1.5]));
    assert_eq!(expense.peak_mib, [5.0, 5.0]);
}
