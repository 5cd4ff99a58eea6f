//! How many tests work at a time: as many as there are cores. Tests that mostly wait for time to pass run beside these, so
//! that the suite takes as long as its work and not as long as its waits. `scripts/test` starts more tests at a time than
//! there are cores for that.

use std::cell::RefCell;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::available_parallelism;

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

/// What this thread's test holds. Each test has a thread of its own.
enum Slot {
    None,
    NeedsNone,
    Held,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if matches!(self, Self::Held) {
            *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            GIVEN_BACK.notify_one();
        }
    }
}

thread_local! {
    static SLOT: RefCell<Slot> = const { RefCell::new(Slot::None) };
}

/// This test mostly waits: it takes no slot. To be said before it starts its first server.
pub fn mostly_waits() {
    SLOT.replace(Slot::NeedsNone);
}

/// Waits for a slot, unless this test has one or needs none.
pub(super) fn take() {
    SLOT.with_borrow_mut(|slot| {
        if matches!(slot, Slot::None) {
            let slots = available_parallelism().map_or(2, usize::from);
            let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
            while *taken >= slots {
                taken = GIVEN_BACK.wait(taken).unwrap_or_else(PoisonError::into_inner);
            }
            *taken += 1;
            *slot = Slot::Held;
        }
    });
}
