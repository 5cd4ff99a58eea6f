use super::*;
use crate::config::{Config, Hook, HookUrl};
use crate::domain::time::Span;
use crate::senders::{HookClient, HookFailure};
use crate::store::HookView;
use crate::testing::{TestNode, next};
use actix_web::web::Bytes;
use async_trait::async_trait;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Mutex;
use tokio::sync::mpsc;

/// What the client does with an event.
enum Does {
    Fails(&'static str),
    Refuses,
    Hangs,
    Panics,
}

/// A client that tells what it was given, and does what the test wants, or else succeeds.
#[derive(Clone)]
struct Client {
    calls: mpsc::UnboundedSender<(String, String, Value)>,
    script: Arc<Mutex<VecDeque<Does>>>,
    /// The hook whose receiver never answers.
    hangs: Option<&'static str>,
}

#[async_trait]
impl HookClient for Client {
    async fn post(&self, hook: &HookTarget, id: &str, body: Bytes) -> Result<(), HookFailure> {
        let body = serde_json::from_slice(&body).expect("JSON");
        self.calls.send((hook.name.clone(), id.to_owned(), body)).expect("the test listens");
        if self.hangs == Some(hook.name.as_str()) {
            std::future::pending().await
        }
        let does = self.script.lock().expect("not poisoned").pop_front();
        let failure = |error: &str, permanent| HookFailure { error: error.into(), retry_after: None, permanent };
        match does {
            None => Ok(()),
            Some(Does::Fails(error)) => Err(failure(error, false)),
            Some(Does::Refuses) => Err(failure("gone", true)),
            Some(Does::Hangs) => std::future::pending().await,
            Some(Does::Panics) => panic!("a scripted panic"),
        }
    }
}

struct Fixture {
    node: TestNode,
    hooks: Hooks,
    calls: mpsc::UnboundedReceiver<(String, String, Value)>,
}

fn hook(name: &str, on: &str, timeout: Span) -> Hook {
    let url = Some(HookUrl::new("https://h.example/x"));
    Hook { name: Some(name.into()), url, secret_file: None, on: vec![on.into()], timeout }
}

impl Fixture {
    /// Hooks `a` and `b` get ended actions, `c` lost nodes.
    async fn with(timeout: Span, hangs: Option<&'static str>, script: Vec<Does>) -> Self {
        let hooks = [("a", "action.ended"), ("b", "action.ended"), ("c", "node.lost")];
        let hooks = hooks.map(|(name, on)| hook(name, on, timeout)).to_vec();
        let config = Config { hook: hooks, ..Config::default() };
        let targets = HookTarget::all(&config).expect("valid").into_iter().map(Arc::new).collect();
        let (sender, calls) = mpsc::unbounded_channel();
        let client = Client { calls: sender, script: Arc::new(Mutex::new(script.into())), hangs };
        let node = TestNode::with(config).await;
        let set = HookSet { targets, client: Arc::new(client) };
        Self { hooks: Hooks::new(node.node.clone(), Some(set)), node, calls }
    }

    async fn new(script: Vec<Does>) -> Self {
        Self::with(Span::secs(3_600), None, script).await
    }

    /// Ends an action.
    async fn end(&self) -> String {
        let action = self.node.resolved(json!({}), &[]).await;
        assert_eq!(self.node.store.action_complete(vec![action.no]).await.unwrap(), [action.no]);
        action.id.to_string()
    }

    async fn run(&mut self) {
        assert_eq!(self.hooks.run_once().await.unwrap(), Pace::Wait);
    }

    /// Rounds until nothing is in flight.
    async fn settle(&mut self) {
        self.run().await;
        while !self.hooks.is_idle() {
            self.hooks.in_flight().await;
            self.run().await;
        }
    }

    async fn view(&self, name: &str) -> HookView {
        let views = self.node.store.hook_list().await.unwrap();
        views.into_iter().find(|view| view.name == name).expect("it is listed")
    }

    fn metric(&self, line: &str) -> bool {
        self.node.node.metrics.text(&[], 0, true).expect("text").lines().any(|found| found == line)
    }
}

#[actix_rt::test]
async fn the_end_of_an_action_is_told_to_the_hooks_that_listen() {
    let mut fixture = Fixture::new(vec![]).await;
    let id = fixture.end().await;
    fixture.settle().await;
    let (one, two) = (next(&mut fixture.calls).await, next(&mut fixture.calls).await);
    assert_eq!([one.0.as_str(), two.0.as_str()], ["a", "b"]);
    assert_eq!(one.2["type"], "action.ended");
    assert_eq!(one.2["data"]["id"], id.as_str());
    assert_eq!(one.2["data"]["status"], "completed");
    assert_eq!(one.2["data"]["created_by"], "server");
    fixture.settle().await;
    assert!(fixture.calls.try_recv().is_err(), "once each");
    assert_eq!(fixture.view("a").await.pending, 0);
    assert!(fixture.metric("odoshi_hooks_delivered_total{hook=\"a\"} 1"));
    assert!(fixture.metric("odoshi_hooks_pending{hook=\"c\"} 0"));
}

#[actix_rt::test]
async fn a_failed_attempt_is_made_again_later_under_the_same_id() {
    let mut fixture = Fixture::new(vec![Does::Fails("no\nroom"), Does::Panics]).await;
    fixture.end().await;
    fixture.settle().await;
    let (one, two) = (next(&mut fixture.calls).await, next(&mut fixture.calls).await);
    let (a, b) = (fixture.view("a").await, fixture.view("b").await);
    assert_eq!((a.pending, a.last_error.as_deref()), (1, Some("no\\nroom")));
    assert_eq!((b.pending, b.last_error.as_deref()), (1, Some("sending it crashed")));
    fixture.settle().await;
    assert!(fixture.calls.try_recv().is_err(), "it is not time yet");
    fixture.node.pass(Duration::from_secs(60));
    fixture.settle().await;
    let mut again = vec![next(&mut fixture.calls).await, next(&mut fixture.calls).await];
    again.sort_by_key(|call| call.0.clone());
    assert_eq!(again, [one, two]);
    assert_eq!((fixture.view("a").await.pending, fixture.view("b").await.pending), (0, 0));
    assert!(fixture.metric("odoshi_hooks_failed_total{hook=\"b\"} 1"));
}

#[actix_rt::test]
async fn a_permanent_failure_is_given_up_at_once() {
    let mut fixture = Fixture::new(vec![Does::Refuses]).await;
    fixture.end().await;
    fixture.settle().await;
    let view = fixture.view("a").await;
    assert_eq!((view.pending, view.given_up, view.last_error.as_deref()), (0, 1, Some("gone")));
    assert!(fixture.metric("odoshi_hooks_given_up_total{hook=\"a\"} 1"));
}

#[actix_rt::test]
async fn an_event_is_given_up_after_the_last_attempt() {
    let failures = (0..100).map(|_| Does::Fails("away")).collect();
    let mut fixture = Fixture::new(failures).await;
    fixture.end().await;
    let mut rounds = 0;
    while fixture.view("a").await.pending + fixture.view("b").await.pending > 0 {
        fixture.settle().await;
        fixture.node.pass(Duration::from_secs(4 * 3_600));
        rounds += 1;
    }
    assert!((15..=31).contains(&rounds), "{rounds}");
    assert_eq!(fixture.view("a").await.given_up, 1);
}

#[actix_rt::test]
async fn a_hook_that_hangs_holds_up_only_its_own_events() {
    let mut fixture = Fixture::with(Span::secs(3_600), Some("a"), vec![]).await;
    for _ in 0..3 * SLOTS {
        fixture.end().await;
    }
    let mut calls = Vec::new();
    while calls.iter().filter(|name| *name == "b").count() < 3 * SLOTS {
        fixture.run().await;
        fixture.hooks.in_flight().await;
        while let Ok(call) = fixture.calls.try_recv() {
            calls.push(call.0);
        }
    }
    fixture.run().await;
    assert_eq!(calls.iter().filter(|name| *name == "a").count(), SLOTS, "no more at a time");
    assert_eq!((fixture.view("a").await.pending, fixture.view("b").await.pending), (3 * SLOTS as i64, 0));
}

#[actix_rt::test]
async fn a_request_that_takes_too_long_is_a_failed_attempt() {
    let mut fixture = Fixture::with(Span::millis(20), None, vec![Does::Hangs]).await;
    fixture.end().await;
    fixture.settle().await;
    assert_eq!(fixture.view("a").await.last_error.as_deref(), Some("no answer within 20 ms"));
}

#[actix_rt::test]
async fn a_stop_gives_back_what_has_no_answer() {
    let mut fixture = Fixture::new(vec![Does::Hangs]).await;
    fixture.end().await;
    fixture.run().await;
    fixture.hooks.stop();
    while !fixture.hooks.is_idle() {
        fixture.hooks.in_flight().await;
    }
    let view = fixture.view("a").await;
    assert_eq!((view.pending, view.last_error), (1, None));
    assert_eq!(fixture.view("b").await.pending, 0, "what was answered is recorded");
    let wanted = HookWanted { hook: "a".into(), limit: 9, lease: Duration::ZERO };
    let claims = fixture.node.store.hook_event_claim(vec![wanted]).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.attempts).collect::<Vec<_>>(), [1], "due at once, and not counted");
}

#[actix_rt::test]
async fn what_can_not_be_recorded_is_recorded_later_and_not_sent_again() {
    let mut fixture = Fixture::new(vec![]).await;
    fixture.end().await;
    fixture.run().await;
    fixture.node.sql(
        "CREATE TRIGGER broken BEFORE UPDATE OF ended_at ON hook_events BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END",
    );
    while !fixture.hooks.sending.is_empty() {
        fixture.hooks.in_flight().await;
    }
    assert!(fixture.hooks.run_once().await.is_err());
    assert!(!fixture.hooks.is_idle());
    fixture.node.sql("DROP TRIGGER broken");
    fixture.settle().await;
    assert_eq!(fixture.view("a").await.pending, 0);
    assert_eq!((next(&mut fixture.calls).await.0, next(&mut fixture.calls).await.0), ("a".into(), "b".into()));
    assert!(fixture.calls.try_recv().is_err());
}

#[actix_rt::test]
async fn without_hooks_nothing_is_asked_of_the_store() {
    let node = TestNode::new().await;
    let mut hooks = Hooks::new(node.node.clone(), None);
    node.sql("DROP TABLE hook_events");
    assert_eq!(hooks.run_once().await.unwrap(), Pace::Wait);
    assert!(hooks.is_idle());
}
