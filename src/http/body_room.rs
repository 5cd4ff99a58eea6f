//! How many bytes of bodies are in memory, of all callers together and of one token.
//!
//! Room is taken as a body arrives, before it is copied. The first part of each body has room of its own, so that large
//! bodies that never end are in no small one's way.

use super::error::{ApiError, ApiResult};
use crate::domain::problem::ProblemKind;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

/// The first part of a body.
const FIRST_PART: usize = 64 * 1024;
/// Maximum number of bytes of first parts, and the part of it that one token may have.
const FIRST_PARTS: usize = 32 * 1024 * 1024;
const FIRST_SHARES: usize = 16;
/// Maximum number of bytes of the rest: this, or so many bodies of the largest size. One token may have one of those parts.
const REST: usize = 64 * 1024 * 1024;
const REST_SHARES: usize = 4;

/// Room for all bodies. Clones share it.
#[derive(Clone)]
pub(super) struct BodyRooms(Arc<[Pool; 2]>);

/// Room for a body; returned when dropped.
pub(super) struct BodyRoom {
    rooms: BodyRooms,
    token: Uuid,
    held: [usize; 2],
    permits: [Option<OwnedSemaphorePermit>; 2],
}

struct Pool {
    free: Arc<Semaphore>,
    by_token: Mutex<HashMap<Uuid, usize>>,
    per_token: usize,
}

impl Pool {
    fn new(bytes: usize, shares: usize) -> Self {
        let bytes = bytes.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(bytes)), by_token: Mutex::default(), per_token: bytes / shares }
    }

    fn take(&self, token: Uuid, bytes: usize) -> ApiResult<OwnedSemaphorePermit> {
        let mut by_token = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        let held = by_token.get(&token).copied().unwrap_or_default();
        if held + bytes > self.per_token {
            let detail = "this token is sending too many large bodies at once; try again";
            return Err(ApiError::new(ProblemKind::TooManyRequests, detail));
        }
        let permit = u32::try_from(bytes).ok().and_then(|bytes| self.free.clone().try_acquire_many_owned(bytes).ok());
        let crowded = || ApiError::new(ProblemKind::Unavailable, "too many large bodies are being sent; try again");
        let permit = permit.ok_or_else(crowded)?;
        by_token.insert(token, held + bytes);
        Ok(permit)
    }

    fn give_back(&self, token: Uuid, bytes: usize) {
        let mut by_token = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = by_token.get_mut(&token) {
            *held -= bytes;
            if *held == 0 {
                by_token.remove(&token);
            }
        }
    }
}

impl BodyRooms {
    /// Room for bodies of up to so many bytes.
    pub(super) fn new(max_body: usize) -> Self {
        let rest = REST.max(max_body.saturating_mul(REST_SHARES));
        Self(Arc::new([Pool::new(FIRST_PARTS, FIRST_SHARES), Pool::new(rest, REST_SHARES)]))
    }

    /// Room for a body of this token, with nothing in it yet.
    pub(super) fn body(&self, token: Uuid) -> BodyRoom {
        BodyRoom { rooms: self.clone(), token, held: [0; 2], permits: [None, None] }
    }
}

impl BodyRoom {
    /// Takes room for so many bytes more.
    pub(super) fn grow(&mut self, bytes: usize) -> ApiResult<()> {
        let first = bytes.min(FIRST_PART - self.held[0]);
        for (part, bytes) in [first, bytes - first].into_iter().enumerate().filter(|(_, bytes)| *bytes > 0) {
            let more = self.rooms.0[part].take(self.token, bytes)?;
            self.held[part] += bytes;
            match &mut self.permits[part] {
                Some(permit) => permit.merge(more),
                none => *none = Some(more),
            }
        }
        Ok(())
    }
}

impl Drop for BodyRoom {
    fn drop(&mut self) {
        for (pool, held) in self.rooms.0.iter().zip(self.held) {
            pool.give_back(self.token, held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::ResponseError;

    const SHARE: usize = REST / REST_SHARES;

    /// The status with which it is refused.
    fn grow(body: &mut BodyRoom, bytes: usize) -> Option<u16> {
        body.grow(bytes).err().map(|error| error.status_code().as_u16())
    }

    fn is_free(rooms: &BodyRooms) -> bool {
        let free: Vec<usize> = rooms.0.iter().map(|pool| pool.free.available_permits()).collect();
        free == [FIRST_PARTS, REST] && rooms.0.iter().all(|pool| pool.by_token.lock().expect("whole").is_empty())
    }

    #[test]
    fn large_bodies_of_one_token_leave_room_for_others_and_for_small_ones() {
        let (rooms, loud) = (BodyRooms::new(1_000), Uuid::now_v7());
        let mut bodies: Vec<BodyRoom> = (0..3).map(|_| rooms.body(loud)).collect();
        assert_eq!(grow(&mut bodies[0], FIRST_PART + SHARE - 10), None);
        assert_eq!(grow(&mut bodies[1], FIRST_PART + 10), None);
        assert_eq!(grow(&mut bodies[2], FIRST_PART + 1), Some(429), "it has had its share");
        let mut others: Vec<BodyRoom> = (1..REST_SHARES).map(|_| rooms.body(Uuid::now_v7())).collect();
        for other in &mut others {
            assert_eq!(grow(other, FIRST_PART + SHARE), None, "there is room for others");
        }
        let (mut late, mut small) = (rooms.body(Uuid::now_v7()), rooms.body(loud));
        assert_eq!(grow(&mut late, FIRST_PART + 1), Some(503), "there is none left");
        assert_eq!((grow(&mut small, 100), grow(&mut small, 100)), (None, None), "small ones need none of it");
        drop(others);
        let mut late = rooms.body(Uuid::now_v7());
        assert_eq!(grow(&mut late, FIRST_PART + 1), None, "it was given back");
    }

    #[test]
    fn all_room_is_given_back_whatever_was_refused() {
        let (rooms, token) = (BodyRooms::new(1_000), Uuid::now_v7());
        let mut bodies: Vec<BodyRoom> = (0..100).map(|_| rooms.body(token)).collect();
        let mut refused = 0;
        for body in &mut bodies {
            refused += usize::from((0..5).any(|_| body.grow(1_000_000).is_err()));
        }
        assert!(refused > 0 && refused < 100, "{refused}");
        drop(bodies);
        assert!(is_free(&rooms));
        // A limit that was set higher leaves room for several of the largest.
        let rooms = BodyRooms::new(REST);
        let mut four: Vec<BodyRoom> = (0..4).map(|_| rooms.body(Uuid::now_v7())).collect();
        assert!(four.iter_mut().all(|body| body.grow(REST).is_ok()));
    }
}
