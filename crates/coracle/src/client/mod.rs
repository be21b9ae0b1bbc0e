//! The client: every command but `serve`, in plain CRI, so that it works with any runtime's endpoint.
//!
//! It decides nothing a runtime would decide. Each command is one function of the connection and its arguments.

mod connect;
mod containers;
mod error;
mod forward;
mod images;
mod info;
mod inspect;
mod log_directory;
mod log_file;
mod logs;
mod pods;
mod progress;
mod remote;
mod render;
mod resolve;
mod run;
mod run_config;
mod session;
mod stats;
mod terminal;
mod time;
pub(crate) mod values;

use std::io::{self, Write};
use std::process::ExitCode;

use coracle_domain::During;

use self::connect::Client;
use self::error::{Error, Result};
use self::render::json::{self, Answer};
use crate::cli::{ClientCommand, Options, Output};

/// Carries out a command; the exit status is its outcome.
pub(crate) fn main(command: ClientCommand, options: &Options) -> ExitCode {
    match block_on(command, options) {
        Ok(code) => code,
        Err(error) => {
            error.report();
            error.status().into()
        }
    }
}

fn block_on(command: ClientCommand, options: &Options) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().during("starting", "the client's runtime")?;
    let outcome = runtime.block_on(dispatch(command, options));
    // Nobody waits for input that nobody wants any more.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(command: ClientCommand, options: &Options) -> Result<ExitCode> {
    if matches!(command, ClientCommand::Version) {
        info::print_own_version(options.output)?;
    }
    let client = Client::connect(&options.endpoint).await?;
    let output = options.output;
    match command {
        ClientCommand::Exec(args) => return remote::exec(&client, &args).await,
        ClientCommand::Attach(args) => return remote::attach(&client, &args).await,
        ClientCommand::PortForward(args) => forward::forward(&client, &args).await,
        ClientCommand::Run(args) => return run::run(&client, &args, output).await,
        ClientCommand::Pull(args) => images::pull(&client, &args, output).await,
        ClientCommand::Images => images::list(&client, output).await,
        ClientCommand::Rmi { images } => images::remove(&client, &images, output).await,
        ClientCommand::Pods => pods::list(&client, output).await,
        ClientCommand::Ps { all } => containers::list(&client, all, output).await,
        ClientCommand::Logs(args) => logs::logs(&client, &args).await,
        ClientCommand::Stats { subjects } => stats::stats(&client, &subjects, output).await,
        ClientCommand::Inspect { subject } => inspect::inspect(&client, &subject).await,
        ClientCommand::Stop(args) => pods::stop_all(&client, &args, output).await,
        ClientCommand::Rm(args) => pods::remove_all(&client, &args, output).await,
        ClientCommand::Info => info::info(&client, output).await,
        ClientCommand::Version => info::version(&client, output).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Prints an answer as JSON.
fn print_json<A: Answer>(answer: &A) -> Result<()> {
    json::write(&mut io::stdout().lock(), &json::value(answer)?)
}

/// Prints one line.
fn print_line(line: &str) -> Result<()> {
    Ok(writeln!(io::stdout().lock(), "{line}")?)
}

/// Goes on after failures, reporting each where it happens, and fails at the end if there was any.
#[derive(Debug)]
struct Tally {
    output: Output,
    done: Vec<String>,
    failed: bool,
}

impl Tally {
    fn new(output: Output) -> Self {
        Self { output, done: Vec::new(), failed: false }
    }

    /// Notes, and prints for people, the name of what succeeded, or why it did not.
    fn note(&mut self, name: &str, result: Result<()>) {
        let shown = result.and_then(|()| if self.output == Output::Table { print_line(name) } else { Ok(()) });
        match shown {
            Ok(()) => self.done.push(name.into()),
            Err(error) => {
                error.report();
                self.failed = true;
            }
        }
    }

    /// Prints, for programs, the names of what succeeded.
    fn outcome(self) -> Result<()> {
        if self.output == Output::Json {
            json::write(&mut io::stdout().lock(), &self.done.into())?;
        }
        if self.failed { Err(Error::Reported) } else { Ok(()) }
    }
}
