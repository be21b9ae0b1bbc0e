//! What everybody in a soak shares.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use coracle_e2e::leaks::Footprint;
use coracle_e2e::{Node, PodSpec, api};

use crate::arguments::Arguments;
use crate::ledger::Ledger;
use crate::sky::Sky;
use crate::verdict::Verdict;

/// What everybody shares.
#[derive(Debug)]
pub(crate) struct World {
    /// Decides everything but time.
    pub(crate) seed: u64,
    /// The daemon's.
    pub(crate) socket: PathBuf,
    /// Where the node's objects are found.
    pub(crate) footprint: Footprint,
    /// The image of the containers.
    pub(crate) image: String,
    /// Whether the node can give pods users of their own.
    pub(crate) has_users: bool,
    /// What is wrong.
    pub(crate) sky: Sky,
    /// What must be true.
    pub(crate) ledger: Ledger,
    /// What was done and found.
    pub(crate) verdict: Verdict,
    handler: String,
    template: PodSpec,
    ports: u16,
    over: AtomicBool,
    daemon: AtomicI32,
}

impl World {
    /// The world of a node that serves.
    pub(crate) async fn of(node: &Node, arguments: &Arguments, image: String) -> Self {
        let request = api::StatusRequest { verbose: false };
        let status = node.cri.runtime().status(request).await.expect("Status").into_inner();
        let mut features = status.runtime_handlers.iter().filter_map(|handler| handler.features);
        Self {
            seed: arguments.seed,
            socket: node.cri.socket().to_owned(),
            footprint: node.footprint.clone(),
            image,
            has_users: features.any(|features| features.user_namespaces),
            sky: Sky::default(),
            ledger: Ledger::default(),
            verdict: Verdict::default(),
            handler: node.target.handler.clone(),
            template: node.complete(&PodSpec::new("template")),
            // Soaks at the same time keep out of each other's way.
            ports: 12_000 + u16::try_from(std::process::id() % 300).unwrap_or_default() * 64,
            over: AtomicBool::new(false),
            daemon: AtomicI32::new(node.daemon_pid()),
        }
    }

    /// A pod with everything that a kubelet fills in.
    pub(crate) fn complete(&self, spec: PodSpec, uid: &str) -> PodSpec {
        let PodSpec { config: template, .. } = &self.template;
        spec.with(|config| {
            let metadata = config.metadata.get_or_insert_default();
            metadata.uid = uid.to_owned();
            metadata.namespace = template.metadata.clone().unwrap_or_default().namespace;
            config.labels.clone_from(&template.labels);
            config.log_directory = self.logs().join(uid).to_string_lossy().into_owned();
        })
    }

    /// Where logs are.
    pub(crate) fn logs(&self) -> PathBuf {
        self.footprint.scratch.join("logs")
    }

    /// The handler pods ask for.
    pub(crate) fn handler(&self) -> &str {
        &self.handler
    }

    /// The port of the node that belongs to the pods of a slot.
    pub(crate) fn port(&self, slot: u64) -> u16 {
        self.ports + u16::try_from(slot).unwrap_or_default()
    }

    /// Whether no new pods are to be begun.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// No new pods are to be begun.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// The daemon's process, of late.
    pub(crate) fn daemon(&self) -> i32 {
        self.daemon.load(Ordering::Relaxed)
    }

    /// There is another daemon.
    pub(crate) fn set_daemon(&self, pid: i32) {
        self.daemon.store(pid, Ordering::Relaxed);
    }
}
