//! Nothing is left: of the images' and the state's file systems or their quotas, of descriptors, of process numbers. Errors say what and
//! where, what is deleted goes, other pods go on, and when there is room again everything works.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_e2e::api::{ContainerState, ImageFsInfoRequest, PodSandboxState};
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::leaks::Footprint;
use coracle_e2e::quota::Quota;
use coracle_e2e::{Code, Container, ContainerSpec, Node, PodSpec, Status, eventually, host, skip};

/// Mounts a tmpfs on one of the daemon's directories.
fn mount_tmpfs(directory: &Path, options: &str) {
    host::run("mount", &["-t", "tmpfs", "-o", options, "none", &directory.to_string_lossy()]).expect("mounting a tmpfs");
}

/// Why a file system has no room.
enum Shortage {
    Bytes,
    Inodes,
    Quota(Quota),
}

impl Shortage {
    /// Begins, with a directory `filler` where something has to be taken.
    fn begin(&self, directory: &Path) {
        let filler = directory.join("filler");
        match self {
            Self::Bytes => {
                fs::create_dir(&filler).expect("making a directory");
                let mut file = File::create(filler.join("bytes")).expect("making a file");
                for size in [1 << 20, 4096, 1] {
                    while file.write_all(&vec![1; size]).is_ok() {}
                }
            }
            Self::Inodes => {
                fs::create_dir(&filler).expect("making a directory");
                let mut number = 0;
                while File::create(filler.join(number.to_string())).is_ok() {
                    number += 1;
                }
            }
            Self::Quota(quota) => quota.limit(1),
        }
    }

    fn end(&self, directory: &Path) {
        match self {
            Self::Bytes | Self::Inodes => fs::remove_dir_all(directory.join("filler")).expect("removing the filler"),
            Self::Quota(quota) => quota.lift(),
        }
    }

    /// What a daemon knows that began in it of an end that the one before saw: this exit code, or, where files are never
    /// written in place and an end takes room, nothing.
    fn if_written_in_place(&self, code: i32) -> i32 {
        if matches!(self, Self::Quota(_)) { -1 } else { code }
    }

    /// What errors say of it: the kernel's words, and where to look.
    fn words(&self) -> [&'static str; 2] {
        match self {
            Self::Bytes | Self::Inodes => ["No space left", "df -i"],
            Self::Quota(_) => ["Disk quota exceeded", "the quota of its file system"],
        }
    }
}

/// A node with a quota on one of its daemon's directories.
async fn node_with_quota(directory: fn(&Footprint) -> &Path) -> Option<(Node, Shortage)> {
    if !Quota::is_possible() {
        return None;
    }
    let mut quota = None;
    let node = Node::own_with(|footprint| {
        let path = directory(footprint);
        let mounted = Quota::mount(&footprint.scratch.join("disk"), path);
        fs::set_permissions(path, Permissions::from_mode(0o711)).expect("changing a mode");
        quota = Some(mounted);
    });
    Some((node.await?, Shortage::Quota(quota?)))
}

/// What is used up is said to be, with the stage and something that names the object.
fn exhausted<T: std::fmt::Debug>(result: Result<T, Status>, words: &[&str]) {
    let status = result.expect_err("there is no room for it");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    for word in words {
        assert!(status.message().contains(word), "{word:?}: {status}");
    }
}

#[tokio::test]
async fn on_a_full_state_file_system_nothing_new_is_made_and_what_ends_is_ended_told_and_remembered() {
    let Some(node) = Node::own_with(|footprint| mount_tmpfs(&footprint.state, "size=4m,mode=711")).await else { return };
    full_state(node, &Shortage::Bytes).await;
}

#[tokio::test]
async fn the_same_holds_when_the_state_file_system_has_no_inodes_left() {
    let Some(node) = Node::own_with(|footprint| mount_tmpfs(&footprint.state, "size=64m,nr_inodes=300,mode=711")).await else { return };
    full_state(node, &Shortage::Inodes).await;
}

#[tokio::test]
async fn the_same_holds_when_the_state_file_systems_quota_is_used_up() {
    let Some((node, quota)) = node_with_quota(|footprint| &footprint.state).await else { return };
    full_state(node, &quota).await;
}

async fn full_state(mut node: Node, shortage: &Shortage) {
    let image = node.busybox().await;
    let steady = node.pod("steady").await;
    let witness = steady.start(&ContainerSpec::new("witness", &image)).await;
    let wait = "until [ -e /dev/shm/go ]; do sleep 0.05; done; exit 7";
    let leaving = steady.start(&ContainerSpec::new("leaving", &image).script(wait)).await;
    let late = wait.replace("go", "late").replace("7", "9");
    let late = steady.start(&ContainerSpec::new("late", &image).script(&late)).await;
    let created = steady.create(&ContainerSpec::new("created", &image)).await;
    let stopping = node.pod("stopping").await;
    let stopped = stopping.start(&ContainerSpec::new("c", &image)).await;
    let going = node.pod("going").await;
    going.start(&ContainerSpec::new("c", &image)).await;
    let last = node.pod("last").await;
    let known_at_last = last.start(&ContainerSpec::new("c", &image)).await;
    shortage.begin(&node.footprint.state);
    let [problem, hint] = shortage.words();

    let before = node.pods().await.len();
    for attempt in ["one", "two"] {
        exhausted(node.try_run(&PodSpec::new(attempt)).await, &[problem, hint, &*node.footprint.state.to_string_lossy()]);
    }
    assert_eq!(node.pods().await.len(), before, "nothing is half there");
    exhausted(
        steady.try_create(&ContainerSpec::new("new", &image)).await,
        &[problem, hint, "container", &*node.footprint.state.to_string_lossy()],
    );
    assert_eq!(witness.exec(&["/bin/true"]).await.code, 0, "execs need no room");
    created.start().await;
    fs::write(node.footprint.state.join("pods").join(&steady.id).join("shm/go"), "").expect("shared memory is a file system of its own");
    assert_eq!(leaving.exited().await.exit_code, 7, "an end is told");
    stopping.stop().await;
    assert!(stopped.host_pids().is_empty());
    assert_eq!(stopped.status().await.exit_code, 137);
    assert_eq!(stopping.status().await.state(), PodSandboxState::SandboxNotready);
    going.stop().await;
    going.remove().await;

    // `going` made a little room: take it, and see what the next daemon knows.
    let more = node.footprint.state.join("more");
    if fs::create_dir(&more).is_ok() {
        shortage.begin(&more);
    }
    node.kill_daemon();
    fs::write(node.footprint.state.join("pods").join(&steady.id).join("shm/late"), "").expect("writing to shared memory");
    eventually("an end that no daemon sees and no file tells", || async { late.host_pids().is_empty().then_some(()) }).await;
    node.start_daemon().await;
    assert_eq!(late.exited().await.exit_code, 9, "the monitor has kept it in mind");
    assert_eq!(witness.exec(&["/bin/true"]).await.code, 0, "pods live on");
    assert_eq!((leaving.status().await.exit_code, leaving.status().await.reason.as_str()), (7, "Error"));
    assert_eq!(stopping.status().await.state(), PodSandboxState::SandboxNotready, "what was stopped stays stopped");
    assert_eq!(stopped.status().await.exit_code, shortage.if_written_in_place(137), "what nobody alive has seen");
    created.stop(0).await;
    created.remove().await;
    assert_eq!(node.cri.status(&created.id).await.expect_err("it was removed").code(), Code::NotFound);
    last.stop().await;

    if more.exists() {
        shortage.end(&more);
        fs::remove_dir(more).expect("removing a directory");
    }
    shortage.end(&node.footprint.state);
    let fresh = node.pod("one").await.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(fresh.exec(&["/bin/true"]).await.code, 0);
    steady.start(&ContainerSpec::new("new", &image)).await;
    let record = node.footprint.state.join("pods").join(&last.id).join("record.json");
    eventually("what could not be written to be written", || async {
        fs::read_to_string(&record).is_ok_and(|record| record.contains("Stopped") && record.contains("137")).then_some(())
    })
    .await;
    node.restart().await;
    assert_eq!(known_at_last.status().await.exit_code, 137, "the next daemon knows what was written when there was room");
    assert_eq!(last.status().await.state(), PodSandboxState::SandboxNotready);
    node.finish().await;
}

/// A small ext4 in a file, which is gone when it is unmounted.
fn mount_ext4(footprint: &Footprint) {
    let file = footprint.scratch.join("disk");
    File::create(&file).and_then(|disk| disk.set_len(48 << 20)).expect("making a file");
    let (file, storage) = (file.to_string_lossy().into_owned(), footprint.storage.to_string_lossy().into_owned());
    host::run("mkfs.ext4", &["-q", "-m", "0", &file]).expect("mkfs.ext4 (Debian's e2fsprogs)");
    host::run("mount", &["-o", "loop", &file, &storage]).expect("mounting an ext4 from a file");
}

#[tokio::test]
async fn on_a_full_disk_a_pull_fails_and_leaves_nothing_and_images_and_pods_can_be_removed() {
    let Some(node) = Node::own_with(mount_ext4).await else { return };
    full_disk(node, &Shortage::Bytes).await;
}

#[tokio::test]
async fn the_same_holds_when_the_disk_has_no_inodes_left() {
    let Some(node) = Node::own_with(|footprint| mount_tmpfs(&footprint.storage, "size=64m,nr_inodes=1000")).await else { return };
    full_disk(node, &Shortage::Inodes).await;
}

#[tokio::test]
async fn the_same_holds_when_the_disks_quota_is_used_up() {
    let Some((node, quota)) = node_with_quota(|footprint| &footprint.storage).await else { return };
    full_disk(node, &quota).await;
}

#[tokio::test]
async fn a_pull_that_meets_the_quota_half_way_leaves_nothing_and_is_done_when_that_is_raised() {
    let Some((node, Shortage::Quota(quota))) = node_with_quota(|footprint| &footprint.storage).await else { return };
    let large = Layer::new().file("large", 0o644, &vec![1; 16 << 20]).into_tar();
    let wanted = node.push("large", &Image::busybox().layer(&large, Compression::Gzip)).reference;
    quota.limit(12 << 20);
    exhausted(
        node.cri.pull(&wanted, None).await,
        &["unpacking the layer", "Disk quota exceeded", "the quota of its file system", &*wanted],
    );
    nothing_is_under_way(&node).await;
    quota.lift();
    node.cri.pull(&wanted, None).await.expect("PullImage");
    let container = node.pod("p").await.start(&ContainerSpec::new("c", &wanted)).await;
    assert_eq!(container.shell("wc -c </large").await, (16 << 20).to_string());
    node.finish().await;
}

/// Waits until what was fetched in vain is gone.
async fn nothing_is_under_way(node: &Node) {
    let is_empty = || fs::read_dir(node.footprint.storage.join("tmp")).is_ok_and(|mut left| left.next().is_none());
    eventually("what was fetched in vain to go", || async { is_empty().then_some(()) }).await;
}

async fn full_disk(mut node: Node, shortage: &Shortage) {
    let storage = node.footprint.storage.clone();
    let image = node.busybox().await;
    let marked = |text: &[u8]| Image::busybox().layer(&Layer::new().file("mark", 0o644, text).into_tar(), Compression::Gzip);
    let doomed = node.pull("doomed", &marked(b"doomed")).await;
    let pod = node.pod("steady").await;
    let witness = pod.start(&ContainerSpec::new("witness", &image)).await;
    let going = node.pod("going").await;
    going.start(&ContainerSpec::new("c", &image)).await;
    let wanted = node.push("wanted", &marked(b"wanted")).reference;
    shortage.begin(&storage);
    let [problem, hint] = shortage.words();

    exhausted(node.cri.pull(&wanted, None).await, &[problem, hint, &*wanted]);
    exhausted(pod.try_create(&ContainerSpec::new("new", &image)).await, &[problem, hint, &*storage.to_string_lossy()]);
    let written = witness.exec(&["/bin/dd", "if=/dev/zero", "of=/new", "bs=64k", "count=64"]).await;
    assert!(written.code != 0 && written.stderr.contains(problem), "a container hears the same of its writable layer: {written:?}");
    assert!(node.cri.image(&wanted).await.expect("ImageStatus").is_none());
    nothing_is_under_way(&node).await;
    assert_eq!(witness.exec(&["/bin/true"]).await.code, 0);
    let usage = node.cri.images().image_fs_info(ImageFsInfoRequest {}).await.expect("ImageFsInfo").into_inner();
    assert!(usage.image_filesystems.iter().any(|usage| usage.used_bytes.is_some_and(|bytes| bytes.value > 0)), "{usage:?}");
    node.restart().await;
    assert_eq!(witness.exec(&["/bin/true"]).await.code, 0, "a full disk does not keep a daemon from starting");
    node.cri.remove_image(&doomed).await.expect("RemoveImage needs no room");
    assert!(node.cri.image(&doomed).await.expect("ImageStatus").is_none());
    going.stop().await;
    going.remove().await;
    node.restart().await;
    assert!(node.cri.image(&doomed).await.expect("ImageStatus").is_none(), "what was removed stays removed");

    shortage.end(&storage);
    node.cri.pull(&wanted, None).await.expect("PullImage");
    let new = pod.start(&ContainerSpec::new("new", &wanted)).await;
    assert_eq!(new.shell("cat /mark").await, "wanted");
    node.finish().await;
}

/// The processor time that a process has used, in clock ticks (proc_pid_stat(5), fields 14 and 15).
fn used_ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the daemon is there");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    [11, 12].iter().filter_map(|&field| fields.get(field)?.parse::<u64>().ok()).sum()
}

#[tokio::test]
async fn without_descriptors_clients_wait_and_the_daemon_neither_ends_nor_spins() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let container = node.pod("p").await.start(&ContainerSpec::new("c", &image)).await;
    let pid = node.daemon_pid();
    let limits = |soft: u64| host::run("prlimit", &[&format!("--pid={pid}"), &format!("--nofile={soft}:")]).expect("prlimit");
    let open = || fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let before = host::run("prlimit", &[&format!("--pid={pid}"), "--nofile", "--noheadings", "--output=SOFT"]).expect("prlimit");
    limits(open() as u64 + 4);
    // A few come in; the others wait in the socket's queue.
    let crowd: Vec<UnixStream> = (0..40).map_while(|_| UnixStream::connect(node.cri.socket()).ok()).collect();
    eventually("the descriptors to be used up", || async { node.daemon_log().contains("no client can be accepted").then_some(()) }).await;
    // The client's connection stands: its calls are answered, also those that fail.
    let status = node.cri.exec(&container.id, &["/bin/true"], 0).await.expect_err("there are no descriptors for pipes");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("LimitNOFILE"), "{status}");
    exhausted(node.try_run(&PodSpec::new("q")).await, &["Too many open files"]);
    assert_eq!(container.status().await.state(), ContainerState::ContainerRunning);
    let used = used_ticks(pid);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(used_ticks(pid) - used < 100, "it spins: {} ticks in two seconds", used_ticks(pid) - used);
    drop(crowd);
    limits(before.trim().parse().expect("a number"));
    eventually("all to be well", || async { node.cri.exec(&container.id, &["/bin/true"], 0).await.ok() }).await;
    eventually("clients to be let in", || async { node.daemon_log().contains("clients are accepted again").then_some(()) }).await;
    eventually("what was left half done to go", || async {
        (fs::read_dir(node.footprint.state.join("pods")).map_or(0, Iterator::count) == 1).then_some(())
    })
    .await;
    node.pod("q").await.start(&ContainerSpec::new("c", &image)).await;
    node.finish().await;
}

/// A cgroup of the test's own that limits process numbers.
struct Limited(PathBuf);

impl Limited {
    fn new(node: &Node) -> Option<Self> {
        let name = format!("{}-daemon", node.footprint.cgroup_root);
        for mount in host::cgroup_mounts() {
            let directory = mount.join(&name);
            if fs::create_dir(&directory).is_ok() {
                if directory.join("pids.max").exists() {
                    return Some(Self(directory));
                }
                let _ = fs::remove_dir(directory);
            }
        }
        None
    }

    fn set(&self, file: &str, value: impl std::fmt::Display) {
        fs::write(self.0.join(file), value.to_string()).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    async fn close(self) {
        // Who is born meanwhile is in it too.
        eventually("the end of the test's cgroup", || async {
            for pid in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = fs::write(self.0.parent().unwrap_or(&self.0).join("cgroup.procs"), pid);
            }
            fs::remove_dir(&self.0).ok()
        })
        .await;
    }
}

#[tokio::test]
async fn without_process_numbers_nothing_starts_and_everything_can_be_ended() {
    let Some(node) = Node::own().await else { return };
    let Some(limited) = Limited::new(&node) else {
        skip("no hierarchy limits process numbers here");
        return node.finish().await;
    };
    let image = node.busybox().await;
    limited.set("cgroup.procs", node.daemon_pid());
    let ported = PodSpec::new("steady").host_port(coracle_e2e::api::Protocol::Tcp, "127.0.0.1", 1, 80);
    let pod = node.run(&ported).await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let created = pod.create(&ContainerSpec::new("created", &image)).await;
    // Below what there is already.
    limited.set("pids.max", 1);
    exhausted(node.try_run(&PodSpec::new("new")).await, &["pids limit"]);
    exhausted(node.cri.exec(&container.id, &["/bin/true"], 0).await, &["making a process", "pids limit"]);
    exhausted(node.cri.start(&created.id).await, &["making a process", "pids limit"]);
    assert_eq!(container.status().await.state(), ContainerState::ContainerRunning);
    assert_eq!(node.pods().await.len(), 1);
    container.stop(0).await;
    container.remove().await;
    pod.stop().await;
    assert!(node.footprint.host_ports().is_empty());
    pod.remove().await;
    let left = node.remains();
    assert!(left.is_empty(), "{left:?}");
    limited.set("pids.max", "max");
    let pod = node.run(&ported).await;
    let again: Container = pod.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(again.exec(&["/bin/true"]).await.code, 0);
    pod.stop().await;
    pod.remove().await;
    limited.close().await;
    node.finish().await;
}

#[tokio::test]
async fn too_little_memory_to_start_in_is_said_to_be_too_little() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("p").await;
    let cramped = pod.create(&ContainerSpec::new("c", &image).resources(|r| r.memory_limit_in_bytes = 64 << 10)).await;
    exhausted(node.cri.start(&cramped.id).await, &[&cramped.id, "memory limit"]);
    assert_eq!(cramped.status().await.state(), ContainerState::ContainerExited);
    cramped.remove().await;
    assert_eq!(pod.start(&ContainerSpec::new("d", &image)).await.exec(&["/bin/true"]).await.code, 0);
    node.finish().await;
}
