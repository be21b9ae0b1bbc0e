//! Metrics: the samples of pods under the names and labels that cAdvisor gave them, which dashboards and alerts in
//! the field are written for. What was not measured has no metric: a missing series is honest, a zero is not.
//!
//! The kubelet adds no labels and takes a metric only if its descriptor was told at the kubelet's start, with as many
//! keys as the metric has values. So both come from one `table`. CRI carries values as whole numbers: seconds
//! are whole seconds, rounded down.

mod table;

use coracle_domain::{ContainerStats, PodStats};

use crate::v1;

/// The labels of every metric; those of its own come after them.
const COMMON_LABELS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];
/// What metrics of a pod as a whole have for a container.
const WHOLE_POD: &str = "POD";

/// A metric: how it is called, what it means and where its values come from.
#[derive(Debug)]
struct Definition {
    name: &'static str,
    help: &'static str,
    kind: v1::MetricType,
    source: Source,
}

/// What a metric is counted of. Further labels come with their keys.
#[derive(Debug)]
enum Source {
    /// A container: one value.
    Container(fn(&ContainerStats) -> Option<u64>),
    /// A container: a value for each of several things.
    PartsOfContainer(&'static [&'static str], fn(&ContainerStats) -> Vec<Sample>),
    /// A pod: a value for each of several things.
    PartsOfPod(&'static [&'static str], fn(&PodStats) -> Vec<Sample>),
}

/// A value with the labels that are its own.
#[derive(Debug)]
struct Sample {
    labels: Vec<String>,
    value: u64,
    /// Nanoseconds since the epoch; zero, as CRI wants it, if it was measured for this answer.
    at: i64,
}

impl Sample {
    /// A value measured just now.
    fn live(labels: impl IntoIterator<Item = impl ToString>, value: u64) -> Self {
        Self { labels: labels.into_iter().map(|label| label.to_string()).collect(), value, at: 0 }
    }
}

/// What all metrics of one subject are labelled with.
type Labels = [String; COMMON_LABELS.len()];

/// Every metric there is, and the order of its labels.
pub(crate) fn descriptors() -> Vec<v1::MetricDescriptor> {
    table::all().map(Definition::descriptor).collect()
}

/// The metrics of a pod and its containers.
pub(crate) fn pod(stats: &PodStats) -> v1::PodSandboxMetrics {
    let labels = pod_labels(stats);
    v1::PodSandboxMetrics {
        pod_sandbox_id: stats.pod.id.to_string(),
        metrics: table::all().flat_map(|definition| definition.metrics(&labels, definition.source.of_pod(stats))).collect(),
        container_metrics: stats.containers.iter().map(|container| container_metrics(&labels, container)).collect(),
    }
}

fn container_metrics(pod: &Labels, stats: &ContainerStats) -> v1::ContainerMetrics {
    let labels = container_labels(pod, stats);
    v1::ContainerMetrics {
        container_id: stats.container.id.to_string(),
        metrics: table::all().flat_map(|definition| definition.metrics(&labels, definition.source.of_container(stats))).collect(),
    }
}

fn pod_labels(stats: &PodStats) -> Labels {
    let metadata = &stats.pod.request.metadata;
    [metadata.name.clone(), metadata.namespace.clone(), WHOLE_POD.to_owned(), stats.pod.id.to_string(), String::new()]
}

/// The image is told as the pod's author wrote it, where the caller says so: a kubelet asks for it by its id.
fn container_labels([pod, namespace, ..]: &Labels, stats: &ContainerStats) -> Labels {
    let request = &stats.container.request;
    let image = if request.image.user_specified.is_empty() { &request.image.asked } else { &request.image.user_specified };
    [pod.clone(), namespace.clone(), request.metadata.name.clone(), stats.container.id.to_string(), image.clone()]
}

impl Definition {
    const fn counter(name: &'static str, help: &'static str, source: Source) -> Self {
        Self { name, help, kind: v1::MetricType::Counter, source }
    }

    const fn gauge(name: &'static str, help: &'static str, source: Source) -> Self {
        Self { name, help, kind: v1::MetricType::Gauge, source }
    }

    fn descriptor(&self) -> v1::MetricDescriptor {
        let label_keys = COMMON_LABELS.iter().chain(self.source.own_labels()).map(|key| (*key).to_owned()).collect();
        v1::MetricDescriptor { name: self.name.to_owned(), help: self.help.to_owned(), label_keys }
    }

    fn metrics(&self, common: &Labels, samples: Vec<Sample>) -> impl Iterator<Item = v1::Metric> {
        samples.into_iter().map(|sample| v1::Metric {
            name: self.name.to_owned(),
            timestamp: sample.at,
            metric_type: self.kind.into(),
            label_values: common.iter().cloned().chain(sample.labels).collect(),
            value: Some(v1::UInt64Value { value: sample.value }),
        })
    }
}

impl Source {
    fn own_labels(&self) -> &'static [&'static str] {
        match self {
            Self::Container(_) => &[],
            Self::PartsOfContainer(labels, _) | Self::PartsOfPod(labels, _) => labels,
        }
    }

    fn of_container(&self, stats: &ContainerStats) -> Vec<Sample> {
        match self {
            Self::Container(value) => value(stats).map(|value| Sample { labels: Vec::new(), value, at: 0 }).into_iter().collect(),
            Self::PartsOfContainer(_, samples) => samples(stats),
            Self::PartsOfPod(..) => Vec::new(),
        }
    }

    fn of_pod(&self, stats: &PodStats) -> Vec<Sample> {
        match self {
            Self::PartsOfPod(_, samples) => samples(stats),
            Self::Container(_) | Self::PartsOfContainer(..) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
