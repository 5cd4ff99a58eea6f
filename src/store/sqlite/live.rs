//! Live membership: agents that join an action after it was resolved.

use super::agents::end;
use super::store::{SqliteStore, json};
use crate::domain::command::OpenState;
use crate::domain::target::{Target, Within};
use crate::domain::time::Timestamp;
use crate::store::changes::Deltas;
use crate::store::sql::agents::found;
use crate::store::sql::live::{self as statements, Joinable};
use crate::store::sql::schema::agents;
use crate::store::sql::{Key, filter, sql_limit};
use crate::store::{Due, Found, Live, Matching, Part, Store, StoreResult};
use async_trait::async_trait;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, SmallInt, Text};

#[async_trait]
impl Live for SqliteStore {
    async fn action_list_live(&self) -> StoreResult<Vec<i64>> {
        let now = self.now();
        self.read("action_list_live", move |conn| list(conn, now)).await
    }

    async fn agent_match_joining(
        &self,
        action_no: i64,
        target: &Target,
        among: Option<&[i64]>,
        part: Part,
    ) -> StoreResult<Found<Matching>> {
        let (target, among, now) = (target.clone(), among.map(<[i64]>::to_vec), self.now());
        self.read("agent_match_joining", move |conn| matching(conn, action_no, &target, among.as_deref(), now, part))
            .await
    }

    async fn command_insert_joining(&self, action_no: i64, agents: &[i64]) -> StoreResult<Vec<Due>> {
        let (agents, lane, now) = (agents.to_vec(), self.incarnation.clone(), self.now());
        self.write("command_insert_joining", move |conn| insert(conn, action_no, &agents, &lane, now)).await
    }
}

fn list(conn: &mut SqliteConnection, now: Timestamp) -> QueryResult<Vec<i64>> {
    let rows: Vec<Key> = statements::list(now).load(conn)?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

fn matching(
    conn: &mut SqliteConnection,
    action_no: i64,
    target: &Target,
    among: Option<&[i64]>,
    now: Timestamp,
    part: Part,
) -> QueryResult<Found<Matching>> {
    let within = if matches!(target.within(), Within::Names(_)) { target.within() } else { Within::Fleet };
    let through = match among {
        Some(_) => None,
        None => end(conn, &within, part)?,
    };
    let has_none = sql::<Bool>("NOT EXISTS (SELECT 1 FROM commands c WHERE c.agent_no = agents.no AND c.action_no = ")
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
        let listed = sql::<Bool>("agents.no IN (SELECT value FROM json_each(").bind::<Text, _>(json(among)?).sql("))");
        query = query.filter(listed);
    }
    let rows = query.load::<(i64, String)>(conn)?;
    Ok(found(rows, through, part.limit))
}

fn insert(
    conn: &mut SqliteConnection,
    action_no: i64,
    agent_nos: &[i64],
    lane: &str,
    now: Timestamp,
) -> QueryResult<Vec<Due>> {
    let action: Option<Joinable> = statements::joinable(action_no, now, "").get_result(conn).optional()?;
    let Some(Joinable { priority, valid_from }) = action else { return Ok(Vec::new()) };
    // An action is resolved ahead of its time.
    let due_at = now.max(Timestamp(valid_from));
    let new = sql_query(
        "INSERT INTO commands (action_no, agent_no, due_at) SELECT ?2, value, ?3 FROM json_each(?1) WHERE TRUE \
         ON CONFLICT DO NOTHING RETURNING agent_no AS key",
    )
    .bind::<Text, _>(json(agent_nos)?)
    .bind::<BigInt, _>(action_no)
    .bind::<BigInt, _>(due_at.0)
    .load::<Key>(conn)?;
    let mut new: Vec<i64> = new.into_iter().map(|row| row.key).collect();
    new.sort_unstable();
    // The action's cursors may be beyond these: the open row is how they are found again.
    sql_query(
        "INSERT INTO open_commands (action_no, agent_no, state, run, attempts, due_at) \
         SELECT ?2, g.no, CASE g.transport WHEN 'stream' THEN ?3 ELSE ?5 END, 1, 0, ?4 \
         FROM json_each(?1) n CROSS JOIN agents g ON g.no = n.value",
    )
    .bind::<Text, _>(json(&new)?)
    .bind::<BigInt, _>(action_no)
    .bind::<SmallInt, _>(OpenState::Waiting as i16)
    .bind::<BigInt, _>(due_at.0)
    .bind::<SmallInt, _>(OpenState::Retry as i16)
    .execute(conn)?;
    let mut deltas = Deltas::default();
    if !new.is_empty() {
        deltas.entry(action_no).or_default().add_new(sql_limit(new.len()));
    }
    super::counts::count(conn, deltas, lane)?;
    let due = |agent_no| Due { action_no, agent_no, run: 1, attempts: 0, due_at, priority, open: true };
    Ok(new.into_iter().map(due).collect())
}
