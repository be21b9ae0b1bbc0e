//! The two gRPC services. Each call is parsed, done by the engine, and answered; nothing is decided here.

mod call;
mod containers;
mod images;
mod node;
mod pods;
mod runtime;
mod sessions;
mod stream;

pub(crate) use images::Images;
pub(crate) use runtime::Runtime;

use coracle_domain::Refusal;

use crate::check;

/// An id that a call is about. An empty one would be a prefix of every other.
fn id<'a>(field: &str, id: &'a str) -> Result<&'a str, Refusal> {
    check::required(field, id)?;
    Ok(id)
}
