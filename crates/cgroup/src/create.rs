//! Making a cgroup: its directories, the controllers of v2, its limits and its device rules.
//!
//! Idempotent, and without a way back: what a failed creation leaves is what [`Cgroup::remove`] removes.
//!
//! **Which v1 hierarchies a container is in.** Each costs a mkdir and a rmdir, for the container and for its
//! pod, and a join: about 80 µs together, and v1 has up to a dozen. So it is in those that limit, count or
//! kill: cpu, cpuacct, memory and pids always (a kubelet limits its pods there too), devices when there are
//! rules, the freezer when no unified hierarchy can kill, cpuset and hugetlb when a limit asks for it or the
//! kubelet's parent has a directory there. It stays out of blkio, net_cls, net_prio and perf_event: CRI has
//! no limit and no count in them. systemd's own hierarchy is joined where systemd runs, lest a stop of our
//! unit kill pods.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use coracle_domain::{DeviceRule, During, Error, Failure, FailureKind, Refusal, Resources, Result};
use rustix::fs::{Mode, OFlags};

use crate::detect::{Controller, Home, Legacy};
use crate::device::DeviceRules;
use crate::file::{self, Made, Mark};
use crate::location::{Location, Owner};
use crate::settings::{Absent, Place, Present, Setting, needed_on_unified, settings};
use crate::{Cgroup, Hierarchy, update};

/// What ENOSPC and EAGAIN mean where a cgroup is made.
const CGROUPS: &str = "the kernel's or the parent's limit on cgroups is reached; no disk is meant";

/// What every container's v2 cgroup has, where the machine has it: for limits to come and for accounting.
const ALWAYS_ENABLED: [&str; 4] = ["cpu", "io", "memory", "pids"];

impl Cgroup {
    /// Makes the cgroup at `location` with `limits`, so that a process that is born in it never was without.
    ///
    /// Of `devices` the last rule that fits an access decides, and what none fits is refused; no rules at all
    /// restrict nothing.
    ///
    /// Refuses limits that this machine cannot hold, before it makes anything where that can be known.
    pub fn create(hierarchy: &Hierarchy, location: Location, limits: &Resources, devices: &[DeviceRule]) -> Result<Self> {
        let (cgroup, devices) = (Self::open(hierarchy, location), DeviceRules(devices));
        if cgroup.location.owner == Owner::Kubelet {
            return Err(Refusal::wrong_state(format!("the cgroup {} is the kubelet's", cgroup.location)).into());
        }
        let settings = settings(&hierarchy.layout, limits, Present::FRESH)?;
        if cgroup.make_directories(&settings, devices)? == Made::Fresh {
            for setting in settings.iter().filter(|setting| !setting.is_default()) {
                cgroup.write(setting).map_err(|error| cgroup.explain(setting, error))?;
            }
            cgroup.apply_devices(devices)?;
        } else {
            update::apply(&cgroup, limits)?;
            if !cgroup.populated()? {
                cgroup.apply_devices(devices)?;
            }
        }
        Ok(cgroup)
    }

    /// Makes what is missing; [`Made::Fresh`] if everything was. Processes are not moved into a unified hierarchy that came late.
    pub(crate) fn make_directories(&self, settings: &[Setting], devices: DeviceRules<'_>) -> Result<Made> {
        let mut made = Made::Fresh;
        if let Some(unified) = self.hierarchy.layout.unified.as_ref().filter(|_| !self.predates_unified()) {
            made = made.and(self.make_in(&unified.top)?);
            let mut wanted = needed_on_unified(settings);
            if self.hierarchy.layout.legacy.is_empty() {
                wanted.extend(ALWAYS_ENABLED.iter().filter(|name| unified.controllers.contains(**name)));
            }
            enable(&unified.top, self.location.relative(), &wanted)?;
        }
        for legacy in self.joined(settings, devices) {
            made = made.and(self.make_in(&legacy.top)?);
            if legacy.controllers.contains(&Controller::Cpuset) {
                inherit_cpuset(&legacy.top, self.location.relative())?;
            }
        }
        Ok(made)
    }

    fn make_in(&self, top: &Path) -> Result<Made> {
        let mark = if self.location.owner == Owner::UnderKubelet { Mark::Parents } else { Mark::Nothing };
        let relative = self.location.relative();
        file::make(top, relative, mark).map_err(|error| {
            let exhausted = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::WouldBlock);
            let failure = Failure::new("making the cgroup", top.join(relative).display(), error);
            // No disk is meant.
            if exhausted { failure.kind(FailureKind::Exhausted).hint(CGROUPS).into() } else { failure.into() }
        })
    }

    /// The v1 hierarchies that the cgroup is to be in; the module says why.
    fn joined<'a>(&'a self, settings: &'a [Setting], devices: DeviceRules<'_>) -> impl Iterator<Item = &'a Legacy> + use<'a> {
        let has_limit = |controller| settings.iter().any(|setting| setting.place == Place::Legacy(controller));
        let kubelet_has = |top: &Path| {
            let parent = Path::new(self.location.relative()).parent();
            self.location.owner == Owner::UnderKubelet && parent.is_some_and(|parent| top.join(parent).exists())
        };
        let has_device_rules = !devices.legacy_lines().is_empty();
        let is_joined = move |legacy: &Legacy, controller: Controller| match controller {
            Controller::Cpu | Controller::Cpuacct | Controller::Memory | Controller::Pids => true,
            Controller::Devices => has_device_rules,
            Controller::Freezer => self.hierarchy.layout.unified.is_none(),
            Controller::Cpuset | Controller::Hugetlb => has_limit(controller) || kubelet_has(&legacy.top),
            Controller::Systemd => Path::new("/run/systemd/system").exists(),
        };
        let all = self.hierarchy.layout.legacy.iter();
        all.filter(move |legacy| legacy.controllers.iter().any(|controller| is_joined(legacy, *controller)))
    }

    /// Writes one setting to its file.
    pub(crate) fn write(&self, setting: &Setting) -> io::Result<()> {
        let directory = self.directory_of(setting.place).ok_or(io::ErrorKind::NotFound)?;
        match file::write(&directory, &setting.file, &setting.value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && setting.absent == Absent::Harmless => Ok(()),
            outcome => outcome,
        }
    }

    /// The directory that holds a setting's file.
    pub(crate) fn directory_of(&self, place: Place) -> Option<std::path::PathBuf> {
        match place {
            Place::Unified => self.unified_dir(),
            Place::Legacy(controller) => self.hierarchy.legacy(controller, &self.location),
        }
    }

    /// Whose fault it is that a setting cannot be written.
    pub(crate) fn explain(&self, setting: &Setting, error: io::Error) -> Error {
        use rustix::io::Errno;
        let Setting { file, value, field, absent, .. } = setting;
        let directory = self.directory_of(setting.place).unwrap_or_default();
        match (error.raw_os_error().map(Errno::from_raw_os_error), absent) {
            (Some(Errno::NOENT), Absent::Refused(reason)) if directory.exists() => {
                Refusal::unsupported(format!("{field} {value:?} ({file}: {reason})")).into()
            }
            (Some(Errno::INVAL | Errno::RANGE), _) => {
                Refusal::invalid(*field, format!("the kernel refuses {value:?} in {}", directory.join(&**file).display())).into()
            }
            (Some(Errno::BUSY), _) if file.starts_with("memory.") => {
                Refusal::wrong_state(format!("{field} {value}: more is in use in {} and cannot be reclaimed", directory.display())).into()
            }
            _ => Failure::new("setting a limit", format!("{} to {value:?}", directory.join(&**file).display()), error).into(),
        }
    }

    fn apply_devices(&self, devices: DeviceRules<'_>) -> Result<()> {
        match self.hierarchy.layout.home(Controller::Devices) {
            Some(Home::Legacy) => self.write_devices(devices),
            // v2 has no devices controller; a program takes its place wherever there is v2.
            _ => match self.unified_dir() {
                Some(directory) => attach_devices(&directory, devices),
                None if devices.0.is_empty() => Ok(()),
                None => Err(Refusal::unsupported("device rules on a machine without a devices controller").into()),
            },
        }
    }

    fn write_devices(&self, devices: DeviceRules<'_>) -> Result<()> {
        let Some(directory) = self.hierarchy.legacy(Controller::Devices, &self.location) else {
            return Ok(());
        };
        for (device_file, line) in devices.legacy_lines() {
            file::write(&directory, device_file.name(), &line)
                .during("writing a device rule", format_args!("{line:?} to {}", directory.join(device_file.name()).display()))?;
        }
        Ok(())
    }
}

impl Made {
    fn and(self, other: Self) -> Self {
        if self == Self::Fresh { other } else { self }
    }
}

/// Attaches the program of `devices`, once: a second creation finds the first one's.
pub(crate) fn attach_devices(directory: &Path, devices: DeviceRules<'_>) -> Result<()> {
    use std::os::fd::AsFd;
    let Some(program) = devices.program() else { return Ok(()) };
    let attach = || {
        let cgroup = rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if coracle_sys::bpf::count_cgroup_device(cgroup.as_fd())? > 0 {
            return Ok(());
        }
        let program = coracle_sys::bpf::load_cgroup_device(&program)?;
        coracle_sys::bpf::attach_cgroup_device(program.as_fd(), cgroup.as_fd())?;
        coracle_failpoint::reach(coracle_failpoint::Point::CgroupWrite);
        Ok(())
    };
    let outcome: io::Result<()> = attach();
    outcome.during("attaching the device program to", directory.display())
}

/// Enables controllers in every directory from the root down to the cgroup's parent, where they are not yet.
/// A look at the cgroup itself tells whether there is anything to do.
fn enable(top: &Path, relative: &str, wanted: &BTreeSet<&str>) -> Result<()> {
    let missing = |directory: &Path, file: &str| -> Result<String> {
        let present = file::read(directory, file).during("reading the controllers of", directory.display())?;
        let missing = wanted.iter().filter(|name| !present.split_ascii_whitespace().any(|word| word == **name));
        Ok(missing.map(|name| format!("+{name} ")).collect())
    };
    if wanted.is_empty() || missing(&top.join(relative), "cgroup.controllers")?.is_empty() {
        return Ok(());
    }
    for parent in std::iter::once(top.to_path_buf()).chain(file::parents(top, relative)) {
        let change = missing(&parent, "cgroup.subtree_control")?;
        if !change.is_empty() {
            file::write(&parent, "cgroup.subtree_control", change.trim_end()).map_err(|error| enabling_failed(&parent, &change, error))?;
        }
    }
    Ok(())
}

fn enabling_failed(directory: &Path, change: &str, error: io::Error) -> Error {
    let is_busy = error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error());
    let failure = Failure::new("enabling controllers", format!("{change}in {}", directory.display()), error);
    if is_busy { failure.hint("processes live in that cgroup itself: v2 wants them in a child of it").into() } else { failure.into() }
}

/// A v1 cpuset accepts no process before it has CPUs and memory nodes: takes those of the parent, level by level.
fn inherit_cpuset(top: &Path, relative: &str) -> Result<()> {
    let levels = file::parents(top, relative).into_iter().chain([top.join(relative)]);
    for directory in levels {
        for list in ["cpuset.cpus", "cpuset.mems"] {
            let inherit = || {
                if file::read(&directory, list)?.is_empty() {
                    let parent = directory.parent().unwrap_or(top);
                    file::write(&directory, list, &file::read(parent, list)?)?;
                }
                Ok(())
            };
            let outcome: io::Result<()> = inherit();
            outcome.during("inheriting the cpuset of", directory.display())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::{Layout, Unified};

    /// A directory tree that looks like a pure v2 machine whose container was made before.
    fn fake_v2(files: &[(&str, &str)]) -> (tempfile::TempDir, Hierarchy, Location) {
        let top = tempfile::tempdir().unwrap();
        let controllers = ["cpu", "io", "memory", "pids"].map(str::to_owned).into();
        let layout = Layout { legacy: Vec::new(), unified: Some(Unified { top: top.path().to_owned(), controllers }) };
        let location = Location::ours("root/pod/container".into());
        for level in ["", "root", "root/pod", location.relative()] {
            std::fs::create_dir_all(top.path().join(level)).unwrap();
            for file in ["cgroup.controllers", "cgroup.subtree_control", "cgroup.events"] {
                std::fs::write(top.path().join(level).join(file), "").unwrap();
            }
        }
        for (file, content) in files {
            std::fs::write(top.path().join(location.relative()).join(file), content).unwrap();
        }
        (top, Hierarchy::of(layout), location)
    }

    #[test]
    fn on_v2_the_controllers_are_enabled_from_the_root_to_the_parent_and_the_limits_written() {
        let (top, hierarchy, location) = fake_v2(&[("cpu.weight", ""), ("memory.max", "")]);
        std::fs::write(top.path().join("cgroup.subtree_control"), "cpu memory").unwrap();
        let limits = Resources { cpu_shares: Some(512), memory_limit: Some(4096), memory_swap_limit: Some(4096), ..Resources::default() };
        let cgroup = Cgroup::create(&hierarchy, location, &limits, &[]).unwrap();
        let read = |file: &str| std::fs::read_to_string(top.path().join(file)).unwrap();
        assert!(read("cgroup.subtree_control").starts_with("+io +pids"));
        assert_eq!(read("root/cgroup.subtree_control"), "+cpu +io +memory +pids");
        assert_eq!(read("root/pod/cgroup.subtree_control"), "+cpu +io +memory +pids");
        assert_eq!(read("root/pod/container/cgroup.subtree_control"), "", "processes live here");
        assert_eq!((read("root/pod/container/cpu.weight").as_str(), read("root/pod/container/memory.max").as_str()), ("59", "4096"));
        let source = cgroup.oom_source().unwrap();
        assert_eq!((source.path, source.key), (top.path().join("root/pod/container/memory.events"), "oom_kill"));
        assert!(cgroup.join_paths().is_empty());
    }

    #[test]
    fn on_v2_a_memory_limit_below_the_working_set_is_refused_before_anything_is_written() {
        let usage =
            [("cpu.weight", "1"), ("memory.max", "max"), ("memory.current", "9000\n"), ("memory.stat", "anon 5000\ninactive_file 1000\n")];
        let (top, hierarchy, location) = fake_v2(&usage);
        let cgroup = Cgroup::open(&hierarchy, location);
        let limits = |bytes| Resources { cpu_shares: Some(512), memory_limit: Some(bytes), ..Resources::default() };
        let error = cgroup.update(&limits(7999)).unwrap_err();
        assert!(matches!(&error, Error::Refused(Refusal::WrongState { .. })), "{error}");
        assert_eq!(std::fs::read_to_string(top.path().join("root/pod/container/cpu.weight")).unwrap(), "1");
        cgroup.update(&limits(8000)).unwrap();
        assert_eq!(cgroup.stats().memory_limit, Some(8000));
    }

    #[test]
    fn a_swap_limit_without_swap_accounting_is_refused() {
        let (_top, hierarchy, location) = fake_v2(&[("memory.max", "")]);
        let limits = Resources { memory_limit: Some(4096), memory_swap_limit: Some(8192), ..Resources::default() };
        let error = Cgroup::create(&hierarchy, location, &limits, &[]).unwrap_err();
        assert!(matches!(&error, Error::Refused(Refusal::Unsupported { .. })), "{error}");
    }
}
