//! The two messages that every actor of the runtime handles.

use actix::prelude::*;

/// Node → each actor, source first: finish what is in flight. Answered when that is done.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Signals → a reconciler: there may be work. A hint: a lost one costs a period.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Wake;

/// Wakes a reconciler from outside the actors, as a file system's notification does. Clones wake
/// the same one.
#[derive(Clone)]
pub struct Waker(Recipient<Wake>);

impl Waker {
    /// A waker for the reconciler at this address.
    pub fn new(reconciler: Recipient<Wake>) -> Self {
        Self(reconciler)
    }

    /// Wakes the reconciler. If its mailbox is full, it is awake already.
    pub fn wake(&self) {
        self.0.try_send(Wake).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts its wake-ups.
    struct Sleeper(u32);

    impl Actor for Sleeper {
        type Context = Context<Self>;
    }

    impl Handler<Wake> for Sleeper {
        type Result = ();

        fn handle(&mut self, _: Wake, _: &mut Self::Context) {
            self.0 += 1;
        }
    }

    #[derive(Message)]
    #[rtype(result = "u32")]
    struct Wakes;

    impl Handler<Wakes> for Sleeper {
        type Result = u32;

        fn handle(&mut self, _: Wakes, _: &mut Self::Context) -> u32 {
            self.0
        }
    }

    #[actix_rt::test]
    async fn a_waker_wakes_and_what_finds_no_room_is_not_needed() {
        let sleeper = Sleeper(0).start();
        let waker = Waker::new(sleeper.clone().recipient());
        waker.wake();
        assert_eq!(sleeper.send(Wakes).await.expect("it lives"), 1);
        (0..10_000).for_each(|_| waker.wake());
        let wakes = sleeper.send(Wakes).await.expect("it lives");
        assert!((2..10_000).contains(&wakes), "{wakes}");
    }
}
