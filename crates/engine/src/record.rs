//! What is written down of a pod: one file on tmpfs, which changes places with its spare at every change.
//!
//! The record is what a restarted daemon believes; what its monitor and the kernel say comes on top. It is
//! a versioned enum, so that a later release reads what an earlier one wrote.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_domain::{
    ContainerId, ContainerPhase, ContainerRequest, ContainerView, During, ImageId, LostOutput, PodId, PodPhase, PodRequest, PodResources,
    Resources, Result,
};
use coracle_files::Reserve;
use coracle_network::{Lease, PortRequest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes by which a record may grow before the pod is gone, beside what its containers' ends take: it must be possible
/// to write those down on a full file system.
const GROWTH: usize = 512;
/// Bytes that the end of a container takes.
const END: usize = 512;

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
enum Versioned<T> {
    V1(T),
}

/// A pod as its owner knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) id: PodId,
    pub(crate) request: Arc<PodRequest>,
    pub(crate) phase: PodPhase,
    pub(crate) created_at: i64,
    /// Its address, from the moment it is taken until its network is gone.
    pub(crate) lease: Option<Lease>,
    /// Its monitor, from the moment it is there; on file only once the pod is ready.
    pub(crate) monitor: Option<MonitorIdentity>,
    pub(crate) containers: Vec<ContainerRecord>,
    /// What the kubelet told after it had resized the pod. The request stays as it was: a retry is told by it.
    #[serde(default)]
    pub(crate) resized: Option<PodResources>,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MonitorIdentity {
    pub(crate) pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks after boot.
    pub(crate) started: u64,
}

/// A container as its pod's owner knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: ContainerId,
    pub(crate) request: Arc<ContainerRequest>,
    pub(crate) image: ImageId,
    /// The images among its mounts, in their order.
    #[serde(default)]
    pub(crate) volume_images: Vec<ImageId>,
    pub(crate) phase: ContainerPhase,
    pub(crate) created_at: i64,
    pub(crate) resources: Resources,
    pub(crate) user: (u32, u32, Vec<u32>),
    pub(crate) stop_signal: i32,
    pub(crate) log_path: Option<PathBuf>,
    /// What is missing in the log, as last told.
    #[serde(default)]
    pub(crate) lost_output: LostOutput,
}

impl PodRecord {
    /// Replaces the record at `path` after something has come about. It finds room on a full file system too.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        self.write(path, Reserve::Welcome)
    }

    /// Replaces the record at `path` before something new is made, and keeps the room that later changes will take.
    pub(crate) fn save_and_reserve(&self, path: &Path) -> Result<()> {
        self.write(path, Reserve::Required)
    }

    fn write(&self, path: &Path, reserve: Reserve) -> Result<()> {
        let growth = GROWTH + END * self.containers.len();
        let written = serde_json::to_vec(&Versioned::V1(self))
            .map_err(std::io::Error::from)
            .and_then(|text| coracle_files::replace_in_turn(path, &text, growth, reserve));
        written.during("writing the pod's record", path.display())
    }

    /// Reads the record at `path`.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let Versioned::V1(record) = read(path).during("reading the pod's record", path.display())?;
        Ok(record)
    }

    /// The host ports that it asks for, at its address.
    pub(crate) fn port_request(&self, lease: &Lease) -> PortRequest<'_> {
        PortRequest { pod: &self.id, metadata: &self.request.metadata, address: lease.address, ports: &self.request.ports }
    }

    /// What the pod as a whole may use, as last told.
    pub(crate) fn resources(&self) -> PodResources {
        let asked = PodResources { resources: self.request.resources.clone(), overhead: self.request.overhead.clone() };
        self.resized.clone().unwrap_or(asked)
    }

    /// Notes what the kubelet told after a resize; what it did not mention stays.
    pub(crate) fn resize(&mut self, change: PodResources) {
        let before = self.resources();
        let resources = change.resources.or(before.resources);
        self.resized = Some(PodResources { resources, overhead: change.overhead.or(before.overhead) });
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Option<&ContainerRecord> {
        self.containers.iter().find(|container| &container.id == id)
    }

    pub(crate) fn container_mut(&mut self, id: &ContainerId) -> Option<&mut ContainerRecord> {
        self.containers.iter_mut().find(|container| &container.id == id)
    }
}

impl ContainerRecord {
    pub(crate) fn view(&self, pod: &PodId) -> ContainerView {
        ContainerView {
            id: self.id.clone(),
            pod: pod.clone(),
            request: Arc::clone(&self.request),
            image: self.image.clone(),
            volume_images: self.volume_images.clone(),
            phase: self.phase.clone(),
            created_at: self.created_at,
            resources: self.resources.clone(),
            user: self.user.clone(),
            log_path: self.log_path.clone(),
            lost_output: self.lost_output,
            stop_signal: self.stop_signal,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, ContainerPhase::Running { .. })
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, ContainerPhase::Exited { .. })
    }
}

/// The record in `json`, as of any version.
#[cfg(fuzzing)]
pub(crate) fn parse(json: &[u8]) -> serde_json::Result<PodRecord> {
    serde_json::from_slice(json).map(|Versioned::V1(record)| record)
}

/// What [`PodRecord::save`] writes.
#[cfg(fuzzing)]
pub(crate) fn text_of(record: &PodRecord) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Versioned::V1(record))
}

/// Writes `value` as JSON beside `path` and renames it there. Readers see the old or the new file, whole.
pub(crate) fn replace(path: &Path, value: &impl Serialize) -> std::io::Result<()> {
    coracle_files::replace(path, &serde_json::to_vec(value)?)
}

/// Reads a JSON file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> std::io::Result<T> {
    Ok(serde_json::from_slice(&coracle_files::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing;

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        let record = testing::record(7);
        record.save(&path).unwrap();
        let read = PodRecord::load(&path).unwrap();
        assert_eq!((read.id, read.request, read.phase), (record.id.clone(), record.request.clone(), record.phase));
    }

    #[test]
    fn a_resize_changes_what_it_mentions_and_not_the_request() {
        let mut record = testing::record(7);
        let limited = |bytes| Some(Resources { memory_limit: Some(bytes), ..Resources::default() });
        let request = record.request.clone();
        record.resize(PodResources { resources: limited(1), overhead: limited(2) });
        record.resize(PodResources { resources: limited(3), overhead: None });
        assert_eq!(record.resources(), PodResources { resources: limited(3), overhead: limited(2) });
        assert_eq!(record.request, request, "a retry of the create must still be known as one");
    }

    #[test]
    fn a_record_of_before_resizes_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        let mut earlier = serde_json::to_value(Versioned::V1(testing::record(7))).unwrap();
        earlier.pointer_mut("/V1").and_then(|record| record.as_object_mut()).unwrap().remove("resized").unwrap();
        fs::write(&path, earlier.to_string()).unwrap();
        assert_eq!(PodRecord::load(&path).unwrap().resized, None);
    }

    /// Written by the daemon of commit 7cd46381 (0.1.0), laid out for people and with other names for this machine's things.
    const EARLIER: [(&str, &str); 3] = [
        ("web", include_str!("records/0.1.0/web.json")),
        ("agent", include_str!("records/0.1.0/agent.json")),
        ("alone", include_str!("records/0.1.0/alone.json")),
    ];

    #[test]
    fn records_of_an_earlier_daemon_are_read_and_nothing_is_lost_when_they_are_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        for (name, text) in EARLIER {
            fs::write(&path, text).unwrap();
            let record = PodRecord::load(&path).unwrap();
            assert_eq!(record.request.metadata.name, name);
            record.save(&path).unwrap();
            let (before, after): (serde_json::Value, serde_json::Value) = (serde_json::from_str(text).unwrap(), read(&path).unwrap());
            assert!(keeps(&before, &after), "{name}: {before:#}\nbecame\n{after:#}");
        }
    }

    /// Whether all that is in `before` is in `after` as well.
    fn keeps(before: &serde_json::Value, after: &serde_json::Value) -> bool {
        use serde_json::Value;
        match (before, after) {
            (Value::Object(before), Value::Object(after)) => {
                before.iter().all(|(key, value)| keeps(value, after.get(key).unwrap_or(&Value::Null)))
            }
            (Value::Array(before), Value::Array(after)) => {
                before.len() == after.len() && before.iter().zip(after).all(|(before, after)| keeps(before, after))
            }
            _ => before == after,
        }
    }

    #[test]
    fn what_earlier_records_tell_is_understood() {
        let [web, agent, alone] = EARLIER.map(|(_, text)| {
            let Versioned::V1(record) = serde_json::from_str::<Versioned<PodRecord>>(text).unwrap();
            record
        });
        assert_eq!((web.phase, agent.phase, alone.phase), (PodPhase::Ready, PodPhase::Ready, PodPhase::Stopped));
        assert_eq!((web.request.ports.len(), web.lease.is_some(), agent.lease.is_some()), (2, true, false));
        let phases: Vec<_> = web.containers.iter().map(|container| container.is_running()).collect();
        assert_eq!((phases, agent.containers[0].phase.clone()), (vec![false, true], ContainerPhase::Created));
        assert!(alone.request.user_namespace.is_some() && agent.request.security.privileged);
    }

    #[test]
    fn a_record_that_is_cut_off_or_of_another_version_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        testing::record(7).save(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for content in [&whole[..whole.len() / 2], b"", b"\0\0\0\0", b"{\"V9\":{}}"] {
            fs::write(&path, content).unwrap();
            let error = PodRecord::load(&path).unwrap_err().to_string();
            assert!(error.contains("record.json"), "{error}");
        }
    }
}
