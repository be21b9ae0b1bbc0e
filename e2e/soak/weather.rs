//! What goes wrong, and when: decided by the seed, carried out on the node.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use coracle_e2e::{Node, host};
use rustix::fs::{FallocateFlags, fallocate};
use tokio::time::sleep;

use crate::dice::Dice;
use crate::relay::{Mood, Relay};
use crate::sky::Trouble;
use crate::world::World;

/// A kind of weather.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// The daemon is killed, and started again after a while.
    Kill,
    /// The same, several times, before it serves.
    KillEarly,
    /// The daemon is told to end, and started again.
    Terminate,
    /// The daemon's connections to monitors break, all at once, several times.
    Disconnect,
    /// The daemon stands still for a while.
    Freeze,
    /// The file system of images and writable layers is full for a while.
    FullStorage,
    /// The file system of records is full for a while.
    FullState,
    /// The file system of logs is full for a while.
    FullLogs,
    /// The file system of records is full, and the daemon is killed and started while it is.
    KillFull,
    /// The registry does not answer for a while.
    SilentRegistry,
    /// The registry hangs up for a while.
    BrokenRegistry,
}

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Fair weather before it.
    fair: Duration,
    kind: Kind,
    /// How long it lasts.
    foul: Duration,
    /// How often, where it can be more than once.
    times: u64,
}

/// All that goes wrong, without end.
#[derive(Debug)]
pub(crate) struct Weather {
    dice: Dice,
    without: Vec<Kind>,
}

impl Iterator for Weather {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let dice = &mut self.dice;
        let fair = if dice.chance(10) { dice.between(15_000, 40_000) } else { dice.between(300, 8_000) };
        let kind = match dice.between(0, 20) {
            0..=5 => Kind::Kill,
            6..=7 => Kind::Disconnect,
            8..=9 => Kind::KillEarly,
            10..=11 => Kind::Terminate,
            12..=13 => Kind::FullStorage,
            14 => Kind::FullState,
            15 => Kind::FullLogs,
            16 => Kind::KillFull,
            17..=18 => Kind::SilentRegistry,
            19 => Kind::BrokenRegistry,
            _ => Kind::Freeze,
        };
        let foul = match kind {
            Kind::Kill | Kind::Terminate => {
                if dice.chance(50) {
                    0
                } else {
                    dice.between(1, 2_500)
                }
            }
            Kind::KillEarly => dice.between(0, 150),
            _ => dice.between(500, 6_000),
        };
        Some(Event { fair: Duration::from_millis(fair), kind, foul: Duration::from_millis(foul), times: dice.between(1, 4) })
    }
}

impl Weather {
    /// The weather of a seed, without some of it.
    pub(crate) fn new(seed: u64, without: &[Kind]) -> Self {
        Self { dice: Dice::new(seed, u64::MAX), without: without.to_vec() }
    }

    /// Goes on until the soak is over; then it is fair.
    pub(crate) async fn rage(self, node: &mut Node, world: &World, relay: &Relay) {
        let without = self.without.clone();
        for event in self.filter(|event| !without.contains(&event.kind)) {
            if wait(world, event.fair).await {
                return;
            }
            expect_daemon(node, world).await;
            world.verdict.event(format!("weather: {:?}", event.kind));
            event.happen(node, world, relay).await;
        }
    }
}

impl Event {
    async fn happen(&self, node: &mut Node, world: &World, relay: &Relay) {
        match self.kind {
            Kind::Kill => self.kill(node, world, 0).await,
            Kind::KillEarly => self.kill(node, world, self.times).await,
            Kind::Terminate => self.terminate(node, world).await,
            Kind::Disconnect => self.disconnect(node, world).await,
            Kind::Freeze => self.freeze(node).await,
            Kind::FullStorage => self.fill(world, Trouble::StorageFull, &world.footprint.storage).await,
            Kind::FullState => self.fill(world, Trouble::StateFull, &world.footprint.state).await,
            Kind::FullLogs => self.fill(world, Trouble::LogsFull, &world.logs()).await,
            Kind::KillFull => self.kill_full(node, world).await,
            Kind::SilentRegistry => self.trouble_registry(world, relay, Mood::Silent).await,
            Kind::BrokenRegistry => self.trouble_registry(world, relay, Mood::Broken).await,
        }
    }

    async fn kill(&self, node: &mut Node, world: &World, early: u64) {
        world.sky.begin(Trouble::NoDaemon);
        node.kill_daemon();
        for _ in 0..early {
            node.launch_daemon();
            sleep(self.foul).await;
            node.kill_daemon();
        }
        if early == 0 {
            sleep(self.foul).await;
        }
        start(node, world).await;
    }

    async fn terminate(&self, node: &mut Node, world: &World) {
        world.sky.begin(Trouble::NoDaemon);
        let ending = node.terminate_daemon().await;
        if !ending.success() {
            world.verdict.find("weather", "SIGTERM", "a good end of the daemon", ending.to_string());
        }
        sleep(self.foul).await;
        start(node, world).await;
    }

    async fn disconnect(&self, node: &Node, world: &World) {
        world.sky.begin(Trouble::NoLink);
        for _ in 0..self.times {
            node.break_links();
            sleep(self.foul / 10).await;
        }
        world.sky.end(Trouble::NoLink);
    }

    async fn freeze(&self, node: &Node) {
        let daemon = node.daemon_pid().to_string();
        let _ = host::run("kill", &["-STOP", &daemon]);
        sleep(self.foul).await;
        let _ = host::run("kill", &["-CONT", &daemon]);
    }

    async fn fill(&self, world: &World, trouble: Trouble, directory: &Path) {
        world.sky.begin(trouble);
        let ballast = fill(directory);
        sleep(self.foul).await;
        let _ = fs::remove_file(ballast);
        world.sky.end(trouble);
    }

    async fn kill_full(&self, node: &mut Node, world: &World) {
        world.sky.begin(Trouble::StateFull);
        let ballast = fill(&world.footprint.state);
        sleep(self.foul / 2).await;
        world.sky.begin(Trouble::NoDaemon);
        node.kill_daemon();
        start(node, world).await;
        sleep(self.foul / 2).await;
        let _ = fs::remove_file(ballast);
        world.sky.end(Trouble::StateFull);
    }

    async fn trouble_registry(&self, world: &World, relay: &Relay, mood: Mood) {
        world.sky.begin(Trouble::Registry);
        relay.set(mood);
        sleep(self.foul).await;
        relay.set(Mood::Fair);
        world.sky.end(Trouble::Registry);
    }
}

async fn start(node: &mut Node, world: &World) {
    node.start_daemon().await;
    world.set_daemon(node.daemon_pid());
    world.sky.end(Trouble::NoDaemon);
}

/// A daemon that nobody ended must be there. If it is not, that is found, and another is started.
async fn expect_daemon(node: &mut Node, world: &World) {
    if !host::is_alive(node.daemon_pid()) {
        world.verdict.find("weather", "looking at the daemon", "a daemon that runs", "it ended by itself");
        world.sky.begin(Trouble::NoDaemon);
        start(node, world).await;
    }
}

/// Waits, but not beyond the soak; whether it is over.
async fn wait(world: &World, pause: Duration) -> bool {
    let begin = std::time::Instant::now();
    while begin.elapsed() < pause && !world.is_over() {
        sleep(Duration::from_millis(100).min(pause)).await;
    }
    world.is_over()
}

/// Takes all room that is left; the file that holds it.
fn fill(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("ballast");
    let Ok(file) = File::create(&path) else { return path };
    let (mut length, mut step) = (0, 16 << 20);
    while step >= 4096 {
        match fallocate(&file, FallocateFlags::empty(), length, step) {
            Ok(()) => length += step,
            Err(_) => step /= 2,
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_its_own_weather() {
        let weather = |seed| Weather::new(seed, &[]).take(50).collect::<Vec<_>>();
        assert_eq!(weather(1), weather(1));
        assert_ne!(weather(1), weather(2));
    }
}
