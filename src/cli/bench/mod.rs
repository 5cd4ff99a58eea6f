//! `odoshi bench`: measures this machine, with a bare baseline in the same run.
//!
//! Only the ratio is meaningful: machines differ, and their speed varies over the day. Each figure
//! is the median of the rounds.

mod command;
mod connect;
mod delay;
mod fleet;
mod idle;
mod latency;
mod metadata;
mod pool;
mod raw;
mod throughput;
mod webhook;

pub(super) use command::{Command, run};
