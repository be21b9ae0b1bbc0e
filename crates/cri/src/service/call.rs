//! One call: its answer, and the one line that the log keeps of it.
//!
//! Errors are logged here and nowhere below. A refusal is the caller's business and stays at debug; a
//! failure is told to the operator; a change that was made is told with its subject and duration.

use std::fmt::Display;
use std::time::Instant;

use coracle_domain::{Error, FailureKind, Result};
use tonic::{Response, Status};

use crate::status::status;

/// What a call answers.
pub(super) type Answer<T> = std::result::Result<Response<T>, Status>;

/// A call under way.
#[derive(Debug)]
pub(super) struct Call {
    rpc: &'static str,
    subject: String,
    since: Instant,
}

impl Call {
    /// A call of `rpc` about `subject`: an id or a name.
    pub(super) fn of(rpc: &'static str, subject: impl Display) -> Self {
        Self { rpc, subject: subject.to_string(), since: Instant::now() }
    }

    /// Answers a call that changed nothing.
    pub(super) fn read<T>(self, result: Result<T>) -> Answer<T> {
        result.map(Response::new).map_err(|error| self.refused(&error))
    }

    /// Answers a call that changed something.
    pub(super) fn changed<T>(self, result: Result<T>) -> Answer<T> {
        if result.is_ok() {
            tracing::info!(rpc = self.rpc, subject = self.subject, elapsed_ms = self.elapsed_ms(), "done");
        }
        self.read(result)
    }

    /// Answers a call that made something, which from now on has the id that is in the result.
    pub(super) fn made<I: Display, T>(self, result: Result<I>, response: impl FnOnce(String) -> T) -> Answer<T> {
        let result = result.map(|id| id.to_string());
        if let Ok(id) = &result {
            tracing::info!(rpc = self.rpc, subject = self.subject, id, elapsed_ms = self.elapsed_ms(), "done");
        }
        self.read(result.map(response))
    }

    /// Milliseconds since the call came in.
    fn elapsed_ms(&self) -> f64 {
        self.since.elapsed().as_secs_f64() * 1e3
    }

    fn refused(&self, error: &Error) -> Status {
        let (rpc, subject, elapsed_ms) = (self.rpc, &self.subject, self.elapsed_ms());
        match error {
            Error::Refused(refusal) => tracing::debug!(rpc, subject, elapsed_ms, %refusal, "refused"),
            Error::Failed(failure) if failure.kind == FailureKind::Internal => {
                tracing::error!(rpc, subject, elapsed_ms, error = %failure, "failed");
            }
            Error::Failed(failure) => tracing::warn!(rpc, subject, elapsed_ms, error = %failure, "failed"),
        }
        status(error)
    }
}

/// The answer to a call that is not built yet.
pub(super) fn unbuilt<T>(rpc: &'static str) -> std::result::Result<T, Status> {
    tracing::debug!(rpc, "not implemented");
    Err(Status::unimplemented(format!("{rpc} is not implemented by this version of coracle")))
}
