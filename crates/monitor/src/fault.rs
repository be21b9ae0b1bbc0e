//! Making [`Fault`]s: what failed, on what, with which error number.

use std::fmt::Display;
use std::io;

use rustix::io::Errno;

use crate::protocol::Fault;

/// A result that can be told to the daemon.
pub(crate) type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    /// An operation that failed with an error of the kernel's.
    pub(crate) fn new(stage: &str, subject: impl Display, error: Errno) -> Self {
        Self { stage: stage.to_owned(), subject: subject.to_string(), errno: error.raw_os_error() }
    }
}

/// Names stage and subject of an error on its way up.
pub(crate) trait OrFault<T> {
    /// Turns an error into a fault at `stage` on `subject`.
    fn or_fault(self, stage: &str, subject: impl Display) -> Result<T>;
}

impl<T> OrFault<T> for std::result::Result<T, Errno> {
    fn or_fault(self, stage: &str, subject: impl Display) -> Result<T> {
        self.map_err(|error| Fault::new(stage, subject, error))
    }
}

impl<T> OrFault<T> for io::Result<T> {
    fn or_fault(self, stage: &str, subject: impl Display) -> Result<T> {
        self.map_err(|error| Fault {
            stage: stage.to_owned(),
            subject: subject.to_string(),
            errno: error.raw_os_error().unwrap_or_default(),
        })
    }
}
