//! Where a pod's things are. Every path derives from an id, so that teardown and recovery need no memory.
//!
//! ```text
//! <state>/subnet.json                               the pods' subnet, once the kubelet has given one
//! <state>/pods/<pod>/record.json                    what the pod is
//!                    record.json.spare              what it was; the two change places
//!                    monitor.sock, monitor.log      its monitor
//!                    ns/{net,ipc,uts,pid,user,time} namespace pins (bind mounts)
//!                    shm                            /dev/shm of its containers (tmpfs)
//!                    resolv.conf, hostname, hosts   shown in its containers' /etc
//!                    containers/<container>/plan.json, config.json, exit.json, rootfs
//! ```

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use coracle_domain::{ContainerId, During, PodId, Result};
use coracle_files::Quarantine;

/// The daemon's directory on tmpfs.
#[derive(Debug, Clone)]
pub struct Layout {
    state: PathBuf,
}

impl Layout {
    /// The layout under `state`, usually `/run/coracle`.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self { state: state.into() }
    }

    /// All pods.
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// The pods that have a directory.
    ///
    /// # Errors
    /// They cannot be listed.
    pub(crate) fn pods_there(&self) -> Result<Vec<PodId>> {
        let pods = self.pods();
        let entries = std::fs::read_dir(&pods).during("reading the state directory", pods.display())?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// Whether a pod has a directory. If that is not known it counts as having one: what is its is not to be swept.
    pub(crate) fn may_have(&self, pod: &PodId) -> bool {
        !self.pod(pod).path().symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
    }

    /// The subnet that the kubelet gave the node.
    pub(crate) fn subnet(&self) -> PathBuf {
        self.state.join("subnet.json")
    }

    /// Where records that cannot be read are put aside.
    pub(crate) fn quarantine(&self) -> Quarantine {
        Quarantine::at(self.state.join("quarantine"))
    }

    /// One pod.
    pub fn pod(&self, id: &PodId) -> PodDirectory {
        PodDirectory(self.pods().join(id.as_str()))
    }
}

/// One pod's directory.
#[derive(Debug, Clone)]
pub struct PodDirectory(PathBuf);

impl PodDirectory {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The pod's record.
    pub fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    /// The directory of namespace pins.
    pub fn pins(&self) -> PathBuf {
        self.0.join("ns")
    }

    /// The pin of one namespace: `net`, `ipc`, `uts`, `pid`, `user` or `time`.
    pub fn pin(&self, kind: &str) -> PathBuf {
        self.pins().join(kind)
    }

    /// The tmpfs its containers see as /dev/shm.
    pub fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// A file that containers see in /etc: `resolv.conf`, `hostname` or `hosts`.
    pub fn etc(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// One container.
    pub fn container(&self, id: &ContainerId) -> ContainerDirectory {
        ContainerDirectory(self.0.join("containers").join(id.as_str()))
    }
}

/// One container's directory.
#[derive(Debug, Clone)]
pub struct ContainerDirectory(PathBuf);

impl ContainerDirectory {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its Plan.
    pub fn plan(&self) -> PathBuf {
        self.0.join("plan.json")
    }

    /// Its OCI runtime spec, under the name that the specification gives it: for people, and for tools that know it.
    pub fn spec(&self) -> PathBuf {
        self.0.join("config.json")
    }

    /// How it ended, written by its monitor.
    pub fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// The empty directory on which its root file system is mounted, in its own mount namespace.
    pub fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_whose_directory_cannot_be_looked_for_is_not_taken_for_gone() {
        let scratch = tempfile::tempdir().unwrap();
        let (layout, pod) = (Layout::new(scratch.path()), crate::testing::record(1).id);
        assert!(!layout.may_have(&pod));
        std::fs::create_dir_all(layout.pod(&pod).path()).unwrap();
        assert!(layout.may_have(&pod));
        std::fs::remove_dir_all(layout.pods()).unwrap();
        std::fs::write(layout.pods(), "").unwrap();
        assert!(layout.may_have(&pod), "ENOTDIR says nothing of the pod");
    }
}
