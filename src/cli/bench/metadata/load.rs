//! How many values a second become durable, beside a bare guarded `UPDATE` of the same rows.

use super::args::{Args, print};
use super::node;
use crate::cli::bench::raw;
use crate::node::Running;
use crate::store::postgres::Scratch;
use futures_util::StreamExt;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

/// Values that wait for an answer at the same time: less than two seconds' worth.
const IN_FLIGHT: u32 = 60_000;
/// How often each agent reports in a round, without a pause: the last batch of all, which is not full, waits a second.
const PASSES: usize = 3;

#[derive(Clone, Copy)]
struct Round {
    rate: f64,
    /// The longest that an answer took.
    longest: Duration,
}

pub(super) async fn run(args: &Args, scratch: &Scratch, folder: &Path) -> Result<(), Box<dyn Error>> {
    let node = node::start(scratch.url().expose(), folder, "load").await?;
    let agents = node::agents(&node, "load-", args.agents).await?;
    let before = memory();
    let (mut ours, mut held, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    raw::metadata::prepare(scratch, args.agents, args.keys).await?;
    // The first one inserts.
    let first = round(&node, &agents, args.keys, 0).await?;
    for number in 1..=args.rounds {
        ours.push(round(&node, &agents, args.keys, number.into()).await?);
        if args.held_transaction {
            let mut other = scratch.connect().await?;
            let begin = "SET idle_in_transaction_session_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ; \
                         SELECT pg_current_xact_id()";
            scratch.execute(&mut other, begin).await?;
            held.push(round(&node, &agents, args.keys, u64::from(number) + 1_000).await?);
            scratch.execute(&mut other, "COMMIT").await?;
        }
        let batch = node.node().config.metadata.max_items;
        let took = raw::metadata::update(scratch, args.agents, args.keys, batch, number.into()).await?;
        let values = f64::from(args.agents) * f64::from(args.keys);
        bare.push(Round { rate: values / took.as_secs_f64(), longest: Duration::ZERO });
    }
    let after = memory();
    node.drain().await?;
    let row = |name: &str, round: Round| {
        let longest =
            if round.longest.is_zero() { String::new() } else { format!("{:.2}", round.longest.as_secs_f64()) };
        vec![name.to_owned(), format!("{:.0}", round.rate), longest]
    };
    let (median_ours, median_bare) = (median(ours), median(bare));
    let mut rows = vec![row("odoshi, the first time", first), row("odoshi", median_ours)];
    if !held.is_empty() {
        rows.push(row("odoshi, beside a held transaction", median(held)));
    }
    rows.push(row("bare guarded UPDATE", median_bare));
    say!("{} agents with {} keys report all values, median of {} rounds:", args.agents, args.keys, args.rounds);
    print(&["", "values/s", "longest answer, s"], rows);
    say!("odoshi/bare = {:.2}; memory {before} MB before, {after} MB after\n", median_ours.rate / median_bare.rate);
    Ok(())
}

async fn round(node: &Running, agents: &[i64], keys: u32, value: u64) -> Result<Round, Box<dyn Error>> {
    let began = Instant::now();
    let in_flight = (IN_FLIGHT / keys).max(1) as usize;
    let reports = agents.iter().cycle().take(PASSES * agents.len());
    let reports = futures_util::stream::iter(reports).map(|agent_no| async move {
        let asked = Instant::now();
        node::report(node, *agent_no, keys, value).await.map(|()| asked.elapsed()).map_err(|error| error.to_string())
    });
    let mut reports = std::pin::pin!(reports.buffer_unordered(in_flight));
    let mut longest = Duration::ZERO;
    while let Some(took) = reports.next().await {
        longest = longest.max(took?);
    }
    let values = (PASSES * agents.len()) as f64 * f64::from(keys);
    Ok(Round { rate: values / began.elapsed().as_secs_f64(), longest })
}

fn median(mut rounds: Vec<Round>) -> Round {
    rounds.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    let longest = rounds.iter().map(|round| round.longest).max().unwrap_or_default();
    let rate = rounds.get(rounds.len() / 2).map_or(0.0, |round| round.rate);
    Round { rate, longest }
}

/// This process's memory in megabytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
