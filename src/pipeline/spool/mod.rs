//! The spool: a maildir-like folder that takes actions as files. Plain blocking code; an actor drives it.
//!
//! | folder | content |
//! |---|---|
//! | `tmp/` | files that producers are writing; never read |
//! | `new/` | `*.json` files that producers have renamed into it |
//! | `cur/` | files that a process has taken and is storing |
//! | `done/` | files whose actions are stored durably |
//! | `failed/` | files that are not valid actions; `NAME.json.error` beside each says why |
//!
//! **Several processes** may share one spool. A process claims a file by a rename from `new/` to `cur/`, which succeeds
//! for only one of them, and keeps it locked (`flock`) until it leaves `cur/`. A lock ends with its process, so
//! [`Spool::recover`] can distinguish files that a crash left behind from files that another process works on. (Rejected:
//! a folder per process, because a dead process's folder looks like a slow one's.)
//!
//! **Nothing is overwritten**: a move fails when the name is taken (`RENAME_NOREPLACE`). In `done/` and `failed/` the
//! names `x.1.json`, `x.2.json`, … are tried next.
//!
//! **Ids.** If the document has no id, [`derived_id`] derives one from name, content and modification time. So a file that
//! was taken once must keep its name as long as it may be taken again. When it goes back to `new/` and its name is taken
//! there, the *newer* file, which no process has taken yet, gets the suffix.
//!
//! **Durability.** A file moves to `done/` only after its action is committed. If a crash of the machine loses that
//! rename, the file is taken again, has the same derived id and is the same action. So the renames into `cur/`, `done/`
//! and back to `new/` need no `fsync`. A file in `failed/` is final, so its `.error` is on disk (file and folder) when
//! [`Spool::fail`] returns. Folders that [`Spool::open`] creates are synced with their parent, because a producer's file is
//! only as durable as its folder. Producers that want to survive a power cut sync their file before the rename.

mod files;
mod folder;
#[cfg(test)]
mod tests;

pub use folder::{BYTES_AT_A_TIME, Spool, Taken, TakenFile, derived_id};
