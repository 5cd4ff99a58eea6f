//! When a schedule takes place, and its policies, in the words of the document.

use crate::domain::time::{Span, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What to do with a local time that a clock change skips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnGap {
    /// It takes place at the first instant after the gap.
    #[default]
    Shift,
    /// It doesn't take place.
    Skip,
}

/// Which of the two instants of a repeated local time counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnRepeat {
    /// The first one.
    #[default]
    First,
    /// The last one.
    Last,
    /// Both.
    Both,
}

/// When a schedule's occurrences are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timing {
    /// At the local times of a cron pattern.
    Cron {
        /// The pattern, as it was written.
        pattern: String,
        /// An IANA time zone.
        timezone: String,
        /// About times that a clock change skips.
        on_gap: OnGap,
        /// About times that a clock change repeats.
        on_repeat: OnRepeat,
    },
    /// Every so often, in elapsed time.
    Every {
        /// The first one.
        from: Timestamp,
        /// The time between two of them.
        every: Span,
    },
    /// Once.
    At(Timestamp),
}

/// What is made of missed occurrences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MisfirePolicy {
    /// None of them.
    Skip,
    /// The newest one.
    #[default]
    Latest,
    /// The newest `limit` ones.
    All,
}

/// What to do when the action of the previous occurrence still runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The occurrence is made all the same.
    Allow,
    /// The occurrence is dropped.
    #[default]
    Skip,
    /// The previous action is cancelled, and the occurrence is made.
    CancelPrevious,
}

/// When an occurrence is missed, and what then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misfire {
    /// What is made of missed ones.
    pub policy: MisfirePolicy,
    /// One that is not made within this time of its own is missed.
    pub grace: Span,
    /// A missed one that is older is dropped.
    pub max_age: Span,
    /// The most that [`MisfirePolicy::All`] makes.
    pub limit: usize,
}

impl Default for Misfire {
    fn default() -> Self {
        Self { policy: MisfirePolicy::Latest, grace: Span::secs(60), max_age: Span::secs(6 * 3600), limit: 100 }
    }
}
