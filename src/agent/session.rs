//! One connection, from `hello` to its close: server → session → runner, and outbox → session → server.

use super::enroll::{VERSION, facts};
use super::journal::{JournalError, SharedJournal};
use super::metadata::{Frame, Reports};
use super::outbox::{Fault, Outbox, expired};
use super::runner::Input;
use super::server_clock::{Moment, ServerClock};
use super::stop_signal::told_to;
use crate::domain::protocol::{
    AgentFrame, ErrorFrame, HELLO_TIMEOUT, Hello, MAX_FRAME, PING_EVERY, Rejected, RunRef, SILENCE, ServerFrame, close,
};
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use futures_util::{SinkExt, StreamExt};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Bytes, Message};
use uuid::Uuid;

/// Maximum number of runs named in one frame: under 70 bytes each, far below the largest frame.
pub(super) const REFS_PER_FRAME: usize = 10_000;
/// Results that are looked up at once for one frame. Their length decides how many go into it.
pub(super) const RESULTS_PER_FRAME: usize = 500;
/// Maximum size of the journal's lines for one results frame. A line is a bit longer than its
/// result.
pub(super) const RESULT_BYTES: u64 = (MAX_FRAME - 1024) as u64;
/// How long to wait for the server's side of a close.
const CLOSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
/// RFC 6455: an unexpected condition keeps the endpoint from continuing.
const INTERNAL_ERROR: u16 = 1011;

/// How a session ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The agent stops.
    Stopped,
    /// The server closed it.
    Closed {
        /// The close code; 1005 if there was none.
        code: u16,
        /// The server's text.
        reason: String,
    },
    /// The network or the journal failed, or a frame is malformed.
    Broken(String),
}

/// The parts that a session works with.
#[derive(Clone)]
pub(super) struct SessionDeps {
    pub(super) capacity: u32,
    /// Tells this process from others with the same token.
    pub(super) instance: Uuid,
    pub(super) journal: SharedJournal,
    pub(super) outbox: Arc<Outbox>,
    pub(super) clock: Arc<ServerClock>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) reports: Arc<Reports>,
}

impl SessionDeps {
    /// What to say first, when it was said by this machine's clock, and by the server's.
    ///
    /// # Errors
    /// Those of the journal.
    pub(super) async fn hello(&self) -> Result<(Hello, Timestamp, Moment), JournalError> {
        {
            // Names from an earlier connection are dropped: `running` contains them, or the server
            // asks again.
            let mut pending = self.outbox.open();
            pending.received.clear();
            pending.results.clear();
            pending.expired.clear();
            pending.fault = None;
        }
        let mut running = self.journal.with(|journal| Ok(journal.unfinished())).await?;
        running.truncate(REFS_PER_FRAME);
        let (clock, moment) = (Timestamp::of_this_machine(), self.clock.moment());
        let hello = Hello {
            version: VERSION.into(),
            facts: Some(facts()),
            instance: Some(self.instance),
            capacity: self.capacity,
            running,
            clock: Some(clock),
        };
        Ok((hello, clock, moment))
    }
}

/// One connection.
pub(super) struct Session<S> {
    socket: WebSocketStream<S>,
    deps: SessionDeps,
    welcomed: bool,
    /// When `hello` was sent, by the server's clock or this machine's, as the server was told.
    greeted: Moment,
    clock: Timestamp,
    /// Runs that were answered as expired on arrival.
    expired: HashSet<RunRef>,
    heard: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    pub(super) fn new(socket: WebSocketStream<S>, deps: SessionDeps) -> Self {
        let greeted = deps.clock.moment();
        let (clock, expired, heard) = (Timestamp::of_this_machine(), HashSet::new(), Instant::now());
        Self { socket, deps, welcomed: false, greeted, clock, expired, heard }
    }

    /// Whether the server has sent `welcome`.
    pub(super) fn welcomed(&self) -> bool {
        self.welcomed
    }

    /// Runs until one side ends it. When `stop` is true, the outbox is sent before the close.
    pub(super) async fn run(&mut self, stop: &mut watch::Receiver<bool>) -> End {
        match self.talk(stop).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn talk(&mut self, stop: &mut watch::Receiver<bool>) -> Result<End, End> {
        self.hello().await?;
        let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (outbox, reports) = (self.deps.outbox.clone(), self.deps.reports.clone());
        loop {
            let silent_at = self.heard + if self.welcomed { SILENCE } else { HELLO_TIMEOUT };
            tokio::select! {
                message = self.socket.next() => {
                    self.heard = Instant::now();
                    match message {
                        Some(Ok(message)) => self.hear(message).await?,
                        Some(Err(tungstenite::Error::Capacity(error))) => {
                            return Err(self.refuse("frame_too_large", &error.to_string(), close::MALFORMED).await);
                        }
                        Some(Err(error)) => return Err(End::Broken(error.to_string())),
                        None => return Err(End::Broken("the connection ended without a close".into())),
                    }
                }
                () = outbox.news(), if self.welcomed => self.flush().await?,
                () = reports.due(), if self.welcomed => self.report().await?,
                _ = pings.tick() => self.send(Message::Ping(Bytes::new())).await?,
                () = tokio::time::sleep_until(silent_at) => {
                    return Err(self.refuse("silence", "nothing was heard for too long", close::TOO_SLOW).await);
                }
                () = told_to(stop) => {
                    if self.welcomed {
                        self.flush().await?;
                    }
                    self.close(close::DONE, "the agent stops").await;
                    return Ok(End::Stopped);
                }
            }
        }
    }

    async fn hello(&mut self) -> Result<(), End> {
        let hello;
        (hello, self.clock, self.greeted) = self.deps.hello().await.map_err(broken)?;
        self.send_frame(&AgentFrame::Hello(hello)).await
    }

    async fn hear(&mut self, message: Message) -> Result<(), End> {
        let text = match message {
            Message::Text(text) => text,
            Message::Close(frame) => {
                // Answers the close; the server then ends the connection.
                let _ = timeout(CLOSE_TIMEOUT, self.socket.close(None)).await;
                let (code, reason) =
                    frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
                return Err(End::Closed { code, reason });
            }
            // The library answers pings with the next write or read.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Ok(()),
            Message::Binary(_) => {
                return Err(self.refuse("malformed", "frames are JSON text", close::MALFORMED).await);
            }
        };
        let mut wrong_time = None;
        let input = match ServerFrame::parse(&text) {
            Err(error) => return Err(self.refuse("malformed", &error.to_string(), close::MALFORMED).await),
            Ok(None) => return Ok(()),
            Ok(Some(ServerFrame::MetadataStored(stored))) => {
                self.deps.reports.stored(&stored);
                return Ok(());
            }
            Ok(Some(ServerFrame::Welcome(welcome))) => {
                self.deps.clock.set_as_of(self.greeted, welcome.server_time);
                self.deps.reports.begin(welcome.metadata_interval);
                self.welcomed = true;
                log::info!(agent = welcome.agent.as_str(); "connected");
                let unstored = self.deps.journal.with(|journal| Ok(journal.unstored())).await.map_err(broken)?;
                self.deps.outbox.post(|pending| pending.results.extend(unstored));
                return Ok(());
            }
            Ok(Some(ServerFrame::Error(error))) => {
                log::warn!(code = error.code.as_str(), message = error.message.as_str(); "the server reports an error");
                return Ok(());
            }
            // Before the server has sent its time, expiry can't be checked.
            Ok(Some(ServerFrame::Commands { .. })) if !self.welcomed => {
                return Err(self.refuse("malformed", "commands came before welcome", close::MALFORMED).await);
            }
            Ok(Some(ServerFrame::Commands { commands })) => Input::Commands(commands),
            Ok(Some(ServerFrame::Cancel { actions })) => Input::Cancel(actions),
            Ok(Some(ServerFrame::Stored(stored))) => {
                stored.commands.iter().for_each(|run| _ = self.expired.remove(run));
                let about = |rejected: &Rejected| RunRef { action: rejected.action, run: rejected.run };
                let rejected = stored.rejected.iter().find(|rejected| self.expired.contains(&about(rejected)));
                wrong_time = rejected.map(|rejected| rejected.reason.clone());
                let mut pending = self.deps.outbox.open();
                for run in &stored.commands {
                    pending.results.remove(run);
                }
                Input::Stored(stored)
            }
        };
        // While the runner is busy nothing more is read, so the server feels backpressure.
        // If the runner is gone, the agent is stopping, and the session will be stopped too.
        let _ = self.deps.inputs.send(input).await;
        match wrong_time {
            // One of the two clocks was set since `welcome`. The next connection gets the new time.
            Some(reason) => {
                let error = format!("a command was answered as expired, and the server says: {reason}");
                Err(self.refuse("wrong_time", &error, close::DONE).await)
            }
            None => Ok(()),
        }
    }

    /// Sends everything in the outbox.
    async fn flush(&mut self) -> Result<(), End> {
        loop {
            let (received, fault) = {
                let mut pending = self.deps.outbox.open();
                (take_first(&mut pending.received, REFS_PER_FRAME), pending.fault.take())
            };
            if !received.is_empty() {
                self.send_frame(&AgentFrame::Received { commands: received }).await?;
            }
            match fault {
                Some(Fault::Journal(error)) => {
                    return Err(self.refuse("journal", &error, INTERNAL_ERROR).await);
                }
                Some(Fault::TooMany) => {
                    let error = format!("too many unfinished commands for a capacity of {}", self.deps.capacity);
                    return Err(self.refuse("too_many_commands", &error, close::DONE).await);
                }
                None => {}
            }
            self.send_results().await?;
            let pending = self.deps.outbox.open();
            let is_empty = pending.received.is_empty() && pending.results.is_empty() && pending.expired.is_empty();
            if is_empty && pending.fault.is_none() {
                return Ok(());
            }
        }
    }

    /// Sends metadata, after everything that is more important.
    async fn report(&mut self) -> Result<(), End> {
        self.flush().await?;
        // The server reads these times by the clock of the hello, wherever that one was and is by now.
        match self.deps.reports.take(self.clock, self.greeted) {
            Some(Frame { seq, items }) => self.send_frame(&AgentFrame::Metadata { seq, items }).await,
            None => Ok(()),
        }
    }

    async fn send_results(&mut self) -> Result<(), End> {
        let late = take_first(&mut self.deps.outbox.open().expired, RESULTS_PER_FRAME);
        if !late.is_empty() {
            self.expired.extend(&late);
            let results = late.into_iter().map(expired).collect();
            self.send_frame(&AgentFrame::Results { results }).await?;
        }
        let runs = take_first(&mut self.deps.outbox.open().results, RESULTS_PER_FRAME);
        if runs.is_empty() {
            return Ok(());
        }
        let read = self.deps.journal.with(move |journal| {
            let (results, done) = journal.results(&runs, RESULT_BYTES)?;
            Ok((results, runs[done..].to_vec()))
        });
        let (results, rest) = match read.await {
            Ok(read) => read,
            Err(error) => {
                let text = error.chain().to_string();
                return Err(self.refuse("journal", &text, INTERNAL_ERROR).await);
            }
        };
        self.deps.outbox.open().results.extend(rest);
        if results.is_empty() { Ok(()) } else { self.send_frame(&AgentFrame::Results { results }).await }
    }

    async fn send_frame(&mut self, frame: &AgentFrame) -> Result<(), End> {
        self.send(Message::text(frame.to_text())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        match timeout(SILENCE, self.socket.send(message)).await {
            Ok(sent) => sent.map_err(|error| End::Broken(error.to_string())),
            Err(_) => Err(End::Broken("the server does not read".into())),
        }
    }

    /// Reports an error and closes.
    async fn refuse(&mut self, code: &str, message: &str, close: u16) -> End {
        let frame = AgentFrame::Error(ErrorFrame { code: code.into(), message: message.into() });
        if timeout(CLOSE_TIMEOUT, self.socket.send(Message::text(frame.to_text()))).await.is_ok() {
            self.close(close, code).await;
        }
        End::Broken(format!("{code}: {message}"))
    }

    async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        let closing = async {
            let _ = self.socket.close(Some(frame)).await;
            while let Some(Ok(_)) = self.socket.next().await {}
        };
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }
}

fn broken(error: JournalError) -> End {
    End::Broken(error.to_string())
}

pub(super) fn take_first(runs: &mut std::collections::BTreeSet<RunRef>, count: usize) -> Vec<RunRef> {
    let taken: Vec<_> = runs.iter().take(count).copied().collect();
    for run in &taken {
        runs.remove(run);
    }
    taken
}
