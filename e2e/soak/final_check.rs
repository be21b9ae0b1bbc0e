//! What must be when all pods have ended: nothing but the daemon, and that as small as it began.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_e2e::leaks::{self, Expected};
use coracle_e2e::{DEADLINE, Node};

use crate::arguments::Arguments;
use crate::process::Holdings;
use crate::world::World;

/// How many more files the daemon may hold than it did before the first pod: a connection or two.
const FILES: usize = 8;
/// How many more threads: those for blocking calls stay for two minutes after their last work, as many as there were calls at once.
/// A leak of thousands of pods would be hundreds.
const THREADS: usize = 64;
/// How much more memory, in KiB: the allocator keeps some.
const MEMORY: usize = 48 << 10;

/// What was there before the first pod.
#[derive(Debug)]
pub(crate) struct FinalCheck {
    holdings: Holdings,
    state: BTreeSet<PathBuf>,
    images: BTreeSet<PathBuf>,
}

impl FinalCheck {
    /// Looks at a node that has no pods yet.
    pub(crate) fn before(node: &Node, world: &World) -> Self {
        Self { holdings: Holdings::of(world.daemon()), state: leaks::tree(&node.footprint.state), images: images(world) }
    }

    /// Looks at a node that has no pods any more, and finishes it; how many findings there are.
    pub(crate) async fn after(self, mut node: Node, world: &World, arguments: &Arguments) -> usize {
        self.compare_lists(&node, world).await;
        for left in node.footprint.remains(&self.expected(&node, world)) {
            world.verdict.find("the end", "looking at the node", "nothing left", left);
        }
        self.compare_holdings(world).await;
        // What came of a pull that failed is kept for another try; the next daemon does not.
        node.restart().await;
        world.set_daemon(node.daemon_pid());
        self.compare_images(world).await;
        self.keep_log(&node, world, arguments);
        if let Err(panic) = tokio::spawn(node.finish()).await {
            world.verdict.find("the end", "finishing the node", "an orderly end", panic.to_string());
        }
        world.verdict.findings()
    }

    async fn compare_images(&self, world: &World) {
        let begin = Instant::now();
        let mut left: Vec<PathBuf> = images(world).difference(&self.images).cloned().collect();
        while !left.is_empty() && begin.elapsed() < DEADLINE {
            tokio::time::sleep(Duration::from_millis(100)).await;
            left = images(world).difference(&self.images).cloned().collect();
        }
        for path in left {
            world.verdict.find("the end", "looking at the image store", "nothing of images that were removed", path.display().to_string());
        }
    }

    async fn compare_lists(&self, node: &Node, world: &World) {
        let pods = node.cri.pods(None).await.map(|pods| pods.len());
        let containers = node.cri.containers(None).await.map(|containers| containers.len());
        if !matches!((&pods, &containers), (Ok(0), Ok(0))) {
            world.verdict.find("the end", "lists", "no pod and no container", format!("{pods:?}, {containers:?}"));
        }
    }

    fn expected(&self, node: &Node, world: &World) -> Expected {
        Expected {
            processes: [i32::try_from(node.registry.pid()).unwrap_or_default(), world.daemon()].into(),
            state: self.state.clone(),
            pods: world.ledger.now().departed(),
            addresses: Vec::new(),
        }
    }

    /// The last daemon holds as little as the first one did.
    async fn compare_holdings(&self, world: &World) {
        let (before, begin) = (self.holdings, Instant::now());
        let has_grown = |now: Holdings| {
            now.files > before.files + FILES || now.threads > before.threads + THREADS || now.memory > before.memory + MEMORY
        };
        let mut after = Holdings::of(world.daemon());
        // Some of it goes in the background.
        while has_grown(after) && begin.elapsed() < DEADLINE {
            tokio::time::sleep(Duration::from_millis(500)).await;
            after = Holdings::of(world.daemon());
        }
        println!("soak: the daemon held {before:?} before the first pod, {after:?} after the last");
        if has_grown(after) {
            world.verdict.find("the end", "looking at the daemon", format!("about {before:?}"), format!("{after:?}"));
        }
    }

    /// The log goes with the scratch directory, unless somebody will want it.
    fn keep_log(&self, node: &Node, world: &World, arguments: &Arguments) {
        if world.verdict.findings() == 0 {
            return;
        }
        let kept = arguments.keep.join(format!("coracle-soak-{}-{}.log", arguments.seed, std::process::id()));
        match std::fs::copy(node.scratch().join("daemon.log"), &kept) {
            Ok(_) => println!("soak: the daemon's log is kept at {}", kept.display()),
            Err(error) => println!("soak: {}: {error}", kept.display()),
        }
    }
}

/// All files and directories of the image store.
fn images(world: &World) -> BTreeSet<PathBuf> {
    let storage = &world.footprint.storage;
    ["images", "layers"].iter().flat_map(|name| leaks::tree(&storage.join(name))).collect()
}
