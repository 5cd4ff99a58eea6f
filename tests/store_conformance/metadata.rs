//! Metadata, and when agents were last heard of.

use crate::Backend;
use crate::support::{agents, matching, me, named, property};
use odoshi::domain::metadata::{Value, Values};
use odoshi::domain::target::Target;
use odoshi::domain::time::Timestamp;
use odoshi::store::{AgentMetadata, NewValues, Seen, Store};
use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// A value of an agent.
type Row = (i64, String, Value);

fn new(agent_no: i64, key: &str, value: &str, at: Timestamp) -> Row {
    let value = Value { value: Some(value.into()), error: None, collected_at: at, clamped: false };
    (agent_no, key.into(), value)
}

/// Values by agent.
pub fn by_agent(rows: Vec<Row>) -> Vec<NewValues> {
    let mut agents: BTreeMap<i64, Values> = BTreeMap::new();
    for (agent_no, key, value) in rows {
        agents.entry(agent_no).or_default().insert(key, value);
    }
    agents.into_iter().map(|(agent_no, values)| NewValues { agent_no, values: values.into() }).collect()
}

async fn write(store: &dyn Store, values: Vec<Row>) {
    assert!(!store.metadata_write(by_agent(values), vec![]).await.unwrap(), "nobody watches elsewhere");
}

/// The values of an agent as JSON.
async fn values(store: &dyn Store, name: &str) -> serde_json::Value {
    let agent = store.metadata_of(&[name.to_owned()], None).await.unwrap().pop();
    json!(agent.map(|agent| agent.values).unwrap_or_default())
}

pub async fn the_newest_value_of_a_key_wins_and_an_equally_old_one_if_it_comes_later(backend: &mut impl Backend) {
    let store = backend.store();
    let no = agents(store, 1).await[0];
    let at = |secs: i64| Timestamp(1_750_000_000_000 + secs * 1_000);
    write(store, vec![new(no, "a", "1", at(5)), new(no, "b", "1.10", at(5))]).await;
    write(store, vec![new(no, "a", "2", at(4)), new(no, "b", "2", at(5))]).await;
    let failed = Value { value: None, error: Some("no sensor".into()), collected_at: at(9), clamped: true };
    write(store, vec![(no, "c".into(), failed)]).await;
    let time = |secs| json!(at(secs));
    let expected = json!({
        "a": {"value": 1, "error": null, "collected_at": time(5)},
        "b": {"value": 2, "error": null, "collected_at": time(5)},
        "c": {"value": null, "error": "no sensor", "collected_at": time(9), "clamped": true},
    });
    assert_eq!(values(store, "agent-000").await, expected);
    // The time moves on with the same value, and keeps out what is older than that.
    write(store, vec![new(no, "a", "1", at(8))]).await;
    write(store, vec![new(no, "a", "3", at(7))]).await;
    assert_eq!(values(store, "agent-000").await["a"], json!({"value": 1, "error": null, "collected_at": time(8)}));
    backend.reopen().await;
    assert_eq!(values(backend.store(), "agent-000").await["c"], expected["c"]);
}

pub async fn values_are_read_by_agent_and_key(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 3).await;
    let now = store.now();
    let rows = fleet[..2].iter().flat_map(|no| ["a", "b", "ü 'q'"].map(|key| new(*no, key, "\"x\"", now)));
    write(store, rows.collect()).await;
    let names = |agents: &[&str]| agents.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let keys = |agents: Vec<AgentMetadata>| {
        let keys = |agent: AgentMetadata| (agent.name, agent.values.into_keys().collect::<Vec<_>>());
        agents.into_iter().map(keys).collect::<Vec<_>>()
    };
    let of = store.metadata_of(&names(&["agent-001", "agent-002", "nobody"]), None).await.unwrap();
    assert_eq!(keys(of), [("agent-001".to_owned(), names(&["a", "b", "ü 'q'"]))]);
    let some = names(&["b", "ü 'q'", "none"]);
    let of = store.metadata_of(&names(&["agent-001", "agent-000"]), Some(&some)).await.unwrap();
    assert_eq!(keys(of), ["agent-000", "agent-001"].map(|name| (name.to_owned(), names(&["b", "ü 'q'"]))));
    let mut known = store.metadata_keys(&fleet).await.unwrap();
    known.sort();
    assert_eq!((known.len(), &known[0]), (6, &(fleet[0], "a".to_owned())));
    assert!(store.metadata_keys(&[]).await.unwrap().is_empty());
}

pub async fn targets_see_the_newest_values(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 3).await;
    let now = store.now();
    let row = |place: usize, key: &str, value: &str| new(fleet[place], key, value, now);
    write(store, vec![row(0, "load", "0.5"), row(0, "mode", r#""eco""#), row(1, "load", "12"), row(1, "mode", "null")])
        .await;
    for (text, places) in [
        ("metadata.load < 1", vec![0]),
        ("metadata.load >= 0.5", vec![0, 1]),
        ("metadata.mode = 'eco'", vec![0]),
        ("metadata.mode IS NULL", vec![1, 2]),
        ("metadata.mode LIKE 'e%' AND NOT metadata.load > 3", vec![0]),
    ] {
        let expected: Vec<i64> = places.into_iter().map(|place: usize| fleet[place]).collect();
        assert_eq!(matching(store, &Target::parse(text).unwrap()).await, expected, "{text}");
    }
}

pub async fn what_was_written_since_a_time_is_paged_by_agent(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 5).await;
    let old = store.now().minus(Duration::from_secs(60));
    write(store, fleet.iter().map(|no| new(*no, "a", "1", old)).collect()).await;
    backend.set_offset(10_000);
    let store = backend.store();
    let since = store.now().minus(Duration::from_secs(5));
    write(store, vec![new(fleet[1], "a", "2", old), new(fleet[1], "b", "2", old), new(fleet[4], "b", "2", old)]).await;
    let all = Target::All;
    let read = async |target: &Target, among: Option<&[i64]>, since, after, limit| {
        let page = store.metadata_since(target, among, since, after, limit).await.unwrap();
        let agents = page.agents.into_iter().map(|agent| (agent.agent_no, agent.values.len()));
        (agents.collect::<Vec<_>>(), page.through)
    };
    let (one, four) = (fleet[1], fleet[4]);
    assert_eq!(read(&all, None, since, 0, 9).await, (vec![(one, 2), (four, 1)], None));
    assert_eq!(read(&all, None, since, 0, 3).await, (vec![(one, 2)], Some(fleet[2])));
    assert_eq!(read(&all, None, since, fleet[2], 3).await, (vec![(four, 1)], None));
    assert_eq!(read(&all, Some(&fleet[..4]), since, 0, 9).await, (vec![(one, 2)], None));
    let target = Target::parse("name <> 'agent-001'").unwrap();
    assert_eq!(read(&target, None, since, 0, 9).await, (vec![(four, 1)], None));
    assert_eq!(read(&all, None, Timestamp(-1), 0, 9).await.0.len(), 5);
    store.metadata_watch(false).await.unwrap();
}

pub async fn values_go_with_their_agent(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 2).await;
    let now = store.now();
    write(store, fleet.iter().map(|no| new(*no, "a", "1", now)).collect()).await;
    store.agent_remove("agent-000", &me()).await.unwrap();
    assert_eq!(store.metadata_keys(&fleet).await.unwrap(), [(fleet[1], "a".to_owned())]);
    // What was on its way is not written, and spoils nothing.
    let late = vec![new(fleet[0], "a", "2", now), new(fleet[0] + 1_000, "a", "2", now), new(fleet[1], "a", "2", now)];
    write(store, late).await;
    assert_eq!(store.metadata_keys(&[fleet[0], fleet[0] + 1_000]).await.unwrap(), []);
    assert_eq!(values(store, "agent-001").await["a"]["value"], 2);
    store.agent_insert(vec![named("agent-000", "stream")]).await.unwrap();
    assert_eq!(values(store, "agent-000").await, json!({}), "the same name later is a new agent");
}

pub async fn an_agent_is_seen_when_it_is_heard_of_and_online_when_it_has_checked_in(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 3).await;
    let text = "last_seen > now() - interval '5 minutes'";
    let recent = async |store: &dyn Store| matching(store, &Target::parse(text).unwrap()).await;
    let see = async |store: &dyn Store, agent_no, checked_in| {
        store.metadata_write(vec![], vec![Seen { agent_no, at: store.now(), checked_in }]).await.unwrap();
    };
    let status = async |store: &dyn Store, name: &str| store.agent_view(name).await.unwrap().unwrap().status;
    let last_seen = async |store: &dyn Store| store.agent_view("agent-000").await.unwrap().unwrap().last_seen.unwrap();
    see(backend.store(), fleet[0], false).await;
    see(backend.store(), fleet[1], true).await;
    assert_eq!(recent(backend.store()).await, fleet[..2]);
    assert_eq!(status(backend.store(), "agent-000").await, "offline");
    assert_eq!(status(backend.store(), "agent-001").await, "online");
    let first = last_seen(backend.store()).await;
    // A row is long: it isn't written again and again, and never goes back.
    backend.set_offset(40_000);
    see(backend.store(), fleet[0], false).await;
    see(backend.store(), fleet[1], true).await;
    assert_eq!(last_seen(backend.store()).await, first);
    backend.set_offset(100_000);
    assert_eq!(status(backend.store(), "agent-001").await, "online", "it has checked in again after 40 s");
    see(backend.store(), fleet[0], false).await;
    let second = last_seen(backend.store()).await;
    assert!(second > first);
    backend.set_offset(0);
    see(backend.store(), fleet[0], true).await;
    assert_eq!(last_seen(backend.store()).await, second);
    backend.set_offset(340_000);
    assert_eq!(recent(backend.store()).await, [fleet[0]]);
}

/// A value as the model keeps it: when it was collected, and which one it is.
type Newest = HashMap<(usize, u8), (i64, usize)>;

pub async fn whatever_comes_in_whatever_order_the_newest_stays(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 3).await;
    let at = |step: i64| Timestamp(1_750_000_000_000 + step * 1_000);
    let batches = prop::collection::vec(prop::collection::btree_map((0..3_usize, 0..3_u8), 0..20_i64, 1..6), 1..12);
    let (mut newest, mut number) = (Newest::new(), 0);
    let shared = std::cell::RefCell::new((&mut newest, &mut number));
    property(24, batches, async |batches: Vec<BTreeMap<(usize, u8), i64>>| {
        for batch in batches {
            let mut rows = Vec::new();
            for ((agent, key), step) in batch {
                let mut shared = shared.borrow_mut();
                *shared.1 += 1;
                let value = *shared.1;
                rows.push(new(fleet[agent], &format!("k{key}"), &value.to_string(), at(step)));
                let known = shared.0.entry((agent, key)).or_insert((step, value));
                if step >= known.0 {
                    *known = (step, value);
                }
            }
            store.metadata_write(by_agent(rows), vec![]).await.unwrap();
        }
        let names: Vec<String> = (0..3).map(|n| format!("agent-{n:03}")).collect();
        let stored = store.metadata_of(&names, None).await.unwrap();
        let stored: Newest = stored
            .iter()
            .flat_map(|agent| {
                let place = fleet.iter().position(|no| *no == agent.agent_no).unwrap();
                agent.values.iter().map(move |(key, view)| {
                    let value = view.value.as_ref().unwrap().get().parse().unwrap();
                    ((place, key[1..].parse().unwrap()), ((view.collected_at.0 - at(0).0) / 1_000, value))
                })
            })
            .collect();
        prop_assert_eq!(&stored, &*shared.borrow().0);
        Ok(())
    });
}
