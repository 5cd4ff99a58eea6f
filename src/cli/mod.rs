//! The command line: one file per subcommand. Results go to stdout, everything else to stderr.

#[macro_use]
mod output;

mod actions;
mod agent;
mod agents;
mod audit;
mod bench;
mod client;
mod commands;
mod config;
mod demo;
mod follow;
mod hooks;
mod limits;
mod listing;
mod logging;
mod migrate;
mod nodes;
mod outcome;
mod preview;
mod repeats;
mod run;
mod schedules;
mod scratch_store;
mod serve;
mod show;
mod table;
mod token;
mod watch;

pub use commands::main;
