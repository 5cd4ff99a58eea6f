//! The newest value of each key, and which of them the server has.

use crate::agent::server_clock::Moment;
use crate::domain::metadata::INTERVAL_MIN;
use crate::domain::protocol::{MetadataItem, MetadataStored};
use crate::domain::time::{Span, Timestamp};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often a value is sent that doesn't change.
const REFRESH: Duration = Duration::from_secs(600);
/// Size in bytes at which a frame is full: brokers take a megabyte at least.
const FULL_FRAME: usize = 256 * 1024;
/// How long the server's answer may take. Then the values are sent again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);

/// What a program printed, or why there is nothing.
pub(in crate::agent) type Collected = Result<Box<RawValue>, String>;

#[derive(Debug)]
struct Entry {
    collected: Result<String, String>,
    at: Moment,
    /// The server has it, or a newer one, since then.
    stored: Option<Instant>,
    /// The number of the frame that it was last sent in, since it changed.
    sent: Option<i64>,
}

#[derive(Debug)]
struct State {
    entries: BTreeMap<String, Entry>,
    interval: Duration,
    next_at: Instant,
    /// The frame without an answer, and until when it is waited for.
    open: Option<(i64, Instant)>,
    last_seq: i64,
}

/// See the module.
#[derive(Debug)]
pub(in crate::agent) struct Reports {
    state: Mutex<State>,
    news: Notify,
}

/// Values to send.
#[derive(Debug, Serialize)]
pub(in crate::agent) struct Frame {
    pub(in crate::agent) seq: i64,
    pub(in crate::agent) items: Vec<MetadataItem>,
}

impl Default for Reports {
    fn default() -> Self {
        let (entries, next_at) = (BTreeMap::new(), Instant::now());
        let state = State { entries, interval: INTERVAL_MIN, next_at, open: None, last_seq: 0 };
        Self { state: Mutex::new(state), news: Notify::new() }
    }
}

impl Reports {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A value was collected at this moment.
    pub(in crate::agent) fn put(&self, key: &str, collected: Collected, at: Moment) {
        let collected = collected.map(|value| value.get().to_owned());
        let mut state = self.state();
        match state.entries.get_mut(key) {
            // The time alone is no news.
            Some(entry) if entry.collected == collected => entry.at = at,
            _ => drop(state.entries.insert(key.to_owned(), Entry { collected, at, stored: None, sent: None })),
        }
        drop(state);
        self.news.notify_one();
    }

    /// A connection begins: what was sent over an earlier one is not answered any more.
    pub(in crate::agent) fn begin(&self, interval: Option<Span>) {
        let mut state = self.state();
        state.open = None;
        state.interval = interval.map_or(INTERVAL_MIN, |span| span.0);
        state.next_at = state.next_at.min(Instant::now());
    }

    /// Waits until there are values to send, and the server wants them.
    pub(in crate::agent) async fn due(&self) {
        loop {
            let wait = self.state().wait(Instant::now());
            match wait {
                Some(wait) if wait.is_zero() => return,
                Some(wait) => {
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.news.notified() => {}
                    }
                }
                None => self.news.notified().await,
            }
        }
    }

    /// The values to send now. The time `as_of`, which the server knows how to read, was at the moment `at`.
    pub(in crate::agent) fn take(&self, as_of: Timestamp, at: Moment) -> Option<Frame> {
        let (mut state, now) = (self.state(), Instant::now());
        if state.wait(now) != Some(Duration::ZERO) {
            return None;
        }
        let seq = state.last_seq + 1;
        let (mut items, mut size) = (Vec::new(), 0);
        for (key, entry) in &mut state.entries {
            if !entry.is_due(now) || size > FULL_FRAME {
                continue;
            }
            size += 128 + key.len() + entry.collected.as_ref().map_or_else(String::len, String::len);
            entry.sent = Some(seq);
            let (value, error) = match &entry.collected {
                Ok(value) => (RawValue::from_string(value.clone()).ok(), None),
                Err(error) => (None, Some(error.clone())),
            };
            let collected_at = Some(Timestamp(as_of.0.saturating_sub(at.since(entry.at))));
            items.push(MetadataItem { key: key.clone(), value, error, collected_at });
        }
        state.last_seq = seq;
        state.open = Some((seq, now + ANSWER_TIMEOUT));
        // The rest follows as soon as this is stored.
        state.next_at = if size > FULL_FRAME { now } else { now + state.interval };
        Some(Frame { seq, items })
    }

    /// The server has stored a frame, but for what it rejects, which would be rejected again.
    pub(in crate::agent) fn stored(&self, answer: &MetadataStored) {
        let (mut state, now) = (self.state(), Instant::now());
        for entry in state.entries.values_mut().filter(|entry| entry.sent == Some(answer.seq)) {
            entry.stored = Some(now);
        }
        if state.open.is_some_and(|(seq, _)| seq == answer.seq) {
            state.open = None;
        }
        if let Some(Span(interval)) = answer.metadata_interval {
            state.interval = interval;
        }
        drop(state);
        for rejected in &answer.rejected {
            let (key, reason) = (rejected.key.as_str(), rejected.reason.as_str());
            log::warn!(key, reason; "the server does not store a value");
        }
        self.news.notify_one();
    }
}

impl Entry {
    fn is_due(&self, now: Instant) -> bool {
        self.stored.is_none_or(|stored| now >= stored + REFRESH)
    }
}

impl State {
    /// How long to wait before values are sent. `None` if there are none.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let due = self.entries.values().map(|entry| entry.stored.map_or(now, |stored| stored + REFRESH)).min()?;
        let due = due.max(self.next_at);
        let due = self.open.map_or(due, |(_, until)| due.max(until));
        Some(due.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::server_clock::ServerClock;

    fn value(text: &str) -> Collected {
        Ok(RawValue::from_string(text.to_owned()).expect("JSON"))
    }

    fn stored(seq: i64, interval: Option<Span>) -> MetadataStored {
        MetadataStored { seq, rejected: Vec::new(), metadata_interval: interval }
    }

    fn keys(frame: Option<Frame>) -> Vec<String> {
        frame.map(|frame| frame.items.into_iter().map(|item| item.key).collect()).unwrap_or_default()
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_sent_and_everything_now_and_then() {
        let (reports, clock) = (Reports::default(), ServerClock::default());
        let take = || keys(reports.take(Timestamp(0), clock.moment()));
        let put = |key: &str, text: &str| reports.put(key, value(text), clock.moment());
        reports.begin(Some(Span::secs(10)));
        assert_eq!(take(), [""; 0]);
        put("a", "1");
        put("b", "1");
        reports.due().await;
        assert_eq!(take(), ["a", "b"]);
        put("b", "2");
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(take(), [""; 0], "the first frame is not answered");
        reports.stored(&stored(1, Some(Span::secs(60))));
        assert_eq!(take(), ["b"], "it has changed since it was sent");
        reports.stored(&stored(2, None));
        put("a", "1");
        put("b", "2");
        tokio::time::advance(Duration::from_secs(500)).await;
        assert_eq!(take(), [""; 0], "nothing has changed");
        reports.due().await;
        assert_eq!(take(), ["a", "b"], "ten minutes after they were stored");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_answered_is_sent_again() {
        let (reports, clock) = (Reports::default(), ServerClock::default());
        reports.put("a", Err("no sensor".into()), clock.moment());
        assert_eq!(keys(reports.take(Timestamp(0), clock.moment())), ["a"]);
        tokio::time::advance(ANSWER_TIMEOUT).await;
        let again = reports.take(Timestamp(0), clock.moment()).expect("a frame");
        assert_eq!((again.seq, again.items[0].error.as_deref()), (2, Some("no sensor")));
        reports.begin(None);
        assert_eq!(keys(reports.take(Timestamp(0), clock.moment())), ["a"], "the connection is a new one");
    }

    #[test]
    fn times_are_as_old_as_the_values() {
        let boot = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(5_000));
        let read = boot.clone();
        let clock = ServerClock::over(move || read.load(std::sync::atomic::Ordering::SeqCst));
        let reports = Reports::default();
        reports.put("a", value("1"), clock.moment());
        boot.store(7_500, std::sync::atomic::Ordering::SeqCst);
        let frame = reports.take(Timestamp(100_000), clock.moment()).expect("a frame");
        assert_eq!(frame.items[0].collected_at, Some(Timestamp(97_500)));
    }
}
