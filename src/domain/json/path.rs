//! What is at a place inside JSON, to the letter.

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Finds the value of one key. A list has its places for keys.
struct At<'k>(&'k str);

/// Compares a key.
struct Is<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list or an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = entries.next_key_seed(Is(self.0))? {
            if is_it {
                found = Some(entries.next_value()?);
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let is_place = self.0.bytes().all(|byte| byte.is_ascii_digit());
        let place = self.0.parse::<usize>().ok().filter(|_| is_place);
        let (mut at, mut found) = (0, None);
        while let Some(item) = items.next_element::<&RawValue>()? {
            if place == Some(at) {
                found = Some(item);
            }
            at += 1;
        }
        Ok(found)
    }
}

/// The value at a path, as text, as SQL's `->>` has it: a string without its quotes, nothing for null, other values as
/// they are written.
pub fn text_at<'a>(json: &'a str, path: &[String]) -> Option<Cow<'a, str>> {
    let mut value: &RawValue = serde_json::from_str(json).ok()?;
    for key in path {
        if !value.get().starts_with(['{', '[']) {
            return None;
        }
        let mut reader = serde_json::Deserializer::from_str(value.get());
        value = reader.deserialize_any(At(key)).ok()??;
    }
    match value.get() {
        "null" => None,
        text if text.starts_with('"') => {
            #[derive(Deserialize)]
            struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
            serde_json::from_str(text).ok().map(|Text(text)| text)
        }
        other => Some(Cow::Borrowed(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_keys_and_places_and_keep_their_digits() {
        let json = r#"{"a":{"b":[1.10,{"c":"x\n"}, null]},"n":1e400,"a.b":true,"twice":1,"twice":2,"1":"one"}"#;
        let text = |path: &[&str]| {
            let path: Vec<String> = path.iter().map(|key| (*key).to_owned()).collect();
            text_at(json, &path).map(Cow::into_owned)
        };
        assert_eq!(text(&["a", "b", "0"]).as_deref(), Some("1.10"));
        assert_eq!(text(&["a", "b", "1", "c"]).as_deref(), Some("x\n"));
        assert_eq!(text(&["a", "b", "1"]).as_deref(), Some(r#"{"c":"x\n"}"#));
        assert_eq!(text(&["n"]).as_deref(), Some("1e400"));
        assert_eq!(text(&["a.b"]).as_deref(), Some("true"));
        assert_eq!(text(&["twice"]).as_deref(), Some("2"), "as databases have it");
        assert_eq!(text(&["1"]).as_deref(), Some("one"));
        for nothing in [&["a", "b", "2"][..], &["a", "b", "3"], &["a", "b", "+0"], &["b"], &["n", "0"], &["1", "0"]] {
            assert_eq!(text(nothing), None, "{nothing:?}");
        }
        assert_eq!(text_at("\"whole\"", &[]).as_deref(), Some("whole"));
        assert_eq!(text_at("[1", &["0".to_owned()]), None);
    }
}
