//! Why a job has no result, and why it was not taken.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Why a job ended without a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause<E> {
    /// The stage's function returned an error.
    Failed(E),
    /// The stage's function panicked, with this message.
    Panicked(String),
    /// The job ran longer than its stage's timeout.
    TimedOut(Duration),
    /// The pool was cancelled while the job ran. It may have had effects.
    Cancelled,
    /// The pool was stopped or cancelled before the stage began the job.
    NotStarted,
}

/// A job that ended without a result.
pub struct StageError<Job, E> {
    /// The stage at which it ended.
    pub stage: &'static str,
    /// The job as it was submitted.
    pub item: Job,
    /// Why it ended.
    pub cause: Cause<E>,
    input: Option<Box<dyn Any + Send>>,
}

impl<Job, E> StageError<Job, E> {
    pub(super) fn new(stage: &'static str, item: Job, cause: Cause<E>) -> Self {
        Self { stage, item, cause, input: None }
    }

    pub(super) fn not_started<In: Send + 'static>(stage: &'static str, item: Job, input: In) -> Self {
        Self { stage, item, cause: Cause::NotStarted, input: Some(Box::new(input)) }
    }

    /// What the previous stage made of the job, if this stage hasn't begun it
    /// ([`Cause::NotStarted`]) and `In` is the type of the stage's input.
    pub fn input<In: 'static>(&mut self) -> Option<In> {
        match self.input.take()?.downcast() {
            Ok(input) => Some(*input),
            Err(other) => {
                self.input = Some(other);
                None
            }
        }
    }
}

/// Without the job: it may hold secrets.
impl<Job, E: fmt::Debug> fmt::Debug for StageError<Job, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StageError").field("stage", &self.stage).field("cause", &self.cause).finish_non_exhaustive()
    }
}

impl<Job, E> fmt::Display for StageError<Job, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = self.stage;
        match &self.cause {
            Cause::Failed(_) => write!(f, "stage {stage} failed"),
            Cause::Panicked(message) => write!(f, "stage {stage} panicked: {message}"),
            Cause::TimedOut(after) => write!(f, "stage {stage} took longer than {after:?}"),
            Cause::Cancelled => write!(f, "cancelled at stage {stage}"),
            Cause::NotStarted => write!(f, "stage {stage} was not started"),
        }
    }
}

impl<Job, E: Error + 'static> Error for StageError<Job, E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.cause {
            Cause::Failed(error) => Some(error),
            _ => None,
        }
    }
}

/// A job that the pool didn't take, with the job.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError<Job> {
    /// The first queue is full.
    #[error("the pool's queue is full")]
    Full(Job),
    /// The pool takes no more jobs.
    #[error("the pool is closed")]
    Closed(Job),
}

impl<Job> SubmitError<Job> {
    /// The job that was not taken.
    pub fn into_job(self) -> Job {
        match self {
            Self::Full(job) | Self::Closed(job) => job,
        }
    }
}

/// Without the job: it may hold secrets.
impl<Job> fmt::Debug for SubmitError<Job> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

/// The message of a panic.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a value that is not text".to_owned()
    }
}
