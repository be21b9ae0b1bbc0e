//! Entering the cgroups of version 1; those of version 2 are entered by being born into them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use coracle_failpoint::{Point, reach};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::write;

use crate::fault::{OrFault, Result};

/// The files by which a process moves itself into cgroups, open, as a container's execs use them again and again.
#[derive(Debug, Default)]
pub(crate) struct Entrances(Vec<(PathBuf, OwnedFd)>);

impl Entrances {
    /// Has these files open, and no others.
    pub(crate) fn open(&mut self, paths: &[PathBuf]) -> Result<()> {
        // As they are spelled: to compare paths part by part takes nearly as long as to open them.
        let same = |one: &PathBuf, other: &PathBuf| one.as_os_str() == other.as_os_str();
        self.0.retain(|(open, _)| paths.iter().any(|path| same(path, open)));
        for path in paths {
            if !self.0.iter().any(|(open, _)| same(path, open)) {
                let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).or_fault("opening the cgroup", path.display())?;
                self.0.push((path.clone(), file));
            }
        }
        Ok(())
    }

    /// Moves this process into each (cgroups(7): `0` is the writer).
    pub(crate) fn enter(&self) -> Result<()> {
        self.0.iter().try_for_each(|(path, file)| write(file, b"0").map(drop).or_fault("entering the cgroup", path.display()))?;
        reach(Point::ChildCgroup);
        Ok(())
    }
}

/// Moves this process into these cgroups.
pub(crate) fn join(paths: &[PathBuf]) -> Result<()> {
    let mut entrances = Entrances::default();
    entrances.open(paths)?;
    entrances.enter()
}
