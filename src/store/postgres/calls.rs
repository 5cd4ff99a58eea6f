//! The calls of the store, each handed to the file of its topic.

use super::commands::Duplicates;
use super::sql::sql;
use super::{MIGRATION_TIMEOUT, PING_TIMEOUT, PostgresStore, State};
use super::{
    actions, agents, audit, check_encoding, commands, elders, error, hints, live, migrate, node, not_connected,
    outcomes, sessions, tokens, transaction,
};
use crate::domain::action::{Action, ActionState, NewAction};
use crate::domain::agent::{AgentRef, Token};
use crate::domain::audit::{AuditEntry, Author};
use crate::domain::command::{Answer, CommandState};
use crate::domain::hint::Hint;
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use crate::store::CHECK_IN_WRITTEN;
use crate::store::rows::{NODES, NodeRow};
use crate::store::sessions::checked;
use crate::store::{
    Accepted, ActionView, AgentPatch, AgentView, CommandPage, CommandView, Due, DueCursor, Enrolled, Inserted,
    NewAgent, NodeView, OpenAction, Opened, Report, Resolution, Revoked, SessionHeld, SessionOpening, SessionState,
    Store, StoreError, StoreResult, UndispatchedPage, Unfinished,
};
use async_trait::async_trait;
use diesel::result::{DatabaseErrorKind, Error};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use std::sync::Arc;
use std::time::Instant;
use uuid::Uuid;

/// Whether a write was refused since something is there already.
fn is_duplicate(error: &StoreError) -> bool {
    let unique = DatabaseErrorKind::UniqueViolation;
    matches!(error, StoreError::Refused { source: Error::DatabaseError(kind, _), .. } if *kind == unique)
}

/// What a call does, which may be done several times: what it needs is cloned for each.
macro_rules! body {
    ([$($needed:ident),*] $conn:ident => $work:expr) => {{
        $(let $needed = $needed.clone();)*
        transaction::body(move |$conn| {
            $(let $needed = $needed.clone();)*
            Box::pin(async move { $work.await })
        })
    }};
}

#[async_trait]
impl Store for PostgresStore {
    fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    async fn prepare(&self) -> StoreResult<()> {
        let _one_at_a_time = self.preparing.lock().await;
        if *self.inner.state.borrow() != State::Unprepared {
            return Ok(());
        }
        let warn_transaction = self.warn_transaction;
        let (inner, heartbeat, dead_after) = (self.inner.clone(), self.heartbeat, self.dead_after);
        let conn = {
            let inner = inner.clone();
            self.run(async move {
                let mut conn = inner.connector.connect().await.map_err(not_connected)?;
                check_encoding(&mut conn).await?;
                Ok(conn)
            })
            .await?
        };
        match self.run(migrate(conn)).await {
            Err(error) if self.failing_since.get_or_init(Instant::now).elapsed() < MIGRATION_TIMEOUT => {
                return Err(StoreError::Unavailable(error.to_string()));
            }
            migrated => migrated?,
        }
        self.run(async move {
            let mut own = node::OwnConnection::open(&inner).await.map_err(not_connected)?;
            let asked = Instant::now();
            let time = node::register(own.conn(), &inner.incarnation).await;
            let time = time.map_err(|error| error::sort("prepare", error, own.code()))?;
            inner.clock.observe(time, asked, Instant::now());
            inner.set_state(State::Ready);
            tokio::spawn(elders::watch(Arc::downgrade(&inner), warn_transaction));
            if inner.notify {
                tokio::spawn(hints::listen(Arc::downgrade(&inner)));
            }
            tokio::spawn(node::heartbeats(Arc::downgrade(&inner), own, heartbeat, dead_after));
            Ok(())
        })
        .await
    }

    async fn ping(&self) -> StoreResult<()> {
        let answer = self.read("ping", body!([] conn => conn.batch_execute("SELECT 1")));
        match tokio::time::timeout(PING_TIMEOUT, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Unavailable(format!("ping: no answer within {} s", PING_TIMEOUT.as_secs()))),
        }
    }

    async fn node_start(&self, name: &str, transports: &[String]) -> StoreResult<()> {
        let (name, incarnation, heartbeat) = (name.to_owned(), self.inner.incarnation.clone(), self.heartbeat);
        let transports = Arc::new(transports.to_vec());
        let start = body!([name, incarnation, transports] conn => {
            node::start(conn, &incarnation, &name, &transports, heartbeat)
        });
        self.read("node_start", start).await?;
        // They learn that there is one more that they should tell.
        self.hint_send(&[Hint::Everything]).await.map(|_| ())
    }

    async fn node_stop(&self) -> StoreResult<()> {
        let inner = self.inner.clone();
        // From here on it is no surprise to a heartbeat that there is no such node.
        self.inner.set_state(State::Leaving);
        self.write("node_stop", body!([inner] conn => node::stop(conn, &inner))).await?;
        // What it owned is another's now, who should look.
        self.hint_send(&[Hint::Everything]).await.ok();
        self.inner.set_state(State::Gone);
        Ok(())
    }

    async fn node_lost(&self) {
        let mut state = self.inner.state.subscribe();
        // The sender is in `self`: this waits for as long as the store is there.
        state.wait_for(|state| *state == State::Fenced).await.ok();
    }

    async fn node_list(&self) -> StoreResult<Vec<NodeView>> {
        let nodes: Vec<NodeRow> = self.read("node_list", body!([] conn => sql(NODES).load(conn))).await?;
        let mut watch = self.inner.watch();
        watch.look(nodes.iter().map(NodeRow::beat), Instant::now());
        let is_alive = |row: &NodeRow| watch.silence(&row.beat().0) < self.dead_after;
        Ok(nodes.into_iter().map(|row| (is_alive(&row), row)).map(|(alive, row)| row.view(alive)).collect())
    }

    async fn hint_send(&self, hints: &[Hint]) -> StoreResult<bool> {
        if !self.inner.notify || !self.inner.has_others() {
            return Ok(false);
        }
        let (me, hints) = (self.inner.incarnation.clone(), Arc::new(hints.to_vec()));
        self.read("hint_send", body!([me, hints] conn => hints::send(conn, &me, &hints))).await?;
        Ok(true)
    }

    async fn hint_next(&self) -> Vec<Hint> {
        let mut heard = self.heard.lock().await;
        let mut hints = Vec::new();
        if heard.recv_many(&mut hints, hints::WAITING).await == 0 {
            // Nobody listens any more: the store is being closed.
            std::future::pending::<()>().await;
        }
        hints
    }

    async fn session_elsewhere(&self, agent_nos: &[i64]) -> StoreResult<Vec<i64>> {
        if !self.inner.has_others() {
            return Ok(Vec::new());
        }
        let (agent_nos, here) = (Arc::new(agent_nos.to_vec()), self.inner.incarnation.clone());
        let look = body!([agent_nos, here] conn => sessions::elsewhere(conn, &agent_nos, &here));
        self.read("session_elsewhere", look).await
    }

    async fn action_insert(&self, actions: Vec<NewAction>) -> StoreResult<Vec<Accepted>> {
        let (actions, owner, now) = (Arc::new(actions), self.inner.incarnation.clone(), self.now());
        let insert = body!([actions, owner] conn => actions::insert(conn, &actions, &owner, now));
        self.write("action_insert", insert).await
    }

    async fn action_view(&self, id: Uuid) -> StoreResult<Option<ActionView>> {
        self.read("action_view", body!([] conn => actions::view(conn, id))).await
    }

    async fn action_list(
        &self,
        state: Option<ActionState>,
        before: Option<i64>,
        limit: usize,
    ) -> StoreResult<Vec<ActionView>> {
        self.read("action_list", body!([] conn => actions::list(conn, state, before, limit))).await
    }

    async fn action_get(&self, no: i64) -> StoreResult<Option<Action>> {
        self.read("action_get", body!([] conn => actions::get(conn, no))).await
    }

    async fn action_no(&self, id: Uuid) -> StoreResult<Option<i64>> {
        self.read("action_no", body!([] conn => actions::no(conn, id))).await
    }

    async fn action_list_open(&self, after: i64, limit: usize) -> StoreResult<Vec<OpenAction>> {
        let here = self.inner.incarnation.clone();
        self.read("action_list_open", body!([here] conn => actions::list_open(conn, &here, after, limit))).await
    }

    async fn action_list_unresolved(&self, horizon: Timestamp, limit: usize) -> StoreResult<Vec<i64>> {
        let here = self.inner.incarnation.clone();
        let list = body!([here] conn => actions::list_unresolved(conn, &here, horizon, limit));
        self.read("action_list_unresolved", list).await
    }

    async fn action_resolution(&self, actions: Vec<(i64, Target)>) -> StoreResult<Vec<Resolution>> {
        let (actions, now) = (Arc::new(actions), self.now());
        // Counting a million agents takes a while: not in a transaction that writes.
        let look = body!([actions] conn => actions::resolutions(conn, &actions, now));
        let (resolutions, counted) = self.read("action_resolution", look).await?;
        if counted.is_empty() {
            return Ok(resolutions);
        }
        let counted = Arc::new(counted);
        self.write("action_resolution", body!([counted] conn => actions::expect(conn, &counted))).await?;
        // Another node may have counted too, and been faster.
        Ok(self.read("action_resolution", body!([actions] conn => actions::resolutions(conn, &actions, now))).await?.0)
    }

    async fn action_cancel(&self, id: Uuid, by: &Author) -> StoreResult<Option<ActionView>> {
        let (by, now) = (Arc::new(by.clone()), self.now());
        self.write("action_cancel", body!([by] conn => actions::cancel(conn, id, &by, now))).await
    }

    async fn action_pause(&self, id: Uuid, paused: bool, by: &Author) -> StoreResult<Option<ActionView>> {
        let (by, now) = (Arc::new(by.clone()), self.now());
        self.write("action_pause", body!([by] conn => actions::pause(conn, id, paused, &by, now))).await
    }

    async fn action_expire(&self, no: i64) -> StoreResult<bool> {
        self.write("action_expire", body!([] conn => actions::expire(conn, no))).await
    }

    async fn action_advance(&self, nos: Vec<i64>, limit: usize) -> StoreResult<Vec<i64>> {
        let nos = Arc::new(nos);
        let found = self.read("action_advance", body!([nos] conn => actions::advances(conn, &nos, limit))).await?;
        let moved: Vec<(i64, i64)> =
            nos.iter().zip(&found).filter_map(|(no, (_, next))| Some((*no, (*next)?))).collect();
        if !moved.is_empty() {
            let moved = Arc::new(moved);
            self.write("action_advance", body!([moved] conn => actions::advance(conn, &moved))).await?;
        }
        Ok(found.into_iter().map(|(through, next)| next.unwrap_or(through)).collect())
    }

    async fn action_complete(&self, nos: Vec<i64>) -> StoreResult<Vec<i64>> {
        let (nos, now) = (Arc::new(nos), self.now());
        self.write("action_complete", body!([nos] conn => actions::complete(conn, &nos, now))).await
    }

    async fn action_purge(&self, ended_before: Timestamp, limit: usize) -> StoreResult<Option<usize>> {
        self.write("action_purge", body!([] conn => actions::purge(conn, ended_before, limit))).await
    }

    async fn action_sweep(&self, after: i64, limit: usize) -> StoreResult<Option<i64>> {
        self.write("action_sweep", body!([] conn => actions::sweep(conn, after, limit))).await
    }

    async fn command_insert(&self, pages: Vec<CommandPage>) -> StoreResult<Vec<Inserted>> {
        let (pages, lane) = (Arc::new(pages), self.inner.lane("commands"));
        for duplicates in [Duplicates::Fail, Duplicates::PassOver] {
            let insert = body!([pages, lane] conn => commands::insert(conn, &pages, &lane, duplicates));
            match self.write("command_insert", insert).await {
                Err(error) if is_duplicate(&error) && duplicates == Duplicates::Fail => {}
                done => return done,
            }
        }
        Ok(Vec::new())
    }

    async fn command_undispatched(&self, action_no: i64, after: i64, limit: usize) -> StoreResult<UndispatchedPage> {
        self.read("command_undispatched", body!([] conn => commands::undispatched(conn, action_no, after, limit))).await
    }

    async fn command_backlog(&self, agent_no: i64, horizon: Timestamp, limit: usize) -> StoreResult<Vec<Due>> {
        let now = self.now();
        self.read("command_backlog", body!([] conn => commands::backlog(conn, agent_no, horizon, now, limit))).await
    }

    async fn command_due(
        &self,
        after: DueCursor,
        horizon: Timestamp,
        limit: usize,
    ) -> StoreResult<Vec<(Due, Arc<str>)>> {
        let here = self.inner.incarnation.clone();
        self.read("command_due", body!([here] conn => commands::due(conn, after, horizon, &here, limit))).await
    }

    async fn agent_with_due(&self, agent_nos: &[i64]) -> StoreResult<Vec<i64>> {
        let (agent_nos, now) = (Arc::new(agent_nos.to_vec()), self.now());
        self.read("agent_with_due", body!([agent_nos] conn => commands::with_due(conn, &agent_nos, now))).await
    }

    async fn command_unserved(&self, limit: usize) -> StoreResult<Vec<(String, i64)>> {
        let now = self.now();
        self.read("command_unserved", body!([] conn => commands::unserved(conn, now, limit))).await
    }

    async fn command_overdue(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<(i64, i64)>> {
        self.read("command_overdue", body!([] conn => commands::overdue(conn, now, limit))).await
    }

    async fn command_unfinished(
        &self,
        action_no: i64,
        which: Unfinished,
        after: i64,
        limit: usize,
    ) -> StoreResult<Vec<i64>> {
        let look = body!([] conn => commands::unfinished(conn, action_no, which, after, limit));
        self.read("command_unfinished", look).await
    }

    async fn command_list(
        &self,
        action: Uuid,
        state: Option<CommandState>,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<CommandView>> {
        let after = after.map(str::to_owned);
        let list = body!([after] conn => commands::list(conn, action, state, after.as_deref(), limit));
        self.read("command_list", list).await
    }

    async fn outcome_record(&self, reports: &[Report]) -> StoreResult<Vec<Answer>> {
        let (reports, lane, now) = (Arc::new(reports.to_vec()), self.inner.lane("outcomes"), self.now());
        let fresh = body!([reports, lane] conn => outcomes::record_fresh(conn, &reports, &lane, now));
        match self.write("outcome_record", fresh).await {
            Ok(Some(answers)) => return Ok(answers),
            Ok(None) => {}
            Err(error) if is_duplicate(&error) => {}
            Err(error) => return Err(error),
        }
        self.write("outcome_record", body!([reports, lane] conn => outcomes::record(conn, &reports, &lane, now))).await
    }

    async fn agent_enroll_once(
        &self,
        agent: &NewAgent,
        token: Vec<u8>,
        nonce: Option<Vec<u8>>,
        by: &Author,
    ) -> StoreResult<Enrolled> {
        let (agent, by, now) = (Arc::new(agent.clone()), Arc::new(by.clone()), self.now());
        let enroll = body!([agent, token, nonce, by] conn => agents::enroll(conn, &agent, token, nonce, &by, now));
        self.write("agent_enroll", enroll).await
    }

    async fn agent_refresh(
        &self,
        agent_no: i64,
        labels: Option<&std::collections::BTreeMap<String, String>>,
        facts: &serde_json::Map<String, serde_json::Value>,
        version: &str,
    ) -> StoreResult<bool> {
        let write = "agent_refresh";
        let said =
            agents::Said::new(agent_no, labels, facts, version).map_err(|error| error::sort(write, error, None))?;
        let (said, now) = (Arc::new(said), self.now());
        // After a restart every agent says what it said before: that is no reason to write.
        if self.read(write, body!([said] conn => agents::says_the_same(conn, &said))).await? {
            return Ok(false);
        }
        self.write(write, body!([said] conn => agents::refresh(conn, &said, now))).await.map(|()| true)
    }

    async fn agent_insert(&self, agents: Vec<NewAgent>) -> StoreResult<()> {
        let (agents, now) = (Arc::new(agents), self.now());
        self.write("agent_insert", body!([agents] conn => agents::insert(conn, &agents, now))).await
    }

    async fn agent_get(&self, agent_no: i64) -> StoreResult<Option<AgentRef>> {
        self.agent_get_many(&[agent_no]).await.map(|mut agents| agents.pop())
    }

    async fn agent_check_in(&self, agent_no: i64) -> StoreResult<()> {
        let (now, write) = (self.now(), "agent_check_in");
        let before = now.minus(CHECK_IN_WRITTEN);
        if self.read(write, body!([] conn => agents::checked_in_after(conn, agent_no, before))).await? {
            return Ok(());
        }
        self.write(write, body!([] conn => agents::check_in(conn, agent_no, now))).await
    }

    async fn agent_get_many(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentRef>> {
        let agent_nos = Arc::new(agent_nos.to_vec());
        self.read("agent_get_many", body!([agent_nos] conn => agents::get_many(conn, &agent_nos))).await
    }

    async fn agent_match(&self, target: &Target, after: i64, limit: usize) -> StoreResult<Vec<(i64, Arc<str>)>> {
        let (target, now) = (Arc::new(target.clone()), self.now());
        self.read("agent_match", body!([target] conn => agents::matching(conn, &target, now, after, limit))).await
    }

    async fn agent_count(&self, target: &Target) -> StoreResult<i64> {
        let (target, now) = (Arc::new(target.clone()), self.now());
        self.read("agent_count", body!([target] conn => agents::count(conn, &target, now))).await
    }

    async fn agent_list(
        &self,
        target: Option<&Target>,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<AgentView>> {
        let (target, after, now) = (Arc::new(target.cloned()), after.unwrap_or_default().to_owned(), self.now());
        let list = body!([target, after] conn => agents::list(conn, (*target).as_ref(), &after, now, limit));
        self.read("agent_list", list).await
    }

    async fn agent_view(&self, name: &str) -> StoreResult<Option<AgentView>> {
        let (name, now) = (name.to_owned(), self.now());
        self.read("agent_view", body!([name] conn => agents::view(conn, &name, now))).await
    }

    async fn agent_update(&self, name: &str, patch: &AgentPatch, by: &Author) -> StoreResult<Option<(i64, AgentView)>> {
        let (name, patch, by, now) = (name.to_owned(), Arc::new(patch.clone()), Arc::new(by.clone()), self.now());
        let update = body!([name, patch, by] conn => agents::update(conn, &name, &patch, &by, now));
        self.write("agent_update", update).await
    }

    async fn agent_remove(&self, name: &str, by: &Author) -> StoreResult<Option<i64>> {
        let (name, by, now) = (name.to_owned(), Arc::new(by.clone()), self.now());
        self.write("agent_remove", body!([name, by] conn => agents::remove(conn, &name, &by, now))).await
    }

    async fn agent_list_leaving(&self, limit: usize) -> StoreResult<Vec<i64>> {
        self.read("agent_list_leaving", body!([] conn => agents::list_leaving(conn, limit))).await
    }

    async fn agent_left(&self, agent_no: i64, before: Timestamp) -> StoreResult<()> {
        self.write("agent_left", body!([] conn => agents::left(conn, agent_no, before))).await
    }

    async fn command_unfinished_of(&self, agent_no: i64, limit: usize) -> StoreResult<Vec<i64>> {
        self.read("command_unfinished_of", body!([] conn => commands::unfinished_of(conn, agent_no, limit))).await
    }

    async fn session_open(&self, sessions: &[SessionOpening]) -> StoreResult<Vec<Opened>> {
        let (openings, here, now) = (Arc::new(sessions.to_vec()), self.inner.incarnation.clone(), self.now());
        let open = body!([openings, here] conn => sessions::open(conn, &openings, &here, now));
        self.write("session_open", open).await
    }

    async fn session_check(&self, held: &[SessionHeld]) -> StoreResult<Vec<SessionState>> {
        let (held, here, now) = (Arc::new(held.to_vec()), self.inner.incarnation.clone(), self.now());
        let known =
            self.read("session_check", body!([held, here] conn => sessions::look(conn, &held, &here, now))).await?;
        let missing = held.iter().filter(|session| known.judge(session).is_none());
        let missing: Vec<(i64, i64)> = missing.map(|session| (session.agent_no, session.epoch)).collect();
        let restored = if missing.is_empty() {
            Vec::new()
        } else {
            let missing = Arc::new(missing);
            let restore = body!([missing, here] conn => sessions::restore(conn, &missing, &here, now));
            self.write("session_check", restore).await?
        };
        Ok(checked(&held, &known, &restored.into_iter().collect()))
    }

    async fn session_close(&self, sessions: &[(i64, i64)]) -> StoreResult<()> {
        let (closed, here, now) = (Arc::new(sessions.to_vec()), self.inner.incarnation.clone(), self.now());
        let close = body!([closed, here] conn => sessions::close(conn, &closed, &here, now));
        self.write("session_close", close).await
    }

    async fn token_insert(&self, token: &Token, hash: Vec<u8>, by: &Author) -> StoreResult<()> {
        let (token, by) = (Arc::new(token.clone()), Arc::new(by.clone()));
        self.write("token_insert", body!([token, hash, by] conn => tokens::insert(conn, &token, hash, &by))).await
    }

    async fn token_find(&self, hash: &[u8]) -> StoreResult<Option<Token>> {
        let (hash, now) = (hash.to_vec(), self.now());
        self.read("token_find", body!([hash] conn => tokens::find(conn, hash, now))).await
    }

    async fn token_use(&self, id: Uuid) -> StoreResult<bool> {
        self.write("token_use", body!([] conn => tokens::make_used(conn, id))).await
    }

    async fn token_list(&self, after: Option<Uuid>, limit: usize) -> StoreResult<Vec<Token>> {
        self.read("token_list", body!([] conn => tokens::list(conn, after, limit))).await
    }

    async fn token_revoke(&self, id: Uuid, by: &Author) -> StoreResult<Revoked> {
        let (by, now) = (Arc::new(by.clone()), self.now());
        self.write("token_revoke", body!([by] conn => tokens::revoke(conn, id, &by, now))).await
    }

    async fn token_any_admin(&self) -> StoreResult<bool> {
        self.read("token_any_admin", body!([] conn => tokens::any_admin(conn))).await
    }

    async fn audit_list(&self, before: Option<i64>, limit: usize) -> StoreResult<Vec<AuditEntry>> {
        self.read("audit_list", body!([] conn => audit::list(conn, before, limit))).await
    }

    async fn audit_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize> {
        self.write("audit_purge", body!([] conn => audit::purge(conn, before, limit))).await
    }

    async fn action_list_live(&self) -> StoreResult<Vec<i64>> {
        let now = self.now();
        self.read("action_list_live", body!([] conn => live::list(conn, now))).await
    }

    async fn agent_match_joining(
        &self,
        action_no: i64,
        target: &Target,
        among: Option<&[i64]>,
        after: i64,
        limit: usize,
    ) -> StoreResult<Vec<(i64, Arc<str>)>> {
        let (target, among, now) = (Arc::new(target.clone()), Arc::new(among.map(<[i64]>::to_vec)), self.now());
        let look = body!([target, among] conn =>
            live::matching(conn, action_no, &target, among.as_deref(), now, after, limit));
        self.read("agent_match_joining", look).await
    }

    async fn command_insert_joining(&self, action_no: i64, agents: &[i64]) -> StoreResult<Vec<Due>> {
        let (agents, lane, now) = (Arc::new(agents.to_vec()), self.inner.lane("joining"), self.now());
        let insert = body!([agents, lane] conn => live::insert(conn, action_no, &agents, &lane, now));
        self.write("command_insert_joining", insert).await
    }
}
