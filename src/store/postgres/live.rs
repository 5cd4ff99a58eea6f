//! Live membership: agents that join an action after it was resolved.

use super::agents::end;
use super::counts::count;
use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::command::OpenState;
use crate::domain::target::{Target, Within};
use crate::domain::time::Timestamp;
use crate::store::changes::Deltas;
use crate::store::sql::agents::found;
use crate::store::sql::live::{self as statements, Joinable};
use crate::store::sql::schema::agents;
use crate::store::sql::{Key, filter, sql, sql_limit};
use crate::store::{Due, Found, Live, Matching, Part, Store, StoreResult};
use async_trait::async_trait;
use diesel::dsl::sql as expression;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::sync::Arc;

#[async_trait]
impl Live for PostgresStore {
    async fn action_list_live(&self) -> StoreResult<Vec<i64>> {
        let now = self.now();
        self.read(Caller::Pipeline, "action_list_live", body!([] conn => list(conn, now))).await
    }

    async fn agent_match_joining(
        &self,
        action_no: i64,
        target: &Target,
        among: Option<&[i64]>,
        part: Part,
    ) -> StoreResult<Found<Matching>> {
        let (target, among, now) = (Arc::new(target.clone()), Arc::new(among.map(<[i64]>::to_vec)), self.now());
        let look = body!([target, among] conn =>
            matching(conn, action_no, &target, among.as_deref(), now, part));
        self.read(Caller::Pipeline, "agent_match_joining", look).await
    }

    async fn command_insert_joining(&self, action_no: i64, agents: &[i64]) -> StoreResult<Vec<Due>> {
        let (agents, lane, now) = (Arc::new(agents.to_vec()), self.inner.lane("joining"), self.now());
        let insert = body!([agents, lane] conn => insert(conn, action_no, &agents, &lane, now));
        self.write(Caller::Pipeline, "command_insert_joining", insert).await
    }
}

async fn list(conn: &mut AsyncPgConnection, now: Timestamp) -> QueryResult<Vec<i64>> {
    let rows: Vec<Key> = statements::list(now).load(conn).await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

async fn matching(
    conn: &mut AsyncPgConnection,
    action_no: i64,
    target: &Target,
    among: Option<&[i64]>,
    now: Timestamp,
    part: Part,
) -> QueryResult<Found<Matching>> {
    let within = if matches!(target.within(), Within::Names(_)) { target.within() } else { Within::Fleet };
    let through = match among {
        Some(_) => None,
        None => end(conn, &within, part).await?,
    };
    let has_none =
        expression::<Bool>("NOT EXISTS (SELECT 1 FROM commands c WHERE c.agent_no = agents.no AND c.action_no = ")
            .bind::<BigInt, _>(action_no)
            .sql(")");
    let mut query = agents::table
        .filter(filter::members(target, now))
        .filter(has_none)
        .filter(agents::no.gt(part.after))
        .filter(agents::no.le(through.unwrap_or(i64::MAX)))
        .order(agents::no)
        .limit(sql_limit(part.limit))
        .select((agents::no, agents::transport))
        .into_boxed();
    if let Some(among) = among {
        query = query.filter(agents::no.eq_any(among));
    }
    let rows: Vec<(i64, String)> = query.load(conn).await?;
    Ok(found(rows, through, part.limit))
}

async fn insert(
    conn: &mut AsyncPgConnection,
    action_no: i64,
    agent_nos: &[i64],
    lane: &str,
    now: Timestamp,
) -> QueryResult<Vec<Due>> {
    // The lock: whoever completes or cancels the action comes before this or after it.
    let action: Option<Joinable> =
        statements::joinable(action_no, now, " FOR NO KEY UPDATE").get_result(conn).await.optional()?;
    let Some(Joinable { priority, valid_from }) = action else { return Ok(Vec::new()) };
    // An action is resolved ahead of its time.
    let due_at = now.max(Timestamp(valid_from));
    let new: Vec<Key> = sql("INSERT INTO commands (action_no, agent_no, due_at) SELECT ?, n.agent_no, ? \
         FROM UNNEST(?) AS n (agent_no) ON CONFLICT DO NOTHING RETURNING agent_no AS key")
    .bind(action_no)
    .bind(due_at.0)
    .bind(agent_nos.to_vec())
    .load(conn)
    .await?;
    let mut new: Vec<i64> = new.into_iter().map(|row| row.key).collect();
    new.sort_unstable();
    // The action's cursors may be beyond these: the open row is how they are found again.
    sql("INSERT INTO open_commands (action_no, agent_no, state, run, attempts, due_at) \
         SELECT ?, g.no, CASE g.transport WHEN 'stream' THEN ? ELSE ? END::smallint, 1, 0, ? \
         FROM UNNEST(?) AS n (agent_no) JOIN agents g ON g.no = n.agent_no")
    .bind(action_no)
    .bind(i32::from(OpenState::Waiting as i16))
    .bind(i32::from(OpenState::Retry as i16))
    .bind(due_at.0)
    .bind(new.clone())
    .execute(conn)
    .await?;
    let mut deltas = Deltas::default();
    if !new.is_empty() {
        deltas.entry(action_no).or_default().add_new(sql_limit(new.len()));
    }
    count(conn, &deltas, lane).await?;
    let due = |agent_no| Due { action_no, agent_no, run: 1, attempts: 0, due_at, priority, open: true };
    Ok(new.into_iter().map(due).collect())
}
