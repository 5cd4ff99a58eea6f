//! The stages that an asset goes through: copy, update, remove, forget.

use crate::database::{Asset, Change, Database, DatabaseError, Removal};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use odoshi::error_chain::ErrorChain;
use odoshi::runtime::Pool;
use odoshi::runtime::pool::Outcomes;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the objects come from.
pub const ORIGINALS: &str = "uploads";

/// Rows to change in one transaction. 100 rows take SQLite about as long as the sync at the end.
const ROWS_PER_TRANSACTION: usize = 100;
/// Originals that may wait for the end of their grace period, some hundred bytes each. Once there are more, copying waits.
const WAITING_REMOVALS: usize = 100_000;

/// A row that is not at its new place, or whose original is still to be removed.
#[derive(Clone)]
pub struct Job {
    pub asset: Arc<Asset>,
    removal: Option<Removal>,
}

impl Job {
    pub fn new(asset: Asset, removal: Option<Removal>) -> Self {
        Self { asset: Arc::new(asset), removal }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("the bucket failed")]
    Bucket(#[from] object_store::Error),
    #[error("{0} is no path of an object")]
    Path(String),
    #[error("{path} has {size} bytes with checksum {checksum}, which is not what its row says")]
    Differs { path: Path, size: u64, checksum: String },
    #[error("the row was changed by somebody else")]
    RowChanged,
    // Of the whole batch.
    #[error("the database failed")]
    Database(#[from] Arc<DatabaseError>),
    #[error("the path is {0}")]
    NotMoved(String),
}

impl From<DatabaseError> for MoveError {
    fn from(error: DatabaseError) -> Self {
        Self::Database(Arc::new(error))
    }
}

/// What is moved.
#[derive(Clone)]
pub struct Migration {
    pub bucket: Arc<dyn ObjectStore>,
    pub database: Database,
}

/// What a look at all rows found.
#[derive(Default)]
pub struct Checked {
    pub rows: u64,
    /// Rows that don't point to their object at its new place.
    pub wrong: u64,
    /// The first of them, with the reasons.
    pub problems: Vec<String>,
    pub originals: u64,
}

impl Migration {
    pub fn pool(
        &self,
        copies: usize,
        updates: usize,
        removals: usize,
        grace: Duration,
    ) -> (Pool<Job, MoveError>, Outcomes<Job, (), MoveError>) {
        let (copier, updater, remover, forgetter) = (self.clone(), self.clone(), self.clone(), self.clone());
        Pool::builder()
            .stage("copy", copies, move |job| copier.clone().copy(job))
            .batched("update", updates, ROWS_PER_TRANSACTION, move |jobs| updater.clone().update(jobs))
            .queue(updates.max(1) * ROWS_PER_TRANSACTION)
            .then("remove", removals, move |removal| remover.clone().remove(removal, grace))
            .queue(WAITING_REMOVALS)
            .batched("forget", 1, ROWS_PER_TRANSACTION, move |removed| forgetter.clone().forget(removed))
            .queue(ROWS_PER_TRANSACTION)
            .build()
    }

    /// Copies the object to its new place and reads the copy.
    async fn copy(self, job: Job) -> Result<Job, MoveError> {
        if job.removal.is_some() {
            return Ok(job);
        }
        let (asset, from) = (&job.asset, parsed(&job.asset.path)?);
        let to = new_place(asset);
        // An earlier run may have copied it, and ended before the update.
        match self.check(&to, asset).await {
            Err(MoveError::Differs { .. } | MoveError::Bucket(object_store::Error::NotFound { .. })) => {
                self.bucket.copy(&from, &to).await?;
                self.check(&to, asset).await?;
            }
            checked => checked?,
        }
        Ok(job)
    }

    async fn update(self, jobs: Vec<Job>) -> Vec<Result<Removal, MoveError>> {
        let is_new = |job: &&Job| job.removal.is_none();
        let change = |job: &Job| {
            let Asset { id, path, .. } = &*job.asset;
            Change { asset: *id, from: path.clone(), to: new_place(&job.asset).into() }
        };
        let changes: Vec<_> = jobs.iter().filter(is_new).map(change).collect();
        let recorded = self.database.record(changes, now_ms()).await.map_err(Arc::new);
        let mut recorded = recorded.map(Vec::into_iter);
        let mut outcome = |job: Job| match (job.removal, &mut recorded) {
            (Some(removal), _) => Ok(removal),
            (None, Ok(removals)) => removals.next().flatten().ok_or(MoveError::RowChanged),
            (None, Err(error)) => Err(error.clone().into()),
        };
        jobs.into_iter().map(&mut outcome).collect()
    }

    /// Removes the original at the end of its grace period, unless a row points to it.
    async fn remove(self, removal: Removal, grace: Duration) -> Result<i64, MoveError> {
        // A clock that was set back doesn't make it longer.
        let passed = u64::try_from(now_ms() - removal.recorded_at).unwrap_or(0);
        tokio::time::sleep(grace.saturating_sub(Duration::from_millis(passed))).await;
        let original = parsed(&removal.original)?;
        // Assets may share an original. The last one to be moved removes it.
        if !self.database.is_in_use(removal.original).await? {
            match self.bucket.delete(&original).await {
                // An earlier run removed it, and ended before it was noted.
                Err(object_store::Error::NotFound { .. }) => {}
                removed => removed?,
            }
        }
        Ok(removal.asset)
    }

    async fn forget(self, removed: Vec<i64>) -> Vec<Result<(), MoveError>> {
        let count = removed.len();
        let forgotten = self.database.forget(removed).await.map_err(Arc::new);
        (0..count).map(|_| forgotten.clone().map_err(MoveError::from)).collect()
    }

    /// Reads an object, and compares it with its row.
    async fn check(&self, path: &Path, asset: &Asset) -> Result<(), MoveError> {
        let mut chunks = self.bucket.get(path).await?.into_stream();
        let (mut size, mut digest) = (0, Sha256::new());
        while let Some(chunk) = chunks.try_next().await? {
            size += chunk.len() as u64;
            digest.update(&chunk);
        }
        let checksum = hex(&digest.finalize());
        if i64::try_from(size) == Ok(asset.size) && checksum == asset.checksum {
            return Ok(());
        }
        Err(MoveError::Differs { path: path.clone(), size, checksum })
    }

    /// Reads every object that a row points to, and counts the originals that are left.
    pub async fn check_all(&self, workers: usize, most_problems: u64) -> Result<Checked, MoveError> {
        let checker = self.clone();
        let check = move |asset: Arc<Asset>| {
            let checker = checker.clone();
            async move {
                if !is_moved(&asset) {
                    return Err(MoveError::NotMoved(asset.path.clone()));
                }
                checker.check(&new_place(&asset), &asset).await
            }
        };
        let mut checked = Checked::default();
        let mut after = i64::MIN;
        loop {
            // A page of rows fits into the queue and the outcomes.
            let page = self.database.page(after).await?;
            let Some((last, _)) = page.last() else { break };
            after = last.id;
            checked.rows += page.len() as u64;
            let (pool, mut outcomes) =
                Pool::builder().stage("check", workers, check.clone()).queue(page.len()).outcomes(page.len()).build();
            for (asset, _) in page {
                // It is open until it is dropped.
                pool.submit(Arc::new(asset)).await.ok();
            }
            drop(pool);
            while let Some(outcome) = outcomes.next().await {
                if let Err(error) = outcome {
                    checked.wrong += 1;
                    if checked.wrong <= most_problems {
                        checked.problems.push(format!("row {}: {}", error.item.id, error.chain()));
                    }
                }
            }
        }
        let mut originals = self.bucket.list(Some(&Path::from(ORIGINALS)));
        while originals.try_next().await?.is_some() {
            checked.originals += 1;
        }
        Ok(checked)
    }
}

/// `clients/<id>/assets/<name>`. Names with slashes or dots stay one part.
fn new_place(asset: &Asset) -> Path {
    Path::from_iter(["clients", &asset.client.to_string(), "assets", &asset.name])
}

pub fn is_moved(asset: &Asset) -> bool {
    asset.path == new_place(asset).as_ref()
}

fn parsed(path: &str) -> Result<Path, MoveError> {
    Path::parse(path).map_err(|_| MoveError::Path(path.to_owned()))
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        // A String takes everything.
        write!(hex, "{byte:02x}").ok();
        hex
    })
}
