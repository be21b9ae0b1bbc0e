//! Callers that mean no good, or mean well and are broken: whatever they send, open and leave lying, the daemon answers others,
//! and what it costs stays bounded. Whose files are whose.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use coracle_e2e::{Code, ContainerSpec, Cri, Node, PodSpec, api, host, leaks, wire};
use futures_util::future::join_all;
use rustix::process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit};

const MIB: usize = 1 << 20;
/// What begins every HTTP/2 connection, and empty SETTINGS (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The most memory the daemon ever had, bytes.
fn most_memory(node: &Node) -> usize {
    let field = host::status_field(node.daemon_pid(), "VmHWM");
    field.trim_end_matches(" kB").parse::<usize>().unwrap_or_else(|_| panic!("VmHWM is {field:?}")) << 10
}

fn descriptors(node: &Node) -> usize {
    fs::read_dir(format!("/proc/{}/fd", node.daemon_pid())).expect("listing the daemon's descriptors").count()
}

/// Lets this process have as many connections as it may.
fn raise_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("raising the limit on open files");
}

/// A list of pods whose filter has a label of so many bytes.
async fn ask(cri: &Cri, bytes: usize) -> Result<Vec<api::PodSandbox>, coracle_e2e::Status> {
    let filter = api::PodSandboxFilter { label_selector: [("key".to_owned(), "v".repeat(bytes))].into(), ..Default::default() };
    cri.pods(Some(filter)).await
}

#[tokio::test]
async fn a_request_of_sixteen_mib_is_read_and_a_larger_one_is_not() {
    let Some(node) = Node::own().await else { return };
    assert_eq!(ask(&node.cri, 16 * MIB - 100).await.expect("it is not too large"), []);
    let before = most_memory(&node);
    let refused = ask(&node.cri, 16 * MIB + 1).await.expect_err("it is too large");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    // A hundred at once: some are told that there is no room now, none costs what it may not.
    let clients: Vec<_> = (0..100).map(|_| Cri::new(node.cri.socket())).collect();
    for answer in join_all(clients.iter().map(|cri| ask(cri, 15 * MIB))).await {
        let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
        assert!([Code::Ok, Code::ResourceExhausted].contains(&code), "{code}");
    }
    let most = most_memory(&node);
    assert!(most < before + 800 * MIB, "{} MiB before, {} MiB at most", before / MIB, most / MIB);
    node.cri.version().await.expect("the daemon goes on");
    node.finish().await;
}

#[tokio::test]
async fn a_hundred_thousand_mounts_and_variables_are_refused_or_taken_but_never_the_end() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("lists").await;
    let many = ContainerSpec::new("mounts", &image).with(|config| {
        config.mounts = (0..100_000)
            .map(|n| api::Mount { container_path: format!("/m/{n}"), host_path: "/tmp".into(), ..Default::default() })
            .collect();
    });
    if let Ok(container) = pod.try_create(&many).await {
        container.remove().await;
    }
    let many = ContainerSpec::new("variables", &image).with(|config| {
        config.envs = (0..100_000).map(|n| api::KeyValue { key: format!("V{n}"), value: "x".into() }).collect();
    });
    if let Ok(container) = pod.try_create(&many).await {
        // The kernel has its own idea of how much a program may be told.
        assert!(node.cri.start(&container.id).await.is_err() || container.exec(&["/bin/true"]).await.code == 0);
        container.remove().await;
    }
    let alive = pod.start(&ContainerSpec::new("alive", &image)).await;
    assert_eq!(alive.exec(&["/bin/true"]).await.code, 0);
    node.finish().await;
}

#[tokio::test]
async fn ten_thousand_calls_at_once_are_answered() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let container = node.pod("calls").await.start(&ContainerSpec::new("c", &image)).await;
    let (memory, files) = (most_memory(&node), descriptors(&node));
    let clients: Vec<_> = (0..50).map(|_| Cri::new(node.cri.socket())).collect();
    let calls = clients.iter().flat_map(|cri| (0..200).map(move |_| cri.clone())).enumerate().map(|(index, cri)| {
        let container = &container;
        async move {
            match index % 100 {
                0 => drop(cri.exec(&container.id, &["/bin/true"], 60).await.expect("ExecSync")),
                odd if odd % 2 == 1 => drop(cri.containers(None).await.expect("ListContainers")),
                _ => drop(cri.status(&container.id).await.expect("ContainerStatus")),
            }
        }
    });
    join_all(calls).await;
    let most = most_memory(&node);
    assert!(most < memory + 400 * MIB, "{} MiB before, {} MiB at most", memory / MIB, most / MIB);
    drop(clients);
    coracle_e2e::eventually("the daemon's descriptors are as few as before", || async { (descriptors(&node) <= files + 16).then_some(()) })
        .await;
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    node.finish().await;
}

#[tokio::test]
async fn ten_thousand_idle_connections_lock_nobody_out() {
    let Some(node) = Node::own().await else { return };
    raise_descriptors();
    let (memory, files) = (most_memory(&node), descriptors(&node));
    let socket = node.cri.socket().to_owned();
    let silent = tokio::task::spawn_blocking(move || -> Vec<UnixStream> {
        (0..10_000).map(|_| UnixStream::connect(&socket).expect("connecting")).collect()
    });
    let silent = silent.await.expect("10,000 connections");
    // One that is known, whose idle connection may have made room for others, and a new one.
    coracle_e2e::eventually("an answer to the one that is known", || async { node.cri.version().await.ok() }).await;
    Cri::new(node.cri.socket()).version().await.expect("Version on a new connection");
    assert!(descriptors(&node) < files + 600, "{} descriptors", descriptors(&node));
    let most = most_memory(&node);
    assert!(most < memory + 200 * MIB, "{} MiB before, {} MiB at most", memory / MIB, most / MIB);
    drop(silent);
    node.finish().await;
}

#[tokio::test]
async fn garbage_is_heard_to_its_end_and_harms_nobody() {
    let Some(node) = Node::own().await else { return };
    let noise: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let zeros = vec![0; 100_000];
    let odd_frame = [PREFACE, &[0xff; 100]].concat();
    let parts: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &noise,
        &zeros,
        &PREFACE[..10],
        PREFACE,
        &odd_frame,
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    ];
    for part in parts {
        let mut stream = UnixStream::connect(node.cri.socket()).expect("connecting");
        // It may be closed before all is said.
        let _ = stream.write_all(part);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        tokio::task::spawn_blocking(move || drop(stream.read_to_end(&mut Vec::new()))).await.expect("it is closed");
    }
    // A message that is none.
    let status = node.cri.raw("RunPodSandbox", wire::bytes(1, &[0xff; 40])).await.expect_err("it is no message");
    assert!([Code::Internal, Code::InvalidArgument].contains(&status.code()), "{status}");
    node.cri.version().await.expect("the daemon goes on");
    node.finish().await;
}

/// Opens stream `stream` for a call of Version, without its message (RFC 9113, section 6.2; RFC 7541, section 6).
fn headers(stream: u32) -> Vec<u8> {
    let path = b"/runtime.v1.RuntimeService/ListMetricDescriptors";
    // :method POST and :scheme http by their numbers, the rest by their names.
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path);
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        block.extend([0, name.len() as u8]);
        block.extend(name.bytes());
        block.push(value.len() as u8);
        block.extend(value.bytes());
    }
    frame(1, 4, stream, &block)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = (payload.len() as u32).to_be_bytes();
    [&[high, middle, low, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn a_flood_of_resets_is_cut_off() {
    let Some(node) = Node::own().await else { return };
    let memory = most_memory(&node);
    let socket = node.cri.socket().to_owned();
    let flood = move || {
        let mut stream = UnixStream::connect(socket).expect("connecting");
        stream.write_all(PREFACE).expect("the preface");
        // It is either closed, or takes everything in.
        (0..200_000_u32).all(|n| {
            let number = 2 * n + 1;
            let both = [headers(number), frame(3, 0, number, &8_u32.to_be_bytes())].concat();
            stream.write_all(&both).is_ok()
        })
    };
    tokio::task::spawn_blocking(flood).await.expect("the flood");
    node.cri.version().await.expect("the daemon goes on");
    let most = most_memory(&node);
    assert!(most < memory + 100 * MIB, "{} MiB before, {} MiB at most", memory / MIB, most / MIB);
    node.finish().await;
}

#[tokio::test]
async fn who_asks_and_never_reads_costs_little() {
    let Some(node) = Node::own().await else { return };
    let memory = most_memory(&node);
    let mut deaf = Vec::new();
    // More calls than there may be in all.
    for _ in 0..60 {
        let mut stream = UnixStream::connect(node.cri.socket()).expect("connecting");
        stream.write_all(PREFACE).expect("the preface");
        stream.set_write_timeout(Some(std::time::Duration::from_secs(1))).expect("a limit");
        for n in 0..1000_u32 {
            let call = [headers(2 * n + 1), frame(0, 1, 2 * n + 1, &[0; 5])].concat();
            if stream.write_all(&call).is_err() {
                break;
            }
        }
        deaf.push(stream);
    }
    node.cri.version().await.expect("the daemon answers others");
    let most = most_memory(&node);
    assert!(most < memory + 600 * MIB, "{} MiB before, {} MiB at most", memory / MIB, most / MIB);
    drop(deaf);
    node.finish().await;
}

#[tokio::test]
async fn a_caller_who_is_not_root_is_turned_away() {
    let Some(node) = Node::own().await else { return };
    let socket = node.cri.socket().to_owned();
    let found = fs::symlink_metadata(&socket).expect("looking at the socket");
    assert!(found.file_type().is_socket());
    assert_eq!((found.permissions().mode() & 0o7777, found.uid(), found.gid()), (0o660, 0, 0));
    // Even if somebody opens every door on the way.
    fs::set_permissions(node.scratch(), fs::Permissions::from_mode(0o711)).expect("opening the directory");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("opening the socket");
    let nobody = 65534;
    for group in [nobody, 0] {
        let socket = socket.clone();
        let stranger = std::thread::spawn(move || {
            rustix::thread::set_thread_groups(&[]).expect("leaving root's groups");
            let group = Gid::from_raw(group);
            rustix::thread::set_thread_res_gid(group, group, group).expect("becoming somebody else");
            let user = Uid::from_raw(nobody);
            rustix::thread::set_thread_res_uid(user, user, user).expect("becoming somebody else");
            let mut stream = UnixStream::connect(socket).expect("every door is open");
            let _ = stream.write_all(PREFACE);
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard);
            heard
        });
        assert_eq!(stranger.join().expect("the stranger"), b"", "nothing is said to a stranger of group {group}");
    }
    node.cri.version().await.expect("root is served");
    node.finish().await;
}

/// Everything in `directory` that somebody who is not root could get at, with what is wrong about it.
fn exposed(directory: &Path, found: &mut Vec<String>) {
    // What goes meanwhile is nobody's to get at.
    let Ok(stat) = fs::symlink_metadata(directory) else { return };
    let complaint =
        |path: &Path, stat: &fs::Metadata| format!("{} has mode {:o} and owner {}", path.display(), stat.mode() & 0o7777, stat.uid());
    if ![0o700, 0o711].contains(&(stat.mode() & 0o7777)) || stat.uid() != 0 {
        found.push(complaint(directory, &stat));
    }
    if stat.mode() & 0o011 == 0 {
        return;
    }
    let entries: Vec<PathBuf> = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    for path in entries {
        let Ok(stat) = fs::symlink_metadata(&path) else { continue };
        let shown = ["resolv.conf", "hostname", "hosts"].iter().any(|name| path.ends_with(name));
        if stat.is_dir() {
            exposed(&path, found);
        } else if stat.uid() != 0 || stat.mode() & if shown { 0o022 } else { 0o027 } != 0 && !stat.file_type().is_socket() {
            found.push(complaint(&path, &stat));
        }
    }
}

/// The files of the daemon's, its log among them, that contain `text`.
fn keepers(node: &Node, text: &str) -> Vec<PathBuf> {
    let others = ["registry", "bin"].map(|name| node.scratch().join(name));
    let mut files = leaks::tree(node.scratch());
    files.retain(|path| !others.iter().any(|other| path.starts_with(other)));
    files.retain(|path| fs::symlink_metadata(path).is_ok_and(|stat| stat.is_file()));
    let keeps = |path: &PathBuf| {
        // A pinned namespace cannot be read, and what has gone meanwhile keeps nothing.
        let content = fs::read(path).unwrap_or_default();
        content.windows(text.len()).any(|part| part == text.as_bytes())
    };
    files.into_iter().filter(keeps).collect()
}

#[tokio::test]
async fn nothing_of_the_daemons_is_for_others() {
    const SECRET: &str = "a-password-nobody-should-see";
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let auth = api::AuthConfig { username: "user".into(), password: SECRET.into(), ..Default::default() };
    let _ = node.cri.pull(&image, Some(auth)).await;
    let pod = node.run(&PodSpec::new("files")).await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    let mut found = Vec::new();
    // Both were made by the harness; what is in them was not.
    for directory in [&node.footprint.state, &node.footprint.storage] {
        for entry in fs::read_dir(directory).expect("listing a directory").flatten().filter(|entry| entry.path().is_dir()) {
            exposed(&entry.path(), &mut found);
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(!keepers(&node, &pod.id).is_empty(), "what is kept is found");
    let keepers = keepers(&node, SECRET);
    assert!(keepers.is_empty(), "a password is kept in {keepers:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_command_that_is_too_long_for_kernel_or_monitor_costs_only_its_call() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("long").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let first = container.host_pids();
    // A control character takes six bytes on the way to the monitor.
    for (letter, problem) in [("a", "Argument list too long"), ("\u{1}", "Message too long")] {
        let error = node.cri.exec(&container.id, &["/bin/true", &letter.repeat(15 * MIB)], 0).await.expect_err("it is too long");
        assert!(error.message().contains(problem), "{error}");
        assert_eq!(container.exec(&["/bin/true"]).await.code, 0, "after {problem:?}");
    }
    // So is the name of a program: it is told as far as it could be one.
    for length in [20_000, 300_000] {
        let name = "a".repeat(length);
        let error = node.cri.exec(&container.id, &[&name], 0).await.expect_err("no program has this name");
        assert!(error.message().contains("File name too long"), "{error}");
        let never = pod.create(&ContainerSpec::new(&format!("c{length}"), &image).with(|config| config.command = vec![name])).await;
        let error = node.cri.start(&never.id).await.expect_err("no program has this name");
        assert!(error.message().contains("File name too long"), "{error}");
        assert_eq!(container.exec(&["/bin/true"]).await.code, 0, "after {length} letters");
    }
    assert_eq!(container.host_pids()[..1], first, "the container noticed nothing");
    node.finish().await;
}
