//! An actor on a thread of its own, so that code which blocks its thread holds up nothing else.
//!
//! A message to another thread costs a wake-up. So this is for actors that users add. Odoshi's own,
//! which don't block, share a thread.

use super::health::Supervision;
use super::supervise::Unstarted;
use actix::prelude::*;
use std::io;
use std::sync::mpsc;
use tokio::sync::oneshot;

type Start<A> = Box<dyn FnOnce(Unstarted<A>) + Send>;

/// As [`Unstarted`], on a thread of its own.
#[must_use = "messages to an actor that is never started are never handled"]
pub struct OnOwnThread<A: Actor<Context = Context<A>>> {
    address: Addr<A>,
    start: oneshot::Sender<Start<A>>,
}

impl<A: Supervised + Actor<Context = Context<A>> + Unpin> OnOwnThread<A> {
    /// Starts the thread. Call it within an actix system.
    ///
    /// # Errors
    /// If the thread ended at once.
    pub fn new() -> io::Result<Self> {
        let (tell_address, address) = mpsc::sync_channel(1);
        let (start, started) = oneshot::channel::<Start<A>>();
        Arbiter::new().spawn_fn(move || {
            // An actor's context can't move to another thread: it is made here.
            let unstarted = Unstarted::default();
            tell_address.send(unstarted.address()).ok();
            actix_rt::spawn(async move {
                if let Ok(start) = started.await {
                    start(unstarted);
                }
            });
        });
        let address = address.recv().map_err(io::Error::other)?;
        Ok(Self { address, start })
    }

    /// The actor's address.
    pub fn address(&self) -> Addr<A> {
        self.address.clone()
    }

    /// Starts the actor that `make` returns under supervision. Both run on its thread.
    pub fn start(self, name: &'static str, make: impl FnOnce() -> A + Send + 'static, supervision: &Supervision) {
        let supervision = supervision.clone();
        let start: Start<A> = Box::new(move |unstarted| {
            unstarted.start(name, make(), &supervision);
        });
        if self.start.send(start).is_err() {
            log::error!(actor = name; "an actor's thread has ended");
        }
    }
}
