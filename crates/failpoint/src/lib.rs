//! Fail points: places right after an effect (a file renamed, a link made, a process cloned), at which a test has the
//! daemon killed, to see that the next one clears up or goes on.
//!
//! The table of all points is here, one line each; the program calls [`reach`] beside the effects. Without the feature
//! `armed` that is an empty function, so programs for use hold nothing of this. It decides nothing, returns nothing and
//! changes nothing: whoever calls it goes on as if it were not there, or is dead.
//!
//! With the feature, and with [`VARIABLE`] set to a directory of the test's, that directory is the line between the two:
//!
//! ```text
//! visits    a line for each visit of any process, the point's name (made by the test, appended to here)
//! order     "<point> <number>": at that visit of that point it happens (made and removed by the test)
//! halted    gets a line when it happens in a monitor, which then stands still until `order` is removed
//! ```
//!
//! What happens in the daemon is SIGKILL to itself. A monitor, or a process that it is setting up, stands still instead,
//! so that the test can kill whom it likes while the effect is fresh.

#![forbid(unsafe_code)]

#[cfg(feature = "armed")]
mod armed;
mod point;

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

pub use point::{Point, Side};

/// The environment variable that names the test's directory.
pub const VARIABLE: &str = "CORACLE_FAIL_POINTS";

/// Says that the effect beside which `point` stands has just happened.
#[inline]
pub fn reach(point: Point) {
    #[cfg(feature = "armed")]
    armed::reach(point);
    #[cfg(not(feature = "armed"))]
    let _ = point;
}

/// What a process that parts with all its descriptors must keep, to go on reaching points.
#[inline]
pub fn descriptor() -> Option<BorrowedFd<'static>> {
    #[cfg(feature = "armed")]
    return armed::descriptor();
    #[cfg(not(feature = "armed"))]
    None
}

/// What a monitor must have in its environment, to reach points as well.
#[inline]
pub fn environment() -> Option<(&'static OsStr, &'static OsStr)> {
    #[cfg(feature = "armed")]
    return armed::environment();
    #[cfg(not(feature = "armed"))]
    None
}
