//! The delay queue: entries in order of (due time, priority, arrival), at most one for a key.
//!
//! The queue has no clock, no runtime and no store: its owner passes the time and takes the due
//! entries. `T` is any kind of time; `examples/delay_queue.rs` uses the queue alone.
//!
//! Guarantees for every sequence of calls (a property test compares the queue with a plain list):
//! - **Order.** Entries leave by due time; at equal times by priority, the highest first; then in
//!   order of arrival.
//!   [`pop_due`](DelayQueue::pop_due) never returns an entry before its time.
//! - **Once.** An entry leaves exactly once: popped, cancelled, displaced, or returned at the end. A pause holds all
//!   entries back and changes nothing else.
//! - **Bounds.** The queue never holds more than its capacity. An entry that does not fit is
//!   returned at once: the new one or, with [`WhenFull::Displace`], the one that is due last. So
//!   urgent entries are never refused in favor of others.
//! - **Nothing is lost at the end.** After [`stop`](DelayQueue::stop) the queue accepts no entries.
//!   Entries that are due before the deadline still leave; [`into_rest`](DelayQueue::into_rest)
//!   returns all others, in order.
//!
//! An insert searches among runs (see `order`). A cancel or reschedule is one look-up in a hash
//! table, whatever the length of the queue. The item that it leaves behind in the order is skipped
//! at its turn, or swept out if there are too many. An entry takes about 70 bytes beyond its key
//! and value.

mod near;
mod order;
mod queue;
#[cfg(test)]
mod tests;

pub use queue::{DelayQueue, Entry, InsertError, WhenFull};
