//! What all sessions share. Plain data, so nothing to test.

use super::sender::StreamSender;
use crate::context::Node;
use crate::senders::contract::SenderContext;
use actix::prelude::*;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Bytes of results that all sessions together have in memory.
const RESULTS_IN_MEMORY: usize = 256 * 1024 * 1024;

/// See the module.
#[derive(Clone)]
pub struct SessionDeps {
    /// What every part of this process works with.
    pub node: Arc<Node>,
    /// Where results are recorded.
    pub context: SenderContext,
    /// Where a session signs its connection on.
    pub sender: Addr<StreamSender>,
    /// Bytes of results that all sessions together may have in memory.
    pub budget: Arc<Semaphore>,
}

impl SessionDeps {
    /// With an empty memory.
    pub fn new(node: Arc<Node>, context: SenderContext, sender: Addr<StreamSender>) -> Self {
        Self { node, context, sender, budget: Arc::new(Semaphore::new(RESULTS_IN_MEMORY)) }
    }
}
