//! `odoshi bench delay`: compares the delay queue with other implementations.
//!
//! Each is measured in its own process, so that each takes its memory from the system. They take
//! turns in each round, so that all see the same machine. The queues hold numbers; the size of a
//! number and its key is not counted.

use crate::cli::outcome::Outcome;
use crate::cli::output::say_table;
use crate::domain::delay::{DelayQueue, WhenFull};
use clap::ValueEnum;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::error::Error;
use std::future::poll_fn;
use std::process::{Command, ExitCode};
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tokio_util::time::delay_queue::{self, DelayQueue as TokioQueue};

/// Time from the first insert until the first entry is due. All must be inserted by then.
const LEAD: Duration = Duration::from_secs(3);
/// Time over which the entries with timed pops fall due.
const SPREAD: Duration = Duration::from_secs(2);
/// Maximum number of entries popped at a time.
const CHUNK: usize = 1_000;

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Entries in the queue
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=20_000_000))]
    entries: u32,
    /// Entries that fall due per second while lateness is measured
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Rounds; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Measure only this one, and print its figures as JSON
    #[arg(long, hide = true)]
    measure: Option<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Odoshi,
    Tokio,
    TokioKeys,
    Heap,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Odoshi, Self::Tokio, Self::TokioKeys, Self::Heap];

    fn describe(self) -> &'static str {
        match self {
            Self::Odoshi => "odoshi: DelayQueue (by key, equal times in order)",
            Self::Tokio => "tokio_util: DelayQueue (by handle)",
            Self::TokioKeys => "tokio_util: DelayQueue, and a HashMap of keys",
            Self::Heap => "std: BinaryHeap (no cancel)",
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Figures {
    /// Nanoseconds per entry.
    insert: f64,
    pop: f64,
    /// Per entry, beyond the key and the value.
    bytes: f64,
    /// Microseconds: p50, p99, maximum.
    lateness: [f64; 3],
}

pub(super) fn run(args: &Args) -> Outcome {
    if let Some(kind) = args.measure {
        let figures = actix_rt::System::new().block_on(measure(kind, args))?;
        say!("{}", serde_json::to_string(&figures)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut all: Vec<Vec<Figures>> = vec![Vec::new(); Kind::ALL.len()];
    for _ in 0..args.rounds {
        for (kind, figures) in Kind::ALL.into_iter().zip(&mut all) {
            figures.push(measure_apart(kind, args)?);
        }
    }
    print(args, &all);
    Ok(ExitCode::SUCCESS)
}

fn measure_apart(kind: Kind, args: &Args) -> Result<Figures, Box<dyn Error>> {
    let name = kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "delay", "--measure", &name]);
    command.args(["--entries", &args.entries.to_string(), "--rate", &args.rate.to_string()]);
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A queue under measurement: numbers, ordered by due time.
trait Queue {
    /// Bytes of a key and a value.
    const PAYLOAD: f64;

    fn insert(&mut self, number: u64, due: Instant);

    /// Waits until entries are due, and takes some of them.
    async fn due(&mut self, into: &mut Vec<u64>);
}

struct Ours {
    queue: DelayQueue<u64, u64, u64>,
    begun: Instant,
}

impl Queue for Ours {
    const PAYLOAD: f64 = 16.0;

    fn insert(&mut self, number: u64, due: Instant) {
        self.queue.insert(number, micros(due - self.begun), 0, number).ok();
    }

    async fn due(&mut self, into: &mut Vec<u64>) {
        loop {
            let popped = self.queue.pop_due(micros(self.begun.elapsed()), CHUNK);
            if !popped.is_empty() {
                return into.extend(popped.into_iter().map(|entry| entry.value));
            }
            let Some(next) = self.queue.next_due() else { return };
            sleep_until(self.begun + Duration::from_micros(next)).await;
        }
    }
}

impl Queue for TokioQueue<u64> {
    const PAYLOAD: f64 = 8.0;

    fn insert(&mut self, number: u64, due: Instant) {
        self.insert_at(number, due);
    }

    async fn due(&mut self, into: &mut Vec<u64>) {
        into.extend(poll_fn(|cx| self.poll_expired(cx)).await.map(delay_queue::Expired::into_inner));
        while into.len() < CHUNK
            && let Poll::Ready(Some(next)) = poll_fn(|cx| Poll::Ready(self.poll_expired(cx))).await
        {
            into.push(next.into_inner());
        }
    }
}

struct WithKeys {
    queue: TokioQueue<u64>,
    keys: HashMap<u64, delay_queue::Key>,
}

impl Queue for WithKeys {
    const PAYLOAD: f64 = 16.0;

    fn insert(&mut self, number: u64, due: Instant) {
        let key = self.queue.insert_at(number, due);
        self.keys.insert(number, key);
    }

    async fn due(&mut self, into: &mut Vec<u64>) {
        self.queue.due(into).await;
        for number in into {
            self.keys.remove(number);
        }
    }
}

struct Heap {
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    begun: Instant,
}

impl Queue for Heap {
    const PAYLOAD: f64 = 8.0;

    fn insert(&mut self, number: u64, due: Instant) {
        self.queue.push(Reverse((micros(due - self.begun), number)));
    }

    async fn due(&mut self, into: &mut Vec<u64>) {
        loop {
            let now = micros(self.begun.elapsed());
            while into.len() < CHUNK && self.queue.peek().is_some_and(|Reverse((due, _))| *due <= now) {
                into.extend(self.queue.pop().map(|Reverse((_, number))| number));
            }
            let next = self.queue.peek().map(|Reverse((due, _))| self.begun + Duration::from_micros(*due));
            match next {
                Some(next) if into.is_empty() => sleep_until(next).await,
                _ => return,
            }
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

async fn measure(kind: Kind, args: &Args) -> Result<Figures, Box<dyn Error>> {
    let begun = Instant::now();
    match kind {
        Kind::Odoshi => {
            let queue = || DelayQueue::new(args.entries as usize, WhenFull::Displace);
            measure_queue(args, || Ours { queue: queue(), begun }).await
        }
        Kind::Tokio => measure_queue(args, TokioQueue::new).await,
        Kind::TokioKeys => measure_queue(args, || WithKeys { queue: TokioQueue::new(), keys: HashMap::new() }).await,
        Kind::Heap => measure_queue(args, || Heap { queue: BinaryHeap::new(), begun }).await,
    }
}

async fn measure_queue<Q: Queue>(args: &Args, make: impl Fn() -> Q) -> Result<Figures, Box<dyn Error>> {
    let entries = args.entries as usize;
    // The same numbers for all queues.
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    let dues: Vec<Duration> =
        (0..entries).map(|_| LEAD + Duration::from_micros(random.random_range(0..micros(SPREAD)))).collect();
    let mut taken = Vec::with_capacity(CHUNK);

    let (mut queue, before) = (make(), resident()?);
    let begun = Instant::now();
    for (number, due) in (0..).zip(&dues) {
        queue.insert(number, begun + *due);
    }
    let insert = begun.elapsed();
    if insert > LEAD {
        return Err(format!("inserting took {insert:?}, longer than {LEAD:?}: take fewer --entries").into());
    }
    let bytes = (resident()? - before) / entries as f64 - Q::PAYLOAD;
    // Until all entries are due, plus a timer tick.
    sleep_until(begun + LEAD + SPREAD + Duration::from_millis(10)).await;
    let (popping, mut popped) = (Instant::now(), 0);
    while popped < entries {
        queue.due(&mut taken).await;
        popped += taken.len();
        taken.clear();
    }
    let pop = popping.elapsed();

    // The entries fall due one after the other, but were inserted in random order.
    let mut queue = make();
    let mut order: Vec<u64> = (0..entries as u64).collect();
    order.shuffle(&mut random);
    let begun = Instant::now();
    let due = |number: u64| begun + LEAD + Duration::from_secs_f64(number as f64 / f64::from(args.rate));
    for number in order {
        queue.insert(number, due(number));
    }
    if begun.elapsed() > LEAD {
        return Err(format!("inserting took longer than {LEAD:?}: take fewer --entries").into());
    }
    let mut late: Vec<Duration> = Vec::with_capacity(entries);
    while late.len() < entries {
        queue.due(&mut taken).await;
        let now = Instant::now();
        late.extend(taken.drain(..).map(|number| now.saturating_duration_since(due(number))));
    }
    late.sort_unstable();
    let at = |percent: usize| late[(entries * percent / 100).min(entries - 1)].as_secs_f64() * 1e6;
    let each = |time: Duration| time.as_nanos() as f64 / entries as f64;
    Ok(Figures { insert: each(insert), pop: each(pop), bytes, lateness: [at(50), at(99), at(100)] })
}

/// This process's memory, in bytes.
fn resident() -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1_024.0)
}

fn print(args: &Args, all: &[Vec<Figures>]) {
    let median = |kind: usize, of: fn(&Figures) -> f64| {
        let mut figures: Vec<f64> = all[kind].iter().map(of).collect();
        figures.sort_unstable_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    let mut lines = Vec::new();
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        let millis = |of: fn(&Figures) -> f64| format!("{:.2}", median(index, of) / 1_000.0);
        lines.push(vec![
            kind.describe().to_owned(),
            format!("{:.0}", median(index, |figures| figures.insert)),
            format!("{:.0}", median(index, |figures| figures.pop)),
            format!("{:.0}", median(index, |figures| figures.bytes)),
            millis(|figures| figures.lateness[0]),
            millis(|figures| figures.lateness[1]),
            millis(|figures| figures.lateness[2]),
        ]);
    }
    let header = ["", "insert ns", "pop ns", "bytes", "late p50 ms", "p99 ms", "max ms"];
    say_table(&header.map(str::to_owned), &lines);
    say!(
        "{} entries, {} a second fall due, median of {} rounds; rates of odoshi/tokio_util = {:.2} (insert), {:.2} (pop); \
         with a map of keys {:.2}, {:.2}",
        args.entries,
        args.rate,
        args.rounds,
        median(1, |figures| figures.insert) / median(0, |figures| figures.insert),
        median(1, |figures| figures.pop) / median(0, |figures| figures.pop),
        median(2, |figures| figures.insert) / median(0, |figures| figures.insert),
        median(2, |figures| figures.pop) / median(0, |figures| figures.pop),
    );
}
