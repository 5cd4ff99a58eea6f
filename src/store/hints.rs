//! Hints between nodes: what may be worth a look. A lost hint costs latency and nothing else.

use super::error::StoreResult;
use crate::domain::hint::Hint;
use async_trait::async_trait;

/// Hints between nodes. On SQLite there are no other nodes.
#[async_trait]
pub trait Hints {
    /// Notifies the other nodes. False when there are none, as on SQLite.
    ///
    /// A node that misses a notification finds new commands by polling within 10 s.
    async fn hint_send(&self, hints: &[Hint]) -> StoreResult<bool>;

    /// Waits for the next hints of other nodes. [`Hint::Everything`] after a lost connection, or
    /// when too many waited.
    ///
    /// On SQLite: waits forever.
    async fn hint_next(&self) -> Vec<Hint>;
}
