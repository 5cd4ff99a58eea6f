//! One attempt to send an event.

use crate::domain::hook::{error_to_keep, next_attempt};
use crate::senders::{HookClient, HookFailure, HookTarget};
use crate::store::{HookClaim, HookOutcome, Store};
use actix_web::web::Bytes;
use futures_util::FutureExt;
use rand::RngExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long an attempt goes on after the process was told to stop. A receiver that answers at all
/// mostly does so within this time, and then needn't be sent the event again.
const GRACE: Duration = Duration::from_secs(2);

/// What an attempt needs.
pub(super) struct Attempt {
    pub(super) client: Arc<dyn HookClient>,
    pub(super) target: Arc<HookTarget>,
    pub(super) claim: HookClaim,
    pub(super) stop: CancellationToken,
    /// For its time.
    pub(super) store: Arc<dyn Store>,
}

/// An attempt that has ended.
pub(super) struct Ended {
    pub(super) claim: HookClaim,
    pub(super) outcome: HookOutcome,
}

/// Sends an event. A panic of the client is a failed attempt: no hook may crash the server.
pub(super) async fn attempt(attempt: Attempt) -> Ended {
    let Attempt { client, target, claim, stop, store } = attempt;
    let body = Bytes::from(claim.payload.clone());
    let sending = AssertUnwindSafe(async {
        crate::fault_point!("hooks.send");
        client.post(&target, &claim.id, body).await
    });
    let sending = tokio::time::timeout(target.timeout, sending.catch_unwind());
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    let sent = tokio::select! {
        biased;
        sent = sending => sent,
        () = stopped => return Ended { claim, outcome: HookOutcome::Released },
    };
    let failure = match sent {
        Ok(Ok(Ok(()))) => return Ended { claim, outcome: HookOutcome::Delivered },
        Ok(Ok(Err(failure))) => failure,
        Ok(Err(_)) => temporary("sending it crashed".into()),
        Err(_) => temporary(format!("no answer within {} ms", target.timeout.as_millis())),
    };
    let HookFailure { error, retry_after, permanent } = failure;
    let error = error_to_keep(&error);
    log::info!(hook = claim.hook.as_str(), event = claim.id.as_str(), attempts = claim.attempts,
        error = error.as_str(); "an event could not be sent to a hook");
    let jitter = rand::rng().random_range(0.0..1.0);
    let next = next_attempt(claim.attempts, claim.created_at, store.now(), retry_after, jitter);
    Ended { claim, outcome: HookOutcome::Failed { error, next: next.filter(|_| !permanent) } }
}

fn temporary(error: String) -> HookFailure {
    HookFailure { error, retry_after: None, permanent: false }
}
