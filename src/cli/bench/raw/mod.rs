//! The speed of the database alone: the same rows in the same batches, without a server.

pub(super) mod metadata;
pub(super) mod postgres;
pub(super) mod sqlite;
