//! Points in time and durations, as the interface writes them.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A point in time: milliseconds since 1970-01-01T00:00:00Z. Written as RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// The last instant that RFC 3339 can write: 9999-12-31T23:59:59.999Z.
pub(super) const LAST_WRITABLE: i64 = 253_402_300_799_999;
/// The first one: 0000-01-01T00:00:00Z.
const FIRST_WRITABLE: i64 = -62_167_219_200_000;

impl Timestamp {
    /// The time by this machine's clock. The pipeline uses [`Store::now`](crate::store::Store::now)
    /// instead.
    pub fn of_this_machine() -> Self {
        Self(Utc::now().timestamp_millis())
    }

    /// Parses RFC 3339 with any offset; fractions beyond milliseconds are cut off.
    pub fn parse(text: &str) -> Result<Self, chrono::ParseError> {
        DateTime::parse_from_rfc3339(text).map(|time| Self(time.timestamp_millis()).clamped())
    }

    /// This time plus `span`, at most the end of the year 9999.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(millis)).clamped()
    }

    /// This time minus `span`.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(millis)).clamped()
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    fn clamped(self) -> Self {
        Self(self.0.clamp(FIRST_WRITABLE, LAST_WRITABLE))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::<Utc>::from_timestamp_millis(self.clamped().0) {
            Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true)),
            None => write!(f, "{}ms", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(|error| D::Error::custom(format!("\"{text}\" is not an RFC 3339 time: {error}")))
    }
}

/// A duration as documents and settings write it: `20ms`, `30s`, `1h30m`, `7d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl Span {
    /// A span of this many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// A span of this many seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// A span of this many days of 24 hours.
    pub const fn days(days: u64) -> Self {
        Self(Duration::from_secs(days * 86_400))
    }

    /// The span in milliseconds, as the store keeps it.
    pub fn as_millis(self) -> i64 {
        i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX)
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        span(text).map(Self).ok_or_else(|| {
            format!("{text:?} is not a duration such as 20ms, 30s, 1h30m or 7d (the units are ms, s, m, h and d)")
        })
    }
}

/// Numbers, each with its unit. Other readers of durations take `M` for months, and fractions.
fn span(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    loop {
        let (number, after) = rest.split_at(rest.find(|letter: char| !letter.is_ascii_digit())?);
        let end = after.find(|letter: char| letter.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(millis)?))?;
        rest = after;
        if rest.is_empty() {
            return Some(total);
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days are the largest unit of the interface; humantime would use months and years.
        let mut rest = self.0.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if rest >= millis {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        let time = ObjectBuilder::new().schema_type(Type::String);
        let time = time.format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
        time.description(Some("RFC 3339; written in UTC with milliseconds")).build().into()
    }
}

impl ToSchema for Timestamp {
    fn name() -> Cow<'static, str> {
        "Timestamp".into()
    }
}

impl PartialSchema for Span {
    fn schema() -> RefOr<Schema> {
        let span = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^([0-9]{1,6}(ms|s|m|h|d))+$"));
        span.description(Some("Numbers and units in a row, such as 1h30m")).examples(["90s"]).build().into()
    }
}

impl ToSchema for Span {
    fn name() -> Cow<'static, str> {
        "Duration".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_utc_with_milliseconds() {
        let time = Timestamp::parse("2026-01-01T02:00:00.1234+02:00").expect("a valid time");
        assert_eq!(time.to_string(), "2026-01-01T00:00:00.123Z");
        assert_eq!(Timestamp(i64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn spans_are_read_and_written_in_the_units_of_the_interface() {
        for text in ["20ms", "30s", "5m", "2h", "7d", "1h30m", "1d1ms", "400d"] {
            assert_eq!(text.parse::<Span>().expect("a valid span").to_string(), text);
        }
        for text in [
            "",
            "0",
            "5",
            "-5s",
            "5 parsecs",
            "s",
            "5M",
            "1y",
            "2w",
            "1.5h",
            "1h 30m",
            "1h30",
            "5S",
            "1min",
            "5µs",
            "99999999999999999999d",
        ] {
            let error = text.parse::<Span>().expect_err("not a span");
            assert!(error.contains("is not a duration"), "{error}");
        }
    }
}
