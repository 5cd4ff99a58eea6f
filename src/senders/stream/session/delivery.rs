//! What a session delivers: commands from the scheduler and from the backlog, as far as there is room for them.
//!
//! Large commands take room from a budget that all sessions share, one at a time, until the agent says `received`. So
//! agents that don't read take no more memory than that.

use super::super::done::Done;
use super::super::in_flight::{FREE, Offered, QUEUE};
use super::super::records::backlog;
use super::Session;
use crate::domain::protocol::{Command, MAX_FRAME, ServerFrame};
use crate::senders::due_command::{DueCommand, hold_report};
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;

/// Size in bytes at which a frame of commands is closed.
const FULL_FRAME: usize = MAX_FRAME / 2;

impl Session {
    pub(super) fn deliver(&mut self) {
        // The next commands are chosen after the socket has taken the earlier ones: priorities may
        // have changed.
        if !self.outbox.is_empty() {
            return;
        }
        // Small commands don't take the room of a large one that has arrived.
        if !std::mem::take(&mut self.room_is_new) {
            self.give_room_back();
        }
        let commands = self.in_flight.deliver(self.deps.node.store.now(), Instant::now());
        self.give_room_back();
        self.ask_for_room();
        let put_back = self.in_flight.take_put_back();
        self.record_reports(put_back.into_iter().map(|report| (None, report)).collect());
        if commands.is_empty() {
            return;
        }
        crate::fault_point!("session");
        log::trace!(agent = self.agent.no, commands = commands.len(); "delivering commands");
        let size = |command: &Command| command.operations.get().len() + command.name.len() + 256;
        let mut frame: Vec<Command> = Vec::new();
        let mut weight = 0;
        for command in commands {
            if !frame.is_empty() && weight + size(&command) > FULL_FRAME {
                self.push(&ServerFrame::Commands { commands: std::mem::take(&mut frame) });
                weight = 0;
            }
            weight += size(&command);
            frame.push(command);
        }
        self.push(&ServerFrame::Commands { commands: frame });
    }

    /// Gives back the room for what the agent has received.
    fn give_room_back(&mut self) {
        let needed = self.in_flight.in_transit().saturating_sub(FREE);
        let held = self.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if held > needed {
            self.room = self.room.take().and_then(|mut room| room.split(needed)).filter(|room| room.num_permits() > 0);
        }
        self.in_flight.set_room(needed.min(held));
    }

    /// Asks for the room that the next command needs.
    fn ask_for_room(&mut self) {
        if self.asking.is_none()
            && let Some(bytes) = self.in_flight.wants_room()
        {
            // A command may be a little larger than a frame's limit for its document.
            let bytes = u32::try_from(bytes.min(2 * MAX_FRAME)).unwrap_or(u32::MAX);
            let room = self.deps.outgoing.clone().acquire_many_owned(bytes);
            self.asking = Some(Box::pin(async move { room.await.ok() }));
        }
    }

    pub(super) fn take_room(&mut self, room: Option<OwnedSemaphorePermit>) {
        self.asking = None;
        self.room_is_new = true;
        self.in_flight.set_room(room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        self.room = room;
    }

    /// Offers commands to the agent. Those without room get an open row and are read from
    /// the store later.
    pub(super) fn offer(&mut self, deliveries: Vec<DueCommand>, from_backlog: bool) {
        let now = Instant::now();
        let mut held = Vec::new();
        for delivery in deliveries {
            // The backlog comes in order. A command from the scheduler may be less urgent than
            // those still to be read.
            let store_has_more = !from_backlog && self.connected.more.load(Ordering::Acquire);
            if let Offered::Back(back) = self.in_flight.offer(delivery, store_has_more, now) {
                self.connected.more.store(true, Ordering::Release);
                if !back.due.open {
                    held.push((None, hold_report(&back)));
                }
            }
        }
        self.record_reports(held);
    }

    pub(super) fn read_backlog(&mut self) {
        if self.reading_backlog || Instant::now() < self.backlog_after {
            return;
        }
        self.reading_backlog = true;
        self.connected.more.store(false, Ordering::Release);
        let deps = self.deps.clone();
        let agent_no = self.agent.no;
        // The page contains the commands that are here already, so the limit is raised by their
        // number.
        let limit = QUEUE + self.in_flight.queued() + self.in_flight.flying();
        self.working.push(Box::pin(async move { Done::Backlog(backlog(&deps, agent_no, limit).await) }));
    }
}
