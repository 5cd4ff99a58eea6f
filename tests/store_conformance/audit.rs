//! The audit log: who did what.

use crate::Backend;
use crate::support::{accept, action, agents, in_secs, me, named};
use odoshi::domain::agent::{Role, Secret, Token};
use odoshi::domain::audit::AuditAuthor;
use odoshi::store::{AgentPatch, Store};
use serde_json::json;
use uuid::Uuid;

async fn told(store: &dyn Store) -> Vec<(String, String, String)> {
    let entries = store.audit_list(None, usize::MAX).await.unwrap();
    entries.into_iter().map(|entry| (entry.did, entry.subject, entry.detail)).collect()
}

fn one(did: &str, subject: impl ToString, detail: &str) -> (String, String, String) {
    (did.into(), subject.to_string(), detail.into())
}

pub async fn what_is_changed_is_told_with_who_did_it_newest_first(backend: &mut impl Backend) {
    let store = backend.store();
    let mut new = action(store, json!({ "name": "uptime" }));
    new.author = me();
    let id = new.id;
    store.action_insert(vec![new]).await.unwrap();
    store.action_pause(id, true, &me()).await.unwrap();
    store.action_pause(id, false, &me()).await.unwrap();
    store.action_cancel(id, &me()).await.unwrap();
    store.agent_enroll(&named("web", "stream"), Secret::random().hash(), &me()).await.unwrap();
    let labels = [("role".to_owned(), Some("db".to_owned())), ("zone".to_owned(), None)].into();
    let patch = AgentPatch { labels, disabled: Some(true), ..AgentPatch::default() };
    store.agent_update("web", &patch, &me()).await.unwrap();
    store.agent_remove("web", &me()).await.unwrap();
    let token = Token {
        id: Uuid::now_v7(),
        role: Role::Viewer,
        name: "töken".into(),
        agent_no: None,
        created_at: store.now(),
        expires_at: None,
        revoked_at: None,
        is_unused: false,
    };
    store.token_insert(&token, Secret::random().hash(), &me()).await.unwrap();
    store.token_revoke(token.id, &me()).await.unwrap();
    let expected = [
        one("token.revoke", token.id, ""),
        one("token.create", token.id, "viewer: töken"),
        one("agent.remove", "web", ""),
        one("agent.change", "web", r#"labels.role = "db", labels.zone taken away, disabled = true"#),
        one("agent.create", "web", "stream"),
        one("action.cancel", id, ""),
        one("action.resume", id, ""),
        one("action.pause", id, ""),
        one("action.create", id, "uptime"),
    ];
    assert_eq!(told(store).await, expected);
    let entries = store.audit_list(None, 2).await.unwrap();
    for entry in &entries {
        let by = AuditAuthor {
            name: "tester".into(),
            role: "admin".into(),
            token: me().token,
            address: Some("192.0.2.7".into()),
        };
        assert_eq!(entry.by, by);
        assert!(entry.target.is_none() && entry.operations.is_none(), "{entry:?}");
        assert!(entry.at <= store.now() && entry.at > in_secs(store, -60));
    }
    let rest = store.audit_list(Some(entries[1].no), usize::MAX).await.unwrap();
    assert_eq!(rest.len(), expected.len() - 2);
    let created = rest.last().unwrap();
    assert_eq!(created.target.as_deref(), Some("TRUE"));
    assert_eq!(created.operations.as_ref().unwrap().get(), r#"[{"module":"ping"}]"#);
}

pub async fn of_long_operations_size_and_hash_are_told(backend: &mut impl Backend) {
    let store = backend.store();
    let text = "x".repeat(100_000);
    accept(store, json!({ "operations": [{ "module": "ping", "parameters": text }] })).await;
    let entry = store.audit_list(None, 1).await.unwrap().pop().unwrap();
    let told: serde_json::Value = serde_json::from_str(entry.operations.unwrap().get()).unwrap();
    assert!(told["bytes"].as_u64().unwrap() > 100_000 && told["sha256"].as_str().unwrap().len() == 64, "{told}");
}

pub async fn what_changes_nothing_is_not_told(backend: &mut impl Backend) {
    let store = backend.store();
    let taken = accept(store, json!({})).await;
    let again = {
        let mut again = action(store, json!({}));
        again.id = taken.id;
        again
    };
    store.action_cancel(taken.id, &me()).await.unwrap();
    let before = told(store).await;
    store.action_insert(vec![again]).await.unwrap();
    store.action_cancel(taken.id, &me()).await.unwrap();
    store.action_pause(taken.id, true, &me()).await.unwrap();
    store.action_cancel(Uuid::now_v7(), &me()).await.unwrap();
    store.agent_update("nobody", &AgentPatch::default(), &me()).await.unwrap();
    store.agent_remove("nobody", &me()).await.unwrap();
    store.token_revoke(Uuid::now_v7(), &me()).await.unwrap();
    agents(store, 2).await;
    assert_eq!(told(store).await, before);
}

pub async fn entries_are_never_changed_and_go_when_they_are_old(backend: &mut impl Backend) {
    for _ in 0..3 {
        accept(backend.store(), json!({})).await;
    }
    assert!(backend.change_audit().await.is_err(), "it is append-only");
    backend.reopen().await;
    let store = backend.store();
    assert_eq!(told(store).await.len(), 3);
    assert_eq!(store.audit_purge(in_secs(store, -60), 10).await.unwrap(), 0);
    assert_eq!(store.audit_purge(in_secs(store, 60), 2).await.unwrap(), 2);
    assert_eq!(store.audit_purge(in_secs(store, 60), 2).await.unwrap(), 1);
    assert!(told(store).await.is_empty());
}
