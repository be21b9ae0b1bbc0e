//! A pod without a daemon: a scratch directory with a busybox image, a monitor, and a client of a few lines that
//! shares no code with the real one but the protocol's types.

#![allow(dead_code, missing_docs, missing_debug_implementations, unreachable_pub)]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_monitor::protocol::*;
use coracle_plan::*;
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recvmsg, sendmsg, socketpair,
};

pub const PATIENCE: Duration = Duration::from_secs(20);
const BUSYBOX: &str = "/usr/bin/busybox";

/// Whether these tests can run; says why not.
pub fn possible() -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return false;
    }
    if !Path::new(BUSYBOX).exists() {
        eprintln!("skipped: needs {BUSYBOX} (Debian's busybox-static)");
        return false;
    }
    true
}

pub fn program() -> PathBuf {
    std::env::var_os("CORACLE_MONITOR").map_or_else(|| env!("CARGO_BIN_EXE_coracle-monitor").into(), PathBuf::from)
}

/// A monitor with its directory.
pub struct Pod {
    pub directory: tempfile::TempDir,
    pub client: Client,
    child: Child,
    containers: usize,
}

impl Pod {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        make_image(&path.join("image"));
        let listener = UnixListener::bind(path.join("monitor.sock")).unwrap();
        let started = Instant::now();
        let child = Command::new(program())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(File::create(path.join("monitor.log")).unwrap())
            .spawn()
            .unwrap();
        let mut client = Client::connect(path);
        assert!(
            matches!(client.call(Request::Hello), Reply::Hello { version: VERSION, revision: REVISION, pid } if pid as u32 == child.id())
        );
        eprintln!("monitor up in {:?}", started.elapsed());
        Self { directory, client, child, containers: 0 }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn prepare(&mut self, change: impl FnOnce(&mut Prepare)) -> Reply {
        let mut prepare = Prepare {
            pins: self.path("pins"),
            network: true,
            ipc: true,
            hostname: Some("pod-one".to_owned()),
            sysctls: vec![
                ("net.ipv4.ip_unprivileged_port_start".to_owned(), "79".to_owned()),
                ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
            ],
            share_pid: false,
            user: None,
            time_offsets: Vec::new(),
        };
        change(&mut prepare);
        self.client.call(Request::Prepare(prepare))
    }

    /// The usual plan, with the image's layer below a writable one of its own.
    pub fn plan(&mut self, script: &str) -> Plan {
        self.containers += 1;
        let own = self.path(&format!("c{}", self.containers));
        for name in ["root", "upper", "work"] {
            fs::create_dir_all(own.join(name)).unwrap();
        }
        let layers = Step::Overlay { lower: vec![self.path("image")], upper: own.join("upper"), work: own.join("work"), label: None };
        Plan {
            cgroups: Cgroups::default(),
            namespaces: Namespaces { pid: PidNamespace::New, cgroup: true, user: None },
            root: own.join("root"),
            steps: usual_steps(layers, &self.path("image/etc/group")),
            process: process(&["/bin/sh", "-c", script]),
        }
    }

    /// The call that starts a container `id`.
    pub fn start_of(&self, id: &str, plan: &Plan) -> Request {
        let file = self.path(&format!("{id}.plan"));
        fs::write(&file, serde_json::to_vec(plan).unwrap()).unwrap();
        Request::Start(Start {
            container: id.to_owned(),
            plan: file,
            exit: self.path(&format!("{id}.exit")),
            log: Some(self.path(&format!("logs/{id}/0.log"))),
            stdin: false,
            oom: None,
        })
    }

    /// Asks for a container `id` to be started.
    pub fn try_start(&mut self, id: &str, plan: &Plan) -> Reply {
        let start = self.start_of(id, plan);
        self.client.call(start)
    }

    pub fn start(&mut self, id: &str, plan: &Plan) -> i32 {
        match self.try_start(id, plan) {
            Reply::Started { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a script in a container of its own to its end; returns exit and log.
    pub fn run(&mut self, id: &str, plan: &Plan) -> (ExitRecord, String) {
        self.start(id, plan);
        let exit = self.client.exit_of(id);
        self.client.call(Request::Forget { container: id.to_owned() });
        (exit, self.log(id))
    }

    /// A container's log without times, as far as its lines are whole: readers see a file grow page by page.
    pub fn log(&self, id: &str) -> String {
        let text = String::from_utf8_lossy(&fs::read(self.path(&format!("logs/{id}/0.log"))).unwrap()).into_owned();
        text[..text.rfind('\n').map_or(0, |end| end + 1)].lines().map(|line| format!("{}\n", line.get(31..).unwrap())).collect()
    }

    /// Waits until a container's log holds something.
    pub fn await_log(&self, id: &str, wanted: &str) {
        let begun = Instant::now();
        while !self.log(id).contains(wanted) {
            assert!(begun.elapsed() < PATIENCE, "no {wanted:?} in {:?}", self.log(id));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn exec(&mut self, name: &str, container: &str, process: Process) -> (Reply, ExecStreams) {
        let exec = exec(name, container, process);
        let (output, theirs_output) = std::io::pipe().unwrap();
        let (error, theirs_error) = std::io::pipe().unwrap();
        let input = File::open("/dev/null").unwrap();
        let streams: [OwnedFd; 3] = [input.into(), theirs_output.into(), theirs_error.into()];
        self.client.send(Request::Exec(Box::new(exec)), &streams);
        drop(streams);
        (self.client.reply(), ExecStreams { output, error })
    }

    /// The same with a terminal: the reply and the master side.
    pub fn exec_in_terminal(&mut self, name: &str, container: &str, process: Process) -> (Reply, File) {
        let exec = exec(name, container, process);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let null = || File::open("/dev/null").unwrap().into();
        self.client.send(Request::Exec(Box::new(exec)), &[theirs, null(), null()]);
        let reply = self.client.reply();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&ours, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        (reply, master.expect("a terminal").into())
    }
}

/// A program to run in a container, in no cgroup of its own, answered at its start.
pub fn exec(name: &str, container: &str, process: Process) -> Exec {
    Exec { exec: name.to_owned(), container: container.to_owned(), process, cgroups: Cgroups::default(), answer: Answer::AtStart }
}

/// What comes from a terminal until it ends with `wanted`.
pub fn read_until(master: &mut File, wanted: &str) -> String {
    let (mut said, begun) = (String::new(), Instant::now());
    while !said.ends_with(wanted) {
        assert!(begun.elapsed() < PATIENCE, "no {wanted:?} in {said:?}");
        let mut bytes = [0; 64];
        match master.read(&mut bytes) {
            Ok(length) => said.push_str(std::str::from_utf8(&bytes[..length]).unwrap()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("{error} after {said:?}"),
        }
    }
    said
}

/// What can be read of a terminal until nobody has it open any more, or nothing is left.
pub fn read_terminal(master: &mut File) -> String {
    let mut said = Vec::new();
    // At its end a terminal fails with EIO.
    let _ = master.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

pub struct ExecStreams {
    pub output: std::io::PipeReader,
    pub error: std::io::PipeReader,
}

impl Pod {
    /// Whether the monitor, which does not listen any more, ends: it may be about to.
    fn ends_by_itself(&mut self) -> bool {
        for _ in 0..500 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Not through the client, which panics: there may be a panic under way.
        let frame = br#"{"id":1,"request":"Shutdown"}"#;
        // Held until the end: a connection that cannot be told of an event is dropped, and with it what it asked for.
        let asked = UnixStream::connect(self.path("monitor.sock"))
            .and_then(|mut stream| stream.write_all(&[&(frame.len() as u32).to_le_bytes()[..], frame].concat()).map(|()| stream));
        if asked.is_err() && !self.ends_by_itself() {
            let _ = self.child.kill();
        }
        let ended = self.child.wait();
        for pin in ["net", "ipc", "uts", "pid", "user", "time"] {
            let _ = unmount(self.path("pins").join(pin), UnmountFlags::DETACH);
        }
        eprint!("{}", fs::read_to_string(self.path("monitor.log")).unwrap_or_default());
        if !std::thread::panicking() {
            // Also when it had ended before it was asked to.
            assert!(ended.unwrap().success());
        }
    }
}

/// A connection that waits.
pub struct Client {
    pub stream: UnixStream,
    pub events: VecDeque<Event>,
    replies: VecDeque<(u64, Reply)>,
    last: u64,
}

impl Client {
    pub fn connect(directory: &Path) -> Self {
        let stream = UnixStream::connect(directory.join("monitor.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, events: VecDeque::new(), replies: VecDeque::new(), last: 0 }
    }

    pub fn call(&mut self, request: Request) -> Reply {
        self.send(request, &[]);
        self.reply()
    }

    pub fn send(&mut self, request: Request, descriptors: &[OwnedFd]) -> u64 {
        self.last += 1;
        let content = serde_json::to_vec(&Call { id: self.last, request }).unwrap();
        let frame = [&u32::try_from(content.len()).unwrap().to_le_bytes()[..], &content].concat();
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        let sent = sendmsg(&self.stream, &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL).unwrap();
        assert_eq!(sent, frame.len());
        self.last
    }

    /// The reply to the last call.
    pub fn reply(&mut self) -> Reply {
        self.reply_to(self.last)
    }

    pub fn reply_to(&mut self, call: u64) -> Reply {
        loop {
            if let Some(index) = self.replies.iter().position(|(id, _)| *id == call) {
                return self.replies.remove(index).unwrap().1;
            }
            self.read_one();
        }
    }

    pub fn event(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            if let Some(index) = self.events.iter().position(&wanted) {
                return self.events.remove(index).unwrap();
            }
            self.read_one();
        }
    }

    pub fn exit_of(&mut self, id: &str) -> ExitRecord {
        match self.event(|event| matches!(event, Event::Exited { container, .. } if container == id)) {
            Event::Exited { exit, .. } => exit,
            _ => unreachable!(),
        }
    }

    pub fn exec_exit(&mut self, name: &str) -> i32 {
        match self.event(|event| matches!(event, Event::ExecExited { exec, .. } if exec == name)) {
            Event::ExecExited { code, .. } => code,
            _ => unreachable!(),
        }
    }

    pub fn states(&mut self) -> Vec<ContainerState> {
        match self.call(Request::State) {
            Reply::State { containers, .. } => containers,
            other => panic!("{other:?}"),
        }
    }

    fn read_one(&mut self) {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).unwrap();
        let mut content = vec![0; u32::from_le_bytes(header) as usize];
        self.stream.read_exact(&mut content).unwrap();
        match serde_json::from_slice(&content).unwrap() {
            Message::Reply { id, reply } => self.replies.push_back((id, reply)),
            Message::Event(event) => self.events.push_back(event),
        }
    }

    /// Sends raw bytes and reports whether the monitor closed the connection.
    pub fn closes_after(mut self, bytes: &[u8]) -> bool {
        let _ = self.stream.write_all(bytes);
        matches!(self.stream.read(&mut [0; 16]), Ok(0)) || self.stream.take_error().unwrap().is_some()
    }
}

pub fn make_image(path: &Path) {
    for name in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
        fs::create_dir_all(path.join(name)).unwrap();
    }
    place(&fs::read(BUSYBOX).unwrap(), &path.join("bin/busybox"));
    for name in [
        "sh", "cat", "sleep", "ls", "id", "mount", "true", "yes", "head", "dd", "tr", "readlink", "grep", "tty", "hostname", "seq", "test",
        "kill", "ps",
    ] {
        std::os::unix::fs::symlink("busybox", path.join("bin").join(name)).unwrap();
    }
    fs::write(path.join("etc/group"), "root:x:0:\n").unwrap();
    place(b"#!/no/such/interpreter\n", &path.join("etc/script"));
}

/// Makes a program. Not in this process: whoever is started by another test at that moment would for a while hold the file
/// open for writing, and nobody can run it then (ETXTBSY).
fn place(content: &[u8], path: &Path) {
    let mut install = Command::new("install").args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped()).spawn().unwrap();
    install.stdin.take().unwrap().write_all(content).unwrap();
    assert!(install.wait().unwrap().success());
}

pub fn process(arguments: &[&str]) -> Process {
    // The default set of container runtimes.
    let capabilities = 0xa80425fb;
    Process {
        arguments: arguments.iter().map(|argument| Bytes::from(*argument)).collect(),
        environment: vec![Bytes::from("PATH=/bin")],
        working_directory: Bytes::from("/"),
        user: User::default(),
        capabilities: Capabilities { bounding: capabilities, effective: capabilities, permitted: capabilities, inheritable: 0, ambient: 0 },
        no_new_privileges: true,
        seccomp: None,
        apparmor: None,
        selinux: None,
        rlimits: vec![Rlimit { resource: 4, soft: 0, hard: 0 }],
        oom_score_adj: Some(500),
        terminal: false,
    }
}

pub const SAFE: MountFlags = MountFlags { access: Access::ReadWrite, noexec: true, nosuid: true, nodev: true, noatime: false };

pub fn filesystem(kind: &str, target: &str, flags: MountFlags, options: &[(&str, &str)]) -> Step {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (!value.is_empty()).then(|| (*value).to_owned()))).collect();
    Step::Filesystem { kind: kind.to_owned(), source: kind.to_owned(), target: target.into(), flags, options }
}

pub fn bind(source: &Path, target: &str) -> Step {
    Step::Bind {
        source: source.to_owned(),
        target: target.into(),
        recursive: true,
        flags: MountFlags::default(),
        flags_beneath: MountFlags::default(),
        propagation: Propagation::Private,
        mapped: false,
    }
}

/// What a pod's container usually needs: 41 steps.
pub fn usual_steps(layers: Step, file: &Path) -> Vec<Step> {
    let mut steps = vec![Step::Propagate(Propagation::Slave), layers];
    steps.push(filesystem("proc", "/proc", SAFE, &[]));
    let dev = MountFlags { nosuid: true, ..MountFlags::default() };
    steps.push(filesystem("tmpfs", "/dev", dev, &[("mode", "755"), ("size", "65536k")]));
    let pts = MountFlags { noexec: true, nosuid: true, ..MountFlags::default() };
    steps.push(filesystem("devpts", "/dev/pts", pts, &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")]));
    steps.push(filesystem("mqueue", "/dev/mqueue", SAFE, &[]));
    steps.push(filesystem("tmpfs", "/dev/shm", SAFE, &[("mode", "1777"), ("size", "65536k")]));
    steps.push(filesystem("sysfs", "/sys", MountFlags { access: Access::ReadOnly, ..SAFE }, &[]));
    for target in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log", "/run/secrets/token"] {
        steps.push(bind(file, target));
    }
    for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
        steps.push(device(&format!("/dev/{name}"), 1, minor));
    }
    steps.push(device("/dev/tty", 5, 0));
    for (name, content) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        steps.push(Step::Symlink { target: Path::new("/dev").join(name), content: content.into() });
    }
    steps.push(Step::PivotRoot);
    for target in ["acpi", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi"] {
        steps.push(Step::Mask { target: Path::new("/proc").join(target) });
    }
    steps.push(Step::Mask { target: "/sys/firmware".into() });
    for target in ["bus", "fs", "irq", "sys", "sysrq-trigger"] {
        steps.push(Step::ReadOnly { target: Path::new("/proc").join(target) });
    }
    steps
}

pub fn device(target: &str, major: u32, minor: u32) -> Step {
    Step::Device { target: target.into(), kind: DeviceKind::Character, major, minor, mode: 0o666, uid: 0, gid: 0 }
}
