//! Schedules and their occurrences.

use crate::Backend;
use crate::support::{me, page};
use futures_util::future::join_all;
use odoshi::domain::action::{ActionState, Policy};
use odoshi::domain::command::Event;
use odoshi::domain::schedule::{Dropped, Reason, Schedule, Timing, Zones};
use odoshi::domain::time::Timestamp;
use odoshi::reconcilers::recur::SchedulePlanner;
use odoshi::store::{Accepted, Inserted, Made, NewSchedule, NextOccurrence, Report, ScheduleView, Store};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The bundled zone data, whatever the machine has.
pub fn zones() -> Arc<Zones> {
    Arc::new(Zones::load_from(Path::new("/nowhere")))
}

/// A schedule of every minute, with these keys of its document changed.
pub fn new(store: &dyn Store, changes: Value) -> NewSchedule {
    let action = json!({"name": "a", "target": "TRUE", "operations": [{"module": "ping"}], "expires_after": "10h"});
    let mut document = json!({"name": "s", "every": "1m", "action": action});
    for (key, value) in changes.as_object().unwrap() {
        document[key] = value.clone();
    }
    if document.get("cron").is_some() {
        document.as_object_mut().unwrap().remove("every");
    }
    let (now, zones) = (store.now(), zones());
    let schedule = Schedule::from_json(document.to_string().as_bytes(), &zones, now).unwrap();
    let at = schedule.calendar(&zones).unwrap().next_after(now);
    let zone_data = matches!(schedule.timing, Timing::Cron { .. }).then(|| "2000a".to_owned());
    NewSchedule {
        name: schedule.name.clone(),
        document: schedule.document().unwrap(),
        digest: schedule.digest.clone(),
        paused: schedule.paused,
        next: NextOccurrence { decided: now, at, zone_data },
    }
}

pub async fn insert(store: &dyn Store, changes: Value) -> ScheduleView {
    store.schedule_insert(new(store, changes), &me()).await.unwrap().expect("the name is free")
}

pub async fn view(store: &dyn Store, name: &str) -> ScheduleView {
    store.schedule_view(name).await.unwrap().expect("a schedule")
}

/// Makes all that is due.
pub async fn make(store: &dyn Store) -> Made {
    let due = store.schedule_due(1_000).await.unwrap();
    let planner = Arc::new(SchedulePlanner::new(zones()));
    store.schedule_make(due.into_iter().map(|(no, _)| no).collect(), planner).await.unwrap()
}

/// A store whose time passes when the case says so.
pub struct Clock<'a, B: Backend> {
    backend: &'a B,
    offset: i64,
}

impl<'a, B: Backend> Clock<'a, B> {
    pub fn new(backend: &'a B) -> Self {
        Self { backend, offset: 0 }
    }

    pub fn pass(&mut self, secs: i64) {
        self.offset += secs * 1_000;
        self.backend.set_offset(self.offset);
    }

    /// Lets a minute pass, and makes what is due then.
    pub async fn next(&mut self) -> Made {
        self.pass(60);
        make(self.backend.store()).await
    }
}

/// The action of the last occurrence, by its key.
pub async fn last_action(store: &dyn Store, view: &ScheduleView) -> i64 {
    let last = store.schedule_occurrences(view.tag.no, 1).await.unwrap().remove(0);
    store.action_no(last.action.expect("an action").0).await.unwrap().expect("an action")
}

pub const POLICY: Policy = Policy { max_runs: 2, max_deliveries: None, timeout: Duration::from_secs(60) };

pub async fn tell(store: &dyn Store, action_no: i64, agent_no: i64, event: Event) {
    let report = Report { action_no, agent_no, policy: POLICY, event, skip_lookup: false };
    store.outcome_record(&[report]).await.unwrap();
}

/// Writes the commands of an action for these agents, all of them.
pub async fn resolve(store: &dyn Store, action_no: i64, agents: &[i64]) {
    let written = store.command_insert(vec![page(action_no, 0, agents, true)]).await.unwrap();
    assert_eq!(written, [Inserted::Written]);
}

pub fn ranges(dropped: Vec<Dropped>) -> Vec<(u64, Reason)> {
    dropped.into_iter().map(|range| (range.count, range.reason)).collect()
}

pub async fn a_name_is_taken_until_its_schedule_is_removed(backend: &mut impl Backend) {
    let store = backend.store();
    let first = insert(store, json!({})).await;
    assert_eq!((first.created_by.as_str(), first.paused, first.last_at), ("tester", false, None));
    assert!(store.schedule_insert(new(store, json!({"every": "2m"})), &me()).await.unwrap().is_none());
    assert_eq!(view(store, "s").await.document, first.document);
    assert!(store.schedule_remove(first.tag, &me()).await.unwrap());
    assert!(!store.schedule_remove(first.tag, &me()).await.unwrap());
    assert!(store.schedule_view("s").await.unwrap().is_none());
    assert_ne!(insert(store, json!({})).await.tag, first.tag, "it is another one");
    let did: Vec<String> = store.audit_list(None, 9).await.unwrap().into_iter().map(|entry| entry.did).collect();
    assert_eq!(did, ["schedule.create", "schedule.remove", "schedule.create"]);
}

pub async fn a_schedule_is_replaced_if_it_is_what_its_author_knows(backend: &mut impl Backend) {
    let store = backend.store();
    let replace = async |tag, changes: Value| store.schedule_replace(tag, new(store, changes), &me()).await.unwrap();
    let absent = odoshi::store::ScheduleTag { no: 1, version: 1 };
    assert!(replace(absent, json!({})).await.is_none(), "there is none");
    let first = insert(store, json!({})).await;
    let same = replace(first.tag, json!({})).await.expect("it is known");
    assert_eq!((same.tag, same.next_at), (first.tag, first.next_at), "nothing has changed");
    let second = replace(first.tag, json!({"every": "2m"})).await.expect("it is known");
    assert!(second.tag.version > first.tag.version && second.tag.no == first.tag.no);
    assert!(second.next_at > first.next_at);
    assert!(replace(first.tag, json!({"every": "3m"})).await.is_none(), "somebody was faster");
    let paused = replace(second.tag, json!({"every": "2m", "paused": true})).await.expect("it is known");
    assert_eq!((paused.paused, paused.next_at), (true, None));
    let still = replace(paused.tag, json!({"every": "3m"})).await.expect("it is known");
    assert_eq!((still.paused, still.next_at), (true, None), "nothing is said about the pause");
    let resumed = replace(still.tag, json!({"every": "3m", "paused": false})).await.expect("it is known");
    assert!(!resumed.paused && resumed.next_at.is_some());
}

pub async fn an_occurrence_is_made_once_with_its_action_and_the_next_time(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    let schedule = insert(store, json!({})).await;
    assert!(make(store).await.occurrences.is_empty(), "it is not due yet");
    assert_eq!(store.schedule_next().await.unwrap(), schedule.next_at);
    let made = clock.next().await;
    let [occurrence] = made.occurrences.as_slice() else { panic!("{made:?}") };
    assert_eq!((Some(occurrence.at), occurrence.schedule.as_str()), (schedule.next_at, "s"));
    let action = store.action_view(occurrence.action).await.unwrap().expect("an action");
    assert_eq!((action.created_by.as_deref(), action.scheduled_for), (Some("schedule:s"), schedule.next_at));
    let no = store.action_no(occurrence.action).await.unwrap().expect("an action");
    let stored = store.action_get(no).await.unwrap().expect("an action");
    assert_eq!((stored.scheduled_for, stored.valid_from), (schedule.next_at, occurrence.made_at));
    assert_eq!(crate::support::unresolved(store, store.now(), 9).await, [no], "this node owns it");
    assert!(make(store).await.occurrences.is_empty());
    let view = view(store, "s").await;
    assert_eq!((view.last_at, view.tag), (schedule.next_at, schedule.tag));
    assert_eq!(view.next_at, schedule.next_at.map(|at| at.plus(Duration::from_secs(60))));
    let shown = store.schedule_occurrences(schedule.tag.no, 9).await.unwrap();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].action, Some((occurrence.action, ActionState::Scheduled)));
    assert_eq!((shown[0].triggered, Some(shown[0].at)), (false, schedule.next_at));
}

pub async fn of_many_that_claim_at_once_each_occurrence_is_made_by_one(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    let names: Vec<String> = (0..60).map(|n| format!("s{n:02}")).collect();
    for name in &names {
        insert(store, json!({"name": name, "overlap": "allow"})).await;
    }
    for _ in 0..3 {
        clock.pass(60);
        let mut made = Vec::new();
        while made.len() < names.len() {
            for round in join_all((0..6).map(|_| make(store))).await {
                made.extend(round.occurrences.into_iter().map(|occurrence| occurrence.schedule));
            }
        }
        made.sort_unstable();
        assert_eq!(made, names);
    }
    let mut open: Vec<i64> = store.action_list_open(0, 999).await.unwrap().into_iter().map(|open| open.no).collect();
    open.dedup();
    assert_eq!(open.len(), 3 * names.len());
}

pub async fn the_time_of_a_pause_is_not_missed(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    let schedule = insert(store, json!({})).await;
    let paused = store.schedule_pause(schedule.tag, None, &me()).await.unwrap().expect("it is as expected");
    assert_eq!((paused.paused, paused.next_at), (true, None));
    assert!(paused.tag.version > schedule.tag.version);
    assert!(store.schedule_pause(schedule.tag, None, &me()).await.unwrap().is_none(), "it has changed");
    let again = store.schedule_pause(paused.tag, None, &me()).await.unwrap().expect("it is as expected");
    assert_eq!(again.tag, paused.tag, "it is paused already");
    clock.pass(600);
    assert!(store.schedule_due(9).await.unwrap().is_empty());
    let planner = Arc::new(SchedulePlanner::new(zones()));
    let forced = store.schedule_make(vec![schedule.tag.no], planner).await.unwrap();
    assert!(forced.occurrences.is_empty() && forced.dropped.is_empty());
    let now = store.now();
    let next = NextOccurrence { decided: now, at: Some(now.plus(Duration::from_secs(30))), zone_data: None };
    let resumed = store.schedule_pause(paused.tag, Some(next), &me()).await.unwrap().expect("it is as expected");
    assert!(!resumed.paused);
    let made = clock.next().await;
    assert_eq!((made.occurrences.len(), made.dropped.len()), (1, 0));
    let did: Vec<String> = store.audit_list(None, 9).await.unwrap().into_iter().map(|entry| entry.did).collect();
    assert_eq!(did, ["schedule.resume", "schedule.pause", "schedule.create"]);
}

pub async fn an_edit_while_it_is_due_leaves_what_was_due_behind(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    let schedule = insert(store, json!({})).await;
    clock.pass(600);
    store.schedule_replace(schedule.tag, new(store, json!({"every": "2m"})), &me()).await.unwrap();
    let made = make(store).await;
    assert_eq!((made.occurrences.len(), made.dropped.len()), (0, 0));
    clock.pass(60);
    assert_eq!(clock.next().await.occurrences.len(), 1);
}

pub async fn a_trigger_makes_an_occurrence_whatever_the_schedule_says(backend: &mut impl Backend) {
    let store = backend.store();
    let schedule = insert(store, json!({"paused": true})).await;
    let action = |key: Option<&str>| {
        let stored = Schedule::from_stored(&schedule.document).unwrap();
        let mut action = stored.new_action(store.now(), odoshi::domain::time::Span::secs(60), store.now()).unwrap();
        action.idempotency_key = key.map(str::to_owned);
        action
    };
    let trigger = async |key| store.schedule_trigger(schedule.tag, action(key), false, &me()).await.unwrap();
    let mut ids = HashSet::new();
    for key in [None, None, Some("k"), Some("k")] {
        let Accepted::Stored { id, is_new, .. } = trigger(key).await.expect("it is known").accepted else {
            panic!("it is stored")
        };
        assert_eq!(ids.insert(id), is_new);
    }
    assert_eq!(ids.len(), 3, "the same key again is the same occurrence");
    let occurrences = store.schedule_occurrences(schedule.tag.no, 9).await.unwrap();
    assert!(occurrences.iter().all(|occurrence| occurrence.triggered));
    let times: HashSet<Timestamp> = occurrences.iter().map(|occurrence| occurrence.at).collect();
    assert_eq!(times.len(), 3, "each has a time of its own");
    let entry = store.audit_list(None, 1).await.unwrap().remove(0);
    assert_eq!(
        (entry.did.as_str(), entry.subject.as_str(), entry.by.name.as_str()),
        ("schedule.trigger", "s", "tester")
    );
    store.schedule_remove(schedule.tag, &me()).await.unwrap();
    assert!(trigger(None).await.is_none(), "it is gone");
}

pub async fn next_times_of_older_zone_data_are_found_and_computed_anew(backend: &mut impl Backend) {
    let store = backend.store();
    insert(store, json!({})).await;
    let cron = insert(store, json!({"name": "c", "cron": "0 2 * * *", "timezone": "Europe/Stockholm"})).await;
    insert(store, json!({"name": "p", "cron": "0 2 * * *", "paused": true})).await;
    let stale = |version: &'static str| async move { store.schedule_stale(version, 0, 9).await.unwrap() };
    let found = stale("2000b").await;
    assert_eq!(found.iter().map(|(no, _)| *no).collect::<Vec<_>>(), [cron.tag.no]);
    assert_eq!(found[0].1, cron.document.len());
    assert!(stale("2000a").await.is_empty());
    let planner = Arc::new(SchedulePlanner::new(zones()));
    let made = store.schedule_make(vec![cron.tag.no], planner).await.unwrap();
    assert!(made.occurrences.is_empty());
    assert!(stale("2000b").await.is_empty());
    assert_eq!(view(store, "c").await.next_at, cron.next_at);
}

pub async fn lists_are_paged_by_name(backend: &mut impl Backend) {
    let store = backend.store();
    for name in ["b", "a", "B", "c"] {
        insert(store, json!({"name": name})).await;
    }
    let names = async |after: Option<&str>, limit| {
        let views = store.schedule_list(after, limit).await.unwrap().into_iter();
        views.map(|view| view.name).collect::<Vec<String>>()
    };
    assert_eq!(names(None, 9).await, ["B", "a", "b", "c"]);
    assert_eq!(names(Some("a"), 1).await, ["b"]);
    assert!(names(Some("c"), 9).await.is_empty());
}

pub async fn what_is_kept_of_occurrences_is_deleted_after_its_time(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    let schedule = insert(store, json!({})).await;
    for _ in 0..3 {
        clock.next().await;
    }
    let no = last_action(store, &schedule).await;
    resolve(store, no, &[]).await;
    assert_eq!(store.action_complete(vec![no]).await.unwrap(), [no]);
    clock.pass(1);
    while store.action_purge(store.now(), 9).await.unwrap().is_some() {}
    let occurrences = store.schedule_occurrences(schedule.tag.no, 9).await.unwrap();
    assert_eq!(occurrences.iter().map(|occurrence| occurrence.action).collect::<Vec<_>>(), [None]);
    let both = (store.schedule_dropped(schedule.tag.no, 9).await.unwrap().len(), occurrences.len());
    assert_eq!(both, (1, 1));
    assert_eq!(store.occurrence_purge(store.now(), 1).await.unwrap(), 1);
    assert_eq!(store.occurrence_purge(store.now(), 9).await.unwrap(), 1);
    assert_eq!(store.occurrence_purge(store.now(), 9).await.unwrap(), 0);
    assert_eq!(clock.next().await.occurrences.len(), 1, "it goes on, and its last action is no more");
}

/// Occurrences are at :00 and :30; nobody makes any from 10:15 to 13:15.
/// Refuses what it can't read, and plans the rest.
pub async fn a_schedule_that_cannot_be_planned_shows_its_error_and_holds_up_no_other(backend: &mut impl Backend) {
    let mut clock = Clock::new(backend);
    let store = backend.store();
    let mut strange = new(store, json!({"name": "strange"}));
    strange.document =
        strange.document.replace("\"every\":\"1m\"", "\"cron\":\"* * * * *\",\"timezone\":\"Mars/Base\"");
    store.schedule_insert(strange, &me()).await.unwrap().expect("the name is free");
    insert(store, json!({})).await;
    let made = clock.next().await;
    assert_eq!(made.occurrences.len(), 1);
    assert_eq!(made.errors.len(), 1);
    let shown = view(store, "strange").await;
    assert!(shown.error.as_deref().is_some_and(|error| error.contains("Mars/Base")), "{shown:?}");
    assert!(shown.next_at.is_some_and(|next| next > store.now()), "it is tried again later");
    // Once it can be planned again, what it has missed is decided.
    let mut good = new(store, json!({"name": "strange"}));
    good.digest = vec![1];
    let good = store.schedule_replace(shown.tag, good, &me()).await.unwrap().expect("it is known");
    assert_eq!(good.error, None);
    assert_eq!(clock.next().await.occurrences.iter().filter(|made| made.schedule == "strange").count(), 1);
}
