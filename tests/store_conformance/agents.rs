//! Agents and their sessions.

use crate::Backend;
use crate::support::{agents, connect, found, in_secs, matching, me, named, resolved};
use odoshi::domain::agent::{Enrollment, Role, Secret, SigningSecret};
use odoshi::domain::json::JsonObject;
use odoshi::domain::target::Target;
use odoshi::store::{
    AgentPatch, Among, Enrolled, Holder, NewAgent, Opened, Revoked, Said, SessionHeld, SessionOpening, SessionState,
    Store,
};
use serde_json::json;
use uuid::Uuid;

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
    assert_eq!(found(store, &second.hash()).await, None, "nothing of it was written");
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
    let Holder { token, agent } = store.token_find(&secret.hash()).await.unwrap().unwrap();
    assert_eq!(agent, store.agent_get(no).await.unwrap());
    assert!(agent.is_some_and(|agent| agent.name == "web" && agent.version == "1.2"));
    assert_eq!((token.role, token.agent_no, token.name.as_str()), (Role::Agent, Some(no), "web"));
    assert_eq!(store.token_revoke(token.id, &me()).await.unwrap(), Revoked::Done);
    assert_eq!(found(store, &secret.hash()).await, None);
}

/// Enrolls a described agent of this name under a nonce: its token, if the name isn't taken.
async fn under_nonce(store: &dyn Store, name: &str, nonce: &str) -> Option<(i64, Secret)> {
    let (secret, nonce) = (Secret::random(), odoshi::domain::agent::hash_of(nonce));
    match store.agent_enroll_once(&described(name), secret.hash(), Some(nonce), &me()).await.unwrap() {
        Enrolled::New(agent) => Some((agent.no, secret)),
        Enrolled::Taken => None,
    }
}

pub async fn enrolling_is_repeated_under_its_nonce_until_the_token_is_used(backend: &mut impl Backend) {
    let store = backend.store();
    let (no, first) = under_nonce(store, "web", "n").await.unwrap();
    assert!(under_nonce(store, "web", "m").await.is_none(), "another nonce");
    assert_eq!(store.agent_enroll(&named("web", "stream"), vec![1], &me()).await.unwrap(), Enrolled::Taken);
    let (same, second) = under_nonce(store, "web", "n").await.unwrap();
    assert_eq!(same, no);
    assert_eq!(found(store, &first.hash()).await, None, "revoked");
    // It is remembered over a restart, and also that it was used.
    backend.reopen().await;
    let (_, third) = under_nonce(backend.store(), "web", "n").await.unwrap();
    assert_eq!(found(backend.store(), &second.hash()).await, None);
    let token = found(backend.store(), &third.hash()).await.unwrap();
    assert!(token.is_unused && backend.store().token_use(token.id).await.unwrap());
    backend.reopen().await;
    let store = backend.store();
    assert!(under_nonce(store, "web", "n").await.is_none(), "its token was used");
    let token = found(store, &third.hash()).await.unwrap();
    assert!(!token.is_unused && store.token_use(token.id).await.unwrap());
    // One that was revoked can't be used, and a removed agent's nonce is worth nothing.
    let (other, fourth) = under_nonce(store, "other", "n").await.unwrap();
    let unused = found(store, &fourth.hash()).await.unwrap();
    store.agent_remove("other", &me()).await.unwrap();
    assert!(!store.token_use(unused.id).await.unwrap());
    assert_ne!(under_nonce(store, "other", "n").await.unwrap().0, other);
    assert_eq!(matching(store, &Target::All).await.len(), 2);
}

pub async fn refreshing_changes_what_targets_see(backend: &mut impl Backend) {
    let store = backend.store();
    let no = enrolled(store, &described("web"), &Secret::random()).await;
    enrolled(store, &described("other"), &Secret::random()).await;
    let facts = Some(JsonObject::from_json(r#"{"os":"plan9"}"#).unwrap());
    let said = Said { labels: None, facts, version: "2.0".into() };
    assert!(store.agent_refresh(no, said.clone()).await.unwrap());
    assert!(!store.agent_refresh(no, said.clone()).await.unwrap(), "it is stored already");
    let new = "version = '2.0' AND facts.os = 'plan9' AND facts.n IS NULL AND last_seen IS NOT NULL";
    assert_eq!(matching(store, &target(&format!("{new} AND labels.role = 'web'"))).await, [no]);
    let labels = Some([("site".to_owned(), "a".to_owned())].into());
    assert!(store.agent_refresh(no, Said { labels, facts: None, version: "2.0".into() }).await.unwrap());
    assert_eq!(matching(store, &target(&format!("{new} AND labels.site = 'a'"))).await, [no], "without facts");
    assert!(!store.agent_refresh(no + 1_000, said).await.unwrap(), "there is no such agent");
    assert_eq!(matching(store, &target("facts.n = 5 AND labels.role = 'web' AND last_seen IS NULL")).await.len(), 1);
}

pub async fn labels_of_operators_stay_whatever_the_agent_reports(backend: &mut impl Backend) {
    let store = backend.store();
    let web = NewAgent { transport: "stream".into(), address: None, ..described("web") };
    let no = enrolled(store, &web, &Secret::random()).await;
    let report = |labels: &[(&str, &str)]| Said {
        labels: Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
        ..Said::default()
    };
    let labels = async || store.agent_view("web").await.unwrap().unwrap().labels.get().to_owned();
    let patch = |labels: &[(&str, Option<&str>)]| AgentPatch {
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect(),
        ..AgentPatch::default()
    };
    store.agent_update("web", &patch(&[("role", Some("db")), ("tier", Some("1"))]), &me()).await.unwrap();
    store.agent_refresh(no, report(&[("role", "web"), ("site", "a")])).await.unwrap();
    assert_eq!(labels().await, r#"{"role":"db","site":"a","tier":"1"}"#);
    store.agent_update("web", &patch(&[("site", None)]), &me()).await.unwrap();
    store.agent_refresh(no, report(&[("role", "web"), ("site", "b")])).await.unwrap();
    assert_eq!(labels().await, r#"{"role":"db","tier":"1"}"#, "taken away, though the agent reports it");
    store.agent_refresh(no, report(&[])).await.unwrap();
    store.agent_refresh(no, report(&[("site", "c")])).await.unwrap();
    assert_eq!(labels().await, r#"{"role":"db","site":"c","tier":"1"}"#, "it had stopped reporting it");
    // The labels of one that somebody added are an operator's.
    let added = enrolled(store, &described("hook"), &Secret::random()).await;
    store.agent_refresh(added, report(&[("role", "x")])).await.unwrap();
    assert_eq!(matching(store, &target("labels.role = 'web'")).await, [added]);
}

pub async fn disabled_agents_are_listed_when_they_are_asked_for(backend: &mut impl Backend) {
    let store = backend.store();
    for name in ["a", "b", "c"] {
        enrolled(store, &described(name), &Secret::random()).await;
    }
    store.agent_update("b", &AgentPatch { disabled: Some(true), ..AgentPatch::default() }, &me()).await.unwrap();
    store.agent_remove("c", &me()).await.unwrap();
    let listed = async |text: Option<&str>, disabled| {
        let among = Among { target: text.map(target), disabled };
        let list = store.agent_list(&among, None, 10, 10).await.unwrap();
        assert_eq!(list.through, None);
        list.agents.into_iter().map(|agent| agent.name).collect::<Vec<_>>()
    };
    assert_eq!(listed(None, None).await, ["a", "b"]);
    assert_eq!(listed(None, Some(false)).await, ["a"]);
    assert_eq!(listed(None, Some(true)).await, ["b"]);
    assert_eq!(listed(Some("TRUE"), None).await, ["a"]);
    assert_eq!(listed(Some("TRUE"), Some(true)).await, ["b"]);
    assert!(listed(Some("labels.role = 'db'"), Some(true)).await.is_empty());
}

pub async fn of_two_processes_with_one_token_the_later_one_stays(backend: &mut impl Backend) {
    let store = backend.store();
    let no = agents(store, 1).await[0];
    let [first, second, third] = [1, 2, 3].map(Uuid::from_u128);
    let open = async |instance: Option<Uuid>| {
        let opening = SessionOpening { agent_no: no, token: None, after: None, instance };
        store.session_open(&[opening]).await.unwrap()[0]
    };
    let view = async || store.agent_view("agent-000").await.unwrap().unwrap().duplicate_at;
    let opened = |opened| matches!(opened, Opened::As(_));
    assert!(opened(open(Some(first)).await));
    assert!(opened(open(Some(first)).await), "the same process again");
    assert!(opened(open(Some(second)).await), "perhaps a restart");
    assert_eq!(view().await, None);
    assert_eq!(open(Some(first)).await, Opened::Duplicate);
    assert!(view().await.is_some_and(|at| at <= store.now()));
    assert!(opened(open(Some(third)).await));
    for replaced in [first, second] {
        assert_eq!(open(Some(replaced)).await, Opened::Duplicate);
    }
    assert!(opened(open(None).await), "one that doesn't say who it is");
    let Opened::As(epoch) = open(Some(third)).await else { panic!("the latest one") };
    // Once it has gone, any of them may come.
    store.session_close(&[(no, epoch)]).await.unwrap();
    assert!(opened(open(Some(first)).await));
    assert!(opened(open(Some(second)).await), "what had been before is forgotten");
    assert_eq!(open(Some(first)).await, Opened::Duplicate);
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

pub async fn contacts_have_addresses_and_secrets_and_leave_out_disabled_agents(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 2).await;
    let new = NewAgent { secret: Some("whsec_x".into()), ..described("hook") };
    let address = new.address.clone();
    store.agent_insert(vec![new]).await.unwrap();
    let hook = matching(store, &target("name = 'hook'")).await;
    let disabled = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
    store.agent_update("agent-000", &disabled, &me()).await.unwrap();
    let contacts = store.agent_contacts(&[hook[0], fleet[0], fleet[1], 1_000_000]).await.unwrap();
    let found: Vec<_> = contacts.iter().map(|contact| (contact.no, contact.name.as_str())).collect();
    assert_eq!(found, [(fleet[1], "agent-001"), (hook[0], "hook")]);
    assert_eq!(contacts[1].address, address);
    assert_eq!(contacts[1].secret.as_ref().map(SigningSecret::reveal), Some("whsec_x"));
    assert!(contacts[0].address.is_none() && contacts[0].secret.is_none());
}

/// The agents that are online.
async fn online(store: &dyn Store) -> Vec<i64> {
    matching(store, &target("status = 'online'")).await
}

pub async fn the_connection_that_was_opened_last_wins_whatever_the_clock_says(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 3).await;
    let before = connect(backend.store(), &fleet[..2]).await;
    assert_eq!(online(backend.store()).await, fleet[..2]);
    // Another process, whose clock is behind: it holds the one that it opened anew.
    backend.reopen().await;
    backend.set_offset(-600_000);
    let store = backend.store();
    let after = connect(store, &fleet[1..2]).await;
    assert!(after[0] > before[1], "{after:?} {before:?}");
    backend.set_offset(0);
    let store = backend.store();
    let taken = resolved(store, json!({}), &fleet).await;
    for agent in &fleet {
        taken.postponed(store, *agent, store.now()).await;
    }
    let page = store.command_due((odoshi::domain::time::Timestamp(0), 0, 0), in_secs(store, 60), 10).await.unwrap();
    assert_eq!(page.found.iter().map(|(due, _)| due.agent_no).collect::<Vec<_>>(), [fleet[1]]);
    // What another process holds is none of this one's to close.
    store.session_close(&[(fleet[0], before[0]), (fleet[1], before[1])]).await.unwrap();
    assert_eq!(online(store).await, fleet[..2]);
}

pub async fn closing_an_older_connection_does_nothing_to_a_newer_one(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 2).await;
    let first = connect(store, &fleet).await;
    let second = connect(store, &fleet[..1]).await;
    store.session_close(&[(fleet[0], first[0]), (fleet[1], first[1])]).await.unwrap();
    assert_eq!(online(store).await, fleet[..1]);
    store.session_close(&[(fleet[0], second[0])]).await.unwrap();
    assert!(online(store).await.is_empty());
    assert_eq!(matching(store, &target("last_seen > now() - interval '1 minute'")).await, fleet);
    let third = connect(store, &fleet[..1]).await;
    assert!(third[0] > second[0], "though nothing was left of it");
    // Whatever this process has had of it.
    store.session_close(&[(fleet[0], i64::MAX)]).await.unwrap();
    assert!(online(store).await.is_empty());
}

pub async fn a_start_of_the_node_ends_all_sessions(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 2).await;
    backend.store().node_start("node", &[]).await.unwrap();
    let before = connect(backend.store(), &fleet).await;
    backend.reopen().await;
    assert_eq!(online(backend.store()).await.len(), 2);
    backend.store().node_start("node", &[]).await.unwrap();
    assert!(online(backend.store()).await.is_empty());
    let after = connect(backend.store(), &fleet[1..]).await;
    assert!(after[0] > before[1], "{after:?} {before:?}");
    assert_eq!(online(backend.store()).await, fleet[1..]);
    backend.store().ping().await.unwrap();
}

pub async fn connections_are_compared_and_written_again(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 5).await;
    let epochs = connect(store, &fleet).await;
    let held = |n: usize| SessionHeld { agent_no: fleet[n], token: None, epoch: epochs[n] };
    let all: Vec<SessionHeld> = (0..5).map(held).collect();
    assert_eq!(store.session_check(&all).await.unwrap(), [SessionState::Current; 5]);
    // One is missing, one has a newer connection, one is disabled, one is removed.
    store.session_close(&[(fleet[1], epochs[1])]).await.unwrap();
    connect(store, &fleet[2..3]).await;
    let disabled = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
    store.agent_update("agent-003", &disabled, &me()).await.unwrap();
    store.agent_remove("agent-004", &me()).await.unwrap();
    let states = [
        SessionState::Current,
        SessionState::Restored,
        SessionState::Replaced,
        SessionState::NotAllowed,
        SessionState::NotAllowed,
    ];
    assert_eq!(store.session_check(&all).await.unwrap(), states);
    assert_eq!(store.session_check(&all[1..2]).await.unwrap(), [SessionState::Current], "it is written now");
    assert_eq!(online(store).await, fleet[..3]);
    // An older one is not written again, though there is no other.
    store.session_close(&[(fleet[2], i64::MAX)]).await.unwrap();
    assert_eq!(store.session_check(&all[2..3]).await.unwrap(), [SessionState::Replaced]);
    assert!(store.session_check(&[]).await.unwrap().is_empty());
}

pub async fn who_is_not_allowed_opens_no_connection(backend: &mut impl Backend) {
    let store = backend.store();
    let mut cases = Vec::new();
    for name in ["good", "disabled", "removed", "revoked"] {
        let secret = Secret::random();
        let no = enrolled(store, &named(name, "stream"), &secret).await;
        cases.push((no, found(store, &secret.hash()).await.unwrap().id));
    }
    let opening =
        |n: usize| SessionOpening { agent_no: cases[n].0, token: Some(cases[n].1), after: None, instance: None };
    let disabled = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
    store.agent_update("disabled", &disabled, &me()).await.unwrap();
    store.agent_remove("removed", &me()).await.unwrap();
    store.token_revoke(cases[3].1, &me()).await.unwrap();
    // In the order given.
    let opened = store.session_open(&[opening(3), opening(0), opening(2), opening(1)]).await.unwrap();
    let [Opened::NotAllowed, Opened::As(epoch), Opened::NotAllowed, Opened::NotAllowed] = opened[..] else {
        panic!("{opened:?}")
    };
    assert_eq!(matching(store, &target("status = 'online'")).await, [cases[0].0]);
    assert_eq!(store.agent_view("disabled").await.unwrap().unwrap().status, "offline");
    let unknown = SessionOpening { agent_no: cases[3].0 + 1_000, token: None, after: None, instance: None };
    assert_eq!(store.session_open(&[unknown]).await.unwrap(), [Opened::NotAllowed]);
    // The same connection once more, and one that is older.
    let again = SessionOpening { after: Some(epoch), ..opening(0) };
    let opened = store.session_open(&[again]).await.unwrap();
    assert!(matches!(opened[..], [Opened::As(newer)] if newer > epoch), "{opened:?}");
    assert_eq!(store.session_open(&[again]).await.unwrap(), [Opened::Replaced]);
    store.token_revoke(cases[0].1, &me()).await.unwrap();
    let held = SessionHeld { agent_no: cases[0].0, token: Some(cases[0].1), epoch };
    assert_eq!(store.session_check(&[held]).await.unwrap(), [SessionState::NotAllowed]);
}

pub async fn agents_survive_a_restart(backend: &mut impl Backend) {
    let secret = Secret::random();
    let no = enrolled(backend.store(), &described("web"), &secret).await;
    let before = backend.store().agent_get(no).await.unwrap();
    backend.reopen().await;
    let store = backend.store();
    assert_eq!(store.agent_get(no).await.unwrap(), before);
    assert_eq!(found(store, &secret.hash()).await.unwrap().agent_no, Some(no));
    assert_eq!(matching(store, &target("labels.role = 'web' AND facts.n = 5 AND version = '1.2'")).await, [no]);
    assert_eq!(store.agent_enroll(&described("web"), Secret::random().hash(), &me()).await.unwrap(), Enrolled::Taken);
}

pub async fn an_agent_is_changed_and_removed(backend: &mut impl Backend) {
    let store = backend.store();
    let secret = Secret::random();
    let no = enrolled(store, &described("web"), &secret).await;
    connect(store, &[no]).await;
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
    assert_eq!(found(store, &secret.hash()).await, None);
    assert!(store.agent_view("web").await.unwrap().is_none() && store.agent_get(no).await.unwrap().is_none());
    assert!(online(store).await.is_empty());
    assert_eq!(store.agent_list_leaving(0, 10).await.unwrap(), [no]);
    assert_eq!(store.command_unfinished_of(no, 10).await.unwrap(), [taken.no, held.no]);
    assert_eq!(store.command_unfinished_of(no, 1).await.unwrap(), [taken.no]);
    store.agent_left(no, in_secs(store, -60)).await.unwrap();
    assert_eq!(store.agent_list_leaving(0, 10).await.unwrap(), [no], "it left only just now");
    store.agent_left(no, in_secs(store, 5)).await.unwrap();
    assert!(store.agent_list_leaving(0, 10).await.unwrap().is_empty());
    let again = enrolled(store, &described("web"), &Secret::random()).await;
    assert_ne!(again, no);
    assert_eq!(taken.list(store).await[0].agent, "web", "what was is still shown");
}
