//! What is counted.

use super::super::Pool;
use super::rest;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

#[tokio::test]
async fn metrics_count_each_job_once_per_stage() {
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("first", 2, |number| async move { if number == 0 { Err(()) } else { Ok(number) } })
        .queue(10)
        .then("second", 2, |number| async move {
            assert!(number != 1, "a panic");
            Ok(number)
        })
        .queue(10)
        .build();
    for number in 0..10 {
        pool.submit(number).await.unwrap();
    }
    assert_eq!(pool.snapshot()[0].waiting, 10);
    pool.close();
    rest(&mut outcomes).await;
    let [first, second] = pool.snapshot()[..] else { panic!("two stages") };
    assert_eq!((first.stage, first.waiting, first.running, first.done, first.failed), ("first", 0, 0, 9, 1));
    assert_eq!((second.running, second.done, second.failed, second.panicked), (0, 8, 0, 1));

    let mut registry = Registry::default();
    registry.register_collector(Box::new(pool.collector("test")));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in [
        r#"pool_waiting{pool="test",stage="first"} 0"#,
        r#"pool_running{pool="test",stage="second"} 0"#,
        r#"pool_jobs_total{pool="test",stage="first",outcome="failed"} 1"#,
        r#"pool_jobs_total{pool="test",stage="second",outcome="done"} 8"#,
        r#"pool_busy_seconds_total{pool="test",stage="first"} "#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}
