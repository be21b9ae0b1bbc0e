//! Failures within failures, and failures that several callers get.

use std::fmt;
use std::sync::Arc;

use coracle_domain::{Error, Failure, FailureKind, Result};

/// Whether it would have gone well with more room.
pub(crate) fn is_for_want_of_room(error: &Error) -> bool {
    matches!(error, Error::Failed(failure) if failure.kind == FailureKind::Exhausted)
}

/// Does the work for every item, whatever fails, and answers with the first failure.
pub(crate) fn for_all<T>(items: impl IntoIterator<Item = T>, work: impl FnMut(T) -> Result<()>) -> Result<()> {
    items.into_iter().map(work).fold(Ok(()), Result::and)
}

/// Puts a failure into the frame of a larger one.
pub(crate) fn wrap(stage: &'static str, subject: String, error: Error) -> Error {
    let kind = match &error {
        Error::Failed(failure) => failure.kind,
        Error::Refused(_) => FailureKind::Internal,
    };
    // Its advice, if any, is part of its text.
    Failure { kind, stage: stage.into(), subject, source: Box::new(error), hint: None }.into()
}

/// One failure for several callers.
pub(crate) fn share(error: Arc<Error>) -> Error {
    match &*error {
        Error::Refused(refusal) => refusal.clone().into(),
        Error::Failed(failure) => {
            let source = Box::new(Cause(Arc::clone(&error)));
            Failure { kind: failure.kind, stage: failure.stage.clone(), subject: failure.subject.clone(), source, hint: failure.hint }
                .into()
        }
    }
}

/// The source of a shared failure, in words.
#[derive(Debug)]
struct Cause(Arc<Error>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Error::Failed(failure) => failure.source.fmt(f),
            Error::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            Error::Failed(failure) => failure.source.source(),
            Error::Refused(_) => None,
        }
    }
}
