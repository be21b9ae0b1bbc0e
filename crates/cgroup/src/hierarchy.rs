//! The machine's hierarchies and the places in them: where a container's cgroup goes, and the removal of
//! whole pods by name.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_domain::{ContainerId, During, Error, PodId, Refusal, Result};

use crate::cgroup::Cgroup;
use crate::detect::{Controller, Layout};
use crate::file;
use crate::location::{Location, problem_with};
use crate::tree::{Tree, subtree};

/// Our directory at the top of every hierarchy, unless configured otherwise.
const DEFAULT_ROOT: &str = "coracle";

/// Who makes the cgroups; what CRI's RuntimeConfig reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// We do, as directories.
    Cgroupfs,
}

/// What the machine has mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// cgroup v2 alone.
    Unified,
    /// cgroup v1 alone.
    Legacy,
    /// Controllers on v1, and a v2 hierarchy beside them.
    Hybrid,
}

/// What a [`Hierarchy::sweep`] did.
#[derive(Debug, Default)]
pub struct Sweep {
    /// The pods that nobody claimed and that are gone.
    pub removed: Vec<PodId>,
    /// What could not be removed; a later sweep finds it again.
    pub failures: Vec<Error>,
}

/// The machine's cgroup hierarchies. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    pub(crate) layout: Arc<Layout>,
    root: Arc<str>,
}

impl Hierarchy {
    /// Finds what is mounted. Fails where there is neither a cgroup2 mount nor a v1 memory hierarchy.
    pub fn detect() -> Result<Self> {
        Layout::detect().map(Self::of)
    }

    pub(crate) fn of(layout: Layout) -> Self {
        Self { layout: layout.into(), root: DEFAULT_ROOT.into() }
    }

    /// The same with another name for our top directory: daemons that share a machine need one each.
    pub fn with_root(mut self, name: &str) -> Result<Self> {
        if let Some(problem) = problem_with(name) {
            return Err(Refusal::invalid("cgroup root", format!("{name:?}: {problem}")).into());
        }
        self.root = name.into();
        Ok(self)
    }

    /// Who makes the cgroups.
    pub fn driver(&self) -> Driver {
        Driver::Cgroupfs
    }

    /// What the machine has mounted.
    pub fn shape(&self) -> Shape {
        match (&self.layout.unified, self.layout.legacy.is_empty()) {
            (Some(_), true) => Shape::Unified,
            (Some(_), false) => Shape::Hybrid,
            (None, _) => Shape::Legacy,
        }
    }

    /// Where a pod's containers go: CRI's `cgroup_parent`, which is the kubelet's, or a directory of ours.
    ///
    /// Refuses a parent that could lead out of the hierarchy.
    pub fn pod(&self, parent: Option<&str>, pod: &PodId) -> Result<Location> {
        match parent {
            Some(parent) => Location::kubelets(parent),
            None => Ok(self.default_pod(pod)),
        }
    }

    /// Where a container goes: right under its pod's directory.
    pub fn container(&self, parent: Option<&str>, pod: &PodId, container: &ContainerId) -> Result<Location> {
        Ok(self.pod(parent, pod)?.child(container.as_str()))
    }

    /// Makes sure that the directory which a pod without `cgroup_parent` has is gone, with all in it:
    /// processes are killed. A pod under a kubelet's directory has none.
    pub fn remove_pod(&self, pod: &PodId) -> Result<()> {
        self.tree(&self.default_pod(pod)).remove()
    }

    /// Makes sure that the cgroups of these containers are gone, with all in them, whatever directory a kubelet put them
    /// into: for pods of which that is not known any more. Looks through all that there is.
    pub fn remove_wherever(&self, containers: &[ContainerId]) -> Result<()> {
        if containers.is_empty() {
            return Ok(());
        }
        let mut found = HashSet::new();
        for top in self.layout.tops() {
            let all = subtree(top).during("listing the cgroups in", top.display())?;
            for path in &all {
                let named = containers.iter().find(|id| path.ends_with(id.as_str()));
                let parent = path.parent().and_then(|parent| parent.strip_prefix(top).ok()?.to_str());
                if let (Some(container), Some(parent)) = (named, parent) {
                    found.insert(Location::kubelets(parent)?.child(container.as_str()));
                }
            }
        }
        found.into_iter().try_for_each(|location| Cgroup::open(self, location).remove())
    }

    /// Removes our top directory where it is empty; where pods are left it stays.
    pub fn remove_root(&self) -> Result<()> {
        for top in self.layout.tops() {
            let directory = top.join(&*self.root);
            match rustix::fs::rmdir(&directory) {
                Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::BUSY | rustix::io::Errno::NOTEMPTY) => {}
                Err(error) => return Err(std::io::Error::from(error)).during("removing the cgroup", directory.display()),
            }
        }
        Ok(())
    }

    /// Removes the directories of pods that nobody has claimed, in every hierarchy. Of each it asks after it has found the
    /// directory, so that pods which are claimed before they have one may be made meanwhile. Part of recovery: what it
    /// cannot remove it reports, and goes on.
    pub fn sweep(&self, is_claimed: impl Fn(&PodId) -> bool) -> Sweep {
        let mut sweep = Sweep::default();
        let mut unclaimed = HashSet::new();
        for top in self.layout.tops() {
            let directory = top.join(&*self.root);
            match file::children(&directory).during("listing the cgroups in", directory.display()) {
                Ok(children) => unclaimed.extend(children.iter().filter_map(|child| pod_of(child))),
                Err(error) => sweep.failures.push(error),
            }
        }
        for pod in unclaimed.into_iter().filter(|pod| !is_claimed(pod)) {
            match self.remove_pod(&pod) {
                Ok(()) => sweep.removed.push(pod),
                Err(error) => sweep.failures.push(error),
            }
        }
        sweep
    }

    fn default_pod(&self, pod: &PodId) -> Location {
        Location::ours(format!("{}/{pod}", self.root))
    }

    /// The cgroup's directory in the unified hierarchy, whether or not it is there.
    pub(crate) fn unified(&self, location: &Location) -> Option<PathBuf> {
        self.layout.unified.as_ref().map(|unified| unified.top.join(location.relative()))
    }

    /// The cgroup's directory in a v1 controller's hierarchy, whether or not it is there.
    pub(crate) fn legacy(&self, controller: Controller, location: &Location) -> Option<PathBuf> {
        self.layout.legacy(controller).map(|legacy| legacy.top.join(location.relative()))
    }

    /// The cgroup with all that is below it, in all hierarchies. It is not in a unified one that was mounted later.
    pub(crate) fn tree(&self, location: &Location) -> Tree {
        Tree {
            unified: self.unified(location).filter(|directory| directory.exists()),
            freezer: self.legacy(Controller::Freezer, location),
            legacy: self.layout.legacy.iter().map(|legacy| legacy.top.join(location.relative())).collect(),
        }
    }
}

fn pod_of(directory: &Path) -> Option<PodId> {
    directory.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::Unified;

    #[test]
    fn a_containers_cgroup_is_found_by_its_name_alone() {
        let top = tempfile::tempdir().unwrap();
        let layout = Layout { legacy: Vec::new(), unified: Some(Unified { top: top.path().to_owned(), controllers: Default::default() }) };
        let [lost, other] = [1, 2].map(|seed| ContainerId::from_entropy([seed; 32]));
        let path = |id: &ContainerId| top.path().join("kubepods/burstable/pod1").join(id.as_str());
        for directory in [path(&lost).join("exec"), path(&other), top.path().join("elsewhere").join(lost.as_str())] {
            std::fs::create_dir_all(directory).unwrap();
        }
        Hierarchy::of(layout).remove_wherever(std::slice::from_ref(&lost)).unwrap();
        assert!(!path(&lost).exists() && !top.path().join("elsewhere").join(lost.as_str()).exists());
        assert!(path(&other).exists());
    }
}
