//! What a document must be beyond JSON: objects where objects are expected, no key twice, and nothing that only some
//! readers take; and JSON that keeps the digits of its numbers.

mod object;
mod path;
#[cfg(test)]
pub(crate) mod testing;
mod tokens;
mod tree;
mod words;

pub use object::{JsonObject, tidied, tidy};
pub use path::text_at;
pub(crate) use tokens::shortened;
pub use tokens::{MAX_DEPTH, on_one_line, pretty, repaired};
pub use tree::readable;
pub use words::plainly;

use super::problem::{Problem, ProblemKind, check_is_object};
use super::text::bytes_without_mark;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use tokens::{Token, Tokens, place};

/// Checks the JSON of a document: no object has a key twice (of equal keys, other readers take the last one, or the
/// first), its strings are text, and it is at most [`MAX_DEPTH`] deep. Numbers may be of any length. Returns its text.
///
/// # Errors
/// A problem with line and column.
pub fn check(json: &[u8]) -> Result<&str, Problem> {
    let text = text_of(json)?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| malformed(explained(text, &error)))?;
    let mut open: Vec<HashSet<String>> = Vec::new();
    for (offset, token) in Tokens::of(text) {
        let wrong =
            |what: String| Problem::new(ProblemKind::InvalidDocument, format!("{what}{}", at(place(text, offset))));
        let read = |string: &str| {
            serde_json::from_str::<String>(string)
                .map_err(|_| wrong("a string holds half of a surrogate pair, which is no character".to_owned()))
        };
        match token {
            Token::Open(_) if open.len() >= MAX_DEPTH => {
                let what = format!("lists and objects are more than {MAX_DEPTH} deep");
                return Err(malformed(what + &at(place(text, offset))));
            }
            Token::Open(_) => open.push(HashSet::new()),
            Token::Close(_) => {
                open.pop();
            }
            Token::Key(key) => {
                let key = read(key)?;
                let shown = format!("{key:?}");
                if open.last_mut().is_some_and(|keys| !keys.insert(key)) {
                    return Err(wrong(format!("the key {shown} is given twice")));
                }
            }
            Token::Text(text) => {
                read(text)?;
            }
            Token::Atom(_) => {}
        }
    }
    Ok(text)
}

/// Reads the parameters of a module from an object. A derived reader would take a list as well.
///
/// # Errors
/// What is wrong, in words.
pub fn parameters<T: DeserializeOwned>(json: &str) -> Result<T, String> {
    if !json.trim_start().starts_with('{') {
        return Err("an object is expected".to_owned());
    }
    serde_json::from_str(json).map_err(|error| plainly(&error.to_string()))
}

/// A text that is the same for two documents if, and only if, they say the same.
///
/// # Errors
/// Those of [`check`].
pub fn canonical(json: &[u8]) -> Result<String, Problem> {
    check(json).map(tree::canonical)
}

fn malformed(what: impl fmt::Display) -> Problem {
    Problem::new(ProblemKind::MalformedJson, format!("not valid JSON: {what}"))
}

fn text_of(json: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(json).map_err(|error| {
        let before = String::from_utf8_lossy(&json[..error.valid_up_to()]);
        malformed(format_args!("not UTF-8{}", at(place(&before, before.len()))))
    })
}

fn at((line, column): (usize, usize)) -> String {
    format!(" at line {line} column {column}")
}

/// A reader's error with its place; the column in characters.
pub fn explained(json: &str, error: &serde_json::Error) -> String {
    let text = error.to_string();
    let Some((what, _)) = text.rsplit_once(" at line ").filter(|_| error.line() > 0) else { return text };
    let line = json.split('\n').nth(error.line() - 1).unwrap_or_default();
    let column = (0..=error.column().min(line.len())).rev().find_map(|end| line.get(..end));
    format!("{what}{}", at((error.line(), column.unwrap_or_default().chars().count().max(1))))
}

/// Reads a value whose errors name the key, line and column. It may be any JSON.
///
/// # Errors
/// A problem with that message.
pub fn from_text<T: DeserializeOwned>(json: &str) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        let error = error.into_inner();
        let kind = if error.is_data() { ProblemKind::InvalidDocument } else { ProblemKind::MalformedJson };
        Problem::new(kind, format!("{place}{}", plainly(&explained(json, &error))))
    })?;
    reader.end().map_err(|error| Problem::new(ProblemKind::MalformedJson, explained(json, &error)))?;
    Ok(value)
}

/// A value that is read from an object alone. A derived reader takes a list as well, and takes its items for the
/// values in their order.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(entries))
            }
        }

        deserializer.deserialize_map(Reader(PhantomData)).map(Self)
    }
}

/// For `#[serde(deserialize_with)]`: a value from an object alone.
///
/// # Errors
/// Those of the deserializer.
pub fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// The same for a list of such values.
///
/// # Errors
/// Those of the deserializer.
pub fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Vec::<Object<T>>::deserialize(deserializer).map(|objects| objects.into_iter().map(|Object(value)| value).collect())
}

/// The same for one that may be missing or null.
///
/// # Errors
/// Those of the deserializer.
pub fn optional_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::<Object<T>>::deserialize(deserializer).map(|object| object.map(|Object(value)| value))
}

/// Reads a value from an object that an agent wrote: what is no text in it is [replaced](repaired). Errors name the key,
/// line and column.
///
/// # Errors
/// A problem with that message.
pub fn from_agent<T: DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    let text = text_of(bytes_without_mark(json))?;
    check_is_object(text.as_bytes())?;
    from_text(&repaired(text))
}

/// Reads a value from an object in which no key is given twice. Errors name the key, line and column.
///
/// # Errors
/// A problem with that message.
pub fn from_object<T: DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    let json = check(bytes_without_mark(json))?;
    check_is_object(json.as_bytes())?;
    from_text(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Step {
        module: String,
        #[serde(default)]
        parameters: Option<Box<serde_json::value::RawValue>>,
    }

    #[derive(Debug, Deserialize)]
    struct Steps {
        #[serde(deserialize_with = "objects")]
        steps: Vec<Step>,
        #[serde(default, deserialize_with = "optional_object")]
        last: Option<Step>,
    }

    #[test]
    fn what_readers_disagree_about_is_an_error_with_its_place_at_any_depth() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for (json, what) in [
            (r#"{"a":1,"a":1}"#.to_owned(), "\"a\" is given twice at line 1 column 8"),
            ("{\"ä\":[{\"b\":{\"c\":1,\n\"\\u0063\":2}}]}".to_owned(), "\"c\" is given twice at line 2 column 1"),
            (r#"{"ä":"\ud800"}"#.to_owned(), "surrogate pair, which is no character at line 1 column 6"),
        ] {
            let problem = check(json.as_bytes()).expect_err("refused");
            assert!(problem.status == 422 && problem.detail.contains(what), "{problem}");
        }
        for fine in [r#"{"a":{"b":[1e400,-2,1.5,"x",null,true]},"b":{"a":{}}}"#, &deep(MAX_DEPTH), " 1 "] {
            assert_eq!(check(fine.as_bytes()), Ok(fine));
        }
        for (json, what) in [
            (&b"{"[..], "line 1 column 1"),
            ("{\"ä\":x".as_bytes(), "line 1 column 6"),
            (b"[1]\n[", "line 2 column 1"),
            (deep(MAX_DEPTH + 1).as_bytes(), "more than 64 deep at line 1 column 65"),
            (b"[\"\xc3\xa4\xff", "not UTF-8 at line 1 column 4"),
        ] {
            let problem = check(json).expect_err("refused");
            assert!(problem.status == 400 && problem.detail.contains(what), "{problem}");
        }
    }

    #[test]
    fn a_list_is_no_object_and_raw_values_keep_their_digits() {
        let read = |json: serde_json::Value| from_object::<Steps>(json.to_string().as_bytes());
        let steps = from_object::<Steps>(br#"{"steps":[{"module":"ping","parameters":1.10}]}"#).expect("an object");
        assert_eq!(steps.steps[0].parameters.as_ref().expect("given").get(), "1.10");
        assert!(steps.steps[0].module == "ping" && steps.last.is_none());
        for (json, place) in [
            (json!({ "steps": [["ping", {}]] }), "steps[0]"),
            (json!({ "steps": [], "last": ["ping"] }), "last"),
            (json!({ "steps": [{ "module": "ping", "colour": 1 }] }), "steps[0]"),
        ] {
            let problem = read(json).expect_err("refused");
            assert!(problem.detail.starts_with(place), "{problem}");
        }
        assert!(read(json!([[], null])).expect_err("a list").detail.contains("not a list"));
    }
}
