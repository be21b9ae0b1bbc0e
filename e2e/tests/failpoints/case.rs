//! One case: a call, a visit of a point by it, and who is killed there.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use coracle_failpoint::{Point, Side};
use rustix::process::{Pid, Signal, kill_process};

use crate::Visits;
use crate::call::{Answer, Call, Scene};
use crate::kubelet;
use crate::stage::Stage;

/// How long after a call the daemon may still do what followed from it.
const AFTERMATH: Duration = Duration::from_millis(400);

/// How long a daemon takes to die.
const AGONY: Duration = Duration::from_millis(50);

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Victim {
    Daemon,
    Monitor,
}

/// What is to be tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) call: Call,
    pub(crate) point: Point,
    pub(crate) number: usize,
    pub(crate) victim: Victim,
}

/// By which call, at which point, who is killed.
pub(crate) type Place = (Call, &'static str, Victim);

/// What became of it. Whatever failed has panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Somebody was killed, and all was well.
    Killed,
    /// The call did not come by as often as when it was undisturbed.
    Missed,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {} {:?}", self.call, self.point.name(), self.number, self.victim)
    }
}

/// The cases to try, by what the calls came by undisturbed.
pub(crate) fn all(visits: &Visits) -> Vec<Case> {
    let limit = std::env::var("CORACLE_E2E_FAIL_POINTS_VISITS").unwrap_or_default();
    let limit = if limit == "all" { usize::MAX } else { limit.parse().unwrap_or(2) };
    let only = std::env::var("CORACLE_E2E_FAIL_POINTS_ONLY").unwrap_or_default();
    let mut cases = Vec::new();
    for (&call, points) in visits {
        for &point in Point::ALL {
            let Some(&count) = points.get(point.name()) else { continue };
            for number in spread(count, limit) {
                cases.push(Case { call, point, number, victim: Victim::Daemon });
                // Of whose monitor it would be nobody knows, when the daemon greets all.
                if point.side() == Side::Monitor && call != Call::Restart {
                    cases.push(Case { call, point, number, victim: Victim::Monitor });
                }
            }
        }
    }
    cases.retain(|case| case.to_string().contains(&only));
    cases
}

/// At most `limit` of the numbers from 1 to `count`, the first and the last among them.
fn spread(count: usize, limit: usize) -> Vec<usize> {
    let chosen = count.min(limit.max(1));
    let mut numbers: Vec<usize> = (0..chosen).map(|place| 1 + place * (count - 1) / (chosen.max(2) - 1)).collect();
    numbers.dedup();
    numbers
}

/// How a call ended, or what interrupted it.
enum Turn {
    Answered,
    Died,
    Halted,
}

impl Case {
    /// The call, and nobody is killed.
    pub(crate) fn undisturbed(call: Call) -> Self {
        Self { call, point: Point::RecordDraft, number: usize::MAX, victim: Victim::Daemon }
    }

    /// What it is about, whichever visit it is.
    pub(crate) fn place(self) -> Place {
        (self.call, self.point.name(), self.victim)
    }

    /// What the call comes by.
    pub(crate) async fn discover(self, mut stage: Stage) -> (BTreeMap<&'static str, usize>, Stage) {
        let scene = self.call.prepare(&mut stage).await;
        if self.call == Call::Restart {
            stage.leave_a_pod_half_made().await;
        }
        stage.points().clear();
        if self.call == Call::Restart {
            stage.node.start_daemon().await;
        }
        self.call.make(&stage, &scene).await.unwrap_or_else(|status| panic!("{:?}: {status}", self.call));
        let mut seen = stage.points().visits();
        loop {
            tokio::time::sleep(AFTERMATH).await;
            let now = stage.points().visits();
            if now == seen {
                break;
            }
            seen = now;
        }
        kubelet::carry_on(&mut stage, self, &scene, None).await;
        stage.clear(self).await;
        let points = Point::ALL.iter().filter_map(|point| Some((point.name(), *seen.get(point.name())?)));
        (points.collect(), stage)
    }

    /// Kills, starts again, carries on as a kubelet would, and sees that all is well.
    pub(crate) async fn run(self, mut stage: Stage) -> (Outcome, Stage) {
        let scene = self.call.prepare(&mut stage).await;
        let leaver = stage.leaver().await;
        if self.call == Call::Restart {
            stage.leave_a_pod_half_made().await;
        }
        stage.points().order(self.point.name(), self.number);
        let (outcome, answer) = self.interrupt(&mut stage, &scene).await;
        stage.see_off(&leaver).await;
        stage.points().clear();
        if stage.node.daemon_has_ended() {
            assert_eq!(self.victim, Victim::Daemon, "the daemon ended with a monitor:\n{}", stage.node.daemon_log());
            stage.node.start_daemon().await;
        }
        stage.check_bystanders(&leaver).await;
        if outcome == Outcome::Killed {
            kubelet::carry_on(&mut stage, self, &scene, answer.as_ref()).await;
        }
        stage.clear(self).await;
        (outcome, stage)
    }

    /// Makes the call and has it interrupted; its answer, if it had one before.
    async fn interrupt(self, stage: &mut Stage, scene: &Scene) -> (Outcome, Option<Answer>) {
        if self.call == Call::Restart {
            stage.node.launch_daemon();
        }
        let call = tokio::spawn(self.call.make(stage, scene));
        let mut answer = None;
        let mut turn = self.wait(stage, Some(&call)).await;
        if let Turn::Answered = turn {
            answer = Some(call.await.expect("the call itself does not panic"));
            turn = self.wait::<()>(stage, None).await;
        } else if let Turn::Halted = turn {
            self.kill(stage).await;
            stage.points().clear();
            if self.call == Call::Restart {
                call.abort();
                return (Outcome::Killed, None);
            }
            let answered = tokio::time::timeout(Duration::from_secs(40), call).await.expect("the call hangs");
            // Whether it could be made nevertheless is seen from what is there.
            drop(answered.expect("the call itself does not panic"));
            return (Outcome::Killed, None);
        }
        match turn {
            Turn::Died => (Outcome::Killed, answer),
            Turn::Halted => {
                self.kill(stage).await;
                (Outcome::Killed, answer)
            }
            Turn::Answered => {
                stage.points().clear();
                // Who came by just before that.
                tokio::time::sleep(AGONY).await;
                (Outcome::Missed, answer)
            }
        }
    }

    /// Waits for what comes first; without a call, for a little while.
    async fn wait<T>(self, stage: &mut Stage, call: Option<&tokio::task::JoinHandle<T>>) -> Turn {
        let begin = Instant::now();
        loop {
            if let Some(ending) = stage.node.daemon_ending() {
                self.check_was_ordered(stage, ending);
                return Turn::Died;
            }
            if stage.points().is_halted() {
                return Turn::Halted;
            }
            let over = match call {
                Some(call) => call.is_finished(),
                None => begin.elapsed() > AFTERMATH,
            };
            if over {
                return Turn::Answered;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The daemon ended as it was told to, where it was told to, and not of itself.
    fn check_was_ordered(self, stage: &Stage, ending: ExitStatus) {
        let visits = stage.points().visits().get(self.point.name()).copied().unwrap_or_default();
        let was_ordered = self.point.side() == Side::Daemon && visits >= self.number && ending.signal() == Some(Signal::KILL.as_raw());
        assert!(was_ordered, "the daemon's end after {visits} visits: {ending}\n{}", stage.node.daemon_log());
    }

    async fn kill(self, stage: &mut Stage) {
        match self.victim {
            Victim::Daemon => stage.node.kill_daemon(),
            Victim::Monitor => {
                for monitor in stage.monitors_of_others() {
                    let _ = Pid::from_raw(monitor).map(|pid| kill_process(pid, Signal::KILL));
                }
            }
        }
    }
}
