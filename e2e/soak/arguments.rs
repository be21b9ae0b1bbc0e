//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::weather::Kind;

/// Pods come and go for a while in bad weather; at the end, what is and what must be are compared.
#[derive(Debug, Clone, Parser)]
#[command(name = "soak")]
pub(crate) struct Arguments {
    /// How long pods come and go; after that, fair weather until all have ended
    #[arg(long, default_value_t = 30.0)]
    pub(crate) minutes: f64,
    /// Decides all pods and all weather
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How many pods there are at a time
    #[arg(long, default_value_t = 24)]
    pub(crate) pods: u64,
    /// Weather that is left out
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) without: Vec<Kind>,
    /// Where the daemon's log is put if something was found
    #[arg(long, default_value = "/tmp")]
    pub(crate) keep: PathBuf,
}

impl Arguments {
    /// How long pods come and go.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0)
    }
}
