//! Values of metadata on PostgreSQL alone.

use crate::store::postgres::Scratch;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Text};
use diesel_async::RunQueryDsl;
use std::error::Error;
use std::time::{Duration, Instant};

const GUARD: &str = "m.collected_at <= n.collected_at";

#[derive(diesel::QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    n: i64,
}

/// Has the database note each transaction that writes to a table.
pub(in crate::cli::bench) async fn count_writers(scratch: &Scratch, table: &str) -> Result<(), Box<dyn Error>> {
    let mut conn = scratch.connect().await?;
    let trigger = format!(
        "CREATE TABLE IF NOT EXISTS writers (xid XID8 PRIMARY KEY); \
         CREATE OR REPLACE FUNCTION note_writer() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO writers VALUES (pg_current_xact_id()) ON CONFLICT DO NOTHING; RETURN NULL; END $$; \
         CREATE TRIGGER note_writer AFTER INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION note_writer()"
    );
    Ok(scratch.execute(&mut conn, &trigger).await?)
}

/// The transactions that have written so far.
pub(in crate::cli::bench) async fn writers(scratch: &Scratch) -> Result<i64, Box<dyn Error>> {
    let mut conn = scratch.connect().await?;
    Ok(sql_query("SELECT count(*) AS n FROM writers").get_result::<Number>(&mut conn).await?.n)
}

/// Makes a table with a row for each key of each agent.
pub(in crate::cli::bench) async fn prepare(scratch: &Scratch, agents: u32, keys: u32) -> Result<(), Box<dyn Error>> {
    let mut conn = scratch.connect().await?;
    let table = format!(
        "CREATE TABLE bare_metadata (agent_no BIGINT NOT NULL, key TEXT COLLATE \"C\" NOT NULL, value TEXT, error TEXT, \
         collected_at BIGINT NOT NULL, clamped BOOLEAN NOT NULL DEFAULT FALSE, written_at BIGINT NOT NULL DEFAULT 0, \
         PRIMARY KEY (agent_no, key)) WITH (fillfactor = 50); \
         INSERT INTO bare_metadata (agent_no, key, value, collected_at) SELECT a, 'key-' || lpad(k::text, 2, '0'), '0', 0 \
         FROM generate_series(1, {agents}) a, generate_series(0, {keys} - 1) k ORDER BY 1, 2"
    );
    Ok(scratch.execute(&mut conn, &table).await?)
}

/// Time to change every value, in transactions of `batch` rows over one connection.
pub(in crate::cli::bench) async fn update(
    scratch: &Scratch,
    agents: u32,
    keys: u32,
    batch: usize,
    value: i64,
) -> Result<Duration, Box<dyn Error>> {
    let mut conn = scratch.connect().await?;
    let rows: Vec<(i64, String)> =
        (1..=i64::from(agents)).flat_map(|agent| (0..keys).map(move |key| (agent, format!("key-{key:02}")))).collect();
    let started = Instant::now();
    for chunk in rows.chunks(batch) {
        let (nos, names): (Vec<i64>, Vec<&str>) = chunk.iter().map(|(agent, key)| (*agent, key.as_str())).unzip();
        sql_query(format!(
            "UPDATE bare_metadata m SET value = n.value, error = NULL, collected_at = n.collected_at, written_at = 1 \
             FROM UNNEST($1, $2, $3, $4) AS n (agent_no, key, value, collected_at) \
             WHERE m.agent_no = n.agent_no AND m.key = n.key AND {GUARD}"
        ))
        .bind::<Array<BigInt>, _>(&nos)
        .bind::<Array<Text>, _>(&names)
        .bind::<Array<Text>, _>(vec![value.to_string(); chunk.len()])
        .bind::<Array<BigInt>, _>(vec![value; chunk.len()])
        .execute(&mut conn)
        .await?;
    }
    Ok(started.elapsed())
}

/// Writes each value of a fleet in a transaction of its own, as it is reported. Returns the number of transactions.
pub(in crate::cli::bench) async fn one_by_one(
    scratch: &Scratch,
    agents: u32,
    keys: u32,
    interval: Duration,
    time: Duration,
) -> Result<i64, Box<dyn Error>> {
    let mut conn = scratch.connect().await?;
    let table = "CREATE TABLE single_metadata (agent_no BIGINT NOT NULL, key TEXT NOT NULL, value TEXT, \
                 collected_at BIGINT NOT NULL, PRIMARY KEY (agent_no, key))";
    scratch.execute(&mut conn, table).await?;
    count_writers(scratch, "single_metadata").await?;
    let before = writers(scratch).await?;
    let (begin, gap) = (Instant::now(), interval / (agents * keys).max(1));
    let mut number: u32 = 0;
    while begin.elapsed() < time {
        let (agent, key) = ((number / keys) % agents, number % keys);
        sql_query(
            "INSERT INTO single_metadata AS m VALUES ($1, $2, $3, $4) ON CONFLICT (agent_no, key) DO UPDATE SET \
             value = excluded.value, collected_at = excluded.collected_at WHERE m.collected_at <= excluded.collected_at",
        )
        .bind::<BigInt, _>(i64::from(agent))
        .bind::<Text, _>(format!("key-{key:02}"))
        .bind::<Text, _>(number.to_string())
        .bind::<BigInt, _>(i64::from(number))
        .execute(&mut conn)
        .await?;
        number += 1;
        tokio::time::sleep_until((begin + gap * number).into()).await;
    }
    Ok(writers(scratch).await? - before)
}
