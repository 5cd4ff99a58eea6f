//! Limits per caller: requests a second, and open streams.

use super::error::{ApiError, ApiResult};
use crate::domain::problem::ProblemKind;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

/// Maximum number of open streams (events, long lists and waiting check-ins) of all callers
/// together.
const STREAMS: usize = 10_000;
/// Number of requests after which idle callers are forgotten.
const FORGET_EVERY: u64 = 100_000;

/// See the module. Clones share their counts.
#[derive(Clone)]
pub struct Limits(Arc<Inner>);

struct Inner {
    rate: DefaultKeyedRateLimiter<Uuid>,
    requests: AtomicU64,
    room: Arc<Semaphore>,
    streams: Mutex<HashMap<Uuid, usize>>,
    streams_per_token: usize,
}

/// The right to one open stream; returned when dropped.
pub(super) struct StreamRoom {
    limits: Limits,
    token: Uuid,
    _room: OwnedSemaphorePermit,
}

impl Limits {
    /// This many requests a second and open streams for each token.
    pub fn new(requests_per_second: u32, streams_per_token: usize) -> Self {
        let quota = Quota::per_second(NonZeroU32::new(requests_per_second).unwrap_or(NonZeroU32::MIN));
        Self(Arc::new(Inner {
            rate: RateLimiter::keyed(quota),
            requests: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(STREAMS)),
            streams: Mutex::default(),
            streams_per_token,
        }))
    }

    /// Counts a request of this token against its rate.
    pub(super) fn request(&self, token: Uuid) -> ApiResult<()> {
        if self.0.requests.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.0.rate.retain_recent();
        }
        let passes = self.0.rate.check_key(&token);
        passes.map_err(|_| ApiError::new(ProblemKind::TooManyRequests, "this token has called too often; slow down"))
    }

    /// Takes the right to a stream for this token.
    pub(super) fn stream(&self, token: Uuid) -> ApiResult<StreamRoom> {
        let room = self.0.room.clone().try_acquire_owned();
        let room = room.map_err(|_| ApiError::new(ProblemKind::Unavailable, "too many streams are open; try again"))?;
        let mut streams = self.0.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let open = streams.entry(token).or_default();
        if *open >= self.0.streams_per_token {
            let detail = format!("this token has {open} streams open, which is as many as it may");
            return Err(ApiError::new(ProblemKind::TooManyRequests, detail));
        }
        *open += 1;
        Ok(StreamRoom { limits: self.clone(), token, _room: room })
    }
}

impl Drop for StreamRoom {
    fn drop(&mut self) {
        let mut streams = self.limits.0.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = streams.get_mut(&self.token) {
            *open -= 1;
            if *open == 0 {
                streams.remove(&self.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_that_calls_too_often_is_in_nobody_elses_way() {
        let (limits, loud, quiet) = (Limits::new(2, 1), Uuid::now_v7(), Uuid::now_v7());
        // Time passes during the loop, in which a few more requests are allowed.
        assert!((0..10_000).any(|_| limits.request(loud).is_err()));
        assert!(limits.request(quiet).is_ok());
    }

    #[test]
    fn room_for_a_stream_is_given_back() {
        let (limits, token) = (Limits::new(1, 1), Uuid::now_v7());
        let Ok(room) = limits.stream(token) else { panic!("there is room") };
        assert!(limits.stream(token).is_err());
        assert!(limits.stream(Uuid::now_v7()).is_ok());
        drop(room);
        assert!(limits.stream(token).is_ok());
    }
}
