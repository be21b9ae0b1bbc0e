//! Tests of [`super`].

use std::path::Path;

use coracle_domain::{MountSource, Profile, StopSignal};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::samples;

fn request(config: v1::ContainerConfig) -> v1::CreateContainerRequest {
    v1::CreateContainerRequest { config: Some(config), ..Default::default() }
}

#[test]
fn a_kubelets_container_is_read_whole() {
    let container = samples::container_request();
    assert_eq!((container.metadata.name.as_str(), container.metadata.attempt), ("server", 2));
    assert_eq!((container.image.asked.as_str(), container.image.user_specified.as_str()), (samples::IMAGE, "registry.example/web:1"));
    assert_eq!((container.command.len(), container.args.len()), (1, 2));
    assert_eq!(container.working_directory.as_deref(), Some(Path::new("/srv")));
    assert_eq!(container.environment, [EnvironmentVariable { name: "RAW".to_owned(), value: vec![0xff, b'=', 0x80] }]);
    assert_eq!(container.mounts[0].source, MountSource::Host("/var/lib/kubelet/hosts".into()));
    assert_eq!(container.devices[0].permissions, "rwm");
    assert_eq!(container.log_path.as_deref(), Some(Path::new("server/2.log")));
    assert_eq!((container.pid, container.stop_signal), (PidMode::Container, Some(StopSignal(29))));
    assert_eq!((container.resources.memory_limit, container.resources.oom_score_adj), (Some(64 << 20), 999));
    assert_eq!(container.security.seccomp, Profile::Localhost("/p.json".to_owned()));
    assert_eq!((container.security.capabilities.drop, container.security.no_new_privileges), (vec!["ALL".to_owned()], true));
}

#[test]
fn a_bare_container_has_defaults() {
    let v1::ContainerConfig { metadata, image, .. } = samples::container_config();
    let container = parse(&request(v1::ContainerConfig { metadata, image, ..Default::default() })).unwrap();
    assert_eq!((container.working_directory, container.log_path, container.stop_signal), (None, None, None));
    assert_eq!((container.resources, container.security), (Resources::default(), SecurityContext::default()));
}

#[test]
fn malformed_fields_are_refused_by_name() {
    type Spoil = fn(&mut v1::ContainerConfig);
    fn context(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
    }
    let cases: [(&str, Spoil); 19] = [
        ("config.metadata", |c| c.metadata = None),
        ("config.metadata.name", |c| c.metadata.as_mut().unwrap().name.clear()),
        ("config.image", |c| c.image = None),
        ("config.image.image", |c| c.image.as_mut().unwrap().image.clear()),
        ("config.command", |c| c.command[0].push('\0')),
        ("config.args", |c| c.args[0].push('\0')),
        ("config.working_dir", |c| c.working_dir = "srv".to_owned()),
        ("config.envs[0].key", |c| c.envs[0].key.clear()),
        ("config.envs[0].key", |c| c.envs[0].key = "A=B".to_owned()),
        ("config.envs[0].value", |c| c.envs[0].value.push(0)),
        ("config.mounts[0].container_path", |c| c.mounts[0].container_path = "etc/hosts".to_owned()),
        ("config.devices[0].permissions", |c| c.devices[0].permissions = "rwx".to_owned()),
        ("config.log_path", |c| c.log_path = "../../etc/passwd".to_owned()),
        ("config.stop_signal", |c| c.stop_signal = 66),
        ("config.linux.resources.cpu_shares", |c| c.linux.as_mut().unwrap().resources.as_mut().unwrap().cpu_shares = -1),
        ("config.linux.security_context.run_as_username", |c| context(c).run_as_username = "root".to_owned()),
        ("config.linux.security_context.masked_paths", |c| context(c).masked_paths = vec!["proc".to_owned()]),
        ("config.linux.security_context.supplemental_groups", |c| context(c).supplemental_groups = vec![-5]),
        ("config.linux.security_context.namespace_options.target_id", |c| context(c).namespace_options.as_mut().unwrap().pid = 3),
    ];
    for (name, spoil) in cases {
        let mut config = samples::container_config();
        spoil(&mut config);
        match parse(&request(config)) {
            Err(Refusal::Invalid { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn the_value_of_a_refused_variable_is_not_told() {
    let mut config = samples::container_config();
    config.envs[0].value = b"hunter2\0".to_vec();
    let refusal = parse(&request(config)).unwrap_err().to_string();
    assert!(refusal.contains("RAW") && !refusal.contains("hunter2"), "{refusal}");
}

#[test]
fn what_is_not_built_is_unsupported_and_not_ignored() {
    let mut config = samples::container_config();
    config.cdi_devices = vec![v1::CdiDevice { name: "vendor.example/gpu=0".to_owned() }];
    assert!(matches!(parse(&request(config)), Err(Refusal::Unsupported { .. })));
}

#[test]
fn a_privileged_container_needs_a_privileged_pod() {
    let (mut container, mut pod) = (samples::container_request(), samples::pod_request());
    assert!(fits(&v1::CreateContainerRequest::default(), &container, &pod).is_ok());
    container.security.privileged = true;
    assert!(matches!(fits(&v1::CreateContainerRequest::default(), &container, &pod), Err(Refusal::Invalid { .. })));
    pod.security.privileged = true;
    assert!(fits(&v1::CreateContainerRequest::default(), &container, &pod).is_ok());
}

#[test]
fn a_pod_may_get_a_privileged_container_that_it_was_not_made_for() {
    let (mut container, mut pod) = (samples::container_request(), samples::pod_request());
    container.security.privileged = true;
    for (now, then) in [(true, false), (false, true)] {
        pod.security.privileged = then;
        let security_context = Some(v1::LinuxSandboxSecurityContext { privileged: now, ..Default::default() });
        let linux = Some(v1::LinuxPodSandboxConfig { security_context, ..Default::default() });
        let sandbox_config = Some(v1::PodSandboxConfig { linux, ..Default::default() });
        let request = v1::CreateContainerRequest { sandbox_config, ..Default::default() };
        assert_eq!(fits(&request, &container, &pod).is_ok(), now, "what the kubelet says of it now counts");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(config) = v1::ContainerConfig::decode(bytes.as_slice()) {
            let _ = parse(&request(config));
        }
    }

    #[test]
    fn no_damage_to_a_good_request_makes_the_parser_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = samples::container_config().encode_to_vec();
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Ok(config) = v1::ContainerConfig::decode(bytes.as_slice()) {
            let _ = parse(&request(config));
        }
    }
}
