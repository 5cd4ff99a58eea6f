//! What a service manager is told, by the protocol of systemd's `sd_notify`: that the server is ready, that it lives, that it
//! stops. Where `NOTIFY_SOCKET` isn't set nobody is told anything.

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

/// Says that the actors' arbiter moves on, twice as often as the manager wants to hear it, if it does.
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
        log::warn!(error = error.to_string().as_str(); "the service manager could not be told");
    }
}
