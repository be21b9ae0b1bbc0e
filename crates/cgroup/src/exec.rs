//! A leaf of its own for each exec, below its container's cgroup: a timeout kills the leaf, and with it
//! every grandchild that has left its session or was reparented.
//!
//! The leaf is for grouping only. On the unified hierarchy it has no controllers enabled; on pure v1 it is in
//! the freezer hierarchy. Limits and accounting stay the container's.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use coracle_domain::{During, Refusal, Result};

use crate::Cgroup;
use crate::detect::Controller;
use crate::file;
use crate::location::{Location, problem_with};
use crate::tree::Tree;

/// What the names of leaves begin with.
const PREFIX: &str = "exec-";

/// Where an exec's process goes.
#[derive(Debug)]
pub struct ExecLeaf {
    /// The directory to clone into; `None` where the container is in v1 alone.
    pub dir: Option<PathBuf>,
    /// The v1 files into which the process must write `0`, as for [`Cgroup::join_paths`].
    pub join: Vec<PathBuf>,
    tree: Tree,
    /// `cgroup.events` of `dir`, open since it was first asked for.
    events: OnceLock<File>,
    /// The same for `cgroup.procs`.
    processes: OnceLock<File>,
}

impl Cgroup {
    /// Makes the leaf of an exec, idempotently. `name` must be a file name.
    pub fn exec_leaf(&self, name: &str) -> Result<ExecLeaf> {
        let leaf = self.open_exec_leaf(name)?;
        for directory in leaf.tree.unified.iter().chain(&leaf.tree.legacy) {
            file::make_child(directory).during("making the cgroup", directory.display())?;
        }
        let join = self.legacy_directories().map(|directory| {
            let its_leaf = leaf.tree.legacy.iter().find(|leaf| leaf.parent() == Some(&directory));
            its_leaf.unwrap_or(&directory).join("tasks")
        });
        Ok(ExecLeaf { join: join.collect(), ..leaf })
    }

    /// The leaf of that name, which may or may not be there. Without effect.
    pub fn open_exec_leaf(&self, name: &str) -> Result<ExecLeaf> {
        Ok(self.leaf(&self.leaf_location(name)?))
    }

    /// All leaves that are there, whoever made them: for recovery.
    pub fn exec_leaves(&self) -> Result<Vec<ExecLeaf>> {
        let Tree { unified, legacy, .. } = self.leaf(&self.location).tree;
        let Some(directory) = unified.or_else(|| legacy.into_iter().next()) else { return Ok(Vec::new()) };
        let children = file::children(&directory).during("looking for the cgroups of execs in", directory.display())?;
        let names = children.iter().filter_map(|child| child.file_name()?.to_str()?.strip_prefix(PREFIX));
        // A container may have named one of its own cgroups so that it cannot be a leaf.
        Ok(names.filter_map(|name| self.open_exec_leaf(name).ok()).collect())
    }

    fn leaf_location(&self, name: &str) -> Result<Location> {
        match problem_with(name) {
            Some(problem) => Err(Refusal::invalid("exec", format!("{name:?}: {problem}")).into()),
            None => Ok(self.location.child(&format!("{PREFIX}{name}"))),
        }
    }

    /// One directory: in the unified hierarchy if the container is in that, else in the freezer's, else in one that every
    /// container is in.
    fn leaf(&self, location: &Location) -> ExecLeaf {
        let in_legacy = |controller| self.hierarchy.legacy(controller, location);
        let unified = self.hierarchy.unified(location).filter(|_| !self.predates_unified());
        let freezer = if unified.is_none() { in_legacy(Controller::Freezer) } else { None };
        let other = if unified.is_none() { in_legacy(Controller::Pids).or_else(|| in_legacy(Controller::Memory)) } else { None };
        let legacy = freezer.clone().or(other).into_iter().collect();
        ExecLeaf {
            dir: unified.clone(),
            join: Vec::new(),
            events: OnceLock::new(),
            processes: OnceLock::new(),
            tree: Tree { unified, freezer, legacy },
        }
    }
}

impl ExecLeaf {
    /// Sends SIGKILL to every process in it. Does not wait.
    pub fn kill(&self) -> Result<()> {
        self.tree.kill()
    }

    /// Whether a process lives in it.
    pub fn populated(&self) -> Result<bool> {
        self.tree.populated()
    }

    /// The processes that live in it and below.
    pub fn processes(&self) -> Result<Vec<i32>> {
        self.tree.processes()
    }

    /// Whether it is there and known to have no process in it or below. Quick from the second time on: the file is held.
    /// Never in v1 alone.
    pub fn is_empty(&self) -> bool {
        self.text(&self.events, "cgroup.events").is_some_and(|text| text.lines().any(|line| line == "populated 0"))
    }

    /// Whether it is known to have this process in it, by its number in our pid namespace, and no other; not asked is what is
    /// below. Quick like [`ExecLeaf::is_empty`]; never in v1 alone.
    pub fn holds_only(&self, process: i32) -> bool {
        let text = self.text(&self.processes, "cgroup.procs");
        text.is_some_and(|text| text.strip_suffix('\n').is_some_and(|text| text.parse() == Ok(process)))
    }

    /// What a file of the directory begins with.
    fn text(&self, file: &OnceLock<File>, name: &str) -> Option<String> {
        let file = match file.get() {
            Some(file) => file,
            None => {
                let opened = File::open(self.dir.as_ref()?.join(name)).ok()?;
                file.get_or_init(|| opened)
            }
        };
        let mut text = [0; 64];
        // Of one that was removed, ENODEV.
        let length = file.read_at(&mut text, 0).ok()?;
        String::from_utf8(text.get(..length)?.to_vec()).ok()
    }

    /// Makes sure that it is gone, with what lives in it. Blocks like [`Cgroup::remove`].
    pub fn remove(&self) -> Result<()> {
        self.tree.remove()
    }
}
