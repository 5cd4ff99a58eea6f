//! Makes objects and their rows, to have something to move.

use crate::database::{Asset, Database};
use crate::migration::{MoveError, ORIGINALS, hex};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use odoshi::runtime::Pool;
use sha2::{Digest, Sha256};
use std::error::Error;
use std::sync::Arc;

const WORKERS: usize = 100;
const CLIENTS: u32 = 100;

/// Makes `objects` if the database has no rows. Returns how many it made.
///
/// The rows are written last and at once. A run that ends before them makes the same objects again.
pub async fn run(
    bucket: &Arc<dyn ObjectStore>,
    database: &Database,
    objects: u32,
) -> Result<Option<usize>, Box<dyn Error>> {
    if database.rows().await? > 0 {
        return Ok(None);
    }
    let put = {
        let bucket = bucket.clone();
        move |number| put(bucket.clone(), number)
    };
    let (pool, mut outcomes) = Pool::builder().stage("put", WORKERS, put).build();
    let feeder = tokio::spawn(async move {
        for number in 1..=objects {
            // Closed if an object failed.
            if pool.submit(number).await.is_err() {
                return;
            }
        }
    });
    let mut rows = Vec::new();
    while let Some(outcome) = outcomes.next().await {
        rows.push(outcome?);
    }
    feeder.await?;
    let made = rows.len();
    database.insert(rows).await?;
    Ok(Some(made))
}

/// Puts an object whose content follows from its number.
async fn put(bucket: Arc<dyn ObjectStore>, number: u32) -> Result<Asset, MoveError> {
    let block = Sha256::digest(number.to_be_bytes());
    let size = 1 + number as usize * 7_919 % 16_384;
    let content: Vec<u8> = block.iter().copied().cycle().take(size).collect();
    let checksum = hex(&Sha256::digest(&content));
    let path = Path::from(format!("{ORIGINALS}/{number:08}"));
    bucket.put(&path, content.into()).await?;
    Ok(Asset {
        id: number.into(),
        client: (1 + number % CLIENTS).into(),
        name: format!("photo {number}.jpg"),
        path: path.into(),
        size: size as i64,
        checksum,
    })
}
