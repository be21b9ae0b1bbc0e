//! RunPodSandbox: from a request to a pod that can take containers.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::sync::Arc;

use coracle_domain::{
    During, IdMapping, IpcMode, NetworkMode, PidMode, PodId, PodPhase, PodRequest, Refusal, Result, SecurityContext, TimeOffset,
    TimeOffsets, UserNamespace,
};
use coracle_failpoint::{Point, reach};
use coracle_monitor::client::Monitor;
use coracle_monitor::protocol::{self, Clock, Prepare};
use rustix::mount::MountFlags;

use super::Owner;
use super::teardown::{Subject, Teardown};
use crate::deadline::{ANSWER, SET_UP, within};
use crate::record::{MonitorIdentity, PodRecord};
use crate::{Shared, clock, etc, process, selinux};

/// The size of a pod's /dev/shm, as the peers have it.
const SHM_OPTIONS: &str = "mode=1777,size=67108864";

/// There are half a million levels, so that the first attempt is nearly always good.
const ATTEMPTS_AT_A_LEVEL: usize = 32;

/// A new id. With SELinux it also is one whose categories no other pod has, if one is found.
fn new_id(shared: &Shared) -> Result<PodId> {
    let mut id = shared.new_id()?;
    let Some(selinux) = &shared.node.selinux else { return Ok(id) };
    let level = |id: &PodId| selinux.level(id, &SecurityContext::default());
    let taken: HashSet<_> = shared.index.pods_now().iter().map(|pod| level(&pod.id)).collect();
    for _ in 0..ATTEMPTS_AT_A_LEVEL {
        if !taken.contains(&level(&id)) {
            break;
        }
        id = shared.new_id()?;
    }
    Ok(id)
}

/// Makes a pod and sets its owner to work. If any stage fails nothing is left of it.
pub(crate) async fn create(shared: Arc<Shared>, request: PodRequest) -> Result<PodId> {
    shared.handlers.resolve(request.handler.as_ref())?;
    check_clocks(&request.time_offsets)?;
    if request.user_namespace.is_some()
        && let Err(reason) = shared.user_namespaces.get().await
    {
        return Err(Refusal::unsupported(format!("a user namespace, which this node cannot give: {reason}")).into());
    }
    let record = PodRecord {
        id: new_id(&shared)?,
        request: Arc::new(request),
        phase: PodPhase::Creating,
        created_at: clock::now(),
        lease: None,
        monitor: None,
        containers: Vec::new(),
        resized: None,
    };
    let mut owner = Owner::new(shared, record);
    match owner.set_up().await {
        Ok(()) => {
            let id = owner.id().clone();
            owner.serve();
            Ok(id)
        }
        Err(error) => {
            Teardown::new(&owner.shared, Subject::of(&owner.record)).with(owner.monitor.take()).to_the_end(&owner.shared).await;
            Err(error)
        }
    }
}

impl Owner {
    async fn set_up(&mut self) -> Result<()> {
        self.make_directory()?;
        self.take_lease().await?;
        self.start_monitor().await?;
        self.make_namespaces().await?;
        self.attach_network().await?;
        self.make_shm()?;
        let address = self.record.lease.as_ref().map(|lease| lease.address.into());
        etc::write(&self.directory, &self.record.request, address)?;
        self.label_files()?;
        self.record.phase = PodPhase::Ready;
        self.record.save_and_reserve(&self.directory.record())
    }

    fn make_directory(&self) -> Result<()> {
        let path = self.directory.path();
        // Containers of user namespaces reach their files in here, so that it must be searchable. Otherwise it is nobody's
        // business: the pod's /dev/shm, for one, is writable by all.
        let mode = if self.record.request.user_namespace.is_some() { 0o711 } else { 0o700 };
        DirBuilder::new().mode(mode).create(path).during("making the pod's directory", path.display())?;
        reach(Point::PodDirectory);
        Ok(())
    }

    /// Takes an address and the host ports asked for. They are on record before they are used.
    async fn take_lease(&mut self) -> Result<()> {
        if self.record.request.network == NetworkMode::Pod {
            let lease = self.shared.network.lease(&self.record.id)?;
            self.record.lease = Some(lease);
            self.shared.network.claim_ports(&self.record.port_request(&lease))?;
        }
        self.record.save_and_reserve(&self.directory.record())
    }

    async fn start_monitor(&mut self) -> Result<()> {
        let path = self.directory.path();
        let subject = self.record.id.as_str();
        let pid = coracle_monitor::client::spawn(&self.shared.monitor, path).await?;
        let started = process::start_time(pid).during("looking at the monitor of pod", subject)?;
        // Known before it is talked to: one that does not answer is to be killed as well.
        self.record.monitor = Some(MonitorIdentity { pid, started });
        let (monitor, events) = within(ANSWER, "greeting the monitor of pod", subject, Monitor::connect(path)).await?;
        (self.monitor, self.events) = (Some(monitor), Some(events));
        Ok(())
    }

    async fn make_namespaces(&self) -> Result<()> {
        let request = &self.record.request;
        let network = request.network == NetworkMode::Pod;
        let hostname = match (&request.hostname, network) {
            (_, false) => None,
            (Some(name), true) => Some(name.clone()),
            (None, true) => Some(self.shared.node.hostname.clone()),
        };
        let prepare = Prepare {
            pins: self.directory.pins(),
            network,
            ipc: request.ipc == IpcMode::Pod,
            hostname,
            sysctls: sysctls(request),
            share_pid: request.pid == PidMode::Pod,
            user: request.user_namespace.map(|users| self.user_namespace(users)),
            time_offsets: time_offsets(&request.time_offsets),
        };
        within(SET_UP, "making the namespaces of pod", self.record.id.as_str(), self.monitor()?.prepare(prepare)).await
    }

    fn user_namespace(&self, users: UserNamespace) -> coracle_plan::UserNamespace {
        let mapping = |ids: IdMapping| coracle_plan::IdMapping { host: ids.host(), length: ids.length() };
        coracle_plan::UserNamespace { path: self.directory.pin("user"), uids: mapping(users.uids), gids: mapping(users.gids) }
    }

    async fn attach_network(&self) -> Result<()> {
        let Some(lease) = &self.record.lease else { return Ok(()) };
        let pin = self.directory.pin("net");
        let namespace = fs::File::open(&pin).during("opening the network namespace", pin.display())?;
        let work = async {
            // A link that is left of another pod may have the same address.
            self.shared.links_swept.get().await;
            self.shared.network.attach(&self.record.id, namespace.as_fd(), lease).await
        };
        within(SET_UP, "attaching the network of pod", self.record.id.as_str(), work).await
    }

    /// The SELinux label of what its containers share. Refused: one that the policy does not have.
    fn label(&self) -> Result<Option<String>> {
        let Some(selinux) = &self.shared.node.selinux else { return Ok(None) };
        let labels = selinux.of_pod(&self.record.id, &self.record.request.security);
        selinux::check(&labels)?;
        Ok(Some(labels.file))
    }

    fn label_files(&self) -> Result<()> {
        let Some(label) = self.label()? else { return Ok(()) };
        ["resolv.conf", "hostname", "hosts"].iter().try_for_each(|name| selinux::relabel(&self.directory.etc(name), &label))
    }

    fn make_shm(&self) -> Result<()> {
        if self.record.request.ipc == IpcMode::Node {
            return Ok(());
        }
        let path = self.directory.shm();
        fs::create_dir(&path).during("making the pod's /dev/shm", path.display())?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let label = self.label()?.map(|label| format!(",context=\"{label}\"")).unwrap_or_default();
        let options = CString::new(format!("{SHM_OPTIONS}{label}")).during("naming the label of the pod's /dev/shm", path.display())?;
        rustix::mount::mount("shm", &path, "tmpfs", flags, options.as_c_str()).during("mounting the pod's /dev/shm on", path.display())?;
        reach(Point::PodShm);
        match self.record.request.user_namespace {
            Some(users) => {
                chown(&path, Some(users.uids.host()), Some(users.gids.host())).during("giving to the pod's root", path.display())
            }
            None => Ok(()),
        }
    }
}

/// A clock cannot be set back to before 0. Both are taken for the node's uptime, which the monotonic one is but for the time
/// that the node was suspended.
fn check_clocks(offsets: &TimeOffsets) -> Result<()> {
    if offsets.is_empty() {
        return Ok(());
    }
    let uptime = fs::read_to_string("/proc/uptime").during("reading", "/proc/uptime")?;
    let now: i64 = uptime.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(i64::MAX / 2);
    for (name, offset) in [("monotonic", offsets.monotonic), ("boottime", offsets.boottime)] {
        if offset.is_some_and(|offset| now + offset.seconds < 0) {
            let problem = format!("{name} would be set back to before 0: it is {now} s on this node");
            return Err(Refusal::invalid("the pod's time offsets", problem).into());
        }
    }
    Ok(())
}

/// The kernel parameters to set, in order. Where the network is the pod's own, no port and no echo is root's alone, as with
/// containerd and Docker; what the request says comes after that, and counts.
fn sysctls(request: &PodRequest) -> Vec<(String, String)> {
    let own_network = request.network == NetworkMode::Pod;
    let ports = own_network.then_some(("net.ipv4.ip_unprivileged_port_start", "0"));
    // All groups there are; most of them are unknown in a user namespace.
    let echoes = (own_network && request.user_namespace.is_none()).then_some(("net.ipv4.ping_group_range", "0 2147483647"));
    let usual = ports.into_iter().chain(echoes).map(|(name, value)| (name.to_owned(), value.to_owned()));
    usual.chain(request.sysctls.clone()).collect()
}

fn time_offsets(offsets: &TimeOffsets) -> Vec<protocol::TimeOffset> {
    let clocks = [(Clock::Monotonic, offsets.monotonic), (Clock::BootTime, offsets.boottime)];
    let offset = |(clock, offset): (Clock, Option<TimeOffset>)| {
        let TimeOffset { seconds, nanoseconds } = offset?;
        Some(protocol::TimeOffset { clock, seconds, nanoseconds })
    };
    clocks.into_iter().filter_map(offset).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod_request;

    #[test]
    fn no_port_and_no_echo_is_roots_alone_unless_the_request_says_so() {
        let mut request = pod_request(1);
        let name = "net/ipv4/ip_unprivileged_port_start".to_owned();
        request.sysctls = [(name.clone(), "1024".to_owned())].into();
        let names = |request: &PodRequest| sysctls(request).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&request), ["net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", &name]);
        request.network = NetworkMode::Node;
        assert_eq!(names(&request), [name]);
    }
}
