//! Limits per caller: requests a second, open streams, and bytes of bodies in memory.

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
/// Maximum number of bytes of bodies in memory, of all callers together: this, or so many bodies of the largest size.
pub(super) const BODIES: usize = 64 * 1024 * 1024;
const LARGEST_BODIES: usize = 4;
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
    /// Bytes of bodies that may still come into memory.
    bodies: Arc<Semaphore>,
    bodies_by_token: Mutex<HashMap<Uuid, usize>>,
    bodies_per_token: usize,
}

/// Room for a body in memory, which grows with it; returned when dropped.
pub(super) struct BodyRoom {
    limits: Limits,
    token: Uuid,
    held: usize,
    room: Option<OwnedSemaphorePermit>,
}

/// The right to one open stream; returned when dropped.
pub(super) struct StreamRoom {
    limits: Limits,
    token: Uuid,
    _room: OwnedSemaphorePermit,
}

impl Limits {
    /// This many requests a second and open streams for each token, and bodies of up to so many bytes.
    pub fn new(requests_per_second: u32, streams_per_token: usize, max_body: usize) -> Self {
        let bodies = BODIES.max(LARGEST_BODIES.saturating_mul(max_body)).min(Semaphore::MAX_PERMITS);
        let quota = Quota::per_second(NonZeroU32::new(requests_per_second).unwrap_or(NonZeroU32::MIN));
        Self(Arc::new(Inner {
            rate: RateLimiter::keyed(quota),
            requests: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(STREAMS)),
            streams: Mutex::default(),
            streams_per_token,
            bodies: Arc::new(Semaphore::new(bodies)),
            bodies_by_token: Mutex::default(),
            bodies_per_token: bodies / LARGEST_BODIES,
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

    /// Room for a body of this token, with nothing in it yet.
    pub(super) fn body(&self, token: Uuid) -> BodyRoom {
        BodyRoom { limits: self.clone(), token, held: 0, room: None }
    }
}

impl BodyRoom {
    /// Takes room for so many bytes more, before they are copied.
    pub(super) fn grow(&mut self, bytes: usize) -> ApiResult<()> {
        let limits = &self.limits.0;
        let mut by_token = limits.bodies_by_token.lock().unwrap_or_else(PoisonError::into_inner);
        let held = by_token.entry(self.token).or_default();
        if *held + bytes > limits.bodies_per_token {
            let detail = "this token is sending too many large bodies at once; try again";
            return Err(ApiError::new(ProblemKind::TooManyRequests, detail));
        }
        let more = u32::try_from(bytes).ok().and_then(|bytes| limits.bodies.clone().try_acquire_many_owned(bytes).ok());
        let Some(more) = more else {
            return Err(ApiError::new(ProblemKind::Unavailable, "too many large bodies are being sent; try again"));
        };
        *held += bytes;
        self.held += bytes;
        match &mut self.room {
            Some(room) => room.merge(more),
            None => self.room = Some(more),
        }
        Ok(())
    }
}

impl Drop for BodyRoom {
    fn drop(&mut self) {
        let mut by_token = self.limits.0.bodies_by_token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = by_token.get_mut(&self.token) {
            *held -= self.held;
            if *held == 0 {
                by_token.remove(&self.token);
            }
        }
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
        let (limits, loud, quiet) = (Limits::new(2, 1, 1_000), Uuid::now_v7(), Uuid::now_v7());
        // Time passes during the loop, in which a few more requests are allowed.
        assert!((0..10_000).any(|_| limits.request(loud).is_err()));
        assert!(limits.request(quiet).is_ok());
    }

    #[test]
    fn bodies_of_one_token_leave_room_for_those_of_others_and_none_is_more_than_there_is() {
        let (limits, loud) = (Limits::new(1, 1, 1_000), Uuid::now_v7());
        let mut bodies: Vec<BodyRoom> = (0..3).map(|_| limits.body(loud)).collect();
        let share = BODIES / LARGEST_BODIES;
        bodies[0].grow(share - 10).expect("there is room");
        bodies[1].grow(10).expect("there is room");
        assert!(bodies[2].grow(1).expect_err("it has had its share").to_string().contains("this token"));
        let mut others: Vec<BodyRoom> = (1..LARGEST_BODIES).map(|_| limits.body(Uuid::now_v7())).collect();
        for other in &mut others {
            other.grow(share).expect("there is room for others");
        }
        let mut late = limits.body(Uuid::now_v7());
        assert!(late.grow(1).is_err(), "there is none left");
        drop(others);
        late.grow(1).expect("it was given back");
        drop(bodies);
        assert_eq!(limits.0.bodies.available_permits(), BODIES - 1);
        assert_eq!(limits.0.bodies_by_token.lock().expect("whole").len(), 1);
        // A limit that was set higher leaves room for several of the largest.
        Limits::new(1, 1, BODIES).body(loud).grow(BODIES).expect("one fits");
    }

    #[test]
    fn room_for_a_stream_is_given_back() {
        let (limits, token) = (Limits::new(1, 1, 1_000), Uuid::now_v7());
        let Ok(room) = limits.stream(token) else { panic!("there is room") };
        assert!(limits.stream(token).is_err());
        assert!(limits.stream(Uuid::now_v7()).is_ok());
        drop(room);
        assert!(limits.stream(token).is_ok());
    }
}
