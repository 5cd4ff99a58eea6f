//! The frames that wait for an agent's socket.

use crate::domain::protocol::ServerFrame;
use bytestring::ByteString;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Maximum number of frames that wait. At this number the agent isn't read.
const FRAMES: usize = 64;
/// How long the socket may accept no frame.
const STALLED: Duration = Duration::from_secs(30);

/// Frames in the order in which they are sent.
#[derive(Default)]
pub(super) struct Outbox {
    frames: VecDeque<ByteString>,
    /// Since when the socket has accepted no frame.
    stalled: Option<Instant>,
}

impl Outbox {
    pub(super) fn push(&mut self, frame: &ServerFrame, now: Instant) {
        self.stalled.get_or_insert(now);
        self.frames.push_back(frame.to_text().into());
    }

    /// The next frame. It stays until it [was sent](Self::sent): sending may be given up halfway.
    pub(super) fn next(&self) -> Option<ByteString> {
        self.frames.front().cloned()
    }

    /// The socket has taken the next frame.
    pub(super) fn sent(&mut self, now: Instant) {
        self.frames.pop_front();
        self.stalled = (!self.frames.is_empty()).then_some(now);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.frames.len() < FRAMES
    }

    /// When the agent counts as one that doesn't read, if the socket takes nothing until then.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.stalled.map(|since| since + STALLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_stays_until_it_was_sent_and_each_has_its_time() {
        let (mut outbox, begin) = (Outbox::default(), Instant::now());
        assert!(outbox.is_empty() && outbox.next().is_none() && outbox.deadline().is_none());
        for action in [1, 2] {
            outbox.push(&ServerFrame::Cancel { actions: vec![uuid::Uuid::from_u128(action)] }, begin);
        }
        let first = outbox.next();
        assert_eq!(outbox.next(), first);
        assert_eq!(outbox.deadline(), Some(begin + STALLED));
        let later = begin + STALLED / 2;
        outbox.sent(later);
        assert_ne!(outbox.next(), first);
        assert_eq!(outbox.deadline(), Some(later + STALLED));
        outbox.sent(later);
        assert!(outbox.is_empty() && outbox.deadline().is_none());
    }

    #[test]
    fn a_full_outbox_says_so() {
        let mut outbox = Outbox::default();
        for _ in 0..FRAMES {
            assert!(outbox.has_room());
            outbox.push(&ServerFrame::Cancel { actions: Vec::new() }, Instant::now());
        }
        assert!(!outbox.has_room());
    }
}
