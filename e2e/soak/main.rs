//! Random weather: pods come and go by the dozen while the daemon is killed, disks fill, the registry falls silent and
//! monitors die. A model knows what was acknowledged, and so what must be true; at the end nothing may be left.
//!
//! The seed decides every pod, every call and all weather; only time is the machine's. What is found is told with the
//! actor and the step, what was expected and what was seen; the daemon's log is kept then.

#![forbid(unsafe_code)]

mod actor;
mod arguments;
mod caller;
mod dice;
mod final_check;
mod ledger;
mod observer;
mod plan;
mod process;
mod puller;
mod relay;
mod sky;
mod verdict;
mod weather;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use coracle_e2e::Node;
use coracle_e2e::leaks::Footprint;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use crate::actor::Actor;
use crate::arguments::Arguments;
use crate::final_check::FinalCheck;
use crate::puller::Puller;
use crate::relay::Relay;
use crate::weather::Weather;
use crate::world::World;

/// How long pods may take to end in fair weather.
const CALM: Duration = Duration::from_secs(600);
/// How often a line tells how it goes.
const NEWS: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    println!(
        "soak: seed {}, {} minutes, {} pods at a time, without {:?}",
        arguments.seed, arguments.minutes, arguments.pods, arguments.without
    );
    let Some(node) = Node::own_with(mount_small).await else { return ExitCode::FAILURE };
    match soak(node, &arguments).await {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Small file systems in memory, since the weather fills them; records are kept in memory on a node as well.
fn mount_small(footprint: &Footprint) {
    for (directory, mebibytes) in [(&footprint.storage, 256), (&footprint.state, 48), (&footprint.scratch.join("logs"), 48)] {
        let options = std::ffi::CString::new(format!("mode=0711,size={mebibytes}m")).expect("text without NUL");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("soak", directory, "tmpfs", flags, options.as_c_str()).expect("mounting a small file system");
    }
}

/// All of it; how many findings there were.
async fn soak(mut node: Node, arguments: &Arguments) -> usize {
    let image = node.busybox().await;
    let world = Arc::new(World::of(&node, arguments, image).await);
    let check = FinalCheck::before(&node, &world);
    let relay = Relay::to(node.registry.address());
    let pullers: Vec<_> = (0..2).map(|number| tokio::spawn(Puller::new(&world, number, &node.registry, &relay).live())).collect();
    let slots: Vec<_> = (0..arguments.pods).map(|slot| tokio::spawn(fill_slot(Arc::clone(&world), slot, arguments.pods))).collect();
    let observer = tokio::spawn(observer::observe(Arc::clone(&world)));
    let clock = tokio::spawn(tell_time(Arc::clone(&world), arguments.duration()));
    Weather::new(arguments.seed, &arguments.without).rage(&mut node, &world, &relay).await;
    if timeout(CALM, join_all(slots.into_iter().chain(pullers))).await.is_err() {
        world.verdict.find(
            "everybody",
            "the end",
            format!("all pods gone within {} s", CALM.as_secs()),
            format!("{:?}", world.ledger.now().busy()),
        );
    }
    observer.abort();
    clock.abort();
    let findings = check.after(node, &world, arguments).await;
    println!("\n{}", world.verdict.table());
    match findings {
        0 => println!("soak: seed {}: clean", arguments.seed),
        _ => println!("soak: seed {}: {findings} findings", arguments.seed),
    }
    findings
}

/// One pod after the other.
async fn fill_slot(world: Arc<World>, slot: u64, slots: u64) {
    for number in (slot..).step_by(usize::try_from(slots).unwrap_or(1)) {
        if world.is_over() {
            return;
        }
        let life = tokio::spawn(Actor::new(&world, number, slot).live());
        if let Err(panic) = life.await {
            world.verdict.find(&format!("soak-{number}"), "its life", "an orderly one", panic.to_string());
        }
    }
}

/// Ends the soak in time, and tells how it goes.
async fn tell_time(world: Arc<World>, duration: Duration) {
    let begin = Instant::now();
    let mut told = begin;
    while begin.elapsed() < duration {
        sleep(Duration::from_millis(200)).await;
        if told.elapsed() > NEWS {
            told = Instant::now();
            let pods = world.verdict.count(actor::LIVED);
            eprintln!(
                "soak: {} s, {pods} pods lived and went, {} findings, the daemon has {:?}",
                begin.elapsed().as_secs(),
                world.verdict.findings(),
                process::Holdings::of(world.daemon())
            );
        }
    }
    world.end();
}
