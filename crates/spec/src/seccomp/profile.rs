//! Profiles from files (`Localhost`): the OCI runtime spec's `linux.seccomp`, and Docker's dialect of it, in which a
//! rule may depend on capabilities, architecture and kernel (`includes`, `excludes`) and `archMap` lists architectures
//! by the native one. What a rule's conditions rule out is dropped here; what remains is plain OCI.

use coracle_domain::{Refusal, Result};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall};
use serde::Deserialize;

use crate::capabilities;

/// The largest profile that is looked into, bytes.
pub const LARGEST_PROFILE: usize = 4 << 20;

/// The kernel's limit on arguments of a system call.
const MOST_ARGUMENTS: usize = 6;

/// What conditions are checked against.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings {
    /// The container's bounding set.
    pub capabilities: u64,
    /// The kernel's version, major and minor.
    pub kernel: (u32, u32),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Conditions>,
    excludes: Option<Conditions>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads a profile. Refused: what is no profile, and rules that want a listener, which there is none to offer.
pub fn parse(json: &[u8], surroundings: Surroundings) -> Result<LinuxSeccomp> {
    if json.len() > LARGEST_PROFILE {
        return Err(refusal(format!("the profile is larger than {LARGEST_PROFILE} bytes")).into());
    }
    let document: Document = serde_json::from_slice(json).map_err(|error| refusal(format!("the profile is malformed: {error}")))?;
    let rules: Vec<LinuxSyscall> =
        document.syscalls.into_iter().flatten().filter(|rule| rule.applies(surroundings)).map(Rule::into_oci).collect::<Result<_>>()?;
    let notifies = rules.iter().any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    if notifies || document.default_action == LinuxSeccompAction::ScmpActNotify || document.listener_path.is_some() {
        return Err(Refusal::unsupported("a seccomp profile with a listener (SCMP_ACT_NOTIFY)").into());
    }
    let architectures = document.architectures.or_else(|| document.arch_map.and_then(of_this_machine));
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(document.default_action)
        .set_default_errno_ret(document.default_errno_ret)
        .set_architectures(architectures)
        .set_flags(document.flags)
        .set_syscalls(Some(rules));
    Ok(profile)
}

pub(super) fn refusal(problem: String) -> Refusal {
    Refusal::invalid("linux.security_context.seccomp", problem)
}

fn of_this_machine(map: Vec<ArchMap>) -> Option<Vec<Arch>> {
    let native = if cfg!(target_arch = "aarch64") { Arch::ScmpArchAarch64 } else { Arch::ScmpArchX86_64 };
    let entry = map.into_iter().find(|entry| entry.architecture == native)?;
    Some([entry.architecture].into_iter().chain(entry.sub_architectures.into_iter().flatten()).collect())
}

impl Rule {
    /// Included by all that `includes` asks for, excluded by any that `excludes` names.
    fn applies(&self, surroundings: Surroundings) -> bool {
        let included = self.includes.as_ref().is_none_or(|conditions| {
            conditions.caps.iter().flatten().all(|name| held(name, surroundings))
                && conditions.arches.as_ref().is_none_or(|arches| arches.is_empty() || arches.iter().any(|arch| is_this_machine(arch)))
                && conditions.min_kernel.as_deref().is_none_or(|version| at_least(version, surroundings))
        });
        let excluded = self.excludes.as_ref().is_some_and(|conditions| {
            conditions.caps.iter().flatten().any(|name| held(name, surroundings))
                || conditions.arches.iter().flatten().any(|arch| is_this_machine(arch))
                || conditions.min_kernel.as_deref().is_some_and(|version| at_least(version, surroundings))
        });
        included && !excluded
    }

    fn into_oci(self) -> Result<LinuxSyscall> {
        let names: Vec<String> = self.name.into_iter().chain(self.names.into_iter().flatten()).collect();
        if names.is_empty() {
            return Err(refusal("a rule of the profile names no system call".to_owned()).into());
        }
        if self.args.iter().flatten().any(|argument| argument.index() >= MOST_ARGUMENTS) {
            return Err(refusal(format!("a rule on {} compares an argument beyond the sixth", names.join(", "))).into());
        }
        let mut rule = LinuxSyscall::default();
        rule.set_names(names).set_action(self.action).set_errno_ret(self.errno_ret).set_args(self.args);
        Ok(rule)
    }
}

fn held(name: &str, surroundings: Surroundings) -> bool {
    capabilities::bit(name).is_some_and(|bit| surroundings.capabilities & bit != 0)
}

/// Docker writes architectures as Go does.
fn is_this_machine(arch: &str) -> bool {
    match arch {
        "amd64" | "x86_64" | "SCMP_ARCH_X86_64" => cfg!(target_arch = "x86_64"),
        "arm64" | "aarch64" | "SCMP_ARCH_AARCH64" => cfg!(target_arch = "aarch64"),
        "riscv64" | "SCMP_ARCH_RISCV64" => cfg!(target_arch = "riscv64"),
        _ => false,
    }
}

fn at_least(version: &str, surroundings: Surroundings) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
    surroundings.kernel >= (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: Surroundings = Surroundings { capabilities: 1 << 21, kernel: (6, 12) };

    fn names(json: &str, surroundings: Surroundings) -> Vec<String> {
        let profile = parse(json.as_bytes(), surroundings).unwrap();
        profile.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect()
    }

    #[test]
    fn an_oci_profile_is_read_as_it_is() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
            "flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
        let profile = parse(json.as_bytes(), HERE).unwrap();
        assert_eq!(profile.default_errno_ret(), Some(38));
        assert_eq!(profile.architectures().as_ref().map(Vec::len), Some(2));
        let argument = profile.syscalls().as_ref().unwrap()[1].args().as_ref().unwrap()[0];
        assert_eq!((argument.value(), argument.value_two()), (2_114_060_288, Some(0)));
        assert_eq!(serde_json::from_value::<LinuxSeccomp>(serde_json::from_str(json).unwrap()).unwrap(), profile);
    }

    #[test]
    fn dockers_conditions_choose_the_rules() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
            {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}],"syscalls":[
            {"name":"read","action":"SCMP_ACT_ALLOW"},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
            {"names":["swapcontext"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["ppc64le"]}},
            {"names":["arch_prctl"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64","arm64"]}}]}"#;
        assert_eq!(names(json, HERE), ["read", "mount", "ptrace", "arch_prctl"]);
        let elsewhere = Surroundings { capabilities: 0, kernel: (4, 4) };
        assert_eq!(names(json, elsewhere), ["read", "clone3", "arch_prctl"]);
        assert_eq!(parse(json.as_bytes(), HERE).unwrap().architectures().as_ref().map(Vec::len), Some(2));
    }

    #[test]
    fn what_is_no_profile_or_needs_a_listener_is_refused() {
        let bad = [
            "",
            "{}",
            r#"{"defaultAction":"SCMP_ACT_NOPE"}"#,
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["kill"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[],"action":"SCMP_ACT_ERRNO"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["kill"],"action":"SCMP_ACT_ERRNO",
                "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
        ];
        for json in bad {
            assert!(parse(json.as_bytes(), HERE).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(json: Vec<u8>) {
            let _ = parse(&json, HERE);
        }

        #[test]
        fn anything_like_a_profile_is_read_or_refused(
            action in "SCMP_ACT_(ALLOW|ERRNO|KILL|LOG|TRACE)", names in "\"[a-z_]{0,9}\"(,\"[a-z0-9]{0,70}\")?",
            index in 0u64..9, value: u64, operator in "SCMP_CMP_(EQ|NE|LT|MASKED_EQ)", version in "[0-9.x]{0,9}",
        ) {
            let json = format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":[{names}],"action":"{action}","errnoRet":7,
                "args":[{{"index":{index},"value":{value},"op":"{operator}"}}],"includes":{{"minKernel":"{version}"}}}}]}}"#
            );
            if let Ok(profile) = parse(json.as_bytes(), HERE) {
                let _ = super::super::compile::compile(&profile);
            }
        }
    }
}
