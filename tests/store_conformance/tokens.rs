//! Tokens: valid, expired, revoked, and kept as hashes alone.

use crate::Backend;
use crate::support::{found, in_secs, me, named};
use odoshi::domain::agent::{Role, Secret, Token};
use odoshi::domain::time::Timestamp;
use odoshi::store::{Enrolled, Revoked, Store};
use uuid::Uuid;

fn token(store: &dyn Store, role: Role, expires_at: Option<Timestamp>) -> Token {
    Token {
        id: Uuid::now_v7(),
        role,
        name: "töken".into(),
        agent_no: None,
        created_at: store.now(),
        expires_at,
        revoked_at: None,
        is_unused: false,
    }
}

pub async fn a_token_is_found_by_its_hash_while_it_is_valid(backend: &mut impl Backend) {
    let [forever, short, other] = [Secret::random(), Secret::random(), Secret::random()];
    let store = backend.store();
    let one = token(store, Role::Operator, None);
    let two = token(store, Role::Viewer, Some(in_secs(store, 60)));
    store.token_insert(&one, forever.hash(), &me()).await.unwrap();
    store.token_insert(&two, short.hash(), &me()).await.unwrap();
    assert!(
        store.token_insert(&token(store, Role::Admin, None), short.hash(), &me()).await.is_err(),
        "one secret, one token"
    );
    assert_eq!(found(store, &forever.hash()).await, Some(one.clone()));
    assert_eq!(found(store, &short.hash()).await, Some(two));
    assert_eq!(found(store, &other.hash()).await, None);
    assert_eq!(found(store, forever.reveal().as_bytes()).await, None);
    backend.set_offset(60_001);
    assert_eq!(found(backend.store(), &short.hash()).await, None);
    assert_eq!(found(backend.store(), &forever.hash()).await, Some(one));
}

pub async fn a_revoked_token_is_not_found(backend: &mut impl Backend) {
    let store = backend.store();
    let secret = Secret::random();
    let token = token(store, Role::Operator, None);
    store.token_insert(&token, secret.hash(), &me()).await.unwrap();
    assert_eq!(store.token_revoke(Uuid::now_v7(), &me()).await.unwrap(), Revoked::Unknown);
    assert!(found(store, &secret.hash()).await.is_some());
    assert_eq!(store.token_revoke(token.id, &me()).await.unwrap(), Revoked::Done);
    assert_eq!(found(store, &secret.hash()).await, None);
    let revoked_at = store.token_list(None, 10).await.unwrap()[0].revoked_at;
    assert!(revoked_at.is_some());
    backend.set_offset(5_000);
    assert_eq!(backend.store().token_revoke(token.id, &me()).await.unwrap(), Revoked::Done);
    let listed = backend.store().token_list(None, 10).await.unwrap();
    assert_eq!(listed[0].revoked_at, revoked_at, "the first time counts");
}

pub async fn tokens_are_listed_newest_first_without_those_of_agents(backend: &mut impl Backend) {
    let store = backend.store();
    let mut made = Vec::new();
    for role in [Role::Viewer, Role::Operator, Role::Admin, Role::Enroll, Role::Viewer] {
        let token = token(store, role, None);
        store.token_insert(&token, Secret::random().hash(), &me()).await.unwrap();
        made.insert(0, token);
        let agent = named(&format!("agent-{}", made.len()), "stream");
        store.agent_enroll(&agent, Secret::random().hash(), &me()).await.unwrap();
    }
    assert_eq!(store.token_list(None, 10).await.unwrap(), made);
    assert_eq!(store.token_list(None, 2).await.unwrap(), made[..2]);
    assert_eq!(store.token_list(Some(made[1].id), 2).await.unwrap(), made[2..4]);
    assert!(store.token_list(Some(made[4].id), 2).await.unwrap().is_empty());
}

pub async fn the_store_keeps_the_hash_and_never_the_token(backend: &mut impl Backend) {
    let store = backend.store();
    let [own, agents] = [Secret::random(), Secret::random()];
    store.token_insert(&token(store, Role::Admin, None), own.hash(), &me()).await.unwrap();
    let enrolled = store.agent_enroll(&named("web", "stream"), agents.hash(), &me()).await.unwrap();
    assert!(matches!(enrolled, Enrolled::New(_)));
    for secret in [own, agents] {
        assert!(backend.keeps(&secret.hash()).await);
        assert!(!backend.keeps(secret.reveal().as_bytes()).await);
    }
}

pub async fn an_admin_token_is_remembered_even_when_it_is_revoked(backend: &mut impl Backend) {
    let store = backend.store();
    assert!(!store.token_any_admin().await.unwrap());
    store.token_insert(&token(store, Role::Operator, None), Secret::random().hash(), &me()).await.unwrap();
    assert!(!store.token_any_admin().await.unwrap());
    let admin = token(store, Role::Admin, Some(in_secs(store, 60)));
    store.token_insert(&admin, Secret::random().hash(), &me()).await.unwrap();
    backend.set_offset(61_000);
    let store = backend.store();
    assert_eq!(store.token_revoke(admin.id, &me()).await.unwrap(), Revoked::Done, "it had expired");
    assert!(store.token_any_admin().await.unwrap());
}

pub async fn the_last_admin_token_stays(backend: &mut impl Backend) {
    let store = backend.store();
    let admin = async |expires_at| {
        let token = token(store, Role::Admin, expires_at);
        store.token_insert(&token, Secret::random().hash(), &me()).await.unwrap();
        token.id
    };
    let revoke = async |id| store.token_revoke(id, &me()).await.unwrap();
    store.token_insert(&token(store, Role::Operator, None), Secret::random().hash(), &me()).await.unwrap();
    let soon = admin(Some(in_secs(store, 60))).await;
    assert_eq!(revoke(soon).await, Revoked::LastAdmin);
    let first = admin(None).await;
    assert_eq!(revoke(first).await, Revoked::LastAdmin, "the other one ends in a minute");
    assert_eq!(revoke(soon).await, Revoked::Done);
    let second = admin(None).await;
    // Both at the same moment: one of them stays.
    let (one, other) = tokio::join!(revoke(first), revoke(second));
    assert!(matches!((one, other), (Revoked::Done, Revoked::LastAdmin) | (Revoked::LastAdmin, Revoked::Done)));
    let left = store.token_list(None, 10).await.unwrap().into_iter().filter(|token| token.revoked_at.is_none());
    assert_eq!(left.filter(|token| token.role == Role::Admin).count(), 1);
}

pub async fn tokens_survive_a_restart(backend: &mut impl Backend) {
    let store = backend.store();
    let [kept, revoked] = [Secret::random(), Secret::random()];
    let [one, two] = [token(store, Role::Enroll, Some(in_secs(store, 60))), token(store, Role::Viewer, None)];
    store.token_insert(&one, kept.hash(), &me()).await.unwrap();
    store.token_insert(&two, revoked.hash(), &me()).await.unwrap();
    store.token_revoke(two.id, &me()).await.unwrap();
    backend.reopen().await;
    let store = backend.store();
    assert_eq!(found(store, &kept.hash()).await, Some(one));
    assert_eq!(found(store, &revoked.hash()).await, None);
}
