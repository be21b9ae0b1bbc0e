//! Capabilities (capabilities(7)): their names and numbers, the set a container starts from, and what its request
//! makes of it.

use std::collections::HashSet;

use coracle_domain::{Refusal, Result, SecurityContext};
use coracle_plan::Capabilities;
use oci_spec::runtime::{Capability, LinuxCapabilities};

/// All capabilities without `CAP_`; the place is the kernel's number (`linux/capability.h`).
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless its request says otherwise: the set all runtimes of Kubernetes share.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const ALL: &str = "ALL";

/// The bit of a capability, named with or without `CAP_`, in any case.
pub fn bit(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|known| *known == name).map(|number| 1 << number)
}

/// The five sets of a container's first process.
///
/// `held` is what the runtime itself has: nobody can be given more. The inheritable set holds what is ambient and no
/// more: anything else there would survive into programs with file capabilities (CVE-2022-24769).
pub(crate) fn sets(security: &SecurityContext, uid: u32, held: u64) -> Result<Capabilities> {
    let ambient = ambient(security, held)?;
    let bounding = if security.privileged { held } else { bounding(security, held)? | ambient };
    // Only root keeps capabilities over execve without their being ambient.
    let own = if uid == 0 { bounding } else { ambient };
    Ok(Capabilities { bounding, effective: own, permitted: own, inheritable: ambient, ambient })
}

/// What survives execve without being root. A capability that is dropped by name is dropped from here too.
fn ambient(security: &SecurityContext, held: u64) -> Result<u64> {
    let changes = &security.capabilities;
    let all = if has_all(&changes.add_ambient) { held } else { 0 };
    let added = all | named(&changes.add_ambient, "add_ambient_capabilities", held)?;
    Ok(added & !named(&changes.drop, "drop_capabilities", u64::MAX)?)
}

/// The default set, changed by "all" first and single names then, additions before drops each time.
fn bounding(security: &SecurityContext, held: u64) -> Result<u64> {
    let mut set = DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |set, bit| set | bit) & held;
    let changes = &security.capabilities;
    if has_all(&changes.add) {
        set = held;
    }
    if has_all(&changes.drop) {
        set = 0;
    }
    set |= named(&changes.add, "add_capabilities", held)?;
    set &= !named(&changes.drop, "drop_capabilities", u64::MAX)?;
    Ok(set)
}

fn has_all(names: &[String]) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case(ALL))
}

/// The capabilities in `names` beside "all". Refused: names nobody knows and those that the runtime lacks.
fn named(names: &[String], field: &str, held: u64) -> Result<u64> {
    let mut set = 0;
    for name in names.iter().filter(|name| !name.eq_ignore_ascii_case(ALL)) {
        let field = format!("linux.security_context.capabilities.{field}");
        let Some(bit) = bit(name) else {
            return Err(Refusal::invalid(field, format!("there is no capability {name:?}")).into());
        };
        if bit & held == 0 {
            return Err(Refusal::unsupported(format!("{field}: {name}, which this runtime itself does not have,")).into());
        }
        set |= bit;
    }
    Ok(set)
}

/// The names of the bits in `set`, in the kernel's order.
pub(crate) fn names(set: u64) -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().enumerate().filter(move |(number, _)| set & (1 << number) != 0).map(|(_, name)| name)
}

/// The sets as the OCI spec writes them.
pub(crate) fn to_oci(sets: &Capabilities) -> LinuxCapabilities {
    let convert = |set| Some(names(set).filter_map(|name| name.parse().ok()).collect::<HashSet<Capability>>());
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(convert(sets.bounding))
        .set_effective(convert(sets.effective))
        .set_permitted(convert(sets.permitted))
        .set_inheritable(convert(sets.inheritable))
        .set_ambient(convert(sets.ambient));
    capabilities
}

/// The sets an OCI spec means.
pub(crate) fn of_oci(capabilities: &LinuxCapabilities) -> Capabilities {
    let convert = |set: &Option<HashSet<Capability>>| {
        set.iter().flatten().filter_map(|capability| bit(&capability.to_string())).fold(0, |set, bit| set | bit)
    };
    Capabilities {
        bounding: convert(capabilities.bounding()),
        effective: convert(capabilities.effective()),
        permitted: convert(capabilities.permitted()),
        inheritable: convert(capabilities.inheritable()),
        ambient: convert(capabilities.ambient()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: u64 = (1 << 41) - 1;

    fn security(add: &[&str], drop: &[&str], ambient: &[&str]) -> SecurityContext {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = coracle_domain::Capabilities { add: owned(add), drop: owned(drop), add_ambient: owned(ambient) };
        SecurityContext { capabilities, ..SecurityContext::default() }
    }

    fn set(names: &[&str]) -> u64 {
        names.iter().map(|name| bit(name).unwrap()).fold(0, |set, bit| set | bit)
    }

    #[test]
    fn names_and_numbers_are_the_kernels() {
        for (name, number) in [("CHOWN", 0), ("NET_RAW", 13), ("SYS_ADMIN", 21), ("SYSLOG", 34), ("CHECKPOINT_RESTORE", 40)] {
            assert_eq!(bit(name), Some(1 << number));
        }
        assert_eq!(bit("cap_kill"), bit("KILL"));
        assert_eq!(bit("ALL"), None);
    }

    #[test]
    fn every_name_survives_the_way_through_the_oci_spec() {
        let all = Capabilities { bounding: EVERY, effective: 1, permitted: 3, inheritable: 0, ambient: 1 << 40 };
        assert_eq!(of_oci(&to_oci(&all)), all);
    }

    #[test]
    fn all_is_what_the_runtime_has_and_single_names_come_after_it() {
        let held = EVERY & !set(&["SYS_RESOURCE"]);
        let bounding = |add: &[&str], drop: &[&str]| sets(&security(add, drop, &[]), 0, held).unwrap().bounding;
        assert_eq!(bounding(&[], &[]), set(&DEFAULT));
        assert_eq!(bounding(&["ALL"], &[]), held);
        assert_eq!(bounding(&["all"], &["NET_RAW"]), held & !set(&["NET_RAW"]));
        assert_eq!(bounding(&[], &["ALL"]), 0);
        assert_eq!(bounding(&["NET_BIND_SERVICE"], &["ALL"]), set(&["NET_BIND_SERVICE"]));
        assert_eq!(bounding(&["SYS_TIME"], &["KILL"]), (set(&DEFAULT) | set(&["SYS_TIME"])) & !set(&["KILL"]));
        assert_eq!(bounding(&["NET_RAW"], &["NET_RAW"]), set(&DEFAULT) & !set(&["NET_RAW"]));
    }

    #[test]
    fn users_other_than_root_have_only_what_is_ambient() {
        let given = sets(&security(&[], &["ALL"], &["NET_BIND_SERVICE"]), 1000, EVERY).unwrap();
        let bind = set(&["NET_BIND_SERVICE"]);
        let expected = Capabilities { bounding: bind, effective: bind, permitted: bind, inheritable: bind, ambient: bind };
        assert_eq!(given, expected);
        let plain = sets(&security(&[], &[], &[]), 1000, EVERY).unwrap();
        assert_eq!(plain, Capabilities { bounding: set(&DEFAULT), ..Capabilities::default() });
    }

    #[test]
    fn ambient_ones_may_be_all_and_are_dropped_by_name() {
        let all = sets(&security(&[], &["ALL"], &["ALL"]), 1000, 0xff).unwrap();
        assert_eq!((all.bounding, all.ambient, all.effective), (0xff, 0xff, 0xff));
        let fewer = sets(&security(&[], &["KILL"], &["KILL", "CHOWN"]), 1000, EVERY).unwrap();
        assert_eq!((fewer.ambient, fewer.bounding & set(&["KILL"])), (set(&["CHOWN"]), 0));
    }

    #[test]
    fn root_inherits_nothing_that_is_not_ambient() {
        let given = sets(&security(&[], &[], &[]), 0, EVERY).unwrap();
        assert_eq!((given.inheritable, given.ambient, given.effective), (0, 0, set(&DEFAULT)));
    }

    #[test]
    fn privileged_is_all_the_runtime_has() {
        let context = SecurityContext { privileged: true, ..security(&[], &["ALL"], &[]) };
        assert_eq!(sets(&context, 0, 0xff).unwrap().bounding, 0xff);
    }

    #[test]
    fn what_cannot_be_given_is_refused_and_what_is_dropped_need_not_be_held() {
        assert!(sets(&security(&["NOPE"], &[], &[]), 0, EVERY).is_err());
        assert!(sets(&security(&[], &["NOPE"], &[]), 0, EVERY).is_err());
        let message = sets(&security(&["SYS_RESOURCE"], &[], &[]), 0, 0xff).unwrap_err().to_string();
        assert!(message.contains("SYS_RESOURCE"), "{message}");
        assert!(sets(&security(&[], &["SYS_RESOURCE"], &[]), 0, 0xff).is_ok());
    }
}
