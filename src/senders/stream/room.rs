//! Room for large commands on their way to agents. Plain data, so nothing to test.

use futures_util::future::LocalBoxFuture;
use tokio::sync::OwnedSemaphorePermit;

/// Room that is being waited for. It keeps its place in the queue until it is dropped.
pub(super) type Asking = Option<LocalBoxFuture<'static, Option<OwnedSemaphorePermit>>>;

/// The room that was asked for, when it is there.
pub(super) async fn asked(asking: &mut Asking) -> Option<OwnedSemaphorePermit> {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}
