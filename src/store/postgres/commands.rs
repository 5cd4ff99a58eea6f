//! Commands: inserted in pages, listed for users and reconcilers.

use super::counts::count;
use super::error::is_duplicate;
use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::command::{CommandState, OpenState};
use crate::domain::time::Timestamp;
use crate::store::changes::Deltas;
use crate::store::sql::commands::{self as statements, CommandViewRow};
use crate::store::sql::{Key, sql, sql_limit};
use crate::store::{AgentNames, CommandPage, CommandView, Commands, Inserted, StoreResult, Unfinished};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Condition: the command `c` has neither outcome nor open row.
pub(super) const UNTOUCHED: &str = "NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.action_no = c.action_no AND o.agent_no = c.agent_no \
     OFFSET 0) AND NOT EXISTS (SELECT 1 FROM open_commands p WHERE p.action_no = c.action_no \
     AND p.agent_no = c.agent_no OFFSET 0)";

/// Up to this number of commands, an action is listed by sorting all of them.
const SMALL: i64 = 2_000;

#[async_trait]
impl Commands for PostgresStore {
    async fn command_insert(&self, pages: Vec<CommandPage>) -> StoreResult<Vec<Inserted>> {
        let (pages, lane) = (Arc::new(pages), self.inner.lane("commands"));
        for duplicates in [Duplicates::Fail, Duplicates::PassOver] {
            let insert = body!([pages, lane] conn => insert(conn, &pages, &lane, duplicates));
            match self.write(Caller::Pipeline, "command_insert", insert).await {
                Err(error) if is_duplicate(&error) && duplicates == Duplicates::Fail => {}
                done => return done,
            }
        }
        Ok(Vec::new())
    }

    async fn command_list(
        &self,
        action: Uuid,
        state: Option<CommandState>,
        agents: AgentNames<'_>,
        limit: usize,
    ) -> StoreResult<Vec<CommandView>> {
        let (operator, name) = agents.condition();
        let list = body!([name] conn => list(conn, action, state, (operator, &name), limit));
        self.read(Caller::People, "command_list", list).await
    }

    async fn command_unfinished(
        &self,
        action_no: i64,
        which: Unfinished,
        after: i64,
        limit: usize,
    ) -> StoreResult<Vec<i64>> {
        let look = body!([] conn => unfinished(conn, action_no, which, after, limit));
        self.read(Caller::Pipeline, "command_unfinished", look).await
    }

    async fn command_unfinished_of(&self, agent_no: i64, limit: usize) -> StoreResult<Vec<i64>> {
        self.read(Caller::Pipeline, "command_unfinished_of", body!([] conn => unfinished_of(conn, agent_no, limit)))
            .await
    }
}

/// Whether commands that exist are skipped, or make the insert fail, which is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duplicates {
    Fail,
    PassOver,
}

async fn insert(
    conn: &mut AsyncPgConnection,
    pages: &[CommandPage],
    lane: &str,
    duplicates: Duplicates,
) -> QueryResult<Vec<Inserted>> {
    let mut inserted = vec![Inserted::StalePage; pages.len()];
    // Pages of different actions are moved on in one statement, those of one action one after the
    // other.
    let mut rounds: Vec<BTreeMap<i64, usize>> = Vec::new();
    for (index, page) in pages.iter().enumerate() {
        match rounds.iter_mut().find(|round| !round.contains_key(&page.action_no)) {
            Some(round) => round.insert(page.action_no, index),
            None => {
                rounds.push(BTreeMap::from([(page.action_no, index)]));
                None
            }
        };
    }
    for round in rounds {
        for moved in move_on(conn, round.values().map(|index| &pages[*index])).await? {
            inserted[round[&moved]] = Inserted::Written;
        }
    }
    let written = || pages.iter().zip(&inserted).filter(|(_, inserted)| **inserted == Inserted::Written);
    let rows = written().flat_map(|(page, _)| page.commands.iter().map(|(agent, due)| (page.action_no, *agent, *due)));
    let mut rows: Vec<(i64, i64, Option<Timestamp>)> = rows.collect();
    rows.sort_unstable_by_key(|(action, agent, _)| (*action, *agent));
    let mut deltas = Deltas::default();
    match duplicates {
        Duplicates::Fail => {
            for (action_no, ..) in &rows {
                deltas.entry(*action_no).or_default().add_new(1);
            }
            insert_rows(rows, "").execute(conn).await?;
        }
        Duplicates::PassOver => {
            let new: Vec<Key> =
                insert_rows(rows, " ON CONFLICT DO NOTHING RETURNING action_no AS key").load(conn).await?;
            for row in new {
                deltas.entry(row.key).or_default().add_new(1);
            }
        }
    }
    count(conn, &deltas, lane).await?;
    Ok(inserted)
}

fn insert_rows(rows: Vec<(i64, i64, Option<Timestamp>)>, then: &str) -> crate::store::sql::Sql {
    let own_due = rows.iter().any(|(.., due)| due.is_some());
    let (mut actions, mut agents, mut dues) =
        (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()), Vec::new());
    for (action, agent, due) in rows {
        actions.push(action);
        agents.push(agent);
        if own_due {
            dues.push(due.map(|due| due.0));
        }
    }
    if own_due {
        let text = format!("INSERT INTO commands (action_no, agent_no, due_at) SELECT * FROM UNNEST(?, ?, ?){then}");
        sql(text).bind(actions).bind(agents).bind(dues)
    } else {
        let text = format!("INSERT INTO commands (action_no, agent_no) SELECT * FROM UNNEST(?, ?){then}");
        sql(text).bind(actions).bind(agents)
    }
}

/// Moves `resolved_through` of actions over these pages, at most one page per action. Returns the
/// actions that moved.
async fn move_on(conn: &mut AsyncPgConnection, pages: impl Iterator<Item = &CommandPage>) -> QueryResult<Vec<i64>> {
    let (mut nos, mut afters, mut throughs, mut lasts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for page in pages {
        nos.push(page.action_no);
        afters.push(page.after);
        throughs.push(page.through);
        lasts.push(page.last);
    }
    // An action that has moved on (by another page, a cancel, a restart) refuses the page.
    let moved: Vec<Key> = sql(
        "UPDATE actions a SET resolved_through = p.through, resolved = p.last \
         FROM UNNEST(?, ?, ?, ?) AS p (no, after, through, last) \
         WHERE a.no = ANY(?) AND a.no = p.no AND a.resolved_through = p.after AND NOT a.resolved AND NOT a.cancelled RETURNING a.no AS key",
    )
    .bind(nos.clone())
    .bind(afters)
    .bind(throughs)
    .bind(lasts)
    .bind(nos)
    .load(conn)
    .await?;
    Ok(moved.into_iter().map(|row| row.key).collect())
}

/// The first of the `limit` commands after a key that has neither outcome nor open row.
pub(super) async fn first_untouched(
    conn: &mut AsyncPgConnection,
    no: i64,
    after: i64,
    limit: usize,
) -> QueryResult<Option<i64>> {
    let row = sql(format!(
        "SELECT c.agent_no AS key FROM (SELECT action_no, agent_no FROM commands WHERE action_no = ? AND agent_no > ? \
         ORDER BY agent_no LIMIT ?) c WHERE {UNTOUCHED} ORDER BY c.agent_no LIMIT 1"
    ))
    .bind(no)
    .bind(after)
    .bind(sql_limit(limit))
    .get_result::<Key>(conn)
    .await
    .optional()?;
    Ok(row.map(|row| row.key))
}

/// The agent key of the `count`th command after a key, if there are so many.
pub(super) async fn key_after(
    conn: &mut AsyncPgConnection,
    no: i64,
    after: i64,
    count: usize,
) -> QueryResult<Option<i64>> {
    Ok(statements::key_after(no, after, count).get_result::<Key>(conn).await.optional()?.map(|row| row.key))
}

async fn unfinished(
    conn: &mut AsyncPgConnection,
    action_no: i64,
    which: Unfinished,
    after: i64,
    limit: usize,
) -> QueryResult<Vec<i64>> {
    let not_sent = match which {
        Unfinished::All => String::new(),
        Unfinished::Pending => format!(
            " AND NOT EXISTS (SELECT 1 FROM open_commands p WHERE p.action_no = c.action_no \
             AND p.agent_no = c.agent_no AND p.state = {} OFFSET 0)",
            OpenState::Sent as i16
        ),
    };
    let rows: Vec<Key> = sql(format!(
        "SELECT c.agent_no AS key FROM commands c WHERE c.action_no = ? AND c.agent_no > ? AND NOT EXISTS \
         (SELECT 1 FROM outcomes o WHERE o.action_no = c.action_no AND o.agent_no = c.agent_no AND o.is_final \
         OFFSET 0){not_sent} \
         ORDER BY c.agent_no LIMIT ?"
    ))
    .bind(action_no)
    .bind(after)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

async fn unfinished_of(conn: &mut AsyncPgConnection, agent_no: i64, limit: usize) -> QueryResult<Vec<i64>> {
    let rows: Vec<Key> = sql(format!(
        "WITH v AS MATERIALIZED (SELECT ?::bigint AS agent) \
         SELECT p.action_no AS key FROM v CROSS JOIN LATERAL \
         (SELECT action_no FROM open_commands x WHERE x.agent_no = v.agent OFFSET 0) p \
         UNION SELECT c.action_no FROM v CROSS JOIN LATERAL (SELECT no FROM actions x WHERE x.ended_at IS NULL \
         AND x.dispatched_through < x.resolved_through AND x.dispatched_through < v.agent AND x.resolved_through >= v.agent OFFSET 0) a \
         CROSS JOIN LATERAL (SELECT * FROM commands x WHERE x.action_no = a.no AND x.agent_no = v.agent OFFSET 0) c \
         WHERE {UNTOUCHED} ORDER BY 1 LIMIT ?"
    ))
    .bind(agent_no)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

async fn list(
    conn: &mut AsyncPgConnection,
    action: Uuid,
    state: Option<CommandState>,
    (operator, name): (&str, &str),
    limit: usize,
) -> QueryResult<Vec<CommandView>> {
    // A large action is read by its agents' names, in their order; a small one among a large fleet
    // by its commands.
    let total = sql("SELECT coalesce(sum(c.total), 0)::bigint AS key FROM actions a JOIN action_counts c \
                     ON c.action_no = a.no WHERE a.id = ?");
    let small = total.bind(action.to_string()).get_result::<Key>(conn).await?.key <= SMALL;
    let of_agents = if small {
        "LATERAL (SELECT * FROM commands x WHERE x.action_no = a.no OFFSET 0) c \
         CROSS JOIN LATERAL (SELECT no, name FROM agents x WHERE x.no = c.agent_no OFFSET 0) g"
    } else {
        "agents g CROSS JOIN LATERAL \
         (SELECT * FROM commands x WHERE x.action_no = a.no AND x.agent_no = g.no OFFSET 0) c"
    };
    // Per command: its last ended run `o`; its open row `p`, unless it is final; and whether the
    // run that it is in, or ended with, was `handed` over. The state is derived as `Known::state`
    // does.
    let rows: Vec<CommandViewRow> = sql(format!(
        "WITH page AS (SELECT g.name AS agent, o.is_final, o.run AS last_run, o.attempts AS last_attempts, \
           o.sent_at AS last_sent_at, o.started_at, o.finished_at, o.results, coalesce(p.error, o.error) AS error, p.run AS open_run, \
           p.attempts AS open_attempts, p.sent_at AS open_sent_at, \
           CASE WHEN o.is_final THEN o.status WHEN p.state = {sent} THEN {state_sent} ELSE {state_pending} END AS status, \
           (CASE WHEN o.is_final THEN o.status IN ({succeeded}, {failed}, {timed_out}) OR o.sent_at IS NOT NULL \
             ELSE p.state IS NOT DISTINCT FROM {sent} END)::int AS handed, \
           CASE WHEN p.state <> {sent} THEN p.due_at ELSE coalesce(c.due_at, a.valid_from) END AS due_at \
         FROM actions a CROSS JOIN {of_agents} \
         LEFT JOIN LATERAL (SELECT * FROM outcomes x WHERE x.action_no = a.no AND x.agent_no = g.no \
           ORDER BY x.run DESC LIMIT 1) o ON TRUE \
         LEFT JOIN LATERAL (SELECT * FROM open_commands x WHERE x.action_no = a.no AND x.agent_no = g.no \
           AND o.is_final IS NOT TRUE OFFSET 0) p ON TRUE \
         WHERE a.id = ? AND g.name {operator} ?) \
         SELECT agent, status::smallint AS status, \
           handed + coalesce(CASE WHEN is_final THEN last_attempts ELSE open_attempts END, 0) AS attempts, \
           handed + coalesce(CASE WHEN is_final THEN last_run ELSE open_run END, 1) - 1 AS runs, due_at, \
           CASE WHEN is_final THEN last_sent_at ELSE open_sent_at END AS sent_at, \
           CASE WHEN is_final THEN started_at END AS started_at, CASE WHEN is_final THEN finished_at END AS finished_at, results, error \
         FROM page WHERE status = coalesce(?, status) ORDER BY agent LIMIT ?",
        sent = OpenState::Sent as i16,
        state_sent = CommandState::Sent as i16,
        state_pending = CommandState::Pending as i16,
        succeeded = CommandState::Succeeded as i16,
        failed = CommandState::Failed as i16,
        timed_out = CommandState::TimedOut as i16,
    ))
    .bind(action.to_string())
    .bind(name)
    .bind(state.map(|state| state as i16))
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    rows.into_iter().map(CommandViewRow::view).collect()
}
