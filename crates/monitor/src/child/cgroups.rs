//! Entering the cgroups of version 1; those of version 2 are entered by being born into them.

use coracle_plan::Cgroups;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::write;

use crate::fault::{OrFault, Result};

/// Moves this process into each (cgroups(7): `0` in `cgroup.procs` is the writer).
pub(crate) fn join(cgroups: &Cgroups) -> Result<()> {
    for path in &cgroups.join {
        let stage = "entering the cgroup";
        let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).or_fault(stage, path.display())?;
        write(file, b"0").or_fault(stage, path.display())?;
    }
    Ok(())
}
