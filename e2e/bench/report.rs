//! What was measured, as a table for people and as JSON for programs.

use serde_json::{Value, json};

use crate::endpoint::Endpoint;
use crate::machine;
use crate::series::{Series, Summary};

/// One quantity at every endpoint.
#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    /// By endpoint: samples, or why there are none.
    values: Vec<Result<Series, String>>,
}

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Report {
    endpoints: Vec<(String, String)>,
    samples: usize,
    rows: Vec<Row>,
}

impl Report {
    /// An empty report.
    pub(crate) fn new(endpoints: &[Endpoint], samples: usize) -> Self {
        let endpoints = endpoints.iter().map(|endpoint| (endpoint.name.clone(), endpoint.version.clone())).collect();
        Self { endpoints, samples, rows: Vec::new() }
    }

    /// Adds a quantity, with one series for each endpoint, in order.
    pub(crate) fn add(&mut self, name: impl Into<String>, unit: &'static str, values: Vec<Series>) {
        self.add_some(name, unit, values.into_iter().map(Ok).collect());
    }

    /// The same where an endpoint may have failed.
    pub(crate) fn add_some(&mut self, name: impl Into<String>, unit: &'static str, values: Vec<Result<Series, String>>) {
        let row = Row { name: name.into(), unit, values };
        eprintln!("{}", self.line(&row, 0));
        self.rows.push(row);
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let (kernel, processors, memory) = machine::description();
        let mut text = format!("\nLinux {kernel}, {processors} processors, {memory} GiB; up to {} samples\n", self.samples);
        for (name, version) in &self.endpoints {
            text.push_str(&format!("{name}: {version}\n"));
        }
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        text.push_str(&format!("\n{:width$}", "median (minimum, 95th percentile)"));
        for (name, _) in &self.endpoints {
            text.push_str(&format!("  {name:>30}"));
        }
        if let [(first, _), (second, _)] = &self.endpoints[..] {
            text.push_str(&format!("  {second}/{first}"));
        }
        for row in &self.rows {
            text.push('\n');
            text.push_str(&self.line(row, width));
        }
        text
    }

    fn line(&self, row: &Row, width: usize) -> String {
        let mut line = format!("{:width$}", row.name);
        for value in &row.values {
            let told = match value.as_ref().map(Series::summary) {
                Ok(Some(summary)) => cell(&summary, row.unit),
                Ok(None) => String::from("-"),
                Err(problem) => format!("fails: {}", problem.chars().take(60).collect::<String>()),
            };
            line.push_str(&format!("  {told:>30}"));
        }
        if let Some(ratio) = ratio(row) {
            line.push_str(&format!("  {ratio:.2}"));
        }
        line
    }

    /// For programs.
    pub(crate) fn json(&self) -> String {
        let (kernel, processors, memory) = machine::description();
        let endpoints: Vec<Value> = self.endpoints.iter().map(|(name, version)| json!({ "name": name, "version": version })).collect();
        let rows: Vec<Value> = self.rows.iter().map(|row| self.row_json(row)).collect();
        let document = json!({
            "machine": { "kernel": kernel, "processors": processors, "memoryGiB": memory },
            "samples": self.samples, "endpoints": endpoints, "measurements": rows,
        });
        format!("{document:#}\n")
    }

    fn row_json(&self, row: &Row) -> Value {
        let values: Vec<Value> = row
            .values
            .iter()
            .zip(&self.endpoints)
            .map(|(value, (name, _))| match value.as_ref().map(Series::summary) {
                Ok(Some(it)) => json!({ "endpoint": name, "median": it.median, "minimum": it.minimum, "p95": it.p95, "samples": it.count }),
                Ok(None) => json!({ "endpoint": name }),
                Err(problem) => json!({ "endpoint": name, "error": problem }),
            })
            .collect();
        json!({ "name": row.name, "unit": row.unit, "values": values, "ratio": ratio(row) })
    }
}

fn cell(summary: &Summary, unit: &str) -> String {
    let number = |value: f64| match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    match summary.count {
        1 => format!("{} {unit}", number(summary.median)),
        _ => format!("{} {unit} ({}, {})", number(summary.median), number(summary.minimum), number(summary.p95)),
    }
}

/// The second endpoint's median by the first one's.
fn ratio(row: &Row) -> Option<f64> {
    match &row.values[..] {
        [Ok(first), Ok(second)] => {
            let (first, second) = (first.summary()?.median, second.summary()?.median);
            (first > 0.0).then_some(second / first)
        }
        _ => None,
    }
}
