//! What a document must be beyond JSON: objects where objects are expected, and no key twice.

use super::problem::{Problem, ProblemKind, check_is_object};
use super::text::bytes_without_mark;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::fmt;
use std::marker::PhantomData;

/// Any JSON in which no object has a key twice. Of equal keys, other readers take the last one, or the first.
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Unambiguous(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(list.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Map::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("the key {key:?} is given twice")));
                    }
                    let Unambiguous(value) = entries.next_value()?;
                    map.insert(key, value);
                }
                Ok(map.into())
            }
        }

        deserializer.deserialize_any(Any).map(Self)
    }
}

/// Reads any JSON in which no object has a key twice.
///
/// # Errors
/// A problem with line and column.
pub fn read(json: &[u8]) -> Result<Value, Problem> {
    match serde_json::from_slice(json) {
        Ok(Unambiguous(value)) => Ok(value),
        Err(error) if error.is_data() => Err(Problem::new(ProblemKind::InvalidDocument, error.to_string())),
        Err(error) => Err(Problem::new(ProblemKind::MalformedJson, format!("not valid JSON: {error}"))),
    }
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

/// A reader's error without the list of keys that it expected instead: it names aliases, and keys that are ignored.
pub fn without_list(error: &str) -> String {
    let Some((what, rest)) = error.split_once(", expected one of ") else { return error.to_owned() };
    let place = rest.rfind(" at line ").map_or("", |at| &rest[at..]);
    format!("{what}{place}")
}

/// Reads a value from an object in which no key is given twice. Errors name the key, line and column.
///
/// # Errors
/// A problem with that message.
pub fn from_object<T: DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    let json = bytes_without_mark(json);
    read(json)?;
    check_is_object(json)?;
    let mut reader = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        Problem::new(ProblemKind::InvalidDocument, format!("{place}{}", error.into_inner()))
    })
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
    fn a_key_that_is_given_twice_is_an_error_with_its_place_at_any_depth() {
        for (json, place) in
            [(r#"{"a":1,"a":1}"#, "line 1 column 10"), ("{\"a\":[{\"b\":{\"c\":1,\n\"c\":2}}]}", "line 2 column 3")]
        {
            let problem = read(json.as_bytes()).expect_err("twice");
            assert!(problem.status == 422 && problem.detail.contains(place), "{problem}");
        }
        let json = r#"{"a":{"b":[1,-2,1.5,"x",null,true]},"b":{"a":{}}}"#;
        assert_eq!(read(json.as_bytes()), Ok(serde_json::from_str(json).expect("JSON")));
        assert_eq!(read(b"{").expect_err("no end").status, 400);
    }

    #[test]
    fn an_unknown_key_is_named_without_all_the_others() {
        let error = "unknown field `colour`, expected one of `id`, `validfrom` at line 1 column 7";
        assert_eq!(without_list(error), "unknown field `colour` at line 1 column 7");
        assert_eq!(without_list("missing field `name`"), "missing field `name`");
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
