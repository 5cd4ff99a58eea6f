//! Due commands that no node has a sender for, counted now and then.

use crate::store::Store;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long it counts what was found of commands that nobody serves.
const UNSERVED_FOR: Duration = Duration::from_secs(10);
/// Readiness waits no longer for it.
const UNSERVED_TIMEOUT: Duration = Duration::from_secs(2);
/// Counted no further.
const UNSERVED_LIMIT: usize = 100_000;

/// What [`Dispatch::command_unserved`](crate::store::Dispatch::command_unserved) said last: readiness is asked for by everybody.
#[derive(Debug, Default)]
pub struct Unserved(tokio::sync::Mutex<Option<(Instant, BTreeMap<String, i64>)>>);

impl Unserved {
    pub(super) async fn look(&self, store: &dyn Store) -> BTreeMap<String, i64> {
        let mut last = self.0.lock().await;
        if let Some((at, unserved)) = &*last
            && at.elapsed() < UNSERVED_FOR
        {
            return unserved.clone();
        }
        let asked = tokio::time::timeout(UNSERVED_TIMEOUT, store.command_unserved(UNSERVED_LIMIT)).await;
        let unserved: BTreeMap<_, _> = match asked {
            Ok(Ok(unserved)) => unserved.into_iter().collect(),
            // What it was before says more than nothing; whether the store answers is asked by itself.
            failed => {
                let why = failed.map_or_else(|elapsed| elapsed.to_string(), |failed| format!("{failed:?}"));
                log::warn!(error = why.as_str(); "commands that nobody serves can't be counted now");
                last.take().map(|(_, unserved)| unserved).unwrap_or_default()
            }
        };
        *last = Some((Instant::now(), unserved.clone()));
        unserved
    }
}
