//! A server that has nothing to do, beside commands that wait for absent agents: how much of a core it uses, and how long
//! a new action takes. Before that, the same on the empty store.

use super::latency::Rig;
use crate::cli::output::say_table;
use crate::cli::scratch_store::ScratchStore;
use crate::store::postgres::Scratch;
use nix::unistd::{SysconfVar, sysconf};
use std::error::Error;
use std::path::Path;
use std::time::Duration;

/// Actions for all absent agents, of the open ones. The others are for one of them each.
const FLEET_WIDE: u64 = 1_000;
/// How long the server is left alone after the rows were put in.
const SETTLE: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The URL of a database, in which a separate schema is used
    #[arg(long, value_name = "URL")]
    store: String,
    /// Commands that wait for their agents
    #[arg(long, value_name = "N", default_value_t = 13_000_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    waiting: u64,
    /// Actions that are open
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000))]
    actions: u64,
    /// Number of new actions, one after the other
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    samples: u32,
    /// Seconds for which the server is watched while it has nothing to do
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=3_600))]
    seconds: u64,
}

/// What was measured.
struct Figures {
    /// CPU time of this process, with the server and an agent, per second.
    process: f64,
    /// CPU time of the machine, with the database if it is on it, per second.
    machine: f64,
    /// The durations from the call until the agent had the command.
    arrived: Vec<Duration>,
}

pub(super) async fn run(args: &Args, folder: &Path) -> Result<(), Box<dyn Error>> {
    let place = ScratchStore::at(Some(&args.store)).await?;
    let ScratchStore::Schema(scratch) = &place else {
        return Err("--store: this needs a PostgreSQL database".into());
    };
    let measured = measure(args, &place, scratch, folder).await;
    place.leave().await?;
    let [empty, full] = measured?;
    print(args, empty, full);
    Ok(())
}

async fn measure(
    args: &Args,
    place: &ScratchStore,
    scratch: &Scratch,
    folder: &Path,
) -> Result<[Figures; 2], Box<dyn Error>> {
    let mut rig = Rig::start(place, folder).await?;
    let empty = watch(args, &mut rig).await?;
    fill(args, scratch).await?;
    tokio::time::sleep(SETTLE).await;
    let full = watch(args, &mut rig).await?;
    rig.stop().await?;
    Ok([empty, full])
}

async fn watch(args: &Args, rig: &mut Rig) -> Result<Figures, Box<dyn Error>> {
    let before = (used_by_process()?, used_by_machine()?);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let after = (used_by_process()?, used_by_machine()?);
    let share = |before: Duration, after: Duration| (after - before).as_secs_f64() / args.seconds as f64;
    let (process, machine) = (share(before.0, after.0), share(before.1, after.1));
    let mut arrived = Vec::new();
    for _ in 0..args.samples {
        arrived.push(rig.sample("name = 'bench'").await?.1);
    }
    arrived.sort_unstable();
    Ok(Figures { process, machine, arrived })
}

/// Puts absent agents, actions and waiting commands in, as the only node would have written them.
async fn fill(args: &Args, scratch: &Scratch) -> Result<(), Box<dyn Error>> {
    let absent = (args.waiting / FLEET_WIDE).max(1);
    let others = args.actions - FLEET_WIDE.min(args.actions);
    let month = 30 * 24 * 60 * 60 * 1_000_i64;
    let rows = format!(
        "CREATE TEMPORARY TABLE absent AS WITH put AS (INSERT INTO agents (name, transport, enrolled_at) \
           SELECT 'absent-' || n, 'stream', 0 FROM generate_series(1, {absent}) n RETURNING no) SELECT no FROM put; \
         CREATE TEMPORARY TABLE new AS WITH put AS (INSERT INTO actions (id, name, target, document, operations, digest, \
           created_at, valid_from, expires_at, spread_ms, timeout_ms, max_runs, live, priority, owner, resolved, \
           resolved_through, dispatched_through) \
           SELECT gen_random_uuid()::text, 'waits', 'TRUE', '{{}}', '[]', '', t.now, t.now, t.now + {month}, 0, 60000, 1, \
             FALSE, 0, (SELECT incarnation FROM nodes), TRUE, g.last, g.last \
           FROM generate_series(1, {actions}) n, (SELECT max(no) AS last FROM agents) g, \
             (SELECT (extract(epoch FROM now()) * 1000)::bigint AS now) t RETURNING no) SELECT no FROM put; \
         CREATE TEMPORARY TABLE pairs AS SELECT a.no AS action_no, g.no AS agent_no \
           FROM (SELECT no FROM new ORDER BY no LIMIT {FLEET_WIDE}) a CROSS JOIN absent g; \
         INSERT INTO pairs SELECT a.no, (SELECT min(no) FROM absent) \
           FROM (SELECT no FROM new ORDER BY no DESC LIMIT {others}) a; \
         INSERT INTO commands (action_no, agent_no) SELECT action_no, agent_no FROM pairs ORDER BY 1, 2; \
         INSERT INTO open_commands (action_no, agent_no, state, run, attempts, due_at) \
           SELECT action_no, agent_no, 0, 1, 0, 0 FROM pairs ORDER BY 1, 2; \
         INSERT INTO action_counts (action_no, lane, total) \
           SELECT action_no, 'filled', count(*) FROM pairs GROUP BY action_no; \
         DROP TABLE pairs; DROP TABLE new; DROP TABLE absent; \
         ANALYZE agents; ANALYZE actions; ANALYZE commands; ANALYZE open_commands; ANALYZE action_counts",
        actions = args.actions,
    );
    let mut conn = scratch.connect().await?;
    scratch.execute(&mut conn, "SET statement_timeout = 0").await?;
    Ok(scratch.execute(&mut conn, &rows).await?)
}

fn print(args: &Args, empty: Figures, full: Figures) {
    let at = |row: &Figures, percent: usize| {
        let place = (row.arrived.len() * percent / 100).min(row.arrived.len().saturating_sub(1));
        row.arrived.get(place).map_or(0.0, |time| time.as_secs_f64() * 1_000.0)
    };
    let line = |what: String, row: &Figures| {
        let percent = |share: f64| format!("{:.1}", 100.0 * share);
        let (p50, p99) = (format!("{:.2}", at(row, 50)), format!("{:.2}", at(row, 99)));
        vec![what, percent(row.process), percent(row.machine), p50, p99]
    };
    let lines = vec![
        line("an empty store".to_owned(), &empty),
        line(format!("{} commands wait, {} actions are open", args.waiting, args.actions), &full),
    ];
    let header = ["", "this process, % of a core", "the machine, % of a core", "latency p50 ms", "p99 ms"];
    say_table(&header.map(str::to_owned), &lines);
    say!("{} new actions each: full/empty = {:.2} (p50)", args.samples, at(&full, 50) / at(&empty, 50));
}

fn used_by_process() -> Result<Duration, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // After the name, which may hold anything; user and system time are the 14th and 15th field.
    let fields = stat.rsplit_once(')').ok_or("no name")?.1.split_whitespace();
    ticks(fields.skip(11).take(2))
}

fn used_by_machine() -> Result<Duration, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let fields: Vec<&str> = stat.lines().next().ok_or("nothing in /proc/stat")?.split_whitespace().collect();
    // After the word: user, nice, system, idle, waiting, interrupts.
    ticks(fields.into_iter().enumerate().filter(|(n, _)| [1, 2, 3, 6, 7].contains(n)).map(|(_, field)| field))
}

fn ticks<'a>(fields: impl Iterator<Item = &'a str>) -> Result<Duration, Box<dyn Error>> {
    let ticks = fields.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
    Ok(Duration::from_millis(ticks * 1_000 / per_second))
}
