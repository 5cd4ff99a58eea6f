//! What the tasks of a store share, and what this process is to the database.

use super::clock::Clock;
use super::connect::Connector;
use super::pools::Pools;
use super::silence::Watch;
use crate::config::Config;
use crate::domain::hint::Hint;
use crate::store::sql::hooks::Registered;
use crate::store::{StoreError, StoreResult};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

/// Hints of other nodes that wait to be taken. What comes when they are full is replaced by
/// [`Hint::Everything`].
pub(super) const HINTS_WAITING: usize = 1_024;

/// What this process is to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not a node yet: [`Store::prepare`](crate::store::Store::prepare) has not succeeded.
    Unprepared,
    /// A node.
    Ready,
    /// A node to which the database does not answer.
    Away,
    /// A node that is about to unregister.
    Leaving,
    /// Not a node any more: another one took over.
    Fenced,
    /// Not a node any more: it unregistered.
    Gone,
}

/// See the module.
pub(super) struct Inner {
    pub(super) pools: Pools,
    pub(super) connector: Connector,
    pub(super) incarnation: String,
    pub(super) clock: Clock,
    pub(super) state: watch::Sender<State>,
    /// Whether nodes notify each other.
    pub(super) notify: bool,
    /// Whether there may be other nodes.
    pub(super) others: AtomicBool,
    /// Where hints of other nodes go.
    pub(super) hints: mpsc::Sender<Hint>,
    /// The hooks, each with its events.
    pub(super) hooks: Registered,
    /// How long other nodes have been silent.
    watch: std::sync::Mutex<Watch>,
}

impl Inner {
    /// With the receiver of other nodes' hints.
    pub(super) fn new(settings: &Config) -> StoreResult<(Self, mpsc::Receiver<Hint>)> {
        let connector = Connector::new(settings).map_err(StoreError::Unusable)?;
        let (hints, heard) = mpsc::channel(HINTS_WAITING);
        let inner = Self {
            pools: Pools::new(&connector, settings.store.pool_size).map_err(StoreError::Unusable)?,
            connector,
            incarnation: Uuid::now_v7().to_string(),
            clock: Clock::new(),
            state: watch::Sender::new(State::Unprepared),
            notify: settings.node.notify,
            others: AtomicBool::new(true),
            hints,
            hooks: Registered::default(),
            watch: std::sync::Mutex::new(Watch::new(settings.node.heartbeat.0)),
        };
        Ok((inner, heard))
    }

    pub(super) fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Fails at once when the database is not likely to answer.
    pub(super) fn gate(&self, during: &str) -> StoreResult<()> {
        let why = match *self.state.borrow() {
            State::Ready | State::Leaving => return Ok(()),
            State::Unprepared => "the database has not answered yet",
            State::Away => "the database does not answer",
            State::Fenced => "another node has taken over from this one",
            State::Gone => "this node has said goodbye",
        };
        Err(StoreError::Unavailable(format!("{during}: {why}")))
    }

    /// Moves to another state, unless this process has ceased to be a node.
    pub(super) fn set_state(&self, new: State) {
        self.state.send_if_modified(|state| {
            let changed = match *state {
                State::Fenced | State::Gone => false,
                State::Leaving => new == State::Gone,
                _ => *state != new,
            };

            if changed {
                if *state == State::Away && new == State::Ready {
                    log::info!("the database answers again");
                }
                *state = new;
            }
            changed
        });
    }

    /// Whether there may be other nodes.
    pub(super) fn has_others(&self) -> bool {
        AtomicBool::load(&self.others, Ordering::Relaxed)
    }

    /// Another node was heard of.
    pub(super) fn met_others(&self) {
        self.others.store(true, Ordering::Relaxed);
    }

    /// The database does not answer.
    pub(super) fn set_away(&self, error: &str) {
        if *self.state.borrow() == State::Ready {
            log::warn!(error; "the database does not answer; calls are refused until it does");
        }
        self.set_state(State::Away);
    }

    /// This process's counter lane for writers of one kind. Kinds have lanes of their own, so that
    /// their transactions never wait for each other's counters.
    pub(super) fn lane(&self, of: &str) -> String {
        format!("{}/{of}", self.incarnation)
    }
}
