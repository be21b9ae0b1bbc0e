//! Containers' logs under load and on bad disks: rotation as the kubelet does it, full and read-only file systems.
//! What is in the log is whole and in order, and what is not is counted.

use std::fs;
use std::path::{Path, PathBuf};

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

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
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
    time: Vec<u8>,
    last: u64,
    entries: u64,
    gaps: u64,
}

impl Follower {
    /// Takes the entries of one stream in a file of [`numbers`].
    fn take(&mut self, file: &[u8], stream: &str) {
        assert!(file.is_empty() || file.ends_with(b"\n"), "the file ends in the middle of an entry");
        let mark = format!(" {stream} F line ");
        for entry in file.split_inclusive(|byte| *byte == b'\n').map(|entry| &entry[..entry.len() - 1]) {
            assert!(entry.len() > TIME + mark.len() && entry[TIME - 1] == b'Z', "{}", String::from_utf8_lossy(entry));
            let (time, rest) = entry.split_at(TIME);
            let Some(number) = rest.strip_prefix(mark.as_bytes()) else {
                let other = [&b" stdout F line "[..], b" stderr F line "].iter().any(|mark| rest.starts_with(mark));
                assert!(other, "{}", String::from_utf8_lossy(entry));
                continue;
            };
            let number: u64 = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok()).expect("a number");
            assert!(number > self.last, "{number} comes after {}", self.last);
            assert!(time >= &self.time[..], "the time goes back at {number}");
            self.gaps += u64::from(number != self.last + 1);
            (self.last, self.entries) = (number, self.entries + 1);
            self.time.clear();
            self.time.extend_from_slice(time);
        }
    }
}

#[tokio::test]
async fn a_hundred_rotations_under_load_lose_no_line() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let script = format!("{} & {}; wait; echo done > /tmp/done; sleep 100000", numbers("stderr"), numbers("stdout"));
    let container = node.pod("rotated").await.start(&ContainerSpec::new("c", &image).script(&script)).await;
    let (mut output, mut error) = (Follower::default(), Follower::default());
    let mut take = |path: &Path| {
        let file = fs::read(path).expect("reading the log");
        output.take(&file, "stdout");
        error.take(&file, "stderr");
        (output.last, error.last)
    };
    for _ in 0..100 {
        // Once the call is answered nothing more comes to the old file.
        let old = rotate(&node, &container).await;
        take(&old);
        fs::remove_file(&old).expect("removing the old log");
    }
    let totals = (stop_numbers(&container, "stdout").await, stop_numbers(&container, "stderr").await);
    container.stop(0).await;
    assert_eq!(take(&container.log), totals, "the last ones are there");
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
    host::run("umount", &[&disk_path]).expect("unmounting");
    if !node.target.is_foreign() {
        let path = text(&container.log);
        assert!(["opening the log", &path, "Read-only file system"].iter().all(|part| refused.message().contains(part)), "{refused}");
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
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let disk = Disk::mount(&node, "1m");
    let script = format!("{}; echo done > /tmp/done; sleep 100000", numbers("stdout"));
    let container = pod_logging_to(&node, &disk.0).await.start(&ContainerSpec::new("c", &image).script(&script)).await;
    eventually("a loss", || async { Some(lost(&node, &container).await).filter(|lost| lost.0 > 0 && lost.1 > 0) }).await;
    let words = fs::read_to_string(node.scratch().join("daemon.log")).expect("the daemon's log");
    let told = |part: &str| words.lines().any(|line| line.contains("output of a container is missing in its log") && line.contains(part));
    assert!(told(&text(&container.log)) && told("No space left on device"), "{words}");
    let before = written(&container);
    eventually("the container to go on", || async { (written(&container) > before + (8 << 20)).then_some(()) }).await;

    let mut follower = Follower::default();
    let mut room = || {
        let old = container.log.with_extension("old");
        follower.take(&fs::read(&old).expect("reading the log"), "stdout");
        fs::remove_file(&old).expect("removing the old log");
        (follower.last, follower.entries)
    };
    rotate(&node, &container).await;
    let (full, _) = room();
    eventually("lines once there is room", || async { fs::metadata(&container.log).ok().filter(|log| log.len() > 1000) }).await;
    let total = stop_numbers(&container, "stdout").await;
    container.stop(0).await;
    fs::rename(&container.log, container.log.with_extension("old")).expect("moving the log");
    let (last, entries) = room();
    assert!(full < last, "there was no room for any after {full}");
    let (missing, bytes) = lost(&node, &container).await;
    assert_eq!(entries + missing, total, "every line is in the log or counted");
    assert!(bytes > missing * 6 && bytes < missing * 20, "{bytes} bytes in {missing} lines");
    drop(disk);
    node.finish().await;
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
