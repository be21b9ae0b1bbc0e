//! Calls as a kubelet makes them: with a deadline, again when the answer was lost, and judged by the weather.

use std::error::Error as _;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_e2e::{Code, Cri, Status};

use crate::sky::{CUT, NO_ROOM, Trouble};
use crate::verdict::Ended;
use crate::world::World;

/// How long an answer may take: kubelet's own patience for most calls.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a call may go on failing while the weather explains it: longer than any weather lasts.
const PERSISTENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(100);
/// After how long without an answer the client is nudged.
const NUDGE: Duration = Duration::from_secs(10);

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Asked<T> {
    /// The last answer.
    pub(crate) result: Result<T, Status>,
    /// Whether an earlier try had no answer, or an error; it may have had an effect.
    pub(crate) repeated: bool,
}

/// Makes one actor's calls.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// What it asks.
    pub(crate) cri: Cri,
    /// What it is called in findings.
    pub(crate) name: String,
    /// Where it lives.
    pub(crate) world: Arc<World>,
}

impl Caller {
    /// One with a connection of its own.
    pub(crate) fn new(world: &Arc<World>, name: String) -> Self {
        Self { cri: Cri::new(&world.socket), name, world: Arc::clone(world) }
    }

    /// Something is not as it must be.
    pub(crate) fn find(&self, step: &str, expected: impl Into<String>, seen: impl Into<String>) {
        self.world.verdict.find(&self.name, step, expected, seen);
    }

    /// Asks until there is an answer that the weather does not explain. An error that is left is for the caller to judge.
    pub(crate) async fn ask<T, F: Future<Output = Result<T, Status>>>(&self, call: &'static str, make: impl Fn() -> F) -> Asked<T> {
        self.ask_during(call, &NO_ROOM, make).await
    }

    /// The same where other troubles explain errors.
    pub(crate) async fn ask_during<T, F: Future<Output = Result<T, Status>>>(
        &self,
        call: &'static str,
        troubles: &[Trouble],
        make: impl Fn() -> F,
    ) -> Asked<T> {
        let begin = Instant::now();
        let mut repeated = false;
        loop {
            let (ended, result) = self.attempt(call, troubles, make()).await;
            let again = matches!(ended, Ended::Cut | Ended::Forgiven);
            if !again || begin.elapsed() > PERSISTENCE {
                if again {
                    self.find(call, format!("an answer within {} s", PERSISTENCE.as_secs()), told(&result));
                }
                return Asked { result, repeated };
            }
            repeated = true;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks, but takes no interest in the answer after `patience`.
    pub(crate) async fn ask_briefly<T, F: Future<Output = Result<T, Status>>>(&self, call: &'static str, patience: Duration, work: F) {
        let begin = Instant::now();
        if tokio::time::timeout(patience, work).await.is_err() {
            self.world.verdict.call(call, Ended::GivenUp, begin.elapsed());
        }
    }

    /// Asks and expects success; what comes instead is a finding.
    pub(crate) async fn must<T, F: Future<Output = Result<T, Status>>>(&self, call: &'static str, make: impl Fn() -> F) -> Option<T> {
        match self.ask(call, make).await.result {
            Ok(answer) => Some(answer),
            Err(status) => {
                self.find(call, "success", format!("{status}"));
                None
            }
        }
    }

    async fn attempt<T>(
        &self,
        call: &'static str,
        troubles: &[Trouble],
        work: impl Future<Output = Result<T, Status>>,
    ) -> (Ended, Result<T, Status>) {
        let begin = Instant::now();
        let answer = tokio::time::timeout(PATIENCE, self.nudged(work)).await;
        let result = answer.unwrap_or_else(|_| {
            self.find(call, format!("an answer within {} s", PATIENCE.as_secs()), "none");
            Err(Status::deadline_exceeded("the soak's own patience"))
        });
        let sky = &self.world.sky;
        let ended = match &result {
            Ok(_) => Ended::Well,
            Err(status) if is_cut(status) && sky.troubled(&CUT, begin) => Ended::Cut,
            Err(status) if is_failure(status) && sky.troubled(troubles, begin) => Ended::Forgiven,
            Err(_) => Ended::Refused,
        };
        self.world.verdict.call(call, ended, begin.elapsed());
        (ended, result)
    }

    /// The answer, or the client's word that there will be none. A call that hyper's client is handed in the moment in which its
    /// connection breaks lies in a queue that nobody reads, until the client is used again and drops it (hyperium/hyper#4122). A
    /// call that a daemon owes an answer does not end by this.
    async fn nudged<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Ok(answer) = tokio::time::timeout(NUDGE, &mut work).await {
            return answer;
        }
        tokio::select! {
            answer = &mut work => return answer,
            _ = self.cri.version() => (),
        }
        work.await
    }
}

/// Whether a status was made by the client because the connection failed, or by a daemon that is about to end.
fn is_cut(status: &Status) -> bool {
    status.source().is_some() || status.code() == Code::Unavailable
}

/// Whether it is the daemon's trouble, not the caller's fault.
fn is_failure(status: &Status) -> bool {
    let faults =
        [Code::NotFound, Code::InvalidArgument, Code::AlreadyExists, Code::FailedPrecondition, Code::OutOfRange, Code::Unimplemented];
    !faults.contains(&status.code())
}

fn told<T>(result: &Result<T, Status>) -> String {
    result.as_ref().err().map(ToString::to_string).unwrap_or_default()
}
