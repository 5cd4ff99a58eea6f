//! A fleet that reports every ten seconds: transactions and notifications, by the database's own count.

use super::args::{Args, print};
use super::node;
use crate::cli::bench::raw;
use crate::domain::target::Target;
use crate::node::Running;
use crate::service::metadata::{Feed, Feeds};
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
    transactions: i64,
    notifications: u64,
    flushes: u64,
    values: u64,
    seconds: f64,
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
    raw::metadata::count_writers(scratch, "agent_metadata").await?;
    let unwatched = cost(scratch, &one, fleet(&one, &mut connected, &rest, keys, (Instant::now(), time))).await?;
    let feed = Feeds::default().of(other.node(), Target::All);
    other.node().signals.metadata_watch().told().wait_for(|told| *told).await?;
    let begin = Instant::now() + Duration::from_secs(3);
    let mut lags = Vec::new();
    let watched = tokio::select! {
        watched = cost(scratch, &one, fleet(&one, &mut connected, &rest, keys, (begin, time))) => watched?,
        () = follow(&feed, begin, &mut lags) => return Err("a feed has ended".into()),
    };
    drop((feed, connected));
    one.drain().await?;
    other.drain().await?;
    let singly = raw::metadata::one_by_one(scratch, AGENTS, keys, INTERVAL, time).await?;

    let seconds = time.as_secs_f64();
    let row = |name: &str, cost: &Cost| {
        let per_second = |number: u64| format!("{:.2}", number as f64 / cost.seconds);
        vec![
            name.to_owned(),
            per_second(cost.transactions.unsigned_abs()),
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
    lags.sort_unstable();
    let at = |percent: usize| lags.get((lags.len() * percent / 100).min(lags.len().saturating_sub(1))).copied();
    let [p50, p99, max] = [50, 99, 100].map(|percent| at(percent).unwrap_or_default());
    say!("from a report to a watcher at the other node: {p50} ms (p50), {p99} ms (p99), {max} ms (max)\n");
    Ok(())
}

/// Runs a phase; transactions are those that wrote values, notifications those of this node.
async fn cost(scratch: &Scratch, node: &Running, phase: impl Future) -> Result<Cost, Box<dyn Error>> {
    let count = async || -> Result<(i64, u64, u64, u64), Box<dyn Error>> {
        // What the last phase has left is written.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let transactions = raw::metadata::writers(scratch).await?;
        let text = node.node().metrics.text(&[], 0, true)?;
        let sum = |name: &str, label: &str| {
            let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
        };
        let flushes = sum("odoshi_batch_flushes_total", "actor=\"metadata\"");
        Ok((transactions, sum("odoshi_hints_total", "sent"), flushes, sum("odoshi_metadata_values_total", "")))
    };
    let before = count().await?;
    let began = Instant::now();
    phase.await;
    let after = count().await?;
    Ok(Cost {
        transactions: after.0 - before.0,
        notifications: after.1 - before.1,
        flushes: after.2 - before.2,
        values: after.3 - before.3,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// Takes down how long each value took to be told, in milliseconds: it is the time at which it was reported.
async fn follow(feed: &Feed, begin: Instant, lags: &mut Vec<u64>) {
    let (mut news, mut number) = (feed.subscribe(), feed.end());
    while news.changed().await.is_ok() {
        let events = feed.from(number, usize::MAX).unwrap_or_default();
        number += events.len() as u64;
        let now = begin.elapsed().as_millis() as u64;
        for event in events {
            let event: serde_json::Value = serde_json::from_str(&event.json).unwrap_or_default();
            let items = event["items"].as_array().cloned().unwrap_or_default();
            lags.extend(items.iter().filter_map(|item| Some(now.saturating_sub(item["value"].as_u64()?))));
        }
    }
}

/// Each agent reports every ten seconds, each at a time of its own.
async fn fleet(
    node: &Running,
    connected: &mut [node::Connected],
    rest: &[i64],
    keys: u32,
    (begin, time): (Instant, Duration),
) {
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
