use super::*;
use crate::domain::time::Timestamp;
use crate::service::schedules;
use crate::store::ScheduleView;
use crate::testing::{REFUSED, TestNode, me};
use serde_json::json;

async fn add(node: &TestNode, name: &str) -> ScheduleView {
    let action = json!({"name": "a", "target": "TRUE", "operations": [{"module": "ping"}]});
    let document = json!({"name": name, "every": "1m", "action": action}).to_string();
    schedules::create(&node.node, document.as_bytes(), &me()).await.unwrap()
}

async fn last_at(node: &TestNode, name: &str) -> Option<Timestamp> {
    node.store.schedule_view(name).await.unwrap().unwrap().last_at
}

#[test]
fn batches_are_bounded_by_number_and_by_bytes() {
    let sizes = |batches: Vec<Vec<i64>>| batches.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes(in_batches((0..450).map(|no| (no, 400)).collect())), [200, 200, 50]);
    let half = BYTES_AT_A_TIME / 2;
    assert_eq!(sizes(in_batches(vec![(1, half), (2, half), (3, 1), (4, 10 * half), (5, 1)])), [2, 1, 1, 1]);
    assert!(in_batches(Vec::new()).is_empty());
}

#[actix_rt::test]
async fn what_is_due_is_made_and_its_agents_are_looked_for() {
    let node = TestNode::new().await;
    let schedule = add(&node, "s").await;
    assert_eq!(node.heard().await, ["recur: wake"]);
    let mut recur = Recur::new(node.node.clone());
    assert_eq!(recur.run_once().await.unwrap(), Pace::Wait);
    assert!(last_at(&node, "s").await.is_none());
    assert!(recur.next.is_some_and(|next| next <= Instant::now() + Duration::from_secs(61)), "it sleeps until then");
    assert!(node.heard().await.is_empty());
    node.pass(Duration::from_secs(60));
    assert_eq!(recur.run_once().await.unwrap(), Pace::Wait);
    assert_eq!(last_at(&node, "s").await, schedule.next_at);
    assert_eq!(node.heard().await, ["resolver: wake"]);
}

#[actix_rt::test]
async fn a_schedule_that_the_store_refuses_holds_up_no_other() {
    let node = TestNode::new().await;
    let refused = add(&node, "refused").await;
    let fine = add(&node, "fine").await;
    node.break_inserts("occurrences", &format!("NEW.schedule_no = {}", refused.tag.no), REFUSED);
    let mut recur = Recur::new(node.node.clone());
    node.pass(Duration::from_secs(60));
    let RoundFailed(error) = recur.run_once().await.expect_err("one is refused");
    assert!(error.starts_with(&format!("schedule {} is passed over", refused.tag.no)), "{error}");
    assert_eq!((last_at(&node, "fine").await, last_at(&node, "refused").await), (fine.next_at, None));
}

#[actix_rt::test]
async fn without_schedules_it_waits_for_a_wake_or_the_poll() {
    let node = TestNode::new().await;
    let mut recur = Recur::new(node.node.clone());
    assert_eq!(recur.run_once().await.unwrap(), Pace::Wait);
    assert!(recur.next.is_none());
}
