//! What happened to commands: outcomes, open rows, late results, and the counters, in one
//! transaction per batch.

use super::store::{SqliteStore, json};
use crate::domain::command::{Answer, Known, Outcome};
use crate::domain::time::Timestamp;
use crate::store::changes::{Changes, Key, Reading};
use crate::store::sql::dispatch::CommandKey;
use crate::store::sql::outcomes::KnownRow;
use crate::store::{Outcomes, Report, Store, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_query;
use diesel::sql_types::Text;
use std::collections::HashMap;

#[async_trait]
impl Outcomes for SqliteStore {
    async fn outcome_record(&self, reports: &[Report]) -> StoreResult<Vec<Answer>> {
        let (reports, lane, now) = (reports.to_vec(), self.incarnation.clone(), self.now());
        self.write("outcome_record", move |conn| record(conn, &reports, &lane, now)).await
    }
}

fn record(conn: &mut SqliteConnection, reports: &[Report], lane: &str, now: Timestamp) -> QueryResult<Vec<Answer>> {
    let mut reading = Reading::of(reports);
    let wrong = touched(conn, &reading, false)?;
    reading.read_too(wrong);
    let mut changes = changes(conn, reports, &reading, now)?;
    // In a savepoint, unless all were read: what was inserted before a row that is there already must go again.
    let inserted = match reading.skipped.is_empty() {
        true => insert_outcomes(conn, &changes),
        false => conn.transaction(|conn| insert_outcomes(conn, &changes)),
    };
    match inserted {
        Ok(()) => {}
        Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) if !reading.skipped.is_empty() => {
            let wrong = touched(conn, &reading, true)?;
            reading.read_too(wrong);
            changes = self::changes(conn, reports, &reading, now)?;
            insert_outcomes(conn, &changes)?;
        }
        Err(error) => return Err(error),
    }
    write_open(conn, &changes)?;
    insert_late(conn, &changes)?;
    super::counts::count(conn, changes.deltas, lane)?;
    Ok(changes.answers)
}

fn changes(conn: &mut SqliteConnection, reports: &[Report], reading: &Reading, now: Timestamp) -> QueryResult<Changes> {
    Ok(Changes::of(reports, reading.known(load(conn, reading)?), now))
}

/// The commands that should be untouched and don't exist or have an open row. The outcome's key does not guard against
/// these, and a reporter may be wrong about them (an agent's session may take a command while the
/// owner records that its agent is away). After a duplicate key, those with an outcome as well.
fn touched(conn: &mut SqliteConnection, reading: &Reading, is_duplicate_key: bool) -> QueryResult<Vec<Key>> {
    if reading.skipped.is_empty() {
        return Ok(Vec::new());
    }
    let or_outcome = if is_duplicate_key {
        " OR EXISTS (SELECT 1 FROM outcomes o WHERE o.action_no = j.value ->> 0 AND o.agent_no = j.value ->> 1)"
    } else {
        ""
    };
    let touched = sql_query(format!(
        "SELECT j.value ->> 0 AS action_no, j.value ->> 1 AS agent_no FROM json_each(?) j WHERE NOT EXISTS (SELECT 1 \
         FROM commands c WHERE c.action_no = j.value ->> 0 AND c.agent_no = j.value ->> 1) OR EXISTS (SELECT 1 \
         FROM open_commands p WHERE p.action_no = j.value ->> 0 AND p.agent_no = j.value ->> 1){or_outcome}"
    ))
    .bind::<Text, _>(json(&reading.skipped)?)
    .load::<CommandKey>(conn)?;
    Ok(touched.into_iter().map(|row| (row.action_no, row.agent_no)).collect())
}

/// Row by row through one prepared statement: SQLite would parse a row of a JSON array again for
/// each of its eleven columns, results and all, and a batch takes longer that way.
fn insert_outcomes(conn: &mut SqliteConnection, changes: &Changes) -> QueryResult<()> {
    use crate::store::sql::schema::outcomes as o;
    for ((action_no, agent_no), Outcome { end, is_final }) in &changes.outcomes {
        diesel::insert_into(o::table)
            .values((
                o::action_no.eq(action_no),
                o::agent_no.eq(agent_no),
                o::run.eq(end.run),
                o::status.eq(end.status as i16),
                o::is_final.eq(is_final),
                o::attempts.eq(end.attempts),
                o::sent_at.eq(end.sent_at.map(|time| time.0)),
                o::started_at.eq(end.started_at.map(|time| time.0)),
                o::finished_at.eq(end.finished_at.0),
                o::results.eq(end.results.as_deref()),
                o::error.eq(end.error.as_deref()),
            ))
            .execute(conn)?;
    }
    Ok(())
}

fn write_open(conn: &mut SqliteConnection, changes: &Changes) -> QueryResult<()> {
    let gone: Vec<&Key> = changes.open.iter().filter(|(_, open)| open.is_none()).map(|(key, _)| key).collect();
    if !gone.is_empty() {
        sql_query(
            "DELETE FROM open_commands WHERE (action_no, agent_no) IN \
             (SELECT value ->> 0, value ->> 1 FROM json_each(?))",
        )
        .bind::<Text, _>(json(&gone)?)
        .execute(conn)?;
    }
    let put: Vec<_> = changes
        .open
        .iter()
        .filter_map(|((action_no, agent_no), open)| {
            let open = open.as_ref()?;
            let (state, sent_at) = (open.state as i16, open.sent_at.map(|time| time.0));
            let error = open.error.as_deref();
            Some((action_no, agent_no, state, open.run, open.attempts, open.due_at.0, sent_at, error))
        })
        .collect();
    if !put.is_empty() {
        sql_query(
            "INSERT INTO open_commands (action_no, agent_no, state, run, attempts, due_at, sent_at, error) \
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7 \
             FROM json_each(?) WHERE TRUE ON CONFLICT (action_no, agent_no) DO UPDATE SET state = excluded.state, \
             run = excluded.run, attempts = excluded.attempts, due_at = excluded.due_at, sent_at = excluded.sent_at, \
             error = excluded.error",
        )
        .bind::<Text, _>(json(&put)?)
        .execute(conn)?;
    }
    Ok(())
}

fn insert_late(conn: &mut SqliteConnection, changes: &Changes) -> QueryResult<()> {
    if changes.late.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = changes
        .late
        .iter()
        .map(|((action_no, agent_no), end)| {
            (action_no, agent_no, end.run, end.status as i16, end.finished_at.0, &end.results, &end.error)
        })
        .collect();
    // A result that comes again is not another one, and the one that decided the run isn't late.
    sql_query(
        "INSERT INTO late_results (action_no, agent_no, run, status, finished_at, results, error) \
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6 \
         FROM json_each(?) WHERE NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.action_no = value ->> 0 \
         AND o.agent_no = value ->> 1 AND o.run = value ->> 2 AND o.results IS NOT NULL) ON CONFLICT DO NOTHING",
    )
    .bind::<Text, _>(json(&rows)?)
    .execute(conn)?;
    Ok(())
}

/// Reads what is stored of the commands that the reports are about.
fn load(conn: &mut SqliteConnection, reading: &Reading) -> QueryResult<HashMap<Key, Known>> {
    if reading.read.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sql_query(
        "SELECT c.action_no, c.agent_no, a.cancelled, o.run AS last_run, o.status AS last_status, o.is_final AS last_final, \
         p.state AS open_state, p.run AS open_run, p.attempts AS open_attempts, p.due_at AS open_due_at, \
         p.sent_at AS open_sent_at, p.error AS open_error \
         FROM json_each(?) j CROSS JOIN commands c ON c.action_no = j.value ->> 0 AND c.agent_no = j.value ->> 1 \
         CROSS JOIN actions a ON a.no = c.action_no \
         LEFT JOIN outcomes o ON o.action_no = c.action_no AND o.agent_no = c.agent_no AND o.run = \
           (SELECT max(run) FROM outcomes x WHERE x.action_no = c.action_no AND x.agent_no = c.agent_no) \
         LEFT JOIN open_commands p ON p.action_no = c.action_no AND p.agent_no = c.agent_no",
    )
    .bind::<Text, _>(json(&reading.read)?)
    .load::<KnownRow>(conn)?;
    rows.into_iter().map(|row| Ok(((row.action_no, row.agent_no), row.known()?))).collect()
}

#[cfg(test)]
mod tests {
    use crate::domain::action::{NewAction, Policy};
    use crate::domain::command::{Answer, CommandState, Event, RunEnd};
    use crate::domain::time::Timestamp;
    use crate::store::sqlite::SqliteStore;
    use crate::store::{CommandPage, NewAgent, Report, Store};
    use std::time::Duration;
    use uuid::Uuid;

    /// A `waiting` row may be on its way while the agent connects and reads its backlog without
    /// that row.
    #[tokio::test]
    async fn a_fresh_result_clears_an_open_row_that_its_reporter_did_not_know() {
        let folder = tempfile::tempdir().expect("a folder");
        let store: &dyn Store = &SqliteStore::open(&folder.path().join("odoshi.db"), 1).await.expect("a store");
        let enrollment = crate::domain::agent::Enrollment::from_json(br#"{"name":"a"}"#).expect("valid");
        let agent = NewAgent { enrollment, transport: "stream".into(), address: None, secret: None };
        store.agent_insert(vec![agent]).await.expect("an agent");
        let document = br#"{"name":"n","target":"TRUE","operations":[{"module":"ping"}]}"#;
        let action = NewAction::from_json(document, Uuid::nil(), store.now()).expect("valid");
        store.action_insert(vec![action]).await.expect("an action");
        let page = CommandPage { action_no: 1, after: 0, through: 1, commands: vec![(1, None)], last: true };
        store.command_insert(vec![page]).await.expect("a command");

        let policy = Policy { timeout: Duration::from_secs(60), max_runs: 1, max_deliveries: None };
        let report = |event, fresh| Report { action_no: 1, agent_no: 1, policy, event, skip_lookup: fresh };
        let sent = Event::Sent { run: 1, attempts: 0, at: store.now() };
        store.outcome_record(&[report(sent, false)]).await.expect("an open row");
        let end = RunEnd {
            run: 1,
            status: CommandState::Succeeded,
            attempts: 0,
            sent_at: None,
            started_at: None,
            finished_at: Timestamp(1),
            results: Some("[]".into()),
            error: None,
        };
        let answers = store.outcome_record(&[report(Event::Result(Box::new(end)), true)]).await.expect("an outcome");
        assert_eq!(answers, [Answer::Stored]);
        assert_eq!(store.command_overdue(Timestamp(i64::MAX), 10).await.expect("a list"), []);
        let counts = store.action_view(Uuid::nil()).await.expect("a view").expect("an action").counts;
        assert_eq!((counts.pending, counts.sent, counts.succeeded), (0, 0, 1));
    }
}
