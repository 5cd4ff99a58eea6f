//! What the database alone can do: the same rows in the same batches, without anything around it.

pub(super) mod postgres;
pub(super) mod sqlite;
