//! Schedules: when a recurring action takes place, and what is done about occurrences that were missed.
//!
//! Everything here is pure. A [`Calendar`] has a schedule's times, and a [`plan`] says what of a
//! schedule is to be made now, what was missed, and when it is due next.

mod calendar;
mod document;
mod pattern;
mod plan;
#[cfg(test)]
mod tests;
mod timing;
mod zones;

pub use calendar::{Calendar, Note, Upcoming};
pub(crate) use document::Document;
pub use document::{MAX_DOCUMENT, Schedule};
pub use plan::{Dropped, MOST_IN_TIME, Plan, Reason, plan};
pub use timing::{Misfire, MisfirePolicy, OnGap, OnRepeat, Overlap, Timing};
pub use zones::{ZoneInfo, Zones};
