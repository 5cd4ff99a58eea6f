//! SQLite alone.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Text;
use std::path::Path;
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Time to insert `count` commands, and with `life` as many outcomes, in transactions of `batch`
/// rows.
pub(in crate::cli::bench) fn round(database: &Path, count: u32, batch: usize, life: bool) -> Result<Duration, Failure> {
    let mut conn = SqliteConnection::establish(&database.display().to_string())?;
    conn.batch_execute(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4096; \
         PRAGMA cache_size = -32768; \
         CREATE TABLE commands (action_no BIGINT NOT NULL, agent_no BIGINT NOT NULL, due_at BIGINT, \
         PRIMARY KEY (action_no, agent_no)) WITHOUT ROWID; \
         CREATE TABLE outcomes (action_no BIGINT NOT NULL, agent_no BIGINT NOT NULL, run INTEGER NOT NULL, \
         status SMALLINT NOT NULL, is_final BOOLEAN NOT NULL, attempts INTEGER NOT NULL, sent_at BIGINT, \
         started_at BIGINT, finished_at BIGINT NOT NULL, results TEXT, error TEXT, \
         PRIMARY KEY (action_no, agent_no, run)) WITHOUT ROWID;",
    )?;
    let agents: Vec<u32> = (1..=count).collect();
    let result = "x".repeat(120);
    let started = Instant::now();
    for chunk in agents.chunks(batch) {
        insert(
            &mut conn,
            "INSERT INTO commands SELECT 1, value, NULL FROM json_each(?)",
            &serde_json::to_string(chunk)?,
        )?;
    }
    if life {
        for chunk in agents.chunks(batch) {
            let rows: Vec<_> = chunk.iter().map(|agent| (agent, &result)).collect();
            let insert_outcomes = "INSERT INTO outcomes SELECT 1, value ->> 0, 1, 2, 1, 0, 1, 1, 1, value ->> 1, NULL \
                                   FROM json_each(?)";
            insert(&mut conn, insert_outcomes, &serde_json::to_string(&rows)?)?;
        }
    }
    Ok(started.elapsed())
}

fn insert(conn: &mut SqliteConnection, statement: &str, rows: &str) -> QueryResult<()> {
    conn.immediate_transaction(|conn| sql_query(statement).bind::<Text, _>(rows).execute(conn).map(|_| ()))
}

/// Time for two transactions of one row each, `samples` times, with a pause between.
#[allow(clippy::disallowed_methods, reason = "it has a thread of its own")]
pub(in crate::cli::bench) fn pairs(database: &Path, samples: u32, pause: Duration) -> Result<Vec<Duration>, Failure> {
    let mut conn = SqliteConnection::establish(&database.display().to_string())?;
    conn.batch_execute(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4096; \
         CREATE TABLE pairs (no INTEGER PRIMARY KEY, body TEXT NOT NULL);",
    )?;
    let mut times = Vec::new();
    for _ in 0..samples {
        std::thread::sleep(pause);
        let started = Instant::now();
        for _ in 0..2 {
            insert(&mut conn, "INSERT INTO pairs (body) VALUES (?)", "one row")?;
        }
        times.push(started.elapsed());
    }
    Ok(times)
}
