//! Metadata: what agents report again and again. Only the newest value of a key counts.
//!
//! Newest means: the latest `collected_at`, and of equal ones the one that arrived last. A time in
//! the future is set to the time of arrival, or a wrong clock would keep out every later value.

use super::protocol::{MetadataItem, RefusedKey};
use super::time::Timestamp;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Maximum size of a key, in bytes.
pub const MAX_KEY: usize = 128;
/// Maximum size of a value, in bytes of JSON.
pub const MAX_VALUE: usize = 4 * 1024;
/// Maximum size of an error, in bytes. What is longer is cut.
pub const MAX_ERROR: usize = 1024;
/// Maximum number of keys of one agent.
pub const MAX_KEYS: usize = 256;

/// The shortest time between two reports of an agent that a server asks for.
pub const INTERVAL_MIN: Duration = Duration::from_secs(10);
/// The longest.
pub const INTERVAL_MAX: Duration = Duration::from_secs(600);
/// Values per second that one node asks for at most: less than half of what two processor cores and
/// one PostgreSQL take, which leaves the rest for commands.
const VALUES_PER_SECOND: u64 = 50_000;
/// Keys of an agent, as far as the interval is concerned.
const KEYS_ASSUMED: u64 = 15;

/// Differences between clocks that are not corrected.
const SKEW_IGNORED: Duration = Duration::from_secs(5);

/// A value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value, as JSON.
    pub value: Option<String>,
    /// Why there is none.
    pub error: Option<String>,
    /// When it was collected, by the server's clock.
    pub collected_at: Timestamp,
    /// The agent gave a time in the future.
    pub clamped: bool,
}

/// Values by key.
pub type Values = BTreeMap<String, Value>;

/// What an agent reports: any part → the actor of metadata. Answered, once it is durable, with the keys that are refused.
#[derive(Clone, Debug)]
pub struct AgentReport {
    /// The agent's key.
    pub agent_no: i64,
    /// The values; none to say only that the agent is there. They are shared with what is written: there may be
    /// many.
    pub values: Arc<Values>,
    /// When it arrived.
    pub at: Timestamp,
    /// It checked in, over HTTP or through a broker.
    pub checked_in: bool,
}

impl AgentReport {
    /// The report that an agent was heard of.
    pub fn seen(agent_no: i64, at: Timestamp, checked_in: bool) -> Self {
        Self { agent_no, values: Arc::default(), at, checked_in }
    }
}

/// How an agent's clock differs from the server's, as its `hello` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentClock {
    /// How many milliseconds it is behind.
    behind: i64,
}

impl AgentClock {
    /// Of an agent whose clock showed `clock` in a `hello` that arrived at `now`.
    pub fn new(clock: Option<Timestamp>, now: Timestamp) -> Self {
        let behind = clock.map_or(0, |clock| now.0.saturating_sub(clock.0));
        // The time that a message takes is no difference between clocks.
        let ignored = i64::try_from(SKEW_IGNORED.as_millis()).unwrap_or(i64::MAX);
        Self { behind: if behind.saturating_abs() > ignored { behind } else { 0 } }
    }

    /// A time by the agent's clock, by the server's: at most `now`. Whether it had to be changed for that.
    fn read(self, time: Timestamp, now: Timestamp) -> (Timestamp, bool) {
        let time = Timestamp(time.0.saturating_add(self.behind));
        let future = time.0.saturating_sub(now.0);
        (time.min(now).max(Timestamp(0)), future > i64::try_from(SKEW_IGNORED.as_millis()).unwrap_or(i64::MAX))
    }
}

/// Reads what an agent reports at `now`: the newest value of each key, and what is refused.
pub fn read(items: Vec<MetadataItem>, clock: AgentClock, now: Timestamp) -> (Values, Vec<RefusedKey>) {
    let (mut values, mut refused) = (Values::new(), Vec::new());
    for item in items {
        let MetadataItem { mut key, value, error, collected_at } = item;
        let value = match check(&key, value.as_deref()) {
            Ok(value) => value,
            Err(reason) => {
                key = super::fit::cut_text(key, MAX_KEY);
                refused.push(RefusedKey { key, reason });
                continue;
            }
        };
        if !values.contains_key(&key) && values.len() >= MAX_KEYS {
            refused.push(RefusedKey { key, reason: too_many_keys() });
            continue;
        }
        let error = error.map(|mut error| {
            super::text::replace_nul(&mut error);
            super::fit::cut_text(error, MAX_ERROR)
        });
        // Neither a value nor an error: the value is null.
        let value = value.or_else(|| error.is_none().then(|| "null".to_owned()));
        let (collected_at, clamped) = clock.read(collected_at.unwrap_or(now), now);
        merge(&mut values, key, Value { value, error, collected_at, clamped });
    }
    (values, refused)
}

/// The reason for which a key is refused that would be one too many.
pub fn too_many_keys() -> String {
    format!("the agent has {MAX_KEYS} keys already, which is the most")
}

/// The value as it is stored.
fn check(key: &str, value: Option<&RawValue>) -> Result<Option<String>, String> {
    if key.is_empty() || key.len() > MAX_KEY || key.contains(char::is_control) {
        return Err(format!("a key has 1 to {MAX_KEY} bytes and no control characters"));
    }
    let Some(text) = value.map(RawValue::get) else { return Ok(None) };
    if text.len() > MAX_VALUE {
        return Err(format!("the value has {} bytes of JSON, and {MAX_VALUE} are allowed", text.len()));
    }
    // Another sender than ours may have read it.
    Ok(Some(super::json::repaired(text).into_owned()))
}

/// Puts a value in its place, unless a newer one is there. Whether one was replaced or left out.
pub fn merge(values: &mut Values, key: String, value: Value) -> bool {
    match values.entry(key) {
        std::collections::btree_map::Entry::Vacant(place) => {
            place.insert(value);
            false
        }
        std::collections::btree_map::Entry::Occupied(mut place) => {
            if value.collected_at >= place.get().collected_at {
                place.insert(value);
            }
            true
        }
    }
}

/// How often an agent is to report: the shortest interval at which the agents of this node send no more than
/// it takes. `pressure` is by how much it is too short at present, 1 if it isn't.
pub fn interval(agents: usize, pressure: u32) -> Duration {
    let values = (agents as u64).saturating_mul(KEYS_ASSUMED);
    let fair = Duration::from_secs(values.div_ceil(VALUES_PER_SECOND)).max(INTERVAL_MIN);
    fair.saturating_mul(pressure.max(1)).min(INTERVAL_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_750_000_000_000);

    fn item(key: &str, value: &str, at: Option<i64>) -> MetadataItem {
        let value = Some(RawValue::from_string(value.to_owned()).expect("JSON"));
        MetadataItem { key: key.into(), value, error: None, collected_at: at.map(Timestamp) }
    }

    fn one(item: MetadataItem, clock: AgentClock) -> Value {
        let (mut values, refused) = read(vec![item], clock, NOW);
        assert_eq!(refused, []);
        values.pop_first().expect("a value").1
    }

    #[test]
    fn a_value_is_kept_to_the_letter() {
        for text in ["1.10", "12345678901234567890123", r#"{"b":1,"a":[null]}"#, "\"ü\"", "null"] {
            let value = one(item("k", text, None), AgentClock::default());
            assert_eq!((value.value.as_deref(), value.error, value.collected_at), (Some(text), None, NOW));
        }
        let nothing = MetadataItem { key: "k".into(), value: None, error: None, collected_at: None };
        assert_eq!(one(nothing.clone(), AgentClock::default()).value.as_deref(), Some("null"));
        let failed = MetadataItem { error: Some("no\0 sensor".into()), ..nothing };
        let failed = one(failed, AgentClock::default());
        assert_eq!((failed.value, failed.error.as_deref()), (None, Some("no\u{FFFD} sensor")));
    }

    #[test]
    fn escapes_that_no_database_reads_are_replaced() {
        let text = r#"{"a\u0000":"\\u0000\u00fc\ud83d\ude00\n\"","n":1.10,"half":"\ud800x"}"#;
        let value = one(item("k", text, None), AgentClock::default()).value.expect("a value");
        assert_eq!(value, r#"{"a\ufffd":"\\u0000\u00fc\ud83d\ude00\n\"","n":1.10,"half":"\ufffdx"}"#);
    }

    #[test]
    fn what_exceeds_a_limit_is_refused_with_its_key_and_the_rest_is_taken() {
        let long = format!("\"{}\"", "x".repeat(MAX_VALUE));
        let wide = "k".repeat(MAX_KEY + 1);
        let items = vec![item("a", "1", None), item("b", &long, None), item(&wide, "1", None), item("", "1", None)];
        let (values, refused) = read(items, AgentClock::default(), NOW);
        assert_eq!(values.into_keys().collect::<Vec<_>>(), ["a"]);
        let keys: Vec<&str> = refused.iter().map(|refused| refused.key.as_str()).collect();
        assert_eq!(keys, ["b", &wide[..MAX_KEY], ""]);
        let many = (0..MAX_KEYS + 2).map(|n| item(&n.to_string(), "1", None)).collect();
        let (values, refused) = read(many, AgentClock::default(), NOW);
        assert_eq!((values.len(), refused.len()), (MAX_KEYS, 2));
    }

    #[test]
    fn times_are_the_servers_and_never_in_the_future() {
        let hour = 3_600_000;
        let of = |clock: AgentClock, at: i64| {
            let value = one(item("k", "1", Some(at)), clock);
            (value.collected_at.0 - NOW.0, value.clamped)
        };
        let right = AgentClock::new(Some(NOW), NOW);
        assert_eq!(of(right, NOW.0 - 7), (-7, false));
        assert_eq!(of(right, NOW.0 + hour), (0, true), "it says so");
        assert_eq!(of(AgentClock::new(None, NOW), NOW.0 + 3), (0, false), "a message takes time");
        let behind = AgentClock::new(Some(Timestamp(NOW.0 - hour)), NOW);
        assert_eq!(of(behind, NOW.0 - hour - 7), (-7, false));
        let ahead = AgentClock::new(Some(Timestamp(NOW.0 + hour)), NOW);
        assert_eq!(of(ahead, NOW.0 + hour - 7), (-7, false));
        assert_eq!(AgentClock::new(Some(Timestamp(NOW.0 - 4_000)), NOW), AgentClock::default());
        assert!(of(AgentClock::new(Some(Timestamp(i64::MIN)), NOW), i64::MAX).1);
    }

    #[test]
    fn the_interval_grows_with_the_fleet_and_with_the_pressure() {
        let secs = |agents, pressure| interval(agents, pressure).as_secs();
        assert_eq!([secs(0, 0), secs(600, 1), secs(33_333, 1), secs(100_000, 1)], [10, 10, 10, 30]);
        assert_eq!([secs(600, 4), secs(100_000, 2), secs(usize::MAX, u32::MAX)], [40, 60, 600]);
    }

    proptest! {
        #[test]
        fn the_newest_value_of_a_key_wins_and_of_equal_ones_the_last(
            reports in prop::collection::vec((0..3_u8, -5..5_i64), 0..40),
        ) {
            let items = reports.iter().enumerate().map(|(n, (key, at))| {
                item(&key.to_string(), &n.to_string(), Some(NOW.0 + at * 1_000))
            });
            let (values, _) = read(items.collect(), AgentClock::default(), NOW);
            for key in 0..3_u8 {
                let of_key = reports.iter().enumerate().filter(|(_, (k, _))| *k == key);
                let newest = of_key.max_by_key(|(n, (_, at))| ((*at).min(0), *n)).map(|(n, _)| n.to_string());
                prop_assert_eq!(values.get(&key.to_string()).and_then(|value| value.value.clone()), newest);
            }
        }
    }
}
