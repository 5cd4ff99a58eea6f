//! How much of the fleet one statement searches.
//!
//! A target may take a microsecond or a millisecond per agent, and a fleet may have a million of them. So it is searched
//! in strides of about [`GOAL`] each: a slow target is in the way of others for no longer than that, and one for whose
//! answer nobody waits any more is given up in between.

use std::time::Duration;

/// How long a stride should take.
const GOAL: Duration = Duration::from_millis(100);
/// The fewest agents of a stride.
const MIN: usize = 250;
/// The most agents of a stride.
const MAX: usize = 50_000;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stride(usize);

impl Default for Stride {
    fn default() -> Self {
        Self(2_000)
    }
}

impl Stride {
    /// The number of agents to search next.
    pub fn agents(self) -> usize {
        self.0
    }

    /// One took this long.
    pub fn took(&mut self, time: Duration) {
        if time > GOAL {
            self.0 = (self.0 / 2).max(MIN);
        } else if time < GOAL / 4 {
            self.0 = (self.0 * 2).min(MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_become_longer_or_shorter_until_they_take_their_time() {
        let settled = |per_agent: Duration| {
            let mut stride = Stride::default();
            for _ in 0..20 {
                stride.took(per_agent * u32::try_from(stride.agents()).expect("it is small"));
            }
            stride.agents()
        };
        assert_eq!(settled(Duration::from_nanos(1)), MAX);
        assert_eq!(settled(Duration::from_secs(1)), MIN);
        for micros in [5, 20, 80, 300] {
            let took =
                Duration::from_micros(micros) * u32::try_from(settled(Duration::from_micros(micros))).expect("small");
            assert!(took > GOAL / 8 && took <= GOAL, "{micros}: {took:?}");
        }
    }
}
