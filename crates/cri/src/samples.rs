//! Requests and views that tests start from: everything set that can be.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_domain::{
    ContainerPhase, ContainerRequest, ContainerStats, ContainerView, Counts, CpuStats, Details, DeviceTransfers, Exit, ExitCode,
    Filesystem, FilesystemUsage, HugepageUsage, InterfaceStats, IoStats, MemoryStats, NetworkStats, PodPhase, PodRequest, PodStats,
    PodView, Pressure, ProcessCounts, Resources, Stall, TasksLimit, Throttling, Traffic,
};

use crate::v1::security_profile::ProfileType;
use crate::{container, pod, v1};

pub(crate) const IMAGE: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn list(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn number(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

fn local(path: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref: path.to_owned() })
}

fn limits() -> v1::LinuxContainerResources {
    v1::LinuxContainerResources { cpu_shares: 512, memory_limit_in_bytes: 64 << 20, oom_score_adj: 999, ..Default::default() }
}

/// A pod as a kubelet asks for it.
pub(crate) fn pod_config() -> v1::PodSandboxConfig {
    let options = v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() };
    let context = v1::LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        run_as_user: number(1000),
        run_as_group: number(1001),
        supplemental_groups: vec![5, 6],
        seccomp: local("/var/lib/kubelet/seccomp/p.json"),
        ..Default::default()
    };
    let linux = v1::LinuxPodSandboxConfig {
        cgroup_parent: "/kubepods/burstable/pod42".to_owned(),
        security_context: Some(context),
        sysctls: map(&[("net.ipv4.ip_unprivileged_port_start", "0")]),
        overhead: Some(v1::LinuxContainerResources::default()),
        resources: Some(limits()),
    };
    let port = v1::PortMapping { protocol: v1::Protocol::Udp.into(), container_port: 53, host_port: 5353, host_ip: "127.0.0.1".to_owned() };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web".to_owned(),
            uid: "42".to_owned(),
            namespace: "default".to_owned(),
            attempt: 1,
        }),
        hostname: "web-0".to_owned(),
        log_directory: "/var/log/pods/default_web_42".to_owned(),
        dns_config: Some(v1::DnsConfig { servers: list(&["10.96.0.10"]), searches: list(&["cluster.local"]), options: list(&["ndots:5"]) }),
        port_mappings: vec![port, v1::PortMapping { container_port: 80, ..Default::default() }],
        labels: map(&[("app", "web")]),
        annotations: map(&[("note", "späte\nZeile")]),
        linux: Some(linux),
        windows: None,
    }
}

/// A container as a kubelet asks for it.
pub(crate) fn container_config() -> v1::ContainerConfig {
    let context = v1::LinuxContainerSecurityContext {
        capabilities: Some(v1::Capability {
            add_capabilities: list(&["NET_ADMIN"]),
            drop_capabilities: list(&["ALL"]),
            ..Default::default()
        }),
        namespace_options: Some(v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() }),
        run_as_user: number(1000),
        masked_paths: list(&["/proc/kcore"]),
        readonly_paths: list(&["/proc/sys"]),
        seccomp: local("/p.json"),
        no_new_privs: true,
        ..Default::default()
    };
    let mount = v1::Mount { container_path: "/etc/hosts".to_owned(), host_path: "/var/lib/kubelet/hosts".to_owned(), ..Default::default() };
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "server".to_owned(), attempt: 2 }),
        image: Some(v1::ImageSpec {
            image: IMAGE.to_owned(),
            user_specified_image: "registry.example/web:1".to_owned(),
            annotations: map(&[("a", "b")]),
            ..Default::default()
        }),
        command: list(&["/bin/server"]),
        args: list(&["--port", "80"]),
        working_dir: "/srv".to_owned(),
        envs: vec![v1::KeyValue { key: "RAW".to_owned(), value: vec![0xff, b'=', 0x80] }],
        mounts: vec![mount],
        devices: vec![v1::Device {
            host_path: "/dev/fuse".to_owned(),
            container_path: "/dev/fuse".to_owned(),
            permissions: "rwm".to_owned(),
        }],
        labels: map(&[("app", "web"), ("tier", "front")]),
        annotations: map(&[("hash", "1f")]),
        log_path: "server/2.log".to_owned(),
        linux: Some(v1::LinuxContainerConfig { resources: Some(limits()), security_context: Some(context) }),
        stop_signal: v1::Signal::Sigusr1.into(),
        ..Default::default()
    }
}

pub(crate) fn pod_request() -> PodRequest {
    let request = v1::RunPodSandboxRequest { config: Some(pod_config()), runtime_handler: "native".to_owned() };
    pod::parse(&request).unwrap()
}

pub(crate) fn container_request() -> ContainerRequest {
    let request = v1::CreateContainerRequest { config: Some(container_config()), ..Default::default() };
    container::parse(&request).unwrap()
}

/// A container that ended well.
pub(crate) fn container() -> Arc<ContainerView> {
    let request = container_request();
    Arc::new(ContainerView {
        id: "c1".repeat(32).parse().unwrap(),
        pod: "ab".repeat(32).parse().unwrap(),
        image: IMAGE.parse().unwrap(),
        volume_images: Vec::new(),
        phase: ContainerPhase::Exited {
            started_at: Some(200),
            exit: Exit { code: ExitCode::Known(0), at: 300, oom_killed: false },
            message: String::new(),
        },
        created_at: 100,
        resources: Resources { cpu_shares: Some(1024), ..request.resources.clone() },
        user: (1000, 1001, vec![5, 6]),
        log_path: Some("/var/log/pods/default_web_42/server/2.log".into()),
        lost_output: Default::default(),
        stop_signal: 10,
        request: Arc::new(request),
    })
}

/// A ready pod with that container in it.
pub(crate) fn pod() -> Arc<PodView> {
    Arc::new(PodView {
        id: "ab".repeat(32).parse().unwrap(),
        request: Arc::new(pod_request()),
        phase: PodPhase::Ready,
        created_at: 50,
        addresses: vec!["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        resources: None,
        overhead: None,
        containers: vec![container()],
        monitor_pid: Some(7),
        network_namespace: Some("/run/coracle/netns".into()),
    })
}

/// A container of which nothing is known.
pub(crate) fn unmeasured() -> ContainerStats {
    ContainerStats { container: container(), cpu: None, memory: None, io: None, writable_layer: None, details: None }
}

fn pressure(some: u64, full: Option<u64>) -> Pressure {
    let stall = |seconds: u64| Stall { total: seconds * 1_000_000_000, averages: [1234, 50, 10_000] };
    Pressure { some: stall(some), full: full.map(stall) }
}

/// A running container of which everything is known.
pub(crate) fn container_stats() -> ContainerStats {
    let view = ContainerView { phase: ContainerPhase::Running { pid: 7, started_at: 200_000_000_000 }, ..(*container()).clone() };
    let memory = MemoryStats {
        at: 11,
        usage: 100,
        working_set: 80,
        available: Some(20),
        rss: 60,
        page_faults: 7,
        major_page_faults: 1,
        swap: Some(5),
        swap_available: Some(3),
        pressure: Some(pressure(1, Some(3))),
    };
    ContainerStats {
        container: Arc::new(view),
        cpu: Some(CpuStats { at: 10, usage: 5_000_000_000, rate: Some(50), pressure: Some(pressure(2, None)) }),
        memory: Some(memory),
        io: Some(IoStats { at: 13, pressure: pressure(2, Some(4)) }),
        writable_layer: Some(FilesystemUsage { at: 12, mountpoint: "/run/c".into(), bytes: 4096, inodes: 3 }),
        details: Some(Box::new(details())),
    }
}

fn details() -> Details {
    let counts = Counts {
        cpu_user: Some(3_000_000_000),
        cpu_system: Some(2_999_999_999),
        throttling: Some(Throttling { periods: 9, throttled_periods: 4, throttled_time: 6_500_000_000 }),
        cache: Some(21),
        mapped_file: Some(22),
        kernel_memory: Some(23),
        memory_peak: Some(24),
        memory_limit_hits: Some(25),
        oom_kills: Some(26),
        tasks: Some(27),
        tasks_limit: Some(TasksLimit::Unlimited),
        devices: vec![DeviceTransfers {
            device: "/dev/vda".to_owned(),
            number: (254, 0),
            reads: 31,
            read_bytes: 32,
            writes: 33,
            written_bytes: 34,
        }],
        hugepages: vec![HugepageUsage { page_size: "2MB".to_owned(), usage: 41, peak: Some(42) }],
    };
    Details {
        counts,
        processes: Some(ProcessCounts { processes: 51, descriptors: 52, sockets: 53 }),
        open_files_limit: Some(1024),
        filesystem: Some(Filesystem { at: 14, device: "/dev/vda".to_owned(), bytes: 61, inodes: 62, inodes_free: 63 }),
    }
}

/// A pod of which everything is known but memory and processor time.
pub(crate) fn pod_stats() -> PodStats {
    let traffic = |first: u64| Traffic { bytes: first, packets: first + 1, errors: first + 2, dropped: first + 3 };
    let own = InterfaceStats { name: "eth0".to_owned(), received: traffic(1), sent: traffic(5) };
    let tunnel = InterfaceStats { name: "tunl0".to_owned(), ..InterfaceStats::default() };
    PodStats {
        pod: pod(),
        at: 8,
        cpu: None,
        memory: None,
        io: None,
        network: Some(NetworkStats { at: 9, interfaces: vec![own, tunnel] }),
        tasks: Some(2),
        containers: vec![container_stats()],
    }
}
