//! `LinuxContainerResources` and the domain's [`Resources`]. On the wire zero means unset; here it becomes
//! `None`, and on the way back `None` becomes zero.

use coracle_domain::{HugepageLimit, Refusal, Resources};

use crate::check::{self, Checked};
use crate::v1;

/// The limits in the message that stands at `field`.
pub(crate) fn parse(field: &str, message: &v1::LinuxContainerResources) -> Checked<Resources> {
    let at = |name: &str| format!("{field}.{name}");
    let resources = Resources {
        cpu_period: unsigned(&at("cpu_period"), message.cpu_period)?,
        cpu_quota: set(message.cpu_quota),
        cpu_shares: unsigned(&at("cpu_shares"), message.cpu_shares)?,
        memory_limit: set(message.memory_limit_in_bytes),
        memory_swap_limit: set(message.memory_swap_limit_in_bytes),
        oom_score_adj: oom_score(&at("oom_score_adj"), message.oom_score_adj)?,
        cpuset_cpus: number_list(&at("cpuset_cpus"), &message.cpuset_cpus)?,
        cpuset_mems: number_list(&at("cpuset_mems"), &message.cpuset_mems)?,
        hugepages: message.hugepage_limits.iter().map(|limit| hugepage(&at("hugepage_limits"), limit)).collect::<Checked<_>>()?,
        unified: message.unified.clone(),
    };
    message.unified.iter().try_for_each(|(file, content)| unified(&at("unified"), file, content))?;
    if let (Some(memory @ 0..), Some(swap @ 0..)) = (resources.memory_limit, resources.memory_swap_limit)
        && swap < memory
    {
        let problem = format!("{swap} is less than the memory limit {memory}, which it includes");
        return Err(Refusal::invalid(at("memory_swap_limit_in_bytes"), problem));
    }
    Ok(resources)
}

/// The message that says these limits.
pub(crate) fn message(resources: &Resources) -> v1::LinuxContainerResources {
    let signed = |value: Option<u64>| value.map_or(0, |value| i64::try_from(value).unwrap_or(i64::MAX));
    v1::LinuxContainerResources {
        cpu_period: signed(resources.cpu_period),
        cpu_quota: resources.cpu_quota.unwrap_or_default(),
        cpu_shares: signed(resources.cpu_shares),
        memory_limit_in_bytes: resources.memory_limit.unwrap_or_default(),
        oom_score_adj: i64::from(resources.oom_score_adj),
        cpuset_cpus: resources.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: resources.cpuset_mems.clone().unwrap_or_default(),
        hugepage_limits: resources
            .hugepages
            .iter()
            .map(|HugepageLimit { page_size, limit }| v1::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit.unwrap_or_default(),
    }
}

fn set(value: i64) -> Option<i64> {
    (value != 0).then_some(value)
}

fn unsigned(field: &str, value: i64) -> Checked<Option<u64>> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(Refusal::invalid(field, format!("{value} is negative"))),
    }
}

fn oom_score(field: &str, value: i64) -> Checked<i32> {
    let score = i32::try_from(value).ok().filter(|score| (-1000..=1000).contains(score));
    score.ok_or_else(|| Refusal::invalid(field, format!("{value} is not between -1000 and 1000")))
}

/// The kernel's list format (cpuset(7)): `0-3,7`.
fn number_list(field: &str, list: &str) -> Checked<Option<String>> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|_| !text.starts_with('+'));
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last),
        None => number(part).is_some(),
    };
    match list {
        "" => Ok(None),
        list if list.split(',').all(range) => Ok(Some(list.to_owned())),
        list => Err(Refusal::invalid(field, format!("{list:?} is not a list of numbers and ranges"))),
    }
}

/// A page size names a file of the cgroup, `hugetlb.2MB.max`: a number and a unit.
fn hugepage(field: &str, limit: &v1::HugepageLimit) -> Checked<HugepageLimit> {
    let size = &limit.page_size;
    let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit)).unwrap_or_default();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::invalid(field, format!("{size:?} is not a page size such as \"2MB\"")));
    }
    Ok(HugepageLimit { page_size: size.clone(), limit: limit.limit })
}

/// A file of the cgroup itself, never of another directory.
fn unified(field: &str, file: &str, content: &str) -> Checked<()> {
    let of_controller = file.contains('.') && file.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !of_controller || file.starts_with('.') {
        return Err(Refusal::invalid(field, format!("{file:?} is not the name of a cgroup file such as \"memory.high\"")));
    }
    check::text(field, content).map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn full() -> v1::LinuxContainerResources {
        v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: -998,
            cpuset_cpus: "0-3,7".to_owned(),
            cpuset_mems: "0".to_owned(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 }],
            unified: BTreeMap::from([("memory.high".to_owned(), "50331648".to_owned())]),
            memory_swap_limit_in_bytes: 128 << 20,
        }
    }

    #[test]
    fn limits_come_back_as_they_were_given() {
        assert_eq!(message(&parse("linux", &full()).unwrap()), full());
    }

    #[test]
    fn zero_is_unset() {
        assert_eq!(parse("linux", &v1::LinuxContainerResources::default()), Ok(Resources::default()));
    }

    #[test]
    fn what_no_kernel_takes_is_refused_by_name() {
        type Spoil = fn(&mut v1::LinuxContainerResources);
        let cases: [(&str, Spoil); 11] = [
            ("cpu_period", |r| r.cpu_period = -1),
            ("cpu_shares", |r| r.cpu_shares = -2),
            ("oom_score_adj", |r| r.oom_score_adj = 1001),
            ("cpuset_cpus", |r| r.cpuset_cpus = "0,,1".to_owned()),
            ("cpuset_cpus", |r| r.cpuset_cpus = "3-1".to_owned()),
            ("cpuset_mems", |r| r.cpuset_mems = "0\n1".to_owned()),
            ("hugepage_limits", |r| r.hugepage_limits[0].page_size = "../2MB".to_owned()),
            ("unified", |r| drop(r.unified.insert("../cgroup.procs".to_owned(), "1".to_owned()))),
            ("unified", |r| drop(r.unified.insert("..".to_owned(), "1".to_owned()))),
            ("unified", |r| drop(r.unified.insert("io.max".to_owned(), "1\0".to_owned()))),
            ("memory_swap_limit_in_bytes", |r| r.memory_swap_limit_in_bytes = 1),
        ];
        for (name, spoil) in cases {
            let mut resources = full();
            spoil(&mut resources);
            match parse("linux", &resources) {
                Err(Refusal::Invalid { field, .. }) => assert_eq!(field, format!("linux.{name}")),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn a_cpu_list_of_any_shape_is_taken_or_refused(list in "[0-9,\\-+ ]{0,12}") {
            if let Ok(Some(taken)) = number_list("f", &list) {
                prop_assert!(taken.split(',').all(|part| part.starts_with(|c: char| c.is_ascii_digit())));
            }
        }
    }
}
