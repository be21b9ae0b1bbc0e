//! One container's cgroup: where a process joins it, what it counts, and its end. Making it is in `create`,
//! changing its limits in `update`.

use std::path::{Path, PathBuf};

use coracle_domain::{During, Refusal, Result};

use crate::Hierarchy;
use crate::detect::{Controller, Home};
use crate::file;
use crate::location::{Location, Owner};

/// A file that counts processes killed for want of memory, and the key whose value is the count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OomSource {
    /// Lines of key and value, separated by a space.
    pub path: PathBuf,
    /// The key.
    pub key: &'static str,
}

/// What a container on v1 may see of one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisibleHierarchy {
    /// The name of the hierarchy's mount point: `memory`, `cpu,cpuacct`, `unified`. Where it has a comma, each
    /// part is by custom a symbolic link to it.
    pub name: String,
    /// The directory to show there.
    pub directory: PathBuf,
}

/// A cgroup, in all hierarchies that it is in. The value remembers only where; what is, is asked of the kernel.
#[derive(Debug)]
pub struct Cgroup {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) location: Location,
}

impl Cgroup {
    /// The cgroup at `location`, which may or may not be there. Without effect: for recovery and teardown.
    pub fn open(hierarchy: &Hierarchy, location: Location) -> Self {
        Self { hierarchy: hierarchy.clone(), location }
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The v1 files into which a new process must write `0` to be in the cgroup. Empty on pure v2.
    ///
    /// **The process must do it itself, while it has one thread**: these are `tasks` files and not
    /// `cgroup.procs`, because the kernel then skips the lock over all forks of the machine, and with it
    /// the wait for an RCU grace period of 4 to 18 ms that the first write to `cgroup.procs` after a while costs.
    pub fn join_paths(&self) -> Vec<PathBuf> {
        self.legacy_directories().map(|directory| directory.join("tasks")).collect()
    }

    /// The directory to clone into (`CLONE_INTO_CGROUP`); `None` on pure v1.
    pub fn unified_dir(&self) -> Option<PathBuf> {
        self.hierarchy.unified(&self.location)
    }

    /// Whether it was made while there was no unified hierarchy. It is then in v1 alone, even if there is one now.
    pub(crate) fn predates_unified(&self) -> bool {
        self.unified_dir().is_none_or(|directory| !directory.exists()) && self.legacy_directories().next().is_some()
    }

    /// What belongs under the container's /sys/fs/cgroup where there is v1; empty on pure v2.
    ///
    /// It is the cgroup's own directory in each hierarchy that it is in, and the root of the cpuset hierarchy if
    /// it is not in that one: there its processes are, and a Java machine sees no limits where it sees no cpuset.
    pub fn visible(&self) -> Vec<VisibleHierarchy> {
        let layout = &self.hierarchy.layout;
        let of = |top: &Path| {
            let own = top.join(self.location.relative());
            let is_cpuset = layout.legacy(Controller::Cpuset).is_some_and(|legacy| legacy.top == top);
            let directory = if own.exists() { Some(own) } else { is_cpuset.then(|| top.to_path_buf()) };
            Some(VisibleHierarchy { name: top.file_name()?.to_str()?.to_owned(), directory: directory? })
        };
        if layout.legacy.is_empty() { Vec::new() } else { layout.tops().filter_map(of).collect() }
    }

    /// Which v1 directories of it there are: they say which hierarchies it is in.
    pub(crate) fn legacy_directories(&self) -> impl Iterator<Item = PathBuf> {
        let all = self.hierarchy.layout.legacy.iter().map(|legacy| legacy.top.join(self.location.relative()));
        all.filter(|directory| directory.exists())
    }

    /// Where the kernel counts OOM kills; `None` where no memory controller is. To be read before removal.
    ///
    /// v1: `oom_kill` of `memory.oom_control` (kernel 4.13); v2: of `memory.events`.
    pub fn oom_source(&self) -> Option<OomSource> {
        let key = "oom_kill";
        match self.hierarchy.layout.home(Controller::Memory)? {
            Home::Legacy => {
                let directory = self.hierarchy.legacy(Controller::Memory, &self.location)?;
                Some(OomSource { path: directory.join("memory.oom_control"), key })
            }
            Home::Unified => Some(OomSource { path: self.unified_dir()?.join("memory.events"), key }),
        }
    }

    /// The processes in it and below, execs included.
    pub fn processes(&self) -> Result<Vec<i32>> {
        self.hierarchy.tree(&self.location).processes()
    }

    /// Whether a process lives in it or below.
    pub fn populated(&self) -> Result<bool> {
        self.hierarchy.tree(&self.location).populated()
    }

    /// Sends SIGKILL to every process in it and below, execs and grandchildren included. Does not wait.
    pub fn kill(&self) -> Result<()> {
        self.ours()?;
        self.hierarchy.tree(&self.location).kill()
    }

    /// Makes sure that it is gone, with what lives in it and what is below. Blocks while processes die: up to
    /// two seconds, then fails and can be called again. Refused for a kubelet's directory.
    pub fn remove(&self) -> Result<()> {
        self.ours()?;
        self.hierarchy.tree(&self.location).remove()?;
        if self.location.owner == Owner::UnderKubelet {
            self.remove_marked_parents()?;
        }
        Ok(())
    }

    /// Parents that should have been the kubelet's and that we had to make, where they are empty now.
    fn remove_marked_parents(&self) -> Result<()> {
        use rustix::io::Errno;
        for top in self.hierarchy.layout.tops() {
            // One that is gone was the work of a daemon that did not come to those above it.
            for parent in file::parents(top, self.location.relative()).iter().rev().take_while(|parent| !file::is_of_others(parent)) {
                match rustix::fs::rmdir(parent) {
                    Ok(()) => coracle_failpoint::reach(coracle_failpoint::Point::CgroupRemove),
                    Err(Errno::NOENT) => {}
                    Err(Errno::BUSY | Errno::NOTEMPTY) => break,
                    Err(error) => return Err(std::io::Error::from(error)).during("removing the cgroup", parent.display()),
                }
            }
        }
        Ok(())
    }

    fn ours(&self) -> Result<()> {
        match self.location.owner {
            Owner::Ours | Owner::UnderKubelet => Ok(()),
            Owner::Kubelet => Err(Refusal::wrong_state(format!("the cgroup {} is the kubelet's", self.location)).into()),
        }
    }
}
