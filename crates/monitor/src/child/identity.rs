//! Who the process is and what it may do: processors, limits, capabilities, groups, user, no_new_privs.
//!
//! Capabilities that the monitor does not have itself cannot be given; "all" means all there are. The order is the
//! kernel's: bounding capabilities while there is CAP_SETPCAP, groups before the user, ambient ones last.

use coracle_plan::{Capabilities, Process, User, UserNamespace};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fstat, open};
use rustix::io::{Errno, write};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::fault::{OrFault, Result};

const SETTING_CAPABILITIES: &str = "setting the capabilities of";

/// What needs the node's /proc and its root user, while these are in reach, and the process's cgroups.
pub(crate) fn prepare(process: &Process, user_namespace: Option<&UserNamespace>) -> Result<()> {
    // Those of the daemon (`CPUAffinity=` of its unit) are not the container's: its cgroup says which are. Where that cannot be
    // had, it runs on fewer.
    let _ = coracle_sys::process::use_all_processors();
    let uid = process.user.uid;
    let on_node = user_namespace.map_or(Some(uid), |namespace| namespace.uids.to_host(uid));
    own_streams(on_node.ok_or(Errno::INVAL).or_fault("finding, in the pod's user namespace, user", uid)?)?;
    if let Some(adjustment) = process.oom_score_adj {
        match write_file("/proc/self/oom_score_adj", &adjustment.to_string()) {
            // Less than the monitor's own value needs CAP_SYS_RESOURCE, which a machine may not give.
            Err(Errno::ACCESS | Errno::PERM) => {}
            done => done.or_fault("setting the OOM score to", adjustment)?,
        }
    }
    if let Some(profile) = &process.apparmor {
        let command = format!("exec {profile}");
        let done = match write_file("/proc/self/attr/apparmor/exec", &command) {
            Err(Errno::NOENT) => write_file("/proc/self/attr/exec", &command),
            done => done,
        };
        done.or_fault("choosing the AppArmor profile", profile)?;
    }
    if let Some(label) = &process.selinux {
        for file in ["/proc/self/attr/exec", "/proc/self/attr/keycreate"] {
            write_file(file, label).or_fault("choosing the SELinux label", label)?;
        }
    }
    join_keyring()
}

/// Leaves the session keyring that was handed down from the daemon, whose keys are not the container's.
fn join_keyring() -> Result<()> {
    match coracle_sys::keyring::join_new_session() {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOSYS) => Ok(()),
        done => done.or_fault("making", "a session keyring"),
    }
}

fn write_file(path: &str, content: &str) -> std::result::Result<(), Errno> {
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    write(file, content.as_bytes()).map(drop)
}

/// Sets the resource limits.
pub(crate) fn limit(process: &Process) -> Result<()> {
    for limit in &process.rlimits {
        coracle_sys::process::set_limit(limit.resource, limit.soft, limit.hard)
            .or_fault("setting the resource limit", format_args!("{} to {}:{}", limit.resource, limit.soft, limit.hard))?;
    }
    Ok(())
}

/// Lets the user open again, through /proc/self/fd, the pipes that are its standard streams. `uid` is the node's.
fn own_streams(uid: u32) -> Result<()> {
    for stream in [stdin(), stdout(), stderr()] {
        let kind = fstat(stream).map(|stat| FileType::from_raw_mode(stat.st_mode));
        if matches!(kind, Ok(FileType::Fifo)) && uid != 0 {
            fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>).or_fault("giving standard streams to user", uid)?;
        }
    }
    Ok(())
}

/// Becomes the user, with the capabilities. CAP_SYS_ADMIN stays in force until execve where the system call filter
/// needs it; execve takes it away, as the bounding and ambient sets decide what comes after.
pub(crate) fn assume(process: &Process) -> Result<()> {
    let subject = process.user.uid;
    let own = capabilities(None).or_fault("reading the capabilities of", "this process")?.permitted.bits();
    drop_bounding(process.capabilities.bounding).or_fault("dropping capabilities of", subject)?;
    set_keep_capabilities(true).or_fault(SETTING_CAPABILITIES, subject)?;
    become_user(&process.user)?;
    let to_load = if has_to_load(process) { CapabilitySet::SYS_ADMIN.bits() } else { 0 };
    set_sets(&process.capabilities, to_load, own).or_fault(SETTING_CAPABILITIES, subject)?;
    set_keep_capabilities(false).or_fault(SETTING_CAPABILITIES, subject)?;
    if process.no_new_privileges {
        set_no_new_privs(true).or_fault("forbidding new privileges to", subject)?;
    }
    Ok(())
}

/// Whether its system call filter can only be loaded with CAP_SYS_ADMIN.
fn has_to_load(process: &Process) -> bool {
    process.seccomp.is_some() && !process.no_new_privileges
}

/// Does what execve would: takes away the capability that the filter needed.
pub(crate) fn give_up_loading(process: &Process) -> Result<()> {
    if !has_to_load(process) {
        return Ok(());
    }
    let own = capabilities(None).or_fault("reading the capabilities of", "this process")?.permitted.bits();
    set_sets(&process.capabilities, 0, own).or_fault(SETTING_CAPABILITIES, process.user.uid)
}

/// Changes user and groups, and nothing else.
pub(crate) fn become_user(user: &User) -> Result<()> {
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    set_thread_groups(&groups).or_fault("setting the supplementary groups of", user.uid)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).or_fault("becoming group", user.gid)?;
    set_thread_res_uid(uid, uid, uid).or_fault("becoming user", user.uid)
}

/// Gives up every capability outside `mask`, for good.
pub(crate) fn drop_bounding(mask: u64) -> std::result::Result<(), Errno> {
    for number in 0..u64::BITS {
        if mask & (1 << number) != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            // Past the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            done => done?,
        }
    }
    Ok(())
}

fn set_sets(wanted: &Capabilities, extra: u64, own: u64) -> std::result::Result<(), Errno> {
    let set = |bits: u64| CapabilitySet::from_bits_retain(bits & own);
    set_capabilities(
        None,
        CapabilitySets {
            effective: set(wanted.effective | extra),
            permitted: set(wanted.permitted | wanted.effective | extra),
            inheritable: set(wanted.inheritable),
        },
    )?;
    clear_ambient_capability_set()?;
    let ambient = wanted.ambient & wanted.permitted & wanted.inheritable & own;
    for number in (0..u64::BITS).filter(|number| ambient & (1 << number) != 0) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true)?;
    }
    Ok(())
}
