//! Agents and their sessions.

use crate::Backend;
use crate::support::{agents, in_secs, matching, me, named, resolved};
use odoshi::domain::agent::{Enrollment, Role, Secret};
use odoshi::domain::target::Target;
use odoshi::store::{AgentPatch, Enrolled, NewAgent, Store};
use serde_json::json;

fn target(text: &str) -> Target {
    Target::parse(text).unwrap()
}

fn described(name: &str) -> NewAgent {
    let json = json!({"name": name, "labels": {"role": "web"}, "facts": {"os": "linux", "n": 5}, "version": "1.2"});
    let enrollment = Enrollment::from_json(json.to_string().as_bytes()).unwrap();
    NewAgent { enrollment, transport: "webhook".into(), address: Some("https://example.com/hook".into()), secret: None }
}

async fn enrolled(store: &dyn Store, agent: &NewAgent, secret: &Secret) -> i64 {
    match store.agent_enroll(agent, secret.hash(), &me()).await.unwrap() {
        Enrolled::New(agent) => agent.no,
        Enrolled::Taken => panic!("taken"),
    }
}

pub async fn a_name_is_enrolled_once(backend: &mut impl Backend) {
    let store = backend.store();
    let [first, second] = [Secret::random(), Secret::random()];
    let no = enrolled(store, &described("web"), &first).await;
    assert_eq!(store.agent_enroll(&named("web", "stream"), second.hash(), &me()).await.unwrap(), Enrolled::Taken);
    assert_eq!(store.token_find(&second.hash()).await.unwrap(), None, "nothing of it was written");
    let agent = store.agent_get(no).await.unwrap().unwrap();
    assert_eq!((agent.name.as_str(), agent.transport.as_str(), agent.disabled), ("web", "webhook", false));
    assert_eq!(agent.address.as_deref(), Some("https://example.com/hook"));
    // Names differ by case, and putting many in passes over those that are there.
    store.agent_insert(vec![named("web", "stream"), named("Web", "stream")]).await.unwrap();
    assert_eq!(matching(store, &Target::All).await.len(), 2);
    assert_eq!(store.agent_get(no).await.unwrap(), Some(agent));
    assert_eq!(store.agent_get(no + 1_000).await.unwrap(), None);
}

pub async fn an_enrolled_agent_shows_its_token(backend: &mut impl Backend) {
    let store = backend.store();
    let secret = Secret::random();
    let no = enrolled(store, &described("web"), &secret).await;
    let token = store.token_find(&secret.hash()).await.unwrap().unwrap();
    assert_eq!((token.role, token.agent_no, token.name.as_str()), (Role::Agent, Some(no), "web"));
    assert!(store.token_revoke(token.id, &me()).await.unwrap());
    assert_eq!(store.token_find(&secret.hash()).await.unwrap(), None);
}

pub async fn refreshing_changes_what_targets_see(backend: &mut impl Backend) {
    let store = backend.store();
    let no = enrolled(store, &described("web"), &Secret::random()).await;
    enrolled(store, &described("other"), &Secret::random()).await;
    let facts = json!({"os": "plan9"}).as_object().unwrap().clone();
    store.agent_refresh(no, None, &facts, "2.0").await.unwrap();
    let new = "version = '2.0' AND facts.os = 'plan9' AND facts.n IS NULL AND last_seen IS NOT NULL";
    assert_eq!(matching(store, &target(&format!("{new} AND labels.role = 'web'"))).await, [no]);
    let labels = [("role".to_owned(), "db".to_owned())].into();
    store.agent_refresh(no, Some(&labels), &facts, "2.0").await.unwrap();
    assert_eq!(matching(store, &target(&format!("{new} AND labels.role = 'db'"))).await, [no]);
    assert_eq!(matching(store, &target("facts.n = 5 AND labels.role = 'web' AND last_seen IS NULL")).await.len(), 1);
}

pub async fn many_agents_are_read_at_once(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 4).await;
    let wanted = [fleet[3], fleet[0], fleet[3], fleet[2] + 1_000, fleet[1]];
    let found = store.agent_get_many(&wanted).await.unwrap();
    let found: Vec<_> = found.iter().map(|agent| (agent.no, agent.name.as_str())).collect();
    assert_eq!(found, [(fleet[0], "agent-000"), (fleet[1], "agent-001"), (fleet[3], "agent-003")]);
    assert!(store.agent_get_many(&[]).await.unwrap().is_empty());
    let all: Vec<i64> = (0..50_000).collect();
    assert_eq!(store.agent_get_many(&all).await.unwrap().len(), 4);
}

/// The agents that are online.
async fn online(store: &dyn Store) -> Vec<i64> {
    matching(store, &target("status = 'online'")).await
}

pub async fn a_higher_epoch_wins_a_session(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 3).await;
    backend.store().session_open(&[(fleet[0], 5), (fleet[1], 5)]).await.unwrap();
    assert_eq!(online(backend.store()).await, fleet[..2]);
    // Another process: what it opens with a lower epoch is older, and so it holds but the one that it opened anew.
    backend.reopen().await;
    let store = backend.store();
    store.session_open(&[(fleet[0], 4), (fleet[1], 6)]).await.unwrap();
    let taken = resolved(store, json!({}), &fleet).await;
    for agent in &fleet {
        taken.hold(store, *agent).await;
    }
    let due = store.command_due((odoshi::domain::time::Timestamp(0), 0, 0), in_secs(store, 60), 10).await.unwrap();
    assert_eq!(due.iter().map(|(due, _)| due.agent_no).collect::<Vec<_>>(), [fleet[1]]);
}

pub async fn closing_an_older_epoch_does_nothing(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 2).await;
    store.session_open(&[(fleet[0], 1), (fleet[1], 1)]).await.unwrap();
    store.session_open(&[(fleet[0], 2)]).await.unwrap();
    store.session_close(&[(fleet[0], 1), (fleet[1], 1)]).await.unwrap();
    assert_eq!(online(store).await, fleet[..1]);
    store.session_close(&[(fleet[0], 3)]).await.unwrap();
    assert_eq!(online(store).await, fleet[..1]);
    store.session_close(&[(fleet[0], 2)]).await.unwrap();
    assert!(online(store).await.is_empty());
    assert_eq!(matching(store, &target("last_seen > now() - interval '1 minute'")).await, fleet);
    store.session_open(&[(fleet[0], 1)]).await.unwrap();
    assert_eq!(online(store).await, fleet[..1], "what was closed is forgotten");
}

pub async fn a_start_of_the_node_ends_all_sessions(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 2).await;
    backend.store().node_start("node", &[]).await.unwrap();
    backend.store().session_open(&[(fleet[0], 7), (fleet[1], 7)]).await.unwrap();
    backend.reopen().await;
    assert_eq!(online(backend.store()).await.len(), 2);
    backend.store().node_start("node", &[]).await.unwrap();
    assert!(online(backend.store()).await.is_empty());
    backend.store().session_open(&[(fleet[1], 1)]).await.unwrap();
    assert_eq!(online(backend.store()).await, fleet[1..]);
    backend.store().ping().await.unwrap();
}

pub async fn agents_survive_a_restart(backend: &mut impl Backend) {
    let secret = Secret::random();
    let no = enrolled(backend.store(), &described("web"), &secret).await;
    let before = backend.store().agent_get(no).await.unwrap();
    backend.reopen().await;
    let store = backend.store();
    assert_eq!(store.agent_get(no).await.unwrap(), before);
    assert_eq!(store.token_find(&secret.hash()).await.unwrap().unwrap().agent_no, Some(no));
    assert_eq!(matching(store, &target("labels.role = 'web' AND facts.n = 5 AND version = '1.2'")).await, [no]);
    assert_eq!(store.agent_enroll(&described("web"), Secret::random().hash(), &me()).await.unwrap(), Enrolled::Taken);
}

pub async fn an_agent_is_changed_and_removed(backend: &mut impl Backend) {
    let store = backend.store();
    let secret = Secret::random();
    let no = enrolled(store, &described("web"), &secret).await;
    store.session_open(&[(no, 1)]).await.unwrap();
    let labels = [("role".to_owned(), None), ("zone".to_owned(), Some("b".to_owned()))].into();
    let patch = AgentPatch { labels, address: Some(None), disabled: Some(true) };
    let (same, view) = store.agent_update("web", &patch, &me()).await.unwrap().unwrap();
    assert_eq!((same, view.labels.get(), view.address, view.disabled), (no, r#"{"zone":"b"}"#, None, true));
    assert!(matching(store, &Target::All).await.is_empty());
    let (_, view) = store
        .agent_update("web", &AgentPatch { disabled: Some(false), ..AgentPatch::default() }, &me())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((view.labels.get(), view.disabled, view.status), (r#"{"zone":"b"}"#, false, "online"));
    assert!(store.agent_update("nobody", &patch, &me()).await.unwrap().is_none());

    let taken = resolved(store, json!({}), &[no]).await;
    let held = resolved(store, json!({}), &[no]).await;
    held.hold(store, no).await;
    let over = resolved(store, json!({}), &[no]).await;
    over.ends(store, no, 1, odoshi::domain::command::CommandState::Succeeded).await;
    assert_eq!(store.agent_remove("web", &me()).await.unwrap(), Some(no));
    assert_eq!(store.agent_remove("web", &me()).await.unwrap(), None);
    assert_eq!(store.token_find(&secret.hash()).await.unwrap(), None);
    assert!(store.agent_view("web").await.unwrap().is_none() && store.agent_get(no).await.unwrap().is_none());
    assert!(online(store).await.is_empty());
    assert_eq!(store.agent_list_leaving(10).await.unwrap(), [no]);
    assert_eq!(store.command_unfinished_of(no, 10).await.unwrap(), [taken.no, held.no]);
    assert_eq!(store.command_unfinished_of(no, 1).await.unwrap(), [taken.no]);
    store.agent_left(no, in_secs(store, -60)).await.unwrap();
    assert_eq!(store.agent_list_leaving(10).await.unwrap(), [no], "it left only just now");
    store.agent_left(no, in_secs(store, 5)).await.unwrap();
    assert!(store.agent_list_leaving(10).await.unwrap().is_empty());
    let again = enrolled(store, &described("web"), &Secret::random()).await;
    assert_ne!(again, no);
    assert_eq!(taken.list(store).await[0].agent, "web", "what was is still shown");
}
