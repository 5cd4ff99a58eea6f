//! The spool: a maildir-like folder that takes actions as files. Plain blocking code, for an actor to drive.
//!
//! | folder | holds |
//! |---|---|
//! | `tmp/` | what producers still write; never looked at |
//! | `new/` | `*.json` that producers renamed into here |
//! | `cur/` | taken: being stored |
//! | `done/` | stored durably as an action |
//! | `failed/` | could not be an action; `NAME.json.error` beside each says why |
//!
//! **Several processes** may share one spool. A file is claimed by a rename from `new/` to `cur/`, which succeeds for
//! one of them, and stays locked (`flock`) until it leaves `cur/` again. A lock dies with its process, and so
//! [`Spool::recover`] knows what a crash left behind from what another process has in hand. (Rejected: a folder per
//! process, because nobody could tell a dead one's from a slow one's.)
//!
//! **Nothing is overwritten**: all moves fail when the name is taken (`RENAME_NOREPLACE`), and then `done/` and
//! `failed/` try `x.1.json`, `x.2.json`, ….
//!
//! **Ids.** Without an id in the document, [`derived_id`] makes one of name, content and modification time. So a file
//! that was taken once must keep its name as long as it may be taken again: when it goes back to `new/` and its name
//! is taken there by now, the *newcomer*, which no one has seen yet, gets the suffix.
//!
//! **Durability.** A file moves to `done/` only after its action is committed. When that rename is lost in a crash of
//! the machine, the file is taken again, has the same derived id and is the same action: so the renames into `cur/`,
//! `done/` and back to `new/` need no `fsync`. A file in `failed/` is final, and so its `.error` is on disk (file and
//! folder) when [`Spool::fail`] returns. Folders that [`Spool::open`] makes are synced with their parent, since a
//! producer's file is only as durable as they are. Producers that want to survive a power cut sync their file before
//! they rename it.

mod files;
mod folder;
#[cfg(test)]
mod tests;

pub use folder::{Spool, Taken, TakenFile, derived_id};
