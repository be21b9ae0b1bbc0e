//! CRI's requests off the wire, and what they ask for down to the Plan: the first byte says of which kind, and who runs it.
#![no_main]

use std::path::Path;

use coracle_cri::fuzzing::{Asked, request};
use coracle_domain::{ContainerId, ContainerRequest, MountSource, PodId, PodRequest, Profile};
use coracle_spec::{
    CgroupView, ContainerSpec, ImageDefaults, NamespacePaths, Node, Placement, PodFiles, UserDatabase, exec_process, oci_spec_for, plan,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, message)) = bytes.split_first() else { return };
    if let Some(Asked::Container(pod, container)) = request(*kind, message) {
        described(&pod, &container);
    }
});

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:\n";
const GROUP: &[u8] = b"root:x:0:\napp:x:1000:app\n";

fn described(pod: &PodRequest, container: &ContainerRequest) {
    let Ok(user) = UserDatabase::new(PASSWD, GROUP).and_then(|users| users.resolve(&container.security, "app", "image")) else { return };
    let (id, pod_id) = (ContainerId::from_entropy([1; 32]), PodId::from_entropy([2; 32]));
    let image = ImageDefaults { environment: vec!["PATH=/bin".into()], entrypoint: vec!["/entry".into()], ..ImageDefaults::default() };
    let node = Node { hostname: "node".into(), capabilities: (1 << 41) - 1, kernel: (6, 12), ..Node::default() };
    let images = container.mounts.iter().filter(|mount| matches!(mount.source, MountSource::Image { .. }));
    let image_volumes: Vec<_> = images.map(|_| vec!["/layer".into()]).collect();
    // Compiling a filter for every set of capabilities would be all that this does.
    let mut container = container.clone();
    container.security.seccomp = Profile::Unconfined;
    let files = PodFiles { resolv_conf: Some("/r".into()), hostname: Some("/h".into()), hosts: Some("/o".into()), shm: Some("/s".into()) };
    let namespaces = NamespacePaths::default();
    let spec = ContainerSpec {
        id: &id,
        request: &container,
        pod_id: &pod_id,
        pod,
        image: &image,
        user: &user,
        node: &node,
        image_volumes: &image_volumes,
        devices: &[],
        files: &files,
        namespaces: &namespaces,
        cgroup: &CgroupView::Unified,
        cgroups_path: Path::new("/pods/1"),
        seccomp_profile: None,
    };
    let Ok(description) = oci_spec_for(&spec) else { return };
    if let Ok(plan) = plan(&description, Placement::default()) {
        let written = serde_json::to_vec(&plan).unwrap();
        assert_eq!(serde_json::from_slice::<coracle_plan::Plan>(&written).unwrap(), plan);
        let _ = exec_process(&plan.process, &container.args, true);
    }
}
