//! Records and views for unit tests, each told apart by a seed.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_domain::{
    ContainerId, ContainerMetadata, ContainerPhase, ContainerRequest, ImageIdentity, IpcMode, NetworkMode, PidMode, PodId, PodMetadata,
    PodPhase, PodRequest, Resources, SecurityContext,
};

use crate::index::Entry;
use crate::live::Live;
use crate::pod::Handle;
use crate::record::{ContainerRecord, PodRecord};

/// A ready pod with one container.
pub(crate) fn record(seed: u8) -> PodRecord {
    PodRecord {
        id: PodId::from_entropy([seed; 32]),
        request: Arc::new(pod_request(seed)),
        phase: PodPhase::Ready,
        created_at: i64::from(seed),
        lease: None,
        monitor: None,
        containers: vec![container(seed)],
        resized: None,
    }
}

/// The same as its owner would publish it.
pub(crate) fn entry(seed: u8) -> Entry {
    let record = record(seed);
    let view = coracle_domain::PodView {
        id: record.id.clone(),
        request: Arc::clone(&record.request),
        phase: record.phase,
        created_at: record.created_at,
        addresses: Vec::new(),
        resources: None,
        overhead: None,
        containers: record.containers.iter().map(|container| Arc::new(container.view(&record.id))).collect(),
        monitor_pid: None,
        network_namespace: None,
    };
    Entry { view: Arc::new(view), live: Arc::new(Live::default()), owner: Handle::to_nobody() }
}

pub(crate) fn pod_request(seed: u8) -> PodRequest {
    PodRequest {
        metadata: PodMetadata { name: format!("pod-{seed}"), uid: seed.to_string(), namespace: "default".into(), attempt: 0 },
        handler: None,
        hostname: None,
        log_directory: None,
        dns: None,
        ports: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        cgroup_parent: None,
        network: NetworkMode::Pod,
        pid: PidMode::Container,
        ipc: IpcMode::Pod,
        sysctls: BTreeMap::new(),
        security: SecurityContext::default(),
        resources: None,
        overhead: None,
        user_namespace: None,
        time_offsets: Default::default(),
    }
}

fn container(seed: u8) -> ContainerRecord {
    ContainerRecord {
        id: ContainerId::from_entropy([seed; 32]),
        request: Arc::new(container_request()),
        image: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
        volume_images: Vec::new(),
        phase: ContainerPhase::Created,
        created_at: 0,
        resources: Resources::default(),
        user: (0, 0, Vec::new()),
        stop_signal: 15,
        log_path: None,
        lost_output: Default::default(),
    }
}

fn container_request() -> ContainerRequest {
    ContainerRequest {
        metadata: ContainerMetadata { name: "app".into(), attempt: 0 },
        image: ImageIdentity { asked: "app".into(), user_specified: String::new(), annotations: BTreeMap::new(), handler: None },
        command: Vec::new(),
        args: Vec::new(),
        working_directory: None,
        environment: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: None,
        stdin: false,
        stdin_once: false,
        terminal: false,
        pid: PidMode::Container,
        resources: Resources::default(),
        security: SecurityContext::default(),
        stop_signal: None,
    }
}
