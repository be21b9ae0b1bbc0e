//! What `hack/critest` needs around the suite: its images, and a report in few words.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use coracle_e2e::registry::Client;
use coracle_e2e::suite;
use serde::Deserialize;

/// Images for critest, and a digest of its report.
#[derive(Debug, Parser)]
enum Command {
    /// Pushes the suite's images and prints the digest of the one that a spec asks for by digest
    Push {
        /// The registry's address, for instance 127.0.0.1:5000
        registry: SocketAddr,
        /// The directory with the programs that the images need beside busybox-static
        programs: PathBuf,
    },
    /// Says what passed, failed and was skipped; fails if anything failed or nothing ran
    Report {
        /// What `--ginkgo.json-report` wrote
        file: PathBuf,
    },
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    match Command::parse() {
        Command::Push { registry, programs } => {
            push(registry, &programs)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Report { file } => Ok(report(&serde_json::from_slice::<Vec<Suite>>(&std::fs::read(file)?)?)),
    }
}

fn push(registry: SocketAddr, programs: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::new(registry);
    for image in suite::images(programs) {
        let built = image.image.build();
        client.push(&image.name, image.tag, &built)?;
        if image.name == suite::PINNED {
            println!("{}", built.manifest.digest);
        }
    }
    Ok(())
}

/// ginkgo's report, as far as it is read here (`types.Report`, `types.SpecReport`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    #[serde(default)]
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

impl Spec {
    /// None for what frames the suite, unless it failed.
    fn outcome(&self) -> Option<Outcome> {
        match self.state.as_str() {
            "passed" if self.leaf_node_type != "It" => None,
            "passed" => Some(Outcome::Passed),
            "skipped" | "pending" if self.reason().is_empty() => Some(Outcome::LeftOut),
            "skipped" | "pending" => Some(Outcome::Skipped),
            _ => Some(Outcome::Failed),
        }
    }

    fn groups(&self) -> impl Iterator<Item = &str> {
        self.container_hierarchy_texts.iter().flatten().map(|text| text.trim_start_matches("[k8s.io] "))
    }

    /// The first line of what the spec said when it failed or was skipped.
    fn reason(&self) -> &str {
        let message = self.failure.as_ref().map_or("", |failure| failure.message.as_str());
        message.lines().next().unwrap_or_default()
    }

    fn line(&self) -> String {
        let name = self.groups().chain([self.leaf_node_text.as_str()]).collect::<Vec<_>>().join(" > ");
        if self.reason().is_empty() { name } else { format!("{name}: {}", self.reason()) }
    }
}

/// What became of a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Passed,
    /// Not chosen by focus and skip.
    LeftOut,
    /// Skipped by its own decision.
    Skipped,
    Failed,
}

fn report(suites: &[Suite]) -> ExitCode {
    let mut told: BTreeMap<Outcome, Vec<String>> = BTreeMap::new();
    let mut left_out: BTreeMap<&str, usize> = BTreeMap::new();
    for spec in suites.iter().filter_map(|suite| suite.spec_reports.as_ref()).flatten() {
        match spec.outcome() {
            Some(Outcome::LeftOut) => *left_out.entry(spec.groups().next().unwrap_or_default()).or_default() += 1,
            Some(outcome) => told.entry(outcome).or_default().push(spec.line()),
            None => (),
        }
    }
    for (group, number) in &left_out {
        println!("left out: {number} of {group}");
    }
    for (outcome, word) in [(Outcome::Skipped, "skipped"), (Outcome::Failed, "FAILED")] {
        told.get(&outcome).into_iter().flatten().for_each(|line| println!("{word}: {line}"));
    }
    let [passed, failed, skipped] =
        [Outcome::Passed, Outcome::Failed, Outcome::Skipped].map(|outcome| told.get(&outcome).map_or(0, Vec::len));
    println!(
        "critest: {passed} passed, {failed} failed, {skipped} skipped by their own decision, {} left out",
        left_out.values().sum::<usize>()
    );
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
