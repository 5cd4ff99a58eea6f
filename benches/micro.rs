//! Small measurements of the parts that every command passes, without a store or a network.
//!
//! `cargo bench --bench micro`, or with a word to run only those whose names contain it. `cargo test --bench micro` runs
//! each once. `odoshi bench` measures the whole.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark stops at the first error")]

use actix::prelude::*;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use odoshi::config;
use odoshi::domain::batch::Limits;
use odoshi::domain::delay::{DelayQueue, WhenFull};
use odoshi::domain::protocol::{AgentFrame, Command, Operations, ServerFrame};
use odoshi::domain::target::{AgentRecord, Target};
use odoshi::domain::time::Timestamp;
use odoshi::metrics::Metrics;
use odoshi::runtime::batcher::Verdict;
use odoshi::runtime::{Batcher, Sink, Supervision, Unstarted, Writer};
use odoshi::store::StoreResult;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use std::hint::black_box;
use std::time::{Duration, Instant};
use tokio_util::time::DelayQueue as TokioQueue;
use uuid::Uuid;

/// Entries of a queue.
const ENTRIES: u64 = 100_000;
/// Items that are put into the batcher, the length of a put, and the puts that are answered at the same time.
const ITEMS: usize = 100_000;
const PUT: usize = 1_000;
const PUTS_AT_ONCE: usize = 4;
/// Messages to an actor.
const MESSAGES: u64 = 100_000;
/// The agents that a target is evaluated on.
const AGENTS: usize = 1_000;
/// Commands in a frame, and results.
const FRAME: usize = 16;

/// Times in microseconds, in random order.
fn random_times() -> Vec<u64> {
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    (0..ENTRIES).map(|_| random.random_range(0..60_000_000)).collect()
}

fn filled(times: &[u64]) -> DelayQueue<u64, u64, u64> {
    let mut queue = DelayQueue::new(times.len(), WhenFull::Displace);
    for (number, due) in (0..).zip(times) {
        queue.insert(number, *due, 0, number).unwrap();
    }
    queue
}

fn delay_queue(criterion: &mut Criterion) {
    let times = random_times();
    let mut group = criterion.benchmark_group("delay queue");
    group.throughput(Throughput::Elements(ENTRIES));
    group.bench_function("insert", |bencher| bencher.iter_with_large_drop(|| filled(&times)));
    group.bench_function("insert, tokio_util", |bencher| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _guard = runtime.enter();
        bencher.iter_with_large_drop(|| {
            let (mut queue, begun) = (TokioQueue::new(), tokio::time::Instant::now());
            for (number, due) in (0_u64..).zip(&times) {
                queue.insert_at(number, begun + Duration::from_micros(*due));
            }
            queue
        });
    });
    group.bench_function("pop", |bencher| {
        let pop_all = |mut queue: DelayQueue<u64, u64, u64>| {
            while !queue.pop_due(u64::MAX, 1_000).is_empty() {}
            queue
        };
        bencher.iter_batched(|| filled(&times), pop_all, BatchSize::PerIteration);
    });
    group.bench_function("cancel", |bencher| {
        let mut order: Vec<u64> = (0..ENTRIES).collect();
        order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(8));
        let cancel_all = |mut queue: DelayQueue<u64, u64, u64>| {
            for number in &order {
                queue.cancel(number).unwrap();
            }
            queue
        };
        bencher.iter_batched(|| filled(&times), cancel_all, BatchSize::PerIteration);
    });
    group.finish();
}

fn targets(criterion: &mut Criterion) {
    let agents: Vec<AgentRecord> = (0..AGENTS)
        .map(|number| AgentRecord {
            name: format!("web-{number:04}.example.com"),
            transport: "stream".into(),
            online: number.is_multiple_of(2),
            version: Some("1.2.3".into()),
            labels: [("site", number % 7), ("rack", number % 40)].map(|(key, n)| (key.into(), n.to_string())).into(),
            facts: serde_json::from_str(&format!(r#"{{"os":"linux","memory":{number},"kernel":"6.1.{number}"}}"#))
                .unwrap(),
            ..AgentRecord::default()
        })
        .collect();
    let texts = [
        ("one label", "labels.site = '3'"),
        ("a pattern", "name ILIKE '%EXAMPLE%'"),
        ("three terms", "labels.site IN ('1','2') AND facts.memory > 500 AND NOT name LIKE 'db-%'"),
    ];
    let mut group = criterion.benchmark_group("target");
    for (what, text) in texts {
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("parse, {what}"), |bencher| {
            bencher.iter(|| Target::parse(black_box(text)).unwrap())
        });
        let target = Target::parse(text).unwrap();
        let now = Timestamp(1_700_000_000_000);
        group.throughput(Throughput::Elements(AGENTS as u64));
        group.bench_function(format!("match, {what}"), |bencher| {
            bencher.iter(|| agents.iter().filter(|agent| target.matches(agent, now)).count());
        });
    }
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    let operations = r#"[{"module":"exec","parameters":{"argv":["/usr/bin/uptime","-s"]}}]"#;
    let operations = Operations::from_json(operations.into()).unwrap();
    let command = |_| Command {
        action: Uuid::now_v7(),
        run: 1,
        attempt: 1,
        name: "uptime".into(),
        operations: operations.clone(),
        priority: 0,
        timeout_ms: 60_000,
        expires_at: Timestamp(1_700_000_000_000),
        scheduled_for: None,
    };
    let commands = ServerFrame::Commands { commands: (0..FRAME).map(command).collect() };
    let result = |_| {
        format!(
            r#"{{"action":"{}","run":1,"status":"succeeded","started_at":"2026-01-01T00:00:00Z","results":[{{"module":"exec",
            "ok":true,"output":{{"exit_code":0,"stdout":"up 42 days\n","stderr":""}}}}]}}"#,
            Uuid::now_v7()
        )
    };
    let results: Vec<String> = (0..FRAME).map(result).collect();
    let results = format!(r#"{{"type":"results","results":[{}]}}"#, results.join(","));
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Elements(FRAME as u64));
    group.bench_function("write commands", |bencher| bencher.iter(|| black_box(&commands).to_text()));
    group.bench_function("read results", |bencher| bencher.iter(|| AgentFrame::parse(black_box(&results)).unwrap()));
    group.finish();
}

/// A store that takes everything.
#[derive(Clone)]
struct Everything(Metrics);

impl Sink for Everything {
    type Item = u64;
    type Answer = u64;

    const NAME: &'static str = "everything";

    fn metrics(&self) -> &Metrics {
        &self.0
    }

    async fn write(&self, items: &[u64]) -> StoreResult<Vec<u64>> {
        Ok(items.to_vec())
    }

    async fn written(&self, _: Vec<u64>, _: &[Verdict<u64>]) {}
}

fn batcher(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batcher");
    group.throughput(Throughput::Elements(ITEMS as u64));
    group.bench_function("put and answer", |bencher| {
        bencher.iter_custom(|rounds| {
            actix_rt::System::new().block_on(async move {
                let limits =
                    Limits { max_items: 5_000, max_wait: Duration::from_millis(20), idle: Duration::from_millis(2) };
                let supervision = Supervision::new(config::Supervision::default());
                let sink = Everything(Metrics::default());
                let writer =
                    Writer::new(Unstarted::default().start("batcher", Batcher::new(sink, limits), &supervision));
                let started = Instant::now();
                for _ in 0..rounds {
                    let puts = (0..PUTS_AT_ONCE).map(|_| async {
                        for _ in 0..ITEMS / PUT / PUTS_AT_ONCE {
                            writer.put((0..PUT as u64).collect()).await.unwrap();
                        }
                    });
                    futures_util::future::join_all(puts).await;
                }
                started.elapsed()
            })
        });
    });
    group.finish();
}

/// An actor that adds up.
#[derive(Default)]
struct Adder(u64);

#[derive(Message)]
#[rtype(result = "u64")]
struct Add(u64);

impl Actor for Adder {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(usize::MAX >> 8);
    }
}

impl Supervised for Adder {}

impl Handler<Add> for Adder {
    type Result = u64;

    fn handle(&mut self, Add(number): Add, _: &mut Self::Context) -> u64 {
        self.0 += number;
        self.0
    }
}

/// What supervision costs a message: the same actor, under it and bare.
fn supervision(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("messages");
    group.throughput(Throughput::Elements(MESSAGES));
    let measure = |rounds, start: fn() -> Addr<Adder>| {
        actix_rt::System::new().block_on(async move {
            let actor = start();
            let started = Instant::now();
            for _ in 0..rounds {
                for number in 1..MESSAGES {
                    actor.do_send(Add(number));
                }
                black_box(actor.send(Add(0)).await.unwrap());
            }
            started.elapsed()
        })
    };
    group.bench_function("supervised", |bencher| {
        bencher.iter_custom(|rounds| {
            measure(rounds, || {
                let supervision = Supervision::new(config::Supervision::default());
                Unstarted::default().start("adder", Adder::default(), &supervision)
            })
        });
    });
    group.bench_function("bare actix", |bencher| {
        bencher.iter_custom(|rounds| measure(rounds, || Adder::default().start()));
    });
    group.finish();
}

criterion_group!(benches, delay_queue, targets, frames, batcher, supervision);
criterion_main!(benches);
