//! What a server was doing when it was killed, read from its log: brackets that were opened and not closed.

use std::collections::HashMap;
use std::fmt;

/// The phases of a command's way through the server.
pub const PHASES: [&str; 4] = ["resolving", "storing", "delivering", "recording"];

/// How much of each phase was under way.
#[derive(Debug, Default)]
pub struct Phases([usize; PHASES.len()]);

impl Phases {
    /// Reads the log of one start, from its first line to the kill.
    pub fn of(log: &str) -> Self {
        let (mut reading, mut storing, mut recording) = (0_usize, 0_usize, 0_usize);
        // Commands handed to an agent since the last time that results of it were recorded.
        let mut with_agent: HashMap<&str, usize> = HashMap::new();
        for line in log.lines() {
            let value = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap_or_default();
            let batch = match value("actor=") {
                "command_store" => &mut storing,
                _ => &mut recording,
            };
            if line.contains("reading a page of agents") {
                reading += 1;
            } else if line.contains("page of agents read") {
                reading = reading.saturating_sub(1);
            } else if line.contains("writing a batch") && value("actor=") != "sessions" {
                *batch += 1;
            } else if line.contains("batch written") && value("actor=") != "sessions" {
                *batch = batch.saturating_sub(1);
            } else if line.contains("delivering commands") {
                *with_agent.entry(value("agent=")).or_default() += value("commands=").parse::<usize>().unwrap_or(0);
            } else if line.contains("recording results") {
                with_agent.remove(value("agent="));
            }
        }
        Self([reading, storing, with_agent.values().sum(), recording])
    }

    /// The names of those phases that were.
    pub fn under_way(&self) -> impl Iterator<Item = &'static str> {
        PHASES.into_iter().zip(self.0).filter(|(_, n)| *n > 0).map(|(phase, _)| phase)
    }

    /// The names of the columns.
    pub fn header() -> String {
        PHASES.map(|phase| format!("{phase:>11}")).concat()
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|n| write!(f, "{n:>11}"))
    }
}
