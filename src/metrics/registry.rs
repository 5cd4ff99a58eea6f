//! The server's metrics, in the text format of OpenMetrics (`GET /metrics`).
//!
//! | name | labels | is |
//! |---|---|---|
//! | `odoshi_batch_items` | `actor` | items per transaction, a histogram |
//! | `odoshi_batch_seconds` | `actor` | time to write a batch, retries included, a histogram |
//! | `odoshi_batch_flushes_total` | `actor`, `reason` | batches by reason: `quiet`, `full`, `waited`, `idle` |
//! | `odoshi_batch_waiting` | `actor` | items that wait for the next batch |
//! | `odoshi_batch_retries_total` | `actor` | failed tries of batches, with a transient error |
//! | `odoshi_batch_refused_total` | `actor` | items given up, because the store accepts others and not these |
//! | `odoshi_build_info` | `version` | 1 |
//! | `odoshi_open_actions` | | actions that have not ended, of all nodes |
//! | `odoshi_open_commands` | `state` | their commands without a final state: `pending`, `sent` |
//! | `odoshi_commands_total` | | commands written |
//! | `odoshi_reports_total` | `event` | recorded reports about commands: `result`, `sent`, `hold`, `queued`, `postponed`, `attempt_failed`, `overdue`, `expired`, `cancelled`, `undeliverable` |
//! | `odoshi_run_ends_total` | `state` | ended runs by state, reported by agents or decided by the server |
//! | `odoshi_http_request_seconds` | `method`, `path` | from the request's head to the answer's head, a histogram |
//! | `odoshi_http_connections` | | open connections, those of agents included |
//! | `odoshi_http_connections_refused_total` | | connections and WebSockets refused for lack of room |
//! | `odoshi_delay_entries` | | commands in memory that are not due yet |
//! | `odoshi_delay_next_due_timestamp_seconds` | | when the next of them is due (Unix time), 0 if there is none |
//! | `odoshi_delay_lateness_seconds` | | time from due to dispatched, a histogram |
//! | `odoshi_agents_connected` | | agents connected to this process |
//! | `odoshi_agents_known` | `state` | agents of all nodes, every minute: `online`, `offline`, `disabled` |
//! | `odoshi_agent_duplicates_total` | | connections refused because another process with the agent's token is connected |
//! | `odoshi_spool_files_total` | `result` | files of the spool: `done`, `failed`, and `ignored` ones, which are not `*.json` |
//! | `odoshi_actor_restarts` | `actor` | restarts since the process started |
//! | `odoshi_actor_stalled_seconds` | `actor` | how long the oldest work of an actor has been failing, 0 if none is |
//! | `odoshi_actor_running` | `actor` | 1, or 0 while the actor is restarting or stopped |
//! | `odoshi_hints_total` | `what` | messages to other nodes: `sent`, `failed`; hints from them: `heard` |
//! | `odoshi_sender_waiting` | `transport` | commands that wait in a sender |
//! | `odoshi_sender_in_flight` | `transport` | deliveries under way |
//! | `odoshi_sender_hosts_away` | `transport` | hosts or brokers that can't be reached |
//! | `odoshi_sender_deliveries_total` | `transport`, `result` | deliveries: `delivered`, `attempt_failed`, `refused`, `panicked` |
//! | `odoshi_hooks_pending` | `hook` | events that wait to be sent, counted every 10 s up to 100,000 |
//! | `odoshi_hooks_delivered_total` | `hook` | events that this process delivered |
//! | `odoshi_hooks_failed_total` | `hook` | failed attempts of this process |
//! | `odoshi_hooks_given_up_total` | `hook` | events that this process gave up |
//! | `odoshi_schedule_lateness_seconds` | | time from an occurrence to its action, a histogram; its count is the occurrences that this process made |
//! | `odoshi_schedule_dropped_total` | `reason` | occurrences that were not made: `missed`, `too_old`, `overlap`, `invalid` |
//! | `odoshi_metadata_values_total` | | values of metadata written |
//! | `odoshi_metadata_coalesced_total` | | values left out, because a newer one of the same key was written instead |
//! | `odoshi_metadata_refused_total` | | values that exceed a limit |
//! | `odoshi_metadata_deferred_total` | | reports left with their agents for lack of memory |
//! | `odoshi_metadata_watchers` | | those who watch metadata at this node |
//! | `odoshi_metadata_interval_seconds` | | how often agents are asked to report |
//! | `odoshi_store_up` | | 1 when the store answers |
//! | `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_open_fds`, `process_max_fds`, `process_start_time_seconds` | | as Prometheus' own libraries have them |

use super::hooks::Hooks;
use super::metadata::Metadata;
use super::process::Process;
use super::progress::Progress;
use super::schedules::Schedules;
use super::senders::Senders;
use crate::domain::batch::Reason;
use crate::domain::command::{CommandState, Event};
use crate::domain::time::Timestamp;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

type Label = [(&'static str, &'static str); 1];
type TwoLabels = [(&'static str, String); 2];
type Histograms = Family<Label, Histogram, fn() -> Histogram>;

/// An actor's state in the metrics.
#[derive(Clone, Copy, Debug)]
pub struct ActorGauge {
    /// The actor's name.
    pub name: &'static str,
    /// Restarts since the process started.
    pub restarts: u64,
    /// Whether it handles messages now.
    pub is_running: bool,
}

/// See the module. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    batch_items: Histograms,
    batch_seconds: Histograms,
    progress: Progress,
    batch_retries: Family<Label, Counter>,
    batch_refused: Family<Label, Counter>,
    actor_stalled: Family<Label, Gauge<f64, AtomicU64>>,
    batch_flushes: Family<[(&'static str, &'static str); 2], Counter>,
    batch_waiting: Family<Label, Gauge>,
    build: Family<Label, Gauge>,
    process: Process,
    open_actions: Gauge,
    open_commands: Family<Label, Gauge>,
    commands: Counter,
    run_ends: Family<Label, Counter>,
    http_seconds: Family<TwoLabels, Histogram, fn() -> Histogram>,
    connections: Gauge,
    connections_refused: Counter,
    reports: Family<Label, Counter>,
    delay_entries: Gauge,
    delay_next_due: Gauge<f64, AtomicU64>,
    delay_lateness: Histogram,
    agents_connected: Gauge,
    agents_known: Family<Label, Gauge>,
    duplicates: Counter,
    spool_files: Family<Label, Counter>,
    actor_restarts: Family<Label, Gauge>,
    actor_running: Family<Label, Gauge>,
    hints: Family<Label, Counter>,
    senders: Senders,
    sender_waiting: Family<Label, Gauge>,
    sender_in_flight: Family<Label, Gauge>,
    sender_hosts_away: Family<Label, Gauge>,
    sender_deliveries: Family<[(&'static str, &'static str); 2], Counter>,
    hooks: Hooks,
    metadata: Metadata,
    schedules: Schedules,
    store_up: Gauge,
}

/// From a millisecond to half a minute.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

/// From one to a hundred thousand.
fn items() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 4.0, 9))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut inner = Inner {
            registry: Registry::with_prefix("odoshi"),
            batch_items: Family::new_with_constructor(items),
            batch_seconds: Family::new_with_constructor(seconds),
            progress: Progress::default(),
            batch_retries: Family::default(),
            batch_refused: Family::default(),
            actor_stalled: Family::default(),
            batch_flushes: Family::default(),
            batch_waiting: Family::default(),
            build: Family::default(),
            process: Process::default(),
            open_actions: Gauge::default(),
            open_commands: Family::default(),
            commands: Counter::default(),
            run_ends: Family::default(),
            http_seconds: Family::new_with_constructor(seconds),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            reports: Family::default(),
            delay_entries: Gauge::default(),
            delay_next_due: Gauge::default(),
            delay_lateness: seconds(),
            agents_connected: Gauge::default(),
            agents_known: Family::default(),
            duplicates: Counter::default(),
            spool_files: Family::default(),
            actor_restarts: Family::default(),
            actor_running: Family::default(),
            hints: Family::default(),
            senders: Senders::default(),
            sender_waiting: Family::default(),
            sender_in_flight: Family::default(),
            sender_hosts_away: Family::default(),
            sender_deliveries: Family::default(),
            hooks: Hooks::default(),
            metadata: Metadata::default(),
            schedules: Schedules::default(),
            store_up: Gauge::default(),
        };
        inner.build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        let of = &mut inner.registry;
        of.register("build_info", "The version of this program", inner.build.clone());
        of.register("open_actions", "Actions that have not ended", inner.open_actions.clone());
        of.register("open_commands", "Commands that have not ended, by state", inner.open_commands.clone());
        of.register("batch_items", "Items per transaction", inner.batch_items.clone());
        of.register("batch_seconds", "Time to write a batch, tries included", inner.batch_seconds.clone());
        of.register("batch_retries", "Tries of batches that failed and may pass", inner.batch_retries.clone());
        of.register("batch_refused", "Items that were given up", inner.batch_refused.clone());
        let stalled = "For how long the oldest work of an actor has been failing";
        of.register("actor_stalled_seconds", stalled, inner.actor_stalled.clone());
        of.register("batch_flushes", "Batches by why they were written", inner.batch_flushes.clone());
        of.register("batch_waiting", "Items that wait for the next batch", inner.batch_waiting.clone());
        of.register("run_ends", "Runs by how they ended", inner.run_ends.clone());
        of.register("http_request_seconds", "From a request's head to its answer's", inner.http_seconds.clone());
        of.register("http_connections", "Open connections, those of agents included", inner.connections.clone());
        let refused = "Connections and WebSockets refused for lack of room";
        of.register("http_connections_refused", refused, inner.connections_refused.clone());
        of.register("commands", "Commands written", inner.commands.clone());
        of.register("reports", "What happened to commands, as it was recorded", inner.reports.clone());
        of.register("delay_entries", "Commands in memory that wait for their time", inner.delay_entries.clone());
        let next_due = "When the next command in memory is due";
        of.register("delay_next_due_timestamp_seconds", next_due, inner.delay_next_due.clone());
        of.register("delay_lateness_seconds", "From due to dispatched", inner.delay_lateness.clone());
        of.register("agents_connected", "Agents connected to this process", inner.agents_connected.clone());
        of.register("agents_known", "Agents of all nodes by state", inner.agents_known.clone());
        let duplicates = "Connections refused because another process with the agent's token is connected";
        of.register("agent_duplicates", duplicates, inner.duplicates.clone());
        of.register("spool_files", "Files of the spool by result", inner.spool_files.clone());
        of.register("actor_restarts", "Restarts of each actor since the start", inner.actor_restarts.clone());
        of.register("actor_running", "1, or 0 while it is restarted or stopped", inner.actor_running.clone());
        of.register("hints", "Messages between nodes", inner.hints.clone());
        of.register("sender_waiting", "Commands that wait in a sender", inner.sender_waiting.clone());
        of.register("sender_in_flight", "Deliveries under way", inner.sender_in_flight.clone());
        of.register("sender_hosts_away", "Hosts or brokers that can't be reached", inner.sender_hosts_away.clone());
        of.register("sender_deliveries", "Deliveries by result", inner.sender_deliveries.clone());
        inner.hooks.register(of);
        inner.metadata.register(of);
        inner.schedules.register(of);
        of.register("store_up", "1 when the store answers", inner.store_up.clone());
        Self(Arc::new(inner))
    }
}

impl Metrics {
    /// A batch of `items` was written; `took` includes its failed tries.
    pub fn batch_written(&self, actor: &'static str, items: usize, took: Duration) {
        let label = [("actor", actor)];
        self.0.batch_items.get_or_create(&label).observe(items as f64);
        self.0.batch_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// A try to write a batch failed, with a transient error.
    pub fn batch_retried(&self, actor: &'static str) {
        self.0.batch_retries.get_or_create(&[("actor", actor)]).inc();
    }

    /// An item was given up.
    pub fn item_refused(&self, actor: &'static str) {
        self.0.batch_refused.get_or_create(&[("actor", actor)]).inc();
    }

    /// The numbers of each sender.
    pub fn senders(&self) -> &Senders {
        &self.0.senders
    }

    /// The numbers of hooks.
    pub fn hooks(&self) -> &Hooks {
        &self.0.hooks
    }

    /// The numbers of metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// The numbers of schedules.
    pub fn schedules(&self) -> &Schedules {
        &self.0.schedules
    }

    /// Where actors report whether they make progress.
    pub fn progress(&self) -> &Progress {
        &self.0.progress
    }

    /// A batch is about to be written for this reason, and `waiting` items stay behind.
    pub fn batch_tipped(&self, actor: &'static str, reason: Reason, waiting: usize) {
        self.0.batch_flushes.get_or_create(&[("actor", actor), ("reason", reason.as_str())]).inc();
        self.batch_waits(actor, waiting);
    }

    /// `items` items wait for the next batch.
    pub fn batch_waits(&self, actor: &'static str, items: usize) {
        self.0.batch_waiting.get_or_create(&[("actor", actor)]).set(i64::try_from(items).unwrap_or(i64::MAX));
    }

    /// A request was answered. `path` is the pattern of its route.
    pub fn http_answered(&self, method: &'static str, path: &str, took: Duration) {
        let label = [("method", method.to_owned()), ("path", path.to_owned())];
        self.0.http_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// The number of open connections.
    pub fn connections(&self, open: usize) {
        self.0.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// A connection or a WebSocket was refused for lack of room.
    pub fn connection_refused(&self) {
        self.0.connections_refused.inc();
    }

    /// A connection was refused, because another process with the agent's token is connected.
    pub fn duplicate_refused(&self) {
        self.0.duplicates.inc();
    }

    /// So many agents are online, offline and disabled.
    pub fn agents_known(&self, counts: [(&'static str, i64); 3]) {
        for (state, count) in counts {
            self.0.agents_known.get_or_create(&[("state", state)]).set(count);
        }
    }

    /// So many files of the spool are `done`, `failed` or `ignored`.
    pub fn spool_files(&self, result: &'static str, files: usize) {
        self.0.spool_files.get_or_create(&[("result", result)]).inc_by(files as u64);
    }

    /// So many actions have not ended, and so many of their commands are pending and sent.
    pub fn open_actions(&self, actions: usize, pending: i64, sent: i64) {
        self.0.open_actions.set(i64::try_from(actions).unwrap_or(i64::MAX));
        self.0.open_commands.get_or_create(&[("state", "pending")]).set(pending);
        self.0.open_commands.get_or_create(&[("state", "sent")]).set(sent);
    }

    /// `commands` commands were written.
    pub fn commands_written(&self, commands: u64) {
        self.0.commands.inc_by(commands);
    }

    /// A report about a command was recorded.
    pub fn reported(&self, event: &Event) {
        let name = match event {
            Event::Result(_) => "result",
            Event::Sent { .. } => "sent",
            Event::Hold { .. } => "hold",
            Event::Queued { .. } => "queued",
            Event::Postponed { .. } => "postponed",
            Event::AttemptFailed { .. } => "attempt_failed",
            Event::Overdue => "overdue",
            Event::Expired => "expired",
            Event::FoundExpired { .. } => "found_expired",
            Event::Cancelled => "cancelled",
            Event::Undeliverable { .. } => "undeliverable",
        };
        self.0.reports.get_or_create(&[("event", name)]).inc();
        let ended = match event {
            Event::Result(end) => end.status,
            Event::Overdue => CommandState::TimedOut,
            Event::Expired | Event::FoundExpired { .. } => CommandState::Expired,
            Event::Cancelled => CommandState::Cancelled,
            Event::Undeliverable { .. } => CommandState::Undeliverable,
            Event::Sent { .. }
            | Event::Hold { .. }
            | Event::Queued { .. }
            | Event::Postponed { .. }
            | Event::AttemptFailed { .. } => return,
        };
        self.0.run_ends.get_or_create(&[("state", ended.as_str())]).inc();
    }

    /// `entries` commands wait in memory, and the first of them is due at `next`.
    pub fn delay_entries(&self, entries: usize, next: Option<Timestamp>) {
        self.0.delay_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.0.delay_next_due.set(next.map_or(0.0, |next| next.0 as f64 / 1_000.0));
    }

    /// A command was dispatched `late` after its due time.
    pub fn dispatched(&self, late: Duration) {
        self.0.delay_lateness.observe(late.as_secs_f64());
    }

    /// A message with hints was sent to the other nodes.
    pub fn hints_sent(&self) {
        self.0.hints.get_or_create(&[("what", "sent")]).inc();
    }

    /// Hints could not be sent, and will be tried again.
    pub fn hints_failed(&self) {
        self.0.hints.get_or_create(&[("what", "failed")]).inc();
    }

    /// `hints` hints came from another node.
    pub fn hints_heard(&self, hints: usize) {
        self.0.hints.get_or_create(&[("what", "heard")]).inc_by(hints as u64);
    }

    /// All metrics as text, with the state of `actors`, the number of connected agents and whether
    /// the store answers.
    ///
    /// # Errors
    /// If formatting fails.
    pub fn text(&self, actors: &[ActorGauge], connected: usize, store_up: bool) -> Result<String, std::fmt::Error> {
        let inner = &*self.0;
        inner.agents_connected.set(i64::try_from(connected).unwrap_or(i64::MAX));
        inner.store_up.set(store_up.into());
        for actor in actors {
            let label = [("actor", actor.name)];
            inner.actor_restarts.get_or_create(&label).set(i64::try_from(actor.restarts).unwrap_or(i64::MAX));
            inner.actor_running.get_or_create(&label).set(actor.is_running.into());
        }
        for (actor, seconds) in inner.progress.seconds() {
            inner.actor_stalled.get_or_create(&[("actor", actor)]).set(seconds);
        }
        for (transport, status) in inner.senders.all() {
            let (label, number) = ([("transport", transport)], |number| i64::try_from(number).unwrap_or(i64::MAX));
            let report = status.report(transport);
            inner.sender_waiting.get_or_create(&label).set(number(report.waiting));
            inner.sender_in_flight.get_or_create(&label).set(number(report.in_flight));
            inner.sender_hosts_away.get_or_create(&label).set(number(report.hosts_away));
            for (result, count) in status.counts() {
                let counter = inner.sender_deliveries.get_or_create(&[("transport", transport), ("result", result)]);
                counter.inc_by(count.saturating_sub(counter.get()));
            }
        }
        inner.process.read();
        let mut text = String::new();
        encode_registry(&mut text, &inner.registry)?;
        encode_registry(&mut text, &inner.process.registry)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}
