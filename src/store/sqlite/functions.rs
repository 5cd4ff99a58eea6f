//! The functions that targets ask of a database, for SQLite: what is inside JSON (labels, facts),
//! what counts as a number, and LIKE. Its own JSON paths can't name every key; and this way the
//! target's reference meaning ([`Target::evaluate`](crate::domain::target::Target::evaluate)) and
//! the database run the same code.

use crate::domain::json::text_at;
use crate::domain::target::{Number, like};
use diesel::prelude::*;
use diesel::sql_types::{Bool, Nullable, Text};

#[diesel::declare_sql_function]
extern "SQL" {
    /// The label with this key.
    fn odoshi_label(labels: Text, key: Text) -> Nullable<Text>;
    /// What is at this path (a JSON list of keys) in JSON, as text.
    fn odoshi_fact(json: Nullable<Text>, path: Text) -> Nullable<Text>;
    /// The number that a text is, as a text whose order is that of the numbers.
    fn odoshi_number(text: Nullable<Text>) -> Nullable<Text>;
    /// LIKE. SQLite's own takes exponential time over some patterns, refuses long ones, and stops
    /// at a NUL.
    fn odoshi_like(text: Nullable<Text>, pattern: Text, ignore_case: Bool) -> Nullable<Bool>;
}

/// Makes the functions known to a connection.
pub(super) fn register(conn: &mut SqliteConnection) -> QueryResult<()> {
    odoshi_label_utils::register_impl(conn, |labels: String, key: String| -> Option<String> {
        let labels: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&labels).ok()?;
        labels.get(&key)?.as_str().map(str::to_owned)
    })?;
    odoshi_fact_utils::register_impl(conn, |json: Option<String>, path: String| -> Option<String> {
        let path: Vec<String> = serde_json::from_str(&path).ok()?;
        text_at(&json?, &path).map(|text| text.into_owned())
    })?;
    odoshi_number_utils::register_impl(conn, |text: Option<String>| Some(Number::of(&text?)?.sort_key()))?;
    odoshi_like_utils::register_impl(conn, |text: Option<String>, pattern: String, ignore_case: bool| {
        Some(like(&text?, &pattern, ignore_case))
    })
}
