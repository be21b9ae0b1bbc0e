//! The program: `coracle serve` is the daemon, every other command a client of any CRI endpoint.
//!
//! Nothing is decided here; this file only hands the parsed command line to whoever carries it out.

#![forbid(unsafe_code)]

mod backend;
mod cli;
mod client;
mod config;
mod notify;
mod serve;
mod serving;
mod watchdog;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let Cli { options, command } = Cli::parse();
    match command {
        Command::Serve { config } => serve::run(config),
        Command::Client(command) => client::main(command, &options),
    }
}
