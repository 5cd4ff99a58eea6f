//! The signal that stops a part of the agent.

use tokio::sync::watch;

/// Waits until the value is true, or its sender is gone.
pub(super) async fn told_to(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
