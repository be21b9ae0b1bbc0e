//! Who is who: a request that comes again, alone, at once, or after its caller went away, gets what the first one made;
//! what is asked to be gone may be gone already; nothing half made is in any list; one image has one id.

use std::time::Duration;

use coracle_e2e::api::{self, ContainerFilter, ContainerState, PodSandboxState};
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::registry::{Access, Registry};
use coracle_e2e::{Code, ContainerSpec, Node, Pod, PodSpec};
use futures_util::future::join_all;

/// The containers of a pod, as they are listed.
async fn listed(node: &Node, pod: &Pod) -> Vec<api::Container> {
    let filter = ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    node.cri.containers(Some(filter)).await.expect("ListContainers")
}

/// Lets a call run for a moment and then turns away from it, as a client does whose time is up.
async fn abandon<T>(call: impl Future<Output = T>, microseconds: u64) {
    let _ = tokio::time::timeout(Duration::from_micros(microseconds), call).await;
}

#[tokio::test]
async fn a_retry_inherits_what_an_abandoned_call_made() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    for (number, patience) in [100, 400, 1500, 4000, 9000, 20_000].into_iter().enumerate() {
        let spec = node.complete(&PodSpec::new(&format!("abandoned-{number}")));
        abandon(node.cri.run_pod(&spec.config, ""), patience).await;
        let pod = node.run(&spec).await;
        let container = ContainerSpec::new("c", &image);
        abandon(node.cri.create(&pod.id, &pod.config, &container.config), patience).await;
        let made = pod.create(&container).await;
        let containers = listed(&node, &pod).await;
        assert_eq!(containers.iter().map(|container| &container.id).collect::<Vec<_>>(), [&made.id], "after {patience} us");
        made.start().await;
        assert_eq!(made.exec(&["/bin/true"]).await.code, 0);
        assert_eq!(node.pods().await.len(), number + 1, "after {patience} us");
    }
    node.finish().await;
}

#[tokio::test]
async fn simultaneous_creates_of_one_container_join() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("joined").await;
    let spec = ContainerSpec::new("c", &image);
    let made = join_all((0..6).map(|_| pod.create(&spec))).await;
    assert!(made.iter().all(|container| container.id == made[0].id), "{made:?}");
    assert_eq!(listed(&node, &pod).await.len(), 1);
    node.finish().await;
}

#[tokio::test]
async fn a_retry_is_known_to_the_next_daemon() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let spec = PodSpec::new("lasting").label("app", "buoy").with(|config| {
        config.linux.get_or_insert_default().sysctls.insert("kernel.msgmax".into(), "9000".into());
        config.dns_config = Some(api::DnsConfig { servers: vec!["192.0.2.53".into()], ..Default::default() });
    });
    let container = ContainerSpec::new("c", &image).variable("KEY", "value").mount("/tmp", "/data", true).resources(|r| r.cpu_shares = 512);
    let pod = node.run(&spec).await;
    let first = pod.start(&container).await;
    node.restart().await;
    assert_eq!(node.run(&spec).await.id, pod.id);
    assert_eq!(pod.create(&container).await.id, first.id);
    assert_eq!(first.status().await.state(), ContainerState::ContainerRunning, "the retry did not disturb it");
    node.finish().await;
}

#[tokio::test]
async fn a_retry_in_other_words_is_refused_and_changes_nothing() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let spec = PodSpec::new("firm");
    let pod = node.run(&spec).await;
    let container = pod.create(&ContainerSpec::new("c", &image)).await;
    let before = (pod.status().await, container.status().await);
    node.refused(node.try_run(&spec.clone().label("other", "words")).await, Code::FailedPrecondition, &pod.id);
    let other = ContainerSpec::new("c", &image).variable("OTHER", "words");
    node.refused(pod.try_create(&other).await, Code::FailedPrecondition, &container.id);
    assert_eq!((pod.status().await, container.status().await), before);
    assert_eq!((node.pods().await.len(), listed(&node, &pod).await.len()), (1, 1));
    node.finish().await;
}

#[tokio::test]
async fn what_a_kubelet_makes_anew_for_each_try_does_not_make_another_container() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("kubelets").await;
    let attempt = |message: &str, variables: [&str; 2]| {
        let file = node.scratch().join(message);
        std::fs::write(&file, "").expect("making a file");
        let spec = ContainerSpec::new("c", &image).mount(&file.to_string_lossy(), "/dev/termination-log", false);
        let spec = variables.into_iter().fold(spec, |spec, name| spec.variable(name, "value"));
        spec.with(|config| {
            let annotation = ("io.kubernetes.container.terminationMessagePath".to_owned(), "/dev/termination-log".to_owned());
            config.annotations.extend([annotation]);
        })
    };
    let first = pod.create(&attempt("first", ["A_SERVICE_HOST", "B_SERVICE_HOST"])).await;
    let second = pod.create(&attempt("second", ["B_SERVICE_HOST", "A_SERVICE_HOST"])).await;
    assert_eq!(second.id, first.id);
    let told = first.status().await.mounts;
    assert!(told[0].host_path.ends_with("first"), "the kubelet reads the message where the status says: {told:?}");
    node.finish().await;
}

#[tokio::test]
async fn an_ended_container_keeps_its_name_until_it_is_removed() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("named").await;
    let spec = ContainerSpec::new("c", &image).command(&["/bin/true"]);
    let first = pod.start(&spec).await;
    first.exited().await;
    assert_eq!(pod.create(&spec).await.id, first.id);
    let again = spec.clone().with(|config| config.metadata.get_or_insert_default().attempt = 1);
    assert_ne!(pod.create(&again).await.id, first.id, "another attempt is another container");
    first.remove().await;
    let second = pod.create(&spec).await;
    assert_ne!(second.id, first.id, "the name is free again");
    assert_eq!(node.cri.status(&first.id).await.expect_err("it is gone").code(), Code::NotFound);
    node.finish().await;
}

#[tokio::test]
async fn a_stopped_pod_takes_nothing_in_and_keeps_its_name_until_it_is_removed() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let spec = PodSpec::new("stopped");
    let pod = node.run(&spec).await;
    let created = pod.create(&ContainerSpec::new("created", &image)).await;
    pod.stop().await;
    node.refused(pod.try_create(&ContainerSpec::new("late", &image)).await, Code::FailedPrecondition, &pod.id);
    node.refused(node.cri.start(&created.id).await, Code::FailedPrecondition, &pod.id);
    node.refused(node.try_run(&spec).await, Code::FailedPrecondition, &pod.id);
    assert_eq!(listed(&node, &pod).await.len(), 1, "the late one is in no list");
    pod.remove().await;
    let next = node.run(&spec).await;
    assert_ne!(next.id, pod.id);
    next.start(&ContainerSpec::new("late", &image)).await;
    node.finish().await;
}

#[tokio::test]
async fn simultaneous_stops_and_removals_all_succeed() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("farewell").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    pod.start(&ContainerSpec::new("other", &image)).await;
    join_all((0..8).map(async |number| if number % 2 == 0 { container.stop(0).await } else { container.remove().await })).await;
    assert_eq!(node.cri.status(&container.id).await.expect_err("it is gone").code(), Code::NotFound);
    join_all((0..8).map(async |number| if number % 2 == 0 { pod.stop().await } else { pod.remove().await })).await;
    assert!(node.pods().await.is_empty());
    assert!(node.cri.containers(None).await.expect("ListContainers").is_empty());
    node.finish().await;
}

#[tokio::test]
async fn simultaneous_removals_of_an_image_all_succeed_and_each_finds_it_gone() {
    let node = Node::start().await;
    let mark = Layer::new().file("mark", 0o644, node.scratch().to_string_lossy().as_bytes()).into_tar();
    let pushed = node.push("doomed", &Image::busybox().layer(&mark, Compression::Gzip));
    for _ in 0..5 {
        node.cri.pull(&pushed.reference, None).await.expect("PullImage");
        let names = [&pushed.id, &pushed.reference, &pushed.by_digest, &pushed.id, &pushed.id];
        join_all(names.map(async |name| {
            node.cri.remove_image(name).await.unwrap_or_else(|status| panic!("RemoveImage {name}: {status}"));
            for gone in [&pushed.id, &pushed.reference, &pushed.by_digest] {
                assert!(node.cri.image(gone).await.expect("ImageStatus").is_none(), "{gone} is there after {name} was removed");
            }
            let listed = node.cri.all_images(None).await.expect("ListImages");
            assert!(listed.iter().all(|image| image.id != pushed.id), "{listed:?}");
        }))
        .await;
    }
    node.finish().await;
}

#[tokio::test]
async fn one_image_has_one_id_in_every_call() {
    let node = Node::start().await;
    let pushed = node.push("one", &Image::busybox());
    let id = node.cri.pull(&pushed.reference, None).await.expect("PullImage");
    let status = node.cri.image(&pushed.reference).await.expect("ImageStatus").expect("it is there");
    let images = node.cri.all_images(None).await.expect("ListImages");
    assert_eq!((&status.id, images.iter().filter(|image| image.id == id).count()), (&id, 1));
    let pod = node.pod("one").await;
    // The kubelet names the image by what PullImage answered; others do as they like.
    for (number, name) in [&id, &pushed.reference, &pushed.by_digest].into_iter().enumerate() {
        let spec = ContainerSpec::new(&format!("c{number}"), name).with(|config| {
            config.image.get_or_insert_default().user_specified_image = pushed.reference.clone();
        });
        let container = pod.start(&spec).await;
        let status = container.status().await;
        let image = status.image.clone().unwrap_or_default();
        assert_eq!((&status.image_id, &status.image_ref), (&id, &id), "made by {name}");
        assert_eq!((&image.image, &image.user_specified_image), (name, &pushed.reference), "as it was asked for");
        let listed = listed(&node, &pod).await;
        let item = listed.iter().find(|item| item.id == container.id).expect("it is listed");
        assert_eq!((&item.image_id, &item.image_ref), (&id, &id), "made by {name}");
        assert_eq!(item.image.as_ref(), Some(&image), "lists and statuses agree");
    }
    node.finish().await;
}

#[tokio::test]
async fn one_image_from_two_registries_is_one_image() {
    let node = Node::start().await;
    let second = Registry::start(&node.scratch().join("second"), Access::Open);
    let mark = Layer::new().file("mark", 0o644, node.scratch().to_string_lossy().as_bytes()).into_tar();
    let built = Image::busybox().layer(&mark, Compression::Gzip).build();
    let here = node.registry.push("same", "1", &built);
    let there = second.push("same", "1", &built);
    for pushed in [&here, &there] {
        assert_eq!(node.cri.pull(&pushed.reference, None).await.expect("PullImage"), built.id());
    }
    let status = node.cri.image(&here.reference).await.expect("ImageStatus").expect("it is there");
    assert_eq!(node.cri.image(&there.reference).await.expect("ImageStatus").as_ref(), Some(&status));
    assert_eq!(sorted(status.repo_tags), sorted(vec![here.reference.clone(), there.reference.clone()]));
    assert_eq!(sorted(status.repo_digests), sorted(vec![here.by_digest.clone(), there.by_digest.clone()]));
    node.cri.remove_image(&there.reference).await.expect("RemoveImage");
    assert!(node.cri.image(&here.reference).await.expect("ImageStatus").is_none(), "one image, removed by one of its names");
    node.finish().await;
}

fn sorted(mut words: Vec<String>) -> Vec<String> {
    words.sort();
    words
}

#[tokio::test]
async fn an_abandoned_pull_is_in_no_list_until_it_is_complete() {
    let Some(node) = Node::own().await else { return };
    for patience in [300, 1000, 3000, 8000, 20_000] {
        let mark = Layer::new().file("mark", 0o644, format!("{patience} {}", node.scratch().display()).as_bytes()).into_tar();
        let pushed = node.push(&format!("abandoned-{patience}"), &Image::busybox().layer(&mark, Compression::Gzip));
        abandon(node.cri.pull(&pushed.reference, None), patience).await;
        for image in node.cri.all_images(None).await.expect("ListImages") {
            assert!(image.size > 0 && !image.repo_tags.is_empty() && !image.repo_digests.is_empty(), "{image:?}");
        }
        assert_eq!(node.cri.pull(&pushed.reference, None).await.expect("PullImage"), pushed.id);
        let pod = node.pod(&format!("p{patience}")).await;
        let (status, text) = pod.run(&ContainerSpec::new("c", &pushed.reference).script("cat /mark")).await;
        assert!(status.exit_code == 0 && text.starts_with(&patience.to_string()), "{text}");
    }
    node.finish().await;
}

#[tokio::test]
async fn what_is_listed_is_complete() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let making = async {
        for number in 0..8 {
            let pod = node.pod(&format!("complete-{number}")).await;
            pod.create(&ContainerSpec::new("c", &image)).await;
        }
    };
    let watching = async {
        loop {
            for pod in node.pods().await {
                let status = node.cri.pod_status(&pod.id).await.expect("what is listed has a status").status.expect("a status");
                assert_eq!((pod.state(), status.state()), (PodSandboxState::SandboxReady, PodSandboxState::SandboxReady));
                assert!(status.network.is_some_and(|network| !network.ip.is_empty()), "a pod is listed before it has its address");
            }
            for container in node.cri.containers(None).await.expect("ListContainers") {
                let status = node.cri.status(&container.id).await.expect("what is listed has a status");
                assert!(!container.image_id.is_empty() && container.created_at > 0 && !status.log_path.is_empty(), "{container:?}");
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = making => {}
        () = watching => {}
    }
    node.finish().await;
}

#[tokio::test]
async fn what_could_not_be_made_is_in_no_list() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("refusing").await;
    let c = |name: &str| ContainerSpec::new(name, &image);
    let missing =
        api::SecurityProfile { profile_type: api::security_profile::ProfileType::Localhost.into(), localhost_ref: "/none".into() };
    let absent = format!("{}/never/pulled:1", node.registry.host());
    for spec in [
        ContainerSpec::new("image", &absent),
        c("user").security(|s| s.run_as_username = "stowaway".into()),
        c("profile").security(|s| s.seccomp = Some(missing)),
        c("device").with(|config| {
            config.devices.push(api::Device { host_path: "/dev/nonesuch".into(), container_path: "/dev/x".into(), permissions: "r".into() })
        }),
        c("mount").mount("/etc/passwd/beneath", "/data", true),
        c("cpus").resources(|r| r.cpuset_cpus = "100000".into()),
    ] {
        let name = spec.config.metadata.clone().unwrap_or_default().name;
        assert!(pod.try_create(&spec).await.is_err(), "{name}");
        assert!(listed(&node, &pod).await.is_empty(), "{name}");
        assert!(std::fs::read_dir(node.footprint.storage.join("containers")).expect("the writable layers").next().is_none(), "{name}");
        pod.create(&c(&name)).await.remove().await;
    }
    let unroutable =
        PodSpec::new("sysctl").with(|config| drop(config.linux.get_or_insert_default().sysctls.insert("net.no.such".into(), "1".into())));
    assert!(node.try_run(&unroutable).await.is_err());
    assert_eq!(node.pods().await.len(), 1);
    let images = node.cri.all_images(None).await.expect("ListImages").len();
    assert!(node.cri.pull(&absent, None).await.is_err());
    assert_eq!(node.cri.all_images(None).await.expect("ListImages").len(), images);
    node.finish().await;
}
