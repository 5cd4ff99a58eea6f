//! PostgreSQL alone.

use crate::store::postgres::Scratch;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Text};
use diesel_async::RunQueryDsl;
use std::time::{Duration, Instant};

/// Time to insert `count` commands, and with `life` as many outcomes, in transactions of `batch`
/// rows over one connection.
pub(in crate::cli::bench) async fn round(
    scratch: &Scratch,
    count: u32,
    batch: usize,
    life: bool,
) -> Result<Duration, Box<dyn std::error::Error>> {
    let mut conn = scratch.connect().await?;
    let tables = "DROP TABLE IF EXISTS bare_commands, bare_outcomes; \
         CREATE TABLE bare_commands (action_no BIGINT NOT NULL, agent_no BIGINT NOT NULL, due_at BIGINT, \
         PRIMARY KEY (action_no, agent_no)); \
         CREATE TABLE bare_outcomes (action_no BIGINT NOT NULL, agent_no BIGINT NOT NULL, run INTEGER NOT NULL, \
         status SMALLINT NOT NULL, is_final BOOLEAN NOT NULL, attempts INTEGER NOT NULL, sent_at BIGINT, \
         started_at BIGINT, finished_at BIGINT NOT NULL, results TEXT, error TEXT, \
         PRIMARY KEY (action_no, agent_no, run))";
    scratch.execute(&mut conn, tables).await?;
    let agents: Vec<i64> = (1..=i64::from(count)).collect();
    let result = "x".repeat(120);
    let started = Instant::now();
    for chunk in agents.chunks(batch) {
        sql_query("INSERT INTO bare_commands (action_no, agent_no) SELECT 1, * FROM UNNEST($1)")
            .bind::<Array<BigInt>, _>(chunk)
            .execute(&mut conn)
            .await?;
    }
    if life {
        for chunk in agents.chunks(batch) {
            sql_query(
                "INSERT INTO bare_outcomes SELECT 1, a, 1, 2, TRUE, 0, 1, 1, 1, r FROM UNNEST($1, $2) AS o (a, r)",
            )
            .bind::<Array<BigInt>, _>(chunk)
            .bind::<Array<Text>, _>(vec![&result; chunk.len()])
            .execute(&mut conn)
            .await?;
        }
    }
    Ok(started.elapsed())
}

/// Time for two transactions of one row each, `samples` times, with a pause between.
pub(in crate::cli::bench) async fn pairs(
    scratch: &Scratch,
    samples: u32,
    pause: Duration,
) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let mut conn = scratch.connect().await?;
    let table =
        "CREATE TABLE IF NOT EXISTS pairs (no BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body TEXT NOT NULL)";
    scratch.execute(&mut conn, table).await?;
    let mut times = Vec::new();
    for _ in 0..samples {
        tokio::time::sleep(pause).await;
        let started = Instant::now();
        for _ in 0..2 {
            sql_query("INSERT INTO pairs (body) VALUES ($1)").bind::<Text, _>("one row").execute(&mut conn).await?;
        }
        times.push(started.elapsed());
    }
    Ok(times)
}
