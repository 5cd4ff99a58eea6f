use super::*;

#[test]
fn batches_are_bounded_by_number_and_by_bytes() {
    let sizes = |batches: Vec<Vec<i64>>| batches.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes(in_batches((0..450).map(|no| (no, 400)).collect())), [200, 200, 50]);
    let half = BYTES_AT_A_TIME / 2;
    assert_eq!(sizes(in_batches(vec![(1, half), (2, half), (3, 1), (4, 10 * half), (5, 1)])), [2, 1, 1, 1]);
    assert!(in_batches(Vec::new()).is_empty());
}
