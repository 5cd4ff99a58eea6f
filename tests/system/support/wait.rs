//! How tests wait: for events, with a safety net and no other limit.

use std::time::{Duration, Instant};

/// A safety net, not a measure: whatever takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// How long or how often, by default and with `scripts/test --long`.
pub fn by_length<T>(default: T, long: T) -> T {
    if std::env::var_os("ODOSHI_TEST_LONG").is_some() { long } else { default }
}

/// Asks until there is an answer; `what` names it when there is none.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a number has come to `wanted`, however long that takes, as long as it changes.
pub async fn until_reached(what: &str, wanted: usize, mut measure: impl FnMut() -> usize) {
    let (mut last, mut since) = (measure(), Instant::now());
    while last != wanted {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = measure();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "{what}: {last} of {wanted}, and nothing moves");
    }
}
