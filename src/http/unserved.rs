//! Due commands that no node has a sender for. They are counted now and then.

use crate::store::Store;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a count is reused.
const UNSERVED_FOR: Duration = Duration::from_secs(10);
/// The longest that readiness waits for a count.
const UNSERVED_TIMEOUT: Duration = Duration::from_secs(2);
/// The count stops at this number.
const UNSERVED_LIMIT: usize = 100_000;

/// The last result of [`Dispatch::command_unserved`](crate::store::Dispatch::command_unserved). It
/// is cached because any client may ask for readiness.
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
            // The previous count says more than nothing. Readiness checks the store separately.
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
