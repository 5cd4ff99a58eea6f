//! The server's clock on the agent's machine.

use crate::domain::time::Timestamp;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

/// The server's clock, as the agent knows it: the last time that the server sent, advanced by this
/// machine's clock since boot. The wall clock is not used: it may be days off when the agent
/// starts, and may be stepped at any moment. (`CLOCK_MONOTONIC` stops while the machine sleeps, but
/// commands expire during that time.)
pub(super) struct ServerClock {
    /// How many milliseconds the server's clock is ahead of `since_boot`; `None` until the server
    /// has sent its time.
    ahead_ms: watch::Sender<Option<i64>>,
    since_boot: Box<dyn Fn() -> i64 + Send + Sync>,
}

/// A moment by this machine's clock since boot, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment(i64);

impl Moment {
    /// The milliseconds from an earlier moment to this one.
    pub(super) fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Default for ServerClock {
    fn default() -> Self {
        Self::over(millis_since_boot)
    }
}

impl std::fmt::Debug for ServerClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ServerClock").field(&self.now()).finish()
    }
}

impl ServerClock {
    /// A server clock over a machine clock that counts milliseconds and is never set.
    pub(super) fn over(since_boot: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self { ahead_ms: watch::Sender::new(None), since_boot: Box::new(since_boot) }
    }

    /// Sets the time that the server sent.
    pub(super) fn set(&self, server: Timestamp) {
        self.set_as_of(self.moment(), server);
    }

    /// This moment, for [`ServerClock::set_as_of`].
    pub(super) fn moment(&self) -> Moment {
        Moment((self.since_boot)())
    }

    /// Sets the time that the server sent in answer to what it was asked at that moment. The answer may
    /// have been under way for long: this clock is then ahead of the server's, and never behind. A
    /// command that is answered as expired too early comes again; one that runs too late is a fault.
    pub(super) fn set_as_of(&self, asked: Moment, server: Timestamp) {
        self.ahead_ms.send_replace(Some(server.0.saturating_sub(asked.0)));
    }

    /// The server's current time; `None` until the server has sent its time to this process.
    pub(super) fn now(&self) -> Option<Timestamp> {
        let ahead_ms = *self.ahead_ms.borrow();
        ahead_ms.map(|ahead_ms| Timestamp((self.since_boot)().saturating_add(ahead_ms)))
    }

    /// Waits until the server has sent its time.
    pub(super) async fn known(&self) {
        // The wait cannot fail: this clock owns the sender.
        let _ = self.ahead_ms.subscribe().wait_for(Option::is_some).await;
    }
}

/// Milliseconds since this machine booted, sleep included.
fn millis_since_boot() -> i64 {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
    // On macOS it counts sleep as well; other systems have nothing better.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;
    let time =
        clock_gettime(CLOCK).expect("every system that the agent runs on has this clock, and anybody may read it");
    time.num_milliseconds()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    #[tokio::test]
    async fn the_clock_goes_on_from_what_the_server_said_last() {
        let boot = Arc::new(AtomicI64::new(5_000));
        let read = boot.clone();
        let clock = Arc::new(ServerClock::over(move || read.load(Ordering::SeqCst)));
        assert_eq!(clock.now(), None);
        let waits = tokio::spawn({
            let clock = clock.clone();
            async move { clock.known().await }
        });
        clock.set(Timestamp(1_000_000));
        waits.await.expect("no panic");
        assert_eq!(clock.now(), Some(Timestamp(1_000_000)));
        boot.store(6_500, Ordering::SeqCst);
        assert_eq!(clock.now(), Some(Timestamp(1_001_500)));
        clock.set(Timestamp(2_000));
        assert_eq!(clock.now(), Some(Timestamp(2_000)), "the server's clock may be set, too");
        let asked = clock.moment();
        boot.store(9_500, Ordering::SeqCst);
        clock.set_as_of(asked, Timestamp(2_000_000));
        assert_eq!(clock.now(), Some(Timestamp(2_003_000)), "the answer was under way for three seconds");
    }

    #[test]
    fn this_machine_says_how_long_ago_it_booted() {
        let before = millis_since_boot();
        assert!(before > 0 && millis_since_boot() >= before);
    }
}
