//! Notifies the service manager over systemd's `sd_notify` protocol: the server is ready, alive, or
//! stopping. Does nothing if `NOTIFY_SOCKET` isn't set.

use crate::error_chain::ErrorChain;
use sd_notify::NotifyState;
use tokio::task::JoinHandle;

/// Actions are accepted.
pub(super) fn ready() {
    tell(NotifyState::Ready);
}

/// The server drains.
pub(super) fn stopping() {
    tell(NotifyState::Stopping);
}

/// Sends keep-alives while the actors' arbiter makes progress, twice as often as the manager
/// requires, if it requires them.
pub(super) fn keep_alive() -> Option<JoinHandle<()>> {
    let every = sd_notify::watchdog_enabled()? / 2;
    Some(actix_rt::spawn(async move {
        loop {
            tell(NotifyState::Watchdog);
            tokio::time::sleep(every).await;
        }
    }))
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!(error:% = error.chain(); "the service manager could not be told");
    }
}
