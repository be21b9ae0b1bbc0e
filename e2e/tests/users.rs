//! Which user and groups a container's processes have: those of the request or of the image, whose files may be hostile.

use std::fs;

use coracle_e2e::api::{self, LinuxContainerSecurityContext};
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::{Code, ContainerSpec, Node, PodSpec, number};
use serde_json::json;

#[tokio::test]
async fn the_user_comes_from_request_or_image() {
    let node = Node::start().await;
    let plain = node.busybox().await;
    let alice = node.pull("alice", &Image::busybox().set("User", json!("alice"))).await;
    let numbers = node.pull("numbers", &Image::busybox().set("User", json!("4321:8765"))).await;
    let pod = node.pod("users").await;
    let id = "echo $(id -u):$(id -g):$(id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '):$HOME";
    let cases = [
        ("root", ContainerSpec::new("root", &plain), "0:0:0 :/root"),
        ("image-name", ContainerSpec::new("image-name", &alice), "1000:1000:10 50 1000 :/home/alice"),
        ("image-numbers", ContainerSpec::new("image-numbers", &numbers), "4321:8765:8765 :/"),
        ("uid", ContainerSpec::new("uid", &plain).security(|s| s.run_as_user = number(1000)), "1000:1000:10 50 1000 :/home/alice"),
        ("name", ContainerSpec::new("name", &plain).security(|s| s.run_as_username = "alice".into()), "1000:1000:10 50 1000 :/home/alice"),
        ("stranger", ContainerSpec::new("stranger", &plain).security(|s| s.run_as_user = number(7)), "7:0:0 :/"),
        (
            "group",
            ContainerSpec::new("group", &plain).security(|s| {
                s.run_as_user = number(7);
                s.run_as_group = number(8);
                s.supplemental_groups = vec![9, 11];
            }),
            "7:8:8 9 11 :/",
        ),
    ];
    for (name, spec, expected) in cases {
        let (status, text) = pod.run(&spec.script(id)).await;
        assert_eq!(status.exit_code, 0, "{name}");
        if node.target.is_foreign() {
            assert_eq!(text.splitn(3, ':').take(2).collect::<Vec<_>>(), expected.splitn(3, ':').take(2).collect::<Vec<_>>(), "{name}");
        } else {
            assert_eq!(text, expected, "{name}");
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn strict_groups_leave_out_those_of_the_image() {
    let node = Node::start().await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let pod = node.pod("groups").await;
    let spec = ContainerSpec::new("strict", &image).script("id -G; sleep 100000").security(|s| {
        s.run_as_user = number(1000);
        s.supplemental_groups = vec![77];
        s.set_supplemental_groups_policy(api::SupplementalGroupsPolicy::Strict);
    });
    let container = pod.start(&spec).await;
    container.logged("1000").await;
    assert_eq!(container.lines("stdout"), ["1000 77"]);
    let user = container.status().await.user.and_then(|user| user.linux).expect("the status tells the user");
    assert_eq!((user.uid, user.gid), (1000, 1000));
    assert!(user.supplemental_groups.contains(&77) && !user.supplemental_groups.contains(&10), "{user:?}");
    node.finish().await;
}

#[tokio::test]
async fn accounts_are_looked_up_inside_the_image_only() {
    let node = Node::start().await;
    let outside = node.scratch().join("passwd");
    fs::write(&outside, "intruder:x:4444:4444::/:/bin/sh\n").expect("writing a file");
    let built = async |name: &str, layer: Layer| node.pull(name, &Image::busybox().layer(&layer.into_tar(), Compression::Plain)).await;
    let led_out = built("led-out", Layer::new().symlink("etc/passwd", &outside.to_string_lossy())).await;
    let climbing = format!("../../../../../../..{}", outside.display());
    let climbs = built("climbs", Layer::new().symlink("etc/passwd", &climbing)).await;
    let inside = Layer::new().symlink("etc/passwd", "../../srv/passwd").file("srv/passwd", 0o644, b"intruder:x:4445:46::/srv:/bin/sh\n");
    let inside = built("inside", inside).await;
    let garbage = b"\xff\xfe\0\n::::\nintruder\nintruder:x:99999999999:1::/:\n#intruder:x:1:1::/:\nintruder:x:4446:47::/:/bin/sh";
    let garbage = built("garbage", Layer::new().file("etc/passwd", 0o644, garbage)).await;
    let huge = built("huge", Layer::new().file("etc/passwd", 0o644, &vec![b'\n'; 5 << 20])).await;
    let device = built("device", Layer::new().device("etc/passwd", 1, 5)).await;

    let pod = node.pod("accounts").await;
    let intruder = |name: &str, image: &str| ContainerSpec::new(name, image).security(|s| s.run_as_username = "intruder".into());
    for (name, image) in [("led-out", &led_out), ("climbs", &climbs)] {
        node.refused(pod.try_create(&intruder(name, image)).await, Code::InvalidArgument, "intruder");
    }
    let id = |spec: ContainerSpec| spec.command(&["/bin/busybox", "sh", "-c", "echo $(id -u):$(id -g):$HOME"]);
    assert_eq!(pod.run(&id(intruder("inside", &inside))).await.1, "4445:46:/srv");
    assert_eq!(pod.run(&id(intruder("garbage", &garbage))).await.1, "4446:47:/");
    for (name, image) in [("huge", &huge), ("device", &device)] {
        node.refused(pod.try_create(&intruder(name, image)).await, Code::Internal, "/etc/passwd");
    }
    node.finish().await;
}

#[tokio::test]
async fn users_that_make_no_sense_are_refused_and_named() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("nobody").await;
    type Change = fn(&mut LinuxContainerSecurityContext);
    let cases: [(&str, Change, &str); 4] = [
        ("name", |s| s.run_as_username = "stowaway".into(), "stowaway"),
        ("group", |s| s.run_as_group = number(7), "run_as_group"),
        (
            "both",
            |s| {
                s.run_as_user = number(0);
                s.run_as_username = "root".into();
            },
            "run_as_username",
        ),
        ("negative", |s| s.supplemental_groups = vec![-1], "supplemental_groups"),
    ];
    for (name, change, subject) in cases {
        node.refused(pod.try_create(&ContainerSpec::new(name, &image).security(change)).await, Code::InvalidArgument, subject);
    }
    let strangers = node.pull("strangers", &Image::busybox().set("User", json!("alice:smugglers"))).await;
    node.refused(pod.try_create(&ContainerSpec::new("strangers", &strangers)).await, Code::InvalidArgument, "smugglers");
    let alone = PodSpec::new("alone").with(|config| {
        config.linux.get_or_insert_default().security_context.get_or_insert_default().run_as_group = number(7);
    });
    node.refused(node.try_run(&alone).await, Code::InvalidArgument, "run_as_group");
    node.finish().await;
}

#[tokio::test]
async fn an_images_user_may_be_named_with_a_group_and_is_told() {
    let Some(node) = Node::own().await else { return };
    let pod = node.pod("users").await;
    let cases =
        [("alice:staff", (1000, 50), vec![10, 50]), ("alice:7", (1000, 7), vec![7, 10, 50]), ("1000:wheel", (1000, 10), vec![10, 50])];
    for (index, (user, (uid, gid), groups)) in cases.into_iter().enumerate() {
        let image = node.pull(&format!("user-{index}"), &Image::busybox().set("User", json!(user))).await;
        let container = pod.start(&ContainerSpec::new(&format!("c{index}"), &image)).await;
        let ids = "echo $(id -u):$(id -g):$(id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' ')";
        let listed: String = groups.iter().map(|group| format!("{group} ")).collect();
        assert_eq!(container.shell(ids).await, format!("{uid}:{gid}:{}", listed.trim_end()), "{user}");
        let told = container.status().await.user.and_then(|user| user.linux).expect("the status tells the user");
        let mut told_groups = told.supplemental_groups;
        told_groups.sort_unstable();
        assert_eq!((told.uid, told.gid, told_groups), (uid, gid, groups), "{user}");
    }
    let features = node.cri.runtime().status(api::StatusRequest { verbose: false }).await.expect("Status").into_inner().features;
    assert!(features.expect("features are told").supplemental_groups_policy);
    node.finish().await;
}
