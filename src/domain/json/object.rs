//! JSON objects of agents and users that are kept as they are written.

use super::tokens::{MAX_DEPTH, depth, on_one_line, repaired};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A JSON object with sorted keys, each once. Its values are kept to the letter, except for what no database or reader
/// takes: see [`repaired`] and [`tidy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonObject(String);

impl Default for JsonObject {
    fn default() -> Self {
        Self("{}".to_owned())
    }
}

impl JsonObject {
    /// Reads an object.
    ///
    /// # Errors
    /// If it isn't one.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        let entries: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&repaired(json))?;
        let entries: BTreeMap<String, Box<RawValue>> =
            entries.into_iter().map(|(key, value)| (key, tidy(value))).collect();
        serde_json::to_string(&entries).map(Self)
    }

    /// The object as JSON.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text at a path of keys: see [`text_at`](super::text_at).
    pub fn text_at(&self, path: &[String]) -> Option<Cow<'_, str>> {
        super::text_at(&self.0, path)
    }
}

impl From<&serde_json::Map<String, serde_json::Value>> for JsonObject {
    fn from(map: &serde_json::Map<String, serde_json::Value>) -> Self {
        Self(serde_json::Value::from(map.clone()).to_string())
    }
}

impl<'de> Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        Self::from_json(json.get()).map_err(|_| match json.get().starts_with('{') {
            true => D::Error::custom("a key is no text"),
            false => D::Error::custom("an object is expected"),
        })
    }
}

impl Serialize for JsonObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let json: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        json.serialize(serializer)
    }
}

/// JSON of others that readers can read inside an answer, on a line of its own. It is on one line, and what is nested more
/// than [`MAX_DEPTH`] deep becomes a string of its text. All else stays to the letter.
pub fn tidy(json: Box<RawValue>) -> Box<RawValue> {
    if depth(json.get()) > MAX_DEPTH {
        return to_raw_value(json.get()).unwrap_or(json);
    }
    match on_one_line(json.get()) {
        Cow::Borrowed(_) => json,
        Cow::Owned(line) => RawValue::from_string(line).unwrap_or(json),
    }
}

/// For `#[serde(deserialize_with)]`: any JSON, [tidied](tidy).
///
/// # Errors
/// Those of the deserializer.
pub fn tidied<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Ok(Option::<Box<RawValue>>::deserialize(deserializer)?.map(tidy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_to_the_letter() {
        let json = r#"{"b":1.10,"a":123456789012345678901234567890,"c":{"x": [1e400]},"d":"\ud800","b":1.20}"#;
        let object: JsonObject = serde_json::from_str(json).expect("an object");
        let kept = r#"{"a":123456789012345678901234567890,"b":1.20,"c":{"x": [1e400]},"d":"\ufffd"}"#;
        assert_eq!(object.as_str(), kept);
        assert_eq!(serde_json::to_string(&object).expect("JSON"), kept);
        for other in ["[]", "1", "null", "\"{}\""] {
            assert!(serde_json::from_str::<JsonObject>(other).is_err(), "{other}");
        }
    }

    #[test]
    fn values_are_on_one_line() {
        let json = "{\"a\": {\r\n  \"b\": [1,\n 2.50]\n},\n\"c\": \"x\\ny\"}";
        let object = JsonObject::from_json(json).expect("an object");
        assert_eq!(object.as_str(), r#"{"a":{  "b": [1, 2.50]},"c":"x\ny"}"#);
    }

    #[test]
    fn what_is_too_deep_becomes_its_text() {
        let nested = |deep: usize| format!("{}1{}", "[".repeat(deep), "]".repeat(deep));
        let read = |deep: usize| {
            let json = format!("{{\"a\":{},\"b\":1}}", nested(deep));
            JsonObject::from_json(&json).expect("an object").as_str().to_owned()
        };
        assert_eq!(read(MAX_DEPTH), format!("{{\"a\":{},\"b\":1}}", nested(MAX_DEPTH)));
        for deep in [MAX_DEPTH + 1, 1_000, 100_000] {
            assert_eq!(read(deep), format!("{{\"a\":\"{}\",\"b\":1}}", nested(deep)));
        }
    }
}
