//! Messages of commands that are not passed to the runner yet: it is busy.

use crate::domain::protocol::Command;
use std::collections::HashSet;
use uuid::Uuid;

/// Messages that may be held, those at the runner included.
pub(super) const MESSAGES: usize = 64;
/// Maximum size in bytes of the messages held. Beyond it none is read, except when none is held.
const BYTES: usize = 8 * 1024 * 1024;

struct Message<A> {
    commands: Vec<Command>,
    ack: A,
    size: usize,
}

/// See the module.
pub(super) struct Held<A> {
    messages: Vec<Message<A>>,
    size: usize,
}

impl<A> Held<A> {
    pub(super) fn new() -> Self {
        Self { messages: Vec::new(), size: 0 }
    }

    /// How many more may be held.
    pub(super) fn room(&self) -> usize {
        if self.size >= BYTES { 0 } else { MESSAGES.saturating_sub(self.messages.len()) }
    }

    pub(super) fn put(&mut self, commands: Vec<Command>, ack: A, size: usize) {
        self.size += size;
        self.messages.push(Message { commands, ack, size });
    }

    /// Takes the most urgent message; of equals, the one that came first.
    pub(super) fn take(&mut self) -> Option<(Vec<Command>, A)> {
        let urgency = |message: &Message<A>| message.commands.iter().map(|command| command.priority).max();
        let (mut place, mut highest) = (0, urgency(self.messages.first()?));
        for (at, message) in self.messages.iter().enumerate().skip(1) {
            if urgency(message) > highest {
                (place, highest) = (at, urgency(message));
            }
        }
        let Message { commands, ack, size } = self.messages.remove(place);
        self.size -= size;
        Some((commands, ack))
    }

    /// Drops the commands of these actions. Returns the messages of which nothing is left.
    pub(super) fn cancel(&mut self, actions: &[Uuid]) -> Vec<A> {
        let actions: HashSet<&Uuid> = actions.iter().collect();
        let (mut kept, mut empty) = (Vec::new(), Vec::new());
        for mut message in self.messages.drain(..) {
            message.commands.retain(|command| !actions.contains(&command.action));
            if message.commands.is_empty() {
                self.size -= message.size;
                empty.push(message.ack);
            } else {
                kept.push(message);
            }
        }
        self.messages = kept;
        empty
    }

    pub(super) fn acks(&self) -> impl Iterator<Item = &A> {
        self.messages.iter().map(|message| &message.ack)
    }
}
