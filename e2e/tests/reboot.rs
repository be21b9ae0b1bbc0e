//! What a daemon finds at its start that is not as it was left: after a reboot nothing in `/run`, and damaged files
//! anywhere. It serves, and whatever is damaged costs only its own subject.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_e2e::api::{ContainerState, PodSandboxState, Protocol};
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::leaks::Footprint;
use coracle_e2e::{Code, Container, ContainerSpec, Node, Pod, PodSpec, eventually, host};

fn mount_state(footprint: &Footprint) {
    let state = footprint.state.to_string_lossy().into_owned();
    host::run("mount", &["-t", "tmpfs", "-o", "size=64m,mode=711", "none", &state]).expect("mounting a tmpfs");
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[tokio::test]
async fn after_a_reboot_images_are_there_and_everything_else_is_swept() {
    let Some(mut node) = Node::own_with(mount_state).await else { return };
    let image = node.busybox().await;
    let plain = node.pod("plain").await;
    let container = plain.start(&ContainerSpec::new("c", &image).script("echo x >/written; exec sleep 100000")).await;
    let ported = node.run(&PodSpec::new("ported").host_port(Protocol::Tcp, "127.0.0.1", 1, 80)).await;
    ported.start(&ContainerSpec::new("c", &image)).await;
    node.cri.set_pod_cidr(&node.part_of_subnet(128, 25)).await.expect("UpdateRuntimeConfig");
    node.reboot(mount_state);
    // A link that its namespace did not take along, and things half done.
    let stray = &format!("cor{:012x}", std::process::id());
    let peer = &format!("peer{}", std::process::id());
    host::run("ip", &["link", "add", stray, "master", &node.footprint.bridge, "type", "veth", "peer", "name", peer])
        .expect("making a stray link");
    let storage = node.footprint.storage.clone();
    fs::create_dir_all(storage.join("tmp/half/made")).expect("leaving something half done");
    assert!(!entries(&storage.join("containers")).is_empty(), "writable layers were left");
    assert!(!node.footprint.host_ports().is_empty(), "rules were left");
    assert!(!host::cgroups(&Path::new(&node.footprint.cgroup_root).join(&plain.id)).is_empty(), "cgroups were left");

    node.start_daemon().await;

    assert!(node.pods().await.is_empty() && node.cri.containers(None).await.expect("ListContainers").is_empty());
    assert_eq!(node.cri.pod_status(&plain.id).await.expect_err("it is gone").code(), Code::NotFound);
    node.cri.stop_pod(&plain.id).await.expect("a kubelet that has not heard may stop it");
    node.cri.remove_pod(&plain.id).await.expect("and remove it");
    node.cri.remove(&container.id).await.expect("and its containers");
    let left = node.remains();
    assert!(left.is_empty(), "{left:?}");
    // It has left the bridge, as was just seen, and is on its way out.
    let there = Path::new("/sys/class/net").join(stray);
    eventually("the stray link to be swept", || async { (!there.exists()).then_some(()) }).await;
    eventually("the half done to go", || async { entries(&storage.join("tmp")).is_empty().then_some(()) }).await;
    assert!(node.cri.image(&image).await.expect("ImageStatus").is_some());
    let again = node.run(&PodSpec::new("plain").host_port(Protocol::Tcp, "127.0.0.1", 1, 80)).await;
    assert!(again.last_octet().await < 128, "the kubelet is another one too, and has said nothing of a subnet");
    let fresh = again.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(fresh.exec(&["/bin/ls", "/written"]).await.code, 1, "a new container has nothing of the old one");
    node.finish().await;
}

/// What may have become of a file.
const DAMAGES: [&str; 7] = ["empty", "half", "zeroes", "noise", "another shape", "directory", "link"];

fn damage(path: &Path, how: &str) {
    let whole = fs::read(path).unwrap_or_default();
    fs::remove_file(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let written = match how {
        "empty" => fs::write(path, ""),
        "half" => fs::write(path, &whole[..whole.trim_ascii_end().len() / 2]),
        "zeroes" => fs::write(path, vec![0; whole.len()]),
        "noise" => fs::write(path, [0xff, 0x7b, 0x00, 0x80].repeat(40)),
        "another shape" => fs::write(path, r#"{"V1":{"id":7},"version":"1","code":"none"}"#),
        "directory" => fs::create_dir_all(path.join("with/content")),
        "link" => std::os::unix::fs::symlink("/dev/zero", path),
        other => panic!("{other}"),
    };
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// A pod to be damaged: with a container that runs and one that was made.
struct Victim {
    pod: Pod,
    running: Container,
    created: Container,
}

impl Victim {
    async fn new(node: &Node, image: &str) -> Self {
        let pod = node.pod("victim").await;
        let running = pod.start(&ContainerSpec::new("running", image)).await;
        let created = pod.create(&ContainerSpec::new("created", image)).await;
        Self { pod, running, created }
    }

    fn directory(&self, node: &Node) -> PathBuf {
        node.footprint.state.join("pods").join(&self.pod.id)
    }

    fn of(&self, node: &Node, container: &Container, file: &str) -> PathBuf {
        self.directory(node).join("containers").join(&container.id).join(file)
    }

    async fn remove(&self) {
        self.pod.stop().await;
        assert!(self.running.host_pids().is_empty());
        self.pod.remove().await;
    }

    async fn goes_on(&self, what: &str) {
        assert_eq!(self.pod.status().await.state(), PodSandboxState::SandboxReady, "{what}");
        assert_eq!(self.running.exec(&["/bin/true"]).await.code, 0, "{what}");
        self.created.start().await;
        assert_eq!(self.created.exec(&["/bin/true"]).await.code, 0, "{what}");
    }
}

/// A node with a pod that nothing may happen to.
async fn watched() -> Option<(Node, String, Container)> {
    let node = Node::own().await?;
    let image = node.busybox().await;
    let witness = node.pod("witness").await.start(&ContainerSpec::new("c", &image)).await;
    Some((node, image, witness))
}

/// The next daemon finds the damage, says so, and the bystander has not noticed.
async fn restart_with(node: &mut Node, witness: &Container, path: &Path, how: &str) {
    let pids = witness.host_pids();
    let said = node.daemon_log().len();
    node.kill_daemon();
    damage(path, how);
    node.start_daemon().await;
    let log = node.daemon_log();
    assert!(log[said..].contains(&*path.to_string_lossy()), "no word of {} ({how}):\n{}", path.display(), &log[said..]);
    assert_eq!(witness.host_pids(), pids);
    assert_eq!(witness.exec(&["/bin/true"]).await.code, 0, "{} {how}", path.display());
}

/// The last act: what was put aside is for a person, who has now looked at it.
async fn finish(node: Node) {
    let state = &node.footprint.state;
    for quarantine in [state.join("quarantine"), state.join("images/quarantine")] {
        assert!(entries(&quarantine).len() <= 32, "{:?}", entries(&quarantine));
        let _ = fs::remove_dir_all(quarantine);
    }
    node.finish().await;
}

#[tokio::test]
async fn a_damaged_pod_record_costs_that_pod_and_all_it_held_goes() {
    let Some((mut node, image, witness)) = watched().await else { return };
    let parent = format!("/{}-kubelet/pod1", node.footprint.cgroup_root);
    for how in DAMAGES {
        let spec = PodSpec::new("kubelets").with(|config| config.linux.get_or_insert_default().cgroup_parent = parent.clone());
        let pod = node.run(&spec.host_port(Protocol::Tcp, "127.0.0.1", 1, 80)).await;
        let container = pod.start(&ContainerSpec::new("c", &image)).await;
        let cgroup = PathBuf::from(&parent[1..]).join(&container.id);
        assert!(!host::cgroups(&cgroup).is_empty(), "it is where the kubelet wanted it");
        let record = node.footprint.state.join("pods").join(&pod.id).join("record.json");
        restart_with(&mut node, &witness, &record, how).await;
        assert_eq!(node.cri.pod_status(&pod.id).await.expect_err("the pod is gone").code(), Code::NotFound, "{how}");
        // Lists wait for that, but not for ever. Of the cgroup nobody told where it was.
        let is_gone = || {
            let directory = record.parent().is_some_and(Path::exists);
            container.host_pids().is_empty() && host::cgroups(&cgroup).is_empty() && !directory && node.footprint.host_ports().is_empty()
        };
        eventually(&format!("the end of the pod ({how})"), || async { is_gone().then_some(()) }).await;
        assert_eq!(node.pods().await.len(), 1);
    }
    for path in [parent.as_str(), Path::new(&parent).parent().and_then(Path::to_str).unwrap_or_default()] {
        host::cgroups(Path::new(&path[1..])).iter().for_each(|group| drop(fs::remove_dir(group)));
    }
    finish(node).await;
}

#[tokio::test]
async fn a_damaged_record_of_the_subnet_costs_what_it_said_and_no_pod() {
    let Some((mut node, _, witness)) = watched().await else { return };
    for how in DAMAGES {
        node.cri.set_pod_cidr(&node.part_of_subnet(128, 25)).await.expect("UpdateRuntimeConfig");
        let record = node.footprint.subnet();
        restart_with(&mut node, &witness, &record, how).await;
        let pod = node.pod("later").await;
        assert!(pod.last_octet().await < 128, "{how}: pods are of the configured subnet");
        pod.stop().await;
        pod.remove().await;
    }
    finish(node).await;
}

#[tokio::test]
async fn a_damaged_plan_costs_execs_or_the_start_and_a_damaged_claim_on_layers_nothing() {
    let Some((mut node, image, witness)) = watched().await else { return };
    for how in DAMAGES {
        let victim = Victim::new(&node, &image).await;
        let plan = victim.of(&node, &victim.running, "plan.json");
        restart_with(&mut node, &witness, &plan, how).await;
        let refused = node.cri.exec(&victim.running.id, &["/bin/true"], 0).await.expect_err("there is no model of its execs");
        assert!(refused.message().contains("plan") && refused.message().contains(&victim.running.id), "{how}: {refused}");
        assert_eq!(victim.running.status().await.state(), ContainerState::ContainerRunning, "{how}");
        victim.running.stop(0).await;
        assert!(victim.running.host_pids().is_empty(), "{how}: a stopped container has no processes");
        assert_eq!(victim.running.status().await.exit_code, 137, "{how}");
        let plan = victim.of(&node, &victim.created, "plan.json");
        restart_with(&mut node, &witness, &plan, how).await;
        let refused = node.cri.start(&victim.created.id).await.expect_err("nobody knows how");
        assert!(refused.message().contains("plan.json"), "{how}: {refused}");
        victim.created.remove().await;
        victim.remove().await;

        let victim = Victim::new(&node, &image).await;
        let claim = node.footprint.state.join("images").join(format!("{}.json", victim.running.id));
        restart_with(&mut node, &witness, &claim, how).await;
        victim.goes_on(how).await;
        // Nobody reads these at a start: one is for people, the other is written over.
        node.kill_daemon();
        damage(&victim.of(&node, &victim.running, "config.json"), how);
        damage(&victim.directory(&node).join("record.json.spare"), how);
        node.start_daemon().await;
        victim.running.stop(0).await;
        node.restart().await;
        assert_eq!(victim.running.status().await.exit_code, 137, "{how}");
        victim.remove().await;
    }
    finish(node).await;
}

#[tokio::test]
async fn a_damaged_exit_record_is_an_unknown_exit_and_a_damaged_socket_ends_the_pod() {
    let Some((mut node, image, witness)) = watched().await else { return };
    let kill_all = async |pids: Vec<i32>| {
        for pid in pids {
            host::kill(pid).await;
        }
    };
    for how in DAMAGES {
        let victim = Victim::new(&node, &image).await;
        let exit = victim.of(&node, &victim.running, "exit.json");
        node.kill_daemon();
        kill_all(victim.running.host_pids()).await;
        eventually("the monitor's record", || async { exit.exists().then_some(()) }).await;
        kill_all(node.footprint.monitors(&victim.pod.id)).await;
        node.start_daemon().await;
        assert_eq!(victim.running.status().await.exit_code, 137, "nothing is damaged yet");
        victim.remove().await;

        let victim = Victim::new(&node, &image).await;
        let exit = victim.of(&node, &victim.running, "exit.json");
        let said = node.daemon_log().len();
        node.kill_daemon();
        kill_all(victim.running.host_pids()).await;
        eventually("the monitor's record", || async { exit.exists().then_some(()) }).await;
        kill_all(node.footprint.monitors(&victim.pod.id)).await;
        damage(&exit, how);
        node.start_daemon().await;
        let status = victim.running.status().await;
        assert_eq!(status.state(), ContainerState::ContainerExited, "{how}");
        assert!(status.exit_code != 0 && status.message.contains("not known"), "{how}: {status:?}");
        assert!(node.daemon_log()[said..].contains(&*exit.to_string_lossy()), "{how}: a word of it");
        victim.remove().await;

        let victim = Victim::new(&node, &image).await;
        node.kill_daemon();
        damage(&victim.directory(&node).join("monitor.sock"), how);
        node.start_daemon().await;
        assert_eq!(victim.pod.status().await.state(), PodSandboxState::SandboxNotready, "{how}");
        let is_gone = || victim.running.host_pids().is_empty() && node.footprint.monitors(&victim.pod.id).is_empty();
        eventually(&format!("the end of all in it ({how})"), || async { is_gone().then_some(()) }).await;
        victim.remove().await;
        assert_eq!(witness.exec(&["/bin/true"]).await.code, 0, "{how}");
    }
    for lock in [node.footprint.state.join("lock"), node.footprint.storage.join("lock")] {
        for how in DAMAGES {
            node.kill_daemon();
            damage(&lock, how);
            node.start_daemon().await;
        }
    }
    finish(node).await;
}

#[tokio::test]
async fn a_damaged_image_is_no_longer_listed_and_its_containers_run_on_until_a_pull_repairs_it() {
    let Some((mut node, _, witness)) = watched().await else { return };
    let mark = Layer::new().file("mark", 0o644, b"marked").into_tar();
    let built = Image::busybox().layer(&mark, Compression::Gzip);
    let image = node.pull("damaged", &built).await;
    let id = node.cri.image(&image).await.expect("ImageStatus").expect("it was pulled").id;
    let pod = node.pod("user").await;
    let user = pod.start(&ContainerSpec::new("c", &image)).await;
    let storage = node.footprint.storage.clone();
    let (digits, built) = (id.trim_start_matches("sha256:").to_owned(), built.build());
    let manifest = built.manifest.digest.trim_start_matches("sha256:").to_owned();
    let uppermost = || {
        let layers = entries(&storage.join("layers"));
        // One that was damaged before is kept for its container under a name with a dot.
        let is_ours = |layer: &PathBuf| layer.extension().is_none() && layer.join("fs/mark").exists();
        layers.into_iter().find(is_ours).expect("the layer").join("record.json")
    };
    let blobs = storage.join("images/blobs/sha256");
    for (number, how) in DAMAGES.into_iter().enumerate() {
        for path in [storage.join("records").join(format!("{digits}.json")), blobs.join(&digits), blobs.join(&manifest), uppermost()] {
            restart_with(&mut node, &witness, &path, how).await;
            assert!(node.cri.image(&image).await.expect("ImageStatus").is_none(), "{} {how}", path.display());
            assert_eq!(user.shell("cat /mark").await, "marked", "{} {how}", path.display());
            assert_eq!(node.cri.pull(&image, None).await.expect("PullImage"), id, "{} {how}", path.display());
        }
        for path in [storage.join("images/index.json"), storage.join("images/oci-layout")] {
            node.kill_daemon();
            damage(&path, how);
            node.start_daemon().await;
            assert!(node.cri.image(&image).await.expect("ImageStatus").is_some(), "{} {how}", path.display());
            assert!(fs::read_to_string(&path).is_ok_and(|text| text.starts_with('{') && text.ends_with('}')), "it is written anew");
        }
        let again = pod.start(&ContainerSpec::new(&format!("again{number}"), &image)).await;
        assert_eq!(again.shell("cat /mark").await, "marked", "{how}");
    }
    finish(node).await;
}

#[tokio::test]
async fn a_layer_that_somebody_deletes_is_named_by_the_create_and_brought_back_by_a_pull() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("p").await;
    let layer = entries(&node.footprint.storage.join("layers")).into_iter().find(|layer| layer.join("fs/bin").exists()).expect("a layer");
    // Until a layer is known to be on the disk, its record is written in the background.
    let is_durable = || fs::read_to_string(layer.join("record.json")).is_ok_and(|text| text.replace(' ', "").contains("\"durable\":true"));
    eventually("the layer to be on the disk", || async { is_durable().then_some(()) }).await;
    fs::remove_dir_all(&layer).expect("deleting a layer");
    let refused = pod.try_create(&ContainerSpec::new("c", &image)).await.expect_err("its layer is gone");
    assert!(refused.message().contains(&*layer.to_string_lossy()), "{refused}");
    assert!(node.cri.image(&image).await.expect("ImageStatus").is_none(), "a kubelet that asks is told to pull");
    node.cri.pull(&image, None).await.expect("PullImage");
    assert_eq!(pod.start(&ContainerSpec::new("c", &image)).await.exec(&["/bin/true"]).await.code, 0);
    node.finish().await;
}
