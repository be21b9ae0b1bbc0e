//! The native pod network: every pod is a port of one bridge per node, with an IPv4 address of the node's
//! pod subnet, the bridge as its gateway, and the node's address for what leaves the node. Ports of the node
//! lead to the pods that claimed them.
//!
//! All that is known here besides the configuration is the subnet in use, which addresses are lent and which ports
//! are claimed, and the engine's records hold that too. Everything else is looked up in the kernel when it is needed
//! and put right where it is missing: a bridge that somebody deleted, with the pods that were on it; a rule set that
//! somebody flushed. The host's network namespace is that of the thread that calls.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_domain::{During, PodId, Result};

use crate::attach::Attachment;
use crate::host::{self, HostLink, HostSide, LINK_PREFIX};
use crate::lease::Allocator;
use crate::netlink::Socket;
use crate::ports::{PortClaims, PortRequest};
use crate::rtnetlink::Link;
use crate::rules::table_name;
use crate::worker::on_own_thread;
use crate::{BridgeConfig, Lease, Subnet, nft};

/// The name of the host's end of a pod's pair of links.
pub fn host_link_name(pod: &PodId) -> String {
    format!("{LINK_PREFIX}{}", pod.short())
}

/// The pod network of a node. Clones are the same network.
#[derive(Debug, Clone)]
pub struct Bridge {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: BridgeConfig,
    leases: Mutex<Allocator>,
    ports: Mutex<PortClaims>,
    /// Whether this process has made the host's side stand once; held while it does.
    established: Mutex<bool>,
    /// Held while rules are changed, and taken after `established` where both are.
    rules: Mutex<()>,
}

impl Bridge {
    /// A network that does not stand yet; the first attachment or [`Self::ensure`] makes it.
    pub fn new(config: BridgeConfig) -> Self {
        let leases = Mutex::new(Allocator::new(config.subnet));
        Self {
            shared: Arc::new(Shared { config, leases, ports: Mutex::default(), established: Mutex::default(), rules: Mutex::default() }),
        }
    }

    /// Makes the host's side stand as configured: bridge, addresses, forwarding, masquerading.
    ///
    /// # Errors
    /// The kernel refuses, or the bridge's name belongs to a link that is no bridge.
    pub async fn ensure(&self) -> Result<()> {
        self.run("setting up the bridge", |shared| shared.ensure().map(drop)).await
    }

    /// Whether pods can be attached, for CRI's NetworkReady; what is missing is put right.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn ready(&self) -> Result<(), String> {
        self.run("checking the bridge", |shared| shared.standing().map(drop)).await.map_err(|error| error.to_string())
    }

    /// Lends a pod the next free address, in place of the one that it has.
    ///
    /// # Errors
    /// Of the kind `Exhausted` when the subnet has none.
    pub fn lease(&self, pod: &PodId) -> Result<Lease> {
        self.shared.leases().lease(pod)
    }

    /// Takes over the lease that a pod has according to its record.
    pub fn adopt(&self, pod: &PodId, lease: &Lease) {
        self.shared.leases().adopt(pod, lease);
    }

    /// Takes back the address that a pod has, if it has one.
    pub fn release(&self, pod: &PodId) {
        self.shared.leases().release(pod);
    }

    /// Claims the ports of the node that a pod asks for, until [`Self::detach`].
    ///
    /// # Errors
    /// Refused if another pod has one of them.
    pub fn claim_ports(&self, request: &PortRequest<'_>) -> Result<()> {
        Ok(self.shared.ports().claim(request)?)
    }

    /// Takes over the ports that a pod has according to its record.
    ///
    /// # Errors
    /// Refused if the record holds what no pod is granted.
    pub fn adopt_ports(&self, request: &PortRequest<'_>) -> Result<()> {
        Ok(self.shared.ports().adopt(request)?)
    }

    /// Takes note of the ports that a pod had according to its record and is not to have any more: no flow goes to it
    /// from them when the host's side stands.
    ///
    /// # Errors
    /// Refused if the record holds what no pod is granted.
    pub fn give_up_ports(&self, request: &PortRequest<'_>) -> Result<()> {
        Ok(self.shared.ports().give_up(request)?)
    }

    /// Connects a pod's network namespace, in place of what an earlier attempt left there, and opens the ports
    /// that it claimed.
    ///
    /// # Errors
    /// The kernel refuses; the error names the step. What was made goes with the namespace.
    pub async fn attach(&self, pod: &PodId, namespace: BorrowedFd<'_>, lease: &Lease) -> Result<()> {
        const STAGE: &str = "attaching to the bridge the pod";
        let subnet = Subnet::around(lease.gateway, lease.prefix).ok_or("its lease is of no subnet").during(STAGE, pod)?;
        let namespace = namespace.try_clone_to_owned().during(STAGE, pod)?;
        let with_ports = self.shared.ports().has(pod).then(|| pod.clone());
        let attachment = Attachment { host_link: self.shared.host_link(pod), namespace, lease: *lease, subnet };
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let bridge = shared.standing()?;
            let mut socket = host::route_socket()?;
            shared.cut_off_former(attachment.lease.address, &mut socket)?;
            // First, because afterwards this thread is the pod's.
            if let Some(pod) = with_ports {
                shared.open_ports(&pod)?;
            }
            attachment.make(socket, &bridge)
        };
        on_own_thread(STAGE, pod, work).await
    }

    /// Forgets a pod and the ports of the node that it had. Its links go with its namespace, a few milliseconds
    /// after the last pin and process of it: to delete them would make every other pod wait for tens of
    /// milliseconds. A namespace that somebody keeps loses its link when the address is another pod's. The lease is
    /// given back apart, by [`Self::release`].
    ///
    /// # Errors
    /// The kernel refuses to take the ports' rules away; then the pod keeps its ports.
    pub async fn detach(&self, pod: &PodId) -> Result<()> {
        if !self.shared.ports().has(pod) {
            return Ok(());
        }
        const STAGE: &str = "closing the host ports of the pod";
        let (shared, pod_id) = (Arc::clone(&self.shared), pod.clone());
        // It joins no namespace, and must succeed where no further thread can be made.
        tokio::task::spawn_blocking(move || shared.close_ports(&pod_id)).await.during(STAGE, pod)?
    }

    /// Deletes the pods' links on the bridge that are not `known`, and returns their names; makes the rules
    /// those of the pods that were adopted. Nothing is made where nothing was left.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn sweep(&self, known: &HashSet<String>) -> Result<Vec<String>> {
        let known = known.clone();
        self.run("sweeping the bridge", move |shared| shared.sweep(&known)).await
    }

    /// Lends addresses of this subnet from now on; [`Self::ensure`] gives it its gateway at once, the next attachment
    /// otherwise. Leases of earlier subnets keep working.
    pub fn set_subnet(&self, subnet: Subnet) {
        self.shared.leases().set_subnet(subnet);
    }

    /// Makes sure that bridge, pods' links and rules are gone.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn teardown(&self) -> Result<()> {
        self.run("removing the bridge", |shared| shared.host_side().remove(&mut host::route_socket()?)).await
    }

    async fn run<T: Send + 'static>(&self, stage: &'static str, work: impl FnOnce(&Shared) -> Result<T> + Send + 'static) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        on_own_thread(stage, &self.shared.config.name, move || work(&shared)).await
    }
}

impl Shared {
    fn leases(&self) -> MutexGuard<'_, Allocator> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ports(&self) -> MutexGuard<'_, PortClaims> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn host_side(&self) -> HostSide<'_> {
        HostSide { config: &self.config, subnets: self.leases().subnets() }
    }

    fn host_link(&self, pod: &PodId) -> HostLink {
        HostLink { name: host_link_name(pod), hairpin: self.ports().has(pod) }
    }

    pub(crate) fn writing_rules(&self) -> MutexGuard<'_, ()> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn established(&self) -> MutexGuard<'_, bool> {
        self.established.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that the pod that had an address before has no link any more. It went with the pod's namespace, unless
    /// somebody holds that, be it a connection that nobody has closed at the other end.
    fn cut_off_former(&self, address: Ipv4Addr, socket: &mut Socket) -> Result<()> {
        let former = self.leases().former(address).map(host_link_name);
        Ok(former.map_or(Ok(()), |link| host::delete(socket, &link))?)
    }

    /// The bridge, put right if need be.
    fn standing(&self) -> Result<Link> {
        let known = *self.established();
        if let Some(bridge) = self.check(known)? {
            return Ok(bridge);
        }
        let mut established = self.established();
        // Another caller may have been faster.
        match self.check(*established && !known)? {
            Some(bridge) => Ok(bridge),
            None => self.establish(&mut established),
        }
    }

    /// The bridge, if it stands. What stood before this process began may follow another configuration.
    fn check(&self, known: bool) -> Result<Option<Link>> {
        let ports = self.ports().any_open();
        if known { self.host_side().standing(&mut host::route_socket()?, ports) } else { Ok(None) }
    }

    fn ensure(&self) -> Result<Link> {
        self.establish(&mut self.established())
    }

    fn establish(&self, established: &mut bool) -> Result<Link> {
        let _writing = self.writing_rules();
        let openings = self.ports().open();
        let links: Vec<HostLink> = self.leases().holders().map(|pod| self.host_link(pod)).collect();
        let bridge = self.host_side().establish(&mut host::route_socket()?, &openings, &links)?;
        self.settle_ports()?;
        *established = true;
        Ok(bridge)
    }

    fn sweep(&self, known: &HashSet<String>) -> Result<Vec<String>> {
        let mut socket = host::route_socket()?;
        let bridge = self.host_side().bridge(&mut socket)?;
        if bridge.is_none() && !nft::exists(&table_name(&self.config))? {
            return Ok(Vec::new());
        }
        let ports = bridge.map(|bridge| host::pod_ports(&mut socket, &bridge)).transpose()?.unwrap_or_default();
        let strays: Vec<String> = ports.into_iter().map(|port| port.name).filter(|name| !known.contains(name)).collect();
        for name in &strays {
            host::delete(&mut socket, name)?;
        }
        self.ensure()?;
        Ok(strays)
    }
}
