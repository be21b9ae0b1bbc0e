//! Limits as a list of files and the values to write, in order. Pure: given the layout, the wanted limits
//! and the few present values on which the order depends.

use std::borrow::Cow;
use std::collections::BTreeSet;

use coracle_domain::{HugepageLimit, Refusal, Resources};

use crate::convert::{DEFAULT_PERIOD, DEFAULT_SHARES};
use crate::detect::{Controller, Home, Layout};
use crate::{v1, v2};

/// Which directory a file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The cgroup in the v1 hierarchy of this controller.
    Legacy(Controller),
    /// The cgroup in the unified hierarchy.
    Unified,
}

/// What it means that the kernel has no such file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// The limit cannot be set: say so, with this reason.
    Refused(&'static str),
    /// What the value asks for holds anyway.
    Harmless,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) place: Place,
    pub(crate) file: Cow<'static, str>,
    pub(crate) value: String,
    /// The field of CRI's `LinuxContainerResources` it comes from.
    pub(crate) field: &'static str,
    pub(crate) absent: Absent,
}

impl Setting {
    pub(crate) fn new(place: Place, file: impl Into<Cow<'static, str>>, value: impl ToString, field: &'static str) -> Self {
        let absent = Absent::Refused("the kernel has no such file in this cgroup");
        Self { place, file: file.into(), value: value.to_string(), field, absent }
    }

    pub(crate) fn if_absent(mut self, absent: Absent) -> Self {
        self.absent = absent;
        self
    }

    /// Whether a fresh cgroup has this value without our writing it.
    pub(crate) fn is_default(&self) -> bool {
        match self.file.as_ref() {
            "cpu.shares" => self.value == DEFAULT_SHARES.to_string(),
            "cpu.cfs_period_us" => self.value == DEFAULT_PERIOD.to_string(),
            "cpu.weight" => self.value == "100",
            "cpu.max" => self.value == format!("max {DEFAULT_PERIOD}"),
            "cpu.cfs_quota_us" | "memory.limit_in_bytes" | "memory.memsw.limit_in_bytes" => self.value == "-1",
            "memory.max" | "memory.swap.max" => self.value == "max",
            _ => false,
        }
    }
}

/// The present values that decide in which order new ones can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Present {
    /// v1's `memory.limit_in_bytes`.
    pub(crate) memory_limit: u64,
    /// v1's `cpu.cfs_period_us`.
    pub(crate) period: u64,
}

impl Present {
    /// A fresh cgroup's.
    pub(crate) const FRESH: Self = Self { memory_limit: u64::MAX, period: DEFAULT_PERIOD };
}

/// Everything to write for `limits`, `unified` last.
pub(crate) fn settings(layout: &Layout, limits: &Resources, present: Present) -> Result<Vec<Setting>, Refusal> {
    let mut all = Vec::new();
    if limits.cpu_shares.is_some() || limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
        all.extend(match home(layout, Controller::Cpu, "a limit on cpu")? {
            Home::Legacy => v1::cpu(limits, present),
            Home::Unified => v2::cpu(limits),
        });
    }
    if limits.memory_limit.is_some() || limits.memory_swap_limit.is_some() {
        all.extend(match home(layout, Controller::Memory, "a limit on memory")? {
            Home::Legacy => v1::memory(limits, present)?,
            Home::Unified => v2::memory(limits)?,
        });
    }
    all.extend(cpuset(layout, limits)?);
    for hugepages in &limits.hugepages {
        all.extend(hugetlb(layout, hugepages)?);
    }
    all.extend(unified(layout, limits)?);
    Ok(all)
}

/// The controllers of the unified hierarchy that must be enabled for `settings` to have their files.
pub(crate) fn needed_on_unified(settings: &[Setting]) -> BTreeSet<&str> {
    let on_unified = settings.iter().filter(|setting| setting.place == Place::Unified);
    on_unified.filter_map(|setting| setting.file.split('.').next()).filter(|controller| *controller != "cgroup").collect()
}

fn home(layout: &Layout, controller: Controller, what: &str) -> Result<Home, Refusal> {
    let name = controller.name();
    layout.home(controller).ok_or_else(|| Refusal::unsupported(format!("{what} on a machine without a {name} controller")))
}

fn place(home: Home, controller: Controller) -> Place {
    match home {
        Home::Legacy => Place::Legacy(controller),
        Home::Unified => Place::Unified,
    }
}

/// The same two files on v1 and v2.
fn cpuset(layout: &Layout, limits: &Resources) -> Result<Vec<Setting>, Refusal> {
    let lists = [("cpuset.cpus", &limits.cpuset_cpus, "cpuset_cpus"), ("cpuset.mems", &limits.cpuset_mems, "cpuset_mems")];
    let given = lists.into_iter().filter_map(|(file, list, field)| Some((file, list.as_deref()?, field)));
    given
        .map(|(file, list, field)| {
            let place = place(home(layout, Controller::Cpuset, field)?, Controller::Cpuset);
            Ok(Setting::new(place, file, list, field))
        })
        .collect()
}

/// The limit on pages in use, and the one on pages reserved where the kernel has it (5.7).
///
/// A kubelet sends a limit of zero for every page size the node has: without a controller that is no refusal.
fn hugetlb(layout: &Layout, hugepages: &HugepageLimit) -> Result<Vec<Setting>, Refusal> {
    const FIELD: &str = "hugepage_limits";
    let size = &hugepages.page_size;
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Refusal::invalid(FIELD, format!("{size:?} is no page size")));
    }
    if hugepages.limit == 0 && layout.home(Controller::Hugetlb).is_none() {
        return Ok(Vec::new());
    }
    let home = home(layout, Controller::Hugetlb, FIELD)?;
    let suffix = match home {
        Home::Legacy => "limit_in_bytes",
        Home::Unified => "max",
    };
    let setting = |file: String| Setting::new(place(home, Controller::Hugetlb), file, hugepages.limit, FIELD);
    Ok(vec![setting(format!("hugetlb.{size}.{suffix}")), setting(format!("hugetlb.{size}.rsvd.{suffix}")).if_absent(Absent::Harmless)])
}

/// `unified`, verbatim: one write a line, for files like `io.max` that take one line at a time.
fn unified(layout: &Layout, limits: &Resources) -> Result<Vec<Setting>, Refusal> {
    let mut all = Vec::new();
    for (file, value) in &limits.unified {
        check_unified(layout, file)?;
        let lines: Vec<&str> = if value.is_empty() { vec![""] } else { value.lines().collect() };
        all.extend(lines.into_iter().map(|line| Setting::new(Place::Unified, file.clone(), line, "unified")));
    }
    Ok(all)
}

/// A file that v2 alone has cannot be honoured by a v1 controller. It is refused and not dropped: the
/// caller asked for a guarantee (`memory.min`) that would silently not hold.
fn check_unified(layout: &Layout, file: &str) -> Result<(), Refusal> {
    let controller = match file.split_once('.') {
        Some((controller, rest)) if !controller.is_empty() && !rest.is_empty() && !file.contains(['/', '\0']) => controller,
        _ => {
            return Err(Refusal::invalid("unified", format!("{file:?} is not of the form controller.parameter")));
        }
    };
    if controller == "cgroup" {
        // The others (procs, kill, freeze, type, subtree_control) are no limits, and ours to write.
        let is_limit = matches!(file, "cgroup.max.depth" | "cgroup.max.descendants");
        return if is_limit && layout.unified.is_some() {
            Ok(())
        } else {
            Err(Refusal::invalid("unified", format!("{file:?} is no limit")))
        };
    }
    if layout.offers(controller) {
        return Ok(());
    }
    Err(Refusal::unsupported(format!("unified {file:?} on a machine whose cgroup v2 hierarchy has no {controller} controller")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::detect::{Legacy, Unified};

    pub(crate) fn pure_v2() -> Layout {
        let controllers = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"].map(str::to_owned).into();
        Layout { legacy: Vec::new(), unified: Some(Unified { top: "/cg".into(), controllers }) }
    }

    pub(crate) fn hybrid() -> Layout {
        use Controller::*;
        let legacy = [Cpu, Cpuacct, Cpuset, Memory, Pids, Devices, Freezer];
        let legacy = legacy.map(|controller| Legacy { top: format!("/cg/{}", controller.name()).into(), controllers: vec![controller] });
        let unified = Some(Unified { top: "/cg/unified".into(), controllers: ["hugetlb".to_owned()].into() });
        Layout { legacy: legacy.into(), unified }
    }

    fn lines(layout: &Layout, limits: &Resources) -> Vec<String> {
        settings(layout, limits, Present::FRESH).unwrap().iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
    }

    fn full() -> Resources {
        Resources {
            cpu_period: Some(100_000),
            cpu_quota: Some(50_000),
            cpu_shares: Some(512),
            memory_limit: Some(1 << 20),
            memory_swap_limit: Some(3 << 20),
            cpuset_cpus: Some("0-1".into()),
            cpuset_mems: Some("0".into()),
            hugepages: vec![HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
            ..Resources::default()
        }
    }

    #[test]
    fn every_limit_has_its_file_on_v2() {
        let mut limits = full();
        limits.unified = [("memory.high".into(), "900000".into()), ("io.max".into(), "8:0 rbps=1\n8:16 rbps=2".into())].into();
        let expected = [
            "cpu.weight=59",
            "cpu.max=50000 100000",
            "memory.swap.max=2097152",
            "memory.max=1048576",
            "cpuset.cpus=0-1",
            "cpuset.mems=0",
            "hugetlb.2MB.max=4194304",
            "hugetlb.2MB.rsvd.max=4194304",
            "io.max=8:0 rbps=1",
            "io.max=8:16 rbps=2",
            "memory.high=900000",
        ];
        assert_eq!(lines(&pure_v2(), &limits), expected);
        let settings = settings(&pure_v2(), &limits, Present::FRESH).unwrap();
        assert_eq!(needed_on_unified(&settings), ["cpu", "cpuset", "hugetlb", "io", "memory"].into());
    }

    #[test]
    fn on_a_hybrid_machine_each_limit_goes_to_its_controllers_home() {
        let expected = [
            "cpu.shares=512",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=50000",
            "memory.limit_in_bytes=1048576",
            "memory.memsw.limit_in_bytes=3145728",
            "cpuset.cpus=0-1",
            "cpuset.mems=0",
            "hugetlb.2MB.max=4194304",
            "hugetlb.2MB.rsvd.max=4194304",
        ];
        assert_eq!(lines(&hybrid(), &full()), expected);
    }

    #[test]
    fn what_the_machine_cannot_do_is_refused_and_not_dropped() {
        let unified = |file: &str| Resources { unified: [(file.to_owned(), "1".to_owned())].into(), ..Resources::default() };
        let refusal = |layout: &Layout, limits: &Resources| settings(layout, limits, Present::FRESH).unwrap_err();
        assert!(matches!(refusal(&hybrid(), &unified("memory.min")), Refusal::Unsupported { .. }));
        assert!(settings(&pure_v2(), &unified("memory.min"), Present::FRESH).is_ok());
        for bad in ["memory", "../memory.max", "cgroup.kill", "cgroup.procs", ".max", ""] {
            assert!(matches!(refusal(&pure_v2(), &unified(bad)), Refusal::Invalid { .. }), "{bad}");
        }
        let page = |page_size: &str, limit| Resources {
            hugepages: vec![HugepageLimit { page_size: page_size.into(), limit }],
            ..Resources::default()
        };
        assert!(matches!(refusal(&pure_v2(), &page("../2MB", 1)), Refusal::Invalid { .. }));
        let without = Layout { unified: None, ..hybrid() };
        assert!(matches!(refusal(&without, &page("2MB", 1)), Refusal::Unsupported { .. }));
        assert!(lines(&without, &page("2MB", 0)).is_empty());
    }

    #[test]
    fn defaults_need_no_write_in_a_fresh_cgroup() {
        let limits = Resources {
            cpu_shares: Some(1024),
            cpu_period: Some(100_000),
            cpu_quota: Some(-1),
            memory_limit: Some(-1),
            ..Resources::default()
        };
        for layout in [pure_v2(), hybrid()] {
            let all = settings(&layout, &limits, Present::FRESH).unwrap();
            assert!(!all.is_empty() && all.iter().all(Setting::is_default), "{all:?}");
        }
    }
}
