//! `[node]`

use super::error::Checks;
use super::setting::section;
use crate::domain::time::Span;

section! {
    /// This process as one of the nodes that share the store.
    pub struct Node {
        /// The node's name. Default: the host's name.
        name: Option<String> = None, example "odoshi-1";
        /// How often the node writes its heartbeat.
        heartbeat: Span = Span::secs(2);
        /// Whether nodes notify each other of new work at once. Without it, each node finds the
        /// work within seconds by polling.
        notify: bool = true;
        /// After this time without a heartbeat, other nodes take over its work; at least twice the
        /// heartbeat.
        dead_after: Span = Span::secs(10);
    }
}

impl Node {
    pub(super) fn validate(&self, checks: &mut Checks) {
        if let Some(name) = &self.name {
            let fine = (1..=128).contains(&name.chars().count()) && !name.chars().any(char::is_control);
            checks.that("node.name", fine, "must be 1 to 128 characters that can be shown");
        }
        checks.duration("node.heartbeat", self.heartbeat, Span::secs(3600));
        checks.duration("node.dead_after", self.dead_after, Span::days(1));
        checks.that(
            "node.dead_after",
            self.heartbeat.0.saturating_mul(2) <= self.dead_after.0,
            format!("must be at least twice node.heartbeat ({}), and is {}", self.heartbeat, self.dead_after),
        );
    }
}
