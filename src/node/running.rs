//! A running server, until a signal or a fault, and its drain, source first.

use super::error::{AppError, io_error};
use super::systemd;
use super::wiring::Stages;
use crate::context::Node;
use crate::error_chain::ErrorChain;
use crate::os_signals::StopSignals;
use crate::runtime::Supervision;
use crate::signals::Presence;
use crate::store::{Store, StoreError};
use actix_web::dev::ServerHandle;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long a fenced node may take to close its agents' connections.
const FENCED_TIMEOUT: Duration = Duration::from_secs(2);
/// How long signing off from the store may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// A running server.
pub struct Running {
    pub(super) node: Arc<Node>,
    pub(super) address: SocketAddr,
    /// Set while the store is away: the task that waits for it.
    pub(super) preparing: Option<JoinHandle<Result<(), AppError>>>,
    pub(super) supervision: Supervision,
    pub(super) stages: Stages,
    pub(super) http: ServerHandle,
    pub(super) _lock: Option<File>,
}

impl Running {
    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The parts of the node.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.node.store
    }

    /// The agents that are connected here.
    pub fn presence(&self) -> &Presence {
        &self.node.presence
    }

    /// Wakes the resolver after actions were put into the store directly.
    pub fn actions_submitted(&self) {
        self.node.signals.actions_submitted();
    }

    /// The state of the actors.
    pub fn supervision(&self) -> &Supervision {
        &self.supervision
    }

    /// Waits until the store is ready.
    ///
    /// # Errors
    /// If the store turns out to be unusable.
    pub async fn ready(&mut self) -> Result<(), AppError> {
        let Some(preparing) = &mut self.preparing else { return Ok(()) };
        let prepared =
            preparing.await.unwrap_or_else(|error| Err(AppError::Store(StoreError::Unusable(error.to_string()))));
        self.preparing = None;
        prepared
    }

    /// Serves until a signal or a fault, then drains.
    ///
    /// # Errors
    /// If the store can't be used, another node took over, an actor crashed too often, or draining
    /// took too long.
    pub async fn run(mut self) -> Result<(), AppError> {
        let mut signals = StopSignals::listen().map_err(io_error("signals"))?;
        let (store, supervision) = (self.node.store.clone(), self.supervision.clone());
        let alive = systemd::keep_alive();
        let serving = async {
            match self.ready().await {
                Ok(()) => {
                    systemd::ready();
                    std::future::pending().await
                }
                Err(error) => error,
            }
        };
        let fault = tokio::select! {
            () = signals.next() => None,
            actor = supervision.escalated() => Some(AppError::Exhausted(actor)),
            () = store.node_lost() => Some(AppError::TakenOver),
            error = serving => Some(error),
        };
        match &fault {
            Some(fault) => log::error!(error:% = fault.chain(); "the server drains and stops"),
            None => log::info!("the server drains and stops; a second signal stops it at once"),
        }
        systemd::stopping();
        let end = async {
            match fault {
                Some(AppError::TakenOver) => self.leave().await,
                _ => self.drain().await,
            }
        };
        let drained = tokio::select! {
            drained = end => drained,
            () = signals.next_on_purpose() => Err(AppError::Interrupted),
        };
        if let Some(alive) = alive {
            alive.abort();
        }
        fault.map_or(drained, Err)
    }

    /// Stops intake and finishes work in flight, source first, within `shutdown_timeout`.
    ///
    /// # Errors
    /// If the time was too short. Nothing is lost by that.
    pub async fn drain(self) -> Result<(), AppError> {
        let within = self.node.config.shutdown_timeout.0;
        self.end(within, Stages::drain).await
    }

    /// Closes the agents' connections soon. A fenced node can finish nothing.
    async fn leave(self) -> Result<(), AppError> {
        self.end(FENCED_TIMEOUT, Stages::leave).await
    }

    async fn end(self, within: Duration, stages: impl AsyncFnOnce(&Stages)) -> Result<(), AppError> {
        self.supervision.set_draining();
        if let Some(preparing) = self.preparing {
            preparing.abort();
        }
        let drain = async {
            stages(&self.stages).await;
            self.http.stop(true).await;
        };
        let drained = tokio::time::timeout(within, drain).await;
        if drained.is_err() {
            self.http.stop(false).await;
        }
        match tokio::time::timeout(GOODBYE_TIMEOUT, self.node.store.node_stop()).await {
            Ok(Ok(())) => {}
            // Other nodes notice the missing heartbeat.
            _ => log::info!("the store could not be told that this node stops"),
        }
        log::info!(complete = drained.is_ok(); "the server has stopped");
        drained.map_err(|_| AppError::Deadline)
    }
}
