//! Random JSON for tests.

use proptest::prelude::*;
use serde_json::Value;

/// JSON that serde_json reads without a loss, written with spaces here and there.
pub(crate) fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1_000i32..1_000).prop_map(|number| Value::from(f64::from(number) / 8.0)),
        any::<String>().prop_map(Value::from),
        "[\\\\\"a{}\\[\\]:, ]{0,6}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-cü\"\\\\]{0,2}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    });
    (value, any::<bool>()).prop_map(|(value, is_pretty)| match is_pretty {
        true => serde_json::to_string_pretty(&value).expect("JSON"),
        false => value.to_string(),
    })
}
