//! What all sessions share. Plain data, so nothing to test.

use super::sender::StreamSender;
use crate::context::Node;
use crate::senders::contract::SenderContext;
use actix::prelude::*;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Maximum number of bytes of results in memory, over all sessions.
const RESULTS_IN_MEMORY: usize = 64 * 1024 * 1024;
/// Maximum number of bytes of large commands on their way to agents.
const OUTGOING_IN_MEMORY: usize = 64 * 1024 * 1024;
/// The same for metadata. Beyond it, reports stay with their agents.
const METADATA_IN_MEMORY: usize = 128 * 1024 * 1024;

/// See the module.
#[derive(Clone)]
pub struct SessionDeps {
    /// The context of this process.
    pub node: Arc<Node>,
    /// Records results.
    pub context: SenderContext,
    /// Signs connections on.
    pub sender: Addr<StreamSender>,
    /// Permits for the bytes of results in memory, over all sessions.
    pub budget: Arc<Semaphore>,
    /// Permits for the bytes of large commands on their way to agents.
    pub outgoing: Arc<Semaphore>,
    /// Permits for the bytes of metadata in memory.
    pub metadata_budget: Arc<Semaphore>,
}

impl SessionDeps {
    /// With the whole budget free.
    pub fn new(node: Arc<Node>, context: SenderContext, sender: Addr<StreamSender>) -> Self {
        let budget = Arc::new(Semaphore::new(RESULTS_IN_MEMORY));
        let metadata_budget = Arc::new(Semaphore::new(METADATA_IN_MEMORY));
        let outgoing = Arc::new(Semaphore::new(OUTGOING_IN_MEMORY));
        Self { node, context, sender, budget, outgoing, metadata_budget }
    }
}
