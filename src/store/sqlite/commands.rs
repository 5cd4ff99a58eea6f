//! Commands: inserted in pages, listed for users and reconcilers.

use super::store::{SqliteStore, json};
use crate::domain::command::{CommandState, OpenState};
use crate::store::changes::Deltas;
use crate::store::sql::commands::{self as statements, CommandViewRow};
use crate::store::sql::{Key, sql_limit};
use crate::store::{AgentNames, CommandPage, CommandView, Commands, Inserted, StoreResult, Unfinished};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Nullable, SmallInt, Text};
use uuid::Uuid;

/// Condition: the command `c` has neither outcome nor open row.
pub(super) const UNTOUCHED: &str = "NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.action_no = c.action_no AND o.agent_no = c.agent_no) \
     AND NOT EXISTS (SELECT 1 FROM open_commands p WHERE p.action_no = c.action_no AND p.agent_no = c.agent_no)";

#[async_trait]
impl Commands for SqliteStore {
    async fn command_insert(&self, pages: Vec<CommandPage>) -> StoreResult<Vec<Inserted>> {
        let lane = self.incarnation.clone();
        self.write("command_insert", move |conn| insert(conn, &pages, &lane)).await
    }

    async fn command_list(
        &self,
        action: Uuid,
        state: Option<CommandState>,
        agents: AgentNames<'_>,
        limit: usize,
    ) -> StoreResult<Vec<CommandView>> {
        let (operator, name) = agents.condition();
        self.read("command_list", move |conn| list(conn, action, state, (operator, &name), limit)).await
    }

    async fn command_unfinished(
        &self,
        action_no: i64,
        which: Unfinished,
        after: i64,
        limit: usize,
    ) -> StoreResult<Vec<i64>> {
        self.read("command_unfinished", move |conn| unfinished(conn, action_no, which, after, limit)).await
    }

    async fn command_unfinished_of(&self, agent_no: i64, limit: usize) -> StoreResult<Vec<i64>> {
        self.read("command_unfinished_of", move |conn| unfinished_of(conn, agent_no, limit)).await
    }
}

fn insert(conn: &mut SqliteConnection, pages: &[CommandPage], lane: &str) -> QueryResult<Vec<Inserted>> {
    let mut deltas = Deltas::default();
    let inserted = pages.iter().map(|page| insert_page(conn, page, &mut deltas)).collect::<QueryResult<Vec<_>>>()?;
    super::counts::count(conn, deltas, lane)?;
    Ok(inserted)
}

fn insert_page(conn: &mut SqliteConnection, page: &CommandPage, deltas: &mut Deltas) -> QueryResult<Inserted> {
    use crate::store::sql::schema::actions;
    // An action that has moved on (by another page, a cancel, a restart) refuses the page.
    let moved = diesel::update(
        actions::table
            .find(page.action_no)
            .filter(actions::resolved_through.eq(page.after))
            .filter(actions::resolved.eq(false))
            .filter(actions::cancelled.eq(false)),
    )
    .set((actions::resolved_through.eq(page.through), actions::resolved.eq(page.last)))
    .execute(conn)?;
    if moved == 0 {
        return Ok(Inserted::StalePage);
    }
    let written = if page.commands.iter().all(|(_, due)| due.is_none()) {
        let agents: Vec<i64> = page.commands.iter().map(|(agent, _)| *agent).collect();
        sql_query(
            "INSERT INTO commands (action_no, agent_no) SELECT ?2, value FROM json_each(?1) WHERE TRUE \
             ON CONFLICT DO NOTHING",
        )
        .bind::<Text, _>(json(&agents)?)
        .bind::<BigInt, _>(page.action_no)
        .execute(conn)?
    } else {
        let rows: Vec<(i64, Option<i64>)> =
            page.commands.iter().map(|(agent, due)| (*agent, due.map(|due| due.0))).collect();
        sql_query(
            "INSERT INTO commands (action_no, agent_no, due_at) SELECT ?2, value ->> 0, value ->> 1 \
             FROM json_each(?1) WHERE TRUE ON CONFLICT DO NOTHING",
        )
        .bind::<Text, _>(json(&rows)?)
        .bind::<BigInt, _>(page.action_no)
        .execute(conn)?
    };
    if written > 0 {
        deltas.entry(page.action_no).or_default().add_new(i64::try_from(written).unwrap_or(i64::MAX));
    }
    Ok(Inserted::Written)
}

/// The first of the `limit` commands after a key that has neither outcome nor open row.
pub(super) fn first_untouched(
    conn: &mut SqliteConnection,
    no: i64,
    after: i64,
    limit: usize,
) -> QueryResult<Option<i64>> {
    let row = sql_query(format!(
        "SELECT c.agent_no AS key FROM (SELECT action_no, agent_no FROM commands WHERE action_no = ?1 AND agent_no > ?2 \
         ORDER BY agent_no LIMIT ?3) c WHERE {UNTOUCHED} LIMIT 1"
    ))
    .bind::<BigInt, _>(no)
    .bind::<BigInt, _>(after)
    .bind::<BigInt, _>(sql_limit(limit))
    .get_result::<Key>(conn)
    .optional()?;
    Ok(row.map(|row| row.key))
}

/// The agent key of the `count`th command after a key, if there are so many.
pub(super) fn key_after(conn: &mut SqliteConnection, no: i64, after: i64, count: usize) -> QueryResult<Option<i64>> {
    Ok(statements::key_after(no, after, count).get_result::<Key>(conn).optional()?.map(|row| row.key))
}

fn unfinished(
    conn: &mut SqliteConnection,
    action_no: i64,
    which: Unfinished,
    after: i64,
    limit: usize,
) -> QueryResult<Vec<i64>> {
    let not_sent = match which {
        Unfinished::All => String::new(),
        Unfinished::Pending => format!(
            " AND NOT EXISTS (SELECT 1 FROM open_commands p WHERE p.action_no = c.action_no \
             AND p.agent_no = c.agent_no AND p.state = {})",
            OpenState::Sent as i16
        ),
    };
    let rows = sql_query(format!(
        "SELECT c.agent_no AS key FROM commands c WHERE c.action_no = ?1 AND c.agent_no > ?2 AND NOT EXISTS \
         (SELECT 1 FROM outcomes o WHERE o.action_no = c.action_no AND o.agent_no = c.agent_no AND o.is_final){not_sent} \
         ORDER BY c.agent_no LIMIT ?3"
    ))
    .bind::<BigInt, _>(action_no)
    .bind::<BigInt, _>(after)
    .bind::<BigInt, _>(sql_limit(limit))
    .load::<Key>(conn)?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

fn unfinished_of(conn: &mut SqliteConnection, agent_no: i64, limit: usize) -> QueryResult<Vec<i64>> {
    let rows = sql_query(format!(
        "SELECT action_no AS key FROM open_commands INDEXED BY open_commands_agent WHERE agent_no = ?1 \
         UNION SELECT c.action_no FROM actions a INDEXED BY actions_dispatching CROSS JOIN commands c ON c.action_no = a.no AND c.agent_no = ?1 \
         WHERE a.ended_at IS NULL AND a.dispatched_through < a.resolved_through AND a.dispatched_through < ?1 \
         AND a.resolved_through >= ?1 AND {UNTOUCHED} \
         ORDER BY 1 LIMIT ?2"
    ))
    .bind::<BigInt, _>(agent_no)
    .bind::<BigInt, _>(sql_limit(limit))
    .load::<Key>(conn)?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

fn list(
    conn: &mut SqliteConnection,
    action: Uuid,
    state: Option<CommandState>,
    (operator, name): (&str, &str),
    limit: usize,
) -> QueryResult<Vec<CommandView>> {
    // Per command: its last ended run `o`; its open row `p`, unless it is final; and whether the
    // run that it is in, or ended with, was `handed` over. The state is derived as `Known::state`
    // does.
    let rows = sql_query(format!(
        "WITH page AS (SELECT g.name AS agent, o.is_final, o.run AS last_run, o.attempts AS last_attempts, \
           o.sent_at AS last_sent_at, o.started_at, o.finished_at, o.results, coalesce(p.error, o.error) AS error, p.state AS open_state, p.run AS open_run, \
           p.attempts AS open_attempts, p.sent_at AS open_sent_at, \
           CASE WHEN o.is_final THEN o.status WHEN p.state = {sent} THEN {state_sent} ELSE {state_pending} END AS status, \
           CASE WHEN o.is_final THEN o.status IN ({succeeded}, {failed}, {timed_out}) OR o.sent_at IS NOT NULL \
             ELSE p.state IS {sent} END AS handed, \
           CASE WHEN p.state <> {sent} THEN p.due_at ELSE coalesce(c.due_at, a.valid_from) END AS due_at \
         FROM actions a CROSS JOIN agents g CROSS JOIN commands c ON c.action_no = a.no AND c.agent_no = g.no \
         LEFT JOIN outcomes o ON o.action_no = a.no AND o.agent_no = g.no AND o.run = (SELECT max(run) FROM outcomes x \
           WHERE x.action_no = a.no AND x.agent_no = g.no) \
         LEFT JOIN open_commands p ON p.action_no = a.no AND p.agent_no = g.no AND o.is_final IS NOT TRUE \
         WHERE a.id = ?1 AND g.name {operator} ?2) \
         SELECT agent, CAST(status AS INTEGER) AS status, \
           handed + coalesce(CASE WHEN is_final THEN last_attempts ELSE open_attempts END, 0) AS attempts, \
           handed + coalesce(CASE WHEN is_final THEN last_run ELSE open_run END, 1) - 1 AS runs, due_at, \
           CASE WHEN is_final THEN last_sent_at ELSE open_sent_at END AS sent_at, \
           CASE WHEN is_final THEN started_at END AS started_at, CASE WHEN is_final THEN finished_at END AS finished_at, results, error \
         FROM page WHERE (?3 IS NULL OR status = ?3) ORDER BY agent LIMIT ?4",
        sent = OpenState::Sent as i16,
        state_sent = CommandState::Sent as i16,
        state_pending = CommandState::Pending as i16,
        succeeded = CommandState::Succeeded as i16,
        failed = CommandState::Failed as i16,
        timed_out = CommandState::TimedOut as i16,
    ))
    .bind::<Text, _>(action.to_string())
    .bind::<Text, _>(name)
    .bind::<Nullable<SmallInt>, _>(state.map(|state| state as i16))
    .bind::<BigInt, _>(sql_limit(limit))
    .load::<CommandViewRow>(conn)?;
    rows.into_iter().map(CommandViewRow::view).collect()
}
