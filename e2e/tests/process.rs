//! What a container's process starts from: command, signals, streams, terminal, environment, limits; none of it the daemon's.
//! Looked at from inside and in the kernel's own files on the host.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use coracle_e2e::api::ContainerState;
use coracle_e2e::host::field;
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::{Code, Container, ContainerSpec, Node, number, skip, strings, wire};
use serde_json::json;

/// `ContainerConfig.stop_signal` and `ContainerStatus.stop_signal`.
const ASKED_SIGNAL: u32 = 18;
const TOLD_SIGNAL: u32 = 19;
/// Of CRI's alphabetical index.
const INDEX_OF_TERM: u64 = 23;
const INDEX_OF_USR1: u64 = 29;
const INDEX_OF_RTMIN_3: u64 = 38;

/// The stop signal that a container's status tells, as CRI's index.
async fn told_signal(node: &Node, container: &Container) -> u64 {
    let answer = node.cri.raw("ContainerStatus", wire::bytes(1, container.id.as_bytes())).await.expect("ContainerStatus");
    let [wire::Value::Bytes(status)] = &wire::find(&answer, 1)[..] else { panic!("one status in {answer:?}") };
    match wire::find(status, TOLD_SIGNAL)[..] {
        [wire::Value::Number(index)] => index,
        ref other => panic!("one stop signal: {other:?}"),
    }
}

/// The columns of a line of a file like `/proc/self/limits`.
fn limit(text: &str, name: &str) -> (String, String) {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    let mut columns = line.split_whitespace().map(str::to_owned);
    (columns.next().expect("a soft limit"), columns.next().expect("a hard limit"))
}

#[tokio::test]
async fn the_stop_signal_is_the_requests_or_the_images_or_term() {
    let Some(node) = Node::own().await else { return };
    let plain = node.busybox().await;
    let image = node.pull("signal", &Image::busybox().set("StopSignal", json!("RTMIN+3"))).await;
    let script = "for s in TERM USR1 RTMIN+3; do trap \"exit 4$(kill -l $s)\" $s; done; echo ready; while :; do sleep 0.05; done";
    let script = script.replace("RTMIN+3", "37").replace("exit 4$(kill -l $s)", "echo $s; exit 0");
    let pod = node.pod("signals").await;
    let cases = [
        ("asked", &image, Some(INDEX_OF_USR1), INDEX_OF_USR1, "USR1"),
        ("images", &image, None, INDEX_OF_RTMIN_3, "37"),
        ("zero", &image, Some(0), INDEX_OF_RTMIN_3, "37"),
        ("default", &plain, None, INDEX_OF_TERM, "TERM"),
    ];
    for (name, image, asked, told, received) in cases {
        let more = asked.map_or(Vec::new(), |index| wire::number(ASKED_SIGNAL, index));
        let container = pod.create_with(&ContainerSpec::new(name, image).script(&script), &more).await;
        assert_eq!(told_signal(&node, &container).await, told, "{name}");
        container.start().await;
        container.logged("ready").await;
        container.stop(60).await;
        assert_eq!(container.lines("stdout"), ["ready", received], "{name}");
        assert_eq!(container.status().await.exit_code, 0, "{name}");
        assert_eq!(told_signal(&node, &container).await, told, "{name}, ended");
    }
    node.finish().await;
}

#[tokio::test]
async fn nothing_of_the_daemon_is_handed_down() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let script = "umask; cat /proc/self/status /proc/self/limits; echo fds; for f in /proc/self/fd/*; do readlink $f && echo ${f##*/}; done; \
                  echo environment; env | sort";
    let container = node.pod("clean").await.start(&ContainerSpec::new("c", &image).script(&format!("{script}; sleep 100000"))).await;
    // The last of them.
    container.logged("SHLVL=").await;
    let (first, executed) = (container.lines("stdout").join("\n"), container.shell(script).await);
    for (which, text) in [("the container", &first), ("an exec", &executed)] {
        assert!(text.starts_with("0022\n"), "{which}: {text}");
        for (name, expected) in [("SigBlk", "0000000000000000"), ("SigIgn", "0000000000000000"), ("Umask", "0022"), ("Groups", "0")] {
            assert_eq!(field(text, name), expected, "{which}: {name}");
        }
        let (files, environment) =
            text.split_once("\nfds\n").and_then(|(_, rest)| rest.split_once("\nenvironment\n")).expect("three parts");
        let files: Vec<&str> = files.lines().skip(1).step_by(2).collect();
        assert_eq!(files, ["0", "1", "2"], "{which}");
        if !node.target.is_foreign() {
            let names: Vec<&str> = environment.lines().filter_map(|line| line.split_once('=').map(|(name, _)| name)).collect();
            // The shell's own are PWD, SHLVL and `_`.
            assert_eq!(names, ["HOME", "HOSTNAME", "PATH", "PWD", "SHLVL"], "{which}");
        }
    }
    let stat = fs::read_to_string(format!("/proc/{}/stat", container.host_pids()[0])).expect("the container's stat");
    let numbers: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    assert_eq!(container.shell("cut -d ' ' -f 5,6,7 /proc/1/stat").await, "1 1 0", "it leads its session, without a terminal");
    assert_eq!(numbers[16], "0", "its nice value is ordinary");
    node.finish().await;
}

#[tokio::test]
async fn limits_are_those_the_daemon_was_started_with() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let ours = fs::read_to_string("/proc/self/limits").expect("our own limits");
    let daemons = fs::read_to_string(format!("/proc/{}/limits", node.daemon_pid())).expect("the daemon's limits");
    let (soft, hard) = limit(&daemons, "Max open files");
    assert_eq!(soft, hard, "the daemon itself takes what it may");
    let container = node.pod("limits").await.start(&ContainerSpec::new("c", &image)).await;
    let inside = [
        fs::read_to_string(format!("/proc/{}/limits", container.host_pids()[0])).expect("the container's limits"),
        container.shell("cat /proc/self/limits").await,
    ];
    let most = |text: String| text.parse::<u64>().map_or(text, |number| number.min(1 << 20).to_string());
    for text in inside {
        for name in ["Max processes", "Max core file size", "Max stack size", "Max locked memory", "Max address space"] {
            assert_eq!(limit(&text, name), limit(&ours, name), "{name}");
        }
        let (soft, hard) = limit(&ours, "Max open files");
        assert_eq!(limit(&text, "Max open files"), (most(soft), most(hard)));
    }
    node.finish().await;
}

#[tokio::test]
async fn standard_input_is_at_its_end_unless_it_was_asked_for() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("input").await;
    let (status, text) = pod.run(&ContainerSpec::new("without", &image).script("cat; echo end")).await;
    assert_eq!((status.exit_code, text.as_str()), (0, "end"));
    for (name, once) in [("open", false), ("once", true)] {
        let spec = ContainerSpec::new(name, &image).script("echo waiting; cat; echo end").with(|config| {
            config.stdin = true;
            config.stdin_once = once;
        });
        let container = pod.start(&spec).await;
        container.logged("waiting").await;
        assert!(container.shell("readlink /proc/1/fd/0").await.starts_with("pipe:"), "{name}");
        assert_eq!(container.status().await.state(), ContainerState::ContainerRunning, "{name}");
        assert_eq!(container.lines("stdout"), ["waiting"], "{name}: nobody has closed it");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_is_the_containers_console() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let script = "tty; stat -c '%U %a' $(tty); [ $(stat -c %t,%T /dev/console) = $(stat -c %t,%T $(tty)) ] && echo console; \
                  echo $TERM; test -t 0 && test -t 1 && test -t 2 && echo all; echo error >&2; ls -l /proc/self/fd/0 >/dev/tty && echo control; \
                  ls -1 /dev/pts; sleep 100000";
    let spec = ContainerSpec::new("c", &image).script(script).security(|s| s.run_as_user = number(1000));
    let container = node.pod("terminal").await.start(&spec.with(|config| config.tty = true)).await;
    container.logged("ptmx").await;
    let lines = container.lines("stdout");
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end_matches('\r')).filter(|line| !line.contains("/proc/self/fd/0")).collect();
    assert_eq!(lines, ["/dev/pts/0", "alice 620", "console", "xterm", "all", "error", "control", "0", "ptmx"]);
    assert!(container.lines("stderr").is_empty(), "a terminal has one stream");
    let settings = container.shell("stty -a </proc/1/fd/0").await;
    assert!(!settings.contains("rows"), "nobody has said a size yet: {settings}");
    let without = node.pod("none").await.start(&ContainerSpec::new("c", &image)).await;
    assert_ne!(without.exec(&["/bin/sh", "-c", "exec <>/dev/tty"]).await.code, 0, "no terminal, no controlling one");
    assert_eq!(without.shell("echo \"$TERM\"").await, "");
    node.finish().await;
}

#[tokio::test]
async fn environment_values_are_bytes() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let variable = [wire::bytes(1, b"BYTES"), wire::bytes(2, b"\xff\xfe=\x01 \xc3\x28")].concat();
    let script = "env | grep -a ^BYTES= | hexdump -v -e '1/1 \"%02x\"'";
    let spec = ContainerSpec::new("c", &image).script(&format!("{script}; echo; sleep 100000"));
    let container = node.pod("bytes").await.create_with(&spec, &wire::bytes(6, &variable)).await;
    container.start().await;
    let expected = "42595445533dfffe3d0120c3280a";
    container.logged(expected).await;
    assert_eq!(container.shell(script).await, expected, "an exec has them too");
    node.finish().await;
}

#[tokio::test]
async fn the_working_directory_is_made_inside() {
    let node = Node::start().await;
    let outside = node.scratch().join("outside");
    fs::create_dir(&outside).expect("making a directory");
    let link = Layer::new().symlink("srv", &outside.to_string_lossy()).into_tar();
    let image = node.pull("linked", &Image::busybox().layer(&link, Compression::Plain)).await;
    let pod = node.pod("directories").await;
    let script = "pwd; stat -c '%u:%g %a' .";
    let within = |name: &str, directory: &str| {
        ContainerSpec::new(name, &image).script(script).with(|config| config.working_dir = directory.to_owned())
    };
    assert_eq!(pod.run(&within("deep", "/made/for/it")).await.1, "/made/for/it\n0:0 755");
    let fixed = within("fixed", "/made/for/it").security(|s| s.readonly_rootfs = true);
    assert_eq!(pod.run(&fixed).await.1, "/made/for/it\n0:0 755", "a root that refuses writes does not hinder it");
    let user = within("user", "/home/alice").security(|s| s.run_as_user = number(1000));
    assert_eq!(pod.run(&user).await.1, "/home/alice\n1000:1000 750", "what is there stays as it is");
    let led = pod.run(&within("led", "/srv/work")).await.1;
    assert_eq!(led, format!("{}/work\n0:0 755", outside.display()), "the link leads to a place inside");
    assert_eq!(fs::read_dir(&outside).expect("the directory").count(), 0, "and nothing is made outside");
    let volume = node.scratch().join("volume");
    fs::create_dir(&volume).expect("making a directory");
    let mounted = within("mounted", "/data/work").mount(&volume.to_string_lossy(), "/data", false);
    assert_eq!(pod.run(&mounted).await.1, "/data/work\n0:0 755");
    assert_eq!(fs::metadata(volume.join("work")).map(|metadata| metadata.mode() & 0o777).expect("it was made"), 0o755);
    let file = pod.create(&within("file", "/etc/motd")).await;
    node.refused(node.cri.start(&file.id).await, Code::Internal, "/etc/motd");
    node.finish().await;
}

#[tokio::test]
async fn a_log_is_there_from_the_start_with_its_directories() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("logs").await;
    let spec = ContainerSpec::new("c", &image).script("echo said").with(|config| config.log_path = "c/deep/0.log".into());
    let container = pod.create(&spec).await;
    let metadata = fs::metadata(&container.log).expect("the log is there before the start");
    assert_eq!((metadata.len(), metadata.mode() & 0o137), (0, 0), "empty, and nothing for others");
    assert_eq!(container.status().await.log_path, container.log.to_string_lossy());
    container.start().await;
    container.exited().await;
    assert_eq!(container.lines("stdout"), ["said"]);
    let without = pod.create(&ContainerSpec::new("silent", &image).script("echo unheard").with(|config| config.log_path.clear())).await;
    without.start().await;
    assert_eq!(without.exited().await.exit_code, 0, "a container without a log runs as well");
    node.finish().await;
}

#[tokio::test]
async fn a_session_keyring_is_the_containers_own() {
    let node = Node::start().await;
    if !Path::new("/proc/keys").exists() {
        skip("this kernel has no keys");
        return node.finish().await;
    }
    let image = node.busybox().await;
    let pod = node.pod("keys").await;
    // Of keyrings that are root's another user sees those alone that it holds.
    let spec = |name: &str| {
        ContainerSpec::new(name, &image).security(|s| {
            s.masked_paths.clear();
            s.run_as_user = number(1000);
        })
    };
    let (one, two) = (pod.start(&spec("one")).await, pod.start(&spec("two")).await);
    let (first, second) = (one.shell("grep -w _ses /proc/keys").await, two.shell("grep -w _ses /proc/keys").await);
    assert_eq!((first.lines().count(), second.lines().count()), (1, 1), "{first} | {second}");
    assert_ne!(first.split(' ').next(), second.split(' ').next());
    node.finish().await;
}

#[tokio::test]
async fn command_arguments_environment_and_directory_come_from_request_or_image() {
    let node = Node::start().await;
    let told = Image::busybox()
        .set("Entrypoint", json!(["/bin/echo", "entrypoint"]))
        .set("Cmd", json!(["cmd"]))
        .set("Env", json!(["PATH=/bin", "FROM=image", "BOTH=image"]))
        .set("WorkingDir", json!("/srv/made/for/it"));
    let image = node.pull("told", &told).await;
    let pod = node.pod("words").await;
    let named = |name: &str| ContainerSpec::new(name, &image).image_command();
    assert_eq!(pod.run(&named("image")).await.1, "entrypoint cmd");
    assert_eq!(pod.run(&named("args").with(|config| config.args = strings(&["args"]))).await.1, "entrypoint args");
    assert_eq!(
        pod.run(&named("command").command(&["/bin/echo", "command"])).await.1,
        "command",
        "the image's arguments go with its entrypoint"
    );
    let both = named("both").command(&["/bin/echo", "command"]).with(|config| config.args = strings(&["args"]));
    assert_eq!(pod.run(&both).await.1, "command args");
    let environment = named("environment").command(&["env"]).variable("BOTH", "request").variable("ODD", "a=b\n\"c\" $HOME é");
    let text = pod.run(&environment).await.1;
    for expected in ["FROM=image", "BOTH=request", "PATH=/bin", "ODD=a=b\n\"c\" $HOME é"] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    assert!(!text.contains("BOTH=image"), "{text}");
    assert_eq!(pod.run(&named("directory").command(&["pwd"])).await.1, "/srv/made/for/it", "it is made if the image lacks it");
    let elsewhere = named("elsewhere").command(&["pwd"]).with(|config| config.working_dir = "/home/alice".into());
    assert_eq!(pod.run(&elsewhere).await.1, "/home/alice");
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_is_one() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let spec = ContainerSpec::new("c", &image)
        .script("tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo err >&2")
        .with(|config| config.tty = true);
    let container = node.pod("terminal").await.start(&spec).await;
    assert_eq!(container.exited().await.exit_code, 0);
    let lines = container.lines("stdout");
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end_matches('\r')).collect();
    assert!(lines[0].starts_with("/dev/"), "{lines:?}");
    assert_eq!(lines[1..], ["all", "err"], "a terminal has one stream");
    assert!(container.lines("stderr").is_empty());
    node.finish().await;
}

#[tokio::test]
async fn the_images_stop_signal_is_sent() {
    let node = Node::start().await;
    let image = node.pull("signal", &Image::busybox().set("StopSignal", json!("SIGUSR1"))).await;
    let spec = ContainerSpec::new("c", &image).script("trap 'exit 41' USR1; trap 'exit 42' TERM; echo ready; while :; do sleep 0.1; done");
    let container = node.pod("signal").await.start(&spec).await;
    container.logged("ready").await;
    container.stop(60).await;
    assert_eq!(container.status().await.exit_code, 41);
    node.finish().await;
}
