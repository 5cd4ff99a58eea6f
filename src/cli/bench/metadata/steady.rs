//! A fleet that reports every ten seconds: transactions and notifications, by the database's own count.

use super::args::{Args, print};
use super::node;
use crate::cli::bench::raw;
use crate::node::Running;
use crate::store::postgres::Scratch;
use std::error::Error;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Agents of the fleet, and how many of them have a connection of their own.
const AGENTS: u32 = 600;
const CONNECTED: u32 = 60;
/// How often each reports.
const INTERVAL: Duration = Duration::from_secs(10);

/// What a phase cost.
struct Cost {
    transactions: f64,
    notifications: u64,
    flushes: u64,
    values: u64,
}

pub(super) async fn run(args: &Args, scratch: &Scratch, folder: &Path) -> Result<(), Box<dyn Error>> {
    let one = node::start(scratch.url().expose(), folder, "one").await?;
    let other = node::start(scratch.url().expose(), folder, "other").await?;
    let (keys, time) = (args.keys, Duration::from_secs(args.seconds.into()));
    let rest = node::agents(&one, "steady-", AGENTS - CONNECTED).await?;
    let mut connected = Vec::new();
    for number in 0..CONNECTED {
        connected.push(node::Connected::open(&one, &format!("connected-{number}")).await?);
    }
    let idle = cost(scratch, &one, async { tokio::time::sleep(time).await }).await?;
    let unwatched = cost(scratch, &one, fleet(&one, &mut connected, &rest, keys, time)).await?;
    let watch = other.node().signals.metadata_watch().clone();
    let news = watch.subscribe();
    other.node().signals.metadata_watched();
    watch.told().wait_for(|told| *told).await?;
    let watched = cost(scratch, &one, fleet(&one, &mut connected, &rest, keys, time)).await?;
    drop((news, connected));
    one.drain().await?;
    other.drain().await?;
    let singly = raw::metadata::one_by_one(scratch, AGENTS, keys, INTERVAL, time).await?;

    let seconds = time.as_secs_f64();
    let row = |name: &str, cost: &Cost| {
        let over_idle = (cost.transactions - idle.transactions) / seconds;
        let per_second = |number: u64| format!("{:.2}", number as f64 / seconds);
        vec![
            name.to_owned(),
            format!("{over_idle:.2}"),
            per_second(cost.flushes),
            per_second(cost.notifications),
            per_second(cost.values),
        ]
    };
    let mut rows = vec![row("odoshi, nobody watches", &unwatched), row("odoshi, a node watches", &watched)];
    let single = singly as f64 / seconds;
    rows.push(vec![
        "each value by itself".into(),
        format!("{single:.2}"),
        String::new(),
        String::new(),
        format!("{single:.2}"),
    ]);
    say!(
        "{AGENTS} agents with {keys} keys report every {} s ({CONNECTED} over connections of their own, the others through \
         the same code without); a second:",
        INTERVAL.as_secs()
    );
    print(&["", "transactions", "flushes", "notifications", "values"], rows);
    Ok(())
}

/// Runs a phase; transactions are those of the whole database, notifications those of this node.
async fn cost(scratch: &Scratch, node: &Running, phase: impl Future) -> Result<Cost, Box<dyn Error>> {
    let count = async || -> Result<(f64, u64, u64, u64), Box<dyn Error>> {
        // The database's counters are a second or two behind.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let transactions = raw::metadata::transactions(scratch).await? as f64;
        let text = node.node().metrics.text(&[], 0, true)?;
        let sum = |name: &str, label: &str| {
            let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
        };
        let flushes = sum("odoshi_batch_flushes_total", "actor=\"metadata\"");
        Ok((transactions, sum("odoshi_hints_total", "sent"), flushes, sum("odoshi_metadata_values_total", "")))
    };
    let before = count().await?;
    phase.await;
    let after = count().await?;
    Ok(Cost {
        transactions: after.0 - before.0,
        notifications: after.1 - before.1,
        flushes: after.2 - before.2,
        values: after.3 - before.3,
    })
}

/// Each agent reports every ten seconds, each at a time of its own.
async fn fleet(node: &Running, connected: &mut [node::Connected], rest: &[i64], keys: u32, time: Duration) {
    let begin = Instant::now();
    let total = connected.len() + rest.len();
    let offset = |place: usize| INTERVAL.mul_f64(place as f64 / total as f64);
    let sockets = connected.iter_mut().enumerate().map(|(place, agent)| async move {
        let mut at = begin + offset(place);
        while at < begin + time {
            tokio::time::sleep_until(at).await;
            if let Err(error) = agent.report(keys, begin.elapsed().as_millis() as u64).await {
                log::warn!(error:%; "an agent of the benchmark has no answer");
                return;
            }
            at += INTERVAL;
        }
    });
    let first = total - rest.len();
    let others = rest.iter().enumerate().map(|(place, agent_no)| async move {
        let mut at = begin + offset(first + place);
        while at < begin + time {
            tokio::time::sleep_until(at).await;
            if let Err(error) = node::report(node, *agent_no, keys, begin.elapsed().as_millis() as u64).await {
                log::warn!(error:%; "an agent of the benchmark has no answer");
                return;
            }
            at += INTERVAL;
        }
    });
    tokio::join!(futures_util::future::join_all(sockets), futures_util::future::join_all(others));
}
