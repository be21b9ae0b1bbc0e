//! Which hierarchies this machine has mounted, and which controller lives in which.
//!
//! Pure but for [`Layout::detect`], which reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)) and the
//! unified root's `cgroup.controllers`.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use coracle_domain::{During, Failure, Result};

/// A controller, or the named hierarchy in which an old systemd tracks processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Controller {
    Cpu,
    Cpuacct,
    Cpuset,
    Memory,
    Pids,
    Devices,
    Freezer,
    Hugetlb,
    Systemd,
}

impl Controller {
    const ALL: [Self; 9] =
        [Self::Cpu, Self::Cpuacct, Self::Cpuset, Self::Memory, Self::Pids, Self::Devices, Self::Freezer, Self::Hugetlb, Self::Systemd];

    /// The one of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|controller| controller.name() == name)
    }

    /// As v1 mount options and `cgroup.controllers` spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
            Self::Hugetlb => "hugetlb",
            Self::Systemd => "name=systemd",
        }
    }
}

/// A mounted v1 hierarchy; several controllers may share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Legacy {
    pub(crate) top: PathBuf,
    pub(crate) controllers: Vec<Controller>,
}

/// The mounted v2 hierarchy and the controllers it can offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unified {
    pub(crate) top: PathBuf,
    pub(crate) controllers: BTreeSet<String>,
}

/// Every hierarchy that matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) legacy: Vec<Legacy>,
    pub(crate) unified: Option<Unified>,
}

/// Where a controller's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    Legacy,
    Unified,
}

impl Layout {
    /// Reads what is mounted.
    pub(crate) fn detect() -> Result<Self> {
        let path = "/proc/self/mountinfo";
        let mountinfo = std::fs::read(path).during("reading the mounts", path)?;
        let layout = Self::parse(&mountinfo, |top| std::fs::read_to_string(top.join("cgroup.controllers")))?;
        if layout.unified.is_none() && !layout.legacy.iter().any(|legacy| legacy.controllers.contains(&Controller::Memory)) {
            let missing = io::Error::new(io::ErrorKind::NotFound, "neither a cgroup2 mount nor a v1 memory hierarchy");
            return Err(Failure::new("finding the cgroup hierarchies", path, missing).hint("mount cgroup2 at /sys/fs/cgroup").into());
        }
        Ok(layout)
    }

    /// The layout that a mountinfo file describes. Of a hierarchy mounted more than once the mount under
    /// `/sys/fs/cgroup` counts, else the first.
    pub(crate) fn parse(mountinfo: &[u8], controllers_of: impl Fn(&Path) -> io::Result<String>) -> Result<Self> {
        let mut mounts: Vec<Mount> = mountinfo.split(|byte| *byte == b'\n').filter_map(Mount::parse).collect();
        mounts.sort_by_key(|mount| !mount.top.starts_with("/sys/fs/cgroup"));
        let mut layout = Self::default();
        for mount in mounts {
            if mount.unified {
                if layout.unified.is_none() {
                    let offered = controllers_of(&mount.top).during("reading the controllers of", mount.top.display())?;
                    let controllers = offered.split_ascii_whitespace().map(str::to_owned).collect();
                    layout.unified = Some(Unified { top: mount.top, controllers });
                }
            } else if !mount.controllers.is_empty() && mount.controllers.iter().all(|controller| layout.legacy(*controller).is_none()) {
                layout.legacy.push(Legacy { top: mount.top, controllers: mount.controllers });
            }
        }
        Ok(layout)
    }

    /// The v1 hierarchy of `controller`.
    pub(crate) fn legacy(&self, controller: Controller) -> Option<&Legacy> {
        self.legacy.iter().find(|legacy| legacy.controllers.contains(&controller))
    }

    /// Where `controller` lives; `None`: the machine does not have it.
    pub(crate) fn home(&self, controller: Controller) -> Option<Home> {
        if self.legacy(controller).is_some() {
            return Some(Home::Legacy);
        }
        self.offers(controller.name()).then_some(Home::Unified)
    }

    /// Whether the unified hierarchy has the controller of this name.
    pub(crate) fn offers(&self, name: &str) -> bool {
        self.unified.as_ref().is_some_and(|unified| unified.controllers.contains(name))
    }

    /// The roots of all hierarchies, the unified one first: killing there empties the others.
    pub(crate) fn tops(&self) -> impl Iterator<Item = &Path> {
        let unified = self.unified.iter().map(|unified| unified.top.as_path());
        unified.chain(self.legacy.iter().map(|legacy| legacy.top.as_path()))
    }
}

/// A cgroup mount.
struct Mount {
    top: PathBuf,
    unified: bool,
    controllers: Vec<Controller>,
}

impl Mount {
    /// `36 31 0:32 / /sys/fs/cgroup/memory rw,relatime [optional fields] - cgroup cgroup rw,memory`
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let top = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.nth(4)?)));
        fields.find(|field| *field == b"-")?;
        let unified = match fields.next()? {
            b"cgroup2" => true,
            b"cgroup" => false,
            _ => return None,
        };
        let options = fields.nth(1)?;
        let named = |controller: &Controller| options.split(|byte| *byte == b',').any(|option| option == controller.name().as_bytes());
        let controllers = if unified { Vec::new() } else { Controller::ALL.into_iter().filter(named).collect() };
        Some(Self { top, unified, controllers })
    }
}

/// Undoes the octal escapes (`\040`) of mountinfo's paths.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
90 23 0:30 / /run/elsewhere rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw
";

    fn parse(text: &str, controllers: &str) -> Layout {
        Layout::parse(text.as_bytes(), |_| Ok(controllers.to_owned())).unwrap()
    }

    #[test]
    fn on_a_hybrid_machine_each_controller_lives_where_it_is_mounted() {
        let layout = parse(HYBRID, "hugetlb\n");
        assert_eq!(layout.legacy(Controller::Cpuacct).unwrap().top, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(layout.legacy(Controller::Cpuacct), layout.legacy(Controller::Cpu));
        assert_eq!(layout.unified.as_ref().unwrap().top, Path::new("/sys/fs/cgroup/uni fied"));
        assert_eq!(layout.home(Controller::Memory), Some(Home::Legacy));
        assert_eq!(layout.home(Controller::Hugetlb), Some(Home::Unified));
        assert_eq!(layout.home(Controller::Cpuset), None);
        assert_eq!(layout.legacy.len(), 3, "cpu with cpuacct, memory, systemd: {layout:?}");
    }

    #[test]
    fn on_a_v2_machine_everything_is_unified() {
        let line = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        let layout = parse(line, "cpuset cpu io memory hugetlb pids\n");
        assert!(layout.legacy.is_empty());
        assert_eq!(layout.home(Controller::Memory), Some(Home::Unified));
        assert_eq!(layout.home(Controller::Freezer), None);
        assert_eq!(layout.tops().collect::<Vec<_>>(), [Path::new("/sys/fs/cgroup")]);
    }

    proptest! {
        #[test]
        fn any_mountinfo_is_parsed_or_skipped(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Layout::parse(&bytes, |_| Ok(String::new()));
        }

        #[test]
        fn a_mount_point_comes_back_as_it_was(name in "[a-z \\\\\t]{1,20}") {
            let escaped: String = name.bytes().map(|b| match b { b' ' | b'\t' | b'\\' => format!("\\{b:03o}"), b => char::from(b).to_string() }).collect();
            let line = format!("1 2 0:3 / /{escaped} rw - cgroup2 none rw");
            prop_assert_eq!(parse(&line, "").unified.unwrap().top, Path::new("/").join(&name));
        }
    }
}
