//! Filters of the lists. All conditions must hold; an empty one holds always; ids are prefixes.

use std::collections::BTreeMap;

use coracle_domain::{ContainerPhase, ContainerView, PodPhase, PodView};

use crate::check::{self, Checked};
use crate::{container_status, pod, v1};

/// Which pods a list is about.
#[derive(Debug, Default)]
pub(crate) struct PodFilter {
    id: String,
    state: Option<v1::PodSandboxState>,
    labels: BTreeMap<String, String>,
}

/// Which containers a list is about.
#[derive(Debug, Default)]
pub(crate) struct ContainerFilter {
    id: String,
    pod: String,
    state: Option<v1::ContainerState>,
    labels: BTreeMap<String, String>,
}

impl PodFilter {
    /// The filter of a list of pods.
    pub(crate) fn parse(filter: Option<v1::PodSandboxFilter>) -> Checked<Self> {
        let v1::PodSandboxFilter { id, state, label_selector } = filter.unwrap_or_default();
        let state = state.map(|value| check::known("filter.state.state", value.state)).transpose()?;
        Ok(Self { id, state, labels: label_selector })
    }

    /// The filter of a list of pods' samples: what is not ready is not measured.
    pub(crate) fn of_stats(filter: Option<v1::PodSandboxStatsFilter>) -> Self {
        let v1::PodSandboxStatsFilter { id, label_selector } = filter.unwrap_or_default();
        Self { id, state: Some(pod::state(PodPhase::Ready)), labels: label_selector }
    }

    /// Whether this pod is meant.
    pub(crate) fn admits(&self, view: &PodView) -> bool {
        view.id.as_str().starts_with(&self.id)
            && self.state.is_none_or(|state| state == pod::state(view.phase))
            && selects(&self.labels, &view.request.labels)
    }
}

impl ContainerFilter {
    /// The filter of a list of containers.
    pub(crate) fn parse(filter: Option<v1::ContainerFilter>) -> Checked<Self> {
        let v1::ContainerFilter { id, state, pod_sandbox_id, label_selector } = filter.unwrap_or_default();
        let state = state.map(|value| check::known("filter.state.state", value.state)).transpose()?;
        Ok(Self { id, pod: pod_sandbox_id, state, labels: label_selector })
    }

    /// The filter of a list of containers' samples: what does not run is not measured.
    pub(crate) fn of_stats(filter: Option<v1::ContainerStatsFilter>) -> Self {
        let v1::ContainerStatsFilter { id, pod_sandbox_id, label_selector } = filter.unwrap_or_default();
        let running = container_status::state(&ContainerPhase::Running { pid: 0, started_at: 0 });
        Self { id, pod: pod_sandbox_id, state: Some(running), labels: label_selector }
    }

    /// Whether this container is meant.
    pub(crate) fn admits(&self, view: &ContainerView) -> bool {
        view.id.as_str().starts_with(&self.id)
            && view.pod.as_str().starts_with(&self.pod)
            && self.state.is_none_or(|state| state == container_status::state(&view.phase))
            && selects(&self.labels, &view.request.labels)
    }
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn admits(filter: v1::ContainerFilter) -> bool {
        ContainerFilter::parse(Some(filter)).unwrap().admits(&samples::container())
    }

    #[test]
    fn no_filter_admits_everything() {
        assert!(PodFilter::parse(None).unwrap().admits(&samples::pod()));
        assert!(ContainerFilter::parse(None).unwrap().admits(&samples::container()));
    }

    #[test]
    fn ids_are_prefixes() {
        let container = samples::container();
        let (id, pod) = (container.id.short().to_owned(), container.pod.short().to_owned());
        assert!(admits(v1::ContainerFilter { id: id.clone(), pod_sandbox_id: pod.clone(), ..Default::default() }));
        assert!(!admits(v1::ContainerFilter { id: format!("{id}x"), ..Default::default() }));
        assert!(!admits(v1::ContainerFilter { id: pod, ..Default::default() }));
    }

    #[test]
    fn the_zero_state_is_a_condition_when_it_is_there() {
        let created = v1::ContainerStateValue { state: v1::ContainerState::ContainerCreated.into() };
        assert!(!admits(v1::ContainerFilter { state: Some(created), ..Default::default() }));
        let exited = v1::ContainerStateValue { state: v1::ContainerState::ContainerExited.into() };
        assert!(admits(v1::ContainerFilter { state: Some(exited), ..Default::default() }));
        let unknown = v1::ContainerFilter { state: Some(v1::ContainerStateValue { state: 9 }), ..Default::default() };
        assert!(ContainerFilter::parse(Some(unknown)).is_err());
    }

    #[test]
    fn all_labels_must_match_and_all_conditions_hold() {
        let selector = |pairs: &[(&str, &str)]| v1::ContainerFilter { label_selector: labels(pairs), ..Default::default() };
        assert!(admits(selector(&[("app", "web")])));
        assert!(admits(selector(&[("app", "web"), ("tier", "front")])));
        assert!(!admits(selector(&[("app", "web"), ("tier", "back")])));
        assert!(!admits(selector(&[("absent", "")])));
        assert!(!admits(v1::ContainerFilter { pod_sandbox_id: "ff".to_owned(), ..selector(&[("app", "web")]) }));
    }

    #[test]
    fn samples_are_of_what_runs() {
        assert!(PodFilter::of_stats(None).admits(&samples::pod()));
        assert!(!ContainerFilter::of_stats(None).admits(&samples::container()));
    }
}
