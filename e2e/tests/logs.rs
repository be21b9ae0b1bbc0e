//! Containers' logs under load and on bad disks: rotation as the kubelet does it, full and read-only file systems, quotas.
//! What is in the log is whole and in order, and what is not is counted.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_e2e::host::text;
use coracle_e2e::quota::Quota;
use coracle_e2e::{Code, Container, ContainerSpec, Node, Pod, PodSpec, Status, api, eventually, host, log};

/// The length of an entry's time.
const TIME: usize = "2026-03-01T12:00:00.000000001Z".len();

/// A small file system of the test's own, in the node's scratch directory.
struct Disk(PathBuf);

impl Disk {
    fn mount(node: &Node, size: &str) -> Self {
        let path = node.scratch().join("disk");
        fs::create_dir(&path).expect("making a mount point");
        host::run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", &text(&path)]).expect("mounting");
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = host::run("umount", &["-l", &text(&self.0)]);
    }
}

async fn pod_logging_to(node: &Node, directory: &Path) -> Pod {
    node.run(&PodSpec::new("logs").with(|config| config.log_directory = text(directory))).await
}

async fn reopen(node: &Node, container: &Container) -> Result<(), Status> {
    let request = api::ReopenContainerLogRequest { container_id: container.id.clone() };
    node.cri.runtime().reopen_container_log(request).await.map(drop)
}

/// Renames the log and has it opened anew, as the kubelet does; where the old one is now.
async fn rotate(node: &Node, container: &Container) -> PathBuf {
    let old = container.log.with_extension("old");
    fs::rename(&container.log, &old).expect("moving the log");
    reopen(node, container).await.expect("ReopenContainerLog");
    old
}

/// What a verbose status tells of output that is missing in the log: entries and bytes.
async fn lost(node: &Node, container: &Container) -> (u64, u64) {
    let request = api::ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
    let answer = node.cri.runtime().container_status(request).await.expect("ContainerStatus").into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).expect("JSON");
    let number = |name: &str| info["lostOutput"][name].as_u64().expect("a number");
    (number("entries"), number("bytes"))
}

/// A program that writes numbered lines to `stream` as fast as it can until `/tmp/stop` has something in it, then how many
/// to `/tmp/STREAM`.
fn numbers(stream: &str) -> String {
    format!(
        "awk 'BEGIN {{ for (i = 1; ; i++) {{ print \"line \" i > \"/dev/{stream}\"; \
         if (i % 1000 == 0 && (getline x < \"/tmp/stop\") > 0) break }} print i > \"/tmp/{stream}\" }}'"
    )
}

/// Ends [`numbers`]; how many of them a stream had.
async fn stop_numbers(container: &Container, stream: &str) -> u64 {
    container.shell("echo stop > /tmp/stop").await;
    let count = || container.shell("cat /tmp/done && cat /tmp/stdout /tmp/stderr 2>/dev/null || true");
    let totals = eventually("the end of the numbers", || async { Some(count().await).filter(|text| !text.is_empty()) }).await;
    let index = if stream == "stdout" { 1 } else { 2 };
    totals.lines().nth(index).expect("a total").parse().expect("a number")
}

/// What one stream of a log has shown so far.
#[derive(Debug, Default)]
struct Follower {
    time: String,
    last: u64,
    entries: u64,
    gaps: u64,
}

impl Follower {
    /// Takes the entries of one stream in a file of [`numbers`].
    fn take(&mut self, path: &Path, stream: &str) {
        let file = fs::read_to_string(path).expect("reading the log");
        assert!(file.is_empty() || file.ends_with('\n'), "{} ends in the middle of an entry", path.display());
        for entry in file.lines() {
            let (time, rest) = entry.split_at_checked(TIME).unwrap_or_else(|| panic!("no time in {entry:?}"));
            let number = rest.strip_prefix(" stdout F line ").or_else(|| rest.strip_prefix(" stderr F line "));
            let number: u64 = number.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no entry: {entry:?}"));
            if &rest[1..7] != stream {
                continue;
            }
            assert!(number > self.last && *time >= *self.time && time.ends_with('Z'), "{entry:?} after {} at {}", self.last, self.time);
            self.gaps += u64::from(number != self.last + 1);
            (self.last, self.entries) = (number, self.entries + 1);
            self.time.clear();
            self.time.push_str(time);
        }
    }
}

#[tokio::test]
async fn a_hundred_rotations_under_load_lose_no_line() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let script = format!("{} & {}; wait; echo done > /tmp/done; sleep 100000", numbers("stderr"), numbers("stdout"));
    let container = node.pod("rotated").await.start(&ContainerSpec::new("c", &image).script(&script)).await;
    let mut files = Vec::new();
    for number in 0..100 {
        let old = container.log.with_extension(number.to_string());
        fs::rename(rotate(&node, &container).await, &old).expect("moving the log");
        let size = fs::metadata(&old).expect("the old log").len();
        files.push((old, size));
    }
    let totals = (stop_numbers(&container, "stdout").await, stop_numbers(&container, "stderr").await);
    container.stop(0).await;
    assert!(
        files.iter().all(|(old, size)| fs::metadata(old).is_ok_and(|old| old.len() == *size)),
        "an old log has grown after its rotation"
    );
    let (mut output, mut error) = (Follower::default(), Follower::default());
    for path in files.iter().map(|(old, _)| old).chain([&container.log]) {
        output.take(path, "stdout");
        error.take(path, "stderr");
    }
    assert_eq!((output.last, error.last), totals, "the last ones are there");
    assert_eq!((output.gaps, error.gaps), (0, 0), "and all before them");
    assert_eq!(lost(&node, &container).await, (0, 0));
    node.finish().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_anew_goes_on_in_its_old_file() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let disk = Disk::mount(&node, "4m");
    let pod = pod_logging_to(&node, &disk.0.join("pod")).await;
    let script = "for n in 1 2 3; do while [ ! -e /tmp/$n ]; do sleep 0.05; done; echo line $n; done; sleep 100000";
    let container = pod.start(&ContainerSpec::new("c", &image).script(script)).await;
    let old = container.log.with_extension("old");
    fs::rename(&container.log, &old).expect("moving the log");
    let disk_path = text(&disk.0);
    host::run("mount", &["--bind", &disk_path, &disk_path]).expect("mounting");
    host::run("mount", &["-o", "remount,bind,ro", &disk_path]).expect("making it read-only");
    let refused = reopen(&node, &container).await.expect_err("a read-only directory takes no log");
    let unmade = pod.try_create(&ContainerSpec::new("other", &image)).await.expect_err("nor another's");
    host::unmount(&[], &disk.0).expect("unmounting");
    if !node.target.is_foreign() {
        let path = text(&container.log);
        assert!(["opening the log", &path, "Read-only file system"].iter().all(|part| refused.message().contains(part)), "{refused}");
        assert!(["other_0.log", "Read-only file system"].iter().all(|part| unmade.message().contains(part)), "{unmade}");
    }
    let logged = |path: PathBuf, line: &'static str| async move {
        eventually(line, || async { fs::read_to_string(&path).ok().filter(|text| text.ends_with(&format!(" stdout F {line}\n"))) }).await
    };
    container.shell("touch /tmp/1").await;
    logged(old.clone(), "line 1").await;
    for _ in 0..2 {
        reopen(&node, &container).await.expect("now that it can be");
    }
    container.shell("touch /tmp/2").await;
    logged(container.log.clone(), "line 2").await;
    // Somebody tidied up: directory and all.
    fs::remove_dir_all(disk.0.join("pod")).expect("removing the logs");
    if !node.target.is_foreign() {
        reopen(&node, &container).await.expect("its directory is made anew");
        container.shell("touch /tmp/3").await;
        logged(container.log.clone(), "line 3").await;
    }
    container.stop(0).await;
    fs::remove_dir_all(disk.0.join("pod")).expect("removing the logs");
    node.refused(reopen(&node, &container).await, Code::FailedPrecondition, &container.id);
    assert!(!container.log.exists() && !disk.0.join("pod").exists(), "nothing is made for a stopped container");
    drop(disk);
    node.finish().await;
}

#[tokio::test]
async fn a_pipe_or_a_link_in_the_logs_place_is_refused_and_not_waited_for() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("planted").await;
    let directory = Path::new(&pod.config.log_directory);
    host::run("mkfifo", &[&text(&directory.join("pipe_0.log"))]).expect("making a pipe");
    std::os::unix::fs::symlink(node.scratch().join("elsewhere"), directory.join("link_0.log")).expect("making a link");
    for name in ["pipe", "link"] {
        let status = pod.try_create(&ContainerSpec::new(name, &image)).await.expect_err("that is no log");
        assert!(status.message().contains(&format!("{name}_0.log")), "{status}");
    }
    assert!(!node.scratch().join("elsewhere").exists());
    node.finish().await;
}

#[tokio::test]
#[ignore = "measures; asserts nothing"]
async fn how_fast_a_containers_log_is_copied() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let line = "x".repeat(99);
    let script = format!(
        "yes {line} | head -c 100000000 > /tmp/lines; echo ready; while [ ! -e /tmp/go ]; do sleep 0.1; done; \
         for i in 1 2 3 4 5 6 7 8 9 10; do dd if=/tmp/lines bs=64k 2>/dev/null; done"
    );
    let pod = node.pod("speed").await;
    let container = pod.start(&ContainerSpec::new("c", &image).script(&script)).await;
    container.logged("ready").await;
    let monitor = *node.footprint.monitors(&pod.id).first().expect("the pod has a monitor");
    let (before, begun) = (processor_time(monitor), Instant::now());
    container.shell("touch /tmp/go").await;
    container.exited().await;
    let (elapsed, used) = (begun.elapsed().as_secs_f64(), processor_time(monitor) - before);
    eprintln!(
        "log of 1 GB in lines of 100 bytes: {:.0} MB/s, {:.2} s of the monitor's processor time",
        1000.0 / elapsed,
        used.as_secs_f64()
    );
    node.finish().await;
}

#[tokio::test]
async fn a_container_without_a_log_has_nothing_to_reopen() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("silent").await;
    let spec = ContainerSpec::new("c", &image).script("while true; do echo x; sleep 0.01; done").with(|config| config.log_path.clear());
    let container = pod.start(&spec).await;
    reopen(&node, &container).await.expect("ReopenContainerLog");
    let left: Vec<_> = fs::read_dir(&pod.config.log_directory).expect("the log directory").collect();
    assert!(left.is_empty(), "{left:?}");
    node.finish().await;
}

/// The processor time that a process has used.
fn processor_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a living process");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name in brackets").1.split(' ').collect();
    // In the kernel's ticks for users, a hundred a second: of its own, and in the kernel.
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(10 * ticks)
}

/// How many bytes a container's processes have written so far.
fn written(container: &Container) -> u64 {
    let of = |pid: &i32| -> Option<u64> {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok())
    };
    container.host_pids().iter().filter_map(of).sum()
}

#[tokio::test]
async fn a_full_log_disk_costs_lines_that_are_counted_and_never_holds_up_the_container() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let disk = Disk::mount(&node, "1m");
    let pod = pod_logging_to(&node, &disk.0).await;
    let container = fill_log_disk(&node, &pod, &image, "No space left on device").await;
    count_lines_once_there_is_room(&mut node, &container).await;
    drop(disk);
    node.finish().await;
}

#[tokio::test]
async fn what_a_log_lost_is_counted_until_the_pod_is_stopped() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let disk = Disk::mount(&node, "1m");
    let pod = pod_logging_to(&node, &disk.0).await;
    let container = fill_log_disk(&node, &pod, &image, "No space left on device").await;
    let before = written(&container);
    pod.stop().await;
    let (_, bytes) = lost(&node, &container).await;
    // The disk has the rest, and line ends are not counted.
    assert!(bytes > before / 2, "{bytes} of {before} bytes are said to be missing");
    drop(disk);
    node.finish().await;
}

#[tokio::test]
async fn the_same_holds_when_the_log_disks_quota_is_used_up_and_who_would_begin_a_log_is_not_made() {
    if !Quota::is_possible() {
        return;
    }
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let directory = node.scratch().join("disk");
    fs::create_dir(&directory).expect("making a mount point");
    let quota = Quota::mount(&node.scratch().join("disk.file"), &directory);
    quota.limit(1 << 20);
    let pod = pod_logging_to(&node, &directory).await;
    let container = fill_log_disk(&node, &pod, &image, "Disk quota exceeded").await;
    // So that a file's end, which is given back when it is written out, is not enough to begin another.
    quota.limit(1);
    let error = pod.try_create(&ContainerSpec::new("late", &image)).await.expect_err("its log cannot be made");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    for word in ["making the container's log", &*directory.to_string_lossy(), "Disk quota exceeded", "the quota of its file system"] {
        assert!(error.message().contains(word), "{word:?}: {error}");
    }
    quota.limit(64 << 20);
    count_lines_once_there_is_room(&mut node, &container).await;
    quota.lift();
    pod.start(&ContainerSpec::new("late", &image)).await;
    pod.stop().await;
    pod.remove().await;
    drop(quota);
    node.finish().await;
}

/// Starts a container whose output has no room on its log's disk, and waits until it has gone on without.
async fn fill_log_disk(node: &Node, pod: &Pod, image: &str, problem: &str) -> Container {
    let script = format!("{}; echo done > /tmp/done; sleep 100000", numbers("stdout"));
    let container = pod.start(&ContainerSpec::new("c", image).script(&script)).await;
    eventually("a loss", || async { Some(lost(node, &container).await).filter(|lost| lost.0 > 0 && lost.1 > 0) }).await;
    let words = node.daemon_log();
    let told = |part: &str| words.lines().any(|line| line.contains("output of a container is missing in its log") && line.contains(part));
    assert!(told(&text(&container.log)) && told(problem), "{words}");
    let before = written(&container);
    eventually("the container to go on", || async { (written(&container) > before + (8 << 20)).then_some(()) }).await;
    container
}

/// Makes room by rotating the log of [`fill_log_disk`], lets two more daemons come, and counts.
async fn count_lines_once_there_is_room(node: &mut Node, container: &Container) {
    let mut follower = Follower::default();
    let old = rotate(node, container).await;
    follower.take(&old, "stdout");
    fs::remove_file(&old).expect("removing the old log");
    let full = follower.last;
    eventually("lines once there is room", || async { fs::metadata(&container.log).ok().filter(|log| log.len() > 1000) }).await;
    // What a daemon was told, or could not be told while there was none, the next one knows.
    node.restart().await;
    assert!(lost(node, container).await.0 > 0);
    let total = stop_numbers(container, "stdout").await;
    container.stop(0).await;
    node.restart().await;
    follower.take(&container.log, "stdout");
    assert!(full < follower.last, "there was no room for any after {full}");
    let (missing, bytes) = lost(node, container).await;
    assert_eq!(follower.entries + missing, total, "every line is in the log or counted");
    assert!(bytes > missing * 6 && bytes < missing * 20, "{bytes} bytes in {missing} lines");
}

#[tokio::test]
async fn long_lines_on_a_full_log_disk_are_whole_or_cut_and_never_joined() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let disk = Disk::mount(&node, "200k");
    let script = "x=$(head -c 40000 /dev/zero | tr '\\0' x); i=0; while true; do echo begin $i $x end; i=$((i+1)); done";
    let container = pod_logging_to(&node, &disk.0).await.start(&ContainerSpec::new("c", &image).script(script)).await;
    let mut whole = 0;
    for round in 1..=5 {
        let before = lost(&node, &container).await;
        let is_full = || fs::metadata(&container.log).is_ok_and(|log| log.len() > 150_000);
        eventually("a full disk", || async { is_full().then_some(()) }).await;
        let progress = written(&container);
        eventually("the container to go on", || async { (written(&container) > progress + (1 << 20)).then_some(()) }).await;
        // There is room again in the same file: what is cut in it has to be ended.
        let file = fs::OpenOptions::new().write(true).open(&container.log).expect("opening the log");
        whole += check_long_lines(&container.log);
        file.set_len(0).expect("emptying the log");
        eventually("lines once there is room", || async { fs::metadata(&container.log).ok().filter(|log| log.len() > 60_000) }).await;
        whole += check_long_lines(&container.log);
        assert!(before.0 > 0 || round == 1, "losses are told");
    }
    assert!(whole > 10, "{whole}");
    container.stop(0).await;
    assert!(lost(&node, &container).await.0 > 0);
    drop(disk);
    node.finish().await;
}

/// Checks that no two lines became one in a log that is being written; how many are whole.
fn check_long_lines(path: &Path) -> usize {
    let file = fs::read(path).expect("reading the log");
    let end = file.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = log::lines(&log::parse(&file[..end]), "stdout");
    for line in &lines {
        let joined = line.matches("begin").count() > 1 || line.matches("end").count() > 1;
        assert!(!joined && (line.is_empty() || line.starts_with("begin ")), "a line of {} bytes: {:.40}", line.len(), line);
    }
    lines.iter().filter(|line| line.ends_with(" end")).count()
}

#[tokio::test]
async fn lines_of_any_length_and_content_are_logged_as_they_are() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let line = |length: usize| format!("head -c {length} /dev/zero | tr '\\0' a; echo");
    let script = format!("{}; {}; {}; printf 'crlf\\r\\n\\377\\001\\n'; printf tail", line(16384), line(16385), line(32768));
    let container = node.pod("lines").await.start(&ContainerSpec::new("c", &image).script(&script)).await;
    container.exited().await;
    let file = fs::read(&container.log).expect("reading the log");
    let entries: Vec<(u8, &[u8])> =
        file.split_inclusive(|byte| *byte == b'\n').map(|entry| (entry[38], &entry[40..entry.len() - 1])).collect();
    let lengths: Vec<(char, usize)> = entries.iter().map(|(tag, content)| (char::from(*tag), content.len())).collect();
    let expected = [('F', 16384), ('P', 16384), ('F', 1), ('P', 16384), ('F', 16384), ('F', 5), ('F', 2), ('P', 4)];
    assert_eq!(lengths[..], expected);
    assert_eq!(entries[5..].iter().map(|(_, content)| *content).collect::<Vec<_>>(), [&b"crlf\r"[..], b"\xff\x01", b"tail"]);
    node.finish().await;
}
