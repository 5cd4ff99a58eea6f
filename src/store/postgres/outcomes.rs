//! What happened to commands: outcomes, open rows, late results, and the counters, in one
//! transaction per batch.
//!
//! The decision about a command depends on what is stored of it, which must not change meanwhile.
//! An advisory lock per action ensures that. It is taken exclusively where commands are read first. Where all reports
//! are *fresh*, each of which ends a command that has neither outcome nor open row, it is shared: the outcome's key alone
//! guards those. If reporters are wrong about some commands, the batch is done again, and those are read.

use super::counts::count;
use super::error::is_duplicate;
use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::command::{Answer, Known, Outcome};
use crate::domain::time::Timestamp;
use crate::store::changes::{Changes, Key, Reading};
use crate::store::sql::dispatch::CommandKey;
use crate::store::sql::outcomes::KnownRow;
use crate::store::sql::sql;
use crate::store::{Outcomes, Report, Store, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// So often is a batch tried whose reporters turn out to be wrong. Then all of its commands are read.
const TRIES: usize = 3;

#[async_trait]
impl Outcomes for PostgresStore {
    async fn outcome_record(&self, reports: &[Report]) -> StoreResult<Vec<Answer>> {
        let (reports, lane, now) = (Arc::new(reports.to_vec()), self.inner.lane("outcomes"), self.now());
        let (mut reading, mut is_duplicate_key) = (Arc::new(Reading::of(&reports)), false);
        for tried in 0.. {
            if tried == TRIES {
                Arc::make_mut(&mut reading).read_all();
            }
            let record =
                body!([reports, reading, lane] conn => record(conn, &reports, &reading, is_duplicate_key, &lane, now));
            match self.write(Caller::Pipeline, "outcome_record", record).await {
                Ok(Recorded::Answers(answers)) => return Ok(answers),
                Ok(Recorded::Touched(keys)) => Arc::make_mut(&mut reading).read_too(keys),
                Err(error) if is_duplicate(&error) && tried < TRIES => is_duplicate_key = true,
                Err(error) => return Err(error),
            }
        }
        Ok(Vec::new())
    }
}

/// What became of a batch.
enum Recorded {
    /// It is recorded.
    Answers(Vec<Answer>),
    /// Nothing is recorded: of these commands something is stored, or they don't exist.
    Touched(Vec<Key>),
}

/// Records the reports, if nothing is stored of the commands that aren't read.
async fn record(
    conn: &mut AsyncPgConnection,
    reports: &[Report],
    reading: &Reading,
    is_duplicate_key: bool,
    lane: &str,
    now: Timestamp,
) -> QueryResult<Recorded> {
    lock(conn, reading).await?;
    let touched = touched(conn, reading, is_duplicate_key).await?;
    if !touched.is_empty() {
        return Ok(Recorded::Touched(touched));
    }
    let known = reading.known(load(conn, reading).await?);
    let mut changes = Changes::of(reports, known, now);
    insert_outcomes(conn, std::mem::take(&mut changes.outcomes)).await?;
    write_open(conn, &changes).await?;
    insert_late(conn, &changes).await?;
    count(conn, &changes.deltas, lane).await?;
    Ok(Recorded::Answers(changes.answers))
}

/// Advisory locks with two numbers don't collide with nodes' locks, which have one.
const LOCKS: i32 = 0x6f64;
/// Number of locks that all actions share. A batch may be about thousands of actions, and the
/// server has room for a few thousand locks in all. Actions that share a lock wait for each other
/// more often than they need to.
const SLOTS: i64 = 128;

/// Locks the actions of the reports, always in the same order, which excludes deadlocks: those of commands that are read
/// for this batch alone.
async fn lock(conn: &mut AsyncPgConnection, reading: &Reading) -> QueryResult<()> {
    let mut locks: BTreeMap<i32, bool> = BTreeMap::new();
    let slot = |(action_no, _): &Key| (action_no % SLOTS) as i32;
    locks.extend(reading.skipped.iter().map(|key| (slot(key), false)));
    locks.extend(reading.read.iter().map(|key| (slot(key), true)));
    let (slots, alone): (Vec<i32>, Vec<bool>) = locks.into_iter().unzip();
    sql("SELECT count(CASE WHEN l.alone THEN pg_advisory_xact_lock(?, l.slot) \
         ELSE pg_advisory_xact_lock_shared(?, l.slot) END) FROM (SELECT * FROM UNNEST(?, ?) AS l (slot, alone) ORDER BY 1) l")
    .bind(LOCKS)
    .bind(LOCKS)
    .bind(slots)
    .bind(alone)
    .execute(conn)
    .await
    .map(|_| ())
}

/// The commands that should be untouched and don't exist or have an open row. The outcome's key does not guard against
/// these, and a reporter may be wrong about them (an agent's session may take a command while the
/// owner records that its agent is away). After a duplicate key, those with an outcome as well.
async fn touched(conn: &mut AsyncPgConnection, reading: &Reading, is_duplicate_key: bool) -> QueryResult<Vec<Key>> {
    if reading.skipped.is_empty() {
        return Ok(Vec::new());
    }
    let (actions, agents): (Vec<i64>, Vec<i64>) = reading.skipped.iter().copied().unzip();
    let or_outcome = if is_duplicate_key {
        " OR EXISTS (SELECT 1 FROM outcomes o WHERE o.action_no = k.action_no AND o.agent_no = k.agent_no OFFSET 0)"
    } else {
        ""
    };
    let touched: Vec<CommandKey> = sql(format!(
        "SELECT k.action_no, k.agent_no FROM UNNEST(?, ?) AS k (action_no, agent_no) WHERE NOT EXISTS (SELECT 1 \
         FROM commands c WHERE c.action_no = k.action_no AND c.agent_no = k.agent_no OFFSET 0) OR EXISTS (SELECT 1 \
         FROM open_commands p WHERE p.action_no = k.action_no AND p.agent_no = k.agent_no OFFSET 0){or_outcome}"
    ))
    .bind(actions)
    .bind(agents)
    .load(conn)
    .await?;
    Ok(touched.into_iter().map(|row| (row.action_no, row.agent_no)).collect())
}

async fn insert_outcomes(conn: &mut AsyncPgConnection, mut outcomes: Vec<(Key, Outcome)>) -> QueryResult<()> {
    if outcomes.is_empty() {
        return Ok(());
    }
    // In the order of the primary key, which is faster, and in which nobody waits in a circle.
    outcomes.sort_by_key(|(key, outcome)| (*key, outcome.end.run));
    let column = |of: &dyn Fn(&(Key, Outcome)) -> i64| outcomes.iter().map(of).collect::<Vec<i64>>();
    let (actions, agents) = (column(&|row| row.0.0), column(&|row| row.0.1));
    let finished = column(&|row| row.1.end.finished_at.0);
    let times = |of: &dyn Fn(&Outcome) -> Option<Timestamp>| {
        outcomes.iter().map(|(_, outcome)| of(outcome).map(|time| time.0)).collect::<Vec<_>>()
    };
    let (sent, started) = (times(&|outcome| outcome.end.sent_at), times(&|outcome| outcome.end.started_at));
    let runs: Vec<i32> = outcomes.iter().map(|(_, outcome)| outcome.end.run).collect();
    let attempts: Vec<i32> = outcomes.iter().map(|(_, outcome)| outcome.end.attempts).collect();
    let states: Vec<i16> = outcomes.iter().map(|(_, outcome)| outcome.end.status as i16).collect();
    let finals: Vec<bool> = outcomes.iter().map(|(_, outcome)| outcome.is_final).collect();
    let (results, errors): (Vec<_>, Vec<_>) =
        outcomes.into_iter().map(|(_, outcome)| (outcome.end.results, outcome.end.error)).unzip();
    sql(
        "INSERT INTO outcomes (action_no, agent_no, run, status, is_final, attempts, sent_at, started_at, finished_at, \
         results, error) SELECT * FROM UNNEST(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(actions)
    .bind(agents)
    .bind(runs)
    .bind(states)
    .bind(finals)
    .bind(attempts)
    .bind(sent)
    .bind(started)
    .bind(finished)
    .bind(results)
    .bind(errors)
    .execute(conn)
    .await
    .map(|_| ())
}

async fn write_open(conn: &mut AsyncPgConnection, changes: &Changes) -> QueryResult<()> {
    let gone = changes.open.iter().filter(|(_, open)| open.is_none()).map(|(key, _)| *key);
    let (actions, agents): (Vec<i64>, Vec<i64>) = gone.unzip();
    if !actions.is_empty() {
        sql("DELETE FROM open_commands WHERE ctid = ANY(ARRAY(SELECT p.ctid FROM UNNEST(?, ?) AS k (action_no, agent_no) \
             CROSS JOIN LATERAL (SELECT x.ctid FROM open_commands x WHERE x.action_no = k.action_no \
             AND x.agent_no = k.agent_no OFFSET 0) p))")
        .bind(actions)
        .bind(agents)
        .execute(conn)
        .await?;
    }
    let put: Vec<_> = changes.open.iter().filter_map(|(key, open)| Some((*key, open.as_ref()?))).collect();
    if put.is_empty() {
        return Ok(());
    }
    let (actions, agents): (Vec<i64>, Vec<i64>) = put.iter().map(|(key, _)| *key).unzip();
    sql("INSERT INTO open_commands (action_no, agent_no, state, run, attempts, due_at, sent_at, error) \
         SELECT * FROM UNNEST(?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (action_no, agent_no) DO UPDATE SET \
         state = excluded.state, run = excluded.run, attempts = excluded.attempts, due_at = excluded.due_at, \
         sent_at = excluded.sent_at, error = excluded.error")
    .bind(actions)
    .bind(agents)
    .bind(put.iter().map(|(_, open)| open.state as i16).collect::<Vec<i16>>())
    .bind(put.iter().map(|(_, open)| open.run).collect::<Vec<i32>>())
    .bind(put.iter().map(|(_, open)| open.attempts).collect::<Vec<i32>>())
    .bind(put.iter().map(|(_, open)| open.due_at.0).collect::<Vec<i64>>())
    .bind(put.iter().map(|(_, open)| open.sent_at.map(|time| time.0)).collect::<Vec<Option<i64>>>())
    .bind(put.iter().map(|(_, open)| open.error.as_deref().map(str::to_owned)).collect::<Vec<_>>())
    .execute(conn)
    .await
    .map(|_| ())
}

async fn insert_late(conn: &mut AsyncPgConnection, changes: &Changes) -> QueryResult<()> {
    if changes.late.is_empty() {
        return Ok(());
    }
    let late = &changes.late;
    let (actions, agents): (Vec<i64>, Vec<i64>) = late.iter().map(|(key, _)| *key).unzip();
    // A result that comes again is not another one, and the one that decided the run isn't late.
    sql("INSERT INTO late_results (action_no, agent_no, run, status, finished_at, results, error) \
         SELECT * FROM UNNEST(?, ?, ?, ?, ?, ?, ?) AS l (action_no, agent_no, run, status, finished_at, results, error) \
         WHERE NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.action_no = l.action_no AND o.agent_no = l.agent_no \
         AND o.run = l.run AND o.results IS NOT NULL OFFSET 0) ON CONFLICT DO NOTHING")
    .bind(actions)
    .bind(agents)
    .bind(late.iter().map(|(_, end)| end.run).collect::<Vec<i32>>())
    .bind(late.iter().map(|(_, end)| end.status as i16).collect::<Vec<i16>>())
    .bind(late.iter().map(|(_, end)| end.finished_at.0).collect::<Vec<i64>>())
    .bind(late.iter().map(|(_, end)| end.results.clone()).collect::<Vec<_>>())
    .bind(late.iter().map(|(_, end)| end.error.clone()).collect::<Vec<_>>())
    .execute(conn)
    .await
    .map(|_| ())
}

/// Reads what is stored of commands.
async fn load(conn: &mut AsyncPgConnection, reading: &Reading) -> QueryResult<HashMap<Key, Known>> {
    if reading.read.is_empty() {
        return Ok(HashMap::new());
    }
    let (actions, agents): (Vec<i64>, Vec<i64>) = reading.read.iter().copied().unzip();
    let rows: Vec<KnownRow> =
        sql("SELECT c.action_no, c.agent_no, a.cancelled, o.run AS last_run, o.status AS last_status, o.is_final AS last_final, \
         p.state AS open_state, p.run AS open_run, p.attempts AS open_attempts, p.due_at AS open_due_at, \
         p.sent_at AS open_sent_at, p.error AS open_error FROM UNNEST(?, ?) AS k (action_no, agent_no) \
         CROSS JOIN LATERAL (SELECT * FROM commands x WHERE x.action_no = k.action_no AND x.agent_no = k.agent_no \
           OFFSET 0) c \
         CROSS JOIN LATERAL (SELECT x.cancelled FROM actions x WHERE x.no = c.action_no OFFSET 0) a \
         LEFT JOIN LATERAL (SELECT x.run, x.status, x.is_final FROM outcomes x WHERE x.action_no = c.action_no \
           AND x.agent_no = c.agent_no ORDER BY x.run DESC LIMIT 1) o ON TRUE \
         LEFT JOIN LATERAL (SELECT * FROM open_commands x WHERE x.action_no = k.action_no AND x.agent_no = k.agent_no \
           OFFSET 0) p ON TRUE")
        .bind(actions)
        .bind(agents)
        .load(conn)
        .await?;
    rows.into_iter().map(|row| Ok(((row.action_no, row.agent_no), row.known()?))).collect()
}
