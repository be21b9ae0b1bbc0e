//! The terminal that a person sits at: its size, and the mode in which every key goes to the other side as it is.

use std::fmt;
use std::io::{self, IsTerminal};

use coracle_domain::During;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::error::Result;

/// Our terminal in raw mode, for as long as this lives.
pub(crate) struct Raw {
    before: Option<Termios>,
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw").field("terminal", &self.before.is_some()).finish()
    }
}

impl Raw {
    /// Makes our terminal raw; where our input is none, nothing happens.
    pub(crate) fn begin() -> Result<Self> {
        const STAGE: &str = "preparing";
        let input = io::stdin();
        if !input.is_terminal() {
            return Ok(Self { before: None });
        }
        let before = tcgetattr(&input).during(STAGE, "the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&input, OptionalActions::Now, &raw).during(STAGE, "the terminal")?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
    }
}

/// The terminal's size as the protocol has it; none if our output is no terminal.
pub(crate) fn size() -> Option<String> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some(format!(r#"{{"Width":{},"Height":{}}}"#, size.ws_col, size.ws_row))
}
