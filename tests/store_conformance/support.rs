//! What the cases are made of: agents, actions, reports.

use odoshi::domain::action::{NewAction, Policy};
use odoshi::domain::agent::{Enrollment, Token};
use odoshi::domain::audit::Author;
use odoshi::domain::command::{Answer, CommandState, Event, RunEnd};
use odoshi::domain::target::Target;
use odoshi::domain::time::Timestamp;
use odoshi::store::{
    Accepted, AgentNames, CommandPage, CommandView, Inserted, NewAgent, Opened, Report, SessionOpening, Store,
};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

/// An agent with this name and transport, and nothing else.
pub fn named(name: &str, transport: &str) -> NewAgent {
    NewAgent {
        enrollment: Enrollment {
            name: name.into(),
            labels: Default::default(),
            facts: Default::default(),
            version: String::new(),
        },
        transport: transport.into(),
        address: None,
        secret: None,
    }
}

/// Who does what the cases do.
pub fn me() -> Author {
    Author { token: Some(Uuid::from_u128(7)), name: "tester".into(), role: "admin", address: Some("192.0.2.7".into()) }
}

/// All agents that match, in key order.
pub async fn matching(store: &dyn Store, target: &Target) -> Vec<i64> {
    store.agent_match(target, 0, usize::MAX).await.unwrap().into_iter().map(|(no, _)| no).collect()
}

/// The valid token with this hash.
pub async fn found(store: &dyn Store, hash: &[u8]) -> Option<Token> {
    store.token_find(hash).await.unwrap().map(|holder| holder.token)
}

/// Before the first unresolved action.
pub const BEGIN: (Timestamp, i64) = (Timestamp(i64::MIN), 0);

/// The first unresolved actions.
pub async fn unresolved(store: &dyn Store, horizon: Timestamp, limit: usize) -> Vec<i64> {
    let list = store.action_list_unresolved(horizon, BEGIN, limit).await.unwrap();
    list.into_iter().map(|action| action.no).collect()
}

/// Puts so many stream agents in, `agent-000` and on, and answers their keys.
pub async fn agents(store: &dyn Store, number: usize) -> Vec<i64> {
    let agents = (0..number).map(|n| named(&format!("agent-{n:03}"), "stream")).collect();
    store.agent_insert(agents).await.unwrap();
    let keys = matching(store, &Target::All).await;
    assert_eq!(keys.len(), number);
    keys
}

/// Opens a connection for each of these agents at this node; answers their epochs.
pub async fn connect(store: &dyn Store, agents: &[i64]) -> Vec<i64> {
    let opening = |agent: &i64| SessionOpening { agent_no: *agent, token: None, after: None, instance: None };
    let opened = store.session_open(&agents.iter().map(opening).collect::<Vec<_>>()).await.unwrap();
    let epoch = |opened: Opened| match opened {
        Opened::As(epoch) => epoch,
        refused => panic!("{refused:?}"),
    };
    opened.into_iter().map(epoch).collect()
}

/// A valid action, with these keys of its document changed.
pub fn action(store: &dyn Store, changes: Value) -> NewAction {
    let mut document = json!({"name": "test", "target": "TRUE", "operations": [{"module": "ping"}]});
    for (key, value) in changes.as_object().unwrap() {
        document[key] = value.clone();
    }
    NewAction::from_json(document.to_string().as_bytes(), Uuid::now_v7(), store.now()).unwrap()
}

/// An accepted action.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub id: Uuid,
    pub no: i64,
    pub policy: Policy,
}

/// Has an action accepted.
pub async fn accept(store: &dyn Store, changes: Value) -> Taken {
    let new = action(store, changes);
    let accepted = store.action_insert(vec![new]).await.unwrap();
    let [Accepted::Stored { id, no, is_new: true }] = accepted[..] else { panic!("{accepted:?}") };
    let policy = store.action_get(no).await.unwrap().unwrap().policy;
    Taken { id, no, policy }
}

/// Has an action accepted and its commands for these agents written, all of them.
pub async fn resolved(store: &dyn Store, changes: Value, agents: &[i64]) -> Taken {
    let taken = accept(store, changes).await;
    let page = page(taken.no, 0, agents, true);
    assert_eq!(store.command_insert(vec![page]).await.unwrap(), [Inserted::Written]);
    taken
}

/// A page of commands that are due when the action is.
pub fn page(action_no: i64, after: i64, agents: &[i64], last: bool) -> CommandPage {
    CommandPage {
        action_no,
        after,
        through: agents.last().copied().unwrap_or(after),
        commands: agents.iter().map(|agent| (*agent, None)).collect(),
        last,
    }
}

/// How a run ended, as its agent says.
pub fn end(run: i32, status: CommandState, now: Timestamp) -> RunEnd {
    let failed = status != CommandState::Succeeded;
    RunEnd {
        run,
        status,
        attempts: 0,
        sent_at: Some(now),
        started_at: Some(now),
        finished_at: now,
        results: Some(json!([{"module": "ping", "ok": !failed, "output": run}]).to_string()),
        error: failed.then(|| format!("run {run} went wrong")),
    }
}

impl Taken {
    /// Something happened to the command of this agent.
    pub fn report(&self, agent_no: i64, event: Event) -> Report {
        Report { action_no: self.no, agent_no, policy: self.policy, event, skip_lookup: false }
    }

    /// Tells the store one thing.
    pub async fn tell(&self, store: &dyn Store, agent_no: i64, event: Event) -> Answer {
        store.outcome_record(&[self.report(agent_no, event)]).await.unwrap().pop().unwrap()
    }

    /// Its agent says how a run ended.
    pub async fn ends(&self, store: &dyn Store, agent_no: i64, run: i32, status: CommandState) -> Answer {
        let end = end(run, status, store.now());
        self.tell(store, agent_no, Event::Result(Box::new(end))).await
    }

    /// Its agent has it.
    pub async fn sent(&self, store: &dyn Store, agent_no: i64, run: i32, attempts: i32) -> Answer {
        self.tell(store, agent_no, Event::Sent { run, attempts, at: store.now() }).await
    }

    /// It is sent again when it is this time.
    pub async fn postponed(&self, store: &dyn Store, agent_no: i64, until: Timestamp) -> Answer {
        self.tell(store, agent_no, Event::Postponed { run: 1, until }).await
    }

    /// Its agent isn't connected, and it is due now.
    pub async fn hold(&self, store: &dyn Store, agent_no: i64) -> Answer {
        self.tell(store, agent_no, Event::Hold { due_at: store.now() }).await
    }

    /// A delivery attempt failed.
    pub async fn fails(&self, store: &dyn Store, agent_no: i64, run: i32, attempts: i32) -> Answer {
        let error = "nobody there".to_owned();
        self.tell(store, agent_no, Event::AttemptFailed { run, attempts, error, retry_after: None }).await
    }

    /// All its commands as users see them.
    pub async fn list(&self, store: &dyn Store) -> Vec<CommandView> {
        store.command_list(self.id, None, AgentNames::ALL, usize::MAX).await.unwrap()
    }
}

/// The first number, or the second with `scripts/test --long`.
pub fn by_length<T>(default: T, long: T) -> T {
    if std::env::var_os("ODOSHI_TEST_LONG").is_some() { long } else { default }
}

/// Runs a property test inside of an async case, four times as many cases with `scripts/test --long`; what fails is made
/// smaller.
pub fn property<S: Strategy>(cases: u32, inputs: S, check: impl AsyncFn(S::Value) -> TestCaseResult) {
    let cases = if std::env::var_os("ODOSHI_TEST_LONG").is_some() { 4 * cases } else { cases };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let here = tokio::runtime::Handle::current();
    let found =
        tokio::task::block_in_place(|| TestRunner::new(config).run(&inputs, |input| here.block_on(check(input))));
    if let Err(error) = found {
        panic!("{error}");
    }
}

/// Later by so many seconds.
pub fn in_secs(store: &dyn Store, secs: i64) -> Timestamp {
    match u64::try_from(secs) {
        Ok(secs) => store.now().plus(Duration::from_secs(secs)),
        Err(_) => store.now().minus(Duration::from_secs(secs.unsigned_abs())),
    }
}
