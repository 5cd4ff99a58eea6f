use super::*;
use crate::testing::{at_once, next, supervision};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// What the next writes do.
#[derive(Default)]
struct World {
    /// So many writes fail with an error that may pass.
    away: u32,
    /// Batches with one of these are refused.
    refused: BTreeSet<u32>,
    /// A batch with one of these crashes the batcher.
    fatal: BTreeSet<u32>,
    /// Writes wait until they are let through.
    gate: Option<Arc<Notify>>,
}

/// A store of numbers: the answer to `n` is `10 n`.
#[derive(Clone)]
struct Numbers {
    world: Arc<Mutex<World>>,
    metrics: Metrics,
    /// Batches that were tried.
    tried: mpsc::UnboundedSender<Vec<u32>>,
    /// What others were told is durable, and what is refused.
    told: mpsc::UnboundedSender<(Vec<u32>, bool)>,
}

impl Sink for Numbers {
    type Item = u32;
    type Answer = u32;

    const NAME: &'static str = "numbers";

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    async fn write(&self, items: &[u32]) -> StoreResult<Vec<u32>> {
        self.tried.send(items.to_vec()).ok();
        let gate = self.world().gate.clone();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        let mut world = self.world();
        assert!(items.iter().all(|item| !world.fatal.contains(item)), "a fatal item");
        if world.away > 0 {
            world.away -= 1;
            return Err(StoreError::Unavailable("it is away".into()));
        }
        if items.iter().any(|item| world.refused.contains(item)) {
            return Err(StoreError::Corrupt("it is refused".into()));
        }
        Ok(items.iter().map(|item| item * 10).collect())
    }

    async fn written(&self, items: Vec<u32>, answers: &[Verdict<u32>]) {
        self.told.send((items, answers.iter().all(Result::is_ok))).ok();
    }
}

impl Numbers {
    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Fixture {
    address: Addr<Batcher<Numbers>>,
    writer: Writer<u32, u32>,
    sink: Numbers,
    tried: mpsc::UnboundedReceiver<Vec<u32>>,
    told: mpsc::UnboundedReceiver<(Vec<u32>, bool)>,
}

fn start_with(world: World, limits: Limits) -> Fixture {
    let ((tried_in, tried), (told_in, told)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let (world, metrics) = (Arc::new(Mutex::new(world)), Metrics::default());
    let sink = Numbers { world, metrics, tried: tried_in, told: told_in };
    let batcher = Batcher::new(sink.clone(), limits);
    let address = crate::runtime::Unstarted::default().start("numbers", batcher, &supervision());
    Fixture { writer: Writer::new(address.clone()), address, sink, tried, told }
}

fn start(world: World) -> Fixture {
    start_with(world, at_once())
}

impl Fixture {
    /// Puts these in; answers as texts, a refused one as its error.
    async fn put(&self, items: &[u32]) -> Vec<String> {
        let answers = self.writer.put(items.to_vec()).await.expect("it was not interrupted");
        answers.into_iter().map(|answer| answer.map_or_else(|error| error.to_string(), |n| n.to_string())).collect()
    }

    fn failing_seconds(&self) -> f64 {
        self.sink.metrics.progress().seconds().iter().find(|(name, _)| *name == "numbers").map_or(0.0, |(_, s)| *s)
    }
}

#[actix_rt::test]
async fn items_are_answered_in_their_order_after_others_were_told() {
    let mut batcher = start(World::default());
    assert_eq!(batcher.put(&[3, 1, 2]).await, ["30", "10", "20"]);
    assert_eq!(batcher.told.try_recv(), Ok((vec![3, 1, 2], true)), "before the answer");
    assert_eq!(next(&mut batcher.tried).await, [3, 1, 2]);
}

#[actix_rt::test]
async fn nothing_is_written_for_an_empty_put() {
    let mut batcher = start(World::default());
    assert!(batcher.put(&[]).await.is_empty());
    assert_eq!(batcher.put(&[1]).await, ["10"]);
    assert_eq!(next(&mut batcher.tried).await, [1]);
}

#[actix_rt::test]
async fn what_comes_during_a_write_goes_into_the_next_one_together() {
    let gate = Arc::new(Notify::new());
    let mut batcher = start(World { gate: Some(gate.clone()), ..World::default() });
    let first = batcher.writer.put(vec![1]);
    assert_eq!(next(&mut batcher.tried).await, [1]);
    let others: Vec<_> = [2, 3, 4].into_iter().map(|item| batcher.writer.put(vec![item])).collect();
    gate.notify_one();
    first.await.unwrap();
    assert_eq!(next(&mut batcher.tried).await, [2, 3, 4]);
    gate.notify_one();
    for other in others {
        assert!(other.await.is_ok());
    }
}

/// As [`Numbers`], and two batches at once.
#[derive(Clone)]
struct Ahead(Numbers);

impl Sink for Ahead {
    type Item = u32;
    type Answer = u32;

    const NAME: &'static str = "ahead";
    const AT_ONCE: usize = 2;

    fn metrics(&self) -> &Metrics {
        self.0.metrics()
    }

    async fn write(&self, items: &[u32]) -> StoreResult<Vec<u32>> {
        self.0.write(items).await
    }

    async fn written(&self, items: Vec<u32>, answers: &[Verdict<u32>]) {
        self.0.written(items, answers).await;
    }
}

/// A batcher that gets two batches at once, each of two items at most. Nothing else tips a batch but a quiet time.
fn start_ahead(world: World) -> (Writer<u32, u32>, Fixture) {
    let fixture = start(world);
    let limits = Limits { max_items: 2, max_wait: Duration::from_secs(3_600), idle: Duration::from_secs(3_600) };
    let batcher = Batcher::new(Ahead(fixture.sink.clone()), limits);
    let address = crate::runtime::Unstarted::default().start("ahead", batcher, &supervision());
    (Writer::new(address), fixture)
}

#[actix_rt::test]
async fn the_next_full_batch_is_handed_over_while_one_is_written_and_no_more() {
    let gate = Arc::new(Notify::new());
    let (writer, mut batcher) = start_ahead(World { gate: Some(gate.clone()), ..World::default() });
    let mut puts = vec![writer.put(vec![1])];
    assert_eq!(next(&mut batcher.tried).await, [1], "after a quiet time");
    puts.push(writer.put(vec![2]));
    writer.put(vec![]).await.unwrap();
    assert!(batcher.tried.try_recv().is_err(), "it is not full");
    puts.push(writer.put(vec![3]));
    assert_eq!(next(&mut batcher.tried).await, [2, 3]);
    puts.push(writer.put(vec![4, 5]));
    writer.put(vec![]).await.unwrap();
    assert!(batcher.tried.try_recv().is_err(), "two are with the sink");
    gate.notify_one();
    assert_eq!(next(&mut batcher.tried).await, [4, 5]);
    (0..2).for_each(|_| gate.notify_one());
    // One permit is kept at most, so the last one comes when the other was taken.
    let all = async {
        for put in puts {
            assert!(put.await.is_ok())
        }
    };
    let open = async {
        loop {
            gate.notify_one();
            tokio::task::yield_now().await
        }
    };
    tokio::select! { () = all => {} () = open => {} }
}

#[actix_rt::test]
async fn while_writes_fail_the_sink_gets_one_batch_at_a_time() {
    let gate = Arc::new(Notify::new());
    let (writer, mut batcher) = start_ahead(World { away: 1, gate: Some(gate.clone()), ..World::default() });
    let first = writer.put(vec![1]);
    assert_eq!(next(&mut batcher.tried).await, [1]);
    gate.notify_one();
    assert_eq!(next(&mut batcher.tried).await, [1], "it is tried again");
    let second = writer.put(vec![2, 3]);
    writer.put(vec![]).await.unwrap();
    assert!(batcher.tried.try_recv().is_err());
    gate.notify_one();
    assert_eq!(next(&mut batcher.tried).await, [2, 3]);
    gate.notify_one();
    assert!(first.await.is_ok() && second.await.is_ok());
}

#[actix_rt::test]
async fn a_batch_holds_no_more_than_its_limit() {
    let limits = Limits { max_items: 10, ..at_once() };
    let mut batcher = start_with(World::default(), limits);
    let puts: Vec<_> = (0..25).map(|item| batcher.writer.put(vec![item])).collect();
    for put in puts {
        assert_eq!(put.await.unwrap().len(), 1);
    }
    let mut written = Vec::new();
    while let Ok(batch) = batcher.tried.try_recv() {
        assert!(batch.len() <= 10, "{batch:?}");
        written.extend(batch);
    }
    assert_eq!(written, (0..25).collect::<Vec<u32>>(), "in the order in which they came");
}

#[actix_rt::test]
async fn a_refused_item_is_answered_with_its_error_and_the_rest_is_written() {
    let mut batcher = start(World { refused: [3].into(), ..World::default() });
    let (one, two) = futures_util::join!(batcher.put(&[1, 2, 3]), batcher.put(&[4, 5]));
    assert_eq!(one, ["10", "20", "the store holds it is refused"]);
    assert_eq!(two, ["40", "50"]);
    let (mut written, mut refused) = (Vec::new(), Vec::new());
    while let Ok((items, is_written)) = batcher.told.try_recv() {
        if is_written { &mut written } else { &mut refused }.extend(items);
    }
    written.sort_unstable();
    assert_eq!((written, refused), (vec![1, 2, 4, 5], vec![3]), "each is told once");
    assert_eq!(batcher.put(&[6]).await, ["60"]);
}

#[actix_rt::test]
async fn a_batch_is_written_once_when_a_store_that_was_away_is_back() {
    let mut batcher = start(World { away: 3, ..World::default() });
    let put = batcher.writer.put(vec![2, 1]);
    next(&mut batcher.tried).await;
    next(&mut batcher.tried).await;
    assert!(batcher.failing_seconds() > 0.0, "it is seen");
    assert_eq!(put.await.unwrap().into_iter().map(Result::unwrap).collect::<Vec<_>>(), [20, 10]);
    assert_eq!(batcher.told.try_recv(), Ok((vec![2, 1], true)));
    assert!(batcher.told.try_recv().is_err());
    crate::testing::until("nothing fails", async || batcher.failing_seconds() == 0.0).await;
}

#[actix_rt::test]
async fn an_answer_finds_its_put_when_batches_are_split_and_retried() {
    let batcher = start(World { away: 6, refused: [12, 25].into(), ..World::default() });
    let puts: Vec<_> = (1..4_u32).map(|put| batcher.writer.put((put * 10..put * 10 + 7).collect())).collect();
    for (put, answers) in (1..4).zip(puts) {
        for (item, answer) in (put * 10..).zip(answers.await.unwrap()) {
            assert_eq!(answer.ok(), (item != 12 && item != 25).then_some(item * 10));
        }
    }
}

#[actix_rt::test]
async fn drain_waits_for_what_fails_and_for_what_waits() {
    let batcher = start(World { away: 3, ..World::default() });
    let puts = [batcher.writer.put(vec![1]), batcher.writer.put(vec![2])];
    batcher.address.send(Drain).await.expect("it is answered");
    for put in puts {
        // The answers were there before.
        let put = tokio::time::timeout(Duration::from_secs(1), put).await.expect("it is answered");
        assert!(put.unwrap().iter().all(Result::is_ok));
    }
    batcher.address.send(Drain).await.expect("with nothing to be written it is answered at once");
}

#[actix_rt::test]
async fn a_crash_interrupts_what_is_in_hand_and_what_waits() {
    let gate = Arc::new(Notify::new());
    let mut batcher = start(World { fatal: [1].into(), gate: Some(gate.clone()), ..World::default() });
    let fatal = batcher.writer.put(vec![1]);
    next(&mut batcher.tried).await;
    let waiting = batcher.writer.put(vec![2]);
    // So that it is in before the write goes on.
    batcher.writer.put(vec![]).await.unwrap();
    gate.notify_one();
    assert_eq!(fatal.await.unwrap_err(), Interrupted);
    assert_eq!(waiting.await.unwrap_err(), Interrupted);
    batcher.sink.world().gate = None;
    assert_eq!(batcher.put(&[3]).await, ["30"], "it works again");
}

#[actix_rt::test]
async fn a_batcher_that_is_gone_interrupts() {
    let never_started = crate::runtime::Unstarted::<Batcher<Numbers>>::default();
    let writer = Writer::new(never_started.address());
    drop(never_started);
    assert_eq!(writer.put(vec![1]).await.unwrap_err(), Interrupted);
}
