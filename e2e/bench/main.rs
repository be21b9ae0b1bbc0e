//! A benchmark of any CRI endpoint, or of two side by side.
//!
//! It asks what a kubelet asks, over the socket a kubelet would use, and measures on the caller's side. With two
//! endpoints every sample of one is followed by one of the other (A B A B), so that whatever else the machine
//! does weighs on both alike; then ratios mean something. Medians are what to compare; the minimum and the 95th
//! percentile tell how much to believe them.

#![forbid(unsafe_code)]

mod cycle;
mod endpoint;
mod exec;
mod machine;
mod many;
mod pull;
mod report;
mod restart;
mod series;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::endpoint::{Endpoint, EndpointSpec};
use crate::report::Report;

/// Measures CRI endpoints.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// `unix:///PATH` with, after commas, `name=NAME`, `handler=HANDLER`, `process=PROGRAM[+PROGRAM]` (what counts as
    /// the runtime's; default: the program that serves the socket and those beside it whose names begin with its name) and
    /// `data=DIRECTORY` (for the disk growth of a pull); once or twice
    #[arg(long = "endpoint", required = true, value_name = "ENDPOINT")]
    endpoints: Vec<EndpointSpec>,
    /// The image of the containers; it must have /bin/sleep and /bin/true. Pulled if it is not there
    #[arg(long)]
    image: String,
    /// An image to measure pulls with; removed before each
    #[arg(long)]
    pull_image: Option<String>,
    /// Samples of each quick operation; slower ones are taken less often
    #[arg(long, default_value_t = 50)]
    samples: usize,
    /// How many pods there are when lists, statistics and memory are measured, in rising order
    #[arg(long, value_delimiter = ',', default_value = "50,100")]
    pods: Vec<usize>,
    /// How many exec probes come in a second, to 20 pods
    #[arg(long, default_value_t = 1000)]
    probe_rate: u32,
    /// For how many seconds they come
    #[arg(long, default_value_t = 10)]
    probe_seconds: u64,
    /// Only these
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
    /// The result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Start and whole cycle of a pod, and processor time
    Cycle,
    /// ExecSync, and its processor time
    Exec,
    /// Exec probes at a steady rate, and the cores they use
    Probes,
    /// 20 pods, 8 at a time
    Burst,
    /// Lists, statuses and statistics with many pods, and memory per pod
    Many,
    /// Pull
    Pull,
    /// Restarts of the daemon with many pods; only if asked for by name, since it kills the process that serves
    Restart,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut endpoints = match connect(&arguments).await {
        Ok(endpoints) => endpoints,
        Err(problem) => {
            eprintln!("bench: {problem}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::new(&endpoints, arguments.samples);
    let outcome = run(&arguments, &mut endpoints, &mut report).await;
    for endpoint in &endpoints {
        endpoint.clean().await;
    }
    println!("{}", report.table());
    if let Some(file) = &arguments.json
        && let Err(error) = std::fs::write(file, report.json())
    {
        eprintln!("bench: {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("bench: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn connect(arguments: &Arguments) -> Result<Vec<Endpoint>, String> {
    if arguments.endpoints.len() > 2 {
        return Err("at most two endpoints can be compared".into());
    }
    let mut endpoints = Vec::new();
    for (number, spec) in arguments.endpoints.iter().enumerate() {
        endpoints.push(Endpoint::connect(spec, number, &arguments.image).await?);
    }
    Ok(endpoints)
}

/// A part that fails for one endpoint is reported as that and the rest goes on; only what spoils the rest ends it.
async fn run(arguments: &Arguments, endpoints: &mut [Endpoint], report: &mut Report) -> Result<(), String> {
    let wanted = |part: Part| arguments.only.is_empty() || arguments.only.contains(&part);
    if wanted(Part::Cycle) {
        cycle::measure(endpoints, arguments.samples, report).await?;
    }
    if wanted(Part::Exec) {
        exec::measure(endpoints, arguments.samples, report).await?;
    }
    if wanted(Part::Probes) {
        let time = Duration::from_secs(arguments.probe_seconds);
        exec::probes(endpoints, arguments.probe_rate, time, report).await?;
    }
    if wanted(Part::Burst) {
        many::burst(endpoints, arguments.samples, report).await?;
    }
    if wanted(Part::Many) {
        many::measure(endpoints, &arguments.pods, arguments.samples, report).await?;
    }
    if let Some(image) = arguments.pull_image.as_ref().filter(|_| wanted(Part::Pull)) {
        pull::measure(endpoints, image, arguments.samples, report).await?;
    }
    if arguments.only.contains(&Part::Restart) {
        restart::measure(endpoints, &arguments.pods, arguments.samples, report).await?;
    }
    Ok(())
}
