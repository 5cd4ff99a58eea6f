//! The zone data that this process uses: read at the start, and again when they have changed.

use crate::domain::schedule::Zones;
use std::sync::{Arc, PoisonError, RwLock};

/// See the module. Clones share the data.
#[derive(Clone, Debug)]
pub struct ZoneData(Arc<RwLock<Arc<Zones>>>);

impl ZoneData {
    /// Reads them. Blocks for a moment.
    pub fn load() -> Self {
        Self(Arc::new(RwLock::new(Arc::new(Zones::load()))))
    }

    /// The data now.
    pub fn get(&self) -> Arc<Zones> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads them again if they have changed, or `anyway`. Returns whether they were read.
    pub async fn refresh(&self, anyway: bool) -> bool {
        let zones = self.get();
        let read = tokio::task::spawn_blocking(move || (anyway || zones.is_stale()).then(Zones::load)).await;
        match read {
            Ok(Some(zones)) => {
                *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(zones);
                true
            }
            Ok(None) => false,
            // The runtime is stopping.
            Err(_) => false,
        }
    }
}
