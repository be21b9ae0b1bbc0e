//! What goes wrong between us and a registry, before it is known for which image.

use std::fmt;

use coracle_domain::{Error, Failure, FailureKind, Refusal};

use super::config::Endpoint;

/// The classes that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The registry says it does not have it.
    Absent,
    /// The registry says that we may not.
    Denied,
    /// No connection, no answer, or an answer that says "later".
    Unavailable,
    /// It answered, but not as the protocol has it, or with the wrong content.
    Broken,
}

/// A failed exchange with an endpoint.
#[derive(Debug)]
pub(crate) struct RegistryError {
    pub(crate) cause: Cause,
    endpoint: String,
    problem: String,
}

impl RegistryError {
    pub(crate) fn new(cause: Cause, endpoint: &Endpoint, problem: impl fmt::Display) -> Self {
        Self { cause, endpoint: endpoint.to_string(), problem: problem.to_string() }
    }

    /// A request that got no answer, or whose answer broke off.
    pub(crate) fn transport(endpoint: &Endpoint, error: reqwest::Error) -> Self {
        // A URL may carry signatures and tokens: it stays out of messages.
        let error = error.without_url();
        let mut problem = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            problem = format!("{problem}: {cause}");
            source = cause.source();
        }
        Self::new(Cause::Unavailable, endpoint, problem)
    }

    /// The same with what other endpoints had answered before.
    pub(crate) fn after(mut self, earlier: &[RegistryError]) -> Self {
        for error in earlier {
            self.problem = format!("{}; before that {error}", self.problem);
        }
        self
    }

    /// For the caller: `stage` on `subject`, in a pull of `image`.
    pub(crate) fn during(self, stage: &'static str, subject: &str, image: &str) -> Error {
        let kind = match self.cause {
            Cause::Absent if stage == super::MANIFEST_STAGE => return Refusal::not_found("image", image).into(),
            Cause::Absent | Cause::Broken => FailureKind::Internal,
            Cause::Denied => FailureKind::Denied,
            Cause::Unavailable => FailureKind::RegistryUnavailable,
        };
        let subject = if subject == image { image.to_owned() } else { format!("{subject} of {image}") };
        Failure::new(stage, subject, self).kind(kind).into()
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "registry {}: {}", self.endpoint, self.problem)
    }
}

impl std::error::Error for RegistryError {}
