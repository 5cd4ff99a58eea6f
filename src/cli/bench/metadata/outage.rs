//! What an outage of the database costs, beside a batcher as others write it: it drops when it is full, clears its batch
//! before it writes it, and doesn't try again.

use super::args::print;
use super::node;
use crate::store::postgres::Scratch;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Text};
use diesel_async::RunQueryDsl;
use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

const AGENTS: u32 = 600;
const KEYS: u32 = 15;
/// Each agent reports a new value this often.
const EVERY: Duration = Duration::from_secs(1);
const BEFORE: Duration = Duration::from_secs(5);
const OUTAGE: Duration = Duration::from_secs(10);
/// The agents stop while the database is away: nothing that they say later hides what was lost.
const REPORTS_FOR: Duration = Duration::from_secs(14);
/// Values that the other batcher has room for.
const ROOM: usize = 1_000;
/// How long it takes to write what is left, at most.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) async fn run(scratch: &Scratch, folder: &Path) -> Result<(), Box<dyn Error>> {
    let Some((line, url)) = Line::to(scratch.url().expose()).await? else {
        say!("an outage is not tried: the database is not reached over TCP");
        return Ok(());
    };
    let ours = ours(&line, &url, folder).await?;
    let theirs = theirs(scratch, &line, &url).await?;
    say!("the database is away for {} s; of {} newest values were lost:", OUTAGE.as_secs(), AGENTS * KEYS);
    let row =
        |name: &str, (lost, dropped): (usize, usize)| vec![name.to_owned(), lost.to_string(), dropped.to_string()];
    print(&["", "lost", "dropped when full"], vec![row("odoshi", (ours, 0)), row("drop, clear, write once", theirs)]);
    Ok(())
}

/// The connection to the database, which can be cut.
struct Line(watch::Sender<bool>);

impl Line {
    /// A line to the database of a URL, and the URL through it. `None` if it has no host and port to go through.
    async fn to(url: &str) -> Result<Option<(Self, String)>, Box<dyn Error>> {
        let Ok(mut parsed) = reqwest::Url::parse(url) else { return Ok(None) };
        let Some(host) = parsed.host_str().filter(|host| !host.starts_with('%')) else { return Ok(None) };
        let database = format!("{host}:{}", parsed.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let SocketAddr::V4(here) = listener.local_addr()? else { return Ok(None) };
        if parsed.set_host(Some("127.0.0.1")).is_err() || parsed.set_port(Some(here.port())).is_err() {
            return Ok(None);
        }
        let (open, is_open) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut is_open, database) = (is_open.clone(), database.clone());
                if !*is_open.borrow() {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(database).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = is_open.wait_for(|open| !*open) => {}
                    }
                });
            }
        });
        Ok(Some((Self(open), parsed.into())))
    }

    /// Cuts the line for a while, later.
    async fn cut(&self) {
        tokio::time::sleep(BEFORE).await;
        self.0.send_replace(false);
        tokio::time::sleep(OUTAGE).await;
        self.0.send_replace(true);
    }
}

async fn ours(line: &Line, url: &str, folder: &Path) -> Result<usize, Box<dyn Error>> {
    let node = node::start(url, folder, "outage").await?;
    let agents = node::agents(&node, "outage-", AGENTS).await?;
    let begin = Instant::now();
    let fleet = agents.iter().map(|agent_no| {
        let node = &node;
        async move {
            let mut value = 0;
            while begin.elapsed() < REPORTS_FOR {
                value += 1;
                // The answer comes when it is durable; then the agent reports what is newest.
                while node::report(node, *agent_no, KEYS, value).await.is_err() {
                    tokio::time::sleep(EVERY).await;
                }
                tokio::time::sleep(EVERY).await;
            }
            value
        }
    });
    let fleet = timeout(PATIENCE, futures_util::future::join_all(fleet));
    let (newest, ()) = tokio::join!(fleet, line.cut());
    let names: Vec<String> = (0..AGENTS).map(|number| format!("outage-{number:07}")).collect();
    let mut lost = (AGENTS * KEYS) as usize;
    let newest: HashMap<i64, u64> = agents.iter().copied().zip(newest?).collect();
    for agent in node.store().metadata_of(&names, None).await? {
        let value = newest.get(&agent.agent_no).map(u64::to_string);
        let is_newest =
            |view: &&crate::store::MetadataView| view.value.as_ref().map(|json| json.get().to_owned()) == value;
        lost -= agent.values.values().filter(is_newest).count();
    }
    node.drain().await?;
    Ok(lost)
}

/// The number of lost newest values, and of those that were dropped because there was no room.
async fn theirs(scratch: &Scratch, line: &Line, url: &str) -> Result<(usize, usize), Box<dyn Error>> {
    let mut conn = scratch.connect().await?;
    let table = "CREATE TABLE their_metadata (agent_no BIGINT NOT NULL, key TEXT NOT NULL, value BIGINT NOT NULL, \
                 PRIMARY KEY (agent_no, key))";
    scratch.execute(&mut conn, table).await?;
    let (values, batches) = mpsc::channel(ROOM);
    let writer = tokio::spawn(write(url.to_owned(), batches));
    let dropped = Arc::new(std::sync::Mutex::new(0_usize));
    let begin = Instant::now();
    let fleet = (1..=i64::from(AGENTS)).map(|agent_no| {
        let (values, dropped) = (values.clone(), dropped.clone());
        async move {
            let mut value = 0;
            while begin.elapsed() < REPORTS_FOR {
                value += 1;
                for key in 0..KEYS {
                    if values.try_send((agent_no, format!("key-{key:02}"), value)).is_err() {
                        *dropped.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += 1;
                    }
                }
                tokio::time::sleep(EVERY).await;
            }
            (agent_no, value)
        }
    });
    let (newest, ()) = tokio::join!(futures_util::future::join_all(fleet), line.cut());
    drop(values);
    writer.await?;
    let mut lost = 0;
    for (agent_no, value) in newest {
        let stored = sql_query("SELECT count(*) AS n FROM their_metadata WHERE agent_no = $1 AND value = $2")
            .bind::<BigInt, _>(agent_no)
            .bind::<BigInt, _>(value)
            .get_result::<Count>(&mut conn)
            .await?;
        lost += KEYS as usize - usize::try_from(stored.n).unwrap_or(0);
    }
    let dropped = *dropped.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok((lost, dropped))
}

#[derive(diesel::QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    n: i64,
}

/// Gathers for a second, clears what it has gathered, and writes it once.
async fn write(url: String, mut values: mpsc::Receiver<(i64, String, i64)>) {
    let mut is_open = true;
    while is_open {
        let mut batch: HashMap<(i64, String), i64> = HashMap::new();
        let until = Instant::now() + EVERY;
        while let Ok(value) = tokio::time::timeout_at(until, values.recv()).await {
            match value {
                Some((agent_no, key, value)) => drop(batch.insert((agent_no, key), value)),
                None => {
                    is_open = false;
                    break;
                }
            }
        }
        if batch.is_empty() {
            continue;
        }
        let (keys, numbers): (Vec<_>, Vec<i64>) = batch.into_iter().unzip();
        let (agents, names): (Vec<i64>, Vec<String>) = keys.into_iter().unzip();
        let written = async {
            let mut conn = Scratch::connect_to(&url).await.map_err(|error| error.to_string())?;
            sql_query(
                "INSERT INTO their_metadata SELECT * FROM UNNEST($1, $2, $3) ON CONFLICT (agent_no, key) DO UPDATE SET \
                 value = excluded.value",
            )
            .bind::<Array<BigInt>, _>(agents)
            .bind::<Array<Text>, _>(names)
            .bind::<Array<BigInt>, _>(numbers)
            .execute(&mut conn)
            .await
            .map_err(|error| error.to_string())
        };
        if let Err(error) = written.await {
            log::debug!(error; "the other batcher has lost a batch");
        }
    }
}
