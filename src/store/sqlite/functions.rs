//! The functions that targets ask of a database, for SQLite: what is inside JSON (labels, facts),
//! what counts as a number, and LIKE. Its own JSON paths can't name every key; and this way the
//! target's reference meaning ([`Target::evaluate`](crate::domain::target::Target::evaluate)) and
//! the database run the same code.

use crate::domain::target::{fact_text, like, number_of};
use diesel::prelude::*;
use diesel::sql_types::{Bool, Nullable, Text};

#[diesel::declare_sql_function]
extern "SQL" {
    /// The label with this key.
    fn odoshi_label(labels: Text, key: Text) -> Nullable<Text>;
    /// What is at this path (a JSON list of keys) in the facts, as text.
    fn odoshi_fact(facts: Text, path: Text) -> Nullable<Text>;
    /// The number that a text is.
    fn odoshi_number(text: Nullable<Text>) -> Nullable<Double>;
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
    odoshi_fact_utils::register_impl(conn, |facts: String, path: String| -> Option<String> {
        let facts: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&facts).ok()?;
        let path: Vec<String> = serde_json::from_str(&path).ok()?;
        fact_text(&facts, &path).map(|text| text.into_owned())
    })?;
    odoshi_number_utils::register_impl(conn, |text: Option<String>| number_of(&text?))?;
    odoshi_like_utils::register_impl(conn, |text: Option<String>, pattern: String, ignore_case: bool| {
        Some(like(&text?, &pattern, ignore_case))
    })
}
