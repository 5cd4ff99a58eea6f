//! The queue of what is due, as a library: no server, no store, no runtime.
//!
//! `cargo run --example delay_queue`
#![allow(clippy::print_stdout, reason = "it shows what happens")]

use odoshi::domain::delay::{DelayQueue, InsertError, WhenFull};
use std::time::{Duration, Instant};

fn main() {
    // Reminders by name, at most three of them; times are seconds from now.
    let begun = Instant::now();
    let now = || begun.elapsed().as_secs_f64();
    let mut queue: DelayQueue<&str, String, u64> = DelayQueue::new(3, WhenFull::Displace);
    let add = |queue: &mut DelayQueue<&'static str, String, u64>, name, due, priority, text: &str| match queue.insert(
        name,
        due,
        priority,
        text.to_owned(),
    ) {
        Ok(None) => println!("{name}: due at {due} s"),
        Ok(Some(back)) => println!("{name}: due at {due} s; {} comes back, it has time until {} s", back.key, back.due),
        Err(InsertError::Full(_)) => println!("{name}: no room, and all others are nearer"),
        Err(InsertError::Known(_)) => println!("{name} is there already"),
        Err(InsertError::Stopped(_)) => println!("{name}: nothing is taken in any more"),
    };
    add(&mut queue, "holiday", 1_000_000, 0, "pack");
    add(&mut queue, "tea", 2, 0, "take the bag out");
    add(&mut queue, "call", 1, 0, "call back");
    add(&mut queue, "fire", 1, 9, "run");
    add(&mut queue, "pension", 9_000_000, 0, "retire");
    queue.reschedule(&"call", 2);

    // Of equal times the highest priority goes first, then what came first. Between them the owner sleeps.
    while let Some(due) = queue.next_due() {
        std::thread::park_timeout(Duration::from_secs_f64((due as f64 - now()).max(0.0)));
        for entry in queue.pop_due(now() as u64, 10) {
            println!("{:.2} s: {}: {}", now(), entry.key, entry.value);
        }
    }
    add(&mut queue, "later", 60, 0, "write a letter");
    queue.stop(now() as u64);
    for entry in queue.into_rest() {
        println!("not done: {} ({} s)", entry.key, entry.due);
    }
}
