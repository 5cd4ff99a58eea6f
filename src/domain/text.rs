//! NUL, the one character that no text may contain, because PostgreSQL can't store it.
//!
//! In texts that people write, it is an error that names the place. In texts from agents, it is
//! replaced by U+FFFD: a program's output must not keep its result from being stored.

use serde_json::{Map, Value};

const NUL: char = '\0';
const INSTEAD: &str = "\u{FFFD}";

/// Whether a text contains NUL.
pub fn has_nul(text: &str) -> bool {
    text.contains(NUL)
}

/// Replaces NUL by U+FFFD.
pub fn replace_nul(text: &mut String) {
    if has_nul(text) {
        *text = text.replace(NUL, INSTEAD);
    }
}

/// The same in all texts and keys of a JSON object.
pub fn replace_nul_in(map: &mut Map<String, Value>) {
    if map.keys().any(|key| has_nul(key)) {
        *map = std::mem::take(map).into_iter().map(|(key, value)| (key.replace(NUL, INSTEAD), value)).collect();
    }
    map.values_mut().for_each(replace_nul_in_value);
}

fn replace_nul_in_value(value: &mut Value) {
    match value {
        Value::String(text) => replace_nul(text),
        Value::Array(items) => items.iter_mut().for_each(replace_nul_in_value),
        Value::Object(map) => replace_nul_in(map),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_replaced_wherever_it_is() {
        let mut facts = json!({"a\0": ["x\0y", {"b": {"\0": 1}}], "c": "d", "n": null});
        replace_nul_in(facts.as_object_mut().expect("an object"));
        assert_eq!(facts, json!({"a\u{FFFD}": ["x\u{FFFD}y", {"b": {"\u{FFFD}": 1}}], "c": "d", "n": null}));
    }
}
