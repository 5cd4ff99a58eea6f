//! Commands and open commands: written in pages, read by the scheduler, the agents' sessions and the reconcilers.

use super::counts::count;
use super::sql::sql;
use crate::domain::command::{CommandState, OpenState};
use crate::domain::time::Timestamp;
use crate::store::changes::Deltas;
use crate::store::rows::{CommandKey, CommandViewRow, DueRow, Key, Named, Transports, UntouchedRow, sql_limit};
use crate::store::{CommandPage, CommandView, Due, DueCursor, Inserted, UndispatchedPage, Unfinished};
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Neither outcome nor open row, of a command `c`.
const UNTOUCHED: &str = "NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.action_no = c.action_no AND o.agent_no = c.agent_no \
     OFFSET 0) AND NOT EXISTS (SELECT 1 FROM open_commands p WHERE p.action_no = c.action_no \
     AND p.agent_no = c.agent_no OFFSET 0)";

/// The action of what is called `p`, if it goes on.
const GOING_OF_P: &str = "CROSS JOIN LATERAL (SELECT x.priority, x.owner FROM actions x WHERE x.no = p.action_no \
     AND x.ended_at IS NULL AND NOT x.cancelled AND NOT x.paused AND NOT x.expired OFFSET 0) a";

/// An action with no more commands than this is listed by sorting them all.
const SMALL: i64 = 2_000;

/// Whether commands that are there already are passed over, or make the insert fail, which is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duplicates {
    Fail,
    PassOver,
}

pub(super) async fn insert(
    conn: &mut AsyncPgConnection,
    pages: &[CommandPage],
    lane: &str,
    duplicates: Duplicates,
) -> QueryResult<Vec<Inserted>> {
    let mut inserted = vec![Inserted::StalePage; pages.len()];
    // Pages of different actions are moved on in one statement, those of one action one after the other.
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

fn insert_rows(rows: Vec<(i64, i64, Option<Timestamp>)>, then: &str) -> super::sql::Sql {
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

/// Moves actions on over these pages, at most one of each; answers which of them moved.
async fn move_on(conn: &mut AsyncPgConnection, pages: impl Iterator<Item = &CommandPage>) -> QueryResult<Vec<i64>> {
    let (mut nos, mut afters, mut throughs, mut lasts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for page in pages {
        nos.push(page.action_no);
        afters.push(page.after);
        throughs.push(page.through);
        lasts.push(page.last);
    }
    // Whoever moved an action on (another page, a cancel, a restart) makes its page a thing of the past.
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
    let row = sql(
        "SELECT agent_no AS key FROM commands WHERE action_no = ? AND agent_no > ? ORDER BY agent_no LIMIT 1 OFFSET ?",
    )
    .bind(no)
    .bind(after)
    .bind(sql_limit(count.saturating_sub(1)))
    .get_result::<Key>(conn)
    .await
    .optional()?;
    Ok(row.map(|row| row.key))
}

pub(super) async fn untouched(
    conn: &mut AsyncPgConnection,
    action_no: i64,
    after: i64,
    limit: usize,
) -> QueryResult<UndispatchedPage> {
    let rows: Vec<UntouchedRow> = sql(format!(
        "SELECT c.agent_no, g.transport, coalesce(c.due_at, a.valid_from) AS due_at, {UNTOUCHED} AS untouched \
         FROM (SELECT * FROM commands WHERE action_no = ? AND agent_no > ? ORDER BY agent_no LIMIT ?) c \
         CROSS JOIN LATERAL (SELECT valid_from FROM actions x WHERE x.no = c.action_no OFFSET 0) a \
         CROSS JOIN LATERAL (SELECT transport FROM agents x WHERE x.no = c.agent_no OFFSET 0) g ORDER BY c.agent_no"
    ))
    .bind(action_no)
    .bind(after)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    let through = rows.last().map(|row| row.agent_no);
    let mut transports = Transports::default();
    let commands = rows
        .into_iter()
        .filter(|row| row.untouched)
        .map(|row| (row.agent_no, transports.share(row.transport), Timestamp(row.due_at)))
        .collect();
    Ok(UndispatchedPage { commands, through })
}

pub(super) async fn backlog(
    conn: &mut AsyncPgConnection,
    agent_no: i64,
    horizon: Timestamp,
    now: Timestamp,
    limit: usize,
) -> QueryResult<Vec<Due>> {
    // Bound once, and named; `now` is also what the order needs.
    let alive = "x.ended_at IS NULL AND NOT x.cancelled AND NOT x.paused AND NOT x.expired AND x.expires_at > v.now";
    let rows: Vec<DueRow> = sql(format!(
        "WITH v AS MATERIALIZED (SELECT ?::bigint AS agent, ?::bigint AS horizon, ?::bigint AS now) \
         SELECT d.* FROM (SELECT p.action_no, p.agent_no, p.run, p.attempts, p.due_at, a.priority, TRUE AS open, \
         '' AS transport FROM v CROSS JOIN LATERAL (SELECT * FROM open_commands x WHERE x.agent_no = v.agent \
         AND x.state IN ({waiting}, {retry}) AND x.due_at <= v.horizon OFFSET 0) p \
         CROSS JOIN LATERAL (SELECT priority FROM actions x WHERE x.no = p.action_no AND {alive} OFFSET 0) a \
         UNION ALL \
         SELECT c.action_no, c.agent_no, 1, 0, coalesce(c.due_at, a.valid_from), a.priority, FALSE, '' \
         FROM v CROSS JOIN LATERAL (SELECT no, valid_from, priority FROM actions x \
         WHERE x.dispatched_through < v.agent AND x.resolved_through >= v.agent AND {alive} OFFSET 0) a \
         CROSS JOIN LATERAL (SELECT * FROM commands x WHERE x.action_no = a.no AND x.agent_no = v.agent OFFSET 0) c \
         WHERE coalesce(c.due_at, a.valid_from) <= v.horizon AND {UNTOUCHED}) d CROSS JOIN v \
         ORDER BY (d.due_at > v.now), d.priority DESC, d.due_at, d.action_no LIMIT ?",
        waiting = OpenState::Waiting as i16,
        retry = OpenState::Retry as i16,
    ))
    .bind(agent_no)
    .bind(horizon.0)
    .bind(now.0)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    Ok(rows.iter().map(DueRow::due).collect())
}

/// The node that is to send to an agent `g` of a transport that isn't a stream, commands of an action `a`: its owner, or the
/// first of those that have a sender.
const WHO_SENDS: &str = "(SELECT n.incarnation FROM nodes n WHERE n.transports @> to_jsonb(g.transport) \
     ORDER BY n.incarnation IS DISTINCT FROM a.owner, n.incarnation LIMIT 1)";

pub(super) async fn with_due(conn: &mut AsyncPgConnection, agent_nos: &[i64], now: Timestamp) -> QueryResult<Vec<i64>> {
    let rows: Vec<Key> = sql(format!(
        "SELECT j.no AS key FROM UNNEST(?) j (no) WHERE EXISTS (SELECT 1 FROM (SELECT action_no FROM open_commands x \
         WHERE x.agent_no = j.no AND x.due_at <= ? AND x.state IN ({}, {}) OFFSET 0) p {GOING_OF_P})",
        OpenState::Waiting as i16,
        OpenState::Retry as i16
    ))
    .bind(agent_nos.to_vec())
    .bind(now.0)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

pub(super) async fn unserved(
    conn: &mut AsyncPgConnection,
    now: Timestamp,
    limit: usize,
) -> QueryResult<Vec<(String, i64)>> {
    let rows: Vec<Named> = sql(format!(
        "SELECT transport AS name, count(*) AS number FROM (SELECT g.transport FROM agents g \
         CROSS JOIN LATERAL (SELECT action_no FROM open_commands x WHERE x.agent_no = g.no AND x.due_at <= ? \
         AND x.state IN ({}, {}) OFFSET 0) p {GOING_OF_P} WHERE g.transport <> 'stream' AND g.removed_at IS NULL \
         AND NOT EXISTS (SELECT 1 FROM nodes n WHERE n.transports @> to_jsonb(g.transport)) LIMIT ?) s \
         GROUP BY transport ORDER BY transport",
        OpenState::Waiting as i16,
        OpenState::Retry as i16
    ))
    .bind(now.0)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.name, row.number)).collect())
}

pub(super) async fn due(
    conn: &mut AsyncPgConnection,
    (after, after_action, after_agent): DueCursor,
    horizon: Timestamp,
    here: &str,
    limit: usize,
) -> QueryResult<Vec<(Due, Arc<str>)>> {
    // Each state in the order of its index, and of both together the first.
    let one = |state: OpenState| {
        format!(
            "(SELECT p.action_no, p.agent_no, p.run, p.attempts, p.due_at, a.priority, TRUE AS open, g.transport \
             FROM open_commands p {GOING_OF_P} \
             CROSS JOIN LATERAL (SELECT no, transport FROM agents x WHERE x.no = p.agent_no AND NOT x.disabled \
             OFFSET 0) g \
             WHERE p.state = {} AND (p.due_at, p.action_no, p.agent_no) > (?, ?, ?) AND p.due_at <= ? \
             AND ((g.transport <> 'stream' AND {WHO_SENDS} = ?) OR EXISTS \
             (SELECT 1 FROM (SELECT incarnation FROM agent_sessions x WHERE x.agent_no = g.no OFFSET 0) s \
             WHERE s.incarnation = ?)) \
             ORDER BY p.due_at, p.action_no, p.agent_no LIMIT ?)",
            state as i16
        )
    };
    let mut query = sql(format!(
        "{} UNION ALL {} ORDER BY due_at, action_no, agent_no LIMIT ?",
        one(OpenState::Waiting),
        one(OpenState::Retry)
    ));
    for _ in [OpenState::Waiting, OpenState::Retry] {
        query = query
            .bind(after.0)
            .bind(after_action)
            .bind(after_agent)
            .bind(horizon.0)
            .bind(here)
            .bind(here)
            .bind(sql_limit(limit));
    }
    let rows: Vec<DueRow> = query.bind(sql_limit(limit)).load(conn).await?;
    let mut transports = Transports::default();
    Ok(rows.into_iter().map(|row| (row.due(), transports.share(row.transport))).collect())
}

pub(super) async fn overdue(
    conn: &mut AsyncPgConnection,
    now: Timestamp,
    limit: usize,
) -> QueryResult<Vec<(i64, i64)>> {
    let rows: Vec<CommandKey> = sql(format!(
        "SELECT action_no, agent_no FROM open_commands WHERE state = {} AND due_at <= ? ORDER BY due_at LIMIT ?",
        OpenState::Sent as i16
    ))
    .bind(now.0)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.action_no, row.agent_no)).collect())
}

pub(super) async fn unfinished(
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

pub(super) async fn unfinished_of(conn: &mut AsyncPgConnection, agent_no: i64, limit: usize) -> QueryResult<Vec<i64>> {
    let rows: Vec<Key> = sql(format!(
        "WITH v AS MATERIALIZED (SELECT ?::bigint AS agent) \
         SELECT p.action_no AS key FROM v CROSS JOIN LATERAL \
         (SELECT action_no FROM open_commands x WHERE x.agent_no = v.agent OFFSET 0) p \
         UNION SELECT c.action_no FROM v CROSS JOIN LATERAL (SELECT no FROM actions x WHERE x.ended_at IS NULL \
         AND x.dispatched_through < v.agent AND x.resolved_through >= v.agent OFFSET 0) a \
         CROSS JOIN LATERAL (SELECT * FROM commands x WHERE x.action_no = a.no AND x.agent_no = v.agent OFFSET 0) c \
         WHERE {UNTOUCHED} ORDER BY 1 LIMIT ?"
    ))
    .bind(agent_no)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

pub(super) async fn list(
    conn: &mut AsyncPgConnection,
    action: Uuid,
    state: Option<CommandState>,
    after: Option<&str>,
    limit: usize,
) -> QueryResult<Vec<CommandView>> {
    // A large action is read by its agents' names, in their order; a small one among a large fleet by its commands.
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
    // Per command: its last ended run `o`; its open row `p`, unless it is final; and whether the run that it is in, or
    // ended with, was `handed` over. The state is derived as `Known::state` does.
    let rows: Vec<CommandViewRow> = sql(format!(
        "WITH page AS (SELECT g.name AS agent, o.is_final, o.run AS last_run, o.attempts AS last_attempts, \
           o.sent_at AS last_sent_at, o.finished_at, o.results, o.error, p.run AS open_run, \
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
         WHERE a.id = ? AND g.name > ?) \
         SELECT agent, status::smallint AS status, \
           handed + coalesce(CASE WHEN is_final THEN last_attempts ELSE open_attempts END, 0) AS attempts, \
           handed + coalesce(CASE WHEN is_final THEN last_run ELSE open_run END, 1) - 1 AS runs, due_at, \
           CASE WHEN is_final THEN last_sent_at ELSE open_sent_at END AS sent_at, \
           CASE WHEN is_final THEN finished_at END AS finished_at, results, error \
         FROM page WHERE status = coalesce(?, status) ORDER BY agent LIMIT ?",
        sent = OpenState::Sent as i16,
        state_sent = CommandState::Sent as i16,
        state_pending = CommandState::Pending as i16,
        succeeded = CommandState::Succeeded as i16,
        failed = CommandState::Failed as i16,
        timed_out = CommandState::TimedOut as i16,
    ))
    .bind(action.to_string())
    .bind(after.unwrap_or_default())
    .bind(state.map(|state| state as i16))
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    rows.into_iter().map(CommandViewRow::view).collect()
}
