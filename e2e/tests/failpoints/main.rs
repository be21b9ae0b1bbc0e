//! Kill everywhere: the daemon dies right after each effect of each lifecycle call, is started again, and the call is made
//! again as a kubelet would. The pod comes up or is cleanly gone; no container died; no exit code is missing or wrong;
//! nothing leaked; no name stays reserved.
//!
//! The effects are the fail points of `crates/failpoint`, which the daemon under test must have been built with:
//!
//! ```text
//! cargo build -p coracle -p coracle-monitor --features coracle/fail-points
//! ```
//!
//! First every call is made undisturbed, and the visits are noted: a point that no call comes by fails the test. Then
//! comes the killing, at the first and the last visit of each point by each call, and at all of them where
//! they are few. At a point in a monitor everything stands still while the daemon is killed, and another time while
//! the monitor itself is.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `CORACLE_E2E_FAIL_POINTS` | the daemon with fail points; its monitor lies beside it | `target/debug/coracle` |
//! | `CORACLE_E2E_FAIL_POINTS_VISITS` | at how many visits of a point to kill; `all` | 2 |
//! | `CORACLE_E2E_FAIL_POINTS_ONLY` | only cases whose name (`RunPodSandbox(Own) pod.shm 1 Daemon`) contains this | all |

mod call;
mod case;
mod kubelet;
mod stage;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use coracle_e2e::{Target, skip};
use coracle_failpoint::Point;

use call::Call;
use case::{Case, Outcome, Place};
use stage::Stage;

/// Nodes that are killed on side by side: they wait more than they work.
const NODES: usize = 4;
/// No case takes as long, nor all calls undisturbed, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is tried to kill somebody who did not come by.
const TRIES: usize = 4;
/// After so many failures the rest would say the same.
const ENOUGH: usize = 12;

/// What a call comes by, and how often.
type Visits = BTreeMap<Call, BTreeMap<&'static str, usize>>;

#[test]
fn every_effect_of_every_call_survives_a_kill() {
    if Target::from_environment().is_foreign() {
        skip("this test needs a daemon of its own, and CORACLE_E2E_ENDPOINT names another");
        return;
    }
    let (visits, stage) = on_its_own_runtime(discover());
    for point in Point::ALL {
        let by: Vec<_> = visits.iter().filter_map(|(call, points)| Some(format!("{call:?} {}", points.get(point.name())?))).collect();
        eprintln!("{:20} {}", point.name(), by.join(", "));
    }
    let unvisited: Vec<_> = Point::ALL.iter().filter(|point| visits.values().all(|points| !points.contains_key(point.name()))).collect();
    assert!(unvisited.is_empty(), "no call comes by these points: {unvisited:?}");

    let cases = Queue::new(case::all(&visits));
    let mut first = Some(stage);
    std::thread::scope(|scope| {
        for _ in 0..NODES {
            let (stage, cases) = (first.take(), &cases);
            scope.spawn(move || work(stage, cases));
        }
    });
    cases.report();
}

#[test]
fn programs_for_use_have_no_fail_points() {
    let target = Target::from_environment();
    for program in [target.binary.clone(), target.binary.with_file_name("coracle-monitor")] {
        let bytes = std::fs::read(&program).unwrap_or_else(|error| panic!("{}: {error}; build with hack/build first", program.display()));
        let name = coracle_failpoint::VARIABLE.as_bytes();
        assert!(!bytes.windows(name.len()).any(|part| part == name), "{} can be told to die", program.display());
    }
}

/// The daemon with fail points.
fn binary() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/coracle");
    let binary = std::env::var_os("CORACLE_E2E_FAIL_POINTS").map_or_else(built, PathBuf::from);
    let bytes = std::fs::read(&binary).unwrap_or_default();
    let name = coracle_failpoint::VARIABLE.as_bytes();
    let armed = bytes.windows(name.len()).any(|part| part == name);
    assert!(armed, "{} has no fail points: cargo build -p coracle -p coracle-monitor --features coracle/fail-points", binary.display());
    binary
}

/// Makes every call undisturbed.
async fn discover() -> (Visits, Stage) {
    let mut stage = Stage::new(binary()).await;
    let mut visits = Visits::new();
    let users = stage.has_user_namespaces().await;
    if !users {
        skip("pods with users of their own, which this node cannot have");
    }
    for call in Call::all(users) {
        let (seen, after) = Case::undisturbed(call).discover(stage).await;
        stage = after;
        visits.insert(call, seen);
    }
    (visits, stage)
}

fn on_its_own_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => done,
            () = tokio::time::sleep(PATIENCE) => panic!("it hangs"),
        }
    })
}

/// Takes case after case; a node on which one failed is not used again.
fn work(mut stage: Option<Stage>, cases: &Queue) {
    while let Some(case) = cases.next() {
        let before = stage.take();
        let attempt = AssertUnwindSafe(|| {
            on_its_own_runtime(async {
                let stage = match before {
                    Some(stage) => stage.renewed(),
                    None => Stage::new(binary()).await,
                };
                case.run(stage).await
            })
        });
        match catch_unwind(attempt) {
            Ok((outcome, after)) => {
                cases.done(case, outcome);
                stage = Some(after);
            }
            Err(panic) => cases.failed(case, &*panic),
        }
    }
    if let Some(stage) = stage {
        on_its_own_runtime(async { stage.renewed().finish().await });
    }
}

/// The cases to come, and what became of the others.
struct Queue(Mutex<Board>);

struct Board {
    waiting: VecDeque<Case>,
    killed: BTreeMap<Place, usize>,
    missed: Vec<Case>,
    failures: Vec<String>,
}

impl Queue {
    fn new(cases: Vec<Case>) -> Self {
        Self(Mutex::new(Board { waiting: cases.into(), killed: BTreeMap::new(), missed: Vec::new(), failures: Vec::new() }))
    }

    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn next(&self) -> Option<Case> {
        let mut board = self.board();
        if board.failures.len() >= ENOUGH { None } else { board.waiting.pop_front() }
    }

    fn done(&self, case: Case, outcome: Outcome) {
        let mut board = self.board();
        eprintln!("{case}: {outcome:?} and well, {} to go", board.waiting.len());
        match outcome {
            Outcome::Killed => *board.killed.entry(case.place()).or_default() += 1,
            Outcome::Missed => {
                board.missed.push(case);
                let tries = board.missed.iter().filter(|missed| missed.place() == case.place()).count();
                if tries < TRIES && !board.killed.contains_key(&case.place()) {
                    board.waiting.push_back(case);
                }
            }
        }
    }

    fn failed(&self, case: Case, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        self.board().failures.push(format!("{case}: {}", text.unwrap_or("it panicked")));
    }

    /// Fails if a case did, or if nobody was killed at a point, or by a call that comes by it.
    fn report(&self) {
        let board = self.board();
        let kills: usize = board.killed.values().sum();
        let points: BTreeSet<&str> = board.killed.keys().map(|(_, point, _)| *point).collect();
        eprintln!("{kills} kills at {} points; {} visits did not come again", points.len(), board.missed.len());
        for case in &board.missed {
            eprintln!("did not come again: {case}");
        }
        assert!(board.failures.is_empty(), "{} cases failed:\n{}", board.failures.len(), board.failures.join("\n"));
        let missed: Vec<_> = board.missed.iter().filter(|case| !board.killed.contains_key(&case.place())).collect();
        assert!(missed.is_empty(), "nobody was killed at {missed:?}");
        let spared: Vec<_> = Point::ALL.iter().filter(|point| !points.contains(point.name())).collect();
        let filtered = std::env::var_os("CORACLE_E2E_FAIL_POINTS_ONLY").is_some();
        assert!(filtered || spared.is_empty(), "nothing was killed at {spared:?}");
    }
}
