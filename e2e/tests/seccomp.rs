//! System call filters: which profile a container gets, what each of its actions does, which calls are closed to all, and that no
//! gate leads around them.

use std::fs;

use coracle_e2e::api::SecurityProfile;
use coracle_e2e::api::security_profile::ProfileType;
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::program::{self, Gate, one_call};
use coracle_e2e::{Code, ContainerSpec, Node, profile};
use serde_json::{Value, json};

#[tokio::test]
async fn system_calls_are_filtered_by_the_profile() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("seccomp").await;
    let filter = "grep ^Seccomp: /proc/self/status | tr -dc 0-9";
    let standard = pod.start(&ContainerSpec::new("standard", &image)).await;
    assert_eq!(standard.shell(filter).await, "2", "an exec is filtered too");
    let unshare = standard.exec(&["/bin/unshare", "-U", "/bin/true"]).await;
    assert!(unshare.stderr.contains("not permitted"), "{unshare:?}");
    assert_ne!(standard.exec(&["/bin/mount", "-t", "tmpfs", "none", "/tmp"]).await.code, 0);
    let open = pod.start(&ContainerSpec::new("open", &image).security(|s| s.seccomp = profile(ProfileType::Unconfined, ""))).await;
    assert_eq!(open.shell(filter).await, "0");
    let absent = pod.start(&ContainerSpec::new("absent", &image).security(|s| s.seccomp = None)).await;
    assert_eq!(absent.shell(filter).await, "0", "no profile is no confinement");
    let file = node.scratch().join("no-mkdir.json");
    let rules = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30 }],
    });
    fs::write(&file, rules.to_string()).expect("writing a profile");
    let local = profile(ProfileType::Localhost, &file.to_string_lossy());
    let local = pod.start(&ContainerSpec::new("local", &image).security(|s| s.seccomp = local)).await;
    assert!(local.exec(&["/bin/mkdir", "/tmp/x"]).await.stderr.contains("Read-only file system"), "the profile's own errno is returned");
    assert_eq!(local.exec(&["/bin/touch", "/tmp/x"]).await.code, 0);
    node.finish().await;
}

/// Writes a profile and refers to it.
fn local_profile(node: &Node, name: &str, content: &str) -> Option<SecurityProfile> {
    let file = node.scratch().join(name);
    fs::write(&file, content).expect("writing a profile");
    profile(ProfileType::Localhost, &file.to_string_lossy())
}

#[tokio::test]
async fn the_deprecated_seccomp_field_is_understood() {
    let node = Node::start().await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let pod = node.pod("deprecated").await;
    let rules =
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 42 }] });
    let file = local_profile(&node, "local.json", &rules.to_string()).expect("a profile").localhost_ref;
    let cases = [("", "0"), ("unconfined", "0"), ("runtime/default", "2"), ("docker/default", "2"), (&format!("localhost/{file}"), "2")];
    #[allow(deprecated)]
    let spec = |name: &str, path: &str| {
        ContainerSpec::new(name, &image).security(|s| {
            s.seccomp = None;
            s.seccomp_profile_path = path.to_owned();
        })
    };
    for (index, (path, expected)) in cases.into_iter().enumerate() {
        let script = "grep ^Seccomp: /proc/self/status | tr -dc 0-9; mkdir /tmp/x 2>&1 | grep -o 'No message' || true";
        let (status, text) = pod.run(&spec(&format!("c{index}"), path).script(script)).await;
        let expected = if path.starts_with("localhost/") { "2No message" } else { expected };
        assert_eq!((status.exit_code, text.as_str()), (0, expected), "{path:?}");
    }
    node.refused(pod.try_create(&spec("unknown", "the/best")).await, Code::InvalidArgument, "the/best");
    node.finish().await;
}

#[tokio::test]
async fn profiles_that_cannot_be_used_are_refused_when_the_container_is_created() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("unusable").await;
    let refused = async |name: &str, seccomp: Option<SecurityProfile>, code: Code, subject: &str| {
        let spec = ContainerSpec::new(name, &image).security(|s| s.seccomp = seccomp);
        node.refused(pod.try_create(&spec).await, code, subject);
    };
    refused("missing", profile(ProfileType::Localhost, "/no/such/file.json"), Code::InvalidArgument, "/no/such/file.json").await;
    refused("relative", profile(ProfileType::Localhost, "file.json"), Code::InvalidArgument, "file.json").await;
    refused("nameless", profile(ProfileType::Localhost, ""), Code::InvalidArgument, "localhost_ref").await;
    refused("directory", profile(ProfileType::Localhost, "/etc"), Code::InvalidArgument, "regular file").await;
    refused("endless", profile(ProfileType::Localhost, "/dev/zero"), Code::InvalidArgument, "regular file").await;
    refused("garbage", local_profile(&node, "garbage", "{ no profile"), Code::InvalidArgument, "malformed").await;
    let action =
        |action: &str| json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": action }] }).to_string();
    refused("action", local_profile(&node, "action", &action("SCMP_ACT_PANIC")), Code::InvalidArgument, "SCMP_ACT_PANIC").await;
    refused("notify", local_profile(&node, "notify", &action("SCMP_ACT_NOTIFY")), Code::Unimplemented, "SCMP_ACT_NOTIFY").await;
    let errno = json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 100_000 }).to_string();
    refused("errno", local_profile(&node, "errno", &errno), Code::InvalidArgument, "100000").await;
    node.finish().await;
}

/// The profile that allows everything but what `rules` say.
fn rules(rules: Value) -> String {
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": rules }).to_string()
}

#[tokio::test]
async fn every_action_of_a_profile_is_taken() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("actions").await;
    let run = async |name: &str, rule: Value, script: &str| {
        let seccomp = local_profile(&node, name, &rules(json!([rule])));
        let container = pod.start(&ContainerSpec::new(name, &image).security(|s| s.seccomp = seccomp)).await;
        container.exec(&["/bin/sh", "-c", script]).await
    };
    let mkdir = |action: &str| json!({ "names": ["mkdir", "mkdirat"], "action": action });
    assert_eq!(run("log", mkdir("SCMP_ACT_LOG"), "mkdir /tmp/x").await.code, 0);
    assert!(run("trace", mkdir("SCMP_ACT_TRACE"), "mkdir /tmp/x").await.stderr.contains("not implemented"), "nobody traces it");
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"] {
        assert_eq!(run(action, mkdir(action), "mkdir /tmp/x").await.code, 128 + 31, "{action}: killed by SIGSYS");
    }
    // Modes are the second argument: no directory that its group may write to.
    let shared = json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30,
        "args": [{ "index": 1, "value": 0o020, "valueTwo": 0o020, "op": "SCMP_CMP_MASKED_EQ" }] });
    let made = run("arguments", shared, "umask 0; mkdir -m 700 /tmp/x && echo made; busybox mkdir -m 770 /tmp/y; mkdir /tmp/z").await;
    assert!(made.stdout == "made" || made.stderr.contains("Read-only"), "{made:?}");
    assert!(made.stderr.contains("Read-only"), "{made:?}");
    node.finish().await;
}

#[tokio::test]
async fn capabilities_open_the_calls_they_are_for() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("capable").await;
    let with = |name: &str, capability: &str| ContainerSpec::new(name, &image).capability(capability);
    let admin = pod.start(&with("admin", "SYS_ADMIN")).await;
    assert_eq!(admin.shell("grep ^Seccomp: /proc/self/status | tr -dc 0-9").await, "2");
    admin.shell("mount -t tmpfs none /tmp && umount /tmp && unshare -m true && unshare -U true && hostname changed").await;
    let modest = pod.start(&with("modest", "SYS_TIME")).await;
    for script in ["mount -t tmpfs none /tmp", "unshare -m true", "unshare -U true", "hostname changed"] {
        assert_ne!(modest.exec(&["/bin/sh", "-c", script]).await.code, 0, "{script}");
    }
    node.finish().await;
}

#[tokio::test]
async fn no_gate_leads_around_the_filter() {
    let node = Node::start().await;
    if !program::AVAILABLE {
        return node.finish().await;
    }
    const NEW_USER_NAMESPACE: u32 = 0x1000_0000;
    let programs = Layer::new()
        .file("bin/native", 0o755, &one_call(Gate::Native, 272, NEW_USER_NAMESPACE)) // unshare
        .file("bin/compat", 0o755, &one_call(Gate::Compat, 310, NEW_USER_NAMESPACE)) // the same in 32 bits
        .file("bin/x32", 0o755, &one_call(Gate::Native, 0x4000_0000 | 272, NEW_USER_NAMESPACE))
        .file("bin/harmless", 0o755, &one_call(Gate::Compat, 20, 0)) // getpid in 32 bits
        .file("bin/future", 0o755, &one_call(Gate::Native, 999, 0));
    let image = node.pull("gates", &Image::busybox().layer(&programs.into_tar(), Compression::Plain)).await;
    let pod = node.pod("gates").await;
    let start = async |name: &str, seccomp| pod.start(&ContainerSpec::new(name, &image).security(|s| s.seccomp = seccomp)).await;
    let code = async |container: &coracle_e2e::Container, program: &str| container.exec(&[&format!("/bin/{program}")]).await.code;
    const EPERM: i32 = 1;
    const ENOSYS: i32 = 38;

    let open = start("open", None).await;
    assert_eq!((code(&open, "native").await, code(&open, "future").await), (0, ENOSYS));
    // A kernel without 32 bits answers `int 0x80` with a signal; user-mode Linux takes the number for one of 64 bits, where
    // this one writes nothing and says so.
    let compat = code(&open, "compat").await == 0 && code(&open, "harmless").await != 0;

    let standard = start("standard", profile(ProfileType::RuntimeDefault, "")).await;
    assert_eq!(code(&standard, "native").await, EPERM);
    assert_eq!(code(&standard, "x32").await, ENOSYS);
    assert_eq!(code(&standard, "future").await, ENOSYS, "a program may fall back from a call that nobody knows yet");
    if compat {
        assert_eq!(code(&standard, "compat").await, EPERM);
        assert_ne!(code(&standard, "harmless").await, EPERM, "32 bits are not closed as such");
    }

    let denied = json!([{ "names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 }]);
    let both = start("both", local_profile(&node, "both", &rules(denied.clone()))).await;
    assert_eq!(code(&both, "native").await, 13);
    if compat {
        assert_eq!(code(&both, "compat").await, 13, "the profile names both architectures");
    }
    let one = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": denied }).to_string();
    let native = start("native", local_profile(&node, "one", &one)).await;
    assert_eq!(code(&native, "native").await, 13);
    for around in ["x32"].into_iter().chain(compat.then_some("compat")) {
        let code = code(&native, around).await;
        assert!(code >= 128 || code == ENOSYS, "{around}: an architecture that the profile does not name is closed: {code}");
    }
    node.finish().await;
}

/// A system call that no container may make: its name, its number on x86-64 and an argument with which it would be allowed, or
/// fail otherwise, where it is open.
const CLOSED: [(&str, u32, u32); 41] = [
    ("clone with new users", 56, 0x1000_0011),
    ("iopl", 172, 3),
    ("ioperm", 173, 0),
    ("create_module", 174, 0),
    ("init_module", 175, 0),
    ("delete_module", 176, 0),
    ("finit_module", 313, 0),
    ("acct", 163, 0),
    ("settimeofday", 164, 0),
    ("mount", 165, 0),
    ("umount2", 166, 0),
    ("swapon", 167, 0),
    ("swapoff", 168, 0),
    ("reboot", 169, 0),
    ("sethostname", 170, 0),
    ("setdomainname", 171, 0),
    ("quotactl", 179, 0),
    ("pivot_root", 155, 0),
    ("vhangup", 153, 0),
    ("syslog", 103, 2),
    ("add_key", 248, 0),
    ("request_key", 249, 0),
    ("keyctl", 250, 0),
    ("kexec_load", 246, 0),
    ("kexec_file_load", 320, 0),
    ("unshare with new users", 272, 0x1000_0000),
    ("perf_event_open", 298, 0),
    ("fanotify_init", 300, 0),
    ("open_by_handle_at", 304, 0),
    ("setns", 308, 0),
    ("kcmp", 312, 0),
    ("bpf", 321, 0),
    ("userfaultfd", 323, 0),
    ("io_uring_setup", 425, 1),
    ("io_uring_enter", 426, 0),
    ("open_tree", 428, 0),
    ("move_mount", 429, 0),
    ("fsopen", 430, 0),
    ("fsmount", 432, 0),
    ("pidfd_getfd", 438, 0),
    ("mount_setattr", 442, 0),
];

/// Those of them that need a capability whether there is a filter or not.
const NEED_CAPABILITIES: [&str; 12] = [
    "iopl",
    "init_module",
    "delete_module",
    "finit_module",
    "acct",
    "swapon",
    "swapoff",
    "reboot",
    "sethostname",
    "pivot_root",
    "vhangup",
    "kexec_load",
];

#[tokio::test]
async fn calls_that_lead_out_are_closed() {
    let node = Node::start().await;
    if !program::AVAILABLE {
        return node.finish().await;
    }
    const EPERM: i32 = 1;
    const ENOSYS: i32 = 38;
    let programs = CLOSED.iter().fold(Layer::new(), |layer, (_, number, argument)| {
        layer.file(&format!("call/{number}"), 0o755, &one_call(Gate::Native, *number, *argument))
    });
    let image = node.pull("calls", &Image::busybox().layer(&programs.into_tar(), Compression::Plain)).await;
    let pod = node.pod("calls").await;
    let filtered = pod.start(&ContainerSpec::new("filtered", &image)).await;
    let open = pod.start(&ContainerSpec::new("open", &image).security(|s| s.seccomp = None)).await;
    let all = CLOSED.map(|(_, number, _)| format!("/call/{number}; echo $?")).join("; ");
    for (container, has_filter) in [(&filtered, true), (&open, false)] {
        let codes = container.shell(&all).await;
        let wrong: Vec<String> = CLOSED
            .iter()
            .zip(codes.lines())
            .filter(|((name, ..), code)| {
                let refused = [EPERM, ENOSYS].iter().any(|closed| *code == closed.to_string());
                !refused && (has_filter || NEED_CAPABILITIES.contains(name))
            })
            .map(|((name, ..), code)| format!("{name}: {code}"))
            .collect();
        assert!(codes.lines().count() == CLOSED.len() && wrong.is_empty(), "with filter: {has_filter}: {wrong:?}");
    }
    node.finish().await;
}
