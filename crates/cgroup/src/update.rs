//! Changing the limits of a living cgroup: all of them or none.
//!
//! Each write is preceded by a look at what the file says. What is so already is not written, and a write
//! that fails is followed by the former values of those before it, last first: every state on the way back
//! was one on the way there, so no order can make the way back fail.

use std::io;

use coracle_domain::{Error, Failure, Refusal, Resources, Result};

use crate::Cgroup;
use crate::convert::DEFAULT_PERIOD;
use crate::detect::{Controller, Home};
use crate::device::DeviceRules;
use crate::file;
use crate::settings::{Present, Setting, settings};

impl Cgroup {
    /// Makes `limits` hold: all that shall hold from now on, changed or not (`Resources::updated_by`). A limit
    /// that is `None` is left as it is.
    ///
    /// Refused if a memory limit is below what is in use and cannot be dropped, or if the kernel refuses a
    /// value; all limits are then what they were.
    pub fn update(&self, limits: &Resources) -> Result<()> {
        if !self.exists() {
            return Err(Refusal::wrong_state(format!("the cgroup {} is gone", self.location)).into());
        }
        let before: Vec<_> = self.legacy_directories().collect();
        let settings = settings(&self.hierarchy.layout, limits, self.present())?;
        self.make_directories(&settings, DeviceRules(&[]))?;
        for directory in self.legacy_directories().filter(|directory| !before.contains(directory)) {
            self.move_into(&directory)?;
        }
        apply(self, limits)
    }

    fn exists(&self) -> bool {
        self.unified_dir().is_some_and(|directory| directory.exists()) || self.legacy_directories().next().is_some()
    }

    /// The values on which the order of writes depends. Only v1 has such.
    fn present(&self) -> Present {
        let number = |controller: Controller, file: &str, default: u64| {
            let directory = self.hierarchy.legacy(controller, &self.location);
            directory.and_then(|directory| file::read(&directory, file).ok()?.parse().ok()).unwrap_or(default)
        };
        Present {
            memory_limit: number(Controller::Memory, "memory.limit_in_bytes", u64::MAX),
            period: number(Controller::Cpu, "cpu.cfs_period_us", DEFAULT_PERIOD),
        }
    }

    /// Moves the processes into a v1 hierarchy that they were not in: the first limit in it came late.
    fn move_into(&self, directory: &std::path::Path) -> Result<()> {
        for process in self.processes()? {
            match file::write(directory, "cgroup.procs", &process.to_string()) {
                Err(error) if error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                    return Err(Failure::new("moving a process", format!("{process} to {}", directory.display()), error).into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// On v2 the kernel would meet a limit below what is in use by killing; v1 refuses by itself.
    fn check_memory(&self, limits: &Resources) -> Result<()> {
        if self.hierarchy.layout.home(Controller::Memory) != Some(Home::Unified) {
            return Ok(());
        }
        match (limits.memory_limit.map(u64::try_from), self.stats().working_set) {
            (Some(Ok(limit)), Some(in_use)) if in_use > limit => {
                Err(Refusal::wrong_state(format!("memory_limit_in_bytes {limit}: {in_use} bytes are in use in {}", self.location)).into())
            }
            _ => Ok(()),
        }
    }
}

/// Writes `limits` to a cgroup that may have others, or puts back what was.
pub(crate) fn apply(cgroup: &Cgroup, limits: &Resources) -> Result<()> {
    let settings = settings(&cgroup.hierarchy.layout, limits, cgroup.present())?;
    cgroup.check_memory(limits)?;
    let mut former = Vec::new();
    for setting in &settings {
        match exchange(cgroup, setting) {
            Ok(Some(old)) => former.push((setting, old)),
            Ok(None) => {}
            Err(error) => return Err(put_back(cgroup, &former, cgroup.explain(setting, error))),
        }
    }
    Ok(())
}

/// Writes a setting; the former content of its file, if that was another.
fn exchange(cgroup: &Cgroup, setting: &Setting) -> io::Result<Option<String>> {
    let old = match cgroup.directory_of(setting.place).map(|directory| file::read(&directory, &setting.file)) {
        Some(Ok(old)) if old == setting.value => return Ok(None),
        Some(Ok(old)) => Some(old),
        // A file that cannot be read may still be written, and a missing one is explained by the write.
        _ => None,
    };
    cgroup.write(setting)?;
    Ok(old)
}

/// `cause`, told with what could not be put back.
fn put_back(cgroup: &Cgroup, former: &[(&Setting, String)], cause: Error) -> Error {
    let mut lost = Vec::new();
    for (setting, old) in former.iter().rev() {
        let lines: Vec<&str> = if old.is_empty() { vec![""] } else { old.lines().collect() };
        for line in lines {
            let back = Setting { value: line.to_owned(), ..(*setting).clone() };
            if let Err(error) = cgroup.write(&back) {
                lost.push(format!("{} to {line:?}: {error}", setting.file));
            }
        }
    }
    if lost.is_empty() {
        return cause;
    }
    Failure::new("restoring limits", lost.join("; "), format!("after a failed update: {cause}")).into()
}
