//! Three pools of connections, so that one kind of caller can't take them from another.
//!
//! The pipeline's pool has the size that the settings give; the others come on top. The sessions'
//! pool is as large: when a node dies, all of its agents come to the others at once. What a user
//! asks may be slow, and many may ask at once: that must not hold up delivery, nor the sessions of
//! agents.

use super::connect::Connector;
use deadpool::managed::{Object, Pool, PoolError, QueueMode};
use diesel::ConnectionError;
use std::time::Duration;

/// How long a call waits for a connection before the store counts as busy.
const WAIT_FOR_CONNECTION: Duration = Duration::from_secs(5);
/// How long a statement for a user may take. Longer than anything that users ask of a million
/// agents takes, and short enough that a connection is not lost to one question.
const PEOPLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The kind of caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Resolving, delivering, recording, and what reconciles them.
    Pipeline,
    /// Agents that connect, check in and fetch their commands.
    Sessions,
    /// Users who look at something.
    People,
}

/// See the module.
pub(super) struct Pools {
    pipeline: Pool<Connector>,
    sessions: Pool<Connector>,
    people: Pool<Connector>,
}

impl Pools {
    /// `size` is the pipeline's.
    ///
    /// # Errors
    /// When there can be no such pool.
    pub(super) fn new(connector: &Connector, size: usize) -> Result<Self, String> {
        let people = connector.clone().with_statement_timeout(PEOPLE_TIMEOUT);
        Ok(Self {
            pipeline: pool(connector.clone(), size.max(1))?,
            sessions: pool(connector.clone(), size.max(1))?,
            people: pool(people, (size / 4).max(2))?,
        })
    }

    /// A connection. Waits while all of this kind of caller are in use.
    pub(super) async fn get(&self, caller: Caller) -> Result<Object<Connector>, PoolError<ConnectionError>> {
        let pool = match caller {
            Caller::Pipeline => &self.pipeline,
            Caller::Sessions => &self.sessions,
            Caller::People => &self.people,
        };
        pool.get().await
    }

    /// Closes the idle connections.
    pub(super) fn close_idle(&self) {
        for pool in [&self.pipeline, &self.sessions, &self.people] {
            pool.retain(|_, _| false);
        }
    }
}

fn pool(connector: Connector, size: usize) -> Result<Pool<Connector>, String> {
    Pool::builder(connector)
        .max_size(size)
        // The connection that was used last has its statements prepared, and its server process is warm.
        .queue_mode(QueueMode::Lifo)
        .runtime(deadpool::Runtime::Tokio1)
        .wait_timeout(Some(WAIT_FOR_CONNECTION))
        .build()
        .map_err(|error| error.to_string())
}
