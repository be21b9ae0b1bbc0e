//! The known ways out of containers, each tried from inside; the node is looked at afterwards. What hostile images, links that
//! change under way and the kernel's own links do to mounts is tried in `hostile_mounts.rs`, calls that lead out and gates around the
//! filter in `seccomp.rs`, what can be seen of processes on their way in in `tracing.rs`.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use coracle_e2e::api::{ExecRequest, NamespaceMode};
use coracle_e2e::image::{Image, digest};
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::session::{REMOTE, Session};
use coracle_e2e::{Container, ContainerSpec, Node, PodSpec, eventually, host, number, skip};
use rustix::fs::{StatVfsMountFlags, statvfs};

/// Where a process's descriptors lead, in their order; fails unless they are the three standard ones.
fn descriptors(pid: i32) -> Vec<PathBuf> {
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut numbers: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, ["0", "1", "2"], "process {pid}: {}", host::command_line(pid));
    numbers.iter().map(|number| directory.join(number)).collect()
}

fn identity(path: &Path) -> (u64, u64) {
    let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (metadata.dev(), metadata.ino())
}

/// Fails if a process holds anything but pipes and devices, or a device of the node's that could be changed by way of it.
fn holds_nothing_of_the_node(pid: i32) {
    for path in descriptors(pid) {
        let kind = fs::metadata(&path).expect("what a descriptor leads to").file_type();
        assert!(kind.is_fifo() || kind.is_char_device(), "{} leads to {kind:?}", path.display());
        if identity(&path) == identity(Path::new("/dev/null")) {
            let flags = statvfs(&path).expect("its file system").f_flag;
            assert!(flags.contains(StatVfsMountFlags::RDONLY), "{} leads to the node's device itself", path.display());
        }
    }
}

/// The container's processes beyond those `known`, once there is one.
async fn newcomer(container: &Container, known: &[i32]) -> i32 {
    let sleeps = |pid: &i32| host::command_line(*pid).starts_with("sleep ") || host::command_line(*pid).starts_with("/bin/sleep ");
    eventually("a process", || async { container.host_pids().into_iter().find(|pid| !known.contains(pid) && sleeps(pid)) }).await
}

/// Prints every link of the processes in sight by which `secret` can be reached.
fn ways_to(secret: &str) -> String {
    format!(
        "for link in /proc/[0-9]*/fd/* /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/self/fd/* /proc/self/ns/*; do \
         for way in '' /../../../../../../../../../../../..; do [ -e $link$way{secret} ] && echo $link$way; done; done; true"
    )
}

#[tokio::test]
async fn no_descriptor_leads_out() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let secret = node.secret();
    let pod = node.run(&PodSpec::new("shared").pid_mode(NamespaceMode::Pod)).await;
    let own = pod.start(&ContainerSpec::new("own", &image)).await;
    let neighbour = pod.start(&ContainerSpec::new("neighbour", &image).pid_mode(NamespaceMode::Pod)).await;
    let terminal = pod.start(&ContainerSpec::new("terminal", &image).with(|config| config.tty = true)).await;
    for container in [&own, &neighbour, &terminal] {
        let known = container.host_pids();
        known.iter().for_each(|pid| holds_nothing_of_the_node(*pid));
        let waiting = {
            let (cri, id) = (node.cri.clone(), container.id.clone());
            tokio::spawn(async move { cri.exec(&id, &["sleep", "100001"], 0).await })
        };
        holds_nothing_of_the_node(newcomer(container, &known).await);
        for tty in [false, true] {
            let known = container.host_pids();
            let cmd = ["sleep", "100002"].map(str::to_owned).to_vec();
            let request = ExecRequest { container_id: container.id.clone(), cmd, stdin: true, stdout: true, stderr: !tty, tty };
            let url = node.cri.exec_url(request).await.expect("Exec");
            let session = Session::begin(&url, REMOTE).await;
            holds_nothing_of_the_node(newcomer(container, &known).await);
            drop(session);
        }
        assert_eq!(container.shell(&ways_to(&secret)).await, "");
        // A container whose first process is among them ends, and this exec with it.
        let _ = node.cri.exec(&container.id, &["killall", "-q", "-9", "sleep"], 0).await;
        let _ = waiting.await.expect("the exec's task");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_nodes_null_device_cannot_be_changed_through_standard_streams_or_masks() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let null = Path::new("/dev/null");
    let before = fs::metadata(null).expect("the node's device");
    let terminal = |spec: ContainerSpec| spec.with(|config| config.tty = true);
    let pod = node.pod("null").await;
    // To the mode it has: nothing is broken where this test fails.
    let mode = format!("{:o}", before.mode() & 0o7777);
    let attempts = |path: &str| format!("for act in 'chmod {mode}' 'chown 0:0' touch; do $act {path} && echo $act {path}; done");
    for (name, spec) in [("plain", ContainerSpec::new("plain", &image)), ("terminal", terminal(ContainerSpec::new("terminal", &image)))] {
        let container = pod.start(&spec.with(|config| config.stdin = false)).await;
        let masked = container
            .shell("for f in $(awk '$2 ~ \"^/proc/\" && $3 != \"proc\" {print $2}' /proc/mounts); do [ -c $f ] && echo $f; done; true")
            .await;
        let paths = masked.lines().chain(["/proc/self/fd/0", "/proc/1/fd/0"]).filter(|path| name == "plain" || *path != "/proc/1/fd/0");
        for path in paths {
            let changed = container.exec(&["/bin/sh", "-c", &attempts(path)]).await;
            assert!(changed.stdout.is_empty() && changed.stderr.contains("Read-only"), "{name}, {path}: {changed:?}");
        }
        container.shell("echo into >/proc/self/fd/0 && [ -z \"$(cat)\" ]").await;
    }
    let after = fs::metadata(null).expect("the node's device");
    assert_eq!((after.mode(), after.uid(), after.ctime_nsec()), (before.mode(), before.uid(), before.ctime_nsec()));
    node.finish().await;
}

/// Looks for programs that are not the container's own among those of the processes in sight, and tries to change them.
const HUNT: &str = "echo hunting; while :; do for p in /proc/[0-9]*; do { command exec 8<$p/exe; } 2>/dev/null || continue; \
                    [ /proc/self/fd/8 -ef /bin/busybox ] && continue; echo caught; \
                    { true >>/proc/self/fd/8; } 2>/dev/null && echo opened; \
                    for act in 'chmod 755' 'chown 0:0' touch; do $act /proc/self/fd/8 2>/dev/null && echo $act; done; done; done";

#[tokio::test]
async fn the_monitors_program_cannot_be_changed_by_those_who_catch_it() {
    let Some(node) = Node::own().await else { return };
    let program = node.scratch().join("bin/coracle-monitor");
    let picture = || {
        let metadata = fs::metadata(&program).expect("the monitor's program");
        (digest(&fs::read(&program).expect("it can be read")), metadata.mode(), metadata.uid(), metadata.mtime(), metadata.ctime_nsec())
    };
    let before = picture();
    let traps = Layer::new().symlink("bin/again", "/proc/self/exe").file("bin/script", 0o755, b"#!/proc/self/exe\n");
    let image = node.pull("traps", &Image::busybox().layer(&traps.into_tar(), Compression::Plain)).await;
    for is_mighty in [false, true] {
        let pod = node.run(&PodSpec::new("shared").pid_mode(NamespaceMode::Pod)).await;
        let spec = ContainerSpec::new("hunter", &image).pid_mode(NamespaceMode::Pod).script(HUNT);
        let hunter = pod.start(&if is_mighty { spec.capability("SYS_PTRACE") } else { spec }).await;
        hunter.logged("hunting").await;
        for round in 0..20 {
            for trap in ["/bin/again", "/bin/script"] {
                // Linked statically, the monitor runs and finds no socket; else its interpreter is missing.
                let ended = node.cri.exec(&hunter.id, &[trap], 0).await;
                assert!(ended.as_ref().map_or(true, |answer| answer.exit_code != 0 && answer.stdout.is_empty()), "{ended:?}");
            }
            let first = pod
                .create(&ContainerSpec::new(&format!("first-{round}"), &image).pid_mode(NamespaceMode::Pod).command(&["/bin/again"]))
                .await;
            if node.cri.start(&first.id).await.is_ok() {
                assert_ne!(first.exited().await.exit_code, 0);
            }
            first.remove().await;
        }
        if is_mighty {
            // The pod's init runs the monitor's program, and who may trace can look at it.
            hunter.logged("caught").await;
        }
        let said: Vec<String> = hunter.lines("stdout").into_iter().filter(|line| line != "hunting" && line != "caught").collect();
        assert!(said.is_empty(), "{said:?}");
        assert_eq!(hunter.shell("[ /proc/self/exe -ef /bin/busybox ] && echo told").await, "told");
        pod.remove().await;
        assert_eq!(picture(), before);
    }
    node.finish().await;
}

#[tokio::test]
async fn a_working_directory_is_never_outside() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let secret = node.secret();
    let climbs = ["", "/..", "/../../../../../../.."];
    let pod = node.pod("directories").await;
    let volume = node.scratch().join("volume");
    fs::create_dir_all(volume.join("work")).expect("making directories");
    let holder = ContainerSpec::new("holder", &image).mount(&volume.to_string_lossy(), "/vol", false);
    let holder = pod.start(&holder.with(|config| config.working_dir = "/vol/work".into())).await;
    fs::remove_dir(volume.join("work")).expect("removing a directory");
    let mut entered = 0;
    for (number, climb) in (0..14).flat_map(|number| climbs.map(|climb| (number, climb))) {
        let place = format!("/proc/self/fd/{number}{climb}");
        let spec = ContainerSpec::new(&format!("c{number}-{}", climb.len()), &image)
            .script(&format!("cat .{secret} ./../../../../../../..{secret}; pwd"));
        let container = pod.create(&spec.with(|config| config.working_dir = place.clone())).await;
        if node.cri.start(&container.id).await.is_ok() {
            entered += 1;
            container.exited().await;
            let said = container.lines("stdout");
            assert!(said.len() == 1 && said[0].starts_with('/'), "{place}: {said:?}");
        }
        container.remove().await;
        // An exec begins where the container did, if that is still there.
        symlink(&place, volume.join("work")).expect("making a link");
        if let Ok(answer) = node.cri.exec(&holder.id, &["/bin/sh", "-c", &format!("cat .{secret}; pwd")], 0).await {
            let said = String::from_utf8_lossy(&answer.stdout).into_owned();
            assert!(!said.contains("node's") && said.starts_with('/'), "exec in {place}: {said}");
        }
        fs::remove_file(volume.join("work")).expect("removing a link");
    }
    eprintln!("{entered} of these directories could be entered");
    node.finish().await;
}

#[tokio::test]
async fn neither_devices_nor_the_kernels_knobs_are_open() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("devices").await;
    let partitions = fs::read_to_string("/proc/partitions").expect("the node's disks");
    let disks: Vec<String> = partitions
        .lines()
        .skip(2)
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        .map(|numbers| format!("b {numbers}"))
        .collect();
    assert!(!disks.is_empty(), "no disk to try");
    // mem, port, kmsg, hwrng, the clock, fuse, kvm, the first console, the system's console, the loop devices' control.
    let others = ["c 1 1", "c 1 4", "c 1 11", "c 10 183", "c 10 135", "c 10 229", "c 10 232", "c 4 1", "c 5 1", "c 10 237", "b 7 0"];
    for (name, capability) in [("usual", None), ("admin", Some("SYS_ADMIN"))] {
        let spec = ContainerSpec::new(name, &image);
        let container = pod.start(&capability.map_or(spec.clone(), |capability| spec.capability(capability))).await;
        for device in disks.iter().map(String::as_str).chain(others) {
            let script =
                format!("rm -f /tmp/d; mknod /tmp/d {device} || exit 9; true </tmp/d && echo read; true >>/tmp/d && echo written; true");
            let tried = container.exec(&["/bin/sh", "-c", &script]).await;
            assert!(tried.code == 0 && tried.stdout.is_empty() && tried.stderr.contains("not permitted"), "{name}, {device}: {tried:?}");
        }
        assert_eq!(container.shell("mknod /tmp/null c 1 3 && echo x >/tmp/null && echo usable").await, "usable");
        assert_eq!(
            container.shell("ls -A /dev | grep -vx core").await.replace('\n', " "),
            "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
        );
    }
    let usual = pod.start(&ContainerSpec::new("knobs", &image)).await;
    let open = "find /sys /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger -type f 2>/dev/null | \
                while read -r f; do { true >>\"$f\"; } 2>/dev/null && echo \"$f\"; done; true";
    assert_eq!(usual.shell(open).await, "", "opened for writing");
    // Pressure may be watched by anyone, and is watched by writing.
    let rest = "find /proc -maxdepth 4 -path '/proc/[0-9]*' -prune -o -path /proc/self -prune -o -path /proc/sys -prune -o -path /proc/pressure -prune -o \
                -type f -perm /222 -print 2>/dev/null | while read -r f; do { true >>\"$f\"; } 2>/dev/null && echo \"$f\"; done; true";
    assert_eq!(usual.shell(rest).await, "", "opened for writing");
    let attempts = [
        "umount /proc/sys",
        "umount /proc/kcore",
        "umount /proc/keys",
        "umount /sys/firmware",
        "mount -o remount,rw /sys",
        "mount -o remount,bind,rw /proc/sys",
        "mount -o remount,rw /sys/fs/cgroup",
        "mount -t proc proc /tmp",
        "mount -t sysfs sysfs /tmp",
        "mount -t cgroup -o devices cgroup /tmp",
        "mount -t cgroup2 cgroup2 /tmp",
        "mount --bind / /tmp",
        "mount -t tmpfs none /tmp",
        "unshare -U true",
        "unshare -m true",
        "dmesg",
        "swapon /bin/busybox",
        "hostname changed",
    ];
    for attempt in attempts {
        assert_ne!(usual.exec(&["/bin/sh", "-c", attempt]).await.code, 0, "{attempt}");
    }
    node.finish().await;
}

#[tokio::test]
async fn users_of_ones_own_uncover_nothing() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let spec = ContainerSpec::new("c", &image).security(|s| s.seccomp = None).without_apparmor();
    let container = node.pod("uncover").await.start(&spec).await;
    let within = |attempt: &str| format!("unshare -U -r -m -n -p -f sh -c '{attempt}'");
    if container.exec(&["/bin/sh", "-c", &within("mount -t tmpfs none /tmp")]).await.code != 0 {
        skip("this machine does not let containers have users of their own");
        return node.finish().await;
    }
    let attempts = [
        "umount /proc/sys",
        "umount -l /proc/keys",
        "umount -l /sys/firmware",
        "mount -o remount,bind,rw /sys",
        "mount -o remount,bind,rw /proc/sys",
        "mount -t proc proc /tmp",
        "mount -t sysfs sysfs /tmp && mkdir /tmp/kernel/x",
        "mount -t cgroup -o memory cgroup /tmp",
        "mount -t cgroup -o devices cgroup /tmp",
        "mount -t cgroup -o none,name=escape cgroup /tmp",
        "mount -t devtmpfs devtmpfs /tmp",
        "mount -o remount,bind,rw /sys/fs/cgroup",
        "for f in $(find /sys/fs/cgroup -name release_agent -o -name notify_on_release); do true >>$f && exit 0; done; exit 1",
        "mount --bind /proc/1/root /tmp && ls /tmp/nowhere",
        "mknod /tmp/d b 254 0 && true </tmp/d",
        "true >>/proc/sys/kernel/core_pattern",
        "true >>/proc/sysrq-trigger",
    ];
    for attempt in attempts {
        let tried = container.exec(&["/bin/sh", "-c", &within(attempt)]).await;
        assert_ne!(tried.code, 0, "{attempt}: {tried:?}");
    }
    node.finish().await;
}

#[tokio::test]
async fn nobody_looks_into_daemon_or_monitor_or_signals_them() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let daemon = node.daemon_pid();
    let pod = node.run(&PodSpec::new("shared").pid_mode(NamespaceMode::Pod)).await;
    let monitor = node.footprint.monitors(&pod.id)[0];
    let alive = |when: &str| [daemon, monitor].map(|pid| assert!(host::is_alive(pid), "{when}"));

    // With the pod's own numbers neither is in sight, and no signal to everybody reaches them.
    let witness = pod.start(&ContainerSpec::new("witness", &image).pid_mode(NamespaceMode::Pod)).await;
    let own = pod.start(&ContainerSpec::new("own", &image)).await;
    for container in [&witness, &own] {
        let seen = container.shell("cat /proc/[2-9]*/cmdline /proc/1?*/cmdline | tr '\\0' ' '").await;
        assert!(!seen.contains("coracle") && !seen.contains("config.toml"), "{seen}");
        assert_eq!(container.shell("cut -d ' ' -f 4 /proc/1/stat").await, "0", "its first process has no parent in sight");
        let _ = node.cri.exec(&container.id, &["/bin/kill", "-9", "-1"], 0).await;
        alive("after a signal to all in sight");
    }
    assert_eq!(witness.exited().await.exit_code, 137, "the monitor saw it end");

    // With the node's numbers they are in sight: that is what was asked for. Root of the node may signal root's processes, as
    // everywhere; that it may not look into them, and that others can do neither, is the kernel's and the filter's doing.
    let spec = PodSpec::new("nodes").host_network().pid_mode(NamespaceMode::Node);
    let nodes = node.run(&spec).await;
    let user = number(1000);
    let root = nodes.start(&ContainerSpec::new("root", &image).pid_mode(NamespaceMode::Node)).await;
    let alice = nodes.start(&ContainerSpec::new("alice", &image).pid_mode(NamespaceMode::Node).security(|s| s.run_as_user = user)).await;
    for pid in [daemon, monitor] {
        for container in [&root, &alice] {
            assert!(container.shell(&format!("cat /proc/{pid}/comm")).await.starts_with("coracle"), "it is in sight");
            for file in ["mem", "environ", "maps", "exe", "root/etc/passwd", "cwd/etc/passwd", "fd/0", "fd/1", "ns/mnt"] {
                let read =
                    container.exec(&["/bin/sh", "-c", &format!("head -c 1 /proc/{pid}/{file} || readlink /proc/{pid}/{file}")]).await;
                assert!(read.code != 0 && read.stdout.is_empty(), "{file} of {pid}: {read:?}");
            }
            assert_ne!(container.exec(&["/bin/sh", "-c", &format!("nsenter -m -t {pid} true")]).await.code, 0);
            assert_ne!(container.exec(&["/bin/sh", "-c", &format!("true >>/proc/{pid}/mem")]).await.code, 0);
        }
        assert_ne!(alice.exec(&["/bin/sh", "-c", &format!("kill -9 {pid}")]).await.code, 0, "{pid}");
        let score = alice.exec(&["/bin/sh", "-c", &format!("echo 1000 >/proc/{pid}/oom_score_adj")]).await;
        assert_ne!(score.code, 0);
        alive("after all that");
    }

    // Sockets without a file would be open to whoever has the node's network.
    let sockets = root.shell("cat /proc/net/unix").await;
    let ours: Vec<String> = [daemon, monitor].into_iter().flat_map(sockets_of).collect();
    assert!(!ours.is_empty());
    for line in sockets.lines().filter(|line| line.contains(" @")) {
        let inode = line.split_whitespace().nth(6).unwrap_or_default();
        assert!(!ours.iter().any(|own| own == inode), "{line}");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_monitor_loads_nothing_that_a_container_could_put_in_its_way() {
    let Some(node) = Node::own().await else { return };
    let program = fs::canonicalize(node.target.binary.with_file_name("coracle-monitor")).expect("the monitor's program");
    let elf = fs::read(&program).expect("it can be read");
    // ELF-64's header: where the program headers are, how long each is, and how many there are; 3 is PT_INTERP.
    let number = |at: usize, length: usize| elf[at..at + length].iter().rev().fold(0, |value, byte| (value << 8) | usize::from(*byte));
    let (first, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let is_dynamic = (0..count).any(|index| number(first + index * size, 4) == 3);
    if is_dynamic && program.iter().any(|part| part == "debug") {
        skip("only hack/build links the monitor statically");
    } else {
        assert!(!is_dynamic, "{} wants an interpreter", program.display());
    }
    let layer = Layer::new().file("lib/trap.so", 0o755, b"no library").file("etc/ld.so.preload", 0o644, b"/lib/trap.so\n");
    let image = Image::busybox().layer(&layer.into_tar(), Compression::Plain).set("Env", serde_json::json!(["LD_PRELOAD=/lib/trap.so"]));
    let image = node.pull("preload", &image).await;
    let container = node.pod("preload").await.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(container.shell("echo $LD_PRELOAD").await, "/lib/trap.so");
    node.finish().await;
}

/// The inodes of a process's sockets.
fn sockets_of(pid: i32) -> Vec<String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten();
    let links = files.filter_map(|file| fs::read_link(file.path()).ok());
    links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect()
}
