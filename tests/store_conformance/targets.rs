//! Targets: the store's answer is held to the meaning that a target has in memory.

use crate::Backend;
use crate::support::{Taken, accept, agents, connect, matching, me, named, page, property, resolved};
use odoshi::domain::agent::Enrollment;
use odoshi::domain::command::{CommandState, Event};
use odoshi::domain::json::JsonObject;
use odoshi::domain::target::{AgentRecord, Column, CompareOp, Moment, Number, Target, Value};
use odoshi::domain::time::Timestamp;
use odoshi::store::{AgentPatch, Among, Found, NewAgent, Part, Store};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

const HOUR: i64 = 3_600_000;

pub async fn long_lists_and_deep_conditions_are_answered(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 3).await;
    let names: Vec<String> = (1..6_000).map(|n| format!("agent-{n:03}")).collect();
    let list = |names: &[String]| names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(",");
    let either = |names: &[String]| names.iter().map(|name| format!("name='{name}'")).collect::<Vec<_>>().join(" OR ");
    let nested = |times: usize| format!("{}name = 'agent-000'{}", "NOT (".repeat(times), ")".repeat(times));
    let mut deep = "name = 'agent-000'".to_owned();
    for _ in 0..30 {
        deep = format!("(labels.x = 'y' OR ({deep} AND TRUE))");
    }
    for (text, expected) in [
        (format!("name IN ({})", list(&names[..4_000])), &fleet[1..]),
        (format!("name NOT IN ({})", list(&names[..4_000])), &fleet[..1]),
        (either(&names[..2_500]), &fleet[1..]),
        (format!("NOT ({})", either(&names[..2_500])), &fleet[..1]),
        (vec!["TRUE"; 7_000].join(" AND "), &fleet[..]),
        (nested(60), &fleet[..1]),
        (deep, &fleet[..1]),
    ] {
        let target = Target::parse(&text).unwrap_or_else(|error| panic!("{error}: {}", &text[..80]));
        assert_eq!(matching(store, &target).await, expected, "{}", &text[..80]);
    }
    // As deep as trees get that were parsed.
    let mut tree = Target::parse("name = 'agent-000'").unwrap();
    for _ in 0..200 {
        tree = Target::Not(Box::new(Target::And(vec![Target::All, tree])));
    }
    assert_eq!(matching(store, &tree).await, fleet[..1]);
}

pub async fn a_pattern_takes_no_exponential_time(backend: &mut impl Backend) {
    let store = backend.store();
    let name = "a".repeat(128);
    store.agent_insert(vec![crate::support::named(&name, "stream")]).await.unwrap();
    for (text, found) in [("%a".repeat(60) + "b", 0), ("%a".repeat(60), 1), ("%".repeat(60_000), 1)] {
        let target = Target::parse(&format!("name LIKE '{text}'")).unwrap();
        assert_eq!(matching(store, &target).await.len(), found);
    }
}

/// Brings a command into a state.
async fn bring(store: &dyn Store, taken: Taken, agent_no: i64, state: CommandState) {
    let event = match state {
        CommandState::Pending => Event::Hold { due_at: store.now() },
        CommandState::Sent => Event::Sent { run: 1, attempts: 0, at: store.now() },
        CommandState::Expired => Event::Expired,
        CommandState::Cancelled => Event::Cancelled,
        CommandState::Undeliverable => Event::Undeliverable { error: "gone".into() },
        CommandState::Succeeded | CommandState::Failed | CommandState::TimedOut => {
            Event::Result(Box::new(crate::support::end(1, state, store.now())))
        }
    };
    taken.tell(store, agent_no, event).await;
}

/// What a search finds: keys, and where it ended.
async fn search(store: &dyn Store, text: &str, after: i64, limit: usize, searched: usize) -> (Vec<i64>, Option<i64>) {
    let target = Target::parse(text).unwrap();
    let found = store.agent_search(&target, Part { after, limit, searched }).await.unwrap();
    (found.agents.into_iter().map(|(no, _)| no).collect(), found.through)
}

pub async fn a_fleet_is_searched_and_counted_part_by_part(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 10).await;
    // Two parts without a match, a page that is full, and the end.
    let last = "name LIKE '%8' OR name LIKE '%9'";
    assert_eq!(search(store, last, 0, 5, 4).await, (vec![], Some(fleet[3])));
    assert_eq!(search(store, last, fleet[3], 5, 4).await, (vec![], Some(fleet[7])));
    assert_eq!(search(store, last, fleet[7], 1, 4).await, (vec![fleet[8]], Some(fleet[8])));
    assert_eq!(search(store, last, fleet[7], 5, 4).await, (fleet[8..].to_vec(), None));
    assert_eq!(search(store, "TRUE", 0, 3, 5).await, (fleet[..3].to_vec(), Some(fleet[2])));
    assert_eq!(search(store, "TRUE", fleet[9], 3, 5).await, (vec![], None));
    // Those that are disabled or removed are looked at, and never found.
    let disabled = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
    store.agent_update("agent-000", &disabled, &me()).await.unwrap();
    store.agent_remove("agent-001", &me()).await.unwrap();
    assert_eq!(search(store, "TRUE", 0, 5, 4).await, (fleet[2..4].to_vec(), Some(fleet[3])));
    let among = |text: &str| Among { target: Some(Target::parse(text).unwrap()), disabled: None };
    let count = async |among: &Among, after, searched| {
        let counted = store.agent_count(among, after, searched).await.unwrap();
        (counted.agents, counted.through)
    };
    assert_eq!(count(&among(last), 0, 9).await, (1, Some(fleet[8])));
    assert_eq!(count(&among(last), fleet[8], 9).await, (1, None));
    assert_eq!(count(&Among::default(), 0, 100).await, (9, None));
    assert_eq!(count(&Among { target: None, disabled: Some(true) }, 0, 100).await, (1, None));
}

pub async fn a_search_looks_only_where_agents_can_be(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 10).await;
    store.agent_insert(["x", "y", "z"].map(|name| named(name, "nats")).into()).await.unwrap();
    let nats = matching(store, &Target::parse("transport = 'nats'").unwrap()).await;
    assert_eq!(nats.len(), 3);
    let taken = resolved(store, json!({}), &[fleet[1], fleet[5], nats[1]]).await;
    taken.ends(store, fleet[1], 1, CommandState::Failed).await;
    // With so few to look at, each would need the whole fleet in more than one part.
    let names = "name IN ('agent-002', 'z') OR name = 'agent-009'";
    assert_eq!(search(store, names, 0, 5, 1).await, (vec![fleet[2], fleet[9], nats[2]], None));
    assert_eq!(search(store, names, fleet[2], 1, 1).await, (vec![fleet[9]], Some(fleet[9])));
    assert_eq!(search(store, "transport = 'nats' AND name <> 'x'", 0, 5, 2).await, (vec![nats[1]], Some(nats[1])));
    assert_eq!(search(store, "transport = 'nats'", nats[1], 5, 2).await, (vec![nats[2]], None));
    let states = format!("action('{0}') = 'failed' OR action('{0}') = 'pending'", taken.id);
    assert_eq!(search(store, &states, 0, 5, 2).await, (vec![fleet[1], fleet[5]], Some(fleet[5])));
    assert_eq!(search(store, &states, fleet[5], 5, 2).await, (vec![nats[1]], None));
    let failed = format!("action('{}') = 'failed'", taken.id);
    let failed = Among { target: Some(Target::parse(&failed).unwrap()), disabled: None };
    assert_eq!(store.agent_count(&failed, 0, 9).await.unwrap(), Found { agents: 1, through: None });
    let unknown = format!("action('{}') = 'failed'", Uuid::from_u128(1));
    assert_eq!(search(store, &unknown, 0, 5, 2).await, (vec![], None));
}

pub async fn a_list_goes_on_where_a_part_ended(backend: &mut impl Backend) {
    let store = backend.store();
    agents(store, 10).await;
    store.agent_remove("agent-001", &me()).await.unwrap();
    let list = async |among: &Among, after: Option<&str>, limit, searched| {
        let found = store.agent_list(among, after, limit, searched).await.unwrap();
        (found.agents.into_iter().map(|agent| agent.name).collect::<Vec<_>>(), found.through)
    };
    let through = |name: &str| Some(name.to_owned());
    let last = Among { target: Some(Target::parse("name LIKE '%8' OR name LIKE '%9'").unwrap()), disabled: None };
    assert_eq!(list(&last, None, 5, 4).await, (vec![], through("agent-004")));
    assert_eq!(list(&last, Some("agent-004"), 5, 4).await, (vec!["agent-008".to_owned()], through("agent-008")));
    assert_eq!(list(&last, Some("agent-008"), 5, 4).await, (vec!["agent-009".to_owned()], None));
    assert_eq!(list(&last, Some("agent-004"), 1, 9).await, (vec!["agent-008".to_owned()], through("agent-008")));
    let disabled = Among { target: None, disabled: Some(true) };
    assert_eq!(list(&disabled, None, 5, 4).await, (vec![], through("agent-004")));
    // All, and a few names, are read at once.
    assert_eq!(list(&Among::default(), None, 20, 1).await.0.len(), 9);
    let two = Among { target: Some(Target::parse("name IN ('agent-009', 'agent-002')").unwrap()), disabled: None };
    assert_eq!(list(&two, None, 5, 1).await, (vec!["agent-002".to_owned(), "agent-009".to_owned()], None));
    assert_eq!(list(&two, None, 1, 1).await, (vec!["agent-002".to_owned()], through("agent-002")));
    assert_eq!(list(&two, Some("agent-002"), 5, 1).await, (vec!["agent-009".to_owned()], None));
}

pub async fn agents_are_found_by_the_state_of_an_earlier_command(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 9).await;
    let taken = accept(store, json!({})).await;
    store.command_insert(vec![page(taken.no, 0, &fleet[..8], true)]).await.unwrap();
    for (agent, state) in fleet.iter().zip(CommandState::ALL) {
        bring(store, taken, *agent, state).await;
    }
    for (agent, state) in fleet.iter().zip(CommandState::ALL) {
        let target = Target::ActionState { action: taken.id, state };
        assert_eq!(matching(store, &target).await, [*agent], "{state:?}");
        assert_eq!(matching(store, &Target::Not(Box::new(target))).await.len(), 8);
    }
}

/// Little enough of everything that columns and values often meet.
fn word() -> impl Strategy<Value = String> {
    let words = [
        "a",
        "role",
        "os",
        "Web",
        "web",
        "wEB_",
        "%",
        "_",
        "ключ",
        "КЛЮЧ",
        "ß",
        "SS",
        "é",
        "e\u{301}",
        "İ",
        "5",
        "5.50",
        "-3",
        "1e2",
        "9007199254740993",
        "1e400",
        "1e20000",
        "007",
        " 5",
        "+5",
        "five",
        "",
        "a.b",
        "0",
        "1",
        "01",
        "'",
        "\"",
        "\\",
        "$[0]",
        "\u{1F38B}",
        "linux",
        "a\nb",
        "null",
        "true",
        "[1]",
        "{\"a\":1}",
        "\u{FFFD}",
        "\u{FEFF}a",
    ];
    prop_oneof![8 => prop::sample::select(words.to_vec()).prop_map(str::to_owned), 1 => "\\PC{0,3}"]
}

/// Numbers that no number of ours holds.
const LONG: [&str; 9] = [
    "1.10",
    "1e400",
    "-1E+400",
    "1e-400",
    "9007199254740993",
    "9007199254740992",
    "12345678901234567890123",
    "12345678901234567890123.5",
    "-0.0",
];

/// Facts with the long numbers in the places of their texts.
fn written(facts: &BTreeMap<String, Json>) -> JsonObject {
    let mut json = json!(facts).to_string();
    for digits in LONG {
        json = json.replace(&format!("\"#{digits}\""), digits);
    }
    JsonObject::from_json(&json).unwrap()
}

fn fact() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        (-10i64..10).prop_map(Json::from),
        (-40i32..40).prop_map(|n| Json::from(f64::from(n) / 8.0)),
        Just(json!(u64::MAX)),
        Just(json!(i64::MIN)),
        prop::sample::select(LONG.to_vec()).prop_map(|digits| format!("#{digits}").into()),
        word().prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Json::from),
            prop::collection::btree_map(word(), inner, 0..3).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

/// An agent, and how many hours ago which was enrolled and, perhaps, seen.
#[derive(Clone, Debug)]
struct Drawn {
    record: AgentRecord,
    enrolled: i64,
    seen: Option<i64>,
    commands: [Option<CommandState>; 2],
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let states = || prop::option::of(prop::sample::select(CommandState::ALL.to_vec()));
    (
        prop::collection::btree_map(word(), word(), 0..4),
        prop::collection::btree_map(word(), fact(), 0..5),
        prop::sample::select(vec!["stream", "webhook", "Smtp"]),
        prop::option::of(prop::sample::select(vec!["1.2", "1.10", "Web", "5"])),
        (0i64..4, prop::option::of(0i64..4), any::<bool>()),
        [states(), states()],
    )
        .prop_map(|(labels, facts, transport, version, (enrolled, seen, online), commands)| Drawn {
            record: AgentRecord {
                transport: transport.into(),
                online: online && seen.is_some(),
                version: version.map(str::to_owned),
                labels,
                facts: written(&facts),
                ..AgentRecord::default()
            },
            enrolled,
            seen,
            commands,
        })
}

fn fleet() -> impl Strategy<Value = Vec<Drawn>> {
    let name = prop_oneof![
        "[A-Za-z0-9._-]{1,4}",
        prop::sample::select(vec!["web", "Web", "web_1", "5"]).prop_map(str::to_owned)
    ];
    prop::collection::btree_map(name, drawn(), 1..16).prop_map(|fleet| {
        fleet
            .into_iter()
            .map(|(name, mut drawn)| {
                drawn.record.name = name;
                drawn
            })
            .collect()
    })
}

fn column() -> impl Strategy<Value = Column> {
    prop_oneof![
        2 => Just(Column::Name),
        1 => Just(Column::Transport),
        1 => Just(Column::Status),
        1 => Just(Column::Version),
        1 => Just(Column::QueueLoc),
        6 => word().prop_map(Column::Label),
        1 => word().prop_map(Column::Metadata),
        8 => prop::collection::vec(word(), 1..4).prop_map(Column::Fact),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let numbers = ["5", "5.5", "-3", "100", "7", "0", "0.125", "1e15", "18446744073709551615"];
    let numbers: Vec<&str> = numbers.into_iter().chain(LONG).collect();
    let number = |text: &str| Value::Number(Number::of(text).unwrap());
    prop_oneof![
        3 => word().prop_map(Value::Text),
        1 => prop::sample::select(vec!["stream", "Smtp", "online", "offline", "1.2"]).prop_map(|text| Value::Text(text.into())),
        3 => prop::sample::select(numbers).prop_map(number),
        1 => (-40i32..40).prop_map(move |n| number(&(f64::from(n) / 8.0).to_string())),
    ]
}

/// Half an hour beside everything that happened, so that it is the same in both clocks.
fn moment() -> impl Strategy<Value = Value> {
    let offset = || (-1i64..5).prop_map(|hours| HOUR / 2 - hours * HOUR);
    prop_oneof![
        offset().prop_map(|offset_ms| Moment::Now { offset_ms }),
        offset()
            .prop_map(|offset| Moment::At(Timestamp::of_this_machine()).when(Timestamp(0)).0 + offset)
            .prop_map(|at| Moment::At(Timestamp(at))),
    ]
    .prop_map(Value::Moment)
}

fn pattern() -> impl Strategy<Value = String> {
    let pieces =
        ["%", "%", "_", r"\%", r"\_", r"\\", "web", "WEB", "w", "b", "ß", "К", "к", "5", "é", "a", "\u{1F38B}", "\n"];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..5).prop_map(|pieces| pieces.concat())
}

fn target() -> impl Strategy<Value = Target> {
    use CompareOp::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let op = || prop::sample::select(vec![Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual]);
    let time = || prop_oneof![Just(Column::LastSeen), Just(Column::EnrolledAt)];
    let against = || prop_oneof![5 => (column(), prop::collection::vec(value(), 2..5)), 1 => (time(), prop::collection::vec(moment(), 2..5))];
    let leaf = prop_oneof![
        1 => Just(Target::All),
        6 => (against(), op()).prop_map(|((column, mut values), op)| Target::Compare { column, op, value: values.remove(0) }),
        2 => (against(), any::<bool>()).prop_map(|((column, values), negated)| Target::In { column, values, negated }),
        3 => (column(), pattern(), any::<bool>(), any::<bool>())
            .prop_map(|(column, pattern, ignore_case, negated)| Target::Like { column, pattern, ignore_case, negated }),
        2 => (against(), any::<bool>()).prop_map(|((column, mut values), negated)| {
            let (low, high) = (values.remove(0), values.remove(0));
            Target::Between { column, low, high, negated }
        }),
        2 => (prop_oneof![column(), time()], any::<bool>()).prop_map(|(column, negated)| Target::IsNull { column, negated }),
        1 => (1..=3u128, prop::sample::select(CommandState::ALL.to_vec()))
            .prop_map(|(id, state)| Target::ActionState { action: Uuid::from_u128(id), state }),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|target| Target::Not(Box::new(target))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Target::And),
            prop::collection::vec(inner, 2..4).prop_map(Target::Or),
        ]
    })
}

/// Puts a fleet into an empty store, and answers its agents as they are in memory, by their keys.
async fn settle<B: Backend>(backend: &B, fleet: &[Drawn]) -> BTreeMap<i64, AgentRecord> {
    let store = backend.store();
    let now = store.now();
    for hours in 0..4 {
        backend.set_offset(-hours * HOUR);
        let enrolled = fleet.iter().filter(|drawn| drawn.enrolled == hours).map(|Drawn { record, .. }| NewAgent {
            enrollment: Enrollment {
                name: record.name.clone(),
                labels: Some(record.labels.clone()),
                facts: Some(record.facts.clone()),
                version: record.version.clone().unwrap_or_default(),
            },
            transport: record.transport.clone(),
            address: None,
            secret: None,
        });
        store.agent_insert(enrolled.collect()).await.unwrap();
    }
    let keys: Vec<i64> =
        store.agent_match(&Target::All, 0, 1_000).await.unwrap().into_iter().map(|(no, _)| no).collect();
    let known = store.agent_get_many(&keys).await.unwrap();
    let by_name: BTreeMap<&str, i64> = known.iter().map(|agent| (agent.name.as_str(), agent.no)).collect();
    let mut records = BTreeMap::new();
    for drawn in fleet {
        let no = by_name[drawn.record.name.as_str()];
        if let Some(hours) = drawn.seen {
            backend.set_offset(-hours * HOUR);
            let epochs = connect(store, &[no]).await;
            if !drawn.record.online {
                store.session_close(&[(no, epochs[0])]).await.unwrap();
            }
        }
        let mut record = drawn.record.clone();
        record.enrolled_at = Timestamp(now.0 - drawn.enrolled * HOUR);
        record.last_seen = drawn.seen.map(|hours| Timestamp(now.0 - hours * HOUR));
        for (id, state) in drawn.commands.iter().enumerate() {
            record.commands.extend(state.map(|state| (Uuid::from_u128(id as u128 + 1), state)));
        }
        records.insert(no, record);
    }
    backend.set_offset(0);
    for id in [1, 2].map(Uuid::from_u128) {
        let taken = accept(store, json!({"id": id})).await;
        let with = |no: &i64| records[no].commands.get(&id).copied();
        let agents: Vec<i64> = keys.iter().copied().filter(|no| with(no).is_some()).collect();
        store.command_insert(vec![page(taken.no, 0, &agents, true)]).await.unwrap();
        for no in agents {
            bring(store, taken, no, with(&no).unwrap()).await;
        }
    }
    records
}

async fn means_the_same<B: Backend>(fleet: &[Drawn], targets: &[Target]) -> Result<(), TestCaseError> {
    let backend = B::fresh().await;
    let agents = settle(&backend, fleet).await;
    for target in targets {
        let now = backend.store().now();
        let found = backend.store().agent_match(target, 0, 1_000).await;
        prop_assert!(found.is_ok(), "{:?}: {:?}", target, found);
        let found: BTreeSet<i64> = found.unwrap().into_iter().map(|(no, _)| no).collect();
        for (no, agent) in &agents {
            prop_assert_eq!(found.contains(no), target.matches(agent, now), "{:?} for {:?}", target, agent);
        }
    }
    Ok(())
}

pub async fn a_target_means_the_same_in_the_store_and_in_memory<B: Backend>(_: &mut B) {
    // A hundred fleets of up to 15 agents and a hundred targets for each: 10,000 targets.
    let inputs = (fleet(), prop::collection::vec(target(), 100));
    property(25, inputs, async |(fleet, targets)| means_the_same::<B>(&fleet, &targets).await);
}
