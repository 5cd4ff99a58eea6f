//! What becomes of occurrences that are missed or overlap.

use crate::Backend;
use crate::hooks::{claim, register};
use crate::schedules::{Clock, insert, last_action, make, ranges, resolve, tell, view};
use crate::support::{agents, end, me};
use odoshi::domain::action::ActionState;
use odoshi::domain::command::{CommandState, Event};
use odoshi::domain::hook::HookEvent;
use odoshi::domain::schedule::Reason;
use odoshi::domain::time::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

pub async fn what_is_missed_is_dropped_as_a_range_and_told(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    register(store, &[("h", &[HookEvent::ScheduleMissed])]);
    let schedule = insert(store, json!({"overlap": "allow"})).await;
    clock.pass(600);
    let made = make(store).await;
    // One of them was missed and is the newest, and one was not missed.
    assert_eq!(made.occurrences.len(), 2);
    assert!(made.hooks_told && !made.has_more);
    let dropped = store.schedule_dropped(schedule.tag.no, 9).await.unwrap();
    assert_eq!(ranges(dropped.clone()), [(8, Reason::Missed)]);
    assert_eq!(Some(dropped[0].from), schedule.next_at);
    assert_eq!(made.dropped, [("s".to_owned(), dropped[0].clone())]);
    let told: Vec<Value> =
        claim(store, "h", 9).await.iter().map(|claim| serde_json::from_str(&claim.payload).unwrap()).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["type"], "schedule.missed");
    let data = &told[0]["data"];
    assert_eq!((data["name"].as_str(), data["count"].as_u64(), data["made"].as_u64()), (Some("s"), Some(9), Some(1)));
    assert_eq!(data["dropped"][0]["reason"], "missed");
    assert!(!clock.next().await.hooks_told, "nothing more is missed");
}

pub async fn an_occurrence_is_skipped_while_the_one_before_still_runs(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    let agents = agents(store, 3).await;
    let schedule = insert(store, json!({})).await;
    let runs = async |clock: &mut Clock<'_, _>| clock.next().await.occurrences.is_empty();
    assert!(!runs(&mut clock).await, "there is none before the first one");
    assert!(runs(&mut clock).await, "its agents are being found");
    let no = last_action(store, &schedule).await;
    resolve(store, no, &agents).await;
    assert!(runs(&mut clock).await, "its commands are on their way");
    for agent_no in &agents {
        tell(store, no, *agent_no, Event::Hold { due_at: store.now() }).await;
    }
    tell(store, no, agents[0], Event::Sent { run: 1, attempts: 0, at: store.now() }).await;
    assert!(runs(&mut clock).await, "an agent has it");
    let failed = end(1, CommandState::Failed, store.now());
    tell(store, no, agents[0], Event::Result(Box::new(failed))).await;
    assert!(runs(&mut clock).await, "it is run again");
    tell(store, no, agents[0], Event::Sent { run: 2, attempts: 0, at: store.now() }).await;
    let done = end(2, CommandState::Succeeded, store.now());
    tell(store, no, agents[0], Event::Result(Box::new(done))).await;
    assert_eq!(ranges(store.schedule_dropped(schedule.tag.no, 9).await.unwrap()), [(4, Reason::Overlap)], "one range");
    assert!(!runs(&mut clock).await, "the others only wait for agents that are away");
    // Another one that runs is skipped in a range of its own.
    assert!(runs(&mut clock).await);
    let dropped = store.schedule_dropped(schedule.tag.no, 9).await.unwrap();
    assert_eq!(ranges(dropped), [(1, Reason::Overlap), (4, Reason::Overlap)]);
    let second = last_action(store, &schedule).await;
    resolve(store, second, &[]).await;
    assert!(!runs(&mut clock).await, "it had no agents");
}

pub async fn what_was_cancelled_or_has_expired_runs_no_longer_unless_an_agent_has_it(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    let agents = agents(store, 1).await;
    let action = json!({"name": "a", "target": "TRUE", "operations": [{"module": "ping"}], "expires_after": "90s"});
    let schedule = insert(store, json!({"action": action})).await;
    assert_eq!(clock.next().await.occurrences.len(), 1);
    assert!(clock.next().await.occurrences.is_empty(), "its agents are being found");
    assert_eq!(clock.next().await.occurrences.len(), 1, "it has expired");
    let no = last_action(store, &schedule).await;
    resolve(store, no, &agents).await;
    let id = store.schedule_occurrences(schedule.tag.no, 1).await.unwrap()[0].action.unwrap().0;
    tell(store, no, agents[0], Event::Sent { run: 1, attempts: 0, at: store.now() }).await;
    store.action_cancel(id, &me()).await.unwrap();
    clock.pass(60);
    assert!(clock.next().await.occurrences.is_empty(), "an agent has it");
    let ended = end(1, CommandState::Cancelled, store.now());
    tell(store, no, agents[0], Event::Result(Box::new(ended))).await;
    assert_eq!(clock.next().await.occurrences.len(), 1, "nobody has it");
}

pub async fn occurrences_may_overlap_or_cancel_the_one_before(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    insert(store, json!({"name": "allow", "overlap": "allow"})).await;
    let cancels = insert(store, json!({"name": "cancel", "overlap": "cancel_previous"})).await;
    for round in 0..3 {
        let made = clock.next().await;
        assert_eq!(made.occurrences.len(), 2, "{made:?}");
        assert_eq!(made.cancelled.len(), usize::from(round > 0));
        assert!(made.dropped.is_empty());
    }
    let states = store.schedule_occurrences(cancels.tag.no, 9).await.unwrap().into_iter();
    let states: Vec<ActionState> = states.map(|occurrence| occurrence.action.unwrap().1).collect();
    assert_eq!(states, [ActionState::Scheduled, ActionState::Cancelled, ActionState::Cancelled]);
    let cancel = store.audit_list(None, 1).await.unwrap().remove(0);
    assert_eq!((cancel.did.as_str(), cancel.by.name.as_str()), ("action.cancel", "schedule:cancel"));
}

pub async fn of_occurrences_that_are_made_together_the_overlap_policy_leaves_one(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    let all = json!({"policy": "all", "max_age": "1h"});
    let starts_at = store.now().plus(Duration::from_secs(60));
    for overlap in ["allow", "skip", "cancel_previous"] {
        insert(store, json!({"name": overlap, "overlap": overlap, "misfire": all, "starts_at": starts_at})).await;
    }
    clock.pass(601);
    let made = make(store).await;
    let of = |name: &str| made.occurrences.iter().filter(|occurrence| occurrence.schedule == name).count();
    assert_eq!((of("allow"), of("skip"), of("cancel_previous")), (10, 1, 10));
    let newest = |name: &str| made.occurrences.iter().filter(|made| made.schedule == name).map(|made| made.at).max();
    assert_eq!(newest("skip"), newest("allow"), "the newest one");
    assert_eq!(made.cancelled.len(), 9);
    let skipped: Vec<_> = made.dropped.iter().map(|(name, range)| (name.as_str(), range.count, range.reason)).collect();
    assert_eq!(skipped, [("skip", 9, Reason::Overlap)]);
    let view = view(store, "cancel_previous").await;
    let kept = store.schedule_occurrences(view.tag.no, 99).await.unwrap().into_iter();
    let kept: Vec<_> = kept.filter(|occurrence| occurrence.action.unwrap().1 != ActionState::Cancelled).collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(Some(kept[0].at), view.last_at);
}

pub async fn an_outage_of_three_hours_brings_what_the_policy_says(backend: &mut impl Backend) {
    let store = backend.store();
    // A quarter past an hour of long ago, whatever the machine's clock says.
    let quarter_past = Timestamp::parse("2026-06-01T10:15:00Z").unwrap();
    let set = |time: Timestamp| backend.set_offset(time.0 - Timestamp::of_this_machine().0);
    set(quarter_past);
    let short = |time: Timestamp| time.to_string()[11..16].to_owned();
    let rows: [(&str, Value, &[&str], &str); 5] = [
        ("skip", json!({"policy": "skip"}), &[], "10:30-13:00 6 missed"),
        ("latest", json!({"policy": "latest"}), &["13:00"], "10:30-12:30 5 missed"),
        ("all", json!({"policy": "all"}), &["10:30", "11:00", "11:30", "12:00", "12:30", "13:00"], ""),
        ("limit", json!({"policy": "all", "limit": 2}), &["12:30", "13:00"], "10:30-12:00 4 missed"),
        ("young", json!({"policy": "all", "max_age": "1h"}), &["12:30", "13:00"], "10:30-12:00 4 too_old"),
    ];
    let timings = [
        ("cron", json!({"cron": "*/30 * * * *", "timezone": "Europe/Stockholm"})),
        ("every", json!({"every": "30m", "starts_at": "2026-06-01T00:00:00Z"})),
    ];
    for (kind, timing) in &timings {
        for (name, misfire, ..) in &rows {
            let mut changes = timing.clone();
            changes["name"] = format!("{kind}-{name}").into();
            changes["misfire"] = misfire.clone();
            changes["overlap"] = "allow".into();
            insert(store, changes).await;
        }
    }
    set(quarter_past.plus(Duration::from_secs(3 * 3_600)));
    make(store).await;
    for (kind, _) in &timings {
        for (name, _, made, dropped) in &rows {
            let schedule = view(store, &format!("{kind}-{name}")).await;
            let occurrences = store.schedule_occurrences(schedule.tag.no, 99).await.unwrap();
            let mut times: Vec<String> = occurrences.into_iter().map(|occurrence| short(occurrence.at)).collect();
            times.sort_unstable();
            assert_eq!(times, *made, "{kind} {name}");
            let ranges = store.schedule_dropped(schedule.tag.no, 99).await.unwrap().into_iter();
            let ranges: Vec<String> = ranges
                .map(|range| {
                    format!("{}-{} {} {}", short(range.from), short(range.to), range.count, range.reason.as_str())
                })
                .collect();
            assert_eq!(ranges.join(", "), *dropped, "{kind} {name}");
            assert_eq!(schedule.next_at.map(short).as_deref(), Some("13:30"), "{kind} {name}");
        }
    }
}

pub async fn a_second_after_a_year_is_planned_at_once(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    let all = json!({"policy": "all", "limit": 1000});
    let schedule = insert(store, json!({"cron": "* * * * * *", "overlap": "allow", "misfire": all})).await;
    clock.pass(365 * 86_400);
    let mut made = 0;
    while view(store, "s").await.next_at.is_some_and(|next| next <= store.now()) {
        made += make(store).await.occurrences.len() as u64;
    }
    let dropped = store.schedule_dropped(schedule.tag.no, 9).await.unwrap();
    let counted: u64 = dropped.iter().map(|range| range.count).sum();
    let last = view(store, "s").await.last_at.unwrap();
    let all = (last.0 - schedule.next_at.unwrap().0) / 1_000 + 1;
    assert_eq!(made + counted, all.unsigned_abs());
    assert!((1_000..2_000).contains(&made), "{made}");
}

pub async fn a_trigger_cancels_the_one_before_if_that_is_the_policy(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    let schedule = insert(store, json!({"overlap": "cancel_previous"})).await;
    let first = clock.next().await.occurrences[0].action;
    for (cancels, cancelled) in [(false, None), (true, Some(())), (true, Some(()))] {
        let stored = odoshi::domain::schedule::Schedule::from_stored(&schedule.document).unwrap();
        let lasts = odoshi::domain::time::Span::secs(600);
        let action = stored.new_action(store.now(), lasts, store.now()).unwrap();
        let triggered = store.schedule_trigger(schedule.tag, action, cancels, &me()).await.unwrap().unwrap();
        assert_eq!(triggered.cancelled.map(|_| ()), cancelled);
    }
    let states = store.schedule_occurrences(schedule.tag.no, 9).await.unwrap().into_iter();
    let states: Vec<ActionState> = states.map(|occurrence| occurrence.action.unwrap().1).collect();
    use ActionState::{Cancelled, Scheduled};
    assert_eq!(states, [Scheduled, Cancelled, Cancelled, Scheduled], "the first one was left alone");
    assert_eq!(store.action_view(first).await.unwrap().unwrap().status, Scheduled);
    assert_eq!(clock.next().await.cancelled.len(), 1, "the last one triggered");
}
