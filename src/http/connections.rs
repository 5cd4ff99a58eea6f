//! Counts this process's connections, and refuses those beyond the limit.
//!
//! Each connection is counted when it is accepted. One beyond the limit gets `503` on its first
//! request and is closed. A WebSocket is refused a little earlier, so that agents cannot take the
//! last connections from operators.

use super::error::ApiError;
use crate::domain::problem::ProblemKind;
use crate::metrics::Metrics;
use actix_web::dev::{Extensions, ServiceRequest};
use actix_web::http::ConnectionType;
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Maximum number of connections that are kept free of WebSockets.
const FOR_CALLS_MAX: usize = 256;

/// The connections of this process. Clones share the count.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    open: AtomicUsize,
    limit: usize,
    for_calls: usize,
    metrics: Metrics,
}

/// One open connection, counted until it is dropped.
#[derive(Debug)]
struct Slot {
    connections: Connections,
    refused: bool,
}

impl Connections {
    /// No connections yet, and at most `limit` of them.
    pub fn new(limit: usize, metrics: Metrics) -> Self {
        let for_calls = (limit / 10).clamp(1, FOR_CALLS_MAX);
        Self(Arc::new(Inner { open: AtomicUsize::new(0), limit, for_calls, metrics }))
    }

    /// Counts an accepted connection for as long as its data lives.
    pub(super) fn accepted(&self, data: &mut Extensions) {
        data.insert(self.slot());
    }

    fn slot(&self) -> Slot {
        let inner = &*self.0;
        let open = inner.open.fetch_add(1, Ordering::Relaxed) + 1;
        inner.metrics.connections(open);
        let refused = open > inner.limit;
        if refused {
            inner.metrics.connection_refused();
        }
        Slot { connections: self.clone(), refused }
    }

    /// Refuses a WebSocket if the remaining connections are kept for other calls.
    ///
    /// # Errors
    /// `503`, when there is no room.
    pub(super) fn room_for_stream(&self) -> Result<(), ApiError> {
        let inner = &*self.0;
        if inner.open.load(Ordering::Relaxed) <= inner.limit - inner.for_calls {
            return Ok(());
        }
        inner.metrics.connection_refused();
        Err(no_room())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let inner = &*self.connections.0;
        let open = inner.open.fetch_sub(1, Ordering::Relaxed) - 1;
        inner.metrics.connections(open);
    }
}

fn no_room() -> ApiError {
    ApiError::new(ProblemKind::Unavailable, "this server has no room for more connections; try another one, or later")
}

/// The answer to a request on a connection beyond the limit; `None` on any other.
pub(super) fn refusal(request: &ServiceRequest) -> Option<HttpResponse> {
    let refused = HttpRequest::conn_data::<Slot>(request.request()).is_some_and(|slot| slot.refused);
    refused.then(|| {
        let mut response = no_room().error_response();
        response.head_mut().set_connection_type(ConnectionType::Close);
        response
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_beyond_the_limit_are_refused_until_one_closes() {
        let connections = Connections::new(2, Metrics::default());
        let (first, second) = (connections.slot(), connections.slot());
        assert!(!first.refused && !second.refused);
        let third = connections.slot();
        assert!(third.refused);
        drop((second, third));
        assert!(!connections.slot().refused);
    }

    #[test]
    fn streams_leave_a_tenth_of_the_connections_to_calls() {
        let connections = Connections::new(20, Metrics::default());
        let mut slots: Vec<_> = (0..18).map(|_| connections.slot()).collect();
        assert!(connections.room_for_stream().is_ok());
        slots.push(connections.slot());
        assert!(connections.room_for_stream().is_err());
        assert!(!connections.slot().refused, "a call still has room");
    }
}
