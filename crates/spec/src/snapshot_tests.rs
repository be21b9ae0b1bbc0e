//! Whole specs and Plans of typical containers, as JSON. A difference is either a mistake or a decision to be reviewed.

use coracle_domain::{Mount, NetworkMode, Propagation};
use coracle_plan::Step;
use serde_json::Value;

use crate::fixture::{Fixture, device, image_volume, volume};
use crate::{
    CgroupHierarchy, CgroupView, Description, Layers, NamespacePaths, Placement, ResolvedUser, Selinux, exec_process, oci_spec_for, plan,
};

fn placement() -> Placement {
    Placement {
        root: "/run/c/root".into(),
        layers: Layers { lower: vec!["/l/2".into(), "/l/1".into()], upper: "/c/upper".into(), work: "/c/work".into() },
        cgroups: coracle_plan::Cgroups { unified: Some("/sys/fs/cgroup/kubepods/pod1/c1".into()), join: Vec::new() },
    }
}

/// Sets of capabilities have no order: sorted. The default seccomp profile is long, tested elsewhere and
/// not the same on every machine: cut.
fn tidy(mut spec: Value) -> Value {
    if let Some(sets) = spec.pointer_mut("/process/capabilities").and_then(Value::as_object_mut) {
        for set in sets.values_mut().filter_map(Value::as_array_mut) {
            set.sort_by_key(Value::to_string);
        }
    }
    for part in ["/linux/seccomp/syscalls", "/linux/seccomp/architectures"] {
        if let Some(part) = spec.pointer_mut(part) {
            *part = Value::from("…");
        }
    }
    spec
}

fn spec_of(fixture: &Fixture) -> (Description, Value) {
    let description = oci_spec_for(&fixture.spec()).unwrap();
    let json = tidy(serde_json::to_value(&description.spec).unwrap());
    (description, json)
}

fn plan_of(description: &Description) -> Value {
    let mut json = serde_json::to_value(plan(description, placement()).unwrap()).unwrap();
    if let Some(program) = json.pointer_mut("/process/seccomp/program") {
        *program = Value::from("…");
    }
    json
}

fn check(name: &str, fixture: &Fixture) {
    let (description, spec) = spec_of(fixture);
    let mut settings = insta::Settings::clone_current();
    settings.set_sort_maps(true);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        insta::assert_json_snapshot!(format!("{name}_spec"), spec);
        insta::assert_json_snapshot!(format!("{name}_plan"), plan_of(&description));
    });
}

#[test]
fn plain() {
    let mut fixture = Fixture::default();
    fixture.image.volumes = vec!["/var/lib/data".into()];
    fixture.request.working_directory = Some("/srv".into());
    check("plain", &fixture);
}

#[test]
fn privileged() {
    let mut fixture = Fixture::default();
    fixture.request.security.privileged = true;
    fixture.pod.security.privileged = true;
    fixture.devices = vec![device("/dev/xvda", 202, 0)];
    check("privileged", &fixture);
}

#[test]
fn host_network() {
    let mut fixture = Fixture::default();
    fixture.pod.network = NetworkMode::Node;
    fixture.pod.hostname = None;
    fixture.namespaces = NamespacePaths { network: None, uts: None, ..fixture.namespaces };
    check("host_network", &fixture);
}

#[test]
fn read_only_rootfs() {
    let mut fixture = Fixture::default();
    fixture.request.security.read_only_rootfs = true;
    fixture.request.security.no_new_privileges = true;
    check("read_only_rootfs", &fixture);
}

#[test]
fn terminal() {
    let mut fixture = Fixture::default();
    fixture.request.terminal = true;
    check("terminal", &fixture);
}

#[test]
fn ambient_capabilities_of_a_user() {
    let user = ResolvedUser { uid: 1000, gid: 2000, groups: vec![2000, 50], home: "/srv/web".into() };
    let mut fixture = Fixture { user, ..Fixture::default() };
    fixture.request.security.capabilities.drop = vec!["ALL".into()];
    fixture.request.security.capabilities.add_ambient = vec!["NET_BIND_SERVICE".into()];
    check("ambient", &fixture);
}

#[test]
fn volumes_and_propagation() {
    let mut fixture = Fixture::default();
    let mut read_only = volume("/config");
    (read_only.read_only, read_only.recursive_read_only) = (true, true);
    let mut shared = volume("/data/shared");
    shared.propagation = Propagation::Bidirectional;
    let mut followed = volume("/data");
    (followed.propagation, followed.read_only) = (Propagation::HostToContainer, true);
    followed.options = vec!["noexec".into(), "nosuid".into()];
    fixture.request.mounts = vec![shared, image_volume("/data/model", Some("small")), followed, read_only, volume("/etc/hosts")];
    fixture.image_volumes = vec![vec!["/l/model".into(), "/l/empty".into()]];
    check("volumes", &fixture);
}

#[test]
fn users_and_clocks_of_its_own() {
    let mut fixture = Fixture::default();
    let ids = |host| coracle_domain::IdMapping::new(host, 65_536).unwrap();
    let users = coracle_domain::UserNamespace { uids: ids(131_072), gids: ids(262_144) };
    fixture.pod.user_namespace = Some(users);
    fixture.pod.time_offsets.boottime = Some(coracle_domain::TimeOffset { seconds: -61, nanoseconds: 500_000_000 });
    (fixture.namespaces.user, fixture.namespaces.time) = (Some("/run/pod/user".into()), Some("/run/pod/time".into()));
    fixture.request.mounts = vec![Mount { mapping: Some(users), ..volume("/data") }];
    check("users", &fixture);
}

#[test]
fn users_of_its_own_on_the_nodes_network() {
    let mut fixture = Fixture::default();
    let ids = coracle_domain::IdMapping::new(131_072, 4).unwrap();
    fixture.pod.user_namespace = Some(coracle_domain::UserNamespace { uids: ids, gids: ids });
    fixture.pod.network = NetworkMode::Node;
    let description = oci_spec_for(&fixture.spec()).unwrap();
    let mounts = description.spec.mounts().clone().unwrap();
    let options = |target: &str| {
        let mount = mounts.iter().find(|mount| mount.destination().to_str() == Some(target)).unwrap();
        (mount.typ().clone().unwrap(), mount.options().clone().unwrap())
    };
    let (kind, words) = options("/sys");
    assert!(kind == "bind" && words.contains(&"ro".to_owned()), "the file system itself could not be mounted: {words:?}");
    assert!(!options("/dev/pts").1.contains(&"gid=5".to_owned()), "there is no group 5 among four");
}

#[test]
fn hybrid_cgroups() {
    let mut fixture = Fixture::default();
    let hierarchy = |name: &str, aliases: &[&str]| CgroupHierarchy {
        name: name.into(),
        source: format!("/sys/fs/cgroup/{name}/kubepods/pod1/c1").into(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
    };
    fixture.cgroup =
        CgroupView::Hierarchies(vec![hierarchy("memory", &[]), hierarchy("cpu,cpuacct", &["cpu", "cpuacct"]), hierarchy("unified", &[])]);
    check("hybrid", &fixture);
}

#[test]
fn an_exec_has_the_containers_identity_and_rights() {
    let (description, _) = spec_of(&Fixture::default());
    let container = plan(&description, placement()).unwrap().process;
    let process = exec_process(&container, &["sh".to_owned(), "-c".to_owned(), "id".to_owned()], true).unwrap();
    assert_eq!(process.arguments.len(), 3);
    assert!(process.terminal && process.environment.contains(&"TERM=xterm".into()));
    assert_eq!((&process.user, process.capabilities, &process.seccomp), (&container.user, container.capabilities, &container.seccomp));
    assert!(exec_process(&container, &[], false).is_err());
    assert!(exec_process(&container, &["a\0b".to_owned()], false).is_err());
}

#[test]
fn a_supplied_dev_gets_no_nodes_and_no_links_of_ours() {
    let mut fixture = Fixture::default();
    fixture.request.mounts = vec![volume("/dev")];
    let steps = plan_of(&spec_of(&fixture).0)["steps"].to_string();
    assert!(!steps.contains("Device") && !steps.contains("Symlink"), "{steps}");
}

#[test]
fn selinux_labels_reach_the_process_its_layers_and_its_file_systems() {
    let mut fixture = Fixture::default();
    fixture.node.selinux = Selinux::parse("process = \"u:r:container_t:s0\"\nfile = \"u:r:container_file_t:s0\"");
    fixture.request.security.selinux.level = Some("s0:c1,c2".into());
    let (description, spec) = spec_of(&fixture);
    assert_eq!(spec.pointer("/process/selinuxLabel"), Some(&"u:r:container_t:s0:c1,c2".into()));
    assert_eq!(spec.pointer("/linux/mountLabel"), Some(&"u:r:container_file_t:s0:c1,c2".into()));
    let plan = plan(&description, placement()).unwrap();
    assert_eq!(plan.process.selinux.as_deref(), Some("u:r:container_t:s0:c1,c2"));
    assert!(matches!(&plan.steps[1], Step::Overlay { label: Some(label), .. } if label == "u:r:container_file_t:s0:c1,c2"));
    let labelled: Vec<String> = plan.steps.iter().filter_map(labelled).collect();
    assert_eq!(labelled, ["/dev", "/dev/pts", "/dev/mqueue"], "not proc and sysfs, which have labels of their own");
}

fn labelled(step: &Step) -> Option<String> {
    match step {
        Step::Filesystem { target, options, .. } if options.iter().any(|(key, _)| key == "context") => Some(target.display().to_string()),
        Step::Label { target, .. } => Some(target.display().to_string()),
        _ => None,
    }
}
