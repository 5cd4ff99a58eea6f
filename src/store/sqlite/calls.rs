//! The calls of the store, each handed to the file of its topic.

use super::{SqliteStore, actions, agents, audit, commands, json, live, outcomes, sessions, tokens};
use crate::domain::action::{Action, ActionState, NewAction};
use crate::domain::agent::{AgentRef, Token};
use crate::domain::audit::{AuditEntry, Author};
use crate::domain::command::{Answer, CommandState};
use crate::domain::hint::Hint;
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use crate::store::CHECK_IN_WRITTEN;
use crate::store::rows::{NODES, NodeRow};
use crate::store::{
    Accepted, ActionView, AgentPatch, AgentView, CommandPage, CommandView, Due, DueCursor, Enrolled, Inserted,
    NewAgent, NodeView, OpenAction, Opened, Report, Resolution, Revoked, SessionHeld, SessionOpening, SessionState,
    Store, StoreError, StoreResult, UndispatchedPage, Unfinished,
};
use async_trait::async_trait;
use diesel::RunQueryDsl;
use diesel::connection::SimpleConnection;
use diesel::sqlite::SqliteConnection;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

#[async_trait]
impl Store for SqliteStore {
    fn now(&self) -> Timestamp {
        Timestamp(Timestamp::of_this_machine().0 + self.offset.load(Ordering::Relaxed))
    }

    async fn prepare(&self) -> StoreResult<()> {
        Ok(())
    }

    async fn ping(&self) -> StoreResult<()> {
        self.read("ping", |conn| conn.batch_execute("SELECT 1")).await
    }

    async fn node_start(&self, name: &str, transports: &[String]) -> StoreResult<()> {
        let (name, incarnation, now) = (name.to_owned(), self.incarnation.clone(), self.now());
        let transports = transports.to_vec();
        self.write("node_start", move |conn| agents::node_start(conn, &name, &incarnation, &transports, now)).await
    }

    async fn node_stop(&self) -> StoreResult<()> {
        self.write("node_stop", agents::node_stop).await
    }

    async fn node_lost(&self) {
        std::future::pending().await
    }

    async fn node_list(&self) -> StoreResult<Vec<NodeView>> {
        // It lives as long as it answers.
        let now = self.now();
        let nodes = move |conn: &mut SqliteConnection| diesel::sql_query(NODES).load::<NodeRow>(conn);
        let nodes = self.read("node_list", nodes).await?.into_iter();
        Ok(nodes.map(|row| NodeView { heartbeat: now, ..row.view(true) }).collect())
    }

    async fn hint_send(&self, _: &[Hint]) -> StoreResult<bool> {
        Ok(false)
    }

    async fn hint_next(&self) -> Vec<Hint> {
        std::future::pending().await
    }

    async fn session_elsewhere(&self, _: &[i64]) -> StoreResult<Vec<i64>> {
        Ok(Vec::new())
    }

    async fn action_insert(&self, actions: Vec<NewAction>) -> StoreResult<Vec<Accepted>> {
        let (owner, now) = (self.incarnation.clone(), self.now());
        self.write("action_insert", move |conn| actions::insert(conn, &actions, &owner, now)).await
    }

    async fn action_view(&self, id: Uuid) -> StoreResult<Option<ActionView>> {
        self.read("action_view", move |conn| actions::view(conn, id)).await
    }

    async fn action_list(
        &self,
        state: Option<ActionState>,
        before: Option<i64>,
        limit: usize,
    ) -> StoreResult<Vec<ActionView>> {
        self.read("action_list", move |conn| actions::list(conn, state, before, limit)).await
    }

    async fn action_get(&self, no: i64) -> StoreResult<Option<Action>> {
        self.read("action_get", move |conn| actions::get(conn, no)).await
    }

    async fn action_no(&self, id: Uuid) -> StoreResult<Option<i64>> {
        self.read("action_no", move |conn| actions::no(conn, id)).await
    }

    async fn action_list_open(&self, after: i64, limit: usize) -> StoreResult<Vec<OpenAction>> {
        self.read("action_list_open", move |conn| actions::list_open(conn, after, limit)).await
    }

    async fn action_list_unresolved(&self, horizon: Timestamp, limit: usize) -> StoreResult<Vec<i64>> {
        self.read("action_list_unresolved", move |conn| actions::list_unresolved(conn, horizon, limit)).await
    }

    async fn action_resolution(&self, actions: Vec<(i64, Target)>) -> StoreResult<Vec<Resolution>> {
        let (owner, now) = (self.incarnation.clone(), self.now());
        self.write("action_resolution", move |conn| {
            actions.iter().map(|(no, target)| actions::resolution(conn, *no, target, &owner, now)).collect()
        })
        .await
    }

    async fn action_cancel(&self, id: Uuid, by: &Author) -> StoreResult<Option<ActionView>> {
        let (by, now) = (by.clone(), self.now());
        self.write("action_cancel", move |conn| actions::cancel(conn, id, &by, now)).await
    }

    async fn action_pause(&self, id: Uuid, paused: bool, by: &Author) -> StoreResult<Option<ActionView>> {
        let (by, now) = (by.clone(), self.now());
        self.write("action_pause", move |conn| actions::pause(conn, id, paused, &by, now)).await
    }

    async fn action_expire(&self, no: i64) -> StoreResult<bool> {
        self.write("action_expire", move |conn| actions::expire(conn, no)).await
    }

    async fn action_advance(&self, nos: Vec<i64>, limit: usize) -> StoreResult<Vec<i64>> {
        // The one writer isn't kept waiting for the looking.
        let read = nos.clone();
        let found: Vec<(i64, Option<i64>)> = self
            .read("action_advance", move |conn| read.iter().map(|no| actions::advanced(conn, *no, limit)).collect())
            .await?;
        let moved: Vec<(i64, i64)> =
            nos.iter().zip(&found).filter_map(|(no, (_, next))| Some((*no, (*next)?))).collect();
        if !moved.is_empty() {
            self.write("action_advance", move |conn| {
                moved.iter().try_for_each(|(no, through)| actions::advance(conn, *no, *through))
            })
            .await?;
        }
        Ok(found.into_iter().map(|(through, next)| next.unwrap_or(through)).collect())
    }

    async fn action_complete(&self, nos: Vec<i64>) -> StoreResult<Vec<i64>> {
        let now = self.now();
        self.write("action_complete", move |conn| actions::complete(conn, &nos, now)).await
    }

    async fn action_purge(&self, ended_before: Timestamp, limit: usize) -> StoreResult<Option<usize>> {
        self.write("action_purge", move |conn| actions::purge(conn, ended_before, limit)).await
    }

    async fn action_sweep(&self, after: i64, limit: usize) -> StoreResult<Option<i64>> {
        self.write("action_sweep", move |conn| actions::sweep(conn, after, limit)).await
    }

    async fn command_insert(&self, pages: Vec<CommandPage>) -> StoreResult<Vec<Inserted>> {
        let lane = self.incarnation.clone();
        self.write("command_insert", move |conn| commands::insert(conn, &pages, &lane)).await
    }

    async fn command_undispatched(&self, action_no: i64, after: i64, limit: usize) -> StoreResult<UndispatchedPage> {
        self.read("command_undispatched", move |conn| commands::undispatched(conn, action_no, after, limit)).await
    }

    async fn command_backlog(&self, agent_no: i64, horizon: Timestamp, limit: usize) -> StoreResult<Vec<Due>> {
        let now = self.now();
        self.read("command_backlog", move |conn| commands::backlog(conn, agent_no, horizon, now, limit)).await
    }

    async fn command_due(
        &self,
        after: DueCursor,
        horizon: Timestamp,
        limit: usize,
    ) -> StoreResult<Vec<(Due, Arc<str>)>> {
        let here = self.incarnation.clone();
        self.read("command_due", move |conn| commands::due(conn, after, horizon, &here, limit)).await
    }

    async fn agent_with_due(&self, agent_nos: &[i64]) -> StoreResult<Vec<i64>> {
        let (agent_nos, now) = (agent_nos.to_vec(), self.now());
        self.read("agent_with_due", move |conn| commands::with_due(conn, &agent_nos, now)).await
    }

    async fn command_unserved(&self, limit: usize) -> StoreResult<Vec<(String, i64)>> {
        let now = self.now();
        self.read("command_unserved", move |conn| commands::unserved(conn, now, limit)).await
    }

    async fn command_overdue(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<(i64, i64)>> {
        self.read("command_overdue", move |conn| commands::overdue(conn, now, limit)).await
    }

    async fn command_unfinished(
        &self,
        action_no: i64,
        which: Unfinished,
        after: i64,
        limit: usize,
    ) -> StoreResult<Vec<i64>> {
        self.read("command_unfinished", move |conn| commands::unfinished(conn, action_no, which, after, limit)).await
    }

    async fn command_list(
        &self,
        action: Uuid,
        state: Option<CommandState>,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<CommandView>> {
        let after = after.map(str::to_owned);
        self.read("command_list", move |conn| commands::list(conn, action, state, after.as_deref(), limit)).await
    }

    async fn outcome_record(&self, reports: &[Report]) -> StoreResult<Vec<Answer>> {
        let (reports, lane, now) = (reports.to_vec(), self.incarnation.clone(), self.now());
        self.write("outcome_record", move |conn| outcomes::record(conn, &reports, &lane, now)).await
    }

    async fn agent_enroll_once(
        &self,
        agent: &NewAgent,
        token: Vec<u8>,
        nonce: Option<Vec<u8>>,
        by: &Author,
    ) -> StoreResult<Enrolled> {
        let (agent, by, now) = (agent.clone(), by.clone(), self.now());
        self.write("agent_enroll", move |conn| agents::enroll(conn, &agent, token, nonce, &by, now)).await
    }

    async fn agent_refresh(
        &self,
        agent_no: i64,
        labels: Option<&std::collections::BTreeMap<String, String>>,
        facts: &serde_json::Map<String, serde_json::Value>,
        version: &str,
    ) -> StoreResult<bool> {
        let write = "agent_refresh";
        let labels = labels.map(json).transpose().map_err(|error| StoreError::from_sqlite(write, error))?;
        let facts = json(facts).map_err(|error| StoreError::from_sqlite(write, error))?;
        let (version, now) = (version.to_owned(), self.now());
        // After a restart every agent says what it said before: that is no reason to write.
        let said = (labels.clone(), facts.clone(), version.clone());
        let same = self
            .read(write, move |conn| agents::says_the_same(conn, agent_no, said.0.as_deref(), &said.1, &said.2))
            .await?;
        if same {
            return Ok(false);
        }
        self.write(write, move |conn| agents::refresh(conn, agent_no, labels, facts, version, now)).await?;
        Ok(true)
    }

    async fn agent_insert(&self, agents: Vec<NewAgent>) -> StoreResult<()> {
        let now = self.now();
        self.write("agent_insert", move |conn| agents::insert(conn, &agents, now)).await
    }

    async fn agent_get(&self, agent_no: i64) -> StoreResult<Option<AgentRef>> {
        self.read("agent_get", move |conn| agents::get_many(conn, &[agent_no])).await.map(|mut agents| agents.pop())
    }

    async fn agent_check_in(&self, agent_no: i64) -> StoreResult<()> {
        let (now, write) = (self.now(), "agent_check_in");
        let before = now.minus(CHECK_IN_WRITTEN);
        if self.read(write, move |conn| agents::checked_in_after(conn, agent_no, before)).await? {
            return Ok(());
        }
        self.write(write, move |conn| agents::check_in(conn, agent_no, now)).await
    }

    async fn agent_get_many(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentRef>> {
        let agent_nos = agent_nos.to_vec();
        self.read("agent_get_many", move |conn| agents::get_many(conn, &agent_nos)).await
    }

    async fn agent_match(&self, target: &Target, after: i64, limit: usize) -> StoreResult<Vec<(i64, Arc<str>)>> {
        let (target, now) = (target.clone(), self.now());
        self.read("agent_match", move |conn| agents::matching(conn, &target, now, after, limit)).await
    }

    async fn agent_count(&self, target: &Target) -> StoreResult<i64> {
        let (target, now) = (target.clone(), self.now());
        self.read("agent_count", move |conn| agents::count(conn, &target, now)).await
    }

    async fn agent_list(
        &self,
        target: Option<&Target>,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<AgentView>> {
        let (target, after, now) = (target.cloned(), after.unwrap_or_default().to_owned(), self.now());
        self.read("agent_list", move |conn| agents::list(conn, target.as_ref(), &after, now, limit)).await
    }

    async fn agent_view(&self, name: &str) -> StoreResult<Option<AgentView>> {
        let (name, now) = (name.to_owned(), self.now());
        self.read("agent_view", move |conn| agents::view(conn, &name, now)).await
    }

    async fn agent_update(&self, name: &str, patch: &AgentPatch, by: &Author) -> StoreResult<Option<(i64, AgentView)>> {
        let (name, patch, by, now) = (name.to_owned(), patch.clone(), by.clone(), self.now());
        self.write("agent_update", move |conn| agents::update(conn, &name, &patch, &by, now)).await
    }

    async fn agent_remove(&self, name: &str, by: &Author) -> StoreResult<Option<i64>> {
        let (name, by, now) = (name.to_owned(), by.clone(), self.now());
        self.write("agent_remove", move |conn| agents::remove(conn, &name, &by, now)).await
    }

    async fn agent_list_leaving(&self, limit: usize) -> StoreResult<Vec<i64>> {
        self.read("agent_list_leaving", move |conn| agents::list_leaving(conn, limit)).await
    }

    async fn agent_left(&self, agent_no: i64, before: Timestamp) -> StoreResult<()> {
        self.write("agent_left", move |conn| agents::left(conn, agent_no, before)).await
    }

    async fn command_unfinished_of(&self, agent_no: i64, limit: usize) -> StoreResult<Vec<i64>> {
        self.read("command_unfinished_of", move |conn| commands::unfinished_of(conn, agent_no, limit)).await
    }

    async fn session_open(&self, sessions: &[SessionOpening]) -> StoreResult<Vec<Opened>> {
        let (openings, here, now) = (sessions.to_vec(), self.incarnation.clone(), self.now());
        self.write("session_open", move |conn| sessions::open(conn, &openings, &here, now)).await
    }

    async fn session_check(&self, held: &[SessionHeld]) -> StoreResult<Vec<SessionState>> {
        let (held, here, now) = (held.to_vec(), self.incarnation.clone(), self.now());
        self.write("session_check", move |conn| sessions::check(conn, &held, &here, now)).await
    }

    async fn session_close(&self, sessions: &[(i64, i64)]) -> StoreResult<()> {
        let (closed, here, now) = (sessions.to_vec(), self.incarnation.clone(), self.now());
        self.write("session_close", move |conn| sessions::close(conn, &closed, &here, now)).await
    }

    async fn token_insert(&self, token: &Token, hash: Vec<u8>, by: &Author) -> StoreResult<()> {
        let (token, by) = (token.clone(), by.clone());
        self.write("token_insert", move |conn| tokens::insert(conn, &token, hash, &by)).await
    }

    async fn token_find(&self, hash: &[u8]) -> StoreResult<Option<Token>> {
        let (hash, now) = (hash.to_vec(), self.now());
        self.read("token_find", move |conn| tokens::find(conn, &hash, now)).await
    }

    async fn token_use(&self, id: Uuid) -> StoreResult<bool> {
        self.write("token_use", move |conn| tokens::make_used(conn, id)).await
    }

    async fn token_list(&self, after: Option<Uuid>, limit: usize) -> StoreResult<Vec<Token>> {
        self.read("token_list", move |conn| tokens::list(conn, after, limit)).await
    }

    async fn token_revoke(&self, id: Uuid, by: &Author) -> StoreResult<Revoked> {
        let (by, now) = (by.clone(), self.now());
        self.write("token_revoke", move |conn| tokens::revoke(conn, id, &by, now)).await
    }

    async fn token_any_admin(&self) -> StoreResult<bool> {
        self.read("token_any_admin", tokens::any_admin).await
    }

    async fn audit_list(&self, before: Option<i64>, limit: usize) -> StoreResult<Vec<AuditEntry>> {
        self.read("audit_list", move |conn| audit::list(conn, before, limit)).await
    }

    async fn audit_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize> {
        self.write("audit_purge", move |conn| audit::purge(conn, before, limit)).await
    }

    async fn action_list_live(&self) -> StoreResult<Vec<i64>> {
        let now = self.now();
        self.read("action_list_live", move |conn| live::list(conn, now)).await
    }

    async fn agent_match_joining(
        &self,
        action_no: i64,
        target: &Target,
        among: Option<&[i64]>,
        after: i64,
        limit: usize,
    ) -> StoreResult<Vec<(i64, Arc<str>)>> {
        let (target, among, now) = (target.clone(), among.map(<[i64]>::to_vec), self.now());
        self.read("agent_match_joining", move |conn| {
            live::matching(conn, action_no, &target, among.as_deref(), now, after, limit)
        })
        .await
    }

    async fn command_insert_joining(&self, action_no: i64, agents: &[i64]) -> StoreResult<Vec<Due>> {
        let (agents, lane, now) = (agents.to_vec(), self.incarnation.clone(), self.now());
        self.write("command_insert_joining", move |conn| live::insert(conn, action_no, &agents, &lane, now)).await
    }
}
