//! `coracle serve`: wires the daemon together and serves CRI until it is told to end.
//!
//! Ending means to stop answering: no more calls are taken, those under way may end (`serving`). Pods live on under
//! their monitors, and the next daemon takes them over.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use coracle_cgroup::Hierarchy;
use coracle_cri::server::listen;
use coracle_domain::{During, Result};
use coracle_engine::{Engine, Layout, OpenFiles, Parts, Program};
use coracle_handler::Handlers;
use coracle_image::Store;
use coracle_network::Bridge;
use coracle_streaming::Server;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::backend::Sessions;
use crate::config::Config;
use crate::notify::Notifier;
use crate::serving::Serving;
use crate::watchdog;

/// How often a thread for blocking calls is kept from ending. There must be one when no further one can be made: what
/// ends pods and makes room needs it.
const PULSE: Duration = Duration::from_secs(60);
/// How many such threads there may be. Each exec can keep some of them waiting for what it has locked; they cost little while they
/// are not there.
const MOST_BLOCKING: usize = 16_384;

/// Runs the daemon.
pub(crate) fn run(config: Option<PathBuf>) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CORACLE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false).init();
    let served = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(2 * PULSE)
        .max_blocking_threads(MOST_BLOCKING)
        .build()
        .during("starting", "the daemon's threads")
        .and_then(|runtime| {
            let served = runtime.block_on(serve(config.as_deref()));
            // All tasks end with the process, at once. Ended one after the other, a link to a monitor would end before the pod's
            // owner, who would take that for news of the monitor. What is cut off the next daemon does again.
            std::mem::forget(runtime);
            served
        });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!("{problem}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Option<&Path>) -> Result<()> {
    let config = Config::load(config)?;
    let socket = config.socket();
    tokio::spawn(keep_a_thread());
    make_directory(&config.daemon.state)?;
    let _lock = coracle_engine::lock(&config.daemon.state, || hierarchy(&config)).await?;
    let streaming = config.streaming.settings()?;
    let engine = Arc::new(Engine::start(parts(config).await?).await?);
    let streaming = Server::bind(streaming, Sessions(Arc::clone(&engine))).await?;
    // The lock says that a socket that is there is nobody's.
    socket.parent().map_or(Ok(()), make_directory)?;
    let listener = listen(&socket)?;
    let pods = engine.known_pods();
    let mut serving = Serving::begin(listener, Arc::clone(&engine), streaming)?;
    info!(socket = %socket.display(), pods, "serving");
    let notifier = Notifier::from_environment();
    notifier.ready(&format!("serving at {}; {pods} pods were there", socket.display()));
    tokio::select! {
        ended = serving.ended() => return ended,
        () = watched(&notifier, &socket) => {}
        told = told_to_end() => told?,
    }
    info!("told to end; pods go on");
    notifier.stopping("told to end; calls under way are finished");
    serving.end().await;
    engine.end_execs().await;
    Ok(())
}

/// Keeps systemd's watchdog quiet; never ends.
async fn watched(notifier: &Notifier, socket: &Path) {
    watchdog::run(notifier, socket).await;
    std::future::pending().await
}

async fn keep_a_thread() {
    loop {
        // It has nothing to fail at.
        let _ = tokio::task::spawn_blocking(|| ()).await;
        tokio::time::sleep(PULSE).await;
    }
}

async fn parts(config: Config) -> Result<Parts> {
    let root = &config.daemon.root;
    make_directory(root)?;
    let (monitor, volatile) = (Program::open(&config.monitor()?)?, config.daemon.state.join("images"));
    // The one reads many small files, on another thread, while the other reads the long list of mounts.
    let images = Store::open(root, &volatile, config.registries.clone());
    let (images, hierarchy) = tokio::join!(images, async { hierarchy(&config) });
    Ok(Parts {
        layout: Layout::new(&config.daemon.state),
        monitor,
        images: images?,
        network: Bridge::new(config.network.bridge),
        hierarchy: hierarchy?,
        handlers: Handlers::default(),
        open_files: raise_open_files(),
    })
}

fn hierarchy(config: &Config) -> Result<Hierarchy> {
    Hierarchy::detect()?.with_root(&config.daemon.cgroup_root)
}

/// Lets the daemon, which holds some files open for each container, have as many as it may; returns the limit that it
/// was started with, which is the containers'.
fn raise_open_files() -> Option<OpenFiles> {
    // `None` is how rustix writes "no limit".
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        warn!(%error, "the limit on open files stays as it is");
    }
    Some(OpenFiles { soft: current.unwrap_or(u64::MAX), hard: maximum.unwrap_or(u64::MAX) })
}

fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o711).create(path).during("making", path.display())
}

async fn told_to_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).during("listening for", "SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).during("listening for", "SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
