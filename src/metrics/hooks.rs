//! What `/metrics` shows of hooks. Their names come from the settings, so there are few.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Label = [(&'static str, String); 1];

/// How an attempt to send an event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookResult {
    /// The receiver has it.
    Delivered,
    /// It failed, and the event is sent again.
    Failed,
    /// It failed, and the event is given up.
    GivenUp,
    /// It was not made, or was broken off by this node. Not counted.
    Released,
}

/// The numbers of all hooks. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    pending: Family<Label, Gauge>,
    delivered: Family<Label, Counter>,
    failed: Family<Label, Counter>,
    given_up: Family<Label, Counter>,
}

impl Hooks {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("hooks_pending", "Events that wait to be sent", self.pending.clone());
        registry.register("hooks_delivered", "Events that were delivered", self.delivered.clone());
        registry.register("hooks_failed", "Attempts to send events that failed", self.failed.clone());
        registry.register("hooks_given_up", "Events that were given up", self.given_up.clone());
    }

    /// An attempt was recorded.
    pub fn ended(&self, hook: &str, result: HookResult) {
        let label = [("hook", hook.to_owned())];
        match result {
            HookResult::Delivered => {
                self.delivered.get_or_create(&label).inc();
            }
            HookResult::Failed => {
                self.failed.get_or_create(&label).inc();
            }
            HookResult::GivenUp => {
                self.failed.get_or_create(&label).inc();
                self.given_up.get_or_create(&label).inc();
            }
            HookResult::Released => {}
        }
    }

    /// The number of waiting events of each hook, as it was counted just now.
    pub fn set_pending(&self, hooks: impl Iterator<Item = (String, i64)>) {
        // Hooks that are gone must not keep their last number.
        self.pending.clear();
        for (hook, pending) in hooks {
            let label = [("hook", hook)];
            self.pending.get_or_create(&label).set(pending);
            // A counter that begins with its first event shows no increase by it.
            for counter in [&self.delivered, &self.failed, &self.given_up] {
                drop(counter.get_or_create(&label));
            }
        }
    }
}
