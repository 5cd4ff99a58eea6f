use super::*;
use crate::domain::action::NewAction;
use crate::store::Due;

/// A command of action `no`, whose due time follows from its number.
fn delivery(no: i64, priority: i32) -> Delivery {
    let document =
        format!(r#"{{"name":"n","target":"TRUE","operations":[{{"module":"ping"}}],"priority":{priority}}}"#);
    let new = NewAction::from_json(document.as_bytes(), uuid::Uuid::now_v7(), Timestamp(0)).expect("valid");
    let action = Arc::new(Action::from_new(no, &new, false, false).expect("valid"));
    let due = Due { action_no: no, agent_no: 1, run: 1, attempts: 0, due_at: Timestamp(no), priority, open: true };
    Delivery { due, action }
}

fn back(offered: Offered) -> Option<i64> {
    match offered {
        Offered::Back(delivery) => Some(delivery.action.no),
        Offered::Queued | Offered::Known => None,
    }
}

#[test]
fn what_goes_first_displaces_what_goes_last_from_a_full_queue() {
    let (mut in_flight, now) = (InFlight::new(1, 1), Instant::now());
    let full = QUEUE as i64;
    assert!((1..=full).all(|no| back(in_flight.offer(delivery(no, 0), false, now)).is_none()));
    assert_eq!(back(in_flight.offer(delivery(full + 1, 0), false, now)), Some(full + 1));
    assert_eq!(back(in_flight.offer(delivery(full + 2, 1), false, now)), Some(full));
    assert_eq!(in_flight.queued(), QUEUE);
    assert_eq!(back(in_flight.offer(delivery(1, 0), false, now)), None, "it is known");
}

#[test]
fn what_has_just_ended_is_not_delivered_again() {
    let (mut in_flight, now) = (InFlight::new(1, 1), Instant::now());
    in_flight.offer(delivery(1, 0), false, now);
    let command = in_flight.deliver(Timestamp(1), now).remove(0);
    in_flight.finish(command.run_ref(), now);
    assert!(matches!(in_flight.offer(delivery(1, 0), false, now), Offered::Known), "a read that began before");
    assert!(in_flight.deliver(Timestamp(1), now).is_empty());
    in_flight.offer(delivery(1, 0), false, now + STALE);
    assert!(in_flight.deliver(Timestamp(1), now).is_empty(), "at least for so long");
}

#[test]
fn what_is_early_is_put_back_and_read_again_when_it_is_due() {
    let (mut in_flight, clock) = (InFlight::new(1, 8), Instant::now());
    let mut skip_lookup = delivery(2_000, 0);
    skip_lookup.due.open = false;
    in_flight.offer(skip_lookup, false, clock);
    in_flight.offer(delivery(9_000, 0), false, clock);
    in_flight.offer(delivery(1, 0), false, clock);
    // The row says that the command is due, but the action isn't valid yet.
    let mut invalid = delivery(5, 0);
    Arc::get_mut(&mut invalid.action).expect("nobody else has it").valid_from = Timestamp(8_000);
    in_flight.offer(invalid, false, clock);
    let handed: Vec<_> = in_flight.deliver(Timestamp(1_000), clock);
    assert_eq!((handed.len(), in_flight.flying(), in_flight.queued()), (1, 1, 0), "one of them is due");
    let [Report { event: Event::Hold { due_at }, .. }] = &in_flight.take_put_back()[..] else {
        panic!("one is skip_lookup")
    };
    assert_eq!(*due_at, Timestamp(2_000));
    let due = clock + Duration::from_millis(1_001);
    assert!(in_flight.next_deadline() <= Some(due) && !in_flight.take_early(clock));
    assert!(in_flight.take_early(due) && !in_flight.take_early(due), "once");
    in_flight.offer(delivery(2_000, 0), false, due);
    assert_eq!(in_flight.deliver(Timestamp(2_001), due).len(), 1, "it wasn't forgotten as known");
}

#[test]
fn while_the_store_has_more_only_what_goes_before_the_last_one_is_taken() {
    let (mut in_flight, now) = (InFlight::new(1, 1), Instant::now());
    assert_eq!(back(in_flight.offer(delivery(5, 0), true, now)), Some(5), "nothing is known of the store's order");
    assert_eq!(back(in_flight.offer(delivery(5, 0), false, now)), None);
    assert_eq!(back(in_flight.offer(delivery(6, 0), true, now)), Some(6));
    assert_eq!(back(in_flight.offer(delivery(4, 0), true, now)), None);
    assert_eq!(back(in_flight.offer(delivery(7, 9), true, now)), None);
}
