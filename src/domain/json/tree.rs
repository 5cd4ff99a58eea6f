//! JSON as a tree whose numbers lose no digits: those that a number of ours would change become something else.

use super::tokens::{MAX_DEPTH, Token, Tokens, depth, repaired};
use serde_json::{Map, Value};

/// What is begun and not ended.
enum Open {
    List(Vec<Value>),
    Object(Map<String, Value>, Option<String>),
}

/// The tree of valid JSON. Of equal keys, the last one counts.
fn tree(json: &str, number: impl Fn(&str) -> Value) -> Value {
    let string = |text: &str| serde_json::from_str::<String>(text).unwrap_or_default();
    let (mut open, mut done) = (Vec::new(), Value::Null);
    for (_, token) in Tokens::of(json) {
        let value = match token {
            Token::Open(b'[') => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Token::Open(_) => {
                open.push(Open::Object(Map::new(), None));
                continue;
            }
            Token::Key(key) => {
                if let Some(Open::Object(_, next)) = open.last_mut() {
                    *next = Some(string(key));
                }
                continue;
            }
            Token::Text(text) => Value::String(string(text)),
            Token::Atom("null") => Value::Null,
            Token::Atom("true") => Value::Bool(true),
            Token::Atom("false") => Value::Bool(false),
            Token::Atom(digits) => number(digits),
            Token::Close(_) => match open.pop() {
                Some(Open::List(items)) => Value::Array(items),
                Some(Open::Object(map, _)) => Value::Object(map),
                None => Value::Null,
            },
        };
        match open.last_mut() {
            Some(Open::List(items)) => items.push(value),
            Some(Open::Object(map, key)) => {
                map.insert(key.take().unwrap_or_default(), value);
            }
            None => done = value,
        }
    }
    done
}

/// The number that is written like this, if it has one of ours.
fn same_number(digits: &str) -> Option<Value> {
    let number: serde_json::Number = serde_json::from_str(digits).ok()?;
    (number.to_string() == digits).then_some(Value::Number(number))
}

/// JSON for people and programs that look into it: numbers that one of ours would change are strings of their digits.
/// `None` if it isn't JSON. What is nested too deeply is a string.
pub fn readable(json: &str) -> Option<Value> {
    let json = repaired(json);
    serde_json::from_str::<serde::de::IgnoredAny>(&json).ok()?;
    // Twice as much as is stored, since answers hold what is stored a few levels deeper.
    if depth(&json) > 2 * MAX_DEPTH {
        return Some(Value::from(json.as_ref()));
    }
    Some(tree(&json, |digits| same_number(digits).unwrap_or_else(|| digits.into())))
}

/// A text that is the same for two documents if, and only if, they say the same: without spaces, with sorted keys.
/// Numbers are the same if they are written alike.
pub(super) fn canonical(json: &str) -> String {
    tree(json, |digits| same_number(digits).unwrap_or_else(|| format!("\0{digits}").into())).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::testing::any_json;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn numbers_keep_their_digits() {
        let json = r#"{"a":[1.10,1e400,12345678901234567890123,-7,0.5],"b":"\ud800","c":{}}"#;
        let value = json!({"a": ["1.10", "1e400", "12345678901234567890123", -7, 0.5], "b": "\u{FFFD}", "c": {}});
        assert_eq!(readable(json), Some(value));
        assert_eq!(readable("{\"a\":"), None);
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert_eq!(readable(&deep), Some(deep.into()));
    }

    #[test]
    fn documents_that_say_the_same_have_one_canonical_text() {
        assert_eq!(canonical(r#"{ "b": 1, "a": "\u0041" }"#), canonical(r#"{"a":"A","b":1}"#));
        for other in [r#"{"a":"A","b":1.0}"#, r#"{"a":"A","b":"1"}"#, r#"{"a":"A","b":[1]}"#] {
            assert_ne!(canonical(r#"{"a":"A","b":1}"#), canonical(other));
        }
        assert_ne!(canonical("[1.10]"), canonical(r#"["1.10"]"#));
        assert_ne!(canonical("[1.10]"), canonical("[1.1]"));
    }

    proptest! {
        #[test]
        fn a_tree_is_what_others_read(json in any_json()) {
            let value: Value = serde_json::from_str(&json).expect("JSON");
            prop_assert_eq!(canonical(&json), value.to_string());
            prop_assert_eq!(readable(&json), Some(value));
        }
    }
}
