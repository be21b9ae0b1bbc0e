//! The profile that `RuntimeDefault` stands for: a list of what is allowed, with everything else answered by EPERM.
//!
//! It says what the current default profiles of the field say (moby's and containerd's, mid-2026), so that a workload
//! finds the same system calls here as elsewhere: calls that need no privilege; calls that a capability opens, if the
//! container has it; no new namespaces and no `clone3` (whose flags a filter cannot see) without CAP_SYS_ADMIN; no
//! AF_ALG or AF_VSOCK sockets; of `personality` only the harmless values. Linux 4.8 or newer is taken for granted.

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall};

use crate::capabilities;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The flags of clone(2) that make namespaces: mount, cgroup, UTS, IPC, user, pid, network.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Allowed to all, whatever the arguments.
const ALWAYS: &str = "
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime clock_adjtime64
clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect
copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark
fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr
fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid
geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr
getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek lremovexattr
lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create
memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync
munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal
pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease
process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat
readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2
restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg
sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync
sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill
truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4
waitid waitpid write writev";

/// Those of this architecture alone.
const OF_ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "arch_prctl modify_ldt"
} else if cfg!(target_arch = "aarch64") {
    "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"
} else if cfg!(target_arch = "riscv64") {
    "riscv_flush_icache riscv_hwprobe"
} else {
    ""
};

/// What a capability opens.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
         lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname \
         setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module init_module finit_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "iopl ioperm"),
    ("SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// `personality` values: Linux, Linux without address randomisation… of 32 bits each, and "what is it now?".
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The address families AF_ALG and AF_VSOCK, of which the kernel's bugs are many and the users few.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// The last one there is, AF_MCTP.
const LAST_FAMILY: u64 = 45;

/// The capabilities that make a difference to the profile.
pub(super) fn relevant(capabilities: u64) -> u64 {
    BY_CAPABILITY.iter().filter_map(|(name, _)| capabilities::bit(name)).fold(0, |mask, bit| mask | bit) & capabilities
}

/// The profile for a container whose bounding set is `capabilities`.
pub fn default_profile(capabilities: u64) -> LinuxSeccomp {
    let has = |name| capabilities::bit(name).is_some_and(|bit| capabilities & bit != 0);
    let mut rules = vec![allow(ALWAYS), allow(OF_ARCHITECTURE)];
    // One comparison each: two on the same argument would mean either, not both. And none for "greater": the filter compares
    // 64 bits, of which the kernel takes 32.
    rules.push(allow_if("socket", LinuxSeccompOperator::ScmpCmpLt, AF_ALG, None));
    for family in (AF_ALG + 1..=LAST_FAMILY).filter(|family| *family != AF_VSOCK) {
        rules.push(allow_if("socket", LinuxSeccompOperator::ScmpCmpEq, family, None));
    }
    for value in PERSONALITIES {
        rules.push(allow_if("personality", LinuxSeccompOperator::ScmpCmpEq, value, None));
    }
    rules.extend(BY_CAPABILITY.iter().filter(|(name, _)| has(name)).map(|(_, calls)| allow(calls)));
    if !has("SYS_ADMIN") {
        rules.push(allow_if("clone", LinuxSeccompOperator::ScmpCmpMaskedEq, CLONE_NAMESPACES, Some(0)));
        // Not EPERM: C libraries take ENOSYS as "use clone", whose flags can be seen.
        let mut clone3 = rule("clone3", LinuxSeccompAction::ScmpActErrno);
        clone3.set_errno_ret(Some(ENOSYS));
        rules.push(clone3);
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(architectures()))
        .set_syscalls(Some(rules));
    profile
}

/// x32 is left out: kernels have it switched off, and it would make the filter, which the kernel takes in anew for every
/// container and exec, half as long again. Its calls are answered as such a kernel answers them, with ENOSYS.
fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86]
    } else if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchNative]
    }
}

fn rule(names: &str, action: LinuxSeccompAction) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.split_whitespace().map(str::to_owned).collect()).set_action(action);
    rule
}

fn allow(names: &str) -> LinuxSyscall {
    rule(names, LinuxSeccompAction::ScmpActAllow)
}

/// Allows `name` if its first argument compares so; of a masked comparison `value` is the mask.
fn allow_if(name: &str, operator: LinuxSeccompOperator, value: u64, value_two: Option<u64>) -> LinuxSyscall {
    let argument = LinuxSeccompArgBuilder::default().index(0_usize).op(operator).value(value);
    let argument = match value_two {
        Some(two) => argument.value_two(two),
        None => argument,
    };
    let mut rule = allow(name);
    // Every field has a default, so that this cannot fail; and if it did, nothing would be allowed that is not harmless.
    rule.set_args(Some(vec![argument.build().unwrap_or_default()]));
    rule
}
